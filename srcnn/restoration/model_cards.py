"""Model cards: what weights are for, what they were trained on, their scores; and those scores measured again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srcnn.data.manifest import read_manifest
from srcnn.data.photo_list import read_photo_records
from srcnn.models.base import Network
from srcnn.models.weight_files import WEIGHTS
from srcnn.models.weights import load_model
from srcnn.photos.degradation import Degradation
from srcnn.photos.reading import LumaKind
from srcnn.restoration.score import LUMA_NAMES, score_folder, to_json
from srcnn.runtime.storage import open_storage
from srcnn.runtime.untrusted import read_json

Set = tuple[str, LumaKind]
JPEG_SETS: tuple[Set, ...] = (("live1_y", "y"), ("classic5", "y"), ("live1_color", "l"), ("city20", "l"),
                              ("bsd100", "l"), ("set14", "l"))
BLIND_SETS = JPEG_SETS[:2]  # of weights for a range of qualities, at each of:
BLIND_QUALITIES = (10, 20, 30, 40, 60, 80, 90)
SCALE_SETS: tuple[Set, ...] = (("set5", "y"), ("set14", "y"), ("bsd100", "y"))
TITLE = re.compile(r"([\w.-]+), ([LY])(?:, scale (\d+))?(?:, quality (\d+))?")
TOLERANCES = {"psnr_in": 0.01, "psnr": 0.01, "psnr_b_in": 0.01, "psnr_b": 0.01,  # dB
              "ssim_in": 0.0005, "ssim": 0.0005}
Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ScoredSet:
    """A folder of clean photos, the luma taken of them, and how they are degraded."""

    folder: str
    luma: LumaKind
    degradation: Degradation

    @property
    def title(self) -> str:
        """Its name in a card, such as "live1_y, Y, quality 20" or "set5, Y, scale 3"."""
        scale, quality = self.degradation.scale, self.degradation.quality("0" * 64)
        parts = [self.folder, self.luma.upper()] + [f"scale {scale}"] * (scale > 1)
        return ", ".join(parts + ([] if quality is None else [f"quality {quality}"]))

    @staticmethod
    def parse(title: str) -> ScoredSet:
        """The reverse of `title`. Raises ValueError where it is none."""
        match = TITLE.fullmatch(title)
        if match is None or match[1].startswith("."):
            raise ValueError(f'"{title[:99]}": no set of photos such as "live1_y, Y, quality 20" or "set5, Y, scale 3"')
        quality: int | list[int] = int(match[4]) if match[4] else []
        luma: LumaKind = "y" if match[2] == "Y" else "l"
        return ScoredSet(match[1], luma, Degradation(jpeg_quality=quality, scale=int(match[3] or 1)))

    def score(self, model: Network, photos: Path) -> dict[str, Any]:
        """The mean over the photos of `photos`/folder, as cards hold it.

        Raises:
            ValueError: one of the photos cannot be scored.
        """
        scores, refused = score_folder(photos / self.folder, model, self.luma, self.degradation)
        if refused:
            raise ValueError(f"{photos / self.folder}: {'; '.join(refused[:5])}")
        return to_json(scores)[-1] | {"num_photos": len(scores)}


def sets_for(trained_on: Degradation) -> list[ScoredSet]:
    """What weights trained on this degradation are scored on."""
    scale, bounds = trained_on.scale, trained_on.quality_bounds()
    qualities: Iterable[int | list[int]] = [bounds[0]] if bounds else [[]]
    sets = SCALE_SETS if scale > 1 else JPEG_SETS
    if bounds and bounds[0] < bounds[1]:
        qualities = [quality for quality in BLIND_QUALITIES if bounds[0] <= quality <= bounds[1]] or bounds
        sets = SCALE_SETS if scale > 1 else BLIND_SETS
    return [ScoredSet(folder, luma, Degradation(jpeg_quality=quality, scale=scale))
            for folder, luma in sets for quality in qualities]


def score_sets(model: Network, photos: Path, trained_on: Degradation) -> Scores:
    """Mean scores of every set of `sets_for` that is there, by title.

    Raises:
        FileNotFoundError: none is there.
    """
    sets = sets_for(trained_on)
    scores = {each.title: each.score(model, photos) for each in sets if (photos / each.folder).is_dir()}
    if not scores:
        raise FileNotFoundError(f"{photos}: none of the folders {', '.join(sorted({each.folder for each in sets}))}")
    return scores


def data_card(shards: Path) -> dict[str, Any]:
    """What weights were trained on, from the manifest of the shards."""
    storage = open_storage(shards / "train")
    manifest = read_manifest(storage)
    names = [photo.name for photo in read_photo_records(storage, manifest)]
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    return {"folders": folders, "num_photos": len(names), "num_tiles": manifest.num_samples,
            "manifest_hash": manifest.hash(), "shards": manifest.config, "versions": manifest.versions}


def make_card(model: Network, config: dict[str, Any], photos: Path, commit: str) -> dict[str, Any]:
    """The card of a run's weights: its settings, without the paths of one machine; data, commit, scores."""
    settings = {key: value for key, value in config.items() if key not in ("run", "shards")}
    data = data_card(Path(config["shards"]))
    scores = score_sets(model, photos, Degradation.from_config(data["shards"]["degradation"]))
    return {"config": settings, "data": data, "commit": commit, "scores": scores}


def purpose(trained_on: Degradation) -> str:
    """What photographs weights trained on this degradation restore."""
    low, high = trained_on.quality_bounds() or (0, 0)
    jpeg = f"JPEG of quality {low} to {high}" if low < high else f"JPEG of about quality {low}"
    if trained_on.scale == 1:
        return f"photographs damaged by {jpeg}"
    enlarged = f"photographs enlarged {trained_on.scale} times by bicubic interpolation (super-resolution)"
    return f"{enlarged} and then damaged by {jpeg}" if low else enlarged


def to_markdown(name: str, model: Network, card: dict[str, Any]) -> str:
    """The card for people."""
    data, trained_on = card["data"], Degradation.from_config(card["data"]["shards"]["degradation"])
    continued = f", continuing from {card['config']['weights']}" if card["config"]["weights"] else ""
    if trained_on.scale > 1:
        border = f"a border of {trained_on.scale} pixels cut off"
        protocol = f"bicubic with antialiasing down and up on unrounded numbers, {border}"
    else:
        protocol = "no border cut off"
    return model.card(name, purpose(trained_on), f"""\
**Trained on** {data["num_photos"]} photographs ({", ".join(data["folders"])}), {data["num_tiles"]:,} tiles;
{card["config"]["total_samples"]:,} tiles seen{continued}.
Best checkpoint by validation PSNR on the folder given as `val` when the shards were made.
Released at commit {card["commit"]}, data {data["manifest_hash"][:12]}, Pillow {data["versions"]["pillow"]},
libjpeg {data["versions"]["libjpeg"]}. Config and shard settings: {name}.json. Licence: Apache-2.0, as the code.

**Scores** (Y and L: the two kinds of greyscale, {LUMA_NAMES["y"]} and {LUMA_NAMES["l"]};
{protocol}, output clipped and rounded to uint8, mean over the photos):

| photos | input dB | output dB | gain dB | gain % | SSIM | PSNR-B |
|---|---:|---:|---:|---:|---|---|
{_rows(card["scores"])}""")


def _rows(scores: Scores) -> str:
    def change(row: dict[str, Any], key: str, decimals: int) -> str:
        before, after = row[f"{key}_in"], row[key]
        return "-" if before is None else f"{before:.{decimals}f} -> {after:.{decimals}f}"

    return "\n".join(
        f"| {title} | {row['psnr_in']:.2f} | {row['psnr']:.2f} | {row['gain']:+.2f} | {row['gain_percent']:+.1f} | "
        f"{change(row, 'ssim', 4)} | {change(row, 'psnr_b', 2)} |" for title, row in scores.items()
    )


@dataclass(frozen=True)
class Verified:
    """A row of a card beside what was measured now, both as `ScoredSet.score` gives them.

    Attributes:
        measured: None where the set was not checked: its folder is not there, or a photo in it cannot be scored.
        problem: what differs, or why the photos cannot be scored; "" where the card is right or nothing is there.
    """

    weights: str
    title: str
    card: dict[str, Any]
    measured: dict[str, Any] | None = None
    problem: str = ""

    @property
    def ok(self) -> bool:
        return self.measured is not None and not self.problem


def verify_weights(names: Iterable[str], photos: Path, folder: Path = WEIGHTS) -> Iterator[Verified]:
    """Scores weights again on the sets of their cards, NAME.json beside NAME.safetensors in `folder`; no names: all.

    A number is right within `TOLERANCES`. Sets whose folder is not below `photos` come without `measured`.

    Raises:
        FileNotFoundError: no weights of that name with a card; no such folder of photos.
        ValueError: a damaged card; at the end, that no set of any card was there.
    """
    if not photos.is_dir():
        raise FileNotFoundError(f"{photos}: no such folder of photos")
    cards = {name: card_scores(name, folder) for name in names or sorted(each.stem for each in folder.glob("*.json"))}
    num_checked = 0
    for name, scores in cards.items():
        model = load_model(folder / f"{name}.safetensors")
        for title, row in scores.items():
            verified = _verify(name, model, ScoredSet.parse(title), row, photos)
            num_checked += verified.ok or bool(verified.problem)
            yield verified
    if not num_checked:
        sets = sorted({ScoredSet.parse(title).folder for scores in cards.values() for title in scores})
        raise ValueError(f"{photos}: nothing was checked; the cards' photos are in folders {', '.join(sets)}")


def card_scores(name: str, folder: Path = WEIGHTS) -> Scores:
    """The scores in a card, by title, checked in form."""
    shipped = sorted(each.stem for each in folder.glob("*.json"))
    if name not in shipped:
        raise FileNotFoundError(f"{name}: no card of these weights in {folder}; there are: {', '.join(shipped)}")
    path = folder / f"{name}.json"
    card = read_json(path)
    scores = card.get("scores") if isinstance(card, dict) else None
    if not isinstance(scores, dict) or not scores or not all(isinstance(row, dict) for row in scores.values()):
        raise ValueError(f"{path}: damaged: no scores")
    for title, row in scores.items():
        try:
            ScoredSet.parse(title)
        except ValueError as error:
            raise ValueError(f"{path}: damaged: {error}") from error
        wrong = [key for key in (*TOLERANCES, "num_photos") if type(row.get(key, "")) not in (float, int, type(None))]
        if wrong:
            raise ValueError(f'{path}: damaged: "{title}" without {", ".join(wrong)}')
    return scores


def _verify(name: str, model: Network, scored: ScoredSet, row: dict[str, Any], photos: Path) -> Verified:
    if not (photos / scored.folder).is_dir():
        return Verified(name, scored.title, row)
    try:
        measured = scored.score(model, photos)
    except (FileNotFoundError, ValueError) as error:
        return Verified(name, scored.title, row, problem=str(error))
    if measured["num_photos"] != row["num_photos"]:
        problem = f"{measured['num_photos']} photos, the card's score is of {row['num_photos']}"
        return Verified(name, scored.title, row, measured, problem)
    differs = [f"{key} {_number(measured[key])}, the card says {_number(row[key])}"
               for key, most in TOLERANCES.items() if not _close(measured[key], row[key], most)]
    return Verified(name, scored.title, row, measured, "; ".join(differs))


def _close(measured: float | None, stated: float | None, most: float) -> bool:
    return measured is stated if measured is None or stated is None else abs(measured - stated) <= most


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
