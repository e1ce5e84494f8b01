// Loads the runtime and the network, and restores photos tile by tile in workers.

import { gridOffset } from "./jpeg.js";

// Pinned: the browser refuses files with other hashes.
const RUNTIME = "https://cdn.jsdelivr.net/npm/onnxruntime-web@1.30.0/dist/";
const SCRIPT = ["ort.wasm.bundle.min.mjs", "sha384-PLWz+nHEVHpjwBsO0YVdvQj6n5814Iv8E3b8FG0Rp/uIAtjFMCKOpP66iPzedrIG"];
const WASM = ["ort-wasm-simd-threaded.wasm", "sha384-vjBJ1z7qrhkTyYsNqKeF6c7N+nOJSU94czEo+tvZcu8G75JparGq9kB+kTnEUNVM"];
export const HALO = 48; // pixels around a tile that the network looks at
export const TILE = 384; // pixels, a multiple of 16, where the network's tiles begin
const BLOCK = 8; // pixels of a JPEG's block

/** A failure that the page explains. */
export class Problem extends Error {}

async function download(address, options, problem) {
  try {
    const answer = await fetch(address, options);
    if (answer.ok) return await answer.arrayBuffer();
  } catch { /* the same problem */ }
  throw new Problem(problem);
}

/** Processors to use: memory grows with them, and phones have little. */
function numWorkers() {
  const isSmall = matchMedia("(pointer: coarse)").matches || (navigator.deviceMemory ?? 8) < 8;
  return Math.max(1, Math.min(isSmall ? 2 : 4, Math.floor((navigator.hardwareConcurrency ?? 2) / 2)));
}

function startWorker() {
  const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  const fail = (error) => { for (const [, reject] of waiting.values()) reject(error); waiting.clear(); };
  worker.onmessage = ({ data: { number, error, ...answer } }) => {
    const [resolve, reject] = waiting.get(number);
    waiting.delete(number);
    if (error) reject(new Problem(`The network stopped: ${error}`));
    else resolve(answer);
  };
  worker.onerror = () => fail(new Problem("This browser cannot run the network. A newer one can."));
  let last = 0;
  const ask = (action, settings, moved = []) => new Promise((resolve, reject) => {
    waiting.set(++last, [resolve, reject]);
    worker.postMessage({ action, number: last, ...settings }, moved);
  });
  return { ask, end: () => worker.terminate() };
}

let workers = null;

/** The workers, each with the network; made at the first call, and again after one that failed. */
export function ready() {
  workers ??= start().catch((error) => { workers = null; throw error; });
  return workers;
}

async function start() {
  const offline = "The part that runs the network could not be loaded from cdn.jsdelivr.net. Is there a connection?";
  const from = ([name, integrity]) => download(RUNTIME + name, { integrity, mode: "cors", credentials: "omit" }, offline);
  const network = download(new URL("network.onnx", import.meta.url), {},
    "The network, network.onnx, is not beside this page. `make try` writes it.");
  const [script, wasm, weights] = await Promise.all([from(SCRIPT), from(WASM), network]);
  const all = Array.from({ length: numWorkers() }, startWorker);
  await Promise.all(all.map(({ ask }) => ask("start", { runtime: script, wasm, network: weights })));
  return all;
}

/** The tiles of one side: where each begins and ends, and with its halo. */
function spans(length) {
  return Array.from({ length: Math.ceil(length / TILE) }, (_, number) => {
    const [start, end] = [number * TILE, Math.min(length, (number + 1) * TILE)];
    return { start, end, first: Math.max(0, start - HALO), last: Math.min(length, end + HALO) };
  });
}

/**
 * Restores an ImageData.
 *
 * @param photo ImageData
 * @param damage {condition: Float32Array, orientation: 1..8}
 * @param onTile called with (ImageData of a tile, its column, its row, tiles done, of all), from the middle out
 * @param isWanted called before each tile; false ends the work
 */
export async function restore(photo, damage, onTile, isWanted) {
  const all = await ready();
  // The first row and column are repeated until the JPEG's blocks begin at multiples of 8.
  const [above, before] = gridOffset(damage.orientation, photo.height, photo.width).map((n) => (BLOCK - n) % BLOCK);
  const tiles = spans(photo.height + above).flatMap((rows) => spans(photo.width + before).map((columns) => [rows, columns]));
  const aside = (span, length) => span.start + span.end - length;
  const fromCentre = ([rows, columns]) => Math.hypot(aside(rows, photo.height), aside(columns, photo.width));
  tiles.sort((one, other) => fromCentre(one) - fromCentre(other)); // what is looked at first
  const total = tiles.length;
  let done = 0;
  const work = async ({ ask }) => {
    while (tiles.length && isWanted()) {
      const [rows, columns] = tiles.shift();
      const [width, height] = [columns.last - columns.first, rows.last - rows.first];
      const levels = cut(photo, rows.first - above, columns.first - before, height, width);
      const [top, left] = [Math.max(rows.start, above), Math.max(columns.start, before)];
      const inner = { top: top - rows.first, left: left - columns.first, height: rows.end - top, width: columns.end - left };
      const { pixels } = await ask("restore", { levels, width, height, inner, condition: damage.condition }, [levels.buffer]);
      if (isWanted()) onTile(new ImageData(pixels, inner.width), left - before, top - above, ++done, total);
    }
  };
  try {
    await Promise.all(all.map(work));
  } catch (error) { // such as a lack of memory: the next try begins anew
    for (const { end } of all) end();
    workers = null;
    throw error;
  }
}

/** A rectangle of a photo, RGBA; what lies above or left of it repeats its first row and column. */
function cut(photo, top, left, height, width) {
  const [source, target] = [new Uint32Array(photo.data.buffer), new Uint32Array(width * height)];
  for (let row = 0; row < height; row++) {
    const start = Math.max(0, top + row) * photo.width;
    const missing = Math.max(0, -left);
    target.fill(source[start], row * width, row * width + missing);
    target.set(source.subarray(start + left + missing, start + left + width), row * width + missing);
  }
  return new Uint8ClampedArray(target.buffer);
}
