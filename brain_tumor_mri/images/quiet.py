"""What programs of this project ask of the process, and the library on import does not: decoders that keep quiet."""

import ctypes
import logging
import warnings
from contextlib import suppress


def quiet_decoders() -> None:
    """Keep what image libraries say about odd files off stderr, where errors of this project already say it.

    Called once at the start of a command, of the page and of a training. (pydicom's warnings quote the header, which
    names a patient: ``dicom.py`` silences those wherever it is used.)
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
