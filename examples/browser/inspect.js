"use strict";
// Inspects images with the folder model/ that `flawsmith export MODEL --to onnx --out model` has written: README.md.
// `?check` after the address runs the test vectors of that folder; the title then says how many come out.

const FOLDER = "model/";
const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => ((x = Math.abs(x)) < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0)],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const halfToEven = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

// One axis: the image is resized, `length` of it is cut out from `start` on and put at `padding` of the input.
function axisOf(geometry, which, lengths) {
  const sizes = geometry.size, size = sizes[which], original = lengths[which];
  if (geometry.policy === "crop") {
    const resized = Math.floor(((geometry.resize ?? Math.max(...sizes)) * original) / Math.min(...lengths));
    return { original, resized, start: halfToEven((resized - size) / 2), length: size, padding: 0 };
  }
  if (geometry.policy === "letterbox") {
    const scale = Math.min(sizes[0] / lengths[0], sizes[1] / lengths[1]);
    const length = Math.min(Math.max(1, halfToEven(original * scale)), size);
    return { original, resized: length, start: 0, length, padding: Math.floor((size - length) / 2) };
  }
  return { original, resized: size, start: 0, length: size, padding: 0 };
}

// Antialiased as Pillow does it in 8 bits: integer weights, the result rounded. Pixels are RGB, row by row.
function resample(image, columns, axis, [support, weightOf]) {
  const { original, resized, start, length } = axis;
  const height = columns ? image.height : length, width = columns ? length : image.width;
  const rgb = new Uint8ClampedArray(3 * height * width), lines = columns ? height : width;
  const scale = original / resized, wide = Math.max(scale, 1), step = 3 * (columns ? 1 : image.width);
  for (let i = 0; i < length; i++) {
    const centre = (start + i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * wide + 0.5));
    const end = Math.min(original, Math.trunc(centre + support * wide + 0.5));
    const weights = [];
    for (let x = first; x < end; x++) weights.push(weightOf((x - centre + 0.5) * (1 / wide)));
    const sum = weights.reduce((a, b) => a + b);
    const whole = weights.map((w) => Math.trunc((w / sum) * 2 ** 22 + (w < 0 ? -0.5 : 0.5)));
    for (let line = 0; line < lines; line++) {
      const from = 3 * (columns ? line * image.width + first : first * image.width + line);
      const to = 3 * (columns ? line * width + i : i * width + line);
      for (let c = 0; c < 3; c++) {
        let total = 2 ** 21;
        for (let k = 0; k < whole.length; k++) total += whole[k] * image.rgb[from + k * step + c];
        rgb[to + c] = Math.floor(total / 2 ** 22);
      }
    }
  }
  return { height, width, rgb };
}

function prepare(geometry, image) {
  const [rows, columns] = [0, 1].map((which) => axisOf(geometry, which, [image.height, image.width]));
  const filter = FILTERS[geometry.interpolation];
  const small = resample(resample(image, true, columns, filter), false, rows, filter);
  const [height, width] = geometry.size, input = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++)
    for (let y = 0; y < small.height; y++)
      for (let x = 0; x < small.width; x++) {
        const value = small.rgb[3 * (y * small.width + x) + c] / 255;
        input[(c * height + y + rows.padding) * width + x + columns.padding] = (value - geometry.mean[c]) / geometry.std[c];
      }
  return input;
}

async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
  const rgb = new Uint8Array((data.length / 4) * 3).map((_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);
  return { height: bitmap.height, width: bitmap.width, rgb, bitmap };
}

async function inspect(session, facts, image) {
  const input = prepare(facts.geometry, image), { limit, review_limit } = facts.decision;
  const { map, score } = await session.run({ image: new ort.Tensor("float32", input, [1, 3, ...facts.geometry.size]) });
  const number = score.data[0];
  const verdict = number > limit ? "reject" : review_limit !== null && number > review_limit ? "review" : "pass";
  return { input, map: map.data, score: number, verdict };
}

function show({ map, score, verdict }, image, facts) {
  const canvas = document.querySelector("canvas"), context = canvas.getContext("2d"), [height, width] = facts.geometry.size;
  Object.assign(canvas, { width: image.width, height: image.height, hidden: false });
  context.drawImage(image.bitmap, 0, 0);
  if (facts.geometry.policy === "squash") {
    const peak = map.reduce((a, b) => Math.max(a, b)), low = facts.decision.map_limit, heat = new ImageData(width, height);
    map.forEach((level, i) => heat.data.set([255, 0, 0, level > low ? 60 + (140 * (level - low)) / (peak - low) : 0], 4 * i));
    const layer = new OffscreenCanvas(width, height);
    layer.getContext("2d").putImageData(heat, 0, 0);
    context.drawImage(layer, 0, 0, image.width, image.height);
  }
  const line = document.querySelector("#verdict");
  line.className = verdict;
  line.textContent = `${verdict}: score ${score.toPrecision(4)}, limit ${facts.decision.limit.toPrecision(4)}`;
}

const difference = (a, b) => (a.length === b.length ? a.reduce((most, v, i) => Math.max(most, Math.abs(v - b[i])), 0) : Infinity);

async function check(session, facts) {
  const file = async (name) => (await fetch(FOLDER + name)).blob();
  const floats = async (name) => new Float32Array(await (await file(name)).arrayBuffer());
  let right = 0;
  for (const vector of facts.test_vectors) {
    const { input, map, score, verdict } = await inspect(session, facts, await decode(await file(vector.image)));
    const { score: byScore, map: byMap, reference_size: size } = facts.tolerance;
    const factor = Math.max(1, Math.abs(score) / size, map.reduce((a, b) => Math.max(a, Math.abs(b)), 0) / size);
    right += verdict === vector.verdict && difference(input, await floats(vector.input)) < 1e-5 &&
      Math.abs(score - vector.score) <= factor * byScore && difference(map, await floats(vector.map)) <= factor * byMap;
  }
  document.title = `${right} of ${facts.test_vectors.length} test vectors come out`;
}

async function start() {
  ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
  const facts = await (await fetch(FOLDER + "decision.json")).json();
  if (facts.version > 1 || facts.decision.decides !== "score" || facts.geometry.region || facts.tiling)
    throw new Error("this example decides by the score of whole images; decision.json asks for more");
  const session = await ort.InferenceSession.create(FOLDER + facts.graph.file, { executionProviders: ["wasm"] });
  const drop = document.querySelector("#drop"), chooser = document.querySelector("input");
  const take = async (file) => { const image = await decode(file); show(await inspect(session, facts, image), image, facts); };
  const taken = (file) => file && take(file).catch(fail);
  chooser.onchange = () => taken(chooser.files[0]);
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => { event.preventDefault(); drop.classList.remove("over"); taken(event.dataTransfer.files[0]); };
  chooser.disabled = false;
  document.querySelector("#product").textContent = facts.product;
  if (location.search === "?check") await check(session, facts);
}

const fail = (error) => { document.title = document.querySelector("#verdict").textContent = `error: ${error.message}`; };
start().catch(fail);
