"""Which files a person means: ``find_images(["folder", "scan_*.png"])`` lists images; it opens those without suffix."""

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError, safe_line

IMAGE_SUFFIXES: frozenset[str] = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""What a picture's name ends with; data sets hold these alone."""
DICOM_SUFFIXES: frozenset[str] = frozenset({".dcm", ".dicom", ".ima"})
"""What a folder or pattern yields besides; and files without suffix, as scanners write them, that begin as DICOM."""
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd")
"""What a volume's name ends with; a series of DICOM files is one, too."""
SEQUENCE_PATH = re.compile(r"(?P<sequence>t1|t1c|t2|flair|pd)=(?P<path>.+)", re.IGNORECASE)
"""How a volume's sequence is given with its path: ``t1c=scan.nii.gz``."""
_FOUND_SUFFIXES = IMAGE_SUFFIXES | DICOM_SUFFIXES


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Expand files, folders and glob patterns into a list of image files.

    Args:
        paths: files, kept whatever their suffix and even if missing, so that a person sees what became of each;
            folders, searched to any depth for ``IMAGE_SUFFIXES`` and ``DICOM_SUFFIXES`` (upper or lower case) and for
            DICOM files without suffix (``IM0001``, ``1.2.840.113``), skipping hidden files and folders; and patterns
            such as ``scans/**/*.png``, whose matches are treated like the content of a folder.

    Returns:
        Paths in the order given, those of a folder or pattern in natural order (``s2.png`` before ``s10.png``), each
        file once.
    """
    found: dict[str, Path] = {}
    for given in paths:
        text = os.fspath(given)
        if not text:
            raise UserError("an empty path was given; name a file, a folder or a pattern")
        path = Path(text)
        if _is_dir(path):
            matches = _images_in_folder(path)
            if not matches:
                volumes = any(str(file).lower().endswith(VOLUME_SUFFIXES) for file in path.rglob("*"))
                hint = "; there are volumes in it, which `predict --volume` answers" if volumes else ""
                raise UserError(f"{safe_line(text)}: the folder holds no images ({_suffix_list()}){hint}")
        elif glob.has_magic(text) and not os.path.lexists(text):
            matches = _images_matching(text)
            if not matches:
                raise UserError(f"{safe_line(text)}: no image matches this pattern ({_suffix_list()})")
        else:
            matches = [path]
        for match in matches:
            found.setdefault(os.path.abspath(match), match)
    return list(found.values())


def _is_dir(path: Path) -> bool:
    # os.path.isdir answers False for names that the system cannot hold, where Path.is_dir may raise.
    return os.path.isdir(path)


def _images_in_folder(folder: Path) -> list[Path]:
    """Images below ``folder`` in natural order; linked folders are followed, each real folder once."""
    images: list[Path] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise UserError(f"{safe_line(str(error.filename))}: {error.strerror}")

    for where, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted((f for f in folders if not f.startswith(".")), key=_natural_key)
        images += [path for f in files if _is_visible_image(path := Path(where, f))]
    return sorted(images, key=lambda p: [_natural_key(part) for part in p.parts])


def _images_matching(pattern: str) -> list[Path]:
    """Images that a glob pattern names, itself or through the folders that it names."""
    images: list[Path] = []
    for match in sorted(glob.glob(pattern, recursive=True), key=_natural_key):
        path = Path(match)
        if _is_dir(path):
            images += _images_in_folder(path)
        elif _is_visible_image(path):
            images.append(path)
    return images


def _is_visible_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    suffix = path.suffix.lower()
    # a unique identifier is a name, too, and its last number no suffix
    return suffix in _FOUND_SUFFIXES or ((not suffix or suffix[1:].isdigit()) and _begins_as_dicom(path))


def _begins_as_dicom(path: Path) -> bool:
    from .formats import looks_bare  # Pillow and NumPy, which a command's --help does not need

    if path.name.upper() == "DICOMDIR" or not path.is_file():  # an index of slices; a pipe could wait for ever
        return False
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or looks_bare(head[:9])


def _natural_key(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which numbers in names count as numbers."""
    return [
        (0, int(part), part) if part.isascii() and part.isdigit() else (1, 0, part.lower())
        for part in re.split(r"(\d+)", text)
        if part
    ] + [(2, 0, text)]


def _suffix_list() -> str:
    return f"{', '.join(sorted(_FOUND_SUFFIXES))}, or DICOM without suffix"
