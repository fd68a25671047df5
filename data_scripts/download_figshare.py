"""Downloads the Figshare brain tumour data set (3,064 slices, 233 patients) and turns it into images and two tables.

``python data_scripts/download_figshare.py --output_dir data/figshare-brain-tumor``; stop and run again to continue.
With the archives at hand already: ``--archive_dir FOLDER``. Source: Cheng et al., figshare
10.6084/m9.figshare.1512427, CC BY 4.0.
"""

import argparse
import csv
import hashlib
import http.client
import io
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a clone that is not installed

from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError
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

_CHUNK = 1 << 20
_ATTEMPTS = 3
_TIMEOUT = 60
_MAX_MAT_BYTES = 64 << 20
_SLICE_NAME = re.compile(r"(\d{1,6})\.mat")


@dataclass(frozen=True)
class RemoteFile:
    """A file of the article: its name, size in bytes, MD5 in hexadecimal, and where it is."""

    name: str
    size: int
    md5: str
    url: str


@dataclass(frozen=True)
class Slice:
    """One slice as it is written.

    Attributes:
        label: 1 meningioma, 2 glioma, 3 pituitary.
        patient_id: as in the source.
        pixels: uint8 (512, 512).
        border: float64 (P, 2), x to the right and y down in pixels of the 512x512 image; (0, 0) is the centre of the
            top left pixel.
    """

    label: int
    patient_id: str
    pixels: np.ndarray
    border: np.ndarray


def list_files(api_url: str = API_URL) -> list[RemoteFile]:
    """Ask figshare which files the article has."""
    address = f"{api_url.rstrip('/')}/articles/{ARTICLE}"
    try:
        with _open(address) as response:
            entries = json.load(response)["files"]
        files = [
            RemoteFile(
                Path(entry["name"]).name,  # a name is a name, never a path
                int(entry["size"]),
                (entry.get("supplied_md5") or entry["computed_md5"]).lower(),
                entry["download_url"],
            )
            for entry in entries
        ]
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"{address} cannot be reached ({_reason(error)}); {BY_HAND}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{address} gave an answer that is no list of files; {BY_HAND}") from error
    wanted = [file for file in files if file.name.endswith(".zip") or file.name == FOLDS_FILE]
    if FOLDS_FILE not in {file.name for file in wanted} or len(wanted) < 2:
        raise UserError(f"{address} lists no archives with {FOLDS_FILE}; {BY_HAND}")
    return wanted


def download(file: RemoteFile, folder: Path, progress: Any = None) -> Path:
    """Get one file, going on where an earlier attempt stopped (``NAME.part``), and check its MD5."""
    path, part = folder / file.name, folder / f"{file.name}.part"
    if path.exists():
        if _md5(path) == file.md5:
            return path
        path.unlink()
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            _fetch(file, part, progress)
        except (OSError, http.client.HTTPException) as error:
            failure = _reason(error)
            continue
        if part.stat().st_size >= file.size:
            break
        failure = "the connection ended early"
    else:
        raise UserError(f"{file.name}: {failure}; run the command again to continue, or {BY_HAND}")
    if _md5(part) != file.md5:
        part.unlink()
        raise UserError(
            f"{file.name}: the MD5 differs from the published one; run the command again to download it anew"
        )
    os.replace(part, path)
    return path


def read_folds(data: bytes) -> np.ndarray:
    """The published folds out of cvind.mat, MATLAB v7.3 or older.

    Returns:
        int64 (S,), 1..5; entry k is the fold of slice k + 1.
    """
    try:
        if data.startswith(b"MATLAB 5.0"):
            from scipy.io import loadmat

            values = loadmat(io.BytesIO(data))["cvind"]
        else:
            with _h5py().File(io.BytesIO(data), "r") as file:
                values = file["cvind"][()]
        folds = np.asarray(values).ravel().astype(np.int64)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{FOLDS_FILE}: not the file of folds ({_reason(error)}); download it again") from error
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
            f"{name}: not a slice of this data set ({_reason(error)}); download the archive again"
        ) from error
    height, width = image.shape
    if height != width or mask.shape != image.shape or image.max() <= 0 or label not in LABEL_NAMES or len(border) % 2:
        raise UserError(f"{name}: image, mask, label or border are not as published; download the archive again")
    grey = np.rint(np.clip(image, 0, None) / image.max() * 255).astype(np.uint8)
    points = _orient_border(border.reshape(-1, 2) - 1, mask, name)
    if width != SIZE:
        grey = np.asarray(Image.fromarray(grey).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        points = (points + 0.5) * (SIZE / width) - 0.5  # what scales is the distance from the edge, not from a centre
    return Slice(label, patient_id, grey, points)


def convert(archives: list[Path], output_dir: Path, *, progress: Any = None) -> dict[str, Any]:
    """Write images/, slices.csv and borders.jsonl from the archives."""
    folds_path = next((path for path in archives if path.name == FOLDS_FILE), None)
    if folds_path is None:
        raise UserError(f"{FOLDS_FILE} is missing; {BY_HAND}")
    folds = read_folds(folds_path.read_bytes())
    members = dict(_members(archives))
    missing = sorted(set(range(1, len(folds) + 1)) - set(members))
    if missing:
        raise UserError(
            f"{len(missing):,} of {len(folds):,} slices are missing, from {missing[0]}.mat on: "
            f"an archive is not there; {BY_HAND}"
        )
    images = output_dir / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    borders: list[str] = []
    enlarged = 0
    open_archives: dict[Path, zipfile.ZipFile] = {}
    try:
        for image_id in range(1, len(folds) + 1):
            path, member = members[image_id]
            data = _member_bytes(path, member, open_archives)
            one = read_slice(data, f"{path.name}/{member}" if member else path.name)
            enlarged += _is_enlarged(data)
            encoded = io.BytesIO()
            Image.fromarray(one.pixels).save(encoded, "JPEG", quality=95)
            _write(images / f"{image_id}.jpg", encoded.getvalue())
            rows.append(
                {
                    "image_id": image_id,
                    "label": one.label,
                    "label_name": LABEL_NAMES[one.label],
                    "patient_id": one.patient_id,
                    "fold": int(folds[image_id - 1]),
                }
            )
            borders.append(json.dumps({"image_id": image_id, "border": one.border.round(1).tolist()}))
            if progress is not None:
                progress(image_id, len(folds))
    finally:
        for archive in open_archives.values():
            archive.close()
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(output_dir / "slices.csv", table.getvalue().encode())
    _write(output_dir / "borders.jsonl", "".join(f"{line}\n" for line in borders).encode())
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
    columns = (TextColumn("{task.description}"), BarColumn())
    console = Console(stderr=True)
    try:
        if args.archive_dir:
            archives = _local_archives(Path(args.archive_dir))
        else:
            folder = output / "archives"
            files = list_files(args.api_url)
            folder.mkdir(parents=True, exist_ok=True)
            with Progress(*columns, DownloadColumn(), console=console, transient=True) as bar:
                archives = []
                for file in files:
                    task = bar.add_task(file.name, total=file.size)
                    archives.append(download(file, folder, lambda n, task=task: bar.update(task, completed=n)))
                    bar.update(task, completed=file.size)
        with Progress(*columns, MofNCompleteColumn(), console=console, transient=True) as bar:
            task = bar.add_task("Converting slices", total=None)
            return convert(archives, output, progress=lambda done, total: bar.update(task, completed=done, total=total))
    except OSError as error:
        raise UserError(f"{error.filename or output}: {error.strerror or error}") from error


def _fetch(file: RemoteFile, part: Path, progress: Any) -> None:
    """One attempt at the rest of a file; what arrives is kept in ``part`` whatever happens."""
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    if have == file.size:
        return
    with _open(file.url, {"Range": f"bytes={have}-"} if have else {}) as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        with part.open("ab" if resumed else "wb") as out:
            have = have if resumed else 0
            while block := response.read(_CHUNK):
                out.write(block)
                have += len(block)
                if progress is not None:
                    progress(have)


def _open(address: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        raise OSError(f"{address} is no web address")
    request = urllib.request.Request(address, headers={"User-Agent": "brain-tumor-mri", **(headers or {})})
    response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT)
    return response


def _local_archives(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--archive_dir {folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix in (".zip", ".mat") and p.is_file())
    if not any(path.name == FOLDS_FILE for path in found):
        raise UserError(f"--archive_dir {folder}: holds no {FOLDS_FILE}; {PAGE_URL} has it beside the archives")
    return found


def _members(archives: list[Path]) -> Iterator[tuple[int, tuple[Path, str]]]:
    """Slice number, archive and member of every slice. Nothing is unpacked, so no member can be written elsewhere."""
    for path in archives:
        if path.suffix == ".zip":
            try:
                with zipfile.ZipFile(path) as archive:
                    names = archive.namelist()
            except (zipfile.BadZipFile, OSError) as error:
                raise UserError(f"{path}: not a readable zip archive ({error}); download it again") from error
        else:
            names = [path.name]
        for name in names:
            match = _SLICE_NAME.fullmatch(name.rpartition("/")[2])
            if match:
                yield int(match[1]), (path, name if path.suffix == ".zip" else "")


def _member_bytes(path: Path, member: str, open_archives: dict[Path, zipfile.ZipFile]) -> bytes:
    if not member:
        return path.read_bytes()
    try:
        if path not in open_archives:
            open_archives[path] = zipfile.ZipFile(path)
        # Sizes in a zip are claims: the read itself is bounded, so that a bomb stops here.
        with open_archives[path].open(member) as file:
            data = file.read(_MAX_MAT_BYTES + 1)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: {member} is damaged ({error}); download the archive again") from error
    if len(data) > _MAX_MAT_BYTES:
        raise UserError(f"{path}: {member} is over {_MAX_MAT_BYTES >> 20} MB, more than a slice can be")
    return data


def _is_enlarged(data: bytes) -> bool:
    with _h5py().File(io.BytesIO(data), "r") as file:
        return bool(file["cjdata/image"].shape[0] != SIZE)


def _orient_border(points: np.ndarray, mask: np.ndarray, name: str) -> np.ndarray:
    """The points as (x, y): of both readings of the vector, the one whose polygon covers the mask.

    The source says "[x1, y1, x2, y2, ...]" and not which of the two is the row; the mask does.
    """
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
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        _feed(file, digest)
    return digest.hexdigest()


def _feed(file: IO[bytes], digest: Any) -> None:
    while block := file.read(_CHUNK):
        digest.update(block)


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(data)
    os.replace(beside, path)


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, BaseException) else error
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


if __name__ == "__main__":
    sys.exit(main())
