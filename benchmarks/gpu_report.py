"""What `benchmarks.gpu` has found, as Markdown for docs/performance.md; the targets, met or missed. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Parts = dict[str, dict[str, Any]]
TIMES_SOURCE, TIMES_SOURCE_LOADED = 10, 30
SHARE_OF_FLOOR, MOST_WAIT, EPOCH_SECONDS, MOST_DECIBELS = 0.4, 0.03, 0.5, 0.05
TARGETS = {
    "times_source": f"srcnn's train_step, times the source's loop on a batch on the device: at least {TIMES_SOURCE}",
    "times_source_best": f"the fastest step, times the source's loop: at least {TIMES_SOURCE}",
    "times_source_loaded": f"training from shards, times the source's loop with its loader: at least "
                           f"{TIMES_SOURCE_LOADED}",
    "share_of_floor": f"the fastest step, of the lower of the two limits: at least {SHARE_OF_FLOOR:.0%}",
    "data_wait": f"waiting for data, where training from shards is fastest: under {MOST_WAIT:.0%}",
    "epoch_seconds": f"an epoch of 13,056 tiles: under {EPOCH_SECONDS} s",
    "decibels_lost": f"PSNR that a fast way is off the source's loop in float32: within {MOST_DECIBELS} dB",
}


def targets(parts: Parts) -> dict[str, dict[str, Any]]:
    """For each target what was measured, None where it was not, and whether it is met."""
    step, stream, quality = (parts.get(name, {}) for name in ("step", "stream", "quality"))
    rates = step.get("rates", {})
    source = best_rate(row for row in rates.values() if row.get("source"))
    ours = best_rate(row for row in rates.values() if "compile" in row)
    fused = parts.get("fused", {}).get("rates", {})
    steps = [row for name, row in fused.items() if name.startswith("step")]
    fastest = best_rate([row for row in rates.values() if not row.get("source")] + steps)
    loaded = best_rate(step.get("source_loader", []))
    streams = stream.get("rows", [])
    floors = step.get("floors") or {}
    limits = [floors[key] for key in ("arithmetic_tiles_per_second", "traffic_tiles_per_second") if key in floors]
    found: dict[str, float | None] = {
        "times_source": ratio(ours, source),
        "times_source_best": ratio(fastest, source),
        "times_source_loaded": ratio(best_rate(streams), loaded),
        "share_of_floor": ratio(fastest, min(limits, default=None)),
        "data_wait": max(streams, key=lambda row: row["tiles_per_second"])["data_wait"] if streams else None,
        "epoch_seconds": min((row["epoch_seconds"] for row in streams), default=None),
        "decibels_lost": decibels_lost(quality.get("rows", {})),
    }
    met = {
        "times_source": lambda value: value >= TIMES_SOURCE,
        "times_source_best": lambda value: value >= TIMES_SOURCE,
        "times_source_loaded": lambda value: value >= TIMES_SOURCE_LOADED,
        "share_of_floor": lambda value: value >= SHARE_OF_FLOOR,
        "data_wait": lambda value: value < MOST_WAIT,
        "epoch_seconds": lambda value: value < EPOCH_SECONDS,
        "decibels_lost": lambda value: value <= MOST_DECIBELS,
    }
    return {key: {"found": value, "met": None if value is None else bool(met[key](value))}
            for key, value in found.items()}


def best_rate(rows: Iterable[dict[str, Any]]) -> float | None:
    return max((row["tiles_per_second"] for row in rows), default=None)


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None


def decibels_lost(rows: dict[str, dict[str, float]]) -> float | None:
    """The largest difference from the source's loop in float32, whichever way."""
    source = rows.get("source's loop, float32")
    others = [row["psnr"] for name, row in rows.items() if name.startswith("srcnn")]
    return max(abs(psnr - source["psnr"]) for psnr in others) if source and others else None


def tables(whole: dict[str, Any]) -> str:
    """All that there is, a section for each part."""
    parts: Parts = whole["parts"]
    sections = [told_about(whole["about"]), told_targets(whole.get("targets", {}))]
    tellers = {"step": told_step, "fused": told_fused, "stream": told_stream, "quality": told_quality,
               "restoring": told_restoring, "result": told_result}
    for name, tell in tellers.items():
        if name in parts:
            sections.append(f"### {name}\n\n{tell(parts[name], parts)}")
    sections.append(told_missing(parts))
    return "\n\n".join(filter(None, sections))


def told_about(about: dict[str, Any]) -> str:
    card = about["card"]
    name = f"{card['name']} ({card['memory.total']}, {card['power.limit']}), driver {card['driver_version']}" \
        if card else f"no NVIDIA card: {about['cpu']}"
    packages = ("torch", "triton", "torchvision", "accelerate")
    versions = ", ".join(f"{key} {about[key]}" for key in packages if about[key])
    quick = " QUICK: it works, its numbers say nothing." if about["quick"] else ""
    return f"{name}; {about['cores']} cores, Python {about['python']}, {versions}; {about['date']}.{quick}"


def told_targets(found: dict[str, dict[str, Any]]) -> str:
    """A line for each target."""
    rows = []
    for key, one in found.items():
        measured = "not measured" if one["found"] is None else f"{one['found']:.3g}"
        rows.append([TARGETS[key], measured, {None: "", True: "met", False: "missed"}[one["met"]]])
    return table(["target", "measured", ""], rows)


def told_step(part: dict[str, Any], _: Parts) -> str:
    """Limits, the ladder, the source's loader, the kernels."""
    floors = part.get("floors") or {}
    lines = []
    if floors:
        lines.append(
            f"Limits of this card: it copies {floors['copy_bytes_per_second'] / 1e12:.2f} TB/s (read and written), "
            f"and multiplies {floors['bf16_flop_per_second'] / 1e12:,.0f} TFLOP/s in bfloat16. A training tile costs "
            f"{floors['flop_per_tile'] / 1e9:.2f} GFLOP and, layer by layer in bfloat16, moves "
            f"{floors['bytes_per_tile'] / 1e6:.1f} MB: at most {floors['arithmetic_tiles_per_second']:,.0f} tiles/s by "
            f"arithmetic, {floors['traffic_tiles_per_second']:,.0f} by traffic.")
    rates = part.get("rates", {})
    source = best_rate(row for row in rates.values() if row.get("source"))
    rows = []
    for name, row in rates.items():
        rate = row["tiles_per_second"]
        shares = [share(rate, floors.get(f"{key}_tiles_per_second")) for key in ("arithmetic", "traffic")]
        rows.append([name, str(row["batch_size"]), f"{rate:,.0f}", f"{rate / source:.1f}" if source else "", *shares,
                     f"{row['peak_gib']:.1f}" if "peak_gib" in row else "", f"{row['first_seconds']:.1f}"])
    lines.append(table(["step", "batch", "tiles/s", "times the source's", "of arithmetic", "of traffic", "GiB",
                        "until warm, s"], rows))
    loader = [[str(row["batch_size"]), str(row["workers"]), f"{row['tiles_per_second']:,.0f}"]
              for row in part.get("source_loader", [])]
    lines.append(table(["source's loop with its loader: batch", "workers", "tiles/s"], loader) if loader else "")
    lines.append(told_kernels(part["profile"], floors, part) if "profile" in part else "")
    return "\n\n".join(filter(None, lines))


def told_kernels(profile: dict[str, Any], floors: dict[str, float], part: dict[str, Any]) -> str:
    """The longest kernels, and whether copying or multiplying comes nearer to what the card can do."""
    rows = [[row["kernel"][:90].replace("|", "\\|"), f"{row['calls']:.0f}", f"{row['ms']:.3f}", f"{row['share']:.1%}"]
            for row in profile["kernels"]]
    lines = [table([f"kernel of: {profile['of']}", "calls a step", "ms a step", "share"], rows)]
    if floors and profile["milliseconds"]:
        tiles = part["batch_size"] / profile["milliseconds"] * 1e3
        shares = {key: tiles / floors[f"{key}_tiles_per_second"] for key in ("traffic", "arithmetic")}
        bound = max(shares, key=lambda key: shares[key])
        lines.append(f"While its kernels run, the step reaches {shares['traffic']:.0%} of the limit by traffic and "
                     f"{shares['arithmetic']:.0%} of that by arithmetic: {bound} is nearer.")
    return "\n\n".join(lines)


def told_fused(part: dict[str, Any], _: Parts) -> str:
    """Rates beside the compiled network's, and errors."""
    if "skipped" in part:
        return f"Not measured: {part['skipped']}."
    rates = part.get("rates", {})
    rows = []
    for name, row in rates.items():
        compiled = rates.get(name.replace("fused", "compiled"), {}).get("tiles_per_second")
        rows.append([name, f"{row['tiles_per_second']:,.0f}",
                     f"{row['tiles_per_second'] / compiled:.2f}" if compiled else ""])
    lines = [table(["", "tiles/s", "times the compiled"], rows)]
    errors = part.get("errors", {})
    keys = list(dict.fromkeys(key for found in errors.values() for key in found))
    error_rows = [[name, *(f"{found[key]:.1e}" if key in found else "" for key in keys)]
                  for name, found in errors.items()]
    lines.append(table(["relative error", *keys], error_rows) if errors else "")
    return "\n\n".join(filter(None, lines))


def told_stream(part: dict[str, Any], parts: Parts) -> str:
    rows = [[row["resident"], "" if row["resident"] == "device" else str(row["num_threads"]), str(row["batch_size"]),
             f"{row['tiles_per_second']:,.0f}", f"{row['tiles_per_second_synthetic']:,.0f}", f"{row['data_wait']:.1%}",
             f"{row['epoch_seconds']:.2f}"] for row in part.get("rows", [])]
    tiles = parts.get("material", {}).get("train_tiles", 0)
    return f"{tiles:,} training tiles, in the page cache; compile {part.get('compile')}.\n\n" + table(
        ["resident", "threads", "batch", "tiles/s", "the same batch again and again", "waiting for data",
         f"{part.get('epoch_tiles', 0):,} tiles, s"], rows)


def told_quality(part: dict[str, Any], _: Parts) -> str:
    source = part.get("rows", {}).get("source's loop, float32", {}).get("psnr")
    rows = [[name, f"{row['psnr']:.3f}", f"{row['psnr'] - source:+.3f}" if source else "", f"{row['seconds']:.1f}"]
            for name, row in part.get("rows", {}).items()]
    told = f"From the same weights, the same {part.get('steps', 0):,} batches of {part.get('batch_size', 0)} tiles."
    return told + "\n\n" + table(["trained by", "validation PSNR, dB", "from the source's", "seconds"], rows)


def told_restoring(part: dict[str, Any], _: Parts) -> str:
    rows = [[row["what"], row["by"], f"{row['mp_per_second']:,.1f}",
             f"{row['peak_gib']:.2f}" if "peak_gib" in row else ""]
            for row in part.get("rows", []) if "mp_per_second" in row]
    return table([f"a photo of {part.get('megapixels', 0):.1f} MP, folders", "by", "MP/s", "GiB"], rows)


def told_result(part: dict[str, Any], _: Parts) -> str:
    """PSNR against seconds, and the scores beside the shipped weights'."""
    rows = [[f"{row['seconds']:.0f}", f"{row['tiles']:,.0f}", f"{row['psnr']:.3f}", f"{row['gain']:+.3f}",
             f"{row['tiles_per_second']:,.0f}"] for row in part.get("points", [])]
    lines = [table(["seconds since the start", "tiles", "validation PSNR, dB", "gain, dB", "tiles/s"], rows)]
    if "shipped" in part:
        shipped = part["shipped"]
        lines.append(f"The shipped weights on the same tiles: {shipped['psnr']:.3f} dB, "
                     f"{shipped['psnr'] - shipped['psnr_in']:+.3f} dB.")
    scores = [[title, name, f"{mean['psnr_in']:.2f}", f"{mean['psnr']:.2f}", f"{mean['gain']:+.3f}",
               f"{mean['ssim']:.4f}"]
              for title, found in part.get("scores", {}).items() for name, mean in found.items()]
    lines.append(table(["photos", "weights", "input dB", "output dB", "gain dB", "SSIM"], scores) if scores else "")
    return "\n\n".join(filter(None, lines))


def told_missing(parts: Parts) -> str:
    """What failed, and which parts did not come to their end."""
    lines = [f"- {name}, {what}: {why}" for name, part in parts.items() for what, why in part.get("failed", {}).items()]
    lines += [f"- {name}: ended {part['ended']} after {part['seconds']:.0f} s" for name, part in parts.items()
              if part.get("ended", "whole") != "whole"]
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; numbers, which is all but the first column, to the right."""
    lines = [f"| {' | '.join(header)} |", "|---" + "|---:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def share(rate: float, limit: float | None) -> str:
    return f"{rate / limit:.0%}" if limit else ""
