"""Real trainings that are killed, warned and starved: nothing is lost, nothing hangs, and the result is the same."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest
from jobs import (
    LONG,
    ROOT,
    SETTINGS,
    assert_same_run,
    consumed,
    finish,
    free_port,
    kill,
    launched,
    ranks_of,
    start,
    state,
    succeed,
    wait_for,
    wait_until,
)
from messages import lines_with, says
from small import small_shards

from srcnn.runtime.signals import EXIT_INTERRUPTED, EXIT_REQUEUE, SAME_SIGNAL_SECONDS
from srcnn.tracking.history import read_metrics

slow = pytest.mark.slow
ACCUMULATED = {"micro_batch_size": 2, "optimizer": {"lr": 2e-3, "average_halflife_samples": 500, "schedule": "cosine"}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(small_shards(tmp_path_factory.mktemp("shards")))


@pytest.mark.parametrize("num_ranks,stops", [
    (1, (130,)), pytest.param(2, (12, 500), marks=slow), pytest.param(3, (12, 240), marks=slow),
    pytest.param(4, (110,), marks=slow),
])
def test_killed_and_continued_it_is_the_same_to_the_last_bit(tmp_path, shards, num_ranks, stops):
    settings = {"shards": shards, "total_samples": 960, "log_every_samples": 250, "validate_every_samples": 480,
                "save_every_samples": 110, **ACCUMULATED}
    settings |= {"micro_batch_size": 3} if num_ranks == 4 else {}  # a rank's whole part: DDP's graph is static
    run = tmp_path / "run"
    for stop in stops:
        process = start(num_ranks, tmp_path, run=str(run), **settings)
        wait_for(process, run, stop)
        kill(process)
        assert stop <= consumed(run) < 960
    succeed(start(num_ranks, tmp_path, run=str(run), **settings))
    succeed(start(num_ranks, tmp_path, run=str(tmp_path / "whole"), **settings))
    assert_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize("num_ranks,whom,number,status", [
    (2, "ranks", signal.SIGTERM, EXIT_REQUEUE),
    pytest.param(1, "ranks", signal.SIGINT, EXIT_INTERRUPTED, marks=slow),
    pytest.param(2, "one rank", signal.SIGUSR1, EXIT_REQUEUE, marks=slow),
    pytest.param(1, "launcher", signal.SIGTERM, -signal.SIGTERM, marks=slow),  # it passes nothing on: the kernel does
    pytest.param(2, "launcher", signal.SIGTERM, 1, marks=slow),
])
def test_warned_it_stops_at_once_with_a_checkpoint_of_the_very_step(tmp_path, shards, num_ranks, whom, number, status):
    run = tmp_path / "run"
    settings = LONG | {"shards": shards, "validate_every_samples": 36}  # much of the time it validates
    settings["optimizer"] = {"lr": 2e-3, "average_halflife_samples": 500}
    process = (launched if whom == "launcher" else start)(num_ranks, tmp_path, run=str(run), **settings)
    wait_for(process, run, 240)
    ranks = ranks_of(process)
    (ranks[-1] if whom == "one rank" else process).send_signal(number)
    told, output = finish(process)
    assert told == status, output
    psutil.wait_procs(ranks, timeout=60)
    assert not any(one.is_running() for one in ranks)
    assert lines_with(output, "launch/train.py:", "checkpoint")
    stopped = consumed(run)
    assert stopped >= read_metrics(run)[-1]["samples"], "what was logged is in the checkpoint"
    if whom == "ranks":
        settings["total_samples"] = stopped + 96
        succeed(start(num_ranks, tmp_path, run=str(run), **settings))
        succeed(start(num_ranks, tmp_path, run=str(tmp_path / "whole"), **settings))
        assert_same_run(run, tmp_path / "whole")


@slow
def test_a_second_signal_ends_it_at_once_though_it_waits_for_another_rank(tmp_path, shards):
    run = tmp_path / "run"
    process = start(2, tmp_path, run=str(run), shards=shards, **LONG | {"timeout_minutes": 10})
    wait_for(process, run, 240)
    waiting, held = ranks_of(process)
    held.suspend()
    waiting.terminate()
    time.sleep(SAME_SIGNAL_SECONDS + 1)
    assert waiting.is_running(), "the first warning waits for the other rank"
    waiting.terminate()
    gone, _ = psutil.wait_procs([waiting], timeout=60)
    assert gone
    kill(process)


@slow
def test_told_to_stop_before_the_first_step_it_ends_at_once(tmp_path, shards):
    process = launched(0, tmp_path, run=str(tmp_path / "run"), shards=shards, **LONG)
    time.sleep(1)  # it imports for seconds
    process.terminate()
    status, output = finish(process)
    assert status in (EXIT_REQUEUE, -signal.SIGTERM), output  # the latter before Python has read the script
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@slow
def test_a_launcher_that_is_killed_while_its_ranks_begin_leaves_none_behind(tmp_path, shards):
    process = launched(2, tmp_path, run=str(tmp_path / "run"), shards=shards, **LONG | {"timeout_minutes": 10})
    wait_until(process, lambda: len(ranks_of(process)) == 2)
    ranks = ranks_of(process)
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive
    process.communicate()


@slow
def test_a_rank_that_is_killed_ends_the_others_and_the_launcher_starts_them_again(tmp_path, shards):
    run = tmp_path / "run"
    settings = {"shards": shards, "total_samples": 1920, "log_every_samples": 240, "validate_every_samples": 960,
                "save_every_samples": 240}
    process = launched(2, tmp_path, launcher=("--max_restarts=2",), run=str(run), **settings)
    wait_for(process, run, 240)
    ranks_of(process)[1].kill()
    output = succeed(process)
    assert lines_with(output, "launch/train.py:", "checkpoint") or "closing signal" in output
    succeed(start(2, tmp_path, run=str(tmp_path / "whole"), **settings))
    assert_same_run(run, tmp_path / "whole")


@slow
def test_a_rank_that_hangs_ends_the_others_within_the_time_limit(tmp_path, shards):
    run = tmp_path / "run"
    process = launched(2, tmp_path, run=str(run), shards=shards, **LONG | {"timeout_minutes": 0.1},
                    environment={"PET_SHUTDOWN_TIMEOUT": "5", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"})
    wait_for(process, run, 240)
    ranks_of(process)[0].suspend()
    status, output = finish(process)
    assert status == 1 and lines_with(output, "launch/train.py:", "rank")


@slow
def test_a_rank_that_never_meets_the_others_has_failed(tmp_path, shards):
    """Nothing says that they would meet the next time: no 75."""
    alone = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true"}
    status, output = finish(launched(0, tmp_path, run=str(tmp_path / "run"), shards=shards, environment=alone,
                                  **LONG | {"timeout_minutes": 0.05}))
    assert status == 1 and says(output.splitlines()[-1], 3, "timeout_minutes", f":{alone['MASTER_PORT']}"), output


@slow
def test_with_fewer_nodes_left_the_job_goes_on_by_itself(tmp_path, shards):
    """Two launchers of one rank each, as on two nodes; one of them dies with its rank."""
    run, settings = tmp_path / "run", LONG | {"shards": shards, "total_samples": 2400}
    port = free_port()
    command = (sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3",
               "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(SETTINGS | settings | {"run": str(run)}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    nodes = []
    for _ in range(2):
        nodes.append(subprocess.Popen([*command, str(ROOT / "launch/train.py"), "--config", str(config)], cwd=ROOT,
                                      text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment))
        wait_until(nodes[0], lambda: answers(port))  # the first one is where they meet
    wait_for(nodes[0], run, 480)
    assert len(state(run)["meter"]) == 2, "two ranks"
    kill(nodes[1])
    output = succeed(nodes[0])
    assert len(state(run)["meter"]) == 1, output
    assert state(run)["samples"] == 2400
    assert [point["samples"] for point in read_metrics(run)] == list(range(240, 2401, 240))


def answers(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
