"""python launch/release.py --run runs/NAME --photos DIR [--out srcnn/weights] [--half]

Copies a run's best weights to the folder that the package ships, with a model card: data, config, commit, and scores on
the folders of clean photos in DIR. The degradation of the run's shards decides which: JPEG of one quality: live1_y,
classic5 (greyscale, taken as limited-range Y), live1_color, city20, bsd100 and set14; a range of qualities: live1_y,
classic5, live1_color in RGB and city20; a scale: set5, set14 and bsd100 by the SRCNN paper's protocol.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import load_model, save_model
from srcnn.restoration.model_cards import make_card, to_markdown
from srcnn.runtime.files import write_json
from srcnn.runtime.strict_yaml import read_yaml
from srcnn.tracking.history import METRICS, STEP_KEY, best_validation, read_metrics
from srcnn.training.machine import commit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--half", action="store_true", help="write float16 weights, and score these")
    options = parser.parse_args()
    model = load_model(options.run)
    if options.half:
        model.half().float()
    card = make_card(model, read_yaml(options.run / "config.yaml"), options.photos, commit())
    points = read_metrics(options.run) if (options.run / METRICS).is_file() else []
    if best := best_validation(points):  # before the end of a run its checkpoint has seen less than `total_samples`
        card["samples_seen"] = int(best[STEP_KEY])
    options.out.mkdir(parents=True, exist_ok=True)
    name = options.run.resolve().name
    save_model(model, options.out / f"{name}.safetensors", half=options.half)
    write_json(options.out / f"{name}.json", card)
    (options.out / f"{name}.md").write_text(text := to_markdown(name, model, card), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
