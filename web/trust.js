// What an answer is worth, as brain_tumor_mri/trust has it: calibrated probabilities, prediction sets, whether the
// picture is a brain MRI slice, and whether the model knows its like. Numbers and decisions equal Python's; a test compares them.

import { resize } from "./preprocess.js";

export const COVERAGES = [90, 95];
export const DEFAULT_COVERAGE = 95;
export const FOREIGN_LIMIT = 0.5; // above it a picture is refused
export const MIN_SIDE = 32; // pixels
export const MIN_CONTRAST = 4; // standard deviation of grey values, 0..255
export const MAX_COLOUR = 8; // mean difference of red, green and blue from their mean, 0..255

/**
 * Check that a trust.json belongs to an export and has what is read of it.
 * @param {object} trust of trust.json.
 * @param {object} record of export.json.
 * @param {string} form the export's file, "onnx" or "onnx-int8".
 */
export function checkTrust(trust, record, form) {
  const { calibration, in_distribution: check } = trust;
  if (trust.schema !== 5 || !(calibration?.single?.temperature?.unfamiliar > 0) || !(check?.mean || check?.names)) {
    throw new Error("trust.json is damaged");
  }
  if (trust.weights_sha256 !== record.source.weights_sha256) throw new Error("trust.json belongs to other weights");
  if (record.files[form].features?.stage !== check.stage) {
    throw new Error(`the network gives no features of ${check.stage}, which trust.json needs`);
  }
}

/**
 * Softmax of logits over a temperature (Guo et al. 2017).
 * @param {ArrayLike<number>} logits
 * @param {number} temperature 1 where there is no calibration.
 * @returns {number[]} summing to 1.
 */
export function probabilitiesOf(logits, temperature = 1) {
  const scaled = Array.from(logits, (value) => value / temperature);
  const top = Math.max(...scaled);
  const exponents = scaled.map((value) => Math.exp(value - top));
  const sum = exponents.reduce((total, value) => total + value, 0);
  return exponents.map((value) => value / sum);
}

/**
 * The classes left (class-conditional split conformal prediction); the most probable one always is.
 * @param {number[]} probabilities calibrated.
 * @param {number[]} thresholds of 1 - p, in the same order.
 * @returns {boolean[]}
 */
export function predictionSet(probabilities, thresholds) {
  const top = probabilities.indexOf(Math.max(...probabilities));
  return probabilities.map((p, i) => i === top || 1 - p <= thresholds[i]);
}

/**
 * The odds against the nearest of the collections that trained, over its limit; of a model of few of them, squared
 * Mahalanobis distance under probabilistic PCA (Tipping & Bishop 1999), as a multiple of the threshold.
 * @param {ArrayLike<number>} features spatial means of the stage that trust.json names.
 * @param {object} check `in_distribution` of trust.json.
 * @returns {number} above 1 the slice is unlike those that the model knows.
 */
export function unlikeness(features, check) {
  if (check.names) return Math.exp(Math.min(Math.max(-strongest(features, check), -7), 7));
  if (features.length !== check.mean.length) throw new Error("trust.json belongs to another network");
  const centred = check.mean.map((mean, i) => features[i] - mean);
  let rest = centred.reduce((sum, value) => sum + value * value, 0);
  let distance = 0;
  check.components.forEach((row, place) => {
    const along = row.reduce((sum, value, i) => sum + value * centred[i], 0);
    distance += (along * along) / check.variances[place];
    rest -= along * along;
  });
  return (distance + Math.max(rest, 0) / check.noise) / check.threshold;
}

function strongest(features, check) {
  if (features.length !== check.weights[0].length) throw new Error("trust.json belongs to another network");
  return Math.max(
    ...check.weights.map((row, k) => row.reduce((sum, weight, i) => sum + weight * features[i], check.biases[k])),
  );
}

/**
 * How sure it is that a picture is no brain MRI slice: the surest of logistic regressions on the same features.
 * @param {ArrayLike<number>} features
 * @param {object|null} check `brain_mri` of trust.json; null where it has none.
 * @returns {number} in [0, 1].
 */
export function foreignness(features, check) {
  return check ? 1 / (1 + Math.exp(-strongest(features, check))) : 0;
}

/**
 * Say why a picture can be no MRI slice whatever the network makes of it.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} picture RGB.
 * @returns {string|null} null where it may be one.
 */
export function pictureFault(picture) {
  if (Math.min(picture.width, picture.height) < MIN_SIDE) {
    return `it is tiny (${picture.width} x ${picture.height} pixels)`;
  }
  const { data } = resize(picture, 64, 64, "box");
  const grey = Float64Array.from({ length: 64 * 64 }, (_, i) => (data[3 * i] + data[3 * i + 1] + data[3 * i + 2]) / 3);
  const mean = grey.reduce((sum, value) => sum + value, 0) / grey.length;
  const variance = grey.reduce((sum, value) => sum + (value - mean) ** 2, 0) / grey.length;
  if (Math.sqrt(variance) < MIN_CONTRAST) return "it is blank";
  const colour = data.reduce((sum, value, i) => sum + Math.abs(value - grey[Math.trunc(i / 3)]), 0) / data.length;
  return colour > MAX_COLOUR ? "it is in colour" : null;
}

/**
 * The decision, and the reason of a refusal or a warning.
 * @param {string[]} left the prediction set.
 * @param {number} unlike of `unlikeness`.
 * @param {number} foreign of `foreignness`.
 * @param {string|null} fault of `pictureFault`.
 * @returns {{decision: "answer"|"uncertain"|"unfamiliar"|"not-a-brain-mri", reason: string|null}}
 */
export function decide(left, unlike, foreign, fault) {
  if (fault) return { decision: "not-a-brain-mri", reason: fault };
  if (!(foreign <= FOREIGN_LIMIT)) {
    return { decision: "not-a-brain-mri", reason: "it does not look like a brain MRI slice" };
  }
  if (!(unlike <= 1)) return { decision: "unfamiliar", reason: "it is unlike the brain MRI that the model knows" };
  return { decision: left.length === 1 ? "answer" : "uncertain", reason: null };
}

/**
 * Turn what the network gave for one picture into an answer.
 * @param {string[]} labels in output order.
 * @param {ArrayLike<number>} logits
 * @param {ArrayLike<number>|null} features null where the export gives none.
 * @param {string|null} fault of `pictureFault`.
 * @param {object|null} trust of trust.json; null for plain probabilities.
 * @returns {object} as `Prediction.to_dict` in Python: label, probabilities and, with trust, `decisions` by coverage.
 */
export function judge(labels, logits, features, fault, trust) {
  const single = trust?.calibration.single;
  const unlike = trust ? unlikeness(features, trust.in_distribution) : null;
  const who = unlike <= 1 ? "familiar" : "unfamiliar"; // NaN, as of an overflow, is the latter
  const values = probabilitiesOf(logits, single?.temperature[who]);
  const probabilities = Object.fromEntries(labels.map((name, i) => [name, values[i]]));
  const label = labels[values.indexOf(Math.max(...values))];
  const plain = { label, confidence: probabilities[label], probabilities };
  if (!trust) return { ...plain, decisions: null, unlikeness: null, foreign: null };
  const foreign = foreignness(features, trust.brain_mri);
  const decisions = COVERAGES.map((coverage) => {
    const limits = single.thresholds[coverage][who];
    const thresholds = labels.map((name) => limits[name]);
    const inside = predictionSet(values, thresholds);
    const left = labels.filter((_, i) => inside[i]);
    return [coverage, { ...decide(left, unlike, foreign, fault), prediction_set: left }];
  });
  return { ...plain, decisions: Object.fromEntries(decisions), unlikeness: unlike, foreign };
}

/**
 * Class names in the model's output order.
 * @param {object} config of config.json.
 * @returns {string[]}
 */
export function labelsOf(config) {
  const labels = config.label_names ?? Object.values(config.id2label ?? {});
  if (!labels.length) throw new Error("config.json names no classes");
  return labels;
}
