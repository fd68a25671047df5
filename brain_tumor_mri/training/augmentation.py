"""Random changes of a training slice: geometry and light by torchvision, MRI artefacts by TorchIO, framing by us.

``AugmentationArguments(rotation=10, artefacts=0.3).build()`` gives one transform of PIL images; it draws from torch's
global generator alone, so a seed decides it.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torchio
from PIL import Image
from scipy import ndimage
from torchvision.transforms import v2

from ..errors import UserError
from ..images.artefacts import HEAD_LEVEL, motion
from ..settings import setting

PROBABILITIES = (
    "horizontal_flip", "vertical_flip", "quarter_turns", "framing", "stripping", "tone", "artefacts", "resampling",
    "jpeg",
)  # fmt: skip


@dataclass
class AugmentationArguments:
    """Random changes of a training slice; every default is off or mild. Angles in degrees, the rest as fractions."""

    rotation: float = setting(15.0, "Rotation, uniform in +-this many degrees.")
    translation: float = setting(0.0, "Shift, up to this fraction of the side.")
    scaling: float = setting(0.0, "Zoom, uniform in 1 +- this.")
    horizontal_flip: float = setting(0.5, "Probability of a left-right mirror image.")
    brightness: float = setting(0.2, "Brightness factor, uniform in 1 +- this.")
    contrast: float = setting(0.2, "Contrast factor, uniform in 1 +- this.")
    gamma: float = setting(0.0, "Gamma, exp of a number uniform in +-this.")
    framing: float = setting(0.0, "Probability that the head is cut out and given a border of random width.")
    artefacts: float = setting(
        0.0, "Probability of one MRI artefact: bias field, noise, blur, ghosting, spike or motion."
    )
    vertical_flip: float = setting(0.0, "Probability of a top-bottom mirror image.")
    quarter_turns: float = setting(0.0, "Probability of a turn by 90, 180 or 270 degrees.")
    stripping: float = setting(0.0, "Probability that a rim of random depth (skull, scalp) is cut off the head.")
    tone: float = setting(0.0, "Probability of a random curve of grey values, which no sequence's contrast survives.")
    resampling: float = setting(0.0, "Probability of shrinking to 64..160 pixels and back.")
    jpeg: float = setting(0.0, "Probability of saving as JPEG of quality 30 to 95.")

    def __post_init__(self) -> None:
        for name in PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: give a probability from 0 to 1")
        if negative := [f.name for f in fields(self) if getattr(self, f.name) < 0]:
            raise UserError(f"--{negative[0]} {getattr(self, negative[0])}: give 0 or more")

    def build(self) -> v2.Transform:
        """Return the augmentation of PIL images as one torchvision transform."""
        return v2.Compose([*self.geometry(), *self.light()])

    def geometry(self) -> list[v2.Transform]:
        """What moves pixels; takes masks (``tv_tensors.Mask``) along."""
        steps: list[v2.Transform] = []
        if self.framing:
            steps.append(v2.RandomApply([RandomFraming()], self.framing))
        if self.quarter_turns:
            turns = [v2.RandomRotation((angle, angle)) for angle in (90, 180, 270)]
            steps.append(v2.RandomApply([v2.RandomChoice(turns)], self.quarter_turns))
        if self.vertical_flip:
            steps.append(v2.RandomVerticalFlip(self.vertical_flip))
        return [
            *steps,
            v2.RandomHorizontalFlip(self.horizontal_flip),
            v2.RandomAffine(
                degrees=self.rotation,
                translate=(self.translation, self.translation) if self.translation else None,
                scale=(1 - self.scaling, 1 + self.scaling) if self.scaling else None,
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
        ]

    def light(self) -> list[torch.nn.Module]:
        """What changes grey values; for images only."""
        steps: list[torch.nn.Module] = []
        if self.stripping:
            steps.append(v2.RandomApply([RandomStripping()], self.stripping))
        if self.tone:
            steps.append(v2.RandomApply([RandomTone()], self.tone))
        if self.resampling:
            steps.append(v2.RandomApply([RandomResampling()], self.resampling))
        steps.append(v2.ColorJitter(brightness=self.brightness, contrast=self.contrast))
        if self.gamma:
            steps.append(RandomGamma(self.gamma))
        if self.artefacts:
            steps.append(v2.RandomApply([RandomArtefact()], self.artefacts))
        if self.jpeg:
            steps.append(v2.RandomApply([RandomJpeg()], self.jpeg))
        return steps


class RandomFraming(v2.Transform):
    """Cut the head out and put a black border of random width on each side: PIL image in, same size and mode out.

    The collections differ in how tightly they frame the head, which tells them apart; after this nothing does. The
    aspect ratio changes with the borders, as ``squash`` to a square already made it vary.
    """

    widest = 0.2
    """Of a border, as a fraction of the head's extent."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the new frame; a picture without a head (black, or bright throughout) is all head."""
        left, top, right, bottom = head_box(next(item for item in flat_inputs if isinstance(item, Image.Image)))
        borders = (torch.rand(4) * self.widest).tolist()
        width, height = right - left, bottom - top
        box = (
            round(left - borders[0] * width),
            round(top - borders[1] * height),
            round(right + borders[2] * width),
            round(bottom + borders[3] * height),
        )
        return {"box": box}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Return an image, or a mask (1, H, W), framed anew; beyond its edges an image is black, a mask 0."""
        left, top, right, bottom = params["box"]
        if isinstance(inpt, Image.Image):
            return inpt.crop(params["box"]).resize(inpt.size, Image.Resampling.BILINEAR)
        cut = v2.functional.crop(inpt, top, left, bottom - top, right - left)
        return v2.functional.resize(cut, list(inpt.shape[-2:]), v2.InterpolationMode.NEAREST)


def head_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom (exclusive) in pixels of what is brighter than the background.

    Rows and columns count from two per cent of bright pixels on, so that specks and burnt-in letters do not. The whole
    image where nothing is bright.
    """
    grey = np.asarray(image.convert("L"))
    bright = grey > HEAD_LEVEL * max(int(grey.max()), 1)
    columns, rows = (np.flatnonzero(bright.mean(axis) > 0.02) for axis in (0, 1))
    if not len(columns) or not len(rows):
        return 0, 0, image.width, image.height
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class RandomStripping(torch.nn.Module):
    """Cut a rim off the head, about as deep as scalp and skull: PIL image in, same size and mode out.

    The head is what is brighter than ``HEAD_LEVEL``, holes filled; its rim is what lies nearer to its edge than a share
    of the largest distance in it, drawn from 0.08 to 0.25. A picture without a background stays as it is.
    """

    side = 64
    """Pixels: the mask is made at this size, for speed."""

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image, black outside of what is left of the head."""
        grey = np.asarray(image.convert("L").resize((self.side, self.side), Image.Resampling.BILINEAR))
        head = ndimage.binary_fill_holes(grey > HEAD_LEVEL * max(int(grey.max()), 1))
        if head.mean() > 0.95:
            return image
        depth = ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1]
        rim = float(torch.empty(()).uniform_(0.08, 0.25))
        kept = Image.fromarray((np.clip(depth - rim * depth.max(), 0, 1) * 255).astype(np.uint8))
        black = Image.new(image.mode, image.size)
        return Image.composite(image, black, kept.resize(image.size, Image.Resampling.BILINEAR))


class RandomTone(torch.nn.Module):
    """Map grey values by a random curve that keeps black black: PIL image in, same mode out.

    The curve runs through six random values over the range of the slice, so that tissues change order as they do from
    T1 to T2 (the intensity part of Ouyang et al. 2022, Causality-inspired single-source domain generalization, whose
    random convolutions of size 1 are such curves); it is averaged with the identity by a random share.
    """

    knots = 6

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image with its grey values mapped."""
        top = max(image.convert("L").getextrema()[1], 1)
        at = np.concatenate([[0, HEAD_LEVEL / 2], np.linspace(2 * HEAD_LEVEL, 1, self.knots)])
        to = np.concatenate([[0, HEAD_LEVEL / 2], 0.05 + 0.95 * torch.rand(self.knots).numpy()])
        share = float(torch.rand(()))
        values = np.minimum(np.arange(256) / top, 1)
        curve = share * np.interp(values, at, to) + (1 - share) * values
        table = (255 * curve).round().clip(0, 255).astype(int).tolist()
        return image.point(table * len(image.getbands()))


class RandomResampling(torch.nn.Module):
    """Shrink to a side drawn from 64 to 160 pixels and enlarge again: PIL image in, same size out."""

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image without its finest detail, as coarser scans lack it."""
        side = int(torch.randint(64, 161, ()))
        methods = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        down, up = (methods[int(i)] for i in torch.randint(2, (2,)))
        return image.resize((side, side), down).resize(image.size, up)


class RandomGamma(torch.nn.Module):
    """Raise grey values in 0..1 to the power exp(u), u uniform in +-``strength``: PIL image in and out."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image with its grey values bent."""
        exponent = float(torch.exp((2 * torch.rand(()) - 1) * self.strength))
        table = [round(255 * (value / 255) ** exponent) for value in range(256)]
        return image.point(table * len(image.getbands()))


class RandomArtefact(torch.nn.Module):
    """One of TorchIO's MRI artefacts at random, on the grey values: PIL image in, same mode out."""

    def __init__(self) -> None:
        super().__init__()

        self.one_of = torchio.OneOf(
            [
                torchio.RandomBiasField(coefficients=0.4),
                torchio.RandomNoise(std=(0.01, 0.08)),
                torchio.RandomBlur(std=(0.3, 1.5)),
                torchio.RandomGhosting(num_ghosts=(2, 6), axes=(0, 1), intensity=(0.2, 0.6)),
                torchio.RandomSpike(intensity=(0.1, 0.5)),
            ]
        )

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image with an artefact; values that leave 0..255 are clipped."""
        if torch.rand(()) < 1 / (1 + len(self.one_of.transforms_dict)):
            size = float(torch.empty(()).uniform_(0.5, 5))
            # TorchIO's RandomMotion only shifts a single slice; see there
            moved = motion(np.asarray(image.convert("L")), size, np.random.default_rng(int(torch.randint(1 << 31, ()))))
            return Image.fromarray(moved.clip(0, 255).round().astype(np.uint8)).convert(image.mode)
        grey = torch.from_numpy(np.array(image.convert("L"))).float()[None, :, :, None] / 255
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of single-slice volumes
            changed = self.one_of(grey)
        values = (changed[0, :, :, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        return Image.fromarray(values).convert(image.mode)


class RandomJpeg(torch.nn.Module):
    """Save as JPEG of a quality drawn from 30 to 95, and read it again: PIL image in and out."""

    def forward(self, image: Image.Image) -> Image.Image:
        """Return the image as a decoder gives it."""
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(torch.randint(30, 96, ())))
        return Image.open(buffer).convert(image.mode)
