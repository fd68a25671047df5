"""What can go wrong with a slice before a model sees it: eleven disturbances in five strengths, and a sample of slices.

``disturb(grey, "motion", 3, "Testing/glioma/Te-gl_0010.jpg")`` gives the same pixels whenever it is called,
``load_sample(root, protocol, 500)`` the same slices to every model; ``disturbed_images`` makes their images.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torchio
from PIL import Image

from ..data.folders import read_figshare_table, scan_folders
from ..data.protocols import (
    EXTERNAL,
    FIGSHARE_5FOLD,
    AssignedSlice,
    ProtocolArguments,
    assign,
    leaking_share,
)
from ..errors import UserError
from ..images.artefacts import HEAD_LEVEL, NOMINAL_SIDE, as_volume, motion
from ..images.read import UnreadableImageError, load_image
from ..machine import cpu_count


class Disturbance(NamedTuple):
    """One row of the table below.

    Attributes:
        title: for tables and plots.
        parameter: what the numbers mean.
        levels: the parameter at strength 1, 2, 3, 4 and 5.
    """

    title: str
    parameter: str
    levels: tuple[float, float, float, float, float]


# From barely visible to heavy but still readable. Lengths are in pixels of a slice of 256 px, so that a strength means
# the same for every file; grey values are in 0..1. What is not in the table (a direction, a place) is drawn at random.
DISTURBANCES: dict[str, Disturbance] = {
    "motion": Disturbance("Motion", "each of two movements of the head: degrees, and pixels", (0.7, 1.5, 2.5, 4, 6)),
    "ghosting": Disturbance("Ghosting", "weakening of every 3rd to 6th line of k-space", (0.1, 0.2, 0.35, 0.5, 0.7)),
    "spike": Disturbance("Spike", "one point of k-space, as a share of its maximum", (0.08, 0.2, 0.35, 0.55, 0.8)),
    "bias-field": Disturbance("Bias field", "gain in the head where highest : where lowest", (1.3, 1.8, 2.5, 3.5, 5)),
    "noise": Disturbance("Noise", "standard deviation", (0.015, 0.03, 0.05, 0.075, 0.1)),
    "blur": Disturbance("Blur", "standard deviation of the Gaussian, pixels", (0.5, 0.8, 1.2, 1.7, 2.3)),
    "contrast": Disturbance("Contrast", "factor, or one over it, about the mean", (0.85, 0.72, 0.6, 0.5, 0.4)),
    "brightness": Disturbance("Brightness", "factor, or one over it", (0.9, 0.8, 0.7, 0.6, 0.5)),
    "jpeg": Disturbance("JPEG", "quality", (60, 40, 25, 17, 11)),
    "rotation": Disturbance("Rotation", "degrees, to either side", (3, 7, 12, 20, 30)),
    "downsampling": Disturbance("Downsampling", "factor, and back up to the same size", (1.3, 1.7, 2.2, 3, 4)),
}
STRENGTHS = (1, 2, 3, 4, 5)
CLEAN = "clean"
MAX_SIDE = 256
"""Longer sides are reduced to this many pixels first. Half of 512 costs a quarter, and models here see 224 to 240."""
SAMPLE_SEED = "brain-tumor-mri stress 1"
_READERS = min(4, cpu_count())
_MAKERS = ("torchio", "SimpleITK", "torch", "numpy", "scipy", "pillow")


def disturb(grey: np.ndarray, name: str, strength: int, image_id: str) -> np.ndarray:
    """Disturb one slice; the same arguments give the same pixels, in any thread and any order.

    Args:
        grey: (H, W) uint8.
        name: a key of ``DISTURBANCES``, or ``CLEAN``.
        strength: 1 to 5; of no meaning for ``CLEAN``.
        image_id: what the random draws depend on, with name and strength; a slice's published path.

    Returns:
        (H, W) uint8; ``grey`` itself for ``CLEAN``.
    """
    if name == CLEAN:
        return grey
    seed = hashlib.sha256(f"{image_id}|{name}|{strength}".encode()).digest()
    values = _APPLY[name](grey, DISTURBANCES[name].levels[strength - 1], np.random.default_rng(list(seed)))
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _ghosting(grey: np.ndarray, intensity: float, rng: np.random.Generator) -> np.ndarray:
    transform = torchio.Ghosting(
        num_ghosts=int(rng.integers(3, 7)), axis=int(rng.integers(2)), intensity=intensity, restore=0.02
    )
    return 255 * transform(as_volume(grey))[0, :, :, 0].numpy()


def _spike(grey: np.ndarray, intensity: float, rng: np.random.Generator) -> np.ndarray:
    """Stripes 5 to 20 pixels wide, by a point so near the middle that a model's own resizing does not remove them."""
    angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.2)
    place = (0.5 + radius * np.sin(angle), 0.5 + radius * np.cos(angle), 0)
    transform = torchio.Spike(spikes_positions=np.array([place]), intensity=intensity)
    return 255 * transform(as_volume(grey))[0, :, :, 0].numpy()


def _bias_field(grey: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """TorchIO's polynomial field of third order, stretched to ``ratio`` between two places of the head."""
    field = np.log(torchio.BiasField.generate_bias_field(as_volume(grey), 3, rng.uniform(-1, 1, 20))[:, :, 0])
    head = grey >= HEAD_LEVEL * grey.max()  # the corners, where polynomials run away, are of no interest
    field *= np.log(ratio) / max(np.ptp(field[head]), 1e-6)
    # a scanner or a viewer sets the window anew: the head keeps its mean grey value
    gain = np.exp(field)
    return grey * gain * (grey.sum() / max((grey * gain).sum(), 1))


def _noise(grey: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """As torchio.Noise, whose seed however is the process's: with several threads it would decide nothing."""
    return grey + 255 * deviation * rng.standard_normal(grey.shape)


def _blur(grey: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    deviation *= max(grey.shape) / NOMINAL_SIDE
    return 255 * torchio.Blur(std=(deviation, deviation, 0))(as_volume(grey))[0, :, :, 0].numpy()


def _contrast(grey: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    mean = grey.mean()
    return mean + (grey - mean) * _either(factor, rng)


def _brightness(grey: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    return grey * _either(factor, rng)


def _jpeg(grey: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=int(quality))
    return np.asarray(Image.open(buffer))


def _rotation(grey: np.ndarray, degrees: float, rng: np.random.Generator) -> np.ndarray:
    turned = Image.fromarray(grey).rotate(degrees * rng.choice((-1, 1)), Image.Resampling.BILINEAR)
    return np.asarray(turned)


def _downsampling(grey: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    image = Image.fromarray(grey)
    factor *= max(image.size) / NOMINAL_SIDE
    small = [max(1, round(side / max(factor, 1))) for side in image.size]
    return np.asarray(image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR))


def _either(factor: float, rng: np.random.Generator) -> float:
    return factor if rng.random() < 0.5 else 1 / factor


_APPLY: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "motion": motion, "ghosting": _ghosting, "spike": _spike, "bias-field": _bias_field, "noise": _noise,
    "blur": _blur, "contrast": _contrast, "brightness": _brightness, "jpeg": _jpeg, "rotation": _rotation,
    "downsampling": _downsampling,
}  # fmt: skip
"""Each takes (H, W) uint8, its level and a generator; gives (H, W) of any real type on the scale 0..255."""


@dataclass(frozen=True)
class Sample:
    """Slices of a test part, decoded.

    Attributes:
        slices: those that can be read, sorted by path.
        images: (H, W) uint8 of each, the longer side at most ``MAX_SIDE``.
        unreadable: ``path`` and ``reason`` of the drawn slices that cannot be read.
        fingerprint: SHA-256 over the paths, labels, groups and contents of all drawn slices.
        leaking_share: share of the part in 0..1 with a copy or a slice of the same patient in training.
        part_size: images of the whole part.
    """

    slices: list[AssignedSlice]
    images: list[np.ndarray]
    unreadable: list[dict[str, str]]
    fingerprint: str
    leaking_share: float
    part_size: int

    def describe(self) -> dict[str, Any]:
        """Return what metrics.json says of the sample, and of all that decides the pixels of its disturbed images."""
        return {
            "fingerprint": self.fingerprint,
            "seed": SAMPLE_SEED,
            "drawn": len(self.slices) + len(self.unreadable),
            "of": self.part_size,
            "classes": Counter(s.label for s in self.slices),
            "max_side": MAX_SIDE,
            "disturbances": {name: d._asdict() | {"levels": list(d.levels)} for name, d in DISTURBANCES.items()},
            # a release that resamples otherwise gives other pixels
            "made_with": {name: metadata.version(name) for name in _MAKERS},
        }


def load_sample(root: Path, protocol: ProtocolArguments, size: int, *, seed: int = 42) -> Sample:
    """Draw slices of a protocol's test part and decode them; no other file is opened."""
    if size < 1:
        raise UserError(f"--sample {size}: give 1 or more")
    if protocol.protocol == EXTERNAL:
        raise UserError(f"--protocol {EXTERNAL}: has no test part of its own; give another protocol")
    found = read_figshare_table(root) if protocol.protocol == FIGSHARE_5FOLD else scan_folders(root)[0]
    assigned = assign(found, protocol, seed).slices
    test = [s for s in assigned if s.part == "test"]
    share = leaking_share([s.group for s in assigned if s.part == "train"], [s.group for s in test])
    digest = hashlib.sha256()
    slices, images, unreadable = [], [], []
    for s in draw(test, size):
        content = b""
        try:
            content = (root / s.relative).read_bytes()
            images.append(_as_grey(load_image(content, name=s.relative)))
            slices.append(s)
        except UnreadableImageError as error:
            unreadable.append({"path": s.relative, "reason": error.reason})
        except OSError as error:
            unreadable.append({"path": s.relative, "reason": error.strerror or str(error)})
        digest.update(f"{s.relative}|{s.label}|{s.group}|{hashlib.sha256(content).hexdigest()}\n".encode())
    if not slices:
        first = unreadable[0]
        raise UserError(f"{root / first['path']}: {first['reason']}; none of the {size} drawn slices can be read")
    return Sample(slices, images, unreadable, digest.hexdigest(), share, len(test))


def draw(slices: Sequence[AssignedSlice], size: int) -> list[AssignedSlice]:
    """Draw ``size`` slices, sorted by path, each class in its share of all (largest remainders).

    A slice's place in the draw is a hash of its path: neither the order of ``slices`` nor one more or one less of them
    changes which others are drawn, and a smaller sample is part of a larger one but for rounding.
    """
    counts = Counter(s.label for s in slices)
    exact = {label: min(size / len(slices), 1) * n for label, n in sorted(counts.items())}
    quota = {label: int(share) for label, share in exact.items()}
    left = min(size, len(slices)) - sum(quota.values())
    for label in sorted(exact, key=lambda label: quota[label] - exact[label])[:left]:
        quota[label] += 1
    taken: list[AssignedSlice] = []
    for s in sorted(slices, key=lambda s: hashlib.sha256(f"{SAMPLE_SEED}|{s.relative}".encode()).digest()):
        if quota[s.label]:
            quota[s.label] -= 1
            taken.append(s)
    return sorted(taken, key=lambda s: s.relative)


def conditions() -> list[tuple[str, int]]:
    """Return disturbance and strength of every condition, the undisturbed one, ``(CLEAN, 0)``, first."""
    return [(CLEAN, 0)] + [(name, strength) for name in DISTURBANCES for strength in STRENGTHS]


def disturbed_images(
    sample: Sample, jobs: Iterable[tuple[str, int, int]], *, ahead: int = 64
) -> Iterator[tuple[Image.Image, str]]:
    """Make images in order, by threads that work while the last ones are looked at; at most ``ahead`` wait.

    Returns:
        PIL images in mode "L", and a hash of the pixels of each.
    """

    def make(job: tuple[str, int, int]) -> tuple[Image.Image, str]:
        name, strength, place = job
        pixels = disturb(sample.images[place], name, strength, sample.slices[place].relative)
        return Image.fromarray(pixels), hashlib.sha256(pixels.tobytes()).hexdigest()[:16]

    waiting: deque[Future[tuple[Image.Image, str]]] = deque()
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="disturb")
    try:
        for job in jobs:
            waiting.append(pool.submit(make, job))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _as_grey(image: Image.Image) -> np.ndarray:
    grey = image.convert("L")
    grey.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)  # makes smaller only
    return np.array(grey)
