"""accelerate launch launch/train.py --config FILE --shards DIR --run DIR [--SETTING VALUE ...]

Trains a network on shards; the same command resumes an interrupted run. A stop signal (SIGTERM, SIGUSR1, Ctrl-C) leaves
a checkpoint and exit status 75 (130 after Ctrl-C). torchrun takes --run for an option of its own: there write
--run_dir. On one machine `srcnn train --processes N` does the same and reports mistakes in one line.

examples:
  python launch/train.py --config train.yaml --shards data/shards --run runs/mine
  accelerate launch --config_file configs/accelerate/gpu8.yaml launch/train.py --config train.yaml --run runs/mine
"""

from srcnn.training.__main__ import main

if __name__ == "__main__":
    main("launch/train.py", __doc__)
