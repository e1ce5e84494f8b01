"""Trainings that are disturbed, started again, and compared with one that is not."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from signal import SIGTERM
from typing import Any

from srcnn.runtime.files import TEMPORARY_PREFIX

from .damage import Context, repair_shards
from .faults import STARTING, Fault, Moment, preloaded
from .job import (
    BATCH_SIZE,
    LOG_EVERY,
    VALIDATE_EVERY,
    Job,
    NotSurvived,
    differences,
    last,
    weights_equal,
)

TOTAL_SAMPLES = 12 * VALIDATE_EVERY
END_SECONDS = 90.0  # what is to end has ended: ranks wait 24 s for one that is stopped, the launcher 10 s more
WHOLE_SECONDS = 900.0  # of an undisturbed training on a busy machine


@dataclass
class Tried:
    """A fault that was tried: where, what came of it; `problem` is "" where it was survived."""

    number: int
    fault: Fault
    moment: Moment
    detail: str = ""
    status: int | None = None
    lost_steps: int = 0
    seconds: float = 0.0
    problem: str = ""


class Campaign:
    """Trainings one after another in `work`, and what was tried on them."""

    def __init__(
        self, work: Path, disk: Path, limits_files: bool, library: Path, seed: int, num_ranks: int = 2
    ) -> None:
        """`work` holds the shards, `disk` will hold the run folders. `library`: see `preloaded`."""
        self.work, self.disk, self.limits_files, self.library, self.seed = work, disk, limits_files, library, seed
        self.num_ranks = num_ranks
        self.shards, self.kept = work / "shards", work / "kept"
        shutil.copytree(self.shards, self.kept)
        self.tried: list[Tried] = []
        self.pending: list[Tried] = []  # whose next start is yet to say where it continues
        self.reached = 0  # tiles, before that
        self.trainings: list[dict[str, Any]] = []
        folder = work / "undisturbed"
        self.reference = Job(folder, folder / "run", self.shards, TOTAL_SAMPLES, num_ranks)
        self.job = self.reference
        self.start_seconds = 0.0

    def undisturbed(self) -> None:
        """What all others are compared with."""
        self.reference.start()
        self.reference.wait_for(lambda: self.reference.resumed_at() is not None, "a start")
        self.start_seconds = time.monotonic() - self.reference.started_at
        self.reference.wait_for(lambda: False, "its end", WHOLE_SECONDS)
        self.job = self.new_job()

    def new_job(self) -> Job:
        name = f"training-{len(self.trainings) + 1}"
        self.reached = 0
        return Job(self.work / name, self.disk / name, self.shards, TOTAL_SAMPLES, self.num_ranks)

    def run(self, faults: list[Fault]) -> None:
        self.undisturbed()
        for number, fault in enumerate(faults, 1):
            random = Random(f"{self.seed} {number}")
            tried = Tried(number, fault, random.choice(fault.moments))
            self.tried.append(tried)
            begin = time.monotonic()
            try:
                self.bring_to_with_retry(fault, tried.moment, random)
                self.inject(tried, Context(self.job, random, self.disk, self.kept, self.limits_files))
            except NotSurvived as problem:
                tried.problem = str(problem)
            tried.seconds = time.monotonic() - begin
            if tried.problem:
                self.pending = [one for one in self.pending if one is not tried]
                self.give_up(tried.problem)
            if tried not in self.pending:
                print(describe(tried), flush=True)
        self.to_the_end()

    def bring_to_with_retry(self, fault: Fault, moment: Moment, random: Random) -> None:
        """On another training, where the faults before were not survived."""
        before = bool(self.pending)
        try:
            self.bring_to(fault, moment, random)
        except NotSurvived as problem:
            if not before:
                raise
            self.give_up(str(problem))
            self.bring_to(fault, moment, random)

    def bring_to(self, fault: Fault, moment: Moment, random: Random) -> None:
        """A training is running, and this is the moment. Raises NotSurvived where it cannot be brought there."""
        if self.job.is_running() and (moment in STARTING or bool(self.job.environment) != fault.is_preloaded):
            self.job.signal(SIGTERM)
            if not self.job.wait_for_end(END_SECONDS):
                raise NotSurvived(f"does not end after SIGTERM: {last(self.job.log)}")
        if not self.job.is_running():
            if self.job.is_complete() and not self.pending:
                self.finish_training()
            self.job.start(preloaded(self.job, self.library) if fault.is_preloaded else {})
        if moment == "start":
            time.sleep(random.uniform(0.1, self.start_seconds))
        elif moment == "first second of the ranks":
            self.job.wait_for(self.job.ranks, "a rank", 60)
            time.sleep(random.uniform(0, 1))
        elif not (self.wait_for_progress() and self.reach(moment, random)):
            self.finish_training()  # before the moment had come
            self.bring_to(fault, "training" if moment == "end" else moment, random)

    def wait_for_progress(self) -> bool:
        """Waits until the training goes on, and notes what the faults before have cost; False where it is finished.

        Raises NotSurvived where it does not go on; the faults before are those that were not survived.
        """
        job = self.job
        try:
            job.wait_for(lambda: job.resumed_at() is not None, "a start")
            begun = job.resumed_at() or 0
            if self.pending:
                self.pending[0].lost_steps = max(0, self.reached - begun) // BATCH_SIZE
                most = sum(tried.fault.most_lost for tried in self.pending)
                if self.pending[0].lost_steps > most:
                    self.pending[0].problem = f"{self.pending[0].lost_steps} steps lost, {most} at most are expected"
            going_on = job.wait_for(lambda: job.tiles() > begun, "progress")
        except NotSurvived as problem:
            for tried in self.pending:
                tried.problem = f"the next start: {problem}"
            raise
        finally:
            for tried in self.pending:
                print(describe(tried), flush=True)
            self.pending, self.reached = [], 0
        return going_on

    def reach(self, moment: Moment, random: Random) -> bool:
        """Waits for the moment in a training that goes on; False where it is finished before."""
        job, begun = self.job, self.job.tiles()
        if moment == "saving":
            folder = job.run / "checkpoints"
            going_on = job.wait_for(lambda: any(folder.glob(f"{TEMPORARY_PREFIX}*")), "a checkpoint")
            time.sleep(random.uniform(0, 0.03))
        elif moment == "validation":
            before = (begun // VALIDATE_EVERY + 1) * VALIDATE_EVERY - LOG_EVERY
            going_on = job.wait_for(lambda: job.tiles() >= before, "a validation")
            time.sleep(LOG_EVERY / job.rate() + random.uniform(0, 0.3))
        elif moment == "end":
            going_on = job.wait_for(lambda: job.tiles() >= TOTAL_SAMPLES, "the end")
            time.sleep(random.uniform(0, 2))
        else:
            going_on = job.wait_for(lambda: job.tiles() > begun, "progress")
            time.sleep(random.uniform(0, 0.8))
        return going_on and job.is_running()

    def inject(self, tried: Tried, context: Context) -> None:
        """Does it, and sees that what has to hold does."""
        job, fault = self.job, tried.fault
        tried.detail = fault.inject(context)
        if fault.then == "goes on":
            if tried.moment in STARTING:
                self.wait_for_progress()
            tiles = job.tiles()
            job.wait_for(lambda: job.saved() > tiles, "a checkpoint after it")
            return
        self.reached = max(self.reached, job.tiles())
        self.pending.append(tried)
        if fault.then == "starts at once":
            job.start()
            return
        if fault.then in ("is refused", "may be refused"):
            job.start()
        if fault.then == "may be refused":
            if not job.wait_for_end(self.start_seconds + 5):  # it goes on
                fault.repair(context)
                return self.pending.remove(tried)
        elif not job.wait_for_end(END_SECONDS):
            running = ", ".join(" ".join(one.info["cmdline"][:4]) for one in job.processes())
            raise NotSurvived(f"still there after {END_SECONDS:.0f} s: {running}; {last(job.log)}")
        self.reached, tried.status = max(self.reached, job.tiles()), job.status()
        fault.repair(context)
        if tried.status == 0 and not job.is_complete():
            raise NotSurvived(f"ended with status 0 after {job.tiles()} of {TOTAL_SAMPLES} tiles")
        if tried.status == 0 and fault.mentions and fault.then != "may be refused":
            raise NotSurvived(f"went unnoticed: {last(job.log)}")
        if tried.status and fault.mentions not in job.log:
            raise NotSurvived(f"ended without a word of {fault.mentions}: {last(job.log)}")

    def to_the_end(self) -> None:
        """Nothing more happens to the last training."""
        if self.job.process is None:
            return
        try:
            if not self.job.is_running():
                self.job.start()
            self.wait_for_progress()
            self.job.wait_for(lambda: False, "its end", WHOLE_SECONDS)
            self.finish_training()
        except NotSurvived as problem:
            self.give_up(str(problem))

    def finish_training(self) -> None:
        """It has come to its end: is all there, and the same as without faults?"""
        if self.job.status() != 0:  # the end itself was disturbed
            self.job.start()
            self.job.wait_for(lambda: False, "its end")
        try:
            self.note(differences(self.job, self.reference), weights_equal(self.job, self.reference))
        except (OSError, ValueError) as error:
            self.note([str(error)], False)

    def give_up(self, problem: str) -> None:
        """This training cannot go on, or not be trusted; its folder is kept."""
        self.job.kill()
        context = Context(self.job, Random(), self.disk, self.kept, self.limits_files)
        repair_shards(context)
        (self.disk / "filler").unlink(missing_ok=True)
        for tried in self.pending:
            tried.problem = tried.problem or problem
            print(describe(tried), flush=True)
        self.pending = []
        self.note([problem], None)

    def note(self, problems: list[str], equal: bool | None) -> None:
        """`equal`: whether the weights are; None where it did not come to its end."""
        self.trainings.append({"faults_before": len(self.tried), "weights_equal": equal, "problems": problems})
        verdict = "; ".join(problems) or "equal to the undisturbed one"
        print(f"     training {len(self.trainings)}: {verdict}", flush=True)
        if problems:
            kept = self.work / "failed" / self.job.run.name
            kept.mkdir(parents=True)
            (kept / "log.txt").write_text(self.job.log)
            if self.job.run.is_dir():
                shutil.copytree(self.job.run, kept / "run", symlinks=True)
        shutil.rmtree(self.job.run, ignore_errors=True)
        self.job = self.new_job()


def describe(tried: Tried) -> str:
    status = "" if tried.status is None else f"status {tried.status}, "
    what = f"{tried.number:3}  {tried.fault.name} | {tried.moment} | {tried.detail} | "
    text = f"{what}{status}{tried.lost_steps} steps lost, {tried.seconds:.1f} s"
    return f"{text} | NOT SURVIVED: {tried.problem}" if tried.problem else text
