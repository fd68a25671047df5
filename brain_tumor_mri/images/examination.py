"""A stranger's examination, found and read in a process of its own, with limits: ``ExaminationApart(path)``.

``find_series`` and ``read_volume`` bound what they know of; this bounds the rest, as ``apart`` does for slices.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from .apart import Child, ChildDied, Reply, allow, serve_requests
from .sequence import SequenceGuess
from .series import Series, UnreadableVolumeError, find_series
from .volume import SliceFile, Volume, read_volume

CPU_SECONDS = 120.0
"""Most that one series may compute; 384 slices of 512 x 512 take 5 to 20."""
MEMORY_BYTES = 4 * 2**30
"""Of the whole child, with Python and the decoders in it."""
_TOO_LONG = f"reading it takes over {CPU_SECONDS:.0f} s of computing"
_DIED = "reading it ended the reader, so a file is damaged or of an unsupported kind"
_MEMORY = "reading it needs more memory than one examination may take"


class ExaminationApart(Child):
    """A child process that lists the series of one path and reads them; ends with the context.

    Attributes:
        series: what ``find_series`` gives, without frames; may be given other names, which volumes and errors take.
    """

    serve = f"from {__name__} import serve; serve()"
    wall_seconds = 300.0

    def __init__(self, path: str | Path, max_voxels: int) -> None:
        """List the series.

        Args:
            path: of the file, folder or zip.
            max_voxels: largest series that ``read`` takes.

        Raises:
            UnreadableVolumeError: it holds no volume, or takes too much time or memory.
        """
        super().__init__()
        self._path, self._max_voxels = str(path), max_voxels
        try:
            reply, _ = self._asked({"path": self._path}, self._path)
        except BaseException:
            self.close()
            raise
        self.series = tuple(
            Series(**row | {"path": Path(row["path"]), "sequence": SequenceGuess(**row["sequence"])})
            for row in reply["series"]
        )

    def __enter__(self) -> ExaminationApart:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, number: int) -> Volume:
        """Read one of ``series``, as ``read_volume`` does.

        Raises:
            UnreadableVolumeError: as ``read_volume``; or it takes too much time or memory.
        """
        request = {"path": self._path, "number": number, "max_voxels": self._max_voxels}
        reply, voxels = self._asked(request, self.series[number].name)
        row = reply["volume"]
        shape, order = row.pop("shape"), row.pop("order")
        files = tuple(file and SliceFile(**file) for file in row["slice_files"])
        return Volume(
            **row
            | {
                "name": self.series[number].name,
                "array": np.frombuffer(voxels, np.float32).reshape(shape, order=order),
                "affine": np.array(row["affine"]),
                "slice_files": files,
                "sequence": SequenceGuess(**row["sequence"]),
                "warnings": tuple(row["warnings"]),
            }
        )

    def _asked(self, request: dict[str, Any], name: str) -> Reply:
        try:
            reply, payload = self.ask(request)
        except ChildDied as died:
            raise UnreadableVolumeError(name, _TOO_LONG if died.timed_out else _DIED) from None
        if "error" in reply:
            raise UnreadableVolumeError(name, reply["error"])
        return reply, payload


def serve() -> None:
    """Be the child."""
    found: dict[str, list[Series]] = {}

    def answer(request: dict[str, Any]) -> Reply:
        path = request["path"]
        allow(CPU_SECONDS)
        try:
            if path not in found:
                found[path] = find_series(path)
            if "number" in request:
                return _volume(read_volume(found[path][request["number"]], max_voxels=request["max_voxels"]))
            rows = [asdict(replace(s, path=str(s.path), frames=(), members={})) for s in found[path]]
            return {"series": rows}, b""
        except UnreadableVolumeError as error:
            return {"error": error.reason}, b""
        except MemoryError:
            return {"error": _MEMORY}, b""
        except Exception as error:  # whatever a decoder raises is the file's fault; the text could quote a header
            return {"error": f"damaged or of an unsupported kind ({type(error).__name__})"}, b""
        finally:
            allow(0)

    serve_requests(MEMORY_BYTES, answer)


def _volume(volume: Volume) -> Reply:
    """What ``read`` takes apart; voxels go out as they lie in memory."""
    order = "F" if volume.array.flags.f_contiguous else "C"
    array = np.ascontiguousarray(volume.array.T if order == "F" else volume.array)
    row = {**volume.__dict__, "affine": volume.affine.tolist(), "shape": volume.array.shape, "order": order}
    row |= {"sequence": asdict(volume.sequence), "slice_files": [file and asdict(file) for file in volume.slice_files]}
    return {"volume": {key: value for key, value in row.items() if key != "array"}}, array.data.cast("B")
