// Restores tiles with ONNX Runtime, one after the other, so that the page stays alive.

let session = null;
let tensor = null;

const actions = {
  /** The runtime and the network, as bytes: this thread asks the net for nothing. */
  async start({ runtime, wasm, network }) {
    const address = URL.createObjectURL(new Blob([runtime], { type: "text/javascript" }));
    const ort = await import(address);
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = 1; // tiles side by side in several workers need no shared memory
    session = await ort.InferenceSession.create(new Uint8Array(network), { executionProviders: ["wasm"] });
    tensor = (numbers, shape) => new ort.Tensor("float32", numbers, shape);
    return {};
  },

  /** RGBA levels of a tile with its halo -> those of `inner` in it, restored. */
  async restore({ levels, width, height, inner, condition }) {
    const planes = new Float32Array(3 * width * height);
    for (let pixel = 0, size = width * height; pixel < size; pixel++) {
      for (let plane = 0; plane < 3; plane++) planes[plane * size + pixel] = levels[4 * pixel + plane] / 255;
    }
    const result = await session.run({
      input: tensor(planes, [1, 3, height, width]),
      condition: tensor(condition, [1, condition.length]),
    });
    const restored = result.output.data;
    const pixels = new Uint8ClampedArray(4 * inner.width * inner.height); // rounds and clips
    for (let row = 0, to = 0; row < inner.height; row++) {
      for (let column = 0; column < inner.width; column++, to += 4) {
        const from = (inner.top + row) * width + inner.left + column;
        for (let plane = 0; plane < 3; plane++) pixels[to + plane] = 255 * restored[plane * width * height + from];
        pixels[to + 3] = levels[4 * from + 3];
      }
    }
    result.output.dispose();
    return { pixels };
  },
};

let last = Promise.resolve(); // one after the other: a session computes one tile at a time
self.onmessage = ({ data }) => { last = last.then(() => answerTo(data)); };

async function answerTo({ action, number, ...settings }) {
  try {
    const answer = await actions[action](settings);
    self.postMessage({ number, ...answer }, answer.pixels ? [answer.pixels.buffer] : []);
  } catch (error) {
    self.postMessage({ number, error: error?.message ?? String(error) });
  }
}
