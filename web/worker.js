// The model, in a thread of its own so that the page stays alive: opens the export beside it, then answers files.
// app.js starts it from a blob, because only such a worker is bound by the page's Content-Security-Policy.

import { UnreadableImageError, decode } from "./decode.js";
import { headMask, heatMap, overlay } from "./heat.js";
import { normalised, preprocessingOf, resize } from "./preprocess.js";
import { checkTrust, judge, labelsOf, pictureFault } from "./trust.js";
import * as ort from "./vendor/ort.wasm.bundle.min.mjs";

const at = (path) => new URL(path, import.meta.url);

/** Fetch a file of this site, telling how far it is. */
async function bytesOf(path, size, tell) {
  const response = await fetch(at(path));
  if (!response.ok) throw new Error(`${path} is missing (${response.status})`);
  const content = new Uint8Array(size);
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    if (loaded + value.length > size) throw new Error(`${path} is not the file that export.json describes`);
    content.set(value, loaded);
    loaded += value.length;
    tell({ loaded, size });
  }
  return content.subarray(0, loaded);
}

/** onnxruntime-web itself, packed by build.py: 14 MB become under 4, whatever the server. */
async function runtime() {
  const path = "vendor/ort-wasm-simd-threaded.wasm.gz";
  const response = await fetch(at(path));
  if (!response.ok) throw new Error(`${path} is missing (${response.status})`);
  const content = new Uint8Array(await response.arrayBuffer());
  if (content[0] !== 0x1f) return content; // a server called it an encoding, so that the browser has unpacked it
  const unpacked = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked).arrayBuffer());
}

const jsonOf = async (path) => {
  const response = await fetch(at(path));
  if (!response.ok) throw new Error(`${path} is missing (${response.status})`);
  return response.json();
};

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

const MAPS = ["grad_cam", "layer_cam"]; // outputs that hold the cells of heat maps, of a model without a decoder
const NO_PLACE = "notumor"; // what is everywhere or nowhere has no map

async function open() {
  const { form, trusted, colours } = await jsonOf("page.json");
  const [config, record] = await Promise.all([jsonOf("model/config.json"), jsonOf("model/export.json")]);
  const trust = trusted ? await jsonOf("model/trust.json") : null;
  if (trust) checkTrust(trust, record, form);
  const entry = record.files[form];
  const network = await bytesOf(`model/${entry.file}`, entry.size_bytes, (progress) => {
    postMessage({ kind: "progress", ...progress });
  });
  // a plain http address has no crypto.subtle; there only the length is checked
  const sha256 = self.crypto?.subtle ? hex(await crypto.subtle.digest("SHA-256", network)) : entry.sha256;
  if (network.length !== entry.size_bytes || sha256 !== entry.sha256) {
    throw new Error(`${entry.file} is not the file that export.json describes`);
  }
  ort.env.wasm.wasmBinary = await runtime();
  ort.env.wasm.numThreads = 1; // more need shared memory, and workers that the page's policy does not bind
  ort.env.logLevel = "error"; // a warning, that `explain` may be given, is none for visitors
  const session = await ort.InferenceSession.create(network, { executionProviders: ["wasm"], logSeverityLevel: 3 });
  return { session, trust, colours, labels: labelsOf(config), preprocessing: preprocessingOf(config) };
}

const opened = open();
opened.then(
  () => postMessage({ kind: "ready" }),
  (error) => postMessage({ kind: "failed", message: error.message }),
);

/** Draw the heat map of each class that has a place: by name, RGBA at the size of the model's input. */
function overlays(outputs, seen, { probabilities }, labels, colours) {
  const cells = (outputs.decoder ? ["decoder"] : MAPS).map((name) => outputs[name]).filter(Boolean);
  if (!cells.length) return null;
  const head = headMask(seen);
  const highest = Math.max(...Object.values(probabilities));
  const drawn = labels.map((name, place) => [name, place]).filter(([name]) => name !== NO_PLACE).map(([name, place]) => [
    name, overlay(seen, heatMap(cells, place, seen), head, probabilities[name] / highest, colours),
  ]);
  return { width: seen.width, height: seen.height, pixels: Object.fromEntries(drawn) };
}

async function answer({ session, trust, labels, preprocessing, colours }, file, withMaps) {
  const started = performance.now();
  const picture = await decode(file);
  const { width, height, interpolation } = preprocessing;
  const seen = resize(picture, width, height, interpolation);
  const input = new ort.Tensor("float32", normalised(seen, preprocessing), [1, 3, height, width]);
  const fault = trust ? pictureFault(picture) : null;
  const prepared = performance.now();
  const outputs = await session.run({ pixel_values: input });
  const ran = performance.now();
  const judged = judge(labels, outputs.logits.data, outputs.features?.data ?? null, fault, trust);
  return {
    ...judged,
    maps: withMaps ? overlays(outputs, seen, judged, labels, colours) : null,
    width: picture.width,
    height: picture.height,
    milliseconds: { prepare: prepared - started, network: ran - prepared },
  };
}

let queue = Promise.resolve(); // a session runs one picture at a time
self.onmessage = ({ data: { id, file, withMaps } }) => {
  queue = queue.then(async () => {
    try {
      postMessage({ kind: "answer", id, answer: await answer(await opened, file, withMaps) });
    } catch (error) {
      const unreadable = error instanceof UnreadableImageError;
      postMessage({ kind: unreadable ? "unreadable" : "broken", id, message: error.message });
    }
  });
};
