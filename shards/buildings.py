"""The buildings of procedural skylines, and what all parts of a scene are drawn with."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Size = tuple[int, int]
Rng = np.random.Generator
Mood = tuple[Any, ...]
WALLS = np.array([(168, 92, 70), (196, 176, 146), (150, 148, 144), (222, 212, 196), (120, 84, 66),
                  (96, 104, 116), (206, 186, 160), (176, 120, 88), (70, 72, 78), (232, 230, 226)], np.float32)
LAMPS = np.array([(255, 214, 140), (255, 232, 186), (255, 190, 110), (232, 240, 255)], np.float32)


class Scene(NamedTuple):
    canvas: Image.Image
    draw: ImageDraw.ImageDraw
    rng: Rng
    mood: Mood
    light: np.ndarray
    unit: float
    base: int


def to_rgb(colour: np.ndarray) -> tuple[int, ...]:
    return tuple(int(c) for c in np.clip(colour, 0, 255))


def to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def mix(a: Any, b: Any, share: Any) -> np.ndarray:
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def noise(rng: Rng, size: Size, cells: Size, octaves: int) -> np.ndarray:
    """Smooth noise in about [-1, 1], shape (height, width); each octave doubles the cells."""
    total = np.zeros((size[1], size[0]), np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, (cells[1] << octave, cells[0] << octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)) * 0.55**octave
    return total


def _facade(scene: Scene, size: Size, look: tuple[Any, ...], haze: float, grain: np.ndarray) -> Image.Image:
    """A wall of windows; look = (seed, wall, scale, shade): a building's faces share the first three."""
    (seed, wall, scale, shade), (width, height), rng, mood = look, size, scene.rng, scene.mood
    style = np.random.Generator(np.random.PCG64(seed))
    glass, mullion, band = style.random() < 0.3, style.random() < 0.6, style.uniform(-0.4, 0.35)
    cell = [max(5, round(side * scale)) for side in style.uniform((3.5, 4.5), (9, 9))]
    wide, tall = style.uniform(0.75, 0.92, 2) if glass else style.uniform((0.4, 0.4), (1, 0.66))
    (column, across), (row, down) = (np.divmod(np.arange(n), c) for n, c in zip(size, cell))
    across, down = across / cell[0] - 0.5, down / cell[1] - 0.5
    pane_columns = (np.abs(across) <= wide / 2) & ~(mullion & (np.abs(across) <= 0.5 / cell[0]))
    pane_rows = (np.abs(down) <= tall / 2) & ~(mullion & (np.abs(down + 0.12) <= 0.5 / cell[1]))
    mask = pane_rows[:, None] & pane_columns[None, :]
    courses = np.arange(height) % style.integers(3, 6) == 0
    wall_rows = 1 + band * (down > 0.3) - 0.3 * (down < -0.38) - 0.2 * courses * (style.random() < 0.6)
    wall_tone = wall_rows[:, None] * (1 + 0.5 * band * (np.abs(across) > 0.4))
    # The top of a pane lies in the shadow of its lintel.
    tone = np.where(mask, 1 - 0.4 * (down < 0.16 - tall / 2)[:, None], wall_tone).astype(np.float32)
    top, left = (rng.integers(n - m + 1) for n, m in zip(grain.shape, (height, width)))
    tone += grain[top:top + height, left:left + width]
    veil = (haze * np.linspace(0.85, 1.2, height)).clip(0, 0.95).astype(np.float32)[:, None]
    tone *= np.linspace(1.06, 0.72, height, dtype=np.float32)[:, None] * (1 - veil)
    rows, columns = shape = int(row[-1]) + 1, int(column[-1]) + 1
    panes = mix(mood[0], mood[1], np.linspace(0.25, 1, rows)[:, None, None]) * shade
    panes = panes * (rng.uniform(0.5, 0.95) if glass else rng.uniform(0.1, 0.35))
    panes = panes * (1 + 0.4 * glass * noise(rng, (columns, rows), (2, 3), 3)[..., None])
    panes = panes * rng.uniform(0.7 if glass else 0.5, 1.25, (rows, columns, 1))
    panes[rng.random(shape) < (0.05 if glass else 0.22)] = np.multiply(mood[2], 0.75 * shade)  # Blinds.
    lit = rng.random(shape) < mood[4] * rng.uniform(0.1, 1.9) * rng.choice((0.4, 1.0, 1.6), (rows, 1))
    panes[lit] = LAMPS[rng.integers(len(LAMPS), size=lit.sum())] * rng.uniform(0.45, 1, (lit.sum(), 1))
    pixels = np.where(mask[..., None], panes[row][:, column], wall * shade).astype(np.float32)
    return to_image(pixels * tone[..., None] + veil[..., None] * np.array(mood[3], np.float32))


def _roof(scene: Scene, left: int, right: int, top: int, tone: np.ndarray, unit: float) -> None:
    draw, rng, wide, dark = scene.draw, scene.rng, right - left, to_rgb(tone * 0.6)
    form = rng.choice(("gable", "spire", "mast", "tank", "flat"), p=(0.2, 0.08, 0.25, 0.17, 0.3))
    if form in ("gable", "spire"):
        high = wide * rng.uniform(0.3, 0.6) * (3 if form == "spire" else 1)
        peak = left + wide * rng.uniform(0.35, 0.65), top - high
        draw.polygon([(left, top), peak, (right, top)], to_rgb(tone * 1.1))
        draw.polygon([peak, (right, top), (peak[0] + wide / 9, top)], dark)
        for seam in range(left, right, max(4, round(2 * unit))):
            draw.line([peak, (seam, top)], to_rgb(tone * 0.75), 1)
        return
    for x in rng.uniform(left, right - wide / 4, int(rng.integers(1, 6))):
        box = [x, top - rng.uniform(3, 12) * unit, x + wide * rng.uniform(0.08, 0.25), top]
        draw.rectangle(box, to_rgb(tone * rng.uniform(0.55, 1.15)))
    x, half, high = left + wide * rng.uniform(0.3, 0.7), 5 * unit, rng.uniform(0.6, 1.8) * wide
    if form == "mast":
        zigzag = [(x + half * (1 - k / 12) * (-1) ** k / 2, top - k * high / 16) for k in range(13)]
        draw.line([(x + half / 2, top), (x, top - high), (x - half / 2, top), *zigzag], dark, 2)
    if form == "tank":
        foot, lid = top - 7 * unit, top - 19 * unit
        draw.line([(x - half, foot), (x + half, top), (x + half, foot), (x - half, top)], dark, 2)
        draw.rectangle([x - half, lid, x + half, foot], to_rgb(tone * 0.9))
        draw.polygon([(x - half * 1.2, lid), (x, lid - half), (x + half * 1.2, lid)], dark)


def building(scene: Scene, box: tuple[int, int, int], near: float, haze: float, grain: np.ndarray) -> None:
    """Up to three setbacks, or two faces seen across a corner; box = (left, top, right)."""
    left, top, right = box
    rng, unit, high = scene.rng, scene.unit * (0.5 + 0.7 * near), scene.base - top
    wall, seed = rng.choice(WALLS) * rng.uniform(0.75, 1.1) * scene.light, int(rng.integers(1 << 30))
    if rng.random() < 0.5 and right - left > 30 * unit:
        corner = left + int((right - left) * rng.uniform(0.25, 0.75))
        for x, width, side in ((left, corner - left, 0), (corner, right - corner, 1)):
            face = _facade(scene, (width, high), (seed, wall, unit, rng.uniform(0.5, 1.1)), haze, grain)
            drop, mask = min(0.3 * high, (0.1 + 0.3 * near) * width), Image.new("L", face.size)
            falls, lift = (drop * (1 - side), drop * side), -drop * high / (high - drop)
            outline = [(0, falls[0] + 1), (width, falls[1] + 1), (width, high), (0, high)]
            ImageDraw.Draw(mask).polygon(outline, 255)
            quad = (0, lift * (1 - side), 0, high, width, high, width, lift * side)
            face = face.transform(face.size, Image.Transform.QUAD, quad, Image.Resampling.BILINEAR)
            scene.canvas.paste(face, (x, top), mask)
        return
    tiers, shade = int(rng.choice((1, 2, 3), p=(0.55, 0.27, 0.18))), rng.uniform(0.5, 1.1)
    for tier in range(tiers):
        inset, start = (tiers - 1 - tier) * (right - left) // 9, top + tier * high // 8
        size = (right - left - 2 * inset, scene.base - start)
        face = _facade(scene, size, (seed, wall, unit, shade), haze, grain)
        scene.canvas.paste(face, (left + inset, start))
        if tier == 0:
            _roof(scene, left + inset, right - inset, start, mix(wall * 0.8, scene.mood[3], haze), unit)
