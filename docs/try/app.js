// The page: a photo in, restored, compared, and out.

import { damageOf, readDamage, CONDITION_SIZE } from "./jpeg.js";
import { Problem, ready, restore } from "./restorer.js";
import { Viewer } from "./viewer.js";

const MAX_PIXELS = 50e6; // more than most browsers can hold, and minutes of work
const GOOD_QUALITY = 91; // from which there is hardly anything to restore
const JPEG_QUALITY = 0.95; // of the result
const UNKNOWN = { quality: null, condition: new Float32Array(CONDITION_SIZE), orientation: 1 };

const $ = (id) => document.getElementById(id);
const viewer = new Viewer($("stage"), showScale);
let current = null; // the photo that is shown: {name, photo, told}
let run = 0; // counts the works begun; an older one ends itself

function setState(state) {
  document.body.dataset.state = state; // start, working, done, failed
}

function say(text, isProblem = false) {
  $("status").textContent = text;
  $("status").classList.toggle("problem", isProblem);
}

/** Decodes a file, upright and in sRGB, shows it and restores it. */
async function open(file) {
  const mine = ++run;
  say("");
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const photo = await decode(file);
    if (mine !== run) return;
    current = { name: file.name.replace(/\.[^.]*$/, "") || "photo", photo, told: readDamage(bytes) };
    setState("working");
    viewer.show(photo);
    $("strength-auto").checked = true;
    describe();
  } catch (error) {
    if (mine === run) fail(error);
    return;
  }
  await work();
}

async function decode(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Problem(`${file.name}: not a picture that this browser can read. JPEG, PNG and WebP are.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new Problem(`${file.name} has ${millions(width * height)} megapixels; this page takes ${millions(MAX_PIXELS)}. `
      + "The command below has no such limit.");
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** Restores the photo that is shown; a failure is told on the page. */
async function work() {
  const mine = ++run;
  try {
    await restoreCurrent(() => mine === run);
  } catch (error) {
    if (mine === run) fail(error);
  }
}

async function restoreCurrent(isWanted) {
  const { photo } = current;
  setState("working");
  showProgress(0, "Getting the network ready");
  await ready();
  if (!isWanted()) return;
  const started = performance.now();
  showProgress(0, "Restoring");
  await restore(photo, chosenDamage(), (tile, column, row, done, total) => {
    viewer.put(tile, column, row);
    const left = ((performance.now() - started) / done) * (total - done);
    showProgress(done / total, left > 1500 ? `about ${seconds(left)} left` : "");
  }, isWanted);
  if (!isWanted()) return;
  say(`Restored in ${seconds(performance.now() - started)}.`);
  setState("done");
}

function chosenDamage() {
  const { told } = current;
  const quality = Number(document.querySelector("[name=strength]:checked").value);
  return quality ? { ...damageOf(quality), orientation: told?.orientation ?? 1 } : told ?? UNKNOWN;
}

function describe() {
  const { name, photo, told } = current;
  $("photo-name").textContent = name;
  $("photo-size").textContent = `${photo.width} × ${photo.height}`;
  const found = !told ? "no JPEG, so its history is unknown"
    : told.quality >= GOOD_QUALITY ? `JPEG quality ${told.quality}, good already: expect little`
    : `JPEG quality ${told.quality} of 100`;
  $("photo-quality").textContent = found;
}

function fail(error) {
  console.error(error);
  run++;
  if (document.body.dataset.state === "working") setState("failed");
  const text = error instanceof Problem ? error.message : `That did not work: ${error?.message ?? error}`;
  say(text, true);
}

function showProgress(share, text) {
  $("progress").style.setProperty("--share", share);
  $("progress").setAttribute("aria-valuenow", Math.round(100 * share));
  say(share ? `Restoring, ${Math.round(100 * share)} %${text && `, ${text}`}` : `${text} …`);
}

function showScale(scale, fit) {
  for (const button of document.querySelectorAll("[data-scale]")) {
    const wanted = Number(button.dataset.scale) || (fit < 1 ? fit : 0); // of a small photo 1:1 is all of it
    button.setAttribute("aria-pressed", Math.abs(wanted - scale) < 0.005);
  }
}

async function save(type) {
  const canvas = viewer.restored;
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, `image/${type}`, JPEG_QUALITY));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${current.name}-restored.${type === "jpeg" ? "jpg" : type}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

async function openExample() {
  const answer = await fetch("example.jpg");
  open(new File([await answer.blob()], "example.jpg", { type: "image/jpeg" }));
}

const millions = (pixels) => Math.round(pixels / 1e6);
const seconds = (milliseconds) => milliseconds < 9500 ? `${(milliseconds / 1000).toFixed(1)} s`
  : milliseconds < 90_000 ? `${Math.round(milliseconds / 1000)} s` : `${Math.round(milliseconds / 60_000)} min`;

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) open(target.files[0]);
  target.value = ""; // the same file can be chosen again
});
for (const button of document.querySelectorAll("[data-choose]")) button.addEventListener("click", () => $("file").click());
$("example").addEventListener("click", () => openExample().catch(fail));
$("save-png").addEventListener("click", () => save("png"));
$("save-jpeg").addEventListener("click", () => save("jpeg"));
$("strength").addEventListener("change", work);
$("again").addEventListener("click", work);
for (const button of document.querySelectorAll("[data-scale]")) {
  button.addEventListener("click", () => viewer.zoom(Number(button.dataset.scale) || viewer.fit));
}
document.addEventListener("paste", ({ clipboardData }) => clipboardData?.files[0] && open(clipboardData.files[0]));
let depth = 0; // of the elements that a dragged file is over
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++depth > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --depth > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dragging");
  const file = event.dataTransfer.files[0];
  if (file) open(file);
});
