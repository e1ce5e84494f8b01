// The page of `srcnn demo`: photos are uploaded to its own server, restored there, and compared here.

const find = (query) => document.querySelector(query);
const LOUPE_ZOOM = 4;
const NO_ZOOM = "fit";

const settings = await (await fetch("api/settings")).json();
let photos = []; // {id, name, status: "uploading" | "ready" | "working" | "done" | "failed", ...}
let selected = null;
let work = null; // an AbortController while photos are restored
const view = { x: 0, y: 0, zoom: 1, pictures: null, loupe: null, fetched: 0 };

// ---- the server

async function ask(path, content, signal) {
  let answer;
  try {
    answer = await fetch(path, { method: "POST", body: content, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("srcnn demo does not answer; is it still running?");
  }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}

async function askJson(path, content) {
  const found = await (await ask(path, content)).json();
  if (found.error) throw new Error(found.error); // of a photo, where the request itself was fine
  return found;
}

async function* linesOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function loadPicture(photo, which, query) {
  const image = new Image();
  image.src = `api/photos/${photo.id}/${which}?${new URLSearchParams({ ...query, version: photo.version })}`;
  await image.decode();
  return image;
}

// ---- photos come and go

async function add(files) {
  if (!files.length) return;
  find("#problem").hidden = true;
  const added = Array.from(files, (file) => ({ file, name: file.name, status: "uploading", version: 0 }));
  photos.push(...added);
  for (const photo of added) {
    try {
      if (photo.file.size > settings.maxBytes) throw new Error(`${photo.name}: larger than ${sizeOf(settings.maxBytes)}`);
      const about = await askJson(`api/photos?${new URLSearchParams({ name: photo.name })}`, photo.file);
      Object.assign(photo, about, { status: "ready", file: null });
      if (!photos.includes(photo)) forget([photo]); // removed meanwhile
      else if (!selected) select(photo);
    } catch (error) {
      Object.assign(photo, { status: "failed", error: error.message, file: null });
    }
    show();
  }
  if (photos.length && photos.every((photo) => photo.status === "failed")) {
    find("#problem").textContent = photos.map((photo) => photo.error).join("\n");
    find("#problem").hidden = false;
    photos = [];
    show();
  }
}

function forget(some) {
  const ids = some.map((photo) => photo.id).filter(Boolean);
  if (ids.length) navigator.sendBeacon("api/forget", JSON.stringify({ ids }));
}

function remove(photo) {
  photos = photos.filter((other) => other !== photo);
  forget([photo]);
  if (selected === photo) select(photos.find((other) => other.id) ?? null);
  if (!selected) photos = [];
  show();
}

function startOver() {
  work?.abort();
  forget(photos);
  photos = [];
  select(null);
}

// ---- restoring

const option = (name) => find(`input[name=${name}]:checked`).value;

async function restoreAll(degrade = null) {
  work = new AbortController();
  const waiting = degrade ? [selected] : photos.filter((photo) => photo.status === "ready");
  for (const [number, photo] of waiting.entries()) {
    await restore(photo, degrade, (done) => showProgress((number + done) / waiting.length, waiting.length, number));
    if (work.signal.aborted) break;
  }
  work = null;
  if (selected?.status !== "done") select(waiting.find((photo) => photo.status === "done") ?? selected);
  show();
}

async function restore(photo, degrade, onProgress) {
  const status = photo.status;
  photo.status = "working";
  onProgress(0);
  show();
  try {
    const asked = { network: find("#network").value, scale: Number(option("scale")), degrade };
    const answer = await ask(`api/photos/${photo.id}/restore`, JSON.stringify(asked), work.signal);
    for await (const line of linesOf(answer)) {
      if (line.error) throw new Error(line.error);
      if (line.done) onProgress(line.done);
      if (line.result) Object.assign(photo, { status: "done", result: line.result, error: "", version: photo.version + 1 });
    }
    if (photo.status !== "done") throw new Error("srcnn demo stopped answering; is it still running?");
    if (photo === selected) await lookAtResult(photo);
  } catch (error) {
    const stopped = error.name === "AbortError";
    Object.assign(photo, { status: stopped ? status : "failed", error: stopped ? "" : error.message });
  }
}

function showProgress(fraction, total, number) {
  const act = find("#act");
  act.style.setProperty("--done", `${100 * fraction}%`);
  const what = total > 1 ? `Restoring ${number + 1} of ${total}` : "Restoring";
  act.textContent = `${what} … ${Math.round(100 * fraction)} %`;
}

async function download() {
  const done = photos.filter((photo) => photo.status === "done");
  try {
    say("Preparing the download …");
    const asked = { ids: done.map((photo) => photo.id), strength: strength(), format: find("#format").value };
    const file = await askJson("api/download", JSON.stringify(asked));
    const link = Object.assign(document.createElement("a"), { href: file.url, download: file.name });
    link.click();
    const notes = file.notes.length ? ` Note: ${file.notes.join("; ")}.` : "";
    say(`Saved ${file.name}, ${sizeOf(file.bytes)}.${notes}`);
  } catch (error) {
    say(error.message, true);
  }
}

// ---- what is shown

function sizeOf(bytes) {
  const megabytes = bytes / (1 << 20);
  return megabytes < 1 ? `${Math.ceil(bytes / 1024)} KB` : `${Number(megabytes.toFixed(1))} MB`;
}

function say(text, isProblem = false) {
  find("#said").textContent = text;
  find("#said").classList.toggle("problem", isProblem && Boolean(text));
}

function select(photo) {
  selected = photo;
  view.pictures = null;
  if (photo?.status === "done") lookAtResult(photo);
  else if (photo?.id) lookAtUpload();
  show();
}

function show() {
  const isWorking = work !== null;
  const state = !selected ? "start" : selected.status === "done" ? "done" : "ready";
  Object.assign(document.body.dataset, { state, working: isWorking });
  find("#start").hidden = Boolean(selected);
  find("#work").hidden = !selected;
  showList();
  if (!selected) return;
  const { name, width, height, kind, bytes, found } = selected;
  find("#name").textContent = name;
  find("#facts").textContent = `${width} × ${height} · ${kind} · ${sizeOf(bytes)} · ${found}`;
  const numReady = photos.filter((photo) => photo.status === "ready").length;
  const numDone = photos.filter((photo) => photo.status === "done").length;
  for (const control of document.querySelectorAll("aside input, aside select, #more")) control.disabled = isWorking;
  find("#stop").hidden = !isWorking;
  find("#act").disabled = isWorking;
  if (!isWorking) {
    find("#act").textContent = numReady ? (photos.length > 1 && numReady > 1 ? `Restore ${numReady} photos` : "Restore")
      : numDone > 1 ? `Download ${numDone} photos` : "Download";
    find("#act").hidden = !numReady && !numDone;
  }
  if (selected.status === "done") say(outcome(selected));
  else say(selected.error ?? "", true);
  const isLeft = state === "done" && selected.result.unchanged;
  find("#degrade").hidden = !isLeft || isWorking;
  find("#strength").disabled ||= isLeft;
}

function outcome({ result, width, name }) {
  if (result.unchanged) return `${name} shows no damage worth repairing, so it is left as it is.`;
  if (result.gain) {
    const [before, after] = result.gain.map((gain) => gain.toFixed(1));
    return `A copy was saved as a JPEG of quality 20 and restored from that. Likeness to your photo: ${before} dB before, `
      + `${after} dB after (PSNR, more is better).`;
  }
  const restored = result.network ? `Restored by the network ${result.network}.` : "No damage to repair.";
  if (result.width === width) return `Drag the line to compare. ${restored}`;
  return `Now ${result.width} × ${result.height} pixels. ${restored} Before is the photo enlarged the usual way (bicubic).`;
}

function showList() {
  const list = find("#list");
  list.hidden = photos.length < 2;
  list.replaceChildren(...photos.map((photo) => {
    const item = document.createElement("li");
    const entry = Object.assign(document.createElement("button"), { type: "button", className: `entry ${photo.status}` });
    const words = { uploading: "reading …", ready: photo.found?.split(",")[0], working: "restoring …", done: "restored" };
    if (photo.result?.unchanged) words.done = "left as it is";
    if (photo.result && photo.status === "done" && photo.result.width > photo.width) words.done = "enlarged";
    const picture = photo.id ? Object.assign(new Image(), { alt: "", src: `api/photos/${photo.id}/before?side=300` })
      : Object.assign(document.createElement("span"), { className: "blank", textContent: photo.error ? "!" : "" });
    const reason = photo.error?.replace(`${photo.name}: `, "") ?? "";
    entry.append(picture, Object.assign(document.createElement("b"), { textContent: photo.name }),
      Object.assign(document.createElement("i"), { textContent: photo.error ? reason : words[photo.status] }));
    entry.title = photo.error || photo.name;
    entry.setAttribute("aria-current", photo === selected);
    entry.onclick = () => (photo.id ? select(photo) : say(photo.error, true));
    const cross = Object.assign(document.createElement("button"),
      { type: "button", className: "remove", textContent: "×", onclick: () => remove(photo), disabled: work !== null });
    cross.setAttribute("aria-label", `Remove ${photo.name}`);
    item.append(entry, cross);
    return item;
  }));
}

// ---- looking: a part of the photo on the stage, the loupe, and the whole beside it

const strength = () => Number(find("#strength").value) / 100;
const isDone = () => selected?.status === "done" && view.pictures?.after;
const photoSize = () => (selected?.status === "done" ? selected.result : selected);
const clamp = (value, least, most) => Math.max(least, Math.min(most, value));

async function lookAtUpload() {
  const photo = selected;
  view.zoom = NO_ZOOM;
  fitStage(photo);
  const before = await loadPicture(photo, "before", { side: 1600 });
  if (photo !== selected || photo.status === "done") return;
  view.pictures = { before, x: 0, y: 0, width: photo.width, height: photo.height };
  draw();
}

// A photo that is not as high as the stage gets a lower one.
function fitStage({ height }) {
  find("#stage").style.maxHeight = `${Math.max(540, height)}px`;
}

async function lookAtResult(photo) {
  const { place, width, height } = photo.result;
  fitStage(photo.result);
  const isSmall = width < find("#stage").clientWidth / 2 && height < find("#stage").clientHeight / 2;
  find(`input[name=zoom][value="${isSmall ? 2 : 1}"]`).checked = true;
  view.zoom = isSmall ? 2 : 1;
  view.loupe = { x: place[0], y: place[1] };
  const whole = await loadPicture(photo, "after", { side: 700 });
  find("#whole img").src = whole.src;
  await centre(...place);
  const { x, width: shown } = view.pictures;
  find("#divider").value = clamp((100 * (place[0] - x)) / shown, 10, 90);
  draw();
}

async function centre(x, y) {
  const { width, height } = photoSize();
  const start = (middle, shown, length) => Math.round(clamp(middle - shown / 2, 0, Math.max(0, length - shown)));
  view.x = start(x, find("#stage").clientWidth / scaleOf(), width);
  view.y = start(y, find("#stage").clientHeight / scaleOf(), height);
  await fetchPart();
}

function scaleOf() {
  const stage = find("#stage");
  const { width, height } = photoSize();
  return view.zoom === NO_ZOOM ? Math.min(stage.clientWidth / width, stage.clientHeight / height, 1) : view.zoom;
}

async function fetchPart() {
  const photo = selected;
  const number = ++view.fetched;
  const { width, height } = photoSize();
  let part = { x: 0, y: 0, width, height };
  let query = { side: 1600 };
  if (view.zoom !== NO_ZOOM) {
    const stage = find("#stage");
    part = { x: view.x, y: view.y, width: Math.min(width - view.x, Math.ceil(stage.clientWidth / view.zoom)),
      height: Math.min(height - view.y, Math.ceil(stage.clientHeight / view.zoom)) };
    query = part;
  }
  const [before, after] = await Promise.all(["before", "after"].map((which) => loadPicture(photo, which, query)));
  if (number !== view.fetched || photo !== selected) return; // there is something newer to see
  view.pictures = { before, after, ...part };
  show();
  draw();
}

function context(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
    Object.assign(canvas, { width: width * ratio, height: height * ratio });
  }
  const drawing = canvas.getContext("2d");
  drawing.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawing.clearRect(0, 0, width, height);
  return drawing;
}

function draw() {
  const canvas = find("#picture");
  const drawing = context(canvas);
  const pictures = view.pictures;
  if (!pictures) return;
  const shown = scaleOf();
  const [width, height] = [pictures.width * shown, pictures.height * shown];
  const left = Math.max(0, Math.round((canvas.clientWidth - width) / 2));
  const top = Math.max(0, Math.round((canvas.clientHeight - height) / 2));
  drawing.imageSmoothingEnabled = shown < 1;
  drawing.imageSmoothingQuality = "high";
  drawing.drawImage(pictures.before, left, top, width, height);
  canvas.setAttribute("aria-label", `${selected.name}, ${isDone() ? "before and after" : "as it came"}`);
  if (!isDone()) return;
  const [inner, innerHeight] = [Math.min(width, canvas.clientWidth), Math.min(height, canvas.clientHeight)];
  const border = left + (inner * Number(find("#divider").value)) / 100;
  drawing.save();
  drawing.beginPath();
  drawing.rect(border, 0, canvas.clientWidth, canvas.clientHeight);
  drawing.clip();
  drawing.globalAlpha = strength(); // over the photo before: the blend that the server writes
  drawing.drawImage(pictures.after, left, top, width, height);
  drawing.restore();
  Object.assign(find("#frame").style, { left: `${left}px`, top: `${top}px`, width: `${inner}px`, height: `${innerHeight}px` });
  find(".handle").style.left = `${find("#divider").value}%`;
  view.at = { left, top, shown };
  drawWindow();
  drawLoupe(drawing);
}

function drawWindow() {
  const { width, height } = photoSize();
  const { x, y, width: partWidth, height: partHeight } = view.pictures;
  const share = (part, all) => `${(100 * part) / all}%`;
  Object.assign(find(".window").style, { left: share(x, width), top: share(y, height), width: share(partWidth, width),
    height: share(partHeight, height) });
  find(".window").hidden = partWidth === width && partHeight === height;
}

async function drawLoupe(stage) {
  const canvas = find("#loupe canvas");
  const { width, height } = photoSize();
  const side = Math.min(canvas.clientHeight / Math.max(LOUPE_ZOOM, 2 * view.at.shown), width, height);
  const x = clamp(view.loupe.x - side / 2, 0, width - side);
  const y = clamp(view.loupe.y - side / 2, 0, height - side);
  const { left, top, shown } = view.at;
  const corner = [left + (x - view.pictures.x) * shown, top + (y - view.pictures.y) * shown, side * shown, side * shown];
  for (const [colour, wide] of [["#000a", 3], ["#fff", 1.5]]) {
    Object.assign(stage, { strokeStyle: colour, lineWidth: wide });
    stage.strokeRect(...corner);
  }
  const source = view.zoom === NO_ZOOM ? await loupePart(x, y, side) : view.pictures;
  if (!source) return;
  const drawing = context(canvas);
  const half = canvas.clientHeight;
  const place = [x - source.x, y - source.y, side, side];
  drawing.imageSmoothingEnabled = false;
  drawing.drawImage(source.before, ...place, 0, 0, half - 2, half);
  drawing.drawImage(source.before, ...place, half + 2, 0, half - 2, half);
  drawing.globalAlpha = strength();
  drawing.drawImage(source.after, ...place, half + 2, 0, half - 2, half);
}

// Where the stage shows the photo reduced, the loupe's pixels are fetched, one place at a time.
async function loupePart(x, y, side) {
  const wanted = { x: Math.floor(x), y: Math.floor(y) };
  const { width, height } = photoSize();
  wanted.width = Math.min(Math.ceil(side) + 1, width - wanted.x);
  wanted.height = Math.min(Math.ceil(side) + 1, height - wanted.y);
  if (view.isFetchingLoupe) return null;
  view.isFetchingLoupe = true;
  try {
    const [before, after] = await Promise.all(["before", "after"].map((which) => loadPicture(selected, which, wanted)));
    return { before, after, ...wanted };
  } finally {
    view.isFetchingLoupe = false;
  }
}

// ---- what the visitor does

find("#privacy").textContent = settings.isLocal
  ? "Runs on this computer. Your photos are sent nowhere."
  : `Photos go to ${location.hostname} only, and are deleted when you leave.`;
find("#limits").textContent = `${settings.kinds}; up to ${sizeOf(settings.maxBytes)} and ${settings.maxMegapixels} megapixels`;
find("#network").append(...settings.networks.map((name, number) => new Option(
  number === 0 ? "Automatic" : name.startsWith("unet") ? `${name} (slow, stronger)` : name, name)));

find("#files").onchange = (event) => {
  add([...event.target.files]);
  event.target.value = "";
};
find("#more").onclick = () => find("#files").click();
find("#again").onclick = startOver;
find("#example").onclick = async () => {
  const picture = await (await fetch("example.jpg")).blob();
  await add([new File([picture], "example.jpg")]);
  if (selected?.status === "ready") restoreAll();
};
find("#act").onclick = () => (photos.some((photo) => photo.status === "ready") ? restoreAll() : download());
find("#stop").onclick = () => work?.abort();
find("#degrade").onclick = () => restoreAll(20);
find("#divider").oninput = draw;
find("#strength").oninput = () => {
  find("#strength-value").textContent = `${find("#strength").value} %`;
  draw();
};
for (const control of document.querySelectorAll("input[name=scale], #network")) {
  control.onchange = () => { // what was done is to be done anew
    for (const photo of photos) if (photo.id) Object.assign(photo, { status: "ready", error: "" });
    select(selected);
  };
}
for (const control of document.querySelectorAll("input[name=zoom]")) {
  control.onchange = () => {
    view.zoom = control.value === NO_ZOOM ? NO_ZOOM : Number(control.value);
    centre(view.loupe.x, view.loupe.y);
  };
}
find("#divider").onpointermove = (event) => {
  const box = find("#stage").getBoundingClientRect();
  view.loupe = { x: view.pictures.x + (event.clientX - box.left - view.at.left) / view.at.shown,
    y: view.pictures.y + (event.clientY - box.top - view.at.top) / view.at.shown };
  draw();
};

function moveTo(x, y) {
  view.loupe = { x, y };
  centre(x, y);
}
find("#whole").onpointerdown = (event) => find("#whole").setPointerCapture(event.pointerId);
for (const kind of ["pointerdown", "pointermove"]) {
  find("#whole").addEventListener(kind, (event) => {
    if (!event.buttons) return;
    const box = find("#whole").getBoundingClientRect();
    const { width, height } = photoSize();
    moveTo(((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height);
  });
}
find("#whole").onkeydown = (event) => {
  const [across, down] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
  if (across === undefined) return;
  event.preventDefault();
  const { x, y, width, height } = view.pictures;
  moveTo(x + width / 2 + (across * width) / 4, y + height / 2 + (down * height) / 4);
};

let dragged = 0;
document.ondragenter = () => { dragged += 1; find("#dropping").hidden = false; };
document.ondragleave = () => { dragged -= 1; find("#dropping").hidden = dragged > 0; };
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  dragged = 0;
  find("#dropping").hidden = true;
  if (!work) add([...event.dataTransfer.files]);
};
new ResizeObserver(() => (isDone() ? fetchPart() : draw())).observe(find("#stage"));
window.addEventListener("pagehide", () => forget(photos));
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
