"""Draw synthetic head slices of the four classes, for tests, smoke runs and the app's examples; no patient is involved.

``python data_scripts/make_phantoms.py --output_dir data/phantoms`` writes the folder layout of the Kaggle data set.
They look like contrast-enhanced T1 slices only as far as ellipses and smooth noise can: no claim about accuracy on
patients may rest on them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import LABELS
from data_scripts.draw_phantoms import make_phantom

NOTE_NAME = "SYNTHETIC.txt"
NOTE = """\
The slices in this folder are synthetic phantoms, drawn by data_scripts/make_phantoms.py. No patient is shown.
They test that software runs; they say nothing about how well a model does on patients.
"""
DESCRIPTION = "synthetic phantom, not a patient"

EXAMPLE_SEEDS = {"glioma": 0, "meningioma": 4, "notumor": 2, "pituitary": 0}
"""Of a dozen drawings a class, one that the released model does not find unfamiliar."""
_AIR = 40
"""Grey values up to it are around the head."""
_SPLITS = ("Training", "Testing")


def write_phantoms(output_dir: Path, train_per_class: int, test_per_class: int, seed: int = 0, size: int = 256) -> int:
    """Write phantoms as ``Training|Testing/CLASS/Ph-gl_0001.png`` with a note that they are synthetic.

    A slice depends on the seed, its part, its class and its number only, so asking for more keeps those there were.
    Phantoms of an earlier run that this one does not write are removed.

    Args:
        output_dir: created where missing; a folder that holds other things and no ``SYNTHETIC.txt`` is refused.
        train_per_class: slices of each class under Training.
        test_per_class: slices of each class under Testing; their numbers go on where Training stops.
        seed: 0 or more.
        size: width and height in pixels.
    """
    if min(train_per_class, test_per_class, seed) < 0:
        raise UserError("--train_per_class, --test_per_class and --seed must not be negative")
    note = output_dir / NOTE_NAME
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"{output_dir}: this is a file; --output_dir takes a folder")
    if output_dir.exists() and any(output_dir.iterdir()) and not note.exists():
        raise UserError(f"{output_dir}: holds something other than phantoms; give --output_dir a new folder")
    output_dir.mkdir(parents=True, exist_ok=True)
    note.write_text(NOTE, encoding="utf-8")
    written: set[Path] = set()
    first = 1
    for split_index, (split, count) in enumerate(zip(_SPLITS, (train_per_class, test_per_class), strict=True)):
        for class_index, label in enumerate(LABELS):
            folder = output_dir / split / label
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng([seed, split_index, class_index, i])
                path = folder / f"Ph-{label[:2]}_{first + i:04d}.png"
                _save(make_phantom(label, rng, size), path)
                written.add(path)
        first += count
    for path in output_dir.glob("*/*/Ph-*.png"):
        if path not in written:
            path.unlink()
    return len(written)


def write_examples(output_dir: Path, size: int = 256) -> int:
    """Write one visibly marked slice a class, ``phantom-glioma.png`` and so on; returns their number."""
    output_dir.mkdir(parents=True, exist_ok=True)
    for class_index, label in enumerate(LABELS):
        rng = np.random.default_rng([EXAMPLE_SEEDS[label], len(_SPLITS), class_index])
        _save(marked(as_data(make_phantom(label, rng, size))), output_dir / f"phantom-{label}.png")
    return len(LABELS)


def as_data(image: Image.Image) -> Image.Image:
    """The slice, mode "L", framed and lit as most of the data are: the head fills it, the brain is bright."""
    head = np.asarray(image) > _AIR
    (top, bottom), (left, right) = (np.flatnonzero(head.mean(axis) > 0.02)[[0, -1]] for axis in (1, 0))
    half = 0.52 * max(bottom - top, right - left)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = tuple(round(value) for value in (x - half, y - half, x + half, y + half))
    return image.crop(box).resize(image.size, Image.Resampling.BICUBIC).point(lambda grey: 255 * (grey / 255) ** 0.6)


def marked(image: Image.Image) -> Image.Image:
    """The image with "SYNTHETIC" in its lower left corner."""
    image = image.copy()
    height = max(8, round(image.height / 22))
    font = ImageFont.load_default(height)
    ImageDraw.Draw(image).text((height // 2, image.height - height // 2), "SYNTHETIC", fill=200, font=font, anchor="ls")
    return image


def _save(image: Image.Image, path: Path) -> None:
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Description", DESCRIPTION)
    image.save(path, pnginfo=metadata)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 a wrong argument."""
    parser = argparse.ArgumentParser(description="Write synthetic head slices of the four classes.")
    parser.add_argument("--output_dir", type=Path, help="folder for Training/ and Testing/")
    parser.add_argument("--train_per_class", type=int, default=40, help="slices a class under Training (default 40)")
    parser.add_argument("--test_per_class", type=int, default=12, help="slices a class under Testing (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same files (default 0)")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels (default 256)")
    parser.add_argument("--examples", type=Path, metavar="DIR", help="also, or only, write a marked slice a class")
    options = parser.parse_args(arguments)
    if options.output_dir is None and options.examples is None:
        parser.error("give --output_dir FOLDER, --examples FOLDER or both")
    try:
        done = []
        if options.output_dir is not None:
            count = write_phantoms(
                options.output_dir, options.train_per_class, options.test_per_class, options.seed, options.size
            )
            done.append(f"{count} synthetic slices in {options.output_dir}")
        if options.examples is not None:
            count = write_examples(options.examples, options.size)
            done.append(f"{count} marked examples in {options.examples}")
    except (UserError, OSError) as error:
        print(f"make_phantoms: {error}", file=sys.stderr)
        return 2
    print("Wrote " + " and ".join(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
