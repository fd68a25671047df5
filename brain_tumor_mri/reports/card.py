"""The model card, rendered from the records beside the weights and never typed by hand.

The prose is ``card_template.md``; every figure comes from ``metrics.json`` (and those of the data from
``data/splits``). ``render_card("model")`` returns the card's text.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import UndefinedError

from ..data.protocols import FIGSHARE_5FOLD, NOTES, OFFICIAL, PARTS
from ..data.tables import SPLITS_FILE, collection_rows, external_rows, split_rows
from ..errors import UserError
from ..files import read_json
from ..labels import LABELS, NO_TUMOR, RESEARCH_NOTICE, TITLES, class_named
from ..trust.trust_file import FILE_NAME, read_trust_file
from .heat_map_tables import explain_note, explain_table
from .tables import evaluation_tables, external_title, markdown_table, percent, stress_summary, stress_table
from .trust_tables import trust_tables

TEMPLATE = Path(__file__).with_name("card_template.md")
COUNTS_FILE = SPLITS_FILE.with_name("counts.json")
PLACEHOLDER = "USER/brain-tumor-mri"
KAGGLE = "Brain Tumor MRI Dataset (Kaggle, masoudnickparvar)"
FIGSHARE = "brain tumor dataset (figshare, Cheng et al.)"
BR35H = "Br35H :: Brain Tumor Detection 2020 (Kaggle, Hamada)"
HEAD_CT = "head-ct"
TWIN = "twin by the same recipe, not these weights"
_FIGURES = (
    ("accuracy", "accuracy", "Accuracy", None),
    ("macro_f1", "f1", "Macro F1", {"average": "macro"}),
    ("balanced_accuracy", "recall", "Balanced accuracy (macro recall)", {"average": "macro"}),
    ("auroc", "roc_auc", "AUROC (one class against the rest)", {"multi_class": "ovr", "average": "macro"}),
)
"""Key in metrics.json, metric id of the Hub, its name there, and what evaluate's metric of that id is called with."""
_EXTERNAL_FIGURES = (
    ("sensitivity", "recall", "Sensitivity to any tumour", None),
    ("sensitivity_at_95_specificity", "recall", "Sensitivity to any tumour at 95 % specificity", None),
    ("auroc", "roc_auc", "AUROC, tumour against none", None),
)
_BOOKKEEPING = {
    "data_dir", "external_dir", "do_eval", "eval_strategy", "save_strategy", "save_total_limit", "skip_unreadable",
    "load_best_model_at_end", "greater_is_better", "per_device_eval_batch_size",
}  # fmt: skip
"""Settings of a record's config that say nothing to a reader of the card."""
_REQUIRED = ("protocol", "protocol_note", "model", "data", "splits", "versions", "hardware")


def render_card(model: str | Path, *, lite: str | Path | None = None, repo_id: str = PLACEHOLDER) -> str:
    """Render the card of a model folder.

    Args:
        model: holds ``metrics.json``, as train.py wrote it. Its optional key ``twins`` lists further such records, of
            models trained by the same recipe under other protocols.
        lite: folder of the small model; None takes the folder named like ``model`` with ``-lite``, where there is one.
        repo_id: Hub id ``owner/name`` for the metadata's model name and the snippets.

    Returns:
        The Markdown with its YAML header, as the Hub shows a README.md.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise UserError(f"--repo_id {repo_id}: give a Hub id, owner/name")
    folder = Path(model)
    record = _read_record(folder)
    beside = folder.resolve()  # "." has no name
    beside = beside.with_name(f"{beside.name}-lite")
    small = Path(lite) if lite else beside if beside.is_dir() else None
    try:
        texts = _texts(folder, record) | {"lite": _results(_read_record(small)) if small else ""}
        data = _card_data(record, repo_id)
        card = ModelCard.from_template(data, template_path=str(TEMPLATE), repo_id=repo_id, **texts)
    except (KeyError, UndefinedError) as error:
        raise UserError(f"{folder}/metrics.json is incomplete ({error}); give the one that train.py wrote") from error
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _read_record(folder: Path) -> dict[str, Any]:
    file = folder / "metrics.json"
    record = read_json(file, "a card is made of figures: give the metrics.json that train.py wrote")
    if missing := [key for key in _REQUIRED if key not in record]:
        raise UserError(f"{file} is not a metrics file (no {missing[0]}); give the one that train.py wrote")
    return record


def base_model(record: dict[str, Any]) -> str | None:
    """Return the Hub id of the weights that training started from; None for random weights or a folder of unknown name.

    A local copy of a timm repository is recorded by its folder's name, ``tf_efficientnet_lite0.in1k``.
    """
    config = record.get("config") or {}
    if config.get("from_scratch") is not False:
        return None
    name = str(config["model_name_or_path"])
    if "/" in name:
        return name
    return f"timm/{name}" if name.startswith(f"{record['model']['architecture']}.") else None


def _card_data(record: dict[str, Any], repo_id: str) -> ModelCardData:
    # No `datasets`: neither the Kaggle nor the figshare set has a Hub repository of its authors.
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        base_model=base_model(record),
        metrics=["accuracy", "f1", "roc_auc"],
        tags=["medical-imaging", "mri", *(["brain-tumor"] if _names(record) == LABELS else [])],
        model_name=repo_id.split("/")[1],
        eval_results=[
            *_eval_results(record),
            *(result for twin in record.get("twins") or [] for result in _eval_results(twin, twin=True)),
        ],
    )


def _eval_results(record: dict[str, Any], *, twin: bool = False) -> list[EvalResult]:
    """Return the figures for the metadata's model-index: of the test part, then (twins: or else) of ``external``.

    The dataset's type is ``imagefolder``, as the Trainer of transformers writes it for data that is not on the Hub.
    """
    protocol, suffix = record["protocol"], f" ({TWIN})" if twin else ""
    parts = [(record["splits"].get("test"), _FIGURES, _data_name(record), protocol)]
    if record.get("external"):
        parts.append((record["external"], _EXTERNAL_FIGURES, BR35H, external_title(record)))
    parts = [part for part in parts if part[0]]
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type="imagefolder",
            dataset_name=f"{data}, protocol {title}{suffix}",
            dataset_config=f"{title}{suffix}",
            dataset_split="test",
            metric_type=kind,
            metric_name=name,
            metric_value=round(figures[key]["value"], 4),
            metric_args=arguments,
            verified=False,
        )
        for figures, wanted, data, title in (parts[:1] if twin else parts)
        for key, kind, name, arguments in wanted
        if figures[key] is not None
    ]


def _texts(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return what the template needs: records for its conditions, figures, and tables as text."""
    twins = record.get("twins") or []
    config, training = record.get("config") or {}, record.get("training") or {}
    external_train = bool(config.get("external_dir")) and bool(config.get("external_train", True))
    official = [r["data"].get("leaking_share", {}).get("test") for r in (record, *twins) if r["protocol"] == OFFICIAL]
    return {
        "notice": RESEARCH_NOTICE,
        "classes": [class_named(name) for name in _names(record)],
        "own": _names(record) != LABELS,
        "no_tumor": NO_TUMOR,
        "protocols": NOTES if _names(record) == LABELS else {OFFICIAL: NOTES[OFFICIAL]},
        "percent": percent,
        "record": record,
        "test": record["splits"].get("test"),
        "external": record.get("external"),
        "config": config,
        "training": training,
        "base_model": base_model(record),
        "data_name": _data_name(record),
        "facts": read_json(COUNTS_FILE) if COUNTS_FILE.is_file() else {},
        "wrong": [(path, row.label) for path, row in split_rows().items() if row.label != row.source_label],
        "leaks": [percent({"value": share}) for share in official if share is not None],
        "counts": _counts_table(record["data"]["counts"]),
        "external_train": external_train,
        "external_count": sum(row.part == "train" for row in external_rows().values()),
        "collections": _collection_counts() if config.get("collections_dir") else "",
        "external_used": external_train or any(r.get("external") for r in (record, *twins)),
        "settings": _settings_table(config),
        "hours": f"{training['seconds'] / 3600:.1f}" if training.get("seconds") else None,
        "results": _results(record),
        "twins": [(f"{twin['protocol']}: {TWIN}", _results(twin, " (twin)")) for twin in twins],
        "plot": "confusion_matrix.png" if (folder / "confusion_matrix.png").is_file() else None,
        "trust": _trust_texts(folder),
        "stress": _stress_texts(folder),
        "stress_plot": "stress.png" if (folder / "stress.png").is_file() else None,
        "explanations": _explain_texts(folder),
        "reliability_plot": "reliability.png" if (folder / "reliability.png").is_file() else None,
    }


def _collection_counts() -> str:
    """The training slices of each collection of brain MRI in the versioned split, as text."""
    folders = (file.split("/")[0] for file, (_, part) in collection_rows().items() if part == "train")
    counts = Counter(name for name in folders if not name.startswith(HEAD_CT))
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))


def _names(record: dict[str, Any]) -> tuple[str, ...]:
    """The classes of a record's model."""
    return tuple(next(iter(record["data"]["counts"].values()), LABELS))


def _data_name(record: dict[str, Any]) -> str:
    if _names(record) != LABELS:
        return str(record["data"]["name"])
    return FIGSHARE if record["protocol"].startswith(FIGSHARE_5FOLD) else KAGGLE


def _counts_table(counts: dict[str, dict[str, int]]) -> str:
    rows = [
        [part, *(f"{n:,}" for n in counts[part].values()), f"{sum(counts[part].values()):,}"]
        for part in PARTS
        if part in counts
    ]
    return markdown_table(["part", *(TITLES[name] for name in next(iter(counts.values()), LABELS)), "all"], rows)


def _settings_table(config: dict[str, Any]) -> str:
    decisive = {"external_": "external_dir", "teacher_": "teacher"}
    idle = tuple(topic for topic, setting in decisive.items() if not config.get(setting))
    rows = [
        [f"`{key}`", value if isinstance(value, str) else json.dumps(value)]
        for key, value in config.items()
        if key not in _BOOKKEEPING and value is not None and not key.startswith(idle)
    ]
    return markdown_table(["setting", "value"], rows) if rows else ""


def _results(record: dict[str, Any], word: str = "") -> str:
    """Return the tables and notes of one record; ``word`` follows the model's name in them."""
    model = record["model"] | {"architecture": record["model"]["architecture"] + word}
    return "\n".join(evaluation_tables(record | {"model": model}))


def _trust_texts(folder: Path) -> str:
    record = read_trust_file(folder / FILE_NAME)
    return trust_tables(record) if record and "test" in record.get("measured", {}) else ""


def _stress_texts(folder: Path) -> str:
    record = _read_beside(folder / "stress.json")
    return f"{stress_summary([record])}\n{stress_table(record)}" if record else ""


def _explain_texts(folder: Path) -> str:
    record = _read_beside(folder / "explain.json")
    return f"{explain_table([record])}\n{explain_note(record)}" if record else ""


def _read_beside(file: Path) -> dict[str, Any] | None:
    """Read a record beside the weights; None where there is none."""
    return read_json(file, "measure anew, or remove it") if file.is_file() else None
