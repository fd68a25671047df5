// Opens a picture file in the browser: which kinds, and what is said of others. Every kind gives the pixels of its
// plain 8-bit RGB twin, as brain_tumor_mri/images/read.py has it: upright by EXIF, over black where it is transparent,
// colour profiles ignored.

import { withoutAlpha } from "./preprocess.js";

const ACCEPTED = "JPEG, PNG, WebP or BMP";
const MAX_PIXELS = 16_000_000; // what the smallest canvases hold, those of phones
const ELSEWHERE = "the Python command `brain-tumor-mri predict` reads it, or save the slice as 8-bit PNG";

const ascii = (text) => [...text].map((letter) => letter.charCodeAt(0));
const KINDS = [
  { at: 0, bytes: [0xff, 0xd8, 0xff], kind: "jpeg" },
  { at: 0, bytes: [0x89, ...ascii("PNG")], kind: "png" },
  { at: 8, bytes: ascii("WEBP"), kind: "webp" },
  { at: 0, bytes: ascii("BM"), kind: "bmp" },
  { at: 128, bytes: ascii("DICM"), problem: `a DICOM file, which browsers cannot open; ${ELSEWHERE}` },
  { at: 0, bytes: ascii("II*\0"), problem: `a TIFF image, which browsers cannot open; ${ELSEWHERE}` },
  { at: 0, bytes: ascii("MM\0*"), problem: `a TIFF image, which browsers cannot open; ${ELSEWHERE}` },
  { at: 344, bytes: ascii("n+1\0"), problem: "a NIfTI volume; export its slices as PNG first" },
  { at: 0, bytes: [0x1f, 0x8b], problem: "a gzip archive, not an image" },
  { at: 0, bytes: ascii("PK\x03\x04"), problem: "a zip archive, not an image" },
  { at: 0, bytes: ascii("%PDF"), problem: "a PDF document, not an image" },
  { at: 0, bytes: ascii("GIF8"), problem: `a GIF image; accepted are ${ACCEPTED}` },
];
const PNG_DEPTH = 24; // offset of the header's bits a sample, the colour type behind it
const PNG_GREY = 0;

/** What is wrong with a file, for a person; `message` has no file name. */
export class UnreadableImageError extends Error {}

/**
 * Say of what kind a file is.
 * @param {Uint8Array} head its first bytes, 512 or all.
 * @returns {string} jpeg, png, webp or bmp.
 * @throws {UnreadableImageError} it is another kind.
 */
export function kindOf(head) {
  if (!head.length) throw new UnreadableImageError("the file is empty");
  const found = KINDS.find(({ at, bytes }) => bytes.every((byte, i) => head[at + i] === byte));
  if (!found) throw new UnreadableImageError(`not a readable ${ACCEPTED} image`);
  if (found.problem) throw new UnreadableImageError(`this is ${found.problem}`);
  if (found.kind === "png" && head[PNG_DEPTH] === 16 && head[PNG_DEPTH + 1] === PNG_GREY) {
    // browsers keep the upper 8 of 16 bits: a 12-bit slice would come out black
    throw new UnreadableImageError(`16-bit grey values, which browsers do not keep; ${ELSEWHERE}`);
  }
  return found.kind;
}

/** Whether a file has its end; browsers show what there is of a file that was cut off. */
async function isWhole(file, kind) {
  const tail = new Uint8Array(await file.slice(-65536).arrayBuffer());
  const has = (...bytes) => tail.some((_, at) => bytes.every((byte, i) => tail[at + i] === byte));
  if (kind === "jpeg") return has(0xff, 0xd9);
  if (kind === "png") return has(...ascii("IEND"));
  return true;
}

/**
 * Read a picture.
 * @param {Blob} file
 * @returns {Promise<{data: Uint8ClampedArray, width: number, height: number}>} RGB, three bytes a pixel.
 * @throws {UnreadableImageError}
 */
export async function decode(file) {
  const kind = kindOf(new Uint8Array(await file.slice(0, 512).arrayBuffer()));
  if (!(await isWhole(file, kind))) throw new UnreadableImageError("the file is truncated; copy or download it again");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    throw new UnreadableImageError("the file is damaged or of an unsupported kind");
  }
  const { width, height } = bitmap;
  try {
    if (width * height > MAX_PIXELS) {
      throw new UnreadableImageError(`${width} x ${height} pixels is too large; the limit is 16 million pixels`);
    }
    const canvas = new OffscreenCanvas(width, height).getContext("2d", { alpha: false, willReadFrequently: true });
    canvas.drawImage(bitmap, 0, 0);
    return withoutAlpha(canvas.getImageData(0, 0, width, height));
  } finally {
    bitmap.close();
  }
}
