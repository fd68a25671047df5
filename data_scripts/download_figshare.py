"""Downloads the Figshare brain tumour data set (3,064 slices, 233 patients) and turns it into images and two tables.

``python data_scripts/download_figshare.py --output_dir data/figshare-brain-tumor``; stop and run again to continue.
With the archives at hand already: ``--archive_dir FOLDER``. Source: Cheng et al., figshare
10.6084/m9.figshare.1512427, CC BY 4.0.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.commands.progress import ProgressBar
from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError, first_line
from brain_tumor_mri.files import replacing
from brain_tumor_mri.labels import LABELS

ARTICLE = 1512427
API_URL = "https://api.figshare.com/v2"
PAGE_URL = f"https://figshare.com/articles/dataset/brain_tumor_dataset/{ARTICLE}"
BY_HAND = f"download all files of {PAGE_URL} in a browser and give their folder by --archive_dir"
SIZE = 512
"""Side of every written image, in pixels; 15 slices come with 256 and are enlarged."""

_GLIOMA, _MENINGIOMA, _, _PITUITARY = LABELS
LABEL_NAMES = {1: _MENINGIOMA, 2: _GLIOMA, 3: _PITUITARY}
FOLDS_FILE = "cvind.mat"

_ATTEMPTS = 3
_HTTP: dict[str, Any] = {"follow_redirects": True, "timeout": 60}
_MAX_MAT_BYTES = 64 << 20
_SLICE_NAME = re.compile(r"(\d{1,6})\.mat")

Source = Path | zipfile.Path


@dataclass(frozen=True)
class RemoteFile:
    """A file of the article: its name, size in bytes, MD5 in hexadecimal, and where it is."""

    name: str
    size: int
    md5: str
    url: str


@dataclass(frozen=True)
class Slice:
    """One slice as it is written: uint8 (512, 512), enlarged where the source has fewer pixels.

    The border is float64 (P, 2), x to the right and y down; (0, 0) is the centre of the top left pixel.
    """

    label: int
    patient_id: str
    pixels: np.ndarray
    border: np.ndarray
    enlarged: bool


def list_files(api_url: str = API_URL) -> list[RemoteFile]:
    """Ask figshare which files the article has."""
    address = f"{api_url.rstrip('/')}/articles/{ARTICLE}"
    try:
        files = [
            RemoteFile(
                Path(entry["name"]).name,  # a name is a name, never a path
                int(entry["size"]),
                (entry.get("supplied_md5") or entry["computed_md5"]).lower(),
                entry["download_url"],
            )
            for entry in httpx.get(address, **_HTTP).raise_for_status().json()["files"]
        ]
    except httpx.HTTPError as error:
        raise UserError(f"{address} cannot be reached ({first_line(error)}); {BY_HAND}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{address} gave an answer that is no list of files; {BY_HAND}") from error
    wanted = [file for file in files if file.name.endswith(".zip") or file.name == FOLDS_FILE]
    if FOLDS_FILE not in {file.name for file in wanted} or len(wanted) < 2:
        raise UserError(f"{address} lists no archives with {FOLDS_FILE}; {BY_HAND}")
    return wanted


def download(file: RemoteFile, folder: Path, progress: Callable[[int], None]) -> Path:
    """Get one file, going on where an earlier attempt stopped (``NAME.part``), and check its MD5."""
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.exists() and _md5(path) == file.md5:
        return path
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _fetch(file, part, progress)
            break
        except httpx.HTTPError as error:
            if attempt == _ATTEMPTS:
                told = f"{file.name}: {first_line(error)}; run the command again to continue, or {BY_HAND}"
                raise UserError(told) from error
    if _md5(part) != file.md5:
        part.unlink()
        raise UserError(
            f"{file.name}: the MD5 differs from the published one; run the command again to download it anew"
        )
    return part.replace(path)


def read_folds(data: bytes) -> np.ndarray:
    """The published folds, 1..5, out of cvind.mat, MATLAB v7.3 or older; entry k is that of slice k + 1."""
    try:
        if data.startswith(b"MATLAB 5.0"):
            from scipy.io import loadmat

            values = loadmat(io.BytesIO(data))["cvind"]
        else:
            with _h5py().File(io.BytesIO(data), "r") as file:
                values = file["cvind"][()]
        folds = np.asarray(values).ravel().astype(np.int64)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{FOLDS_FILE}: not the file of folds ({first_line(error)}); download it again") from error
    if not len(folds) or folds.min() < 1 or folds.max() > 5:
        raise UserError(f"{FOLDS_FILE}: folds are not numbers from 1 to 5; download it again")
    return folds


def read_slice(data: bytes, name: str) -> Slice:
    """One MATLAB v7.3 file to 8 bits, upright, 512x512.

    MATLAB stores by column and HDF5 by row, so that arrays arrive transposed. Grey values (int16) are divided by the
    slice's maximum and multiplied by 255, negative ones become 0. Border coordinates are 1-based, at pixel centres.
    """
    try:
        with _h5py().File(io.BytesIO(data), "r") as file:
            record = file["cjdata"]
            image = np.asarray(record["image"][()], np.float64).T
            mask = np.asarray(record["tumorMask"][()]).T > 0
            label = int(np.asarray(record["label"][()]).item())
            patient_id = "".join(chr(int(code)) for code in np.asarray(record["PID"][()]).ravel()).strip()
            border = np.asarray(record["tumorBorder"][()], np.float64).ravel()
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{name}: not a slice of this data set ({first_line(error)}); download the archive again"
        ) from error
    height, width = image.shape
    if height != width or mask.shape != image.shape or image.max() <= 0 or label not in LABEL_NAMES or len(border) % 2:
        raise UserError(f"{name}: image, mask, label or border are not as published; download the archive again")
    grey = np.rint(np.clip(image, 0, None) / image.max() * 255).astype(np.uint8)
    points = _orient_border(border.reshape(-1, 2) - 1, mask, name)
    if width != SIZE:
        grey = np.asarray(Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        points = (points + 0.5) * (SIZE / width) - 0.5  # what scales is the distance from the edge, not from a centre
    return Slice(label, patient_id, grey, points, width != SIZE)


def convert(archives: list[Path], output_dir: Path, progress: Callable[[int, int], None]) -> dict[str, Any]:
    """Write images/, slices.csv and borders.jsonl from the archives."""
    folds_path = next((path for path in archives if path.name == FOLDS_FILE), None)
    if folds_path is None:
        raise UserError(f"{FOLDS_FILE} is missing; {BY_HAND}")
    folds = read_folds(folds_path.read_bytes()).tolist()
    images = output_dir / "images"
    rows: list[dict[str, Any]] = []
    borders: list[dict[str, Any]] = []
    enlarged = 0
    with ExitStack() as opened:
        sources = _find_slices(archives, opened)
        if missing := sorted(set(range(1, len(folds) + 1)) - set(sources)):
            raise UserError(
                f"{len(missing):,} of {len(folds):,} slices are missing, from {missing[0]}.mat on: "
                f"an archive is not there; {BY_HAND}"
            )
        images.mkdir(parents=True, exist_ok=True)
        for image_id, fold in enumerate(folds, 1):
            one = read_slice(_read(sources[image_id]), str(sources[image_id]))
            enlarged += one.enlarged
            Image.fromarray(one.pixels).save(images / f"{image_id}.jpg", quality=95)
            name = LABEL_NAMES[one.label]
            row = {"image_id": image_id, "label": one.label, "label_name": name, "patient_id": one.patient_id}
            rows.append(row | {"fold": fold})
            borders.append({"image_id": image_id, "border": one.border.round(1).tolist()})
            progress(image_id, len(folds))
    with replacing(output_dir / "borders.jsonl") as file:
        file.writelines(f"{json.dumps(border)}\n" for border in borders)
    with replacing(output_dir / "slices.csv", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return {
        "slices": len(rows),
        "patients": len({row["patient_id"] for row in rows}),
        "enlarged": enlarged,
        "by_class": {name: sum(row["label_name"] == name for row in rows) for name in LABEL_NAMES.values()},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; see ``script.exit_status``."""
    return run_script(__doc__, add_arguments, run, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--output_dir", default="data/figshare-brain-tumor", help="where the data goes (%(default)s)")
    parser.add_argument("--archive_dir", help="folder with the archives and cvind.mat, downloaded by hand")
    parser.add_argument("--api_url", default=API_URL, help="figshare's API (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and nothing else")


def run(args: argparse.Namespace) -> None:
    """Download, convert and print a summary."""
    counts = _run(args)
    if args.json:
        print(json.dumps(counts))
        return
    by_class = ", ".join(f"{name} {count:,}" for name, count in counts["by_class"].items())
    print(
        f"{counts['slices']:,} slices of {counts['patients']:,} patients ({by_class}; "
        f"{counts['enlarged']} enlarged from 256 px) in {args.output_dir}"
    )


def _run(args: argparse.Namespace) -> dict[str, Any]:
    _h5py()  # better said before 880 MB are downloaded than after
    output = Path(args.output_dir)
    try:
        if args.archive_dir:
            archives = _local_archives(Path(args.archive_dir))
        else:
            folder = output / "archives"
            files = list_files(args.api_url)
            folder.mkdir(parents=True, exist_ok=True)
            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                archives = []
                for file in files:
                    task = bar.add_task(file.name, total=file.size)
                    archives.append(download(file, folder, lambda n, task=task: bar.update(task, completed=n)))
        with ProgressBar() as bar:
            return convert(archives, output, partial(bar, "Converting slices"))
    except OSError as error:
        raise UserError(f"{error.filename or output}: {first_line(error)}") from error


def _fetch(file: RemoteFile, part: Path, progress: Callable[[int], None]) -> None:
    """One attempt at the rest of a file; what arrives is kept in ``part`` whatever happens."""
    have = part.stat().st_size if part.exists() else 0
    if have == file.size:
        return
    wanted = {"Range": f"bytes={have}-"} if 0 < have < file.size else {}
    with httpx.stream("GET", file.url, headers=wanted, **_HTTP) as response:
        resumed = response.raise_for_status().status_code == httpx.codes.PARTIAL_CONTENT
        have = have if resumed else 0
        with part.open("ab" if resumed else "wb") as out:
            for block in response.iter_raw():
                have += out.write(block)
                progress(have)


def _local_archives(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--archive_dir {folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".zip", ".mat") and p.is_file())
    if not any(path.name == FOLDS_FILE for path in found):
        raise UserError(f"--archive_dir {folder}: holds no {FOLDS_FILE}; {PAGE_URL} has it beside the archives")
    return found


def _find_slices(archives: list[Path], opened: ExitStack) -> dict[int, Source]:
    """Where each slice is, by its number. Nothing is unpacked, so no member can be written elsewhere."""
    found: dict[int, Source] = {}
    for path in archives:
        try:
            archive = opened.enter_context(zipfile.ZipFile(path)) if path.suffix == ".zip" else None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path}: not a readable zip archive ({error}); download it again") from error
        for name in archive.namelist() if archive else [path.name]:
            if match := _SLICE_NAME.fullmatch(name.rpartition("/")[2]):
                found[int(match[1])] = zipfile.Path(archive, name) if archive else path
    return found


def _read(source: Source) -> bytes:
    try:
        # Sizes in a zip are claims: the read itself is bounded, so that a bomb stops here.
        with source.open("rb") as file:
            data = file.read(_MAX_MAT_BYTES + 1)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{source} is damaged ({error}); download the archive again") from error
    if len(data) > _MAX_MAT_BYTES:
        raise UserError(f"{source} is over {_MAX_MAT_BYTES >> 20} MB, more than a slice can be")
    return data


def _orient_border(points: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """The points as (x, y): the source does not say which of the two is the row; the mask does."""
    readings = (points, points[:, ::-1])
    overlaps = [_overlap(reading, mask) for reading in readings]
    if max(overlaps) < 0.5:
        raise UserError(f"{name}: the border does not outline the mask; download the archive again")
    return readings[int(np.argmax(overlaps))]


def _overlap(points: np.ndarray, mask: np.ndarray) -> float:
    """Intersection over union of the filled polygon and the mask, in [0, 1]."""
    if len(points) < 3:
        return 0.0
    canvas = Image.new("1", (mask.shape[1], mask.shape[0]))
    ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in points], fill=1, outline=1)
    drawn = np.asarray(canvas)
    return float((drawn & mask).sum() / max((drawn | mask).sum(), 1))


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError as error:
        raise UserError("h5py is not installed and reads these MATLAB files; run: pip install h5py") from error
    return h5py


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
