"""python launch/pod.py --config FILE [--key value ...]

`accelerate launch launch/train.py` with these settings, as the first process of a pod of Kubernetes; launch/k8s starts
it. The environment says which pod of how many this is, JOB_COMPLETION_INDEX of NUM_PODS, with RANKS_PER_POD each, and
where they meet: at FIRST_POD, a name, and MASTER_PORT. Unlike the launcher it ends with what its ranks end with: 0; 2
for settings that are none; 75 where the same command goes on, after a warning or for want of other pods; else 1.

Tested with Accelerate 1.15 and PyTorch 2.14, whose launchers have no documented interface but the command: that ends
with 1 whatever the ranks end with, so it is called here (tests/launch/test_pod.py).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from srcnn.runtime.signals import EXIT_REQUEUE, exit_now, handle_in_thread
from srcnn.runtime.streams import open_standard_streams

TRAIN = "launch/train.py"
WRONG_SETTINGS = 2


def main(arguments: list[str]) -> int:
    num_pods, ranks_per_pod, index = (int(os.environ[name]) for name in
                                      ("NUM_PODS", "RANKS_PER_POD", "JOB_COMPLETION_INDEX"))
    if num_pods * ranks_per_pod == 1:
        become_single(arguments)
    open_standard_streams()
    handle_in_thread([signal.SIGTERM], stop_without_ranks)  # without a handler the kernel sends a first process none
    if num_pods > 1 and is_over(arguments):
        print(f"the training is done; pod {index} {'has nothing left to do' if index else 'looks to its results'}",
              flush=True)
        if index:
            return 0
        become_single(arguments)
    where = [f"--num_machines={num_pods}", f"--machine_rank={index}", f"--num_processes={num_pods * ranks_per_pod}",
             f"--main_process_port={os.environ['MASTER_PORT']}"]
    if num_pods > 1:
        where.append(f"--main_process_ip={os.environ['FIRST_POD']}")
    # MULTI_GPU is Accelerate's name for starting ranks with torchrun, on CPUs too.
    always = ["--multi_gpu", "--same_network", "--rdzv_backend=static", "--mixed_precision=no", "--dynamo_backend=no"]
    return launch([*always, *where, TRAIN, *arguments])


def become_single(arguments: list[str]) -> None:
    """This process becomes the training: signals reach it, and its status is the pod's."""
    os.execv(sys.executable, [sys.executable, TRAIN, *arguments])


def stop_without_ranks(_: signal.Signals) -> None:
    """SIGTERM ends this process at once while it has no ranks; when it has, the launcher passes it on to them."""
    if not has_children():
        exit_now("launch/pod.py: SIGTERM: stopped without ranks", EXIT_REQUEUE)


def has_children() -> bool:
    """Processes, running or ended, that this one has started."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def is_over(arguments: list[str]) -> bool:
    """Whether the run that is meant has come to its end: pods that have ended do not come again to meet others."""
    from srcnn.runtime.settings import parse
    from srcnn.training import checkpoint
    from srcnn.training.config import TrainConfig
    from srcnn.training.resume import is_restart

    config = parse(TrainConfig, "launch/pod.py", __doc__ or "", arguments)
    folder = Path(config.run)
    if config.fresh and not is_restart(folder):
        return False
    try:
        found = checkpoint.latest(folder)
        return found is not None and bool(checkpoint.load_training(found)["samples"] >= config.total_samples)
    except (OSError, ValueError):
        return False  # the ranks will find the same, and say it in a line


def launch(arguments: list[str]) -> int:
    """`accelerate launch` with these arguments; the status of this pod."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import DistError

    from srcnn.runtime.torch_internals import ranks_ended

    try:
        stop, statuses = ranks_ended(lambda: launch_command(launch_command_parser().parse_args(arguments)))
    except DistError as error:
        print(f"launch/pod.py: the other pods did not come: {error}", file=sys.stderr)
        return EXIT_REQUEUE
    if stop:
        print(f"launch/pod.py: {stop.name}: stopped", file=sys.stderr)
        return EXIT_REQUEUE
    if statuses:
        print(f"launch/pod.py: ranks ended with {sorted(statuses)}", file=sys.stderr)
        return statuses.pop() if statuses in ({EXIT_REQUEUE}, {WRONG_SETTINGS}) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
