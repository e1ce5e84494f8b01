// What a JPEG file says of itself: its quantization tables, as the network takes them, and which way up it is.
// The same numbers as srcnn/photos/jpeg_quality.py computes.

const FIRST = 10; // frequencies of a table, in zigzag order, that the network is told
const TRANSPOSED = [0, 2, 1, 5, 4, 3, 9, 8, 7, 6]; // these of a photo whose rows have become columns
export const CONDITION_SIZE = 2 + 2 * FIRST;
const MAX_STEP = 255;
// ITU-T T.81, Annex K, tables K.1 (luma) and K.2 (chroma), in zigzag order as in files.
const ANNEX_K_LUMA = [
  16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35, 37, 29, 40, 58, 51,
  61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80, 109, 81, 87, 95, 98, 103, 104, 103, 62, 77,
  113, 121, 112, 100, 120, 92, 101, 103, 99,
];
const ANNEX_K_CHROMA = [17, 18, 18, 24, 21, 24, 47, 26, 26, 47, 99, 66, 56, 66, ...Array(50).fill(99)];

/** libjpeg's table of a quality 1..100 (jcparam.c, jpeg_quality_scaling). */
function tableOf(quality, base) {
  const percent = quality < 50 ? Math.floor(5000 / quality) : 200 - 2 * quality;
  return base.map((step) => Math.min(MAX_STEP, Math.max(1, Math.floor((step * percent + 50) / 100))));
}

/** Known, chroma of half the resolution, log2(step) / 8 of the first frequencies of luma and chroma. */
function condition(luma, chroma, subsampled) {
  const steps = [luma, chroma ?? Array(FIRST).fill(1)].flatMap((table) => table.slice(0, FIRST));
  return Float32Array.of(1, subsampled ? 1 : 0, ...steps.map((step) => Math.log2(Math.min(step, MAX_STEP)) / 8));
}

/** The quality, on libjpeg's scale, whose table is nearest by the ratios of the steps. */
function nearestQuality(luma) {
  let best = [Infinity, 0];
  for (let quality = 1; quality <= 100; quality++) {
    const error = tableOf(quality, ANNEX_K_LUMA)
      .reduce((sum, step, at) => sum + Math.log(step / Math.min(luma[at], MAX_STEP)) ** 2, 0);
    if (error < best[0]) best = [error, quality];
  }
  return best[1];
}

/** The damage of a JPEG of this quality by libjpeg's tables, 4:2:0. */
export function damageOf(quality) {
  return {
    quality,
    condition: condition(tableOf(quality, ANNEX_K_LUMA), tableOf(quality, ANNEX_K_CHROMA), true),
    orientation: 1,
  };
}

/**
 * The damage that the bytes of a file tell of: quality 1..100, condition, EXIF orientation 1..8.
 * Null where they are no JPEG or have no valid tables.
 */
export function readDamage(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tables = {};
  let components = null;
  let orientation = 1;
  try {
    if (view.getUint16(0) !== 0xffd8) return null;
    let at = 2;
    for (;;) {
      const marker = view.getUint16(at);
      if (marker === 0xffff) { at += 1; continue; } // a byte of filling
      if (marker < 0xffc0 || marker === 0xffda || marker === 0xffd9) break; // pixels, or no segment
      const [start, end] = [at + 4, at + 2 + view.getUint16(at + 2)];
      if (marker === 0xffdb) readTables(view, start, end, tables);
      else if (marker === 0xffe1) orientation = readOrientation(view, start, end) ?? orientation;
      else if ([0xffc0, 0xffc1, 0xffc2].includes(marker)) components = readComponents(view, start);
      at = end;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a file that ends within a segment
  }
  if (!components) return null;
  const [luma, chroma] = components.slice(0, 2).map((component) => tables[component.table]);
  if (!luma || (components.length > 1 && !chroma) || [...luma, ...(chroma ?? [])].some((step) => step < 1)) return null;
  const subsampled = new Set(components.map((component) => component.sampling)).size > 1;
  const turn = (table) => (orientation >= 5 ? table && TRANSPOSED.map((index) => table[index]) : table);
  const quality = nearestQuality(luma); // networks are trained on libjpeg's tables
  const [told, toldChroma] = [tableOf(quality, ANNEX_K_LUMA), chroma && tableOf(quality, ANNEX_K_CHROMA)];
  return { quality, condition: condition(turn(told), turn(toldChroma), subsampled), orientation };
}

function readTables(view, start, end, tables) {
  for (let at = start; at < end; ) {
    const [wide, id] = [view.getUint8(at) >> 4, view.getUint8(at) & 15];
    tables[id] = Array.from({ length: 64 }, (_, n) => (wide ? view.getUint16(at + 1 + 2 * n) : view.getUint8(at + 1 + n)));
    at += 1 + 64 * (wide ? 2 : 1);
  }
}

function readComponents(view, start) {
  return Array.from({ length: view.getUint8(start + 5) }, (_, n) => ({
    sampling: view.getUint8(start + 7 + 3 * n),
    table: view.getUint8(start + 8 + 3 * n),
  }));
}

/** Tag 0x0112 of an EXIF segment; null where there is none. */
function readOrientation(view, start, end) {
  if (end - start < 14 || view.getUint32(start) !== 0x45786966) return null; // "Exif"
  const tiff = start + 6;
  const little = view.getUint16(tiff) === 0x4949;
  const directory = tiff + view.getUint32(tiff + 4, little);
  for (let n = 0; n < view.getUint16(directory, little); n++) {
    const entry = directory + 2 + 12 * n;
    if (view.getUint16(entry, little) !== 0x0112) continue;
    const value = view.getUint16(entry + 8, little);
    return value >= 1 && value <= 8 ? value : null;
  }
  return null;
}

/** [row, column], each 0..7, of the first whole block in the upright photo. */
export function gridOffset(orientation, height, width) {
  return [[3, 4, 7, 8].includes(orientation) ? height % 8 : 0, [2, 3, 6, 7].includes(orientation) ? width % 8 : 0];
}
