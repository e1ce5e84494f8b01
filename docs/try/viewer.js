// Two pictures over each other, a line between them that can be dragged, and zoom.

const MAX_SCALE = 8;
const STEP = 0.02; // of the width, that an arrow key moves the line

export class Viewer {
  /** @param stage an element with .before and .after, each with a canvas, and .divider */
  constructor(stage, onScale) {
    this.stage = stage;
    this.onScale = onScale;
    this.canvases = [...stage.querySelectorAll("canvas")];
    this.divider = stage.querySelector(".divider");
    this.pointers = new Map();
    this.split = 0.5;
    stage.addEventListener("pointerdown", (event) => this.press(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => this.release(event));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.divider.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.size && this.place()).observe(stage);
  }

  /** Shows a photo, an ImageData, as both pictures. */
  show(photo) {
    for (const canvas of this.canvases) {
      [canvas.width, canvas.height] = [photo.width, photo.height];
      canvas.getContext("2d").putImageData(photo, 0, 0);
    }
    this.size = [photo.width, photo.height];
    this.stage.style.setProperty("--ratio", photo.height / photo.width);
    this.stage.style.setProperty("--height", `${photo.height}px`);
    this.offset = [0, 0]; // of the photo's centre from that of the stage, CSS pixels
    this.split = 0.5;
    this.zoom(Math.min(1, this.fit) > 0.6 ? this.fit : 1);
  }

  /** Puts a part of the restored photo in its place. */
  put(tile, column, row) {
    this.canvases[1].getContext("2d").putImageData(tile, column, row);
  }

  get restored() { return this.canvases[1]; }

  /** CSS pixels to a pixel of the photo with which the whole of it is seen. */
  get fit() {
    return Math.min(1, this.stage.clientWidth / this.size[0], this.stage.clientHeight / this.size[1]);
  }

  /** Shows the photo at this scale; what is at `point`, from the stage's centre, stays there. */
  zoom(scale, point = [0, 0]) {
    const before = this.scale ?? scale;
    this.scale = Math.min(MAX_SCALE, Math.max(this.fit, scale));
    this.offset = this.offset.map((offset, axis) => point[axis] + ((offset - point[axis]) * this.scale) / before);
    this.place();
  }

  place() {
    const stage = [this.stage.clientWidth, this.stage.clientHeight];
    this.scale = Math.max(this.scale, this.fit);
    const shown = this.size.map((side) => side * this.scale);
    this.offset = this.offset.map((offset, axis) => {
      const free = Math.max(0, (shown[axis] - stage[axis]) / 2);
      return Math.min(free, Math.max(-free, offset));
    });
    const [x, y] = [0, 1].map((axis) => Math.round((stage[axis] - shown[axis]) / 2 + this.offset[axis]));
    for (const canvas of this.canvases) {
      canvas.style.transform = `translate(${x}px, ${y}px) scale(${this.scale})`;
      canvas.style.imageRendering = this.scale * devicePixelRatio >= 2 ? "pixelated" : "auto";
    }
    this.stage.classList.toggle("pans", shown.some((side, axis) => side > stage[axis] + 1));
    // The line stays on the photo where that is narrower than the stage.
    const [left, right] = [Math.max(0, x), Math.min(stage[0], x + shown[0])];
    this.line = { left, width: right - left };
    this.stage.style.setProperty("--split", `${left + this.split * (right - left)}px`);
    this.stage.style.setProperty("--left", `${Math.max(0, x)}px`);
    this.stage.style.setProperty("--right", `${stage[0] - Math.min(stage[0], x + shown[0])}px`);
    this.divider.setAttribute("aria-valuenow", Math.round(100 * this.split));
    this.onScale(this.scale, this.fit);
  }

  setSplit(split) {
    this.split = Math.min(1, Math.max(0, split));
    this.place();
  }

  at(event) {
    const box = this.stage.getBoundingClientRect();
    return [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
  }

  press(event) {
    if (event.target.closest("button")) return;
    this.stage.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.at(event));
    const isOnLine = Boolean(event.target.closest(".divider"));
    this.moves = isOnLine || !this.stage.classList.contains("pans") ? "line" : "photo";
    if (this.moves === "line" && !isOnLine) this.move(event);
  }

  move(event) {
    const last = this.pointers.get(event.pointerId);
    if (!last) return;
    const here = this.at(event);
    if (this.pointers.size === 2) {
      const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
      const apart = (point) => Math.max(1, Math.hypot(point[0] - other[0], point[1] - other[1]));
      this.zoom((this.scale * apart(here)) / apart(last), [0, 1].map((axis) => (here[axis] + other[axis]) / 2));
    } else if (this.moves === "line") {
      this.setSplit((here[0] + this.stage.clientWidth / 2 - this.line.left) / this.line.width);
    } else {
      this.offset = this.offset.map((offset, axis) => offset + here[axis] - last[axis]);
      this.place();
    }
    this.pointers.set(event.pointerId, here);
  }

  release(event) {
    this.pointers.delete(event.pointerId);
  }

  wheel(event) {
    if (!this.size || !(event.ctrlKey || event.metaKey || this.stage.classList.contains("pans"))) return;
    event.preventDefault();
    this.zoom(this.scale * 1.2 ** -Math.sign(event.deltaY), this.at(event));
  }

  key(event) {
    const move = { ArrowLeft: -STEP, ArrowRight: STEP, Home: -1, End: 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    this.setSplit(this.split + move);
  }
}
