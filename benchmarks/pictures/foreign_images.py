"""Pictures that are no brain MRI slice, for ``calibrate --foreign``: those that other packages ship, and made ones.

Photographs, pages, textures and microscopy of scikit-image, scikit-learn and matplotlib (whole and in quarters, in
colour and in grey), DICOM of other organs and other machines from pydicom's tests, noise, gradients and blanks. Nothing
is downloaded. ``python benchmarks/pictures/foreign_images.py --output runs/foreign`` writes PNG files, a folder a kind.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MIN_QUARTERED = 300
"""Pixels of the shorter side from which a picture's quarters are pictures of their own."""

_SKIMAGE = {
    "photograph": (
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png",
        "motorcycle_right.png", "coins.png", "clock_motion.png", "hubble_deep_field.jpg", "moon.png",
    ),
    "page": ("page.png", "text.png", "color.png", "chessboard_GRAY.png", "horse.png", "logo.png"),
    "texture": ("brick.png", "grass.png", "gravel.png"),
    "microscopy": ("cell.png", "ihc.png", "microaneurysms.png", "retina.jpg"),
}  # fmt: skip
_DICOM = {
    "head CT": ("693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm"),
    "other DICOM": (
        "CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "ExplVR_BigEnd.dcm", "examples_overlay.dcm",
        "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm", "image_dfl.dcm", "liver_1frame.dcm",
        "SC_rgb_rle.dcm", "SC_jpeg_no_color_transform.dcm",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class ForeignImage:
    """One picture that is no brain MRI slice: what it is, its file with what was done to it, and the RGB image."""

    kind: str
    name: str
    image: Image.Image


def foreign_images() -> Iterator[ForeignImage]:
    """Every picture, in an order that never changes."""
    for kind, name, image in _shipped():
        grey = image.convert("L").convert("RGB")
        coloured = image.tobytes() != grey.tobytes()
        for tint, tinted in (("", image), (", in grey", grey)) if coloured else (("", image),):
            for part, box in parts(tinted.size):
                yield ForeignImage(kind, f"{name}{tint}{part}", tinted.crop(box))
    for kind, name, values in _made():
        yield ForeignImage(kind, name, Image.fromarray(values).convert("RGB"))


def _shipped() -> Iterator[tuple[str, str, Image.Image]]:
    import matplotlib
    import skimage
    import sklearn

    folder = Path(skimage.__file__).parent / "data"
    for kind, names in _SKIMAGE.items():
        for name in names:
            yield kind, name, upright(folder / name)
    for package, file in (
        (sklearn, "datasets/images/china.jpg"),
        (sklearn, "datasets/images/flower.jpg"),
        (matplotlib, "mpl-data/sample_data/grace_hopper.jpg"),
        (matplotlib, "mpl-data/sample_data/Minduka_Present_Blue_Pack.png"),
    ):
        path = Path(package.__file__).parent / file
        yield "photograph", path.name, upright(path)
    faces = np.load(folder / "lfw_subset.npy", allow_pickle=False)  # (200, 25, 25) in [0, 1]: faces, then no faces
    for i in range(0, len(faces), 10):
        face = Image.fromarray(np.uint8(255 * faces[i])).resize((128, 128), Image.Resampling.BICUBIC)
        yield "photograph", f"lfw_subset.npy {i}", face.convert("RGB")
    yield from _dicom()


def upright(path: Path) -> Image.Image:
    with Image.open(path) as image:
        if "A" in image.getbands():
            ground = Image.new("RGBA", image.size, "white")
            return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        return image.convert("RGB")


def _dicom() -> Iterator[tuple[str, str, Image.Image]]:
    import pydicom
    from pydicom.pixels import apply_color_lut, convert_color_space

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    for kind, names in _DICOM.items():
        for name in names:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # these files are there to have faults
                slices = pydicom.dcmread(folder / name)
                pixels = slices.pixel_array
                if slices.PhotometricInterpretation == "PALETTE COLOR":
                    pixels = apply_color_lut(pixels, slices)
                elif slices.PhotometricInterpretation.startswith("YBR"):
                    pixels = convert_color_space(pixels, slices.PhotometricInterpretation, "RGB")
            pixels = pixels[len(pixels) // 2] if pixels.ndim == 4 else pixels
            low, high = np.percentile(pixels, (0.5, 99.5))
            values = np.clip((pixels.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
            yield kind, name, Image.fromarray(np.uint8(255 * values)).convert("RGB")


def parts(size: tuple[int, int]) -> list[tuple[str, tuple[int, int, int, int]]]:
    width, height = size
    boxes = [("", (0, 0, width, height))]
    if min(size) >= MIN_QUARTERED:
        x, y = width // 2, height // 2
        corners = {"upper left": (0, 0), "upper right": (x, 0), "lower left": (0, y), "lower right": (x, y)}
        boxes += [(f", {where}", (left, top, left + x, top + y)) for where, (left, top) in corners.items()]
    return boxes


def _made() -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield noise, gradients and blanks, each (224, 224) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:224j, 0:1:224j]
    for i in range(6):
        yield "noise", f"uniform {i}", rng.integers(0, 256, (224, 224), dtype=np.uint8)
        yield "noise", f"normal {i}", np.uint8(np.clip(rng.normal(96, 20 + 10 * i, (224, 224)), 0, 255))
        coarse = Image.fromarray(rng.integers(0, 256, (4 << i, 4 << i), dtype=np.uint8))
        yield "noise", f"blobs {4 << i}", np.asarray(coarse.resize((224, 224), Image.Resampling.BICUBIC))
    for i, ramp in enumerate((x, y, (x + y) / 2, np.hypot(x - 0.5, y - 0.5) / 0.71, 1 - np.hypot(x - 0.5, y - 0.5))):
        yield "gradient", f"{i}", np.uint8(255 * np.clip(ramp, 0, 1))
        yield "gradient", f"{i}, as waves", np.uint8(127 * (1 + np.sin(20 * np.pi * ramp)))
    for level in (0, 8, 64, 128, 200, 255):
        yield "blank", f"{level}", np.full((224, 224), level, np.uint8)


def main() -> None:
    """Write every picture to a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/foreign"), help="folder (default: %(default)s)")
    args = parser.parse_args()
    for foreign in foreign_images():
        folder = args.output / foreign.kind.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        foreign.image.save(folder / f"{re.sub('[^A-Za-z0-9]+', '-', foreign.name).strip('-')}.png")
    print(f"{sum(1 for _ in args.output.rglob('*.png'))} pictures in {args.output}")


if __name__ == "__main__":
    main()
