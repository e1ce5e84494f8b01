"""Procedural photographs of city skylines, deterministic by seed: the demo's training material."""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.buildings import WALLS, Mood, Rng, Scene, Size, building, mix, noise, to_image, to_rgb
from shards.workers import Workers, num_cores

MOODS = {"day": ((62, 112, 186), (186, 208, 230), (255, 247, 232), (182, 200, 220), 0.02, 0.55),
         "golden": ((88, 122, 176), (250, 196, 132), (255, 206, 150), (232, 186, 144), 0.12, 0.5),
         "dusk": ((54, 66, 112), (222, 160, 136), (142, 126, 150), (152, 122, 132), 0.34, 0.5),
         "night": ((10, 15, 34), (60, 54, 72), (74, 76, 94), (48, 46, 64), 0.42, 0.35),
         "overcast": ((142, 150, 162), (206, 210, 214), (206, 210, 214), (194, 199, 205), 0.1, 0.95)}
LEAVES = np.array([(78, 92, 48), (60, 82, 50), (98, 100, 56), (118, 94, 52)], np.float32)


def _sky(rng: Rng, mood: Mood, size: Size, skyline: float) -> np.ndarray:
    (width, height), (zenith, horizon, light, *_) = size, mood
    down = np.linspace(0, 1 / skyline, height, dtype=np.float32).clip(0, 1)[:, None]
    sun, level = rng.uniform(0.05, 0.95), rng.uniform(0.75, 1.0)
    glow = np.exp(-5 * np.hypot(np.linspace(0, 1, width) - sun, down - level))[..., None] * sum(light) / 765
    sky = mix(zenith, horizon, (down**1.5)[..., None]) + glow * np.array((70, 46, 20))
    clouds = noise(rng, (width + 40, height + 40), (int(rng.integers(3, 6)), int(rng.integers(5, 12))), 6)
    # Rows are drawn closer together towards the horizon, as clouds seen from below are.
    clouds = clouds[((0.5 * down + 0.5 * down**2) * (height - 1)).astype(int) + [[0, 12]]]
    here, shift = clouds[:, 0, 20:20 + width], 20 + int(36 * (sun - 0.5))
    relief = (here - clouds[:, 1, shift:shift + width]).clip(-0.6, 0.6)[..., None]
    cover = ((here + mood[5] + rng.uniform(-0.5, 0.15)) * 1.1).clip(0, 1) * (0.8 - 0.35 * down)
    return mix(sky, mix(horizon, light, 0.55) * (0.86 + 0.34 * relief), cover[..., None])


def _city(scene: Scene) -> None:
    """Three to five depths of buildings, the farthest and haziest first, with cranes between them."""
    rng, base, unit, (width, height) = scene.rng, scene.base, scene.unit, scene.canvas.size
    grain = rng.standard_normal((height, width), np.float32) * 0.13
    grain += noise(rng, (width, height), (40, 40), 3) * 0.06
    murk, downtown = rng.uniform(0.3, 0.75), rng.uniform(0.2, 0.8)
    for near in np.linspace(0, 1, int(rng.integers(3, 6))):
        x, haze = -30.0, murk * (1 - near) ** 1.3 + 0.03
        while x < width:
            wide = rng.uniform(22, 62) * unit * (0.65 + 1.05 * near)
            hill = 0.2 + 0.34 * np.exp(-(((x / width - downtown) / 0.3) ** 2)) * (1 - 0.5 * near)
            tall = min(0.9 * base, 8.5 * wide, base * hill * rng.lognormal(0.34 - 0.26 * near, 0.36))
            left, right = max(0, int(x)), min(width, int(x + wide))
            if right - left > 16 * unit:
                building(scene, (left, base - int(tall), right), near, haze, grain)
            x += wide * rng.uniform(0.85, 1.4 - 0.3 * near)
        if 0.2 < near < 0.9 and rng.random() < 0.7:
            _crane(scene, to_rgb(mix((150, 60, 20) * scene.light, scene.mood[3], haze + 0.1)))


def _crane(scene: Scene, colour: tuple[int, ...]) -> None:
    rng, base, unit = scene.rng, scene.base, scene.unit
    x, top, jib = rng.uniform(0.1, 0.9) * scene.canvas.width, base * rng.uniform(0.25, 0.55), 150 * unit
    jib, left, right = jib * rng.choice((-1, 1)), x - 3 * unit, x + 3 * unit
    rungs = [((left, right)[k % 2], y) for k, y in enumerate(np.arange(top, base, 6 * unit))]
    truss = [(x + jib * k / 40, top - (9 if k % 2 else 2) * unit) for k in range(41)]
    stays = [(x + jib, top), (x - jib * 0.35, top), (x, top - 34 * unit), (x + jib, top - 6 * unit)]
    for chain in (rungs, truss, stays, [(left, base), (left, top), (right, top), (right, base)]):
        scene.draw.line(chain, colour, round(1.3 * unit))


def _bridge(scene: Scene) -> None:
    """A cable-stayed or a suspension bridge in front of the city."""
    draw, rng, unit, width = scene.draw, scene.rng, scene.unit, scene.canvas.width
    colour, stayed = to_rgb(rng.choice(WALLS) * scene.light * 0.85), rng.random() < 0.5
    deck, high, span = scene.base - 26 * unit, rng.uniform(120, 210) * unit, width * rng.uniform(0.45, 0.6)
    for tower in rng.uniform(0, 0.3) * width + span * np.arange(-1, 3):
        cable = [(tower + s * span, deck - high * (1 - 2 * abs(s)) ** 2) for s in np.linspace(-0.5, 0.5, 49)]
        for k, (x, y) in enumerate(cable):
            top = (tower, deck - high * (0.3 + 0.65 * abs(k / 24 - 1))) if stayed else (x, y)
            draw.line([top, (x, deck)], colour, 2)
        draw.line([] if stayed else cable, colour, round(2 * unit))
        feet = [(tower + side * 7 * unit, scene.base) for side in (-1, 1)]
        draw.line([feet[0], (tower, deck - high), feet[1]], colour, round(4 * unit))
    draw.rectangle([0, deck - 2 * unit, width, deck + 4 * unit], colour)


def _tree(scene: Scene, x: float, ground: float, radius: float) -> None:
    """A crown of small leaves, the darkest of which lie below the others."""
    rng, size, count = scene.rng, radius * scene.rng.uniform(0.6, 1.2), int(min(600, 40 + 6 * radius))
    hue = LEAVES[rng.integers(len(LEAVES))] * scene.light
    scene.draw.line([(x, ground), (x, ground - size)], to_rgb(hue * 0.4), max(2, int(size / 9)))
    angle = rng.uniform(0, 2 * np.pi, count)
    reach = np.sqrt(rng.random(count)) * rng.uniform(0.6, 1.05, count)
    dx, dy, radii = reach * np.cos(angle) * 0.75, reach * np.sin(angle) - 1.5, rng.uniform(0.03, 0.11, count)
    light = -0.45 - 0.4 * (dx + 1.5 * dy) + rng.normal(0, 0.4, count)
    for k in np.argsort(light):
        cx, cy, r = x + dx[k] * size, ground + dy[k] * size, max(2.0, radii[k] * size)
        leaf = [(cx - r, cy), (cx, cy - r * 0.6), (cx + r, cy + r * 0.2), (cx + r * 0.1, cy + r)]
        scene.draw.polygon(leaf, to_rgb(hue * light[k].clip(0.25, 1.7)))


def _street(scene: Scene, num_trees: int) -> None:
    """A marked road to the vanishing point through grass or paving, with trees beside it."""
    rng, (width, height), ground = scene.rng, scene.canvas.size, scene.base
    deep, far, mask = height - ground, width * rng.uniform(0.3, 0.7), Image.new("L", (width, height - ground))
    rough = 1 + 0.22 * rng.standard_normal((deep, width), np.float32)
    rough += 0.12 * noise(rng, mask.size, (60, 50), 4)
    soil = np.array(((98, 110, 66), (128, 122, 116))[rng.integers(2)]) * scene.light
    scene.canvas.paste(to_image(soil * rough[..., None]), (0, ground))
    ImageDraw.Draw(mask).polygon([(far - 30, 0), (far + 30, 0), (width, deep), (0, deep)], 255)
    scene.canvas.paste(to_image(92 * scene.light * rough[..., None]), (0, ground), mask)
    for lane, dash in ((0.04, 0.06), (0.34, 0.03), (0.66, 0.03), (0.96, 0.06)):
        for start in np.arange(0, 1, 0.06):
            shares = start**1.6, (start + dash) ** 1.6
            line = [(far + (width * lane - far) * s, ground + deep * s) for s in shares]
            scene.draw.line(line, to_rgb(220 * scene.light), round(2 + 16 * start))
    for s in np.sort(rng.uniform(0, 0.5, num_trees)):
        left, right = far * (1 - s) - 30, far + (width - far) * s + 30
        x = rng.uniform(0, left) if rng.random() < far / width else rng.uniform(right, width)
        _tree(scene, x, ground + deep * s, (18 + 60 * s) * scene.unit)


def _water(rng: Rng, mood: Mood, photo: np.ndarray, base: int) -> np.ndarray:
    """The photo with the part above row base mirrored below, in ripples which grow towards the viewer."""
    (height, width), deep = photo.shape[:2], len(photo) - base
    near = np.linspace(0, 1, deep, dtype=np.float32)[:, None]
    waves = noise(rng, (width, 2 * deep), (24, 90), 5)[((2 * deep - 1) * near[:, 0] ** 0.55).astype(int)]
    rough = rng.uniform(8, 30) * height / 1024 * (0.3 + 1.6 * near)
    source = (base - 2 - np.arange(deep)[:, None] * 1.15 - waves * rough).clip(0, base - 2).astype(int)
    aside = (np.arange(width) + np.roll(waves, 7, 1) * 4 * (0.2 + near)).clip(0, width - 1).astype(int)
    mirrored = photo[source, aside]
    clear = (0.75 - 0.3 * near + 0.3 * waves).clip(0.1, 1)[..., None]
    glints = (waves - 0.8).clip(0, 1)[..., None] * np.array(mood[1], np.float32)
    return np.concatenate([photo[:base], mix(mix(mood[0], (30, 46, 48), 0.6), mirrored, clear) + glints])


def _lens(rng: Rng, photo: np.ndarray, bloom: float) -> np.ndarray:
    """Blur, the bloom of lamps, the vignette, and the noise of a sensor."""
    (height, width), image = photo.shape[:2], to_image(photo)
    sharp = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.35))), np.float32)
    bright = image.reduce(4).point(lambda v: max(0, v - 120)).filter(ImageFilter.GaussianBlur(2.5))
    sharp += bloom * np.asarray(bright.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    sharp *= (1 - rng.uniform(0.06, 0.14) * (x * x + y * y))[..., None].astype(np.float32)
    sigma = rng.uniform(0.8, 1.2) + 0.08 * np.sqrt(sharp.clip(0, 255))
    return (sharp + sigma * rng.standard_normal(sharp.shape, np.float32) + 0.5).clip(0, 255).astype(np.uint8)


def draw_skyline(seed: int, size: Size = (1280, 1024)) -> np.ndarray:
    """One photo, RGB uint8 of shape (height, width, 3); size is (width, height)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    mood = MOODS[rng.choice(list(MOODS), p=(0.3, 0.2, 0.16, 0.14, 0.2))]
    num_trees, base = int(rng.choice((0, 24, 80), p=(0.45, 0.3, 0.25))), int(size[1] * rng.uniform(0.7, 0.84))
    # Drawn at twice the size and reduced at the end, against aliasing.
    canvas, light = to_image(_sky(rng, mood, size, base / size[1])), np.array(mood[2], np.float32) / 255
    canvas = canvas.resize((size[0] * 2, size[1] * 2), Image.Resampling.BILINEAR)
    scene = Scene(canvas, ImageDraw.Draw(canvas), rng, mood, light, size[1] * 2 / 1024, base * 2)
    _city(scene)
    if num_trees:
        _street(scene, num_trees)
        return _lens(rng, np.asarray(canvas.reduce(2), np.float32), mood[4])
    for x in rng.uniform(0, canvas.width, int(rng.integers(20, 160))):
        _tree(scene, x, scene.base, 8 * scene.unit)
    if rng.random() < 0.5:
        _bridge(scene)
    return _lens(rng, _water(rng, mood, np.asarray(canvas.reduce(2), np.float32), base), mood[4])


def write_skylines(
    folder: Path, num_photos: int, seed: int = 0, size: Size = (1280, 1024), show_progress: bool = False
) -> list[Path]:
    """Writes skyline-000.png and so on, on all cores, leaves alone those which exist, and returns all their paths.

    Raises:
        ShardsFailed: the disk is full, a worker died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"skyline-{index:03d}.png" for index in range(num_photos)]
    missing = [(path, seed * 100_000 + index) for index, path in enumerate(paths) if not path.exists()]
    with Workers(max(1, min(num_cores(), len(missing)))) as workers:
        workers.run(partial(_write_skyline, size), missing, "photos drawn", show_progress)
    return paths


def _write_skyline(size: Size, photo: tuple[Path, int]) -> None:
    path, seed = photo
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    Image.fromarray(draw_skyline(seed, size)).save(unfinished, "PNG", compress_level=3)
    os.replace(unfinished, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--num", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = write_skylines(options.out, options.num, options.seed, show_progress=True)
    print(f"{len(paths)} photos in {options.out}")


if __name__ == "__main__":
    main()
