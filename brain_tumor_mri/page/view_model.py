"""The view of the model: which weights answer, how good they are and under which protocol, data, limits, licence.

``model_facts(classifier)`` reads what lies beside the weights (metrics.json, trust.json) and gives HTML for the page; a
record that is missing, of other weights or damaged is said to be so, and the rest is shown. It draws its own tables:
``report`` would bring the packages that train and measure into every Space.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..labels import LABELS, NO_TUMOR, TITLES
from ..trust.decision import COVERAGES, DECISIONS, DEFAULT_COVERAGE
from .fragments import data_uri

if TYPE_CHECKING:
    from ..inference.classifier import TumorClassifier
    from .handle import ModelHandle

_COUNTS_FILE = Path(__file__).parents[1] / "data" / "splits" / "counts.json"
_EXTERNAL = "tumours of Br35H against held-out slices without a tumour"
_LIMITS = (
    "Research and teaching only: not for diagnosis, treatment, triage or screening of anyone, with or without a doctor "
    "looking on.",
    "One slice at a time, without the rest of the volume, other sequences or the patient's history.",
    "Metastases, bleeding, stroke, multiple sclerosis and inflammation have no class here.",
    f"“{TITLES[NO_TUMOR]}” is no finding of health.",
    "A heat map shows what speaks for a class in the model's eyes; it is no outline of a tumour.",
)
_LICENCE = (
    "Code and weights: Apache-2.0. The Kaggle set is CC0 as published there; most of its tumour slices are those of "
    "Cheng et al. (figshare 10.6084/m9.figshare.1512427, CC BY 4.0). Of the examples on this page one is a slice of "
    "the template ICBM 2009a, © 1993-2009 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological "
    "Institute, McGill University; the others are drawn by a program."
)


def model_facts(classifier: "TumorClassifier", name: str) -> tuple[str, str, str]:
    """Return the view's three parts, as HTML: key figures and weights; tables; data and limits.

    Args:
        classifier: loaded from a folder.
        name: how the page calls the model.
    """
    facts = classifier.describe()
    folder = classifier.folder
    record, problem = _read_record(folder.path, facts["sha256"]) if folder else (None, "no metrics.json")
    try:
        head = _tiles(record) if record else f'<p class="words">No figures: {html.escape(problem)}.</p>'
        tables, matrix = (_tables(record), _confusion(record)) if record else ("", "")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        head, tables, matrix = '<p class="words">No figures: metrics.json is incomplete.</p>', "", ""
        record = None
    trust, plot = _trust(folder.path) if folder else ("", "")
    top = f'<section class="panel"><h2>Key figures</h2>{head}{matrix}</section>'
    top += _weights(classifier, facts, name, record)
    return top, tables + trust, plot + _data(record)


def _read_record(folder: Path, sha256: str) -> tuple[dict[str, Any] | None, str]:
    """Return metrics.json, or None and why not."""
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if not isinstance(record["splits"]["test"]["n"], int):
            raise ValueError("n")
    except FileNotFoundError:
        return None, "these weights have no metrics.json, so nobody knows how good they are"
    except (OSError, ValueError, KeyError, TypeError):
        return None, "metrics.json is damaged or has no test part"
    if record.get("model", {}).get("weights_sha256", sha256) != sha256:
        return None, "metrics.json is of other weights"
    return record, ""


def _tiles(record: dict[str, Any]) -> str:
    test, external = record["splits"]["test"], record.get("external")
    tiles = [
        (
            _percent(test[key]["value"]),
            words,
            f"95 %: {100 * test[key]['low']:.1f}–{100 * test[key]['high']:.1f}",
        )
        for key, words in (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
    ]
    worst = min(LABELS, key=lambda label: (test["per_class"][label]["recall"] or {"value": 2})["value"])
    tiles.append((_percent(test["per_class"][worst]["recall"]["value"]), "found of the worst class", TITLES[worst]))
    if external:
        found = external["sensitivity"]
        tiles.append((_percent(found["value"]), "tumours found, other collection", _EXTERNAL))
    else:
        tiles.append(("not measured", "tumours found, other collection", "so do not count on it"))
    title = f"{record['model']['architecture']}, {record['model']['image_size']} px"
    cells = "".join(
        f"<div><dt>{html.escape(words)}</dt><dd>{html.escape(value)}</dd>"
        f'<dd class="small">{html.escape(note)}</dd></div>'
        for value, words, note in tiles
    )
    return (
        f'<dl class="tiles">{cells}</dl><p class="words">{html.escape(title)}: {test["n"]:,} test images '
        f"under <code>{html.escape(record['protocol'])}</code> ({html.escape(str(record['protocol_note']))}).</p>"
    )


def _confusion(record: dict[str, Any]) -> str:
    """Draw the confusion matrix as a table, each cell shaded by its share of the true class."""
    counts = record["splits"]["test"]["confusion_matrix"]
    heads = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in TITLES.values())
    rows = []
    for title, row in zip(TITLES.values(), counts, strict=True):
        total = max(sum(row), 1)
        cells = "".join(
            f'<td style="--share:{100 * n / total:.0f}%"><b>{n:,}</b><span>{100 * n / total:.1f} %</span></td>'
            for n in row
        )
        rows.append(f'<tr><th scope="row">{html.escape(title)}</th>{cells}</tr>')
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="confusion">'
        "<caption>Confusion matrix: rows are true classes, columns what the model answers; percent of the row</caption>"
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _tables(record: dict[str, Any]) -> str:
    test = record["splits"]["test"]
    keys = ("precision", "recall", "f1", "auroc")
    by_class = [
        [TITLES[name], f"{test['per_class'][name]['support']:,}", *(_figure(test["per_class"][name][k]) for k in keys)]
        for name in LABELS
    ]
    notes = []
    if interval := test.get("interval"):
        notes.append(
            f"95 % intervals: {interval['method']} over {interval['over']}s, {interval['resamples']} resamples."
        )
    share = record["data"].get("leaking_share", {}).get("test")
    if share is not None:
        notes.append(f"{_percent(share)} of these images have a copy or a slice of the same patient in training.")
    text = _section(
        "By class",
        _table("Figures by class", ["class", "images", "precision", "recall", "F1", "AUROC"], by_class),
        notes,
    )
    if external := record.get("external"):
        keys = ("sensitivity", "specificity", "sensitivity_at_95_specificity", "auroc")
        heads = ["", "tumours found", "no tumour left alone", "found at 95 % specificity", "AUROC"]
        rows = [[_EXTERNAL, *(_figure(external[key]) for key in keys)]]
        text += _section("Tumours of another collection", _table("Figures on another collection", heads, rows))
    if twins := record.get("twins"):
        rows = [
            [twin["protocol"], *(_figure(twin["splits"]["test"][key]) for key in ("accuracy", "macro_f1"))]
            for twin in twins
            if twin["splits"].get("test")
        ]
        text += _section(
            "The same recipe under other protocols",
            _table("Figures under other protocols", ["protocol", "accuracy", "macro F1"], rows),
        )
    return text


def _trust(folder: Path) -> tuple[str, str]:
    """Return what trust.json records and its plot, as HTML; a sentence where there is no such file."""
    from ..trust.trust_file import FILE_NAME, read_trust_file

    title = "What the answers are worth"
    try:
        record = read_trust_file(folder / FILE_NAME)
        if record is None:
            lacking = "Probabilities are not calibrated, and nothing checks whether a picture is a brain MRI."
            return _section(title, "", [f"These weights have no trust.json. {lacking}"]), ""
        measured = record.get("measured", {})
        text = _section(title, *_measured(record)) if "test" in measured else _section(title, "", ["Not measured yet."])
    except (UserError, KeyError, TypeError, ValueError):
        return _section(title, "", ["trust.json records no figures that can be shown."]), ""
    plot = folder / "reliability.png"
    if not plot.is_file():
        return text, ""
    image = data_uri("image/png", plot.read_bytes())
    shown = f'<img src="{image}" alt="Reliability: share of right answers against the probability given">'
    return text, f'<section class="panel plot"><h2>Calibration</h2>{shown}</section>'


def _measured(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return a table of the parts that trust.json was measured on, and notes."""
    titles = {"test": f"{record['protocol']}, test", "external": _EXTERNAL}
    rows = []
    for part, title in titles.items():
        if part not in record["measured"]:
            continue
        figures = record["measured"][part]["single"]
        covered = [_figure(figures["coverage"][str(coverage)]["covered"]) for coverage in COVERAGES]
        decided = [_figure(figures["decisions"][name]) for name in DECISIONS]
        rows.append([title, f"{figures['n']:,}", *covered, *decided, _figure(figures["correct"]["answer"])])
    heads = ["", "slices", *(f"true class in the {coverage} % set" for coverage in COVERAGES), *DECISIONS.values()]
    before, after = (record["measured"]["test"]["single"][when]["ece"]["value"] for when in ("before", "after"))
    notes = [
        f"Decisions at {DEFAULT_COVERAGE} % coverage. Calibration error {_percent(after)}, {_percent(before)} before. "
        "Sets promise nothing for slices unlike the validation slices."
    ]
    if foreign := record["measured"].get("foreign"):
        notes.append(f"Of {foreign['n']} pictures that are no brain MRI, {_percent(foreign['refused'])} are refused.")
    return _table("Coverage and decisions", [*heads, "right when answered"], rows), notes


def _section(title: str, table: str, notes: Sequence[str] = ()) -> str:
    lines = "".join(f'<p class="words subdued">{html.escape(note)}</p>' for note in notes)
    return f'<section class="panel"><h2>{html.escape(title)}</h2>{table}{lines}</section>'


def _table(label: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Draw a table whose first column names the rows; it scrolls by itself where it is too wide, or becomes a list."""
    top = "".join(f'<th scope="col">{html.escape(head)}</th>' if head else "<td></td>" for head in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(
            f'<td data-head="{html.escape(head)}">{html.escape(cell)}</td>'
            for head, cell in zip(heads[1:], rest, strict=True)
        )
        + "</tr>"
        for first, *rest in rows
    )
    region = f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(label)}">'
    return f'{region}<table class="figures-table"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _figure(figure: Mapping[str, float] | None) -> str:
    """A share with its interval, ``96.6 % (95.5-97.5)``; a dash where it has no meaning."""
    if figure is None:
        return "–"
    interval = f" ({100 * figure['low']:.1f}-{100 * figure['high']:.1f})" if "low" in figure else ""
    return _percent(figure["value"]) + interval


def _weights(classifier: "TumorClassifier", facts: dict[str, Any], name: str, record: dict[str, Any] | None) -> str:
    height, width = classifier.image_size
    rows = {
        "Name": name,
        "Architecture": f"{facts['architecture']} (timm), input of {width} × {height} pixels",
        "Measured": f"{record.get('created', '')[:10]}" if record else "",
        "SHA-256 of the weights": facts["sha256"],
        "Calibration (trust.json)": facts["trust"] or "none",
    }
    cells = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in rows.items() if value)
    return f'<section class="panel"><h2>Weights</h2><dl class="facts">{cells}</dl></section>'


def _data(record: dict[str, Any] | None) -> str:
    """What is wrong with the data, with the figures where the source tree has them."""
    try:
        counts = json.loads(_COUNTS_FILE.read_text(encoding="utf-8"))
        source = f"{counts['traced']:,} of the {counts['tumour_images']:,} tumour images are"
        leak = (
            f"all {counts['test_traced']:,} published test images that trace to a patient show one of the training "
            f"folder, and {counts['test_traced_same_slice_in_training']:,} are a training image again"
        )
    except (OSError, ValueError, KeyError):
        source = "Nearly all tumour images are"
        leak = "nearly every test image that traces to a patient shows one of the training folder"
    defects = (
        f"Class goes with source: {source} from one collection, and no image without a tumour is. A model can score "
        "well by telling collections apart, without seeing a tumour.",
        f"The published split leaks: {leak}. Figures under “official” are an upper bound.",
        "Patients are known for traced tumour images only; others are grouped by likeness.",
        "Age, sex, origin, scanner and hospital are not published, so differences between groups of people cannot be "
        "measured.",
    )
    trained = ""
    if record:
        parts = {part: sum(classes.values()) for part, classes in record["data"]["counts"].items()}
        listed = ", ".join(f"{n:,} {part}" for part, n in parts.items())
        trained = f'<p class="words">{html.escape(str(record["data"]["name"]))}: {html.escape(listed)}.</p>'

    def bullets(lines: tuple[str, ...]) -> str:
        return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"

    return (
        f'<section class="panel prose"><h2>Data and its defects</h2>{trained}{bullets(defects)}</section>'
        f'<section class="panel prose"><h2>Limits</h2>{bullets(_LIMITS)}</section>'
        f'<section class="panel prose"><h2>Licence</h2><p class="words">{html.escape(_LICENCE)}</p></section>'
    )


def build_model_view(demo: gr.Blocks, model: "ModelHandle") -> None:
    """Lay out the view, within the blocks that are open; it fills when the model is there.

    Args:
        demo: the page.
        model: the classifier to describe.
    """
    top = gr.HTML(
        '<section class="panel"><p class="words subdued">The model is loading ...</p></section>', elem_id="model"
    )
    tables = gr.HTML(elem_id="model-tables")
    rest = gr.HTML(elem_id="model-data")

    def fill() -> tuple[Any, Any, Any]:
        try:
            above, middle, below = model_facts(model.get(), model.name)
        except UserError as error:
            text = f'<section class="panel"><p class="words">No model: {html.escape(str(error))}.</p></section>'
            return text, gr.skip(), _data(None)
        return above, middle, below

    demo.load(fill, None, [top, tables, rest], api_visibility="private", show_progress="hidden", queue=False)
