#!/usr/bin/env node
// An exported folder in Node, through transformers.js: `node web/transformers.mjs EXPORT_DIR IMAGE... [--dtype int8]`
// prints one JSON object an image. `openExport` is what a program of yours would use; it asks no network.
//
// transformers.js 4 knows neither timm_wrapper (its AutoModelForImageClassification refuses it) nor timm's image
// processor, and its own resampling is not Pillow's. So the model is opened as the plain PreTrainedModel, whose outputs
// are those of the file, and preprocess.js prepares the pixels.

import { readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { PreTrainedModel, RawImage, Tensor, env } from "@huggingface/transformers";

import { pixelValues, preprocessingOf } from "./preprocess.js";
import { DEFAULT_COVERAGE, checkTrust, judge, labelsOf, pictureFault } from "./trust.js";

const FORMS = { fp32: "onnx", int8: "onnx-int8" }; // transformers.js' dtype -> name in export.json

/**
 * Open a folder that `brain-tumor-mri export` wrote.
 * @param {string} folder
 * @param {"fp32"|"int8"} dtype which of its files.
 * @returns {Promise<(image: string|Blob) => Promise<object>>} answers a file, as `trust.judge` does.
 */
export async function openExport(folder, dtype = "fp32") {
  const json = async (name) => JSON.parse(await readFile(path.join(folder, name), "utf8"));
  const [config, record] = [await json("config.json"), await json("export.json")];
  const trust = await json("trust.json").catch((error) => {
    if (error.code === "ENOENT") return null;
    throw error;
  });
  if (trust) checkTrust(trust, record, FORMS[dtype]);
  const [labels, preprocessing] = [labelsOf(config), preprocessingOf(config)];
  env.allowRemoteModels = false;
  const whole = path.resolve(folder);
  env.localModelPath = path.dirname(whole);
  const settings = { ...config, model_type: "custom" }; // what transformers.js calls a network that it does not know
  const model = await PreTrainedModel.from_pretrained(path.basename(whole), { config: settings, dtype });

  return async (image) => {
    const picture = (await RawImage.read(image)).rgb();
    const values = pixelValues(picture, preprocessing);
    const input = new Tensor("float32", values, [1, 3, preprocessing.height, preprocessing.width]);
    const { logits, features } = await model({ pixel_values: input });
    return judge(labels, logits.data, features?.data ?? null, pictureFault(picture), trust);
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const options = { dtype: { type: "string", default: "fp32" } };
  const { values, positionals } = parseArgs({ options, allowPositionals: true });
  const [folder, ...images] = positionals;
  if (!images.length || !(values.dtype in FORMS)) {
    console.error(`usage: node transformers.mjs EXPORT_DIR IMAGE... [--dtype ${Object.keys(FORMS).join("|")}]`);
    process.exit(2);
  }
  const answer = await openExport(folder, values.dtype);
  for (const name of images) {
    const { decisions, ...rest } = await answer(name);
    console.log(JSON.stringify({ name, ...rest, ...decisions?.[DEFAULT_COVERAGE] }));
  }
}
