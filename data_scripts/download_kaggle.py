"""Fetch the Kaggle data set "Brain Tumor MRI Dataset" (Masoud Nickparvar) into ``Training/`` and ``Testing/`` folders.

``python data_scripts/download_kaggle.py --output_dir data/brain-tumor-mri-dataset`` downloads it with kagglehub; with
``--archive FILE.zip`` it unpacks a copy downloaded by hand. A second run finds the data and returns at once.
"""

import argparse
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import track

from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError, first_line
from brain_tumor_mri.images.find import IMAGE_SUFFIXES
from brain_tumor_mri.labels import FOLDER_TO_LABEL, LABELS

HANDLE = "masoudnickparvar/brain-tumor-mri-dataset"
PAGE = f"https://www.kaggle.com/datasets/{HANDLE}"
DEFAULT_OUTPUT_DIR = Path("data/brain-tumor-mri-dataset")
MAX_UNPACKED_BYTES = 5 * 1024**3
"""Limit for a zip; the real one holds about 7,000 files and 0.16 GB."""

_SPLITS = ("Training", "Testing")
_USUAL_COUNTS = {"Training": 5712, "Testing": 1311}
_PARTIAL = ".partial"
_BY_HAND = (
    f"Download {PAGE} in a browser, then run this again with --archive FILE.zip, "
    "or unzip it and give the folder to train.py as --data_dir FOLDER"
)

Counts = dict[str, dict[str, int]]
Source = Path | zipfile.Path


def count_images(folder: Path) -> Counts | None:
    """Count the images of a data folder."""
    counts: Counts = {}
    for split in _SPLITS:
        counts[split] = dict.fromkeys(LABELS, 0)
        for name, label in FOLDER_TO_LABEL.items():
            with suppress(OSError), os.scandir(folder / split / name) as entries:
                counts[split][label] += sum(_is_image(PurePosixPath(entry.name)) for entry in entries)
    return counts if all(n > 0 for split in counts.values() for n in split.values()) else None


def install_archive(archive: Path, output_dir: Path, *, force: bool = False) -> Counts:
    """Unpack a zip downloaded by hand; see :func:`install` for what is left in which case."""
    try:
        with zipfile.ZipFile(archive) as bundle:
            # zipfile reads no more of a member than its declared size, so the sum is a true limit
            if (total := sum(member.file_size for member in bundle.infolist())) > MAX_UNPACKED_BYTES:
                gigabytes = f"{total / 1024**3:.1f} GiB; the limit is {MAX_UNPACKED_BYTES / 1024**3:.0f} GiB"
                raise UserError(f"{archive}: would unpack to {gigabytes}")
            files = {name: zipfile.Path(bundle, name) for name in bundle.namelist()}
            return install(files, output_dir, str(archive), force=force)
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or archive}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{archive}: this is a folder; --archive takes the zip file") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # the last of one that is encrypted
        raise UserError(f"{archive}: not a readable zip file ({error}); download it again from {PAGE}") from error


def install_folder(source: Path, output_dir: Path, *, force: bool = False) -> Counts:
    """As :func:`install_archive`, from an unpacked folder."""
    files = {path.relative_to(source).as_posix(): path for path in sorted(source.rglob("*")) if path.is_file()}
    return install(files, output_dir, str(source), force=force)


def _copy(source: Source, target: Path) -> None:
    """Hard-link a file where the disk allows, else copy it."""
    if isinstance(source, Path):
        with suppress(OSError):  # another disk, or a file system without hard links
            return os.link(source, target)
    with source.open("rb") as content, target.open("wb") as sink:
        shutil.copyfileobj(content, sink)
    return None


def install(files: Mapping[str, Source], output_dir: Path, source: str, *, force: bool = False) -> Counts:
    """Write the images among ``files`` as ``output_dir/Training|Testing/CLASS/NAME``.

    They are written into ``output_dir/.partial`` and renamed when all are there: at no moment does a half-written
    folder look complete, and a run that was cut off is simply run again. Only an image within a part and a class is
    taken; anything else that a bundle holds is left out.
    """
    targets = _find_layout(files, source)
    partial = output_dir / _PARTIAL
    # A .partial folder shows that what lies here is ours and was cut off, so that it may be replaced unasked.
    if not force and not partial.exists() and (taken := [s for s in _SPLITS if (output_dir / s).exists()]):
        raise UserError(
            f"{output_dir}: {' and '.join(taken)} exist but some classes have no images; "
            "--force replaces them, another --output_dir keeps them"
        )
    try:
        existed = output_dir.exists()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for folder in {target.parent for target in targets.values()}:
                (partial / folder).mkdir(parents=True)
            for name, target in _progress(targets.items(), "Unpacking"):
                _copy(files[name], partial / target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            if not existed:
                with suppress(OSError):
                    output_dir.rmdir()
            raise
        for split in _SPLITS:
            if (output_dir / split).exists():
                (output_dir / split).rename(partial / f"replaced-{split}")
        for split in _SPLITS:
            (partial / split).rename(output_dir / split)
        shutil.rmtree(partial)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{output_dir}: this is a file; --output_dir takes a folder") from error
    except OSError as error:
        raise UserError(f"{error.filename or output_dir}: {first_line(error)}") from error
    counts = count_images(output_dir)
    if counts is None:
        raise UserError(f"{output_dir}: files vanished while they were written; run this again with --force")
    return counts


def download(output_dir: Path, *, force: bool = False) -> Counts:
    """Download the data set with kagglehub and install it.

    kagglehub's own cache is used and not its ``output_dir``: only in the cache does it resume a download that was cut
    off (with ``output_dir`` it refuses the half-filled folder), and it would leave half-unpacked folders there. Its
    extraction is safe: zipfile strips ``..`` and never makes links, tarfile is called with ``filter="data"``.
    """
    try:
        import kagglehub

        folder = Path(kagglehub.dataset_download(HANDLE, force_download=force))
    except Exception as error:  # requests, kagglehub and kagglesdk raise many kinds, partly bare Exception
        raise UserError(f"{_why_no_download(error)}. {_BY_HAND}") from error
    return install_folder(folder, output_dir, force=force)


def _find_layout(names: Iterable[str], source: str) -> dict[str, PurePosixPath]:
    """Which file goes where, ``{name: Training/glioma/x.jpg}``, for the outermost folder with both parts complete.

    Nothing of a name but its last part is kept, so that none leads out of the folder.
    """
    found: dict[tuple[str, ...], dict[str, PurePosixPath]] = {}
    split_names = {split.lower(): split for split in _SPLITS}
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) < 3 or not _is_image(path) or "__MACOSX" in path.parts:
            continue
        *root, split, folder, file = path.parts
        if split.lower() in split_names and folder.lower() in FOLDER_TO_LABEL:
            target = PurePosixPath(split_names[split.lower()], FOLDER_TO_LABEL[folder.lower()], file)
            found.setdefault(tuple(root), {})[name] = target
    wanted = {PurePosixPath(split, label) for split in _SPLITS for label in LABELS}
    for root in sorted(found, key=len):
        if {target.parent for target in found[root].values()} == wanted:
            return found[root]
    raise UserError(f"{source}: holds no Training and Testing folders with images of {', '.join(LABELS)}")


def _is_image(path: PurePosixPath) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _progress(items: Iterable, text: str) -> Iterable:
    console = Console(stderr=True)
    return track(list(items), description=text, console=console, transient=True, disable=not console.is_terminal)


def _why_no_download(error: Exception) -> str:
    """A short reason; the library's own messages run over several lines, and might quote a request."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, ImportError):
        return f"kagglehub cannot be imported (pip install kagglehub): {type(error).__name__}"
    if status in (401, 403):
        return f"Kaggle refuses access (HTTP {status}; check your Kaggle credentials)"
    if status is not None:
        return f"Kaggle answered with an error (HTTP {status})"
    if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError):
        return "what Kaggle sent is damaged"
    if type(error).__module__.partition(".")[0] in ("requests", "urllib3"):
        return f"Kaggle cannot be reached ({type(error).__name__})"
    if isinstance(error, OSError) and error.strerror:
        return f"the download cannot be stored ({error.strerror})"
    return f"the download from Kaggle failed ({type(error).__name__})"


def _summary(counts: Counts, output_dir: Path) -> str:
    parts = []
    for split, classes in counts.items():
        listed = ", ".join(f"{label} {n}" for label, n in classes.items())
        parts.append(f"{split} {sum(classes.values())} ({listed})")
    text = f"{output_dir}: " + "; ".join(parts)
    if any(sum(counts[split].values()) != usual for split, usual in _USUAL_COUNTS.items()):
        usual = " and ".join(f"{n} {split}" for split, n in _USUAL_COUNTS.items())
        text += f"\nNote: the copy that published results are about has {usual} images; this one differs."
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument("--output_dir", type=Path, default=DEFAULT_OUTPUT_DIR, help="default: %(default)s")
    parser.add_argument("--archive", type=Path, metavar="FILE.zip", help=f"unpack this zip, downloaded from {PAGE}")
    parser.add_argument("--force", action="store_true", help="fetch again and replace Training and Testing")


def run(args: argparse.Namespace) -> None:
    """Find, unpack or download the data, and say how much it is."""
    interrupted = (args.output_dir / _PARTIAL).exists()
    counts = None if args.force or interrupted else count_images(args.output_dir)
    if counts is None and args.archive:
        counts = install_archive(args.archive, args.output_dir, force=args.force)
    elif counts is None:
        counts = download(args.output_dir, force=args.force)
    print(_summary(counts, args.output_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see ``script.exit_status``."""
    return run_script(__doc__, add_arguments, run, argv)


if __name__ == "__main__":
    sys.exit(main())
