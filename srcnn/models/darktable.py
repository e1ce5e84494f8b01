"""Packages of networks for darktable: preferences, AI, import from file.

After darktable 5.6, src/common/ai/restore_rgb.c and restore.c, and github.com/darktable-org/darktable-ai: a zip of
ID/config.json and ID/model.onnx, or ID/model_x2.onnx for enlarging. Tensors are (1, 3, H, W), sRGB in [0, 1]; darktable
cuts tiles of 256 to 2048 pixels, with an overlap of 64 at scale 1.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from srcnn.models.base import Network
from srcnn.models.export import export_onnx
from srcnn.runtime.errors import UserError
from srcnn.runtime.files import atomic_file

SCALES = (1, 2, 4)
OVERLAP = 64  # pixels of darktable's tiles at scale 1
VERSION = "1.0"


def export_darktable(
    model: Network, path: str | Path, extra: Mapping[str, str] | None = None, *, scale: int = 1
) -> float | None:
    """Writes a .dtmodel file: the same network as `export_onnx` writes, and what darktable asks of it.

    Args:
        extra: metadata for the ONNX file; its "name" and "description" are also darktable's.
        scale: 1 is darktable's task "denoise", 2 and 4 are "upscale".

    Returns:
        The largest difference between ONNX Runtime and PyTorch; None (not compared) where onnxruntime is missing.

    Raises:
        ValueError: a scale that darktable lacks, a halo above its overlap, or as `export_onnx`. No file is written.
    """
    if scale not in SCALES:
        raise UserError(f"scale {scale}: darktable has {', '.join(map(str, SCALES))}")
    if scale == 1 and model.halo > OVERLAP:
        raise UserError(f"{path}: {model.name} needs {model.halo} pixels around a tile, darktable gives {OVERLAP}")
    about = dict(extra or {})
    name, task = about.get("name", Path(path).stem), "denoise" if scale == 1 else "upscale"
    identity = f"{task}-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}"
    config = {
        "id": identity, "name": f"{task} {name}", "description": about.get("description", model.name), "task": task,
        "arch": type(model).__name__.lower(), "backend": "onnx", "version": VERSION, "tiling": True,
    }
    with TemporaryDirectory() as folder:
        network = Path(folder) / "model.onnx"
        try:
            difference = export_onnx(model.with_condition(None), network, about, scale=scale)
        except UserError as error:
            raise UserError(str(error).replace(str(network), str(path))) from error
        parts = {"config.json": json.dumps(config, indent=2).encode(),
                 "model.onnx" if scale == 1 else f"model_x{scale}.onnx": network.read_bytes()}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as package:
        for part, content in parts.items():  # of 1980: the same bytes for the same weights
            package.writestr(zipfile.ZipInfo(f"{identity}/{part}"), content, zipfile.ZIP_DEFLATED)
    return difference
