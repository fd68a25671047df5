"""The record of a run, metrics.json: every figure with its protocol, data, settings, versions and hardware."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.protocols import NOTES, ProtocolArguments, leaking_share
from ..machine import hardware, versions

if TYPE_CHECKING:
    from ..data.slices import SliceData
    from ..inference.classifier import TumorClassifier


def describe_model(folder_or_id: str | Sequence[str], classifier: TumorClassifier) -> dict[str, Any]:
    """Return what metrics.json says of the model: name, architecture, input size, parameters, hash of the weights.

    What differs between the members of an ensemble is joined by ``+``.
    """
    names = [folder_or_id] if isinstance(folder_or_id, str) else folder_or_id
    members = classifier.members
    return {
        "name": " + ".join(Path(name).resolve().name if Path(name).is_dir() else name for name in names),
        "architecture": " + ".join(member.folder.architecture for member in members),
        "image_size": classifier.image_size[0],
        "mirror": classifier.mirror,
        "parameters": sum(member.folder.parameters for member in members),
        "weights_sha256": " + ".join(member.folder.sha256() for member in members),
    }


def describe_data(data_dir: str, data: SliceData) -> dict[str, Any]:
    """Return what metrics.json says of the data. The folder's name only: its path belongs to the machine.

    ``leaking_share``: by part, the share of its images with a copy or a slice of the same patient among the training
    images, as far as the versioned splits know.
    """
    groups = {name: split["group"][:] for name, split in data.splits.items()}
    return {
        "name": Path(data_dir).resolve().name,
        "fingerprint": data.fingerprint,
        "counts": data.counts(),
        "leaking_share": {name: leaking_share(groups["train"], groups[name]) for name in ("validation", "test")},
        "corrected_labels": data.assignment.corrected,
        "not_in_splits": data.assignment.unlisted,
        "missing_from_folder": data.assignment.missing,
        "skipped": [{"path": file.path, "reason": file.reason} for file in data.skipped],
    }


SCHEMA = 1


def run_record(
    *,
    protocol: ProtocolArguments,
    model: dict[str, Any],
    data: dict[str, Any],
    splits: dict[str, dict[str, Any]],
    config: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    external: dict[str, Any] | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Assemble a metrics.json."""
    return {
        "schema": SCHEMA,
        "title": title,
        "protocol": protocol.title,
        "protocol_note": NOTES[protocol.protocol],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "model": model,
        "data": data,
        "splits": splits,
        "external": external,
        "seed": (config or {}).get("seed"),
        "config": config,
        "training": training,
        "versions": versions(),
        "hardware": hardware(),
    }
