// The page of `srcnn demo`: photos are uploaded to its own server, restored there, and compared here.

import { find, isRestored, look, strength } from "./viewer.js";

const settings = await (await fetch("api/settings")).json();
let photos = []; // {id, name, status: "uploading" | "ready" | "working" | "done" | "failed", ...}
let selected = null;
let work = null; // an AbortController while photos are restored

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

// ---- photos come and go

async function add(files) {
  if (!files.length) return;
  find("#problem").hidden = true;
  const added = Array.from(files, (file) => ({ file, name: file.name, status: "uploading", version: 0 }));
  photos.push(...added);
  for (const photo of added) {
    try {
      if (photo.file.size > settings.maxBytes) {
        throw new Error(`${photo.name}: larger than ${sizeOf(settings.maxBytes)}`);
      }
      await photo.file.slice(0, 1).arrayBuffer().catch(() => {
        throw new Error(`${photo.name}: is a folder, or cannot be read; choose the photos in it`);
      });
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
      if (line.waiting) find("#act").textContent = "Waiting for another photo …";
      if (line.done) onProgress(line.done);
      if (line.result) {
        Object.assign(photo, { status: "done", result: line.result, error: "", version: photo.version + 1 });
      }
    }
    if (photo.status !== "done") throw new Error("srcnn demo stopped answering; is it still running?");
    if (photo === selected) await select(photo);
  } catch (error) {
    const stopped = error.name === "AbortError";
    Object.assign(photo, { status: stopped ? status : "failed", error: stopped ? "" : error.message });
  }
}

function showProgress(fraction, total, number) {
  const act = find("#act");
  act.style.setProperty("--done", `${100 * fraction}%`);
  const what = total > 1 ? `Restoring ${number + 1} of ${total}` : "Restoring";
  act.textContent = `${what} · ${Math.round(100 * fraction)} %`;
}

async function download() {
  const done = photos.filter((photo) => photo.status === "done");
  try {
    find("#act").disabled = true;
    say("Preparing the download …");
    const asked = { ids: done.map((photo) => photo.id), strength: strength(), format: find("#format").value };
    const file = await askJson("api/download", JSON.stringify(asked));
    const link = Object.assign(document.createElement("a"), { href: file.url, download: file.name });
    link.click();
    const notes = file.notes.length ? ` Note: ${file.notes.join("; ")}.` : "";
    say(`Saved ${file.name}, ${sizeOf(file.bytes)}.${notes}`);
  } catch (error) {
    say(error.message, true);
  } finally {
    find("#act").disabled = false;
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
  show();
  return look(photo, () => say("This photo is no longer here; add it again.", true));
}

function show() {
  const isWorking = work !== null;
  const state = !selected ? "start" : isRestored(selected) ? "done" : "ready";
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
  for (const control of document.querySelectorAll("aside input, aside select")) control.disabled = isWorking;
  find("#stop").hidden = !isWorking;
  find("#act").disabled = isWorking;
  if (!isWorking) {
    find("#act").textContent = numReady ? (photos.length > 1 && numReady > 1 ? `Restore ${numReady} photos` : "Restore")
      : numDone > 1 ? `Download ${numDone} photos` : "Download";
    find("#act").hidden = !numReady && !numDone;
  }
  if (selected.status === "done") say(outcome(selected));
  else say(selected.error ?? "", true);
  find("#degrade").hidden = isWorking || selected.status !== "done" || !selected.result.unchanged;
}

function outcome({ result, width, name }) {
  if (result.unchanged) return `${name} shows no damage worth repairing, so it is left as it is.`;
  if (result.gain) {
    const [before, after] = result.gain.map((gain) => gain.toFixed(1));
    return "A copy was saved as a JPEG of quality 20 and restored from that. Likeness to your photo: "
      + `${before} dB before, ${after} dB after (PSNR, more is better).`;
  }
  const restored = result.network ? `Restored by the network ${result.network}.` : "No damage to repair.";
  if (result.width === width) return `Drag the line to compare. ${restored}`;
  return `Now ${result.width} × ${result.height} pixels. ${restored}`
    + " Before is the photo enlarged the usual way (bicubic).";
}

function showList() {
  const list = find("#list");
  list.hidden = photos.length < 2;
  const items = photos.map((photo) => (photo.item ??= newItem(photo)));
  if (items.length !== list.children.length || items.some((item, number) => item !== list.children[number])) {
    list.replaceChildren(...items); // only then: it takes the focus away
  }
  photos.forEach(showItem);
}

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function newItem(photo) {
  const entry = element("button", { type: "button" }, element("span", { className: "blank" }),
    element("b", { textContent: photo.name }), element("i"));
  entry.onclick = () => (photo.id ? select(photo) : say(photo.error, true));
  const cross = element("button", { type: "button", className: "remove", textContent: "×" });
  cross.onclick = () => remove(photo);
  cross.setAttribute("aria-label", `Remove ${photo.name}`);
  return element("li", {}, entry, cross);
}

function showItem(photo) {
  const [entry, cross] = photo.item.children;
  const words = { uploading: "reading …", ready: photo.found?.split(",")[0], working: "restoring …",
    done: photo.result?.unchanged ? "left as it is" : photo.result?.width > photo.width ? "enlarged" : "restored" };
  entry.className = `entry ${photo.status}`;
  entry.title = photo.error || photo.name;
  entry.setAttribute("aria-current", photo === selected);
  entry.querySelector("i").textContent = photo.error?.replace(`${photo.name}: `, "") || words[photo.status];
  const blank = entry.querySelector(".blank");
  if (blank && photo.id) blank.replaceWith(element("img", { alt: "", src: `api/photos/${photo.id}/before?side=300` }));
  else if (blank) blank.textContent = photo.error ? "!" : "";
  cross.disabled = photo.status === "working";
}

// ---- what the visitor does

find("#privacy").textContent = settings.isLocal
  ? "Runs on this computer. Your photos are sent nowhere."
  : `Photos go to ${location.hostname} only, and are deleted when you leave.`;
find("#limits").textContent =
  `${settings.kinds}; up to ${sizeOf(settings.maxBytes)} and ${settings.maxMegapixels} megapixels`;
find("#network").append(...settings.networks.map((name, number) => new Option(
  number === 0 ? "Best" : number === 1 ? "Fast" : name, name)));

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
for (const control of document.querySelectorAll("input[name=scale], #network")) {
  control.onchange = () => { // what was done is to be done anew
    for (const photo of photos) if (photo.id) Object.assign(photo, { status: "ready", error: "" });
    select(selected);
  };
}

let dragged = 0;
document.ondragenter = () => { dragged += 1; find("#dropping").hidden = false; };
document.ondragleave = () => { dragged -= 1; find("#dropping").hidden = dragged > 0; };
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  dragged = 0;
  find("#dropping").hidden = true;
  add([...event.dataTransfer.files]);
};
window.addEventListener("pagehide", () => forget(photos));
window.addEventListener("pageshow", (event) => event.persisted && location.reload());
