// Where the model looked, as brain_tumor_mri/heat_maps has it: from the cells that the export's graph gives to a map, the
// head that it is drawn on, and the picture with both. Numbers equal Python's; a test compares them.

const LEVEL = 0.08; // of the brightest tissue; air and its noise lie below
const MARGIN = 2; // pixels that smooth the head's outline
const TINY = 1e-7;
const OPACITY = 0.6;

/** Stretch to 0..1; a map of one value becomes 0. */
function stretched(map) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of map) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return map.map((value) => (value - low) / (high - low + TINY));
}

/** For each new pixel along a side: the two old ones that it lies between, and how near it is to the second. */
function places(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const place = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    const first = Math.floor(place);
    return [first, Math.min(first + 1, from - 1), place - first];
  });
}

/** Interpolate bilinearly, pixels as areas. */
function resized(cells, rows, columns, width, height) {
  const [across, down] = [places(columns, width), places(rows, height)];
  const map = new Float32Array(width * height);
  down.forEach(([top, bottom, v], y) => {
    across.forEach(([left, right, u], x) => {
      const upper = cells[top * columns + left] * (1 - u) + cells[top * columns + right] * u;
      const lower = cells[bottom * columns + left] * (1 - u) + cells[bottom * columns + right] * u;
      map[y * width + x] = upper * (1 - v) + lower * v;
    });
  });
  return map;
}

/**
 * The map of one class: the product of what the graph's outputs say, place by place.
 * @param {{data: Float32Array, dims: number[]}[]} outputs cells (1, 4, h, w) each.
 * @param {number} place the class's, in output order.
 * @param {{width: number, height: number}} size of the model's input.
 * @returns {Float32Array} (height, width) in 0..1, the highest value 1 or all 0.
 */
export function heatMap(outputs, place, { width, height }) {
  const product = new Float32Array(width * height).fill(1);
  for (const { data, dims } of outputs) {
    const [rows, columns] = dims.slice(2);
    const cells = data.subarray(place * rows * columns, (place + 1) * rows * columns);
    stretched(resized(stretched(cells), rows, columns, width, height)).forEach((value, i) => {
      product[i] *= value;
    });
  }
  const highest = product.reduce((a, b) => Math.max(a, b), 0);
  return highest ? product.map((value) => value / highest) : product;
}

/** Number the parts of a mask (four neighbours) from 1 in reading order; 0 elsewhere. Returns numbers and sizes. */
function parts(mask, width) {
  const numbers = new Int32Array(mask.length);
  const sizes = [0];
  const waiting = [];
  for (let start = 0; start < mask.length; start++) {
    if (!mask[start] || numbers[start]) continue;
    const number = sizes.push(0) - 1;
    numbers[start] = number;
    waiting.push(start);
    while (waiting.length) {
      const at = waiting.pop();
      sizes[number] += 1;
      const x = at % width;
      const near = [at - width, at + width, x ? at - 1 : -1, x < width - 1 ? at + 1 : -1];
      for (const next of near) {
        if (next >= 0 && next < mask.length && mask[next] && !numbers[next]) {
          numbers[next] = number;
          waiting.push(next);
        }
      }
    }
  }
  return { numbers, sizes };
}

function grown(mask, width) {
  return mask.map((value, at) => {
    const x = at % width;
    return value || mask[at - width] || mask[at + width] || (x && mask[at - 1]) || (x < width - 1 && mask[at + 1]) ? 1 : 0;
  });
}

/**
 * Where the head is: the largest bright part with its holes filled.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} picture RGB.
 * @returns {Uint8Array} 1 inside.
 */
export function headMask({ data, width, height }) {
  const grey = Uint8Array.from({ length: width * height }, (_, i) => // Pillow's "L"
    (19595 * data[3 * i] + 38470 * data[3 * i + 1] + 7471 * data[3 * i + 2] + 0x8000) >> 16);
  const sorted = grey.slice().sort();
  const place = 0.99 * (grey.length - 1);
  const [low, share] = [Math.floor(place), place % 1];
  const level = LEVEL * (sorted[low] + share * (sorted[Math.min(low + 1, grey.length - 1)] - sorted[low]));
  const pad = 2 * MARGIN; // wide enough that the edge wears nothing away
  const wide = width + 2 * pad;
  let mask = new Uint8Array(wide * (height + 2 * pad));
  grey.forEach((value, i) => {
    mask[(Math.trunc(i / width) + pad) * wide + (i % width) + pad] = value > level ? 1 : 0;
  });
  for (let i = 0; i < MARGIN; i++) mask = grown(mask, wide);
  mask = mask.map((value) => 1 - value);
  for (let i = 0; i < MARGIN; i++) mask = grown(mask, wide);
  mask = mask.map((value) => 1 - value);
  const { numbers, sizes } = parts(mask, wide);
  const largest = sizes.indexOf(Math.max(...sizes.slice(1)), 1);
  const outside = parts(numbers.map((number) => (largest > 0 && number === largest ? 0 : 1)), wide).numbers;
  return Uint8Array.from({ length: grey.length }, (_, i) =>
    outside[(Math.trunc(i / width) + pad) * wide + (i % width) + pad] === outside[0] ? 0 : 1);
}

/**
 * Draw a map on the slice as the model saw it, inside the head and as strong as the class is probable.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} seen RGB at the size of the model's input.
 * @param {Float32Array} map of `heatMap`.
 * @param {Uint8Array} head of `headMask`.
 * @param {number} share the class's probability over that of the most probable class.
 * @param {number[][]} colours of the scale, from 0 to 1; each [red, green, blue].
 * @returns {Uint8ClampedArray} RGBA.
 */
export function overlay(seen, map, head, share, colours) {
  const drawn = new Uint8ClampedArray(4 * map.length);
  map.forEach((value, i) => {
    const heat = value * head[i] * share;
    const place = (Math.round(255 * heat) / 255) * (colours.length - 1);
    const first = Math.min(Math.floor(place), colours.length - 2);
    for (let channel = 0; channel < 3; channel++) {
      const [from, to] = [colours[first][channel], colours[first + 1][channel]];
      const colour = Math.round(from + (place - first) * (to - from));
      drawn[4 * i + channel] = Math.round((1 - OPACITY * heat) * seen.data[3 * i + channel] + OPACITY * heat * colour);
    }
    drawn[4 * i + 3] = 255;
  });
  return drawn;
}
