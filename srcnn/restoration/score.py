"""Scores a network on clean photos: degrades, restores and measures each; tables of the scores and their mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from srcnn.models.base import Network
from srcnn.models.perceptual import Distance
from srcnn.photos.degradation import Degradation, bicubic_levels, crop_to_multiple, degrade, jpeg, to_uint8
from srcnn.photos.jpeg_quality import JpegSave, jpeg_save
from srcnn.photos.metrics import SSIM_WINDOW, psnr, psnr_b, ssim
from srcnn.photos.reading import LUMA, photos_below, read_photo
from srcnn.restoration.jpeg_damage import find_damage
from srcnn.restoration.restore import access_to_array, restore_array
from srcnn.restoration.tiled_inference import RestoreOptions
from srcnn.runtime.errors import UserError

Compared = Literal["l", "y", "rgb"]
NAMES: dict[Compared, str] = {"l": "luma L (full range, Pillow)", "y": "luma Y (limited range, BT.601, as the papers)",
                              "rgb": "RGB"}
NETWORK_ALONE = RestoreOptions(exact=True, consistent=False)


@dataclass(frozen=True)
class EarlierSave:
    """A JPEG save before that of the degradation, for double JPEG as in the FBCNN paper (Jiang et al., ICCV 2021, 4.3).

    Args:
        quality: of the JPEG, 1..100.
        shift: rows at the top and columns at the left that are cut off before the photo is saved again.
    """

    quality: int
    shift: int = 0

    def __post_init__(self) -> None:
        Degradation(jpeg_quality=self.quality)
        if self.shift < 0:
            raise UserError(f"shift {self.shift}: expected a number of pixels from 0")


@dataclass(frozen=True)
class Score:
    """PSNR and PSNR-B (dB) and SSIM of one degraded photo (`_in`) and the restored one, against the clean one.

    PSNR-B is None where the photo was scaled, as it measures the edges of JPEG blocks, and where RGB is compared.
    `distances`: lpips_in, lpips, dists_in, dists where they were asked for; the less the better.
    """

    photo: str
    psnr_in: float
    psnr: float
    ssim_in: float
    ssim: float
    psnr_b_in: float | None
    psnr_b: float | None
    distances: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """dB."""
        return self.psnr - self.psnr_in

    @property
    def gain_percent(self) -> float:
        return 100 * self.gain / self.psnr_in


def compared(pixels: np.ndarray, kind: Compared) -> np.ndarray:
    """What is compared of a photo, (H, W) or (H, W, 3); greyscale is taken as the luma."""
    return pixels if kind == "rgb" else LUMA[kind](pixels)


def degraded_pair(
    pixels: np.ndarray, kind: Compared, degradation: Degradation, earlier: EarlierSave | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(clean uint8, degraded) of a clean photo, uint8 (H, W) or (H, W, 3); greyscale is taken as the luma.

    With JPEG, "rgb" and "l" degrade the colour photo (its L is compared later), as the source project does; "y"
    converts to limited-range Y, (H, W), and degrades that, as the papers do. Without JPEG the luma, (H, W), is scaled
    and stays float32, neither rounded nor clipped, as in the code of the SRCNN paper.

    Raises:
        ValueError: too small to be measured at that scale, or RGB at a scale.
    """
    if kind == "rgb" and degradation.scale > 1:
        raise UserError("RGB is not compared at a scale; compare the luma")
    clean = crop_to_multiple(pixels, degradation.scale)
    if degradation.scale > 1 and min(clean.shape[:2]) < 2 * degradation.scale + SSIM_WINDOW:
        height, width = pixels.shape[:2]
        raise UserError(f"{width}x{height} pixels: too small to be measured at scale {degradation.scale}")
    quality = degradation.quality("0" * 64)
    if quality is None:
        grey = compared(clean, kind)
        return grey, bicubic_levels(grey, degradation.scale)
    photo = compared(clean, "y") if kind == "y" else clean
    if earlier is None:
        return photo, degrade(photo, degradation, quality)
    if min(photo.shape[:2]) < earlier.shift + SSIM_WINDOW:
        raise UserError(f"{photo.shape[1]}x{photo.shape[0]} pixels: too small to be measured after a shift of "
                        f"{earlier.shift}")
    inner = (slice(earlier.shift, None), slice(earlier.shift, None))
    once = jpeg(photo, earlier.quality, degradation.jpeg_subsampling)[inner]
    return photo[inner], degrade(once, degradation, quality)


def score_photo(
    name: str, pixels: np.ndarray, model: Network, kind: Compared, degradation: Degradation,
    distances: Mapping[str, Distance] = MappingProxyType({}), earlier: EarlierSave | None = None,
    options: RestoreOptions = NETWORK_ALONE,
) -> Score:
    """Degrades, restores and measures one clean photo, uint8 (H, W) or (H, W, 3).

    A network for RGB gets the colours, and where RGB is compared one for luma does too: their luma is restored, their
    chroma smoothed. Otherwise it gets the luma. A conditioned network is told the JPEG's quality; after two saves the
    damage is found in the pixels, as when a file is restored. Degraded and restored photos are clipped and rounded to
    uint8 for measuring, as if saved. Where the photo was scaled, a border of `scale` pixels is cut off, as in the SRCNN
    paper; else none. Restored in float32, so that published scores do not depend on the processor.

    Args:
        options: how it is restored; by default the network alone is measured, as in the papers and model cards.
    """
    photo, degraded_photo = degraded_pair(pixels, kind, degradation, earlier)
    clean, degraded = (compared(each, kind) for each in (photo, degraded_photo))
    source = degraded_photo if model.config.channels == 3 else degraded
    damage = _last_save(degraded_photo, degradation)
    if earlier is not None:
        damage = find_damage(access_to_array(degraded_photo), damage)
    options = replace(options, damage=damage)
    if source.dtype == np.uint8:
        restored = compared(restore_array(source, model, options), kind)
    else:  # scaled, float32: goes into the network without rounding
        restored = compared(255 * restore_array(source / 255, model, options), kind)
    border = degradation.scale if degradation.scale > 1 else 0
    inner = tuple(slice(border, side - border) for side in clean.shape[:2])
    others = {"_in": to_uint8(degraded)[inner], "": to_uint8(restored)[inner]}
    before, after = (_measures(clean[inner], other, not border) for other in others.values())
    tensors = {ending: _tensor(other).to(model.device) for ending, other in others.items()}
    perceived = {f"{name}{ending}": float(distance(_tensor(clean[inner]).to(model.device), other))
                 for name, distance in distances.items() for ending, other in tensors.items()}
    return Score(name, before[0], after[0], before[1], after[1], before[2], after[2], perceived)


def _last_save(degraded: np.ndarray, degradation: Degradation) -> JpegSave | None:
    """The JPEG compression of a degraded photo, (H, W) or (H, W, 3); None without one."""
    quality = degradation.quality("0" * 64)
    is_subsampled = degradation.jpeg_subsampling != "4:4:4"
    return None if quality is None else jpeg_save(quality, is_subsampled, grey=degraded.ndim == 2)


def score_folder(
    folder: Path, model: Network, kind: Compared, degradation: Degradation, show_progress: bool = False,
    distances: Mapping[str, Distance] = MappingProxyType({}), earlier: EarlierSave | None = None,
    options: RestoreOptions = NETWORK_ALONE,
) -> tuple[list[Score], list[str]]:
    """Scores every photo in a folder and its subfolders: (scores, an error for each photo that cannot be scored).

    Raises:
        FileNotFoundError: no such folder, or no photo in it.
        ValueError: none of the photos can be scored.
    """
    photos = photos_below(folder)
    scores: list[Score] = []
    refused: list[str] = []
    for path in tqdm(photos, "photos scored", disable=not show_progress or None):
        name = path.relative_to(folder).as_posix()
        try:
            scores.append(score_photo(name, read_photo(path), model, kind, degradation, distances, earlier, options))
        except ValueError as error:
            refused.append(f"{name}: {str(error).removeprefix(f'{path}: ')}")
    if not scores:
        raise UserError(f"{folder}: none of the {len(photos)} photos could be scored: {'; '.join(refused[:5])}")
    return scores, refused


def _measures(clean: np.ndarray, other: np.ndarray, in_blocks: bool) -> tuple[float, float, float | None]:
    """(PSNR, SSIM, PSNR-B); PSNR-B needs greyscale, and JPEG blocks that start in the upper left corner."""
    blocks = psnr_b(clean, other) if in_blocks and clean.ndim == 2 else None
    return psnr(clean, other), float(ssim(_tensor(clean), _tensor(other))), blocks


def _tensor(photo: np.ndarray) -> torch.Tensor:
    """Levels (H, W) or (H, W, 3) -> float64 (1, 1, H, W) or (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.atleast_3d(photo).astype(np.float64) / 255).permute(2, 0, 1)[None]


def mean_score(scores: Iterable[Score]) -> Score:
    """The mean of each score over the photos."""
    scores = list(scores)
    names = [each.name for each in fields(Score) if each.name not in ("photo", "distances")]
    columns = {name: [getattr(score, name) for score in scores] for name in names}
    means = {name: None if None in values else float(np.mean(values)) for name, values in columns.items()}
    distances = {name: float(np.mean([score.distances[name] for score in scores])) for name in scores[0].distances}
    return Score(f"mean of {len(scores)}", distances=distances, **means)  # type: ignore[arg-type]  # the optional ones


def to_markdown(scores: list[Score]) -> str:
    """A Markdown table with a row for each photo and the mean."""
    in_blocks = scores[0].psnr_b is not None
    lines = [
        "| photo | input dB | output dB | gain dB | gain % | SSIM in | SSIM out |"
        + " PSNR-B in | PSNR-B out |" * in_blocks + "".join(f" {_title(name)} |" for name in scores[0].distances),
        "|---" + "|---:" * (6 + 2 * in_blocks + len(scores[0].distances)) + "|",
    ]
    for score in [*scores, mean_score(scores)]:
        name = score.photo.replace("|", "\\|")
        decibels = f"{score.psnr_in:.2f} | {score.psnr:.2f} | {score.gain:.2f} | {score.gain_percent:.1f}"
        blocks = f" {score.psnr_b_in:.2f} | {score.psnr_b:.2f} |" if in_blocks else ""
        blocks += "".join(f" {value:.4f} |" for value in score.distances.values())
        lines.append(f"| {name} | {decibels} | {score.ssim_in:.4f} | {score.ssim:.4f} |{blocks}")
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    """ "lpips_in" -> "LPIPS in"."""
    kind, _, is_input = name.partition("_")
    return f"{kind.upper()} {'in' if is_input else 'out'}"


def to_json(scores: list[Score]) -> list[dict[str, Any]]:
    """A dict for each photo, then the mean."""
    rows = [*scores, mean_score(scores)]
    result = []
    for score in rows:
        values = asdict(score) | {"gain": score.gain, "gain_percent": score.gain_percent}
        result.append(values | values.pop("distances"))
    return result
