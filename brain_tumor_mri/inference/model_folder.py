"""Model folders without torch: a folder or Hub id becomes a local folder, checked for what would fail or mislead later.

``find_model("model")`` -> ``ModelFolder``; ``.labels``, ``.sha256()`` and ``.pretrained_cfg`` read JSON and bytes only,
so that ``brain-tumor-mri info`` stays fast and nothing is ever unpickled. A folder that ``brain-tumor-mri export`` made
has ``onnx/``, ``litert/`` or ``tensorrt/`` beside the safetensors or in place of them, and ``export.json``, which says
whose weights these are.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import UserError, first_line, safe_line
from ..files import read_json
from ..labels import LABELS, OWN_LABELS, own_labels
from ..machine import has_gpu
from .registry import folder_of, on_hub

DEFAULT_MODEL = "model-lite"
_CONFIG = "config.json"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
TORCH, TENSORRT = "torch", "tensorrt"
EXPORT_FILES = {
    "onnx": "onnx/model.onnx",
    "onnx-int8": "onnx/model_int8.onnx",
    "litert": "litert/model.tflite",
    "litert-int8": "litert/model_int8.tflite",
    TENSORRT: "tensorrt/model.engine",
}
"""Backend -> its file. The ONNX names are transformers.js's: ``dtype: "fp32"`` asks for ``model.onnx``, ``"int8"`` for
``model_int8.onnx`` (and ``"q8"`` for ``model_quantized.onnx``, by custom the dynamically quantized one)."""
BACKENDS = (TORCH, *EXPORT_FILES)
"""What can run a model, PyTorch first. A TensorRT engine is run only when it is asked
for: it holds machine code, so it is to be one's own."""
_TITLES = {"onnx": "an ONNX", "litert": "a LiteRT", TENSORRT: "a TensorRT"}
EXPORT_FILE = "export.json"
EXPORT_SCHEMA = 1
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class ModelFolder:
    """A folder in the Hub's layout: ``config.json``, and safetensors or an export of them.

    Attributes:
        source: the folder or Hub id as it was asked for.
        path: the local folder.
        config: the content of ``config.json``.
        weights: the safetensors files, sorted by name, at least one; or the one file of the export.
        backend: one of ``BACKENDS``; what runs ``weights``.
        export: the content of ``export.json``; None for safetensors.
    """

    source: str
    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    backend: str = TORCH
    export: dict[str, Any] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in output order; empty when the config has none."""
        return _labels_of(self.config)

    @property
    def architecture(self) -> str:
        """The timm architecture (``resnet50``), or the transformers class of a model that is none of timm's."""
        return str(self.config.get("architecture") or (self.config.get("architectures") or ["unknown"])[0])

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing as timm writes it: input_size (3, H, W), crop_pct, crop_mode, interpolation, mean, std."""
        return dict(self.config.get("pretrained_cfg") or {})

    @property
    def size_bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(file.stat().st_size for file in self.weights)

    def sha256(self) -> str:
        """Say which trained weights these are, as ``metrics.json`` and ``trust.json`` do.

        Returns:
            SHA-256 of the safetensors' bytes (of all files one after the other, by name), as 64 hex digits; of an
            export, that of the weights it was made from.
        """
        if self.export:
            return str(self.export["source"]["weights_sha256"])
        digest = hashlib.sha256()
        for file in self.weights:
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def run_sha256(self) -> str:
        """SHA-256 of what answers: the weights', or that which ``export.json`` gives of the exported file."""
        return str(self.export["files"][self.backend]["sha256"]) if self.export else self.sha256()

    @property
    def parameters(self) -> int:
        """How many numbers were trained; UserError where a file is no safetensors file, or is cut off."""
        if self.export:
            return int(self.export["source"]["parameters"])
        return sum(
            math.prod(shape)
            for name, (_, shape) in self.tensors.items()
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )

    @property
    def stored_as(self) -> list[str]:
        """The number formats of the stored weights, such as ``F16``; UserError as of ``tensors``."""
        if self.export:
            return [str(self.export["files"][self.backend]["stored_as"])]
        return sorted({dtype for dtype, _ in self.tensors.values() if dtype != "I64"})

    @cached_property
    def tensors(self) -> dict[str, tuple[str, list[int]]]:
        """Name -> format, such as ``F16``, and shape of every stored tensor; no tensor is read."""
        found: dict[str, tuple[str, list[int]]] = {}
        for file in self.weights:
            try:
                with safe_open(file, framework="numpy") as opened:
                    for name in opened.keys():  # noqa: SIM118 (not a dict)
                        tensor = opened.get_slice(name)
                        found[name] = tensor.get_dtype(), tensor.get_shape()
            except (OSError, SafetensorError, ValueError) as error:
                told = "is not a whole safetensors file"
                raise UserError(f"{file} {told} ({first_line(error)}); copy or download it again") from error
        return found

    def require_project_labels(self) -> None:
        """Refuse a model whose outputs are neither this project's classes in this project's order, nor a laboratory's.

        See ``labels.own_labels``.
        """
        _require_project_labels(self.source, self.config)


def find_model(
    model: str | Path, revision: str | None = None, backend: str | None = TORCH, *, project_labels: bool = False
) -> ModelFolder:
    """Find a model folder, downloading it from the Hub when ``model`` is no folder here but a name or a Hub id.

    All files come from one commit, so weights and preprocessing cannot be of two different versions.

    Args:
        model: a local folder, the name of a released model (``registry.py``), or a Hub id ``owner/name``. A folder
            that exists wins; of a name then that of the clone, then the Hub's commit that the registry has.
        revision: branch, tag or commit on the Hub; refused with a local folder, which has none.
        backend: one of ``BACKENDS``, whose weights are needed; None takes the first of ``preferred_backends`` that
            the folder has.
        project_labels: refuse a model of other classes, and one on the Hub before its weights are downloaded.

    Returns:
        The folder, with its ``config.json`` read and its weights listed (not loaded).

    Raises:
        UserError: no such folder, repository or revision; no network; no config; no such weights; a git-lfs pointer;
            an export without its ``export.json``; other classes.
        ValueError: ``backend`` is not one of ``BACKENDS``.
    """
    if backend not in (None, *BACKENDS):
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    source = repo = str(model)
    path = Path(model).expanduser()
    if isinstance(model, str) and not path.exists():
        path = folder_of(model) or path
        if not path.exists() and (published := on_hub(model)):
            repo, revision = published[0], revision or published[1]
    if path.is_dir():
        if revision is not None:
            raise UserError(f"{source} is a folder here, without revisions; leave out {revision}, or give a Hub id")
        return _read_folder(source, path, backend, project_labels)
    if isinstance(model, Path) or not _HUB_ID.fullmatch(repo):
        what = "is a file, not a model folder" if path.exists() else "is not a model folder here"
        raise UserError(f"{source} {what}; give a folder with config.json and model.safetensors, or owner/name")
    if backend == TENSORRT:
        raise UserError(f"{source}: a TensorRT engine is built on the machine that runs it; export the model here")
    path = _download(repo, revision, "*.json")
    if project_labels and (path / _CONFIG).is_file():
        _require_project_labels(source, _read_config(path / _CONFIG))
    # the snapshot's name is its commit, so that weights are of the same one whatever is pushed meanwhile
    for name in (backend,) if backend else preferred_backends():
        path = _download(repo, path.name, EXPORT_FILES.get(name, "model*.safetensors"))
        if _weights_of(path, name):
            break
    return _read_folder(source, path, backend, project_labels)


def preferred_backends() -> list[str]:
    """The backends in the order in which a folder's files choose; not TensorRT, whose engines are one's own.

    PyTorch where there may be a GPU for it. On a CPU ONNX answers the same, sooner, and without PyTorch's memory.
    """
    first = [TORCH, "onnx"] if has_gpu() else ["onnx", TORCH]
    wanted = [*first, *(name for name in BACKENDS if name not in (*first, TENSORRT))]
    return [name for name in wanted if name != TORCH or find_spec("torch")]


def runtime_of(backend: str) -> str:
    """``onnx`` of ``onnx-int8``: what runs a backend's file, whatever its precision."""
    return backend.removesuffix("-int8")


def _read_folder(source: str, path: Path, backend: str | None, project_labels: bool) -> ModelFolder:
    config_file = path / _CONFIG
    if not config_file.is_file():
        raise UserError(f"{source} has no config.json; give the folder that a training saved, or a Hub id owner/name")
    config = _read_config(config_file)
    if project_labels:
        _require_project_labels(source, config)
    there = [name for name in BACKENDS if _weights_of(path, name)]
    chosen = backend or next((name for name in preferred_backends() if name in there), TORCH)
    if backend is None and there == [TENSORRT]:
        raise UserError(f"{source} has only a TensorRT engine, machine code; if you built it, use --backend tensorrt")
    if chosen not in there:
        raise UserError(_lacking(source, chosen, there))
    weights, stored = _weights_of(path, chosen), _weights_of(path, TORCH)
    for file in {*weights, *stored}:
        if not file.is_file():  # a pipe would be waited for
            raise UserError(f"{file} is not a regular file; copy or download it again")
        with file.open("rb") as stream:
            if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise UserError(f"{file} is only a git-lfs pointer; run `git lfs pull` there to get the weights")
    export = _read_export(path, chosen) if chosen in EXPORT_FILES else None
    beside = ModelFolder(source, path, config, stored)
    if export and stored and beside.sha256() != export["source"]["weights_sha256"]:
        _ = beside.tensors  # refuses weights that are cut off, which are no other weights
        again = f"write it again: brain-tumor-mri export --model {source} --format {chosen}"
        raise UserError(f"{weights[0]} was made from other weights than those of {stored[0].name} here; {again}")
    return ModelFolder(source, path, config, weights, chosen, export)


def _weights_of(path: Path, backend: str) -> tuple[Path, ...]:
    if backend not in EXPORT_FILES:
        return tuple(sorted(path.glob("model*.safetensors")))
    file = path / EXPORT_FILES[backend]
    return (file,) if file.is_file() else ()


def _lacking(source: str, backend: str, there: list[str]) -> str:
    """Say what the folder lacks, and what is there in its place."""
    if backend in EXPORT_FILES:
        made = f"make it with `brain-tumor-mri export --format {backend}`"
        return f"{source} has no {EXPORT_FILES[backend]}; {made}" + (f", or use --backend {there[0]}" if there else "")
    if there:
        title = _TITLES[runtime_of(there[0])]
        return f"{source} is {title} export without model.safetensors; this needs the model that it was made from"
    return f"{source} has no model.safetensors; other weight formats are not loaded, for safety"


def _read_export(path: Path, backend: str) -> dict[str, Any]:
    """Read ``export.json``, as far as what runs here depends on it."""
    file = path / EXPORT_FILE
    if not file.is_file():
        raise UserError(f"{path} has no {EXPORT_FILE}, so whose weights these are is unknown; export the model again")
    record = read_json(file, "copy it again, or export the model again")
    try:
        entry, source = record["files"][backend], record["source"]
        digests = [entry["sha256"], source["weights_sha256"]]
        sound = all(isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
        sound = sound and record["schema"] == EXPORT_SCHEMA and int(source["parameters"]) and entry["stored_as"]
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UserError(f"{file} does not describe {EXPORT_FILES[backend]}; export the model again")
    return record


def _read_config(file: Path) -> dict[str, Any]:
    return read_json(file, "copy or download it again")


def _labels_of(config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("label_names")
    if isinstance(names, list | tuple):
        return tuple(str(name) for name in names)
    id2label = config.get("id2label")
    if isinstance(id2label, dict) and all(str(key).isdecimal() for key in id2label):
        return tuple(str(id2label[key]) for key in sorted(id2label, key=int))
    return ()


def _require_project_labels(source: str, config: dict[str, Any]) -> None:
    labels = _labels_of(config)
    if config.get(OWN_LABELS) is True and labels != LABELS:
        own_labels(labels)
    elif labels != LABELS:
        shown = safe_line(", ".join(labels[:5]))[:200] or "none"
        more = f", ... ({len(labels)} in all)" if len(labels) > 5 else ""
        raise UserError(
            f"{source} answers with other classes ({shown}{more}); "
            f"a model of this project has, in this order: {', '.join(LABELS)}"
        )


def _download(repo: str, revision: str | None, pattern: str) -> Path:
    """The Hub's files of one commit in the local cache; every way this fails becomes one line."""
    from huggingface_hub import constants, errors, snapshot_download  # half a second that a local folder does not need

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=[pattern]))
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} needs permission; accept its terms on its page, then run `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision}; see its page for branches, tags and commits") from error
    except errors.RepositoryNotFoundError as error:
        message = f"no folder and no Hub model is called {repo}; check the name; if it is private, `hf auth login`"
        raise UserError(message) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
        raise UserError(
            f"{repo}{at} is no folder here, is not in the local cache, and {why}; give a model folder instead"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        raise UserError(f"{repo}{at} cannot be downloaded: {first_line(error)}; give a model folder instead") from error
