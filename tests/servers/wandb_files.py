"""What the .wandb files of a run hold, as wandb's own reader prints them."""

import json
import subprocess
import sys
from pathlib import Path

WANDB = Path(sys.executable).parent / "wandb"


def wandb_files(run):
    """The files of a run's wandb runs, oldest first: of those offline, what `wandb sync` is to send."""
    return [path for kind in ("run", "offline-run") for path in sorted(run.glob(f"wandb/{kind}-*/*.wandb"))]


def records(*paths):
    """All that was recorded, by kind ("history", "alert", ...): dicts, in order."""
    found = {}
    for path in paths:
        command = [str(WANDB), "leet", "inspect", "--json", str(path)]
        for line in subprocess.run(command, text=True, capture_output=True).stdout.splitlines():
            record = json.loads(line)
            if content := record.get(record["type"]):
                found.setdefault(record["type"], []).append(content)
    return found


def rows(*paths):
    """The points logged, in order."""
    return [row["item"] for row in records(*paths).get("history", [])]
