"""Draw one synthetic head slice: a head with its tissues, a lesion of the class, and what a scanner makes of both.

``make_phantom("glioma", np.random.default_rng(0))`` gives the picture, ``draw_phantom`` also where the lesion is.
They look like contrast-enhanced T1 slices only as far as ellipses and smooth noise can.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

from brain_tumor_mri.errors import UserError
from brain_tumor_mri.labels import LABELS

_SMALLEST_SIZE = 32

# Radii of the layers of the head as fractions of its outer edge.
_BRAIN_EDGE, _SKULL_INNER, _SKULL_OUTER = 0.82, 0.855, 0.925
# Mean signal of the tissues, 0..1, in the order that T1 weighting gives them.
_FLUID, _BONE, _GREY, _WHITE, _MUSCLE, _FAT, _ENHANCING = 0.11, 0.06, 0.40, 0.56, 0.36, 0.84, 0.95
# Height of the base of the brain at the midline of a coronal slice, in head units (-1 top, 1 bottom).
_SELLA_HEIGHT = 0.36


@dataclass(frozen=True)
class Phantom:
    """A synthetic slice and what was drawn where.

    Attributes:
        image: mode "L", (size, size).
        lesion: (size, size) bool, the tumour without its oedema; all False for "notumor".
        brain: (size, size) bool, where brain tissue would be without a lesion.
        midline: (2,) float, x and y in pixels of the head's centre, which the midline runs through.
        view: "axial" or "coronal".
    """

    image: Image.Image
    lesion: np.ndarray
    brain: np.ndarray
    midline: tuple[float, float]
    view: Literal["axial", "coronal"]


def make_phantom(label: str, rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Draw one synthetic slice.

    Args:
        label: one of the four class names.
        rng: the only source of randomness; equally seeded generators give equal slices.
        size: width and height in pixels, at least 32.

    Returns:
        An image in mode "L", (size, size).
    """
    return draw_phantom(label, rng, size).image


def draw_phantom(label: str, rng: np.random.Generator, size: int = 256) -> Phantom:
    """As :func:`make_phantom`, and also where lesion and brain are; for tests of explanations."""
    if label not in LABELS:
        raise UserError(f"{label!r} is not a class; the classes are {', '.join(LABELS)}")
    if size < _SMALLEST_SIZE:
        raise UserError(f"a size of {size} pixels is too small to draw a head in; use at least {_SMALLEST_SIZE}")
    # The pituitary shows best on coronal slices; every other class comes in both views, so that the view alone does
    # not give the class away.
    coronal = label == "pituitary" or rng.random() < 0.45
    head = _Head.place(rng, size, coronal)
    lesion = _Lesion.place(label, rng, head)
    signal = head.draw(rng, lesion)
    if lesion is not None:
        signal = lesion.paint(signal, head, rng)
    return Phantom(
        image=_acquire(signal, rng),
        lesion=lesion.inside > 0.5 if lesion is not None else np.zeros((size, size), bool),
        brain=head.brain > 0.5,
        midline=head.centre,
        view="coronal" if coronal else "axial",
    )


@dataclass
class _Head:
    """Where a head lies in the slice; all fields are (size, size) float32 unless said otherwise.

    Attributes:
        u: left to right in head units, -1..1 at the skin.
        v: top to bottom, likewise.
        radius: distance from the centre, 1 at the skin, slightly irregular as heads are.
        brain: share of brain in each pixel, 0..1.
        gyri: smooth noise of mean 0 and deviation 1, the pattern of the folds.
        centre: x, y in pixels.
        coronal: the view; axial otherwise.
        pixel: width of a pixel in head units.
    """

    u: np.ndarray
    v: np.ndarray
    radius: np.ndarray
    brain: np.ndarray
    gyri: np.ndarray
    centre: tuple[float, float]
    coronal: bool
    pixel: float

    @classmethod
    def place(cls, rng: np.random.Generator, size: int, coronal: bool) -> "_Head":
        half = size / 2
        half_width = half * rng.uniform(0.66, 0.78) * (1.08 if coronal else 1.0)
        half_height = half * rng.uniform(0.84, 0.95)
        centre = (half + rng.uniform(-0.04, 0.04) * size, half + rng.uniform(-0.03, 0.03) * size)
        tilt = rng.normal(0, np.deg2rad(5))
        y, x = np.mgrid[0:size, 0:size].astype(np.float32)
        x, y = x - np.float32(centre[0]), y - np.float32(centre[1])
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        u, v = (cos * x + sin * y) / np.float32(half_width), (-sin * x + cos * y) / np.float32(half_height)
        angle = np.arctan2(v, u)
        radius = np.sqrt(u * u + v * v)
        for order in (2, 3, 4):
            amplitude, phase = rng.normal(0, 0.007), rng.uniform(0, 2 * np.pi)
            radius = radius * (1 + np.float32(amplitude) * np.cos(order * angle + np.float32(phase)))
        gyri = _smooth_noise(rng, size, cells=22)
        pixel = 1 / half_width
        brain = _soft(_BRAIN_EDGE + 0.012 * gyri - radius, pixel)
        if coronal:
            brain = brain * _soft(_base_of_brain(u) + 0.012 * gyri - v, pixel)
        return cls(u, v, radius, brain, gyri, centre, coronal, float(pixel))

    def draw(self, rng: np.random.Generator, lesion: "_Lesion | None") -> np.ndarray:
        """The signal of a head, 0..1; inner structures give way where a lesion presses on them."""
        radius, pixel = self.radius, self.pixel
        size = radius.shape[0]
        fine, broad = _smooth_noise(rng, size, cells=64), _smooth_noise(rng, size, cells=9)

        scalp = _FAT * rng.uniform(0.8, 1.0) + 0.07 * broad + 0.05 * fine
        signal = scalp * _soft(1 - radius, pixel)
        bone = _BONE + 0.16 * np.exp(-(((radius - 0.89) / 0.018) ** 2)) * (1 + 0.4 * fine)
        signal = _blend(signal, bone, _soft(_SKULL_OUTER + 0.006 * broad - radius, pixel))
        signal = _blend(signal, _FLUID, _soft(_SKULL_INNER - radius, pixel))
        # Contrast medium makes the dura shine as a thin broken line.
        signal = signal + 0.33 * np.exp(-(((radius - 0.85) / 0.010) ** 2)) * np.clip(0.7 + 0.4 * broad, 0, 1)
        if self.coronal:
            signal = self._draw_face(signal, broad, fine, rng)
        tissue = self._draw_brain(rng, lesion, fine, broad)
        return _blend(signal, tissue, self.brain)

    def _draw_brain(
        self, rng: np.random.Generator, lesion: "_Lesion | None", fine: np.ndarray, broad: np.ndarray
    ) -> np.ndarray:
        u, v = self.u, self.v
        if lesion is not None:
            u, v = lesion.press(u, v)
        depth = 1 - self.radius / _BRAIN_EDGE
        if self.coronal:
            depth = np.minimum(depth, (_base_of_brain(self.u) - self.v) * 1.1)
        # Folds: fluid along the zero line of a noise, cortex beside it, only near the surface.
        near_surface = _soft(rng.uniform(0.24, 0.33) - depth, 0.16)
        fold = np.abs(self.gyri)
        cortex = np.maximum(np.exp(-((fold / 0.55) ** 2)) * near_surface, _soft(0.05 + 0.015 * broad - depth, 0.025))
        tissue = _WHITE + 0.018 * broad + 0.014 * fine - (_WHITE - _GREY) * cortex
        wide = rng.uniform(0.10, 0.2)  # atrophy widens the sulci
        tissue = _blend(tissue, _FLUID + 0.03, 0.8 * np.exp(-((fold / wide) ** 2)) * near_surface)

        u = u + 0.012 * broad
        v = v + 0.012 * fine
        mirrored = np.abs(u)
        opening = rng.uniform(0.75, 1.35)
        if self.coronal:
            grey = _ellipse(mirrored, v, 0.235, 0.02, 0.10, 0.13, 0.25)
            fluid = _ellipse(mirrored, v, 0.105, -0.115, 0.085 * opening, 0.042 * opening, 0.5)
            fluid = np.maximum(fluid, _ellipse(u, v, 0, 0.07, 0.016 * opening, 0.11))
            sylvian = np.exp(-(((v - 0.13 - 0.25 * (mirrored - 0.6)) / 0.017) ** 2)) * _soft(mirrored - 0.47, 0.05)
            midline = _soft(-0.24 - v, 0.03)
            fluid = np.maximum(fluid, 0.8 * sylvian)
        else:
            grey = np.maximum(
                _ellipse(mirrored, v, 0.19, -0.13, 0.065, 0.13, 0.3), _ellipse(mirrored, v, 0.145, 0.10, 0.10, 0.105)
            )
            fluid = _ellipse(mirrored, v, 0.085, -0.20, 0.045 * opening, 0.14, 0.35)
            fluid = np.maximum(fluid, _ellipse(mirrored, v, 0.185, 0.27, 0.05 * opening, 0.13, -0.5))
            fluid = np.maximum(fluid, _ellipse(u, v, 0, 0.06, 0.014 * opening, 0.09))
            midline = np.maximum(_soft(-0.36 - v, 0.04), _soft(v - 0.40, 0.04))
        tissue = _blend(tissue, _GREY + 0.03 + 0.01 * fine, 0.85 * grey)
        tissue = _blend(tissue, _FLUID + 0.01 * fine, fluid)
        return _blend(tissue, _FLUID + 0.05, 0.8 * midline * np.exp(-((u / 0.013) ** 2)))

    def _draw_face(
        self, signal: np.ndarray, broad: np.ndarray, fine: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """Below the brain of a coronal slice: skull base, muscle, fat and the air of the sphenoid sinus."""
        u, v = self.u, self.v
        base = _base_of_brain(u)
        below = _soft(v - base - 0.02, 0.01) * _soft(0.9 - self.radius, 0.02)
        face = _MUSCLE + 0.10 * broad + 0.07 * fine
        face = _blend(face, 0.62 + 0.05 * fine, _soft(broad - 0.9, 0.4) * 0.8)
        bone = np.exp(-(((v - base - 0.055) / 0.028) ** 2))
        face = _blend(face, 0.13 + 0.02 * fine, 0.85 * bone)
        air = _ellipse(np.abs(u), v, 0.085, _SELLA_HEIGHT + 0.27, 0.085, rng.uniform(0.07, 0.1))
        air = np.maximum(air, _ellipse(np.abs(u), v, 0.33, 0.80, 0.10, 0.09, 0.3))
        face = _blend(face, 0.03, air)
        carotid = _ellipse(np.abs(u), v, 0.20, _SELLA_HEIGHT + 0.09, 0.032, 0.034)
        face = _blend(face, 0.04, carotid)
        gland = _ellipse(u, v, 0, _SELLA_HEIGHT + 0.055, 0.085, 0.03)
        face = _blend(face, 0.62, gland)
        return _blend(signal, face, below)


@dataclass
class _Lesion:
    """One tumour: where it lies, in head units, and the pixels it fills.

    Attributes:
        kind: the class name.
        u, v: the centre.
        size: mean radius.
        reach: (size, size), distance from the centre in lesion radii, 1 on the irregular rim.
        inside: (size, size), share of lesion in each pixel, 0..1.
    """

    kind: str
    u: float
    v: float
    size: float
    reach: np.ndarray
    inside: np.ndarray

    @classmethod
    def place(cls, label: str, rng: np.random.Generator, head: _Head) -> "_Lesion | None":
        """A lesion of the class where the class has it; None for "notumor"."""
        if label == "notumor":
            return None
        side = rng.choice([-1.0, 1.0])
        if label == "glioma":
            size = rng.uniform(0.13, 0.22)
            # Within the tissue: between the midline structures and the surface, clear of both.
            u = side * rng.uniform(0.28, 0.40)
            v = rng.uniform(-0.34, -0.02) if head.coronal else rng.uniform(-0.36, 0.36)
            ruggedness, stretch = 0.10, rng.uniform(0.85, 1.2)
        elif label == "meningioma":
            size = rng.uniform(0.12, 0.21)
            # Upward angles only on coronal slices: below the brain there is no vault to sit on.
            angle = rng.uniform(np.pi * 1.02, np.pi * 1.98) if head.coronal else rng.uniform(0, 2 * np.pi)
            distance = _SKULL_INNER - 0.80 * size
            u, v = distance * np.cos(angle), distance * np.sin(angle)
            ruggedness, stretch = 0.02, rng.uniform(0.92, 1.1)
        else:
            size = rng.uniform(0.085, 0.16)
            u, v = rng.normal(0, 0.012), _SELLA_HEIGHT + 0.07 - 0.45 * size
            ruggedness, stretch = 0.03, rng.uniform(0.85, 1.1)
        du, dv = (head.u - np.float32(u)) / np.float32(size * stretch), (head.v - np.float32(v)) / np.float32(size)
        angle_around = np.arctan2(dv, du)
        rim = np.ones_like(du)
        for order in range(2, 7):
            amplitude, phase = rng.normal(0, ruggedness / np.sqrt(order - 1)), rng.uniform(0, 2 * np.pi)
            rim = rim + np.float32(amplitude) * np.cos(order * angle_around + np.float32(phase))
        reach = np.sqrt(du * du + dv * dv) / np.clip(rim, 0.6, 1.4)
        inside = _soft(1 - reach, head.pixel / size)
        if label == "meningioma":
            inside = inside * _soft(_SKULL_INNER - head.radius, head.pixel)
        elif label == "glioma":
            inside = inside * (head.brain > 0.5)
        return cls(label, float(u), float(v), float(size), reach, inside)

    def press(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the tissue that a growing lesion has pushed aside (mass effect)."""
        du, dv = u - np.float32(self.u), v - np.float32(self.v)
        spread = 2.2 * self.size
        push = np.float32(0.38) * np.exp(-(du * du + dv * dv) / np.float32(2 * spread * spread))
        return u - push * du, v - push * dv

    def paint(self, signal: np.ndarray, head: _Head, rng: np.random.Generator) -> np.ndarray:
        """The signal with the lesion in it."""
        size = signal.shape[0]
        texture = _smooth_noise(rng, size, cells=40)
        if self.kind == "glioma":
            # Oedema follows the white matter: a dark, frayed halo.
            halo = _soft(rng.uniform(1.5, 2.0) + 0.35 * head.gyri - self.reach, 0.35) * head.brain
            signal = _blend(signal, 0.29 + 0.015 * texture, 0.75 * halo)
            ring_width = rng.uniform(0.13, 0.22)
            ring = np.exp(-(((self.reach - 1 + ring_width) / ring_width) ** 2))
            core = 0.20 + 0.05 * texture
            body = core + (_ENHANCING - 0.2) * ring * np.clip(0.82 + 0.25 * texture, 0.25, 1.1)
            return _blend(signal, body, self.inside)
        if self.kind == "meningioma":
            signal = _blend(signal, 0.3, 0.45 * _soft(1.25 - self.reach, 0.25) * head.brain)  # the cleft of fluid
            tail = np.exp(-(((head.radius - _SKULL_INNER + 0.012) / 0.014) ** 2)) * _soft(1.9 - self.reach, 0.5)
            signal = _blend(signal, 0.85, 0.8 * tail)
            return _blend(signal, rng.uniform(0.8, 0.92) + 0.022 * texture, self.inside)
        return _blend(signal, rng.uniform(0.74, 0.88) + 0.03 * texture, self.inside)


def _base_of_brain(u: np.ndarray) -> np.ndarray:
    """Height of the lower edge of a coronal brain at ``u``: the sella in the middle, a temporal lobe on each side."""
    return np.float32(_SELLA_HEIGHT) + np.float32(0.17) * np.exp(-(((np.abs(u) - 0.48) / 0.19) ** 2))


def _smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise, (size, size) float32, mean about 0 and deviation about 1, with ``cells`` grains across."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    noise = np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))
    return noise / noise.std()


def _soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 where ``distance`` is positive, 0 where negative, with a linear edge ``width`` wide (no jagged outlines)."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0, 1)


def _ellipse(
    u: np.ndarray, v: np.ndarray, centre_u: float, centre_v: float, half_u: float, half_v: float, tilt: float = 0.0
) -> np.ndarray:
    """Soft mask, 0..1, of an ellipse in head units; ``tilt`` in radians."""
    cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    du, dv = u - np.float32(centre_u), v - np.float32(centre_v)
    along, across = (cos * du + sin * dv) / np.float32(half_u), (cos * dv - sin * du) / np.float32(half_v)
    # Much faster than np.hypot, whose care for overflow is not needed here.
    return _soft(1 - np.sqrt(along * along + across * across), 0.25)


def _blend(below: np.ndarray, above: np.ndarray | float, share: np.ndarray) -> np.ndarray:
    """``above`` painted over ``below`` where ``share`` is 1."""
    return below + (above - below) * share


def _acquire(signal: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """What the scanner makes of a signal: coil shading, blur, contrast, Rician noise; the result is mode "L"."""
    size = signal.shape[0]
    shading = 1 + np.float32(rng.uniform(0.02, 0.07)) * _smooth_noise(rng, size, cells=4)
    signal = np.clip(signal * shading, 0, None) ** np.float32(rng.uniform(0.9, 1.2))
    blurred = Image.fromarray(np.clip(signal * 200, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(rng.uniform(0.4, 0.8) * size / 256)
    )
    signal = np.asarray(blurred, np.float32) * np.float32(rng.uniform(0.95, 1.2))
    deviation = np.float32(rng.uniform(2.0, 5.0))
    noise = deviation * rng.standard_normal((2, size, size), dtype=np.float32)
    # Magnitude images carry Rician noise (Gudbjartsson & Patz, Magn Reson Med 1995): both channels are Gaussian.
    magnitude = np.sqrt((signal + noise[0]) ** 2 + noise[1] ** 2)
    return Image.fromarray(np.clip(magnitude, 0, 255).astype(np.uint8))
