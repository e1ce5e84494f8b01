// A photo before and after: a part of it on the stage with a border between, the loupe, and the whole beside it.

export const find = (query) => document.querySelector(query);
export const isRestored = (photo) => photo?.status === "done" && !photo.result.unchanged;
export const strength = () => Number(find("#strength").value) / 100;

const WHOLE = "fit";
const LOUPE_ZOOM = 4;
const PREVIEW_SIDE = 1600; // pixels of a whole photo
const SMALL_SIDE = 700; // of the one beside the stage
const LEAST_HEIGHT = 540; // of the stage, in CSS pixels

const stage = find("#stage");
const divider = find("#divider");
const whole = find("#whole");
let photo = null;
let zoom = 1; // CSS pixels a pixel of the photo, or WHOLE
let corner = { x: 0, y: 0 }; // of the part that is shown, in pixels of the photo
let loupe = { x: 0, y: 0 }; // its middle
let shown = null; // what the stage has, {before, after, x, y, width, height}; no after where nothing is restored
let placed = null; // {left, top, scale}: where
let numFetched = 0;
let isFetching = false; // for the loupe
let hasMovedOn = false;
let tellLost = () => {};

/** Shows a photo {id, status, width, height, result, version}; `onLost` is called when its pixels cannot be had. */
export async function look(newPhoto, onLost) {
  photo = newPhoto;
  shown = null;
  tellLost = onLost;
  draw();
  if (photo?.id) await guarded(isRestored(photo) ? lookAtResult() : lookAtUpload());
}

async function guarded(loading) {
  const wanted = photo;
  try {
    await loading;
  } catch {
    if (wanted === photo) tellLost();
  }
}

async function loadPicture(which, query) {
  const image = new Image();
  image.src = `api/photos/${photo.id}/${which}?${new URLSearchParams({ ...query, version: photo.version })}`;
  await image.decode();
  return image;
}

const loadBoth = (query) => Promise.all(["before", "after"].map((which) => loadPicture(which, query)));
const size = () => (isRestored(photo) ? photo.result : photo);
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

async function lookAtUpload() {
  const wanted = photo;
  zoom = WHOLE;
  fitStage();
  const before = await loadPicture("before", { side: PREVIEW_SIDE });
  if (photo !== wanted || isRestored(photo)) return;
  shown = { before, x: 0, y: 0, width: photo.width, height: photo.height };
  draw();
}

async function lookAtResult() {
  const { place: [x, y], width, height } = photo.result;
  fitStage();
  zoom = width < stage.clientWidth / 2 && height < stage.clientHeight / 2 ? 2 : 1;
  find(`input[name=zoom][value="${zoom}"]`).checked = true;
  loupe = { x, y };
  whole.querySelector("img").src = (await loadPicture("after", { side: SMALL_SIDE })).src;
  await enlarge();
}

// The place under the loupe comes to the middle, and the border to it.
async function enlarge() {
  await centre(loupe.x, loupe.y);
  if (!shown) return;
  divider.value = clamp((100 * (loupe.x - shown.x)) / shown.width, 10, 90);
  draw();
}

// A photo that is not as high as the stage gets a lower one.
function fitStage() {
  stage.style.maxHeight = `${Math.max(LEAST_HEIGHT, size().height)}px`;
}

const scale = () => (zoom === WHOLE
  ? Math.min(stage.clientWidth / size().width, stage.clientHeight / size().height, 1) : zoom);

async function centre(x, y) {
  const start = (middle, part, length) => Math.round(clamp(middle - part / 2, 0, Math.max(0, length - part)));
  const { width, height } = size();
  corner = { x: start(x, stage.clientWidth / scale(), width), y: start(y, stage.clientHeight / scale(), height) };
  await fetchPart();
}

async function fetchPart() {
  numFetched += 1;
  const [number, wanted] = [numFetched, photo];
  const { width, height } = size();
  const part = zoom === WHOLE ? { x: 0, y: 0, width, height } : {
    ...corner, width: Math.min(width - corner.x, Math.ceil(stage.clientWidth / zoom)),
    height: Math.min(height - corner.y, Math.ceil(stage.clientHeight / zoom)) };
  const [before, after] = await loadBoth(zoom === WHOLE ? { side: PREVIEW_SIDE } : part);
  if (number !== numFetched || photo !== wanted) return; // there is something newer to see
  shown = { before, after, ...part };
  draw();
}

function cleared(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
    Object.assign(canvas, { width: width * ratio, height: height * ratio });
  }
  const drawing = canvas.getContext("2d");
  drawing.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawing.clearRect(0, 0, width, height);
  return drawing;
}

export function draw() {
  const canvas = find("#picture");
  const drawing = cleared(canvas);
  if (!shown) return;
  const factor = scale();
  const [width, height] = [shown.width * factor, shown.height * factor];
  const left = Math.max(0, Math.round((canvas.clientWidth - width) / 2));
  const top = Math.max(0, Math.round((canvas.clientHeight - height) / 2));
  placed = { left, top, scale: factor };
  drawing.imageSmoothingEnabled = factor < 1;
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(shown.before, left, top, width, height);
  canvas.setAttribute("aria-label", `${photo.name}, ${shown.after ? "before and after" : "as it came"}`);
  if (!shown.after) return;
  const [inner, innerHeight] = [Math.min(width, canvas.clientWidth), Math.min(height, canvas.clientHeight)];
  drawing.save();
  drawing.beginPath();
  drawing.rect(left + (inner * divider.value) / 100, 0, canvas.clientWidth, canvas.clientHeight);
  drawing.clip();
  drawing.globalAlpha = strength(); // over the photo before: the blend that the server writes
  drawing.drawImage(shown.after, left, top, width, height);
  drawing.restore();
  Object.assign(find("#frame").style, pixels({ left, top, width: inner, height: innerHeight }));
  find(".handle").style.left = `${divider.value}%`;
  drawWindow();
  drawLoupe(drawing);
}

const pixels = (box) => Object.fromEntries(Object.entries(box).map(([name, value]) => [name, `${value}px`]));

function drawWindow() {
  const { width, height } = size();
  const share = (part, all) => `${(100 * part) / all}%`;
  const frame = find(".window");
  Object.assign(frame.style, { left: share(shown.x, width), top: share(shown.y, height),
    width: share(shown.width, width), height: share(shown.height, height) });
  frame.hidden = shown.width === width && shown.height === height;
}

async function drawLoupe(drawing) {
  const canvas = find("#loupe canvas");
  const { width, height } = size();
  const side = Math.min(canvas.clientHeight / Math.max(LOUPE_ZOOM, 2 * placed.scale), width, height);
  const x = clamp(loupe.x - side / 2, 0, width - side);
  const y = clamp(loupe.y - side / 2, 0, height - side);
  const edge = side * placed.scale;
  const [left, top] = [placed.left + (x - shown.x) * placed.scale, placed.top + (y - shown.y) * placed.scale];
  for (const [strokeStyle, lineWidth] of [["#000a", 3], ["#fff", 1.5]]) {
    Object.assign(drawing, { strokeStyle, lineWidth });
    drawing.strokeRect(left, top, edge, edge);
  }
  const source = zoom === WHOLE ? await loupePart(x, y, side) : shown;
  if (!source) return;
  const half = canvas.clientHeight; // the canvas is twice as wide as high
  const magnified = cleared(canvas);
  const from = [x - source.x, y - source.y, side, side];
  magnified.imageSmoothingEnabled = false;
  magnified.drawImage(source.before, ...from, 0, 0, half - 2, half);
  magnified.drawImage(source.before, ...from, half + 2, 0, half - 2, half);
  magnified.globalAlpha = strength();
  magnified.drawImage(source.after, ...from, half + 2, 0, half - 2, half);
}

// Where the stage shows the photo reduced, the loupe's pixels are fetched, one place at a time.
async function loupePart(x, y, side) {
  if (isFetching) {
    hasMovedOn = true;
    return null;
  }
  const { width, height } = size();
  const part = { x: Math.floor(x), y: Math.floor(y) };
  part.width = Math.min(Math.ceil(side) + 1, width - part.x);
  part.height = Math.min(Math.ceil(side) + 1, height - part.y);
  isFetching = true;
  try {
    const [before, after] = await loadBoth(part);
    return { before, after, ...part };
  } catch {
    return null;
  } finally {
    isFetching = false;
    if (hasMovedOn) requestAnimationFrame(draw);
    hasMovedOn = false;
  }
}

function moveTo(x, y) {
  loupe = { x, y };
  guarded(centre(x, y));
}

divider.oninput = draw;
divider.onpointermove = (event) => {
  if (!shown) return;
  const box = stage.getBoundingClientRect();
  loupe = { x: shown.x + (event.clientX - box.left - placed.left) / placed.scale,
    y: shown.y + (event.clientY - box.top - placed.top) / placed.scale };
  draw();
};
find("#strength").oninput = () => {
  find("#strength-value").textContent = `${find("#strength").value} %`;
  draw();
};
for (const choice of document.querySelectorAll("input[name=zoom]")) {
  choice.onchange = () => {
    zoom = choice.value === WHOLE ? WHOLE : Number(choice.value);
    guarded(enlarge());
  };
}
whole.onpointerdown = (event) => {
  whole.setPointerCapture(event.pointerId);
  whole.onpointermove(event);
};
whole.onpointermove = (event) => {
  if (!event.buttons) return;
  const box = whole.getBoundingClientRect();
  const { width, height } = size();
  moveTo(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
};
whole.onkeydown = (event) => {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || !shown) return;
  event.preventDefault();
  moveTo(shown.x + (shown.width * (2 + step[0])) / 4, shown.y + (shown.height * (2 + step[1])) / 4);
};
new ResizeObserver(() => (shown?.after ? guarded(fetchPart()) : draw())).observe(stage);
