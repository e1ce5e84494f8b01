"""A model card in Markdown: the README.md of a folder or repository with a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from srcnn.config import read_yaml
from srcnn.model import load_model
from srcnn.network import Network

HEADER_KEYS = {"license": "apache-2.0", "library_name": "srcnn", "pipeline_tag": "image-to-image"}
TAGS = ("srcnn", "image-restoration")
WHAT = {"SRCNN": "Three convolutions", "UNet": "Residual blocks of convolutions at several scales"}
SOURCE = {
    "SRCNN": 'Dong et al., "Image Super-Resolution Using Deep Convolutional Networks", IEEE TPAMI 38(2), 2016.',
    "UNet": 'Zhang et al., "Plug-and-Play Image Restoration with Deep Denoiser Prior", IEEE TPAMI 44(10), 2022.',
}
METRICS = {"PSNR": "psnr", "SSIM": "ssim"}  # what a card speaks of, and the hub's name of it


def make_card(model: Network, run: Path | None = None) -> str:
    """A card, Markdown without a header: what the config says, and the training where its run folder is given."""
    config = model.config
    kind, channel = type(model).__name__, {1: "luma", 3: "RGB"}.get(config.channels)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return f"""# {model.name}

{WHAT[kind]} that restore photographs: {model.sizes},
{"with" if model.residual else "without"} a residual connection, {num_parameters:,} parameters, for the
{channel or f"{config.channels} channels"} of a photo in [0, 1]. An output pixel depends on {model.receptive_radius} \
pixels to each side.
{SOURCE[kind]}

```python
from srcnn import {kind}

model = {kind}.from_pretrained("owner/name")  # this repository or folder
```

{"How it was trained, and how well it restores, was not recorded." if run is None else _of_run(model, run)}
"""


def _of_run(model: Network, run: Path) -> str:
    """The training of a run folder: its settings, and the best validation of its metrics."""
    from srcnn.history import STEP_KEY, checked_points, results_table

    theirs, ours = load_model(run).state_dict(), model.folded().state_dict()
    if theirs.keys() != ours.keys() or not all(torch.equal(theirs[name], ours[name]) for name in ours):
        raise ValueError(f"{run}: its best checkpoint has other weights than this network; no card can be made of it")
    settings = read_yaml(run / "config.yaml")
    validations = [point for point in checked_points(run) if "val/psnr" in point]
    if not validations:
        raise ValueError(f"{run}: it was never validated; there is nothing to say in a card")
    best = max(validations, key=lambda point: point["val/psnr"])
    optimizer = settings.get("optimizer")
    told = {"batch size of a process": settings.get("batch_size_per_process"), "seed": settings.get("seed"),
            "optimizer": isinstance(optimizer, dict) and optimizer.get("name") or None}
    return f"""**Training**: best validation PSNR after {best[STEP_KEY]:,.0f} of \
{_number(settings.get("total_samples"))} tiles
({", ".join(f"{key} {str(value)[:40]}" for key, value in told.items() if value is not None)}).

**Validation**, mean over the tiles held back, PSNR in dB and SSIM, before (in) and after (out):

{results_table([best])}"""


def _number(value: Any) -> str:
    return f"{value:,}" if type(value) is int else "an unknown number of"


def with_header(card: str) -> str:
    """The card with the YAML header that the hub reads; one that has such a header stays as it is."""
    if card.startswith("---\n"):
        return card
    lists = {"tags": TAGS, "metrics": [name for word, name in METRICS.items() if word in card]}
    lines = [f"{key}: {value}" for key, value in HEADER_KEYS.items()]
    for key, values in lists.items():
        lines += [f"{key}:", *(f"- {value}" for value in values)] if values else []
    return "\n".join(["---", *lines, "---", "", card])
