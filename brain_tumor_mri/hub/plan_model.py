"""``brain-tumor-mri publish``: a model folder, or the app as a Space, becomes a version on the Hub, in one commit.

``plan_model`` checks the folder and lists what would be sent (for a Space ``plan_space.plan_space``
and ``try_space.check_space``); ``push.push`` compares it with the Hub and sends it.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from .. import __version__
from ..errors import UserError
from ..files import read_json
from ..inference.model_folder import EXPORT_FILE, EXPORT_FILES, ModelFolder, find_model, runtime_of
from ..reports.card import render_card
from ..reports.tables import model_title, percent
from .push import Outcome, Plan, PublishError, Upload, push

REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "metrics", "tags", "model-index")
_MODEL_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "metrics.json",
    "trust.json",
    "appearance.json",
    "patients.json",
    "decoder.json",
    "stress.json",
    "explain.json",
    "*.png",
)
_MODEL_STALE = (
    *_MODEL_FILES[1:10], "confusion_matrix.png", "training_curves.png", "reliability.png", "unseen.png", "stress.png",
    EXPORT_FILE, *EXPORT_FILES.values(),
)  # fmt: skip
"""What of an earlier version goes when this one does not have it: it would be taken for this one's."""


def plan_model(folder: str | Path, repo_id: str, *, tag: str | None = None, onnx: bool = False) -> Plan:
    """Check a model folder and list its files as they are to be on the Hub; ONNX files that it has are among them.

    Args:
        folder: the model.
        repo_id: ``owner/name``.
        tag: of the version.
        onnx: refuse a folder without an ONNX file, as computers without PyTorch could not use it.
    """
    model = find_model(Path(folder))
    model.require_project_labels()
    _ = model.tensors  # refuses weights that are cut off
    record = read_json(model.path / "metrics.json", "a version needs its figures: train or evaluate the model first")
    card = render_card(model.path, repo_id=repo_id)
    weights = model.sha256()
    measured = record.get("model") or {}
    _require_same_weights(model.path / "metrics.json", "model.weights_sha256", measured.get("weights_sha256"), weights)
    trust = model.path / "trust.json"
    if trust.is_file():
        _require_same_weights(trust, "weights_sha256", read_json(trust).get("weights_sha256"), weights)
    for measured_file in (model.path / "stress.json", model.path / "explain.json"):
        if measured_file.is_file():
            of = (read_json(measured_file).get("model") or {}).get("weights_sha256")
            _require_same_weights(measured_file, "model.weights_sha256", of, weights)
    require_metadata(card)
    names = sorted({file.name for pattern in _MODEL_FILES for file in model.path.glob(pattern)})
    names += _onnx_files(model, needed=onnx)
    files = [Upload("LICENSE", _licence(model.path)), Upload("README.md", card.encode())]
    return Plan(
        repo_id,
        tuple(files + [Upload(name, model.path / name) for name in names]),
        message=f"{tag or 'Update'}: {headline(record)}",
        description=f"weights sha256 {weights}\npublished by brain-tumor-mri {__version__}",
        stale=_MODEL_STALE,
    )


def published_facts(folder: str | Path) -> dict[str, Any]:
    """Return what the registry keeps of a version: size and fingerprint of the weights, and the main figure."""
    model, record = find_model(Path(folder)), read_json(Path(folder) / "metrics.json")
    return {
        "size_bytes": model.size_bytes,
        "weights_sha256": model.sha256(),
        "protocol": record["protocol"],
        "accuracy": (record["splits"].get("test") or {}).get("accuracy"),
    }


def publish_run(folder: str | Path, repo_id: str, *, token: str | None = None) -> Outcome:
    """Push a finished training run's folder, as ``train.py --push_to_hub`` ends."""
    try:
        return push(plan_model(folder, repo_id), token=token)
    except (UserError, PublishError) as error:
        later = f"brain-tumor-mri publish model --model {folder} --repo_id {repo_id}"
        raise UserError(f"the run is complete, but not on the Hub: {error}; later: {later}") from None


def headline(record: dict[str, Any]) -> str:
    """Return a record's main figures, each with protocol and interval, on one line."""
    parts = [model_title(record)]
    if test := record["splits"].get("test"):
        parts.append(f"{record['protocol']} accuracy {percent(test['accuracy'])}")
    if external := record.get("external"):
        found = percent(external["sensitivity_at_95_specificity"])
        parts.append(f"external sensitivity at 95 % specificity {found}")
    return "; ".join(parts)


def require_metadata(card: str) -> None:
    """Refuse a card whose YAML header lacks what the Hub needs to list and measure a model."""
    data = ModelCard(card).data
    present = data.to_dict() | {"model-index": data.eval_results}  # the model-index is there without results, too
    missing = [key for key in REQUIRED_METADATA if not present.get(key)]
    if missing:
        raise UserError(
            f"the card's metadata has no {', '.join(missing)}; complete metrics.json "
            "(`brain-tumor-mri card` shows the card) or brain_tumor_mri/reports/card.py"
        )


def _require_same_weights(file: Path, key: str, recorded: object, weights: str) -> None:
    if recorded != weights:
        whose = f"belongs to other weights ({recorded[:12]}...)" if isinstance(recorded, str) else f"has no {key}"
        raise UserError(f"{file} {whose}; those here are {weights[:12]}...: measure them, and publish that record")


def _onnx_files(model: ModelFolder, *, needed: bool) -> list[str]:
    """Names of ``export.json`` and the ONNX files beside the weights; each was made from these, and is whole."""
    backends = [b for b, name in EXPORT_FILES.items() if runtime_of(b) == "onnx" and (model.path / name).is_file()]
    if not backends:
        if needed:
            write = f"brain-tumor-mri export --model {model.source} --format onnx"
            raise UserError(f"{model.source} has no ONNX file; write it: {write}")
        return []
    for export in (find_model(model.path, backend=backend) for backend in backends):
        (file,) = export.weights
        if hashlib.sha256(file.read_bytes()).hexdigest() != export.run_sha256():
            raise UserError(f"{file} is not the file that {EXPORT_FILE} describes; export the model again")
    return [EXPORT_FILE, *(EXPORT_FILES[backend] for backend in backends)]


def _licence(folder: Path) -> Path | bytes:
    """Find LICENSE in the model folder, the source tree, or the installed package's metadata."""
    for file in (folder / "LICENSE", Path(__file__).parents[2] / "LICENSE"):
        if file.is_file():
            return file
    try:
        text = metadata.distribution("brain-tumor-mri").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    if not text:
        raise UserError(f"there is no LICENSE to send along; put one into {folder}")
    return text.encode()
