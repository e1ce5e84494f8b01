"""Whether a photo was once a JPEG, on which grid and how coarse, from its pixels alone. Does not import torch.

After decoding, the DCT coefficients of each frequency lie near multiples of that frequency's quantization step, but
only on the grid of 8x8 blocks of that JPEG: Fan and de Queiroz, "Identification of Bitmap Compression History", IEEE
TIP 12(2), 2003. All 64 offsets of the grid are tried, each with every step and several amounts of noise. The
log-likelihood ratio, in nats, compares "multiples of the step with Gaussian noise" with "anywhere between them".
Drawings, scans and other formats have regular coefficients too, but at many offsets: only what one offset has and most
others have not counts as evidence.

A JPEG that was saved again has the noise of the later steps (uniform, a standard deviation of step / sqrt(12)) if the
later blocks are elsewhere. In the same blocks, only those multiples of the later steps occur that are nearest to one of
the earlier steps: Popescu and Farid, "Statistical Tools for Digital Forensics", Information Hiding 2004, section 3.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from srcnn.photos.jpeg_quality import ANNEX_K_LUMA, DCT, MAX_STEP, JpegSave, jpeg_save, quality_tables
from srcnn.photos.tiling import JPEG_BLOCK_PIXELS as BLOCK_PIXELS

NUM_OFFSETS = BLOCK_PIXELS**2
WINDOW_PIXELS = 2 * BLOCK_PIXELS - 1  # holds one block of each offset
MAX_WINDOWS, MIN_WINDOWS = 4096, 16
MIN_DEVIATION = 1.0  # levels; the coefficients of flatter windows are zeros
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
MAX_FREQUENCY = 6  # vertical and horizontal together: the 27 lowest coefficients without DC
ROWS, COLUMNS = np.array([(u, v) for u in range(MAX_FREQUENCY + 1) for v in range(MAX_FREQUENCY + 1 - u) if u + v]).T
NUM_FREQUENCIES = len(ROWS)
TABLES = quality_tables(ANNEX_K_LUMA).reshape(-1, 8, 8)[:, ROWS, COLUMNS]  # of libjpeg: (100, frequencies)
BIN = 0.25  # levels; of the histograms of absolute coefficients
NUM_BINS = 1200
LEVELS = (np.arange(NUM_BINS) + 0.5) * BIN
STEPS = np.arange(2, MAX_STEP + 1)  # a step of 1 is lost in the noise of rounding
# Standard deviations of coefficients in levels. The first is that of pixels as decoded and rounded: 0.29, or 0.35 if
# the luma is computed from RGB. The others are those after later saves, the last two if these were coarse.
NOISES = (0.4, 1.0, 2.0, 3.5, 6.0)
NUM_FINE_NOISES = 3
OUTLIERS = 0.05  # share of coefficients that may have any value
MIN_EVIDENCE = 200.0  # nats, of all frequencies; clean photos and other formats stay below 20, drawings below 190
MIN_STEP_EVIDENCE = 20.0  # nats, of one frequency
MIN_KNOWN_STEPS = 4
MIN_LEAD = 0.5  # of the best grid over the third, as a share of its evidence: two grids may be of two saves
MIN_SHARES = (0.005, 0.3)  # evidence of an earlier save as a share of the last one's: on another grid, on the same
MIN_OUTSTANDING = 0.1  # the lead of an earlier save's grid over all others, as a share of how much these differ
LOWER = 5  # an earlier save must have a quality lower by this
LOWEST_EARLIER = 5  # and at least this
UNSEEN_QUALITY = 95  # from here on the steps of a file are 1 or 2: an earlier save may seem to be the last
POOR_QUALITY = 60  # photos that were JPEGs of a lower quality are poor originals to train on
QUIET_QUALITY = 75  # below, the blocks of a file itself hide those of an earlier one
MIN_POOR_EVIDENCE = 50.0  # nats, of an eighth of the windows
MIN_CONTRAST = 1.25  # of blocks: that of 74 clean photos was up to 1.24, of their JPEGs of quality 55 from 1.27
SAMPLE_PIXELS, SAMPLES_A_SIDE = 195, 3  # of `block_contrast`; 195 pixels have 24 x 8 lines with two neighbours
FLAT_STEP = 0.05  # levels; keeps the contrast of a flat photo at 1
FILE_TABLE_ERROR = 10  # by which the qualities of a file's own table and of the steps found may differ


class JpegHistory(NamedTuple):
    """The coarsest JPEG that the pixels of a photo went through.

    Attributes:
        quality: 1..100, of libjpeg's table that is nearest to the steps.
        offset: (row, column) in the pixels, 0..7, where its first whole block begins.
        steps: (8, 8) quantization steps of the luma, by vertical and horizontal frequency; 0 where unknown.
        is_last: the pixels are as this JPEG decodes; False if they were saved or slightly changed after it.
    """

    quality: int
    offset: tuple[int, int]
    steps: np.ndarray
    is_last: bool


def worst_save(pixels: np.ndarray, file: JpegSave | None) -> JpegSave | None:
    """The coarsest JPEG compression that a photo went through: the one found in its pixels, else that of its file.

    The chroma of a former JPEG is assumed to have had half the resolution and libjpeg's table.

    Args:
        pixels: (H, W) or (H, W, 3) uint8, the photo or a part that begins at a multiple of 8 rows and columns.
        file: the compression of the photo's own file; None if it is not a JPEG.
    """
    found = estimate_history(pixels, None if file is None else file.quality)
    if found is None:
        return file
    table = quality_tables(ANNEX_K_LUMA)[found.quality - 1].reshape(8, 8)
    save = jpeg_save(found.quality, grey=pixels.ndim == 2)
    return save._replace(offset=found.offset, luma_steps=np.where(found.steps > 0, found.steps, table))


def original_quality(pixels: np.ndarray, file: JpegSave | None, thorough: bool) -> int | None:
    """The quality 1..100 of the coarsest JPEG that a photo went through; None if there is no sign of one.

    That of the photo's own file. An earlier one is looked for in some 0.3 s if `thorough`, else only where 8x8 blocks
    show and a first look finds steps of a quality below POOR_QUALITY: a hundredth of the time, for most photos.

    Args:
        pixels, file: as in `worst_save`.
    """
    may_hide_another = file is None or file.quality >= QUIET_QUALITY
    if thorough or may_hide_another and _shows_poor_save(pixels):
        file = worst_save(pixels, file)
    return file.quality if file else None


def _shows_poor_save(pixels: np.ndarray) -> bool:
    """Whether the pixels show 8x8 blocks and, on one of their grids, steps of a quality below POOR_QUALITY."""
    contrasts = block_contrasts(pixels)
    if contrasts.max() < MIN_CONTRAST:
        return False
    windows = _sample_windows(pixels, MAX_WINDOWS // 8)
    rows, columns = np.argsort(contrasts, axis=1)[:, -2:]  # two, as there may be two grids
    return len(windows) >= MIN_WINDOWS and any(
        _evidence_of_poor(windows[:, row : row + BLOCK_PIXELS, column : column + BLOCK_PIXELS]) >= MIN_POOR_EVIDENCE
        for row, column in product(rows, columns))


def _evidence_of_poor(blocks: np.ndarray) -> float:
    """(N, 8, 8) luma on one grid -> the most evidence for a table of libjpeg of a quality below POOR_QUALITY, nats."""
    dct = DCT[: MAX_FREQUENCY + 1]
    coefficients = (dct @ blocks @ dct.T)[:, ROWS, COLUMNS]
    counts = _histograms(coefficients.T)
    of_steps = [_fold(counts, noise) @ _weights_of_steps(noise, _fold_of(noise)) for noise in NOISES]
    return float(_ratios_of_tables(np.stack(of_steps))[:, : POOR_QUALITY - 1].max())


def block_contrasts(pixels: np.ndarray) -> np.ndarray:
    """How much larger the steps between pixels are across each eighth row, and column, than across most others.

    Args:
        pixels: (H, W) or (H, W, 3) uint8, of which nine places are looked at.

    Returns:
        (2, 8): of the rows, and columns, whose number modulo 8 is 0..7; all are about 1 without blocks.
    """
    plane = pixels if pixels.ndim == 2 else pixels[..., 1]
    return np.stack([_contrasts_of_rows(plane), _contrasts_of_rows(plane.T)])


def _contrasts_of_rows(plane: np.ndarray) -> np.ndarray:
    steps = np.zeros(BLOCK_PIXELS)
    tops, lefts = (np.linspace(0, max(0, side - SAMPLE_PIXELS), SAMPLES_A_SIDE).astype(int) for side in plane.shape)
    for top, left in product(tops // BLOCK_PIXELS * BLOCK_PIXELS, lefts):
        sample = plane[top : top + SAMPLE_PIXELS, left : left + SAMPLE_PIXELS].astype(np.int16)
        slopes = np.diff(sample, axis=0)
        of_rows = np.abs(2 * slopes[1:-1] - slopes[:-2] - slopes[2:]).mean(axis=1)  # from the third row on
        num_blocks = len(of_rows) // BLOCK_PIXELS
        if num_blocks:
            steps += of_rows[: num_blocks * BLOCK_PIXELS].reshape(num_blocks, BLOCK_PIXELS).mean(axis=0)
    steps += FLAT_STEP
    return np.roll(steps / np.median(steps), 2)


class _Save(NamedTuple):
    """One save that was found: its grid's index 0..63, and its step of each frequency, 0 where unknown."""

    quality: int
    grid: int
    steps: np.ndarray
    evidence: float
    is_last: bool


def estimate_history(pixels: np.ndarray, file_quality: int | None = None) -> JpegHistory | None:
    """The coarsest JPEG that these pixels went through; None if there is no clear sign of one.

    A sample of 4096 windows is used. What was scaled, filtered or turned by other than right angles after the save is
    not found. Flips and right angles change the offset, and right angles turn the steps.

    Args:
        pixels: (H, W) grey or (H, W, 3) RGB, uint8.
        file_quality: of the JPEG file that was decoded, by its own tables (`jpeg_quality.jpeg_save_of`). Then only an
            earlier and coarser save is returned.

    Raises ValueError if the pixels have another shape or type.
    """
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"expected uint8 (H, W) or (H, W, 3), found {pixels.dtype} {pixels.shape}")
    windows = _sample_windows(pixels)
    if len(windows) < MIN_WINDOWS:
        return None
    counts = _count_coefficients(windows)
    ratios = _ratios_of_steps(counts)
    last = _find_last(ratios)
    if last is None:
        return None
    found = [last, _find_on_another_grid(ratios, last), _find_on_same_grid(counts[last.grid], last)]
    save = min((each for each in found if each is not None), key=lambda each: each.quality)
    if file_quality is not None:
        is_of_file = save.is_last and file_quality < UNSEEN_QUALITY
        if is_of_file or save.quality > file_quality - (FILE_TABLE_ERROR if save.is_last else LOWER):
            return None
    steps = np.zeros((BLOCK_PIXELS, BLOCK_PIXELS), int)
    steps[ROWS, COLUMNS] = save.steps
    return JpegHistory(save.quality, divmod(save.grid, BLOCK_PIXELS), steps, save.is_last)


def _sample_windows(pixels: np.ndarray, max_windows: int = MAX_WINDOWS) -> np.ndarray:
    """(N, 15, 15) float32 luma, all different, evenly over the photo; none with clipped levels, none flat."""
    rows, columns = (max(0, (side - WINDOW_PIXELS) // BLOCK_PIXELS + 1) for side in pixels.shape[:2])
    if rows * columns == 0:
        return np.empty((0, WINDOW_PIXELS, WINDOW_PIXELS), np.float32)
    # More than are wanted, because some are not fit.
    numbers = _thinned(np.arange(rows * columns), 4 * max_windows)
    views = sliding_window_view(pixels, (WINDOW_PIXELS, WINDOW_PIXELS), axis=(0, 1))
    windows = views[BLOCK_PIXELS * (numbers // columns), BLOCK_PIXELS * (numbers % columns)]
    windows = windows.reshape(len(numbers), -1, WINDOW_PIXELS, WINDOW_PIXELS)
    unclipped = windows[(windows.min(axis=(1, 2, 3)) > 0) & (windows.max(axis=(1, 2, 3)) < 255)].astype(np.float32)
    luma = np.einsum("ncyx,c->nyx", unclipped, LUMA) if unclipped.shape[1] == 3 else unclipped[:, 0]
    luma = _thinned(luma[luma.std(axis=(1, 2)) >= MIN_DEVIATION], max_windows)
    return np.unique(luma, axis=0) if len(luma) else luma


def _thinned(values: np.ndarray, num: int) -> np.ndarray:
    """At most `num` of the values, evenly spaced."""
    return values if len(values) <= num else values[np.linspace(0, len(values) - 1, num).astype(int)]


@cache
def _transform() -> np.ndarray:
    """(8 offsets * 7 frequencies, 15): the orthonormal DCT of 8 pixels at each offset in a window's side."""
    transform = np.zeros((BLOCK_PIXELS, MAX_FREQUENCY + 1, WINDOW_PIXELS), np.float32)
    for offset in range(BLOCK_PIXELS):
        transform[offset, :, offset : offset + BLOCK_PIXELS] = DCT[: MAX_FREQUENCY + 1]
    return transform.reshape(-1, WINDOW_PIXELS)


def _count_coefficients(windows: np.ndarray) -> np.ndarray:
    """(64 offsets, frequencies, NUM_BINS) float32: histograms of absolute coefficients; higher ones are left out."""
    counts = np.empty((BLOCK_PIXELS, BLOCK_PIXELS, NUM_FREQUENCIES, NUM_BINS), np.float32)
    lines = np.ascontiguousarray(windows.transpose(1, 2, 0)).reshape(WINDOW_PIXELS, -1)
    for row, dct in enumerate(_transform().reshape(BLOCK_PIXELS, -1, WINDOW_PIXELS)):  # a part that fits into the cache
        vertical = (dct @ lines).reshape(len(dct), WINDOW_PIXELS, len(windows))
        both = (_transform() @ vertical).reshape(len(dct), BLOCK_PIXELS, -1, len(windows))
        of_row = _histograms(both[ROWS, :, COLUMNS].reshape(-1, len(windows)))
        counts[row] = of_row.reshape(NUM_FREQUENCIES, BLOCK_PIXELS, NUM_BINS).swapaxes(0, 1)
    return counts.reshape(NUM_OFFSETS, NUM_FREQUENCIES, NUM_BINS)


def _histograms(coefficients: np.ndarray) -> np.ndarray:
    """(K, N) -> (K, NUM_BINS) float32: of absolute values; higher ones are left out."""
    bins = np.minimum(np.abs(coefficients) / BIN, NUM_BINS).astype(np.int32)
    bins += np.arange(len(bins), dtype=np.int32)[:, None] * (NUM_BINS + 1)
    counts = np.bincount(bins.ravel(), minlength=len(coefficients) * (NUM_BINS + 1)).astype(np.float32)
    return counts.reshape(len(coefficients), NUM_BINS + 1)[:, :NUM_BINS]


def _fold_of(noise: float) -> int:
    """How many bins are taken together: up to half as wide as the noise, in half of the time."""
    return min(4, max(1, int(2 * noise)))


def _fold(counts: np.ndarray, noise: float) -> np.ndarray:
    """(K, NUM_BINS) -> (K, NUM_BINS / fold)."""
    return np.einsum("kbf->kb", counts.reshape(len(counts), -1, _fold_of(noise)))  # sum() takes five times as long


def _density(steps: np.ndarray, levels: np.ndarray, noise: float) -> np.ndarray:
    """(steps, levels): the density of noisy multiples of each step at each level, relative to an even distribution."""
    steps = steps[:, None].astype(float)
    nearest = np.round(levels / steps)
    gaussians = [np.exp(-(((levels - (nearest + side) * steps) / noise) ** 2) / 2) for side in (-1, 0, 1)]
    return steps / (noise * np.sqrt(2 * np.pi)) * np.sum(gaussians, axis=0)


@cache
def _decoded_densities() -> np.ndarray:
    """(MAX_STEP + 1, NUM_BINS) by step: the density of a photo's coefficients as decoded."""
    return _density(np.maximum(np.arange(MAX_STEP + 1), 1), LEVELS, NOISES[0])


def _log_ratios(density: np.ndarray, is_zero: np.ndarray) -> np.ndarray:
    """Log-likelihood ratios. What may be rounded to zero is no evidence for a step: clean photos have a peak at zero,
    too. Nor is it evidence against it unless it is far from zero.
    """
    ratios = np.log((1 - OUTLIERS) * density + OUTLIERS)
    return np.where(is_zero, np.minimum(ratios, 0), ratios)


@cache
def _weights_of_steps(noise: float, fold: int) -> np.ndarray:
    """(NUM_BINS / fold, STEPS) float32: what a coefficient in a bin says about a step."""
    levels = LEVELS.reshape(-1, fold).mean(axis=1)
    ratios = _log_ratios(_density(STEPS, levels, noise), levels < STEPS[:, None] / 2)
    return np.ascontiguousarray(ratios.T, np.float32)


def _ratios_of_steps(counts: np.ndarray) -> np.ndarray:
    """(NOISES, 64 offsets, frequencies, STEPS): log-likelihood ratios, less what a fifth of the offsets exceed."""
    ratios = np.empty((len(NOISES), NUM_OFFSETS, NUM_FREQUENCIES, len(STEPS)), np.float32)
    for number, noise in enumerate(NOISES):
        folded = _fold(counts.reshape(-1, NUM_BINS), noise)
        ratios[number] = (folded @ _weights_of_steps(noise, _fold_of(noise))).reshape(ratios.shape[1:])
    of_most = np.partition(ratios, NUM_OFFSETS * 4 // 5, axis=1)[:, [NUM_OFFSETS * 4 // 5]]
    return ratios - np.maximum(of_most, 0)


def _ratios_of_tables(ratios: np.ndarray) -> np.ndarray:
    """(..., frequencies, STEPS) -> (..., 100 qualities): the evidence for libjpeg's tables. Steps of 1 are none."""
    by_table = ratios[..., np.arange(NUM_FREQUENCIES), np.maximum(TABLES - STEPS[0], 0)]
    return np.where(TABLES >= STEPS[0], by_table, 0).sum(axis=-1)


def _find_last(ratios: np.ndarray) -> _Save | None:
    """The save on the grid with most evidence for a table of libjpeg or, if that is not clear, for any steps."""
    fine = ratios[:NUM_FINE_NOISES]
    of_grids = _ratios_of_tables(fine).max(axis=2).max(axis=0)
    if not _is_clear(of_grids, 3):
        of_grids = np.maximum(fine.max(axis=3), 0).sum(axis=2).max(axis=0)
    if not _is_clear(of_grids, 3):
        return None
    grid = int(of_grids.argmax())
    of_steps = ratios[:, grid].max(axis=0)
    of_tables = _ratios_of_tables(of_steps)
    steps, best = STEPS[of_steps.argmax(axis=1)], of_steps.max(axis=1)
    known = best >= MIN_STEP_EVIDENCE
    if known.sum() < MIN_KNOWN_STEPS:
        return None
    if of_tables.max() >= best[known].sum() / 2:
        quality = int(of_tables.argmax()) + 1
        steps, known = _known_steps(of_steps, quality)
    else:
        quality = _nearest_quality(steps[known], known)
        steps = np.where(known, steps, 0)
    with_noise = ratios[:, grid, known, steps[known] - STEPS[0]].sum(axis=1)
    if with_noise.max() < MIN_EVIDENCE:  # the frequencies do not agree on the noise
        return None
    return _Save(quality, grid, steps, float(with_noise.max()), bool(with_noise.argmax() == 0))


def _known_steps(of_steps: np.ndarray, quality: int) -> tuple[np.ndarray, np.ndarray]:
    """The steps of libjpeg's table that have evidence, else 0; and which these are."""
    table = np.maximum(TABLES[quality - 1], STEPS[0])
    known = of_steps[np.arange(NUM_FREQUENCIES), table - STEPS[0]] >= MIN_STEP_EVIDENCE
    return np.where(known, table, 0), known


def _is_clear(evidence: np.ndarray, place: int) -> bool:
    """Whether the best of all grids has enough evidence, and enough more than the one in this place."""
    values = np.sort(evidence)
    return bool(values[-1] >= MIN_EVIDENCE and max(0, values[-place]) <= (1 - MIN_LEAD) * values[-1])


def _nearest_quality(steps: np.ndarray, known: np.ndarray) -> int:
    """By the mean of the absolute logarithms of the ratios of steps, which a few wrong steps change little."""
    return 1 + int(np.abs(np.log(TABLES[:, known] / steps)).mean(axis=1).argmin())


def _find_on_another_grid(ratios: np.ndarray, last: _Save) -> _Save | None:
    """An earlier save with a table of libjpeg, its blocks elsewhere, with the noise of the last save."""
    if last.quality <= LOWEST_EARLIER + LOWER:
        return None
    ratios = ratios.max(axis=0)
    of_tables = _ratios_of_tables(ratios)[:, : last.quality - LOWER]
    of_tables[last.grid] = of_tables[:, : LOWEST_EARLIER - 1] = -np.inf
    grid, index = np.unravel_index(of_tables.argmax(), of_tables.shape)
    if index == of_tables.shape[1] - 1:  # the nearest to the last save's: a shadow of that one
        return None
    *others, second, best = np.sort(of_tables.max(axis=1)).tolist()
    lead, spread = best - second, second - median(others)
    if lead < max(MIN_EVIDENCE, MIN_SHARES[0] * last.evidence, MIN_OUTSTANDING * spread):
        return None
    quality = int(index) + 1
    steps, _ = _known_steps(ratios[grid], quality)
    return _Save(quality, int(grid), steps, lead, False)


def _find_on_same_grid(counts: np.ndarray, last: _Save) -> _Save | None:
    """An earlier save with a table of libjpeg in the same blocks.

    Args:
        counts: (frequencies, NUM_BINS), of the grid of the last save.
    """
    if last.quality <= LOWER:
        return None
    tables = TABLES[: last.quality - LOWER]
    ratios = np.zeros(tables.shape)
    for number, (step, count) in enumerate(zip(np.maximum(last.steps, 1), counts, strict=True)):
        earlier = tables[:, number]
        multiples, starts, widths = np.unique(np.round(LEVELS / step), return_index=True, return_counts=True)
        # The later rounding gathers at each multiple what lies around it: the mean density there.
        density = np.add.reduceat(_decoded_densities()[earlier], starts, axis=1) / widths
        weights = _log_ratios(density, multiples * step < earlier[:, None] / 2)
        ratios[:, number] = weights @ np.add.reduceat(count, starts)
    of_tables = ratios.sum(axis=1)
    index = int(of_tables.argmax())
    if of_tables[index] < max(MIN_EVIDENCE, MIN_SHARES[1] * last.evidence):
        return None
    steps = np.where(ratios[index] >= MIN_STEP_EVIDENCE, tables[index], 0)
    return _Save(index + 1, last.grid, steps, float(of_tables[index]), False)
