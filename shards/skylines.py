"""Draws pictures of city skylines, deterministic by seed: the demo's training photos."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.workers import WorkerPool
from srcnn.runtime.files import atomic_file
from srcnn.runtime.parallel import num_cores

# Colours of the zenith, of the horizon and haze, and of the light on walls; the fraction of lit windows.
MOODS = [
    ((62, 112, 186), (186, 208, 230), (255, 247, 232), 0.02),
    ((88, 122, 176), (250, 196, 132), (255, 206, 150), 0.12),
    ((54, 66, 112), (222, 160, 136), (142, 126, 150), 0.34),
    ((10, 15, 34), (60, 54, 72), (74, 76, 94), 0.42),
    ((142, 150, 162), (206, 210, 214), (206, 210, 214), 0.1),
]
WALLS = [(168, 92, 70), (196, 176, 146), (150, 148, 144), (222, 212, 196), (120, 84, 66), (96, 104, 116), (70, 72, 78)]
LAMP = (255, 222, 160)


def draw_skyline(seed: int, size: tuple[int, int] = (1280, 1024)) -> np.ndarray:
    """Draws a picture, RGB uint8 (height, width, 3); `size` is (width, height)."""
    rng = np.random.default_rng(seed)
    zenith, horizon, light, lit_share = MOODS[rng.integers(len(MOODS))]
    width, height = 2 * size[0], 2 * size[1]  # twice the size, downscaled at the end (antialiasing)
    base, unit = int(height * rng.uniform(0.7, 0.84)), height / 1024
    canvas = _to_image(_sky(rng, (width, height), base, zenith, horizon, light))
    for near in np.linspace(0, 1, rng.integers(3, 6)):  # the farthest and haziest buildings first
        x, haze = -30.0 * unit, 0.6 * (1 - near) ** 1.3
        while x < width:
            wide = int(rng.uniform(22, 62) * unit * (0.65 + near))
            tall = int(min(0.9 * base, 7 * wide, base * rng.lognormal(-1.1 - 0.3 * near, 0.4)))
            wall = _blend(rng.choice(WALLS) * np.array(light) / 255 * rng.uniform(0.4, 1.1), horizon, haze)
            panes = _blend(_blend(zenith, horizon, rng.random()) * rng.uniform(0.1, 0.9), horizon, haze)
            facade = _facade(rng, (wide, tall), wall, panes, lit_share, unit * (0.5 + 0.7 * near))
            canvas.paste(facade, (int(x), base - tall))
            _roof(rng, canvas, (int(x), base - tall, int(x) + wide), wall * 0.7)
            x += wide * rng.uniform(0.85, 1.3)
    photo = np.asarray(canvas.reduce(2), np.float32)
    return _through_lens(rng, _with_water(rng, photo, base // 2, zenith))


def _to_image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _blend(a: object, b: object, share: float | np.ndarray) -> np.ndarray:
    """Interpolates from `a` (share 0) to `b` (share 1)."""
    return np.asarray(a, np.float32) * (1 - share) + np.asarray(b, np.float32) * share


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int], octaves: int) -> np.ndarray:
    """Smooth noise of about [-1, 1], float32 (height, width); octave n has 2^n times the cells (across, down)."""
    total = np.zeros(size[::-1], np.float32)
    for octave in range(octaves):
        grid = rng.uniform(-1, 1, (cells[1] << octave, cells[0] << octave)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BICUBIC)) * 0.55**octave
    return total


def _sky(
    rng: np.random.Generator, size: tuple[int, int], base: int, zenith: object, horizon: object, light: object
) -> np.ndarray:
    """A sky with clouds, from the zenith's colour down to the horizon's; float32 (height, width, 3)."""
    down = np.linspace(0, size[1] / base, size[1], dtype=np.float32).clip(0, 1)[:, None, None]
    clouds = _noise(rng, size, (int(rng.integers(3, 6)), int(rng.integers(5, 12))), 6)[..., None]
    cover = (clouds + rng.uniform(0, 0.7)).clip(0, 1) * (0.8 - 0.35 * down)
    return _blend(_blend(zenith, horizon, down**1.5), _blend(horizon, light, 0.55) * (1 + 0.2 * clouds), cover)


def _facade(
    rng: np.random.Generator, size: tuple[int, int], wall: np.ndarray, panes: np.ndarray, lit_share: float, unit: float
) -> Image.Image:
    """A wall with a grid of windows, some of them lit."""
    across, down = (max(5, round(unit * side)) for side in rng.uniform(4, 9, 2))  # from window to window
    columns, rows = np.arange(size[0]), np.arange(size[1])[:, None]
    in_pane = (columns % across < across * rng.uniform(0.4, 0.9)) & (rows % down < down * rng.uniform(0.4, 0.9))
    shape = (size[1] // down + 1, size[0] // across + 1, 1)
    colours = panes * rng.uniform(0.5, 1.3, shape)
    colours = np.where(rng.random(shape) < lit_share * rng.uniform(0, 2), LAMP * rng.uniform(0.45, 1, shape), colours)
    texture = 1 + 0.13 * rng.standard_normal((*size[::-1], 1)) - 0.15 * (rows[..., None] % (3 * down) < unit)
    return _to_image(np.where(in_pane[..., None], colours[rows // down, columns // across], wall) * texture)


def _roof(rng: np.random.Generator, canvas: Image.Image, top: tuple[int, int, int], colour: np.ndarray) -> None:
    """Draws a gable or a mast, or nothing, on a building; top = (left, y, right)."""
    draw, (left, y, right), fill = ImageDraw.Draw(canvas), top, tuple(colour.astype(int))
    peak, kind = ((left + right) // 2, y - (right - left) * rng.uniform(0.3, 1.5)), rng.integers(3)
    if kind == 0:
        draw.polygon([(left, y), peak, (right, y)], fill)
    elif kind == 1:
        draw.line([(peak[0], y), peak], fill, max(2, (right - left) // 30))


def _with_water(rng: np.random.Generator, photo: np.ndarray, base: int, zenith: object) -> np.ndarray:
    """The picture with the part above row `base` reflected below, in ripples that grow towards the viewer."""
    (height, width), deep = photo.shape[:2], len(photo) - base
    near = np.linspace(0, 1, deep, dtype=np.float32)[:, None]
    waves = _noise(rng, (width, 2 * deep), (24, 90), 5)[((2 * deep - 1) * near[:, 0] ** 0.55).astype(int)]
    source = base - 2 - np.arange(deep)[:, None] * 1.15 - waves * 20 * height / 1024 * (0.3 + 1.6 * near)
    mirrored = photo[source.clip(0, base - 2).astype(int), np.arange(width)]
    clear = (0.75 - 0.3 * near + 0.3 * waves).clip(0.1, 1)[..., None]
    return np.concatenate([photo[:base], _blend(_blend(zenith, (30, 46, 48), 0.6), mirrored, clear)])


def _through_lens(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """Adds a little blur and sensor noise."""
    sharp = np.asarray(_to_image(photo).filter(ImageFilter.GaussianBlur(rng.uniform(0.15, 0.35))), np.float32)
    sigma = rng.uniform(0.8, 1.2) + 0.08 * np.sqrt(sharp)
    return (sharp + sigma * rng.standard_normal(sharp.shape, np.float32) + 0.5).clip(0, 255).astype(np.uint8)


def write_skylines(
    folder: Path, num_photos: int, seed: int = 0, size: tuple[int, int] = (1280, 1024), show_progress: bool = False
) -> list[Path]:
    """Writes skyline-000.png and so on, unless they exist, on all cores; returns all their paths.

    Raises:
        ShardsFailed: the disk is full, a worker died.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"skyline-{index:03d}.png" for index in range(num_photos)]
    missing = [(path, seed * 100_000 + index) for index, path in enumerate(paths) if not path.exists()]
    with WorkerPool(max(1, min(num_cores(), len(missing)))) as workers:
        workers.map_all(partial(_write_skyline, size), missing, "photos drawn", show_progress)
    return paths


def _write_skyline(size: tuple[int, int], photo: tuple[Path, int]) -> None:
    path, seed = photo
    with atomic_file(path) as file:
        Image.fromarray(draw_skyline(seed, size)).save(file, "PNG", compress_level=3)


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
