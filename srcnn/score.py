"""How much a network gains on clean photos: degrade, restore, measure; a table by photo with the mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from srcnn.degrade import Degradation, crop_to_multiple, degrade
from srcnn.metrics import psnr, psnr_b, ssim
from srcnn.model import SRCNN
from srcnn.photo import LUMA, LumaKind, over_white, photos_below, read_photo
from srcnn.restore import restore_pixels

LUMA_NAMES = {"l": "L (full range, Pillow)", "y": "Y (limited range, BT.601, as the papers)"}


@dataclass(frozen=True)
class Score:
    """Input and output of one photo against the clean one: PSNR and PSNR-B in dB, SSIM."""

    photo: str
    psnr_in: float
    psnr: float
    ssim_in: float
    ssim: float
    psnr_b_in: float
    psnr_b: float

    @property
    def gain(self) -> float:
        """dB."""
        return self.psnr - self.psnr_in

    @property
    def gain_percent(self) -> float:
        return 100 * self.gain / self.psnr_in


def degraded_luma(pixels: np.ndarray, luma: LumaKind, degradation: Degradation) -> tuple[np.ndarray, np.ndarray]:
    """(clean, degraded) luma of a clean photo, uint8 (H, W).

    "l" degrades the colour photo and then takes Pillow's L of both, as the source project; "y" takes limited-range Y
    and degrades that, as the papers. Greyscale photos are taken as that luma.
    """
    clean = crop_to_multiple(pixels, degradation.scale)
    quality = degradation.quality("0" * 64)
    if luma == "y":
        grey = LUMA["y"](clean)
        return grey, degrade(grey, degradation, quality)
    return LUMA["l"](clean), LUMA["l"](degrade(clean, degradation, quality))


def score_photo(name: str, pixels: np.ndarray, model: SRCNN, luma: LumaKind, degradation: Degradation) -> Score:
    """Degrades, restores and measures one clean photo, uint8 (H, W) or (H, W, 3).

    No border is cut off; the output is clipped and rounded to uint8, as a saved photo would be.
    """
    clean, degraded = degraded_luma(pixels, luma, degradation)
    restored = restore_pixels(degraded, model, exact=True)  # published tables do not depend on the processor
    before, after = (_measures(clean, other) for other in (degraded, restored))
    return Score(name, before[0], after[0], before[1], after[1], before[2], after[2])


def score_folder(
    folder: Path, model: SRCNN, luma: LumaKind, degradation: Degradation, show_progress: bool = False
) -> tuple[list[Score], list[str]]:
    """Scores every photo below a folder; (scores, why each other photo was refused).

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
        ValueError: not one of the photos could be scored.
    """
    photos = photos_below(folder)
    scores: list[Score] = []
    refused: list[str] = []
    for path in tqdm(photos, "photos scored", disable=not show_progress or None):
        name = path.relative_to(folder).as_posix()
        try:
            scores.append(score_photo(name, over_white(read_photo(path)), model, luma, degradation))
        except ValueError as error:
            refused.append(f"{name}: {str(error).removeprefix(f'{path}: ')}")
    if not scores:
        raise ValueError(f"{folder}: none of the {len(photos)} photos could be scored: {'; '.join(refused[:5])}")
    return scores, refused


def _measures(clean: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    tensors = [torch.from_numpy(photo.astype(np.float64) / 255)[None, None] for photo in (clean, other)]
    return psnr(clean, other), float(ssim(*tensors)), psnr_b(clean, other)


def mean_score(scores: Iterable[Score]) -> Score:
    """The mean of each number over the photos, each photo counting the same."""
    scores = list(scores)
    means = {
        field.name: float(np.mean([getattr(score, field.name) for score in scores]))
        for field in fields(Score)
        if field.name != "photo"
    }
    return Score(photo=f"mean of {len(scores)}", **means)


def to_markdown(scores: list[Score]) -> str:
    """A row for each photo and the mean."""
    lines = [
        "| photo | input dB | output dB | gain dB | gain % | SSIM in | SSIM out | PSNR-B in | PSNR-B out |",
        "|---" + "|---:" * 8 + "|",
    ]
    for score in [*scores, mean_score(scores)]:
        decibels = f"{score.psnr_in:.2f} | {score.psnr:.2f} | {score.gain:.2f} | {score.gain_percent:.1f}"
        name = score.photo.replace("|", "\\|")
        rest = f"{score.ssim_in:.4f} | {score.ssim:.4f} | {score.psnr_b_in:.2f} | {score.psnr_b:.2f}"
        lines.append(f"| {name} | {decibels} | {rest} |")
    return "\n".join(lines) + "\n"


def to_json(scores: list[Score]) -> list[dict[str, Any]]:
    """A dict for each photo, then the mean."""
    rows = [*scores, mean_score(scores)]
    return [asdict(score) | {"gain": score.gain, "gain_percent": score.gain_percent} for score in rows]
