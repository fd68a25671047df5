"""What programs of this project ask of the process, and the library on import does not: decoders that keep quiet."""

import ctypes
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# pydicom's warnings quote values of the header. The filter is set once: changing it around each file is not safe with
# threads. Its log is silent only where this project reads; other users of pydicom keep theirs.
warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
_LOGS = ("pydicom", "pydicom.pixels.decoders.base", "pydicom.pixels.utils")  # a filter is not asked about children's
_here = threading.local()


def quiet_decoders() -> None:
    """Keep what image libraries say about odd files off stderr, where errors of this project already say it.

    Called once at the start of a command, of the page and of a training. (pydicom's warnings quote the header, which
    names a patient: those are silent wherever this project reads DICOM, ``quiet_pydicom``.)
    """
    from PIL import Image  # commands that open no image do not wait for it

    # a filter, set once: warnings.catch_warnings() around each load is not safe with several threads
    for module in (r"PIL\.", r"torchio\."):  # odd metadata; volumes of one slice
        warnings.filterwarnings("ignore", module=module)
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # with no handler Python would print on stderr
    # libtiff writes to stderr from C, besides the error that Pillow raises. Where the platform lets the bundled library
    # be reached through Pillow's own, it is told not to; elsewhere (Windows) the extra lines stay.
    with suppress(OSError, AttributeError):
        silence = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
        silence.argtypes, silence.restype = [ctypes.c_void_p], ctypes.c_void_p
        silence(None)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's log, which quotes the header, off stderr while this thread reads."""
    for log in map(logging.getLogger, _LOGS):
        if _only_others not in log.filters:
            log.addFilter(_only_others)
    before, _here.reading = getattr(_here, "reading", False), True
    try:
        yield
    finally:
        _here.reading = before


def _only_others(record: logging.LogRecord) -> bool:
    return not getattr(_here, "reading", False)
