"""Model cards of the shipped weights: written with scores, and verified by measuring these again."""

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
from srcnn.restoration.score import NAMES, Compared, score_folder, to_json
from srcnn.runtime.errors import UserError
from srcnn.runtime.storage import open_storage
from srcnn.runtime.untrusted import read_json

Set = tuple[str, Compared]
JPEG_SETS: tuple[Set, ...] = (("live1_y", "y"), ("classic5", "y"), ("live1_color", "l"), ("city20", "l"),
                              ("bsd100", "l"), ("set14", "l"))
# For weights trained on a range of qualities, at each of BLIND_QUALITIES.
BLIND_SETS: tuple[Set, ...] = (*JPEG_SETS[:2], ("live1_color", "rgb"), ("city20", "l"))
BLIND_QUALITIES = (10, 20, 30, 40, 60, 80, 90)
SCALE_SETS: tuple[Set, ...] = (("set5", "y"), ("set14", "y"), ("bsd100", "y"))
TITLE = re.compile(r"([\w.-]+), (L|Y|RGB)(?:, scale (\d+))?(?:, quality (\d+))?")
TOLERANCES = {"psnr_in": 0.01, "psnr": 0.01, "psnr_b_in": 0.01, "psnr_b": 0.01,  # dB
              "ssim_in": 0.0005, "ssim": 0.0005}
HEADLINE_QUALITY = "quality 20"  # of weights for a range of qualities
ORIGIN = "`srcnn datasets` says where the test sets come from"
Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class ScoredSet:
    """A folder of clean photos, the kind of luma that is compared or RGB, and how they are degraded."""

    folder: str
    compared: Compared
    degradation: Degradation

    @property
    def title(self) -> str:
        """Its name in a card, such as "live1_y, Y, quality 20" or "set5, Y, scale 3"."""
        scale, quality = self.degradation.scale, self.degradation.quality("0" * 64)
        parts = [self.folder, self.compared.upper()] + [f"scale {scale}"] * (scale > 1)
        return ", ".join(parts + ([] if quality is None else [f"quality {quality}"]))

    @staticmethod
    def parse(title: str) -> ScoredSet:
        """The reverse of `title`. Raises ValueError at another format."""
        match = TITLE.fullmatch(title)
        if match is None or match[1].startswith("."):
            raise UserError(f'"{title[:99]}": expected a title such as "live1_y, Y, quality 20" or "set5, Y, scale 3"')
        quality: int | list[int] = int(match[4]) if match[4] else []
        by_title = {kind.upper(): kind for kind in NAMES}
        return ScoredSet(match[1], by_title[match[2]], Degradation(jpeg_quality=quality, scale=int(match[3] or 1)))

    def score(self, model: Network, photos: Path) -> dict[str, Any]:
        """The mean scores over the photos in `photos`/folder, and their number.

        Raises:
            ValueError: one of the photos cannot be scored.
        """
        scores, refused = score_folder(photos / self.folder, model, self.compared, self.degradation)
        if refused:
            raise UserError(f"{photos / self.folder}: {'; '.join(refused[:5])}")
        return to_json(scores)[-1] | {"num_photos": len(scores)}


def sets_for(trained_on: Degradation) -> list[ScoredSet]:
    """The sets on which weights trained with this degradation are scored."""
    scale, bounds = trained_on.scale, trained_on.quality_bounds()
    qualities: Iterable[int | list[int]] = [bounds[0]] if bounds else [[]]
    sets = SCALE_SETS if scale > 1 else JPEG_SETS
    if bounds and bounds[0] < bounds[1]:
        qualities = [quality for quality in BLIND_QUALITIES if bounds[0] <= quality <= bounds[1]] or bounds
        sets = SCALE_SETS if scale > 1 else BLIND_SETS
    return [ScoredSet(folder, compared, Degradation(jpeg_quality=quality, scale=scale))
            for folder, compared in sets for quality in qualities]


def score_sets(model: Network, photos: Path, trained_on: Degradation) -> Scores:
    """Mean scores by title, of those sets of `sets_for` whose folder exists.

    Raises:
        FileNotFoundError: none exists.
    """
    sets = sets_for(trained_on)
    scores = {each.title: each.score(model, photos) for each in sets if (photos / each.folder).is_dir()}
    if not scores:
        raise FileNotFoundError(f"{photos}: none of the folders {', '.join(sorted({each.folder for each in sets}))}")
    return scores


def make_card(model: Network, config: dict[str, Any], photos: Path, commit: str) -> dict[str, Any]:
    """The card of the weights of a run as a JSON object: settings without this machine's paths, data, commit, scores.

    Args:
        config: the run's config.yaml.
        photos: the folder with the sets of clean photos.
        commit: what the weights are released at.
    """
    storage = open_storage(Path(config["shards"]) / "train")
    manifest = read_manifest(storage)
    names = [photo.name for photo in read_photo_records(storage, manifest)]
    folders = sorted({name.split("/")[0] for name in names if "/" in name})
    return {
        "config": {key: value for key, value in config.items() if key not in ("run", "shards")},
        "data": {"folders": folders, "num_photos": len(names), "num_tiles": manifest.num_samples,
                 "manifest_hash": manifest.hash(), "shards": manifest.config, "versions": manifest.versions},
        "commit": commit,
        "scores": score_sets(model, photos, Degradation.from_config(manifest.config["degradation"])),
    }


def purpose(trained_on: Degradation) -> str:
    """The photographs that weights trained with this degradation restore, in words."""
    low, high = trained_on.quality_bounds() or (0, 0)
    jpeg = f"JPEG of quality {low} to {high}" if low < high else f"JPEG of about quality {low}"
    if trained_on.scale == 1:
        return f"photographs damaged by {jpeg}"
    enlarged = f"photographs enlarged {trained_on.scale} times by bicubic interpolation (super-resolution)"
    return f"{enlarged} and then damaged by {jpeg}" if low else enlarged


def to_markdown(name: str, model: Network, card: dict[str, Any]) -> str:
    """The Markdown card of the weights `name`."""
    data, trained_on = card["data"], Degradation.from_config(card["data"]["shards"]["degradation"])
    continued = f", continuing from {card['config']['weights']}" if card["config"]["weights"] else ""
    protocol = "no border cut off"
    if trained_on.scale > 1:
        protocol = ("bicubic with antialiasing down and up on unrounded numbers, "
                    f"a border of {trained_on.scale} pixels cut off")
    rows = "\n".join(
        f"| {title} | {row['psnr_in']:.2f} | {row['psnr']:.2f} | {row['gain']:+.2f} | {row['gain_percent']:+.1f} | "
        f"{_change(row, 'ssim', 4)} | {_change(row, 'psnr_b', 2)} |" for title, row in card["scores"].items())
    return model.card(name, purpose(trained_on), f"""\
**Trained on** {data["num_photos"]} photographs ({", ".join(data["folders"])}), {data["num_tiles"]:,} tiles;
{card.get("samples_seen") or card["config"]["total_samples"]:,} tiles seen{continued}.
Best checkpoint by validation PSNR on the folder given as `val` when the shards were made.
Released at commit {card["commit"]}, data {data["manifest_hash"][:12]}, Pillow {data["versions"]["pillow"]},
libjpeg {data["versions"]["libjpeg"]}. Config and shard settings: {name}.json. Licence: Apache-2.0, as the code.

**Scores** ({NAMES["y"]}; {NAMES["l"]};
{protocol}, output clipped and rounded to uint8, mean over the photos):

| photos | input dB | output dB | gain dB | gain % | SSIM | PSNR-B |
|---|---:|---:|---:|---:|---|---|
{rows}""")


def _change(row: dict[str, Any], key: str, decimals: int) -> str:
    before, after = row[f"{key}_in"], row[key]
    return "-" if before is None else f"{before:.{decimals}f} -> {after:.{decimals}f}"


@dataclass(frozen=True)
class Verified:
    """The scores of one set in a card, and those measured now; both as `ScoredSet.score` gives them.

    Attributes:
        measured: None where the set was not scored: its folder is missing, or a photo in it cannot be scored.
        problem: what differs from the card, or why the photos cannot be scored; else "".
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

    A score is right within `TOLERANCES`. Sets whose folder is not in `photos` have neither `measured` nor a `problem`.

    Raises:
        FileNotFoundError: no weights of that name with a card; no such folder of photos.
        ValueError: a damaged card; at the end, that no set of any card was found.
    """
    if not photos.is_dir():
        raise FileNotFoundError(f"{photos}: no such folder of photos; {ORIGIN}")
    cards = {name: card_scores(name, folder) for name in names or sorted(each.stem for each in folder.glob("*.json"))}
    num_checked = 0
    for name, scores in cards.items():
        model = load_model(folder / f"{name}.safetensors")
        for title, row in scores.items():
            scored = ScoredSet.parse(title)
            if not (photos / scored.folder).is_dir():
                yield Verified(name, title, row)
                continue
            num_checked += 1
            try:
                measured = scored.score(model, photos)
            except (FileNotFoundError, ValueError) as error:
                yield Verified(name, title, row, problem=str(error))
            else:
                yield Verified(name, title, row, measured, _differences(measured, row))
    if not num_checked:
        sets = sorted({ScoredSet.parse(title).folder for scores in cards.values() for title in scores})
        raise UserError(f"{photos}: nothing was checked; expected at least one of the folders {', '.join(sets)}; "
                        f"{ORIGIN}")


def card_scores(name: str, folder: Path = WEIGHTS) -> Scores:
    """The scores in a card by title. Raises FileNotFoundError without a card, ValueError at a damaged one."""
    available = sorted(each.stem for each in folder.glob("*.json"))
    if name not in available:
        raise FileNotFoundError(f"{name}: no card of these weights in {folder}; available: {', '.join(available)}")
    path = folder / f"{name}.json"
    card = read_json(path)
    scores = card.get("scores") if isinstance(card, dict) else None
    if not isinstance(scores, dict) or not scores or not all(isinstance(row, dict) for row in scores.values()):
        raise UserError(f"{path}: damaged: no scores")
    for title, row in scores.items():
        try:
            ScoredSet.parse(title)
        except ValueError as error:
            raise UserError(f"{path}: damaged: {error}") from error
        wrong = [key for key in (*TOLERANCES, "num_photos") if type(row.get(key, "")) not in (float, int, type(None))]
        if wrong:
            raise UserError(f'{path}: damaged: "{title}" without {", ".join(wrong)}')
    return scores


def headline(scores: Scores) -> float:
    """The gain in dB on the first set of a card, at HEADLINE_QUALITY if it has that."""
    title = next((title for title in scores if title.endswith(HEADLINE_QUALITY)), next(iter(scores)))
    return float(scores[title]["psnr"] - scores[title]["psnr_in"])


def _differences(measured: dict[str, Any], row: dict[str, Any]) -> str:
    """How measured scores differ from those of a card; "" where they agree."""
    if measured["num_photos"] != row["num_photos"]:
        return f"{measured['num_photos']} photos, the card's score is of {row['num_photos']}"
    differing = []
    for key, tolerance in TOLERANCES.items():
        found, stated = ("none" if scores[key] is None else f"{scores[key]:.4f}" for scores in (measured, row))
        agree = found == stated if "none" in (found, stated) else abs(measured[key] - row[key]) <= tolerance
        if not agree:
            differing.append(f"{key} {found}, the card says {stated}")
    return "; ".join(differing)
