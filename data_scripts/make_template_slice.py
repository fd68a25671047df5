"""Make ``examples/template-icbm152-axial.png``: an axial slice of an average healthy brain, no patient.

``python data_scripts/make_template_slice.py`` (needs nilearn, see requirements-dev.txt; no network). The brain is the
T1 template ICBM 2009a Nonlinear Symmetric, an average of 152 healthy volunteers, as nilearn ships it: without skull and
scalp. Its licence (``NOTICE``) is written into the picture, as it must be in every copy.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from brain_tumor_mri.errors import UserError

OUTPUT = Path(__file__).resolve().parents[1] / "examples" / "template-icbm152-axial.png"
SOURCE = (
    "ICBM 2009a Nonlinear Symmetric, T1: V. S. Fonov et al., Unbiased average age-appropriate atlases for pediatric "
    "studies, NeuroImage 54 (2011) 313-327, 10.1016/j.neuroimage.2010.07.033; V. S. Fonov et al., Unbiased nonlinear "
    "average age-appropriate brain templates from birth to adulthood, NeuroImage 47 (2009) S102, "
    "10.1016/S1053-8119(09)70884-5. From the package nilearn, without skull and scalp; cut and scaled to 8 bits here."
)
NOTICE = (
    "Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill "
    "University. Permission to use, copy, modify, and distribute this software and its documentation for any purpose "
    "and without fee is hereby granted, provided that the above copyright notice appear in all copies. The authors and "
    "McGill University make no representations about the suitability of this software for any purpose. It is provided "
    '"as is" without express or implied warranty. The authors are not responsible for any data loss, equipment damage, '
    "property loss, or injury to subjects or patients resulting from the use or misuse of this software package."
)
HEIGHT_MM = 18.0
"""Of the slice above the anterior commissure (MNI space): through both lateral ventricles."""
MARGIN = 0.01
"""Black around the brain, as a share of the picture's side."""
GAMMA = 1.7
"""Makes the template's flat contrast that of a scan."""


def axial_slice(volume: np.ndarray, affine: np.ndarray, height_mm: float) -> np.ndarray:
    """Cut a volume (X, Y, Z), RAS, as radiologists look at it: from below, the front at the top, the right at left."""
    place = round((height_mm - affine[2, 3]) / affine[2, 2])
    if not 0 <= place < volume.shape[2]:
        raise UserError(f"--height {height_mm:g}: the template has no slice there")
    return volume[::-1, ::-1, place].T


def framed(plane: np.ndarray, size: int) -> Image.Image:
    """Put what is not 0 of a plane in 0..1 into the middle of a black square, mode "L", the proportions kept."""
    rows, columns = np.nonzero(plane)
    if not len(rows) or size < 32:
        raise UserError("the slice is empty, or the picture under 32 pixels; choose another --height or --size")
    brain = plane[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = size * (1 - 2 * MARGIN) / max(brain.shape)
    height, width = (max(1, round(scale * side)) for side in brain.shape)
    pixels = Image.fromarray(np.rint(255 * brain).astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    picture = Image.new("L", (size, size))
    picture.paste(pixels, ((size - width) // 2, (size - height) // 2))
    return picture


def make_template_slice(height_mm: float = HEIGHT_MM, size: int = 256) -> Image.Image:
    """Return the slice of nilearn's template; see :func:`axial_slice` and :func:`framed`."""
    try:
        import nibabel
        from nilearn.datasets import load_mni152_template
    except ImportError as error:
        raise UserError("nilearn is not installed; pip install -r requirements-dev.txt") from error
    template = nibabel.as_closest_canonical(load_mni152_template(resolution=1))
    return framed(axial_slice(np.asarray(template.dataobj), template.affine, height_mm) ** GAMMA, size)


def save(picture: Image.Image, path: Path) -> None:
    """Write the picture as PNG, with source and licence in it."""
    metadata = PngImagePlugin.PngInfo()
    metadata.add_text("Description", "average of 152 healthy brains (template), not a patient")
    metadata.add_text("Source", SOURCE)
    metadata.add_text("Copyright", NOTICE)
    picture.save(path, pnginfo=metadata, optimize=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0 done, 2 a wrong argument."""
    parser = argparse.ArgumentParser(description="Make the page's example of an average healthy brain.")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="the PNG to write (default: in examples/)")
    parser.add_argument("--height", type=float, default=HEIGHT_MM, metavar="MM", help="default: %(default)g")
    parser.add_argument("--size", type=int, default=256, help="width and height in pixels (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        save(make_template_slice(options.height, options.size), options.output)
    except (UserError, OSError) as error:
        print(f"make_template_slice: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
