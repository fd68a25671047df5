"""The view of the model: which weights answer, their key figures, and their card as the Hub shows it.

``model_facts(classifier, name)`` reads the records beside the weights. A record that is missing, damaged or of other
weights is told in a line, and the rest is shown.
"""

import html
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import UserError
from ..labels import TITLES
from ..reports.card import PLACEHOLDER, render_card
from .fragments import data_uri

if TYPE_CHECKING:
    from ..inference.classifier import TumorClassifier
    from .handle import ModelHandle

_DAMAGED = (KeyError, TypeError, ValueError, AttributeError, OSError)


def model_facts(classifier: "TumorClassifier", name: str) -> tuple[str, str]:
    """Return key figures and weights as HTML, and the card as Markdown; no card where there are no figures.

    Args:
        classifier: loaded from a folder.
        name: how the page calls the model.
    """
    facts, folder = classifier.describe(), classifier.folder
    figures, card = _figures(folder.path, folder.sha256(), name) if folder else (_no_figures("no metrics.json"), "")
    height, width = classifier.image_size
    rows = {
        "Name": name,
        "Architecture": f"{facts['architecture']} (timm), input of {width} × {height} pixels",
        # of the safetensors, which the card and trust.json name, whichever file answers
        "SHA-256 of the weights": folder.sha256() if folder else facts["sha256"],
        "Calibration (trust.json)": facts["trust"] or "none: nothing checks whether a picture is a brain MRI",
    }
    cells = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in rows.items())
    weights = f'<section class="panel"><h2>Weights</h2><dl class="facts">{cells}</dl></section>'
    refusals = _refusals(folder.path) if folder else ""
    return f'<section class="panel"><h2>Key figures</h2>{figures}</section>{refusals}{weights}', card


def _figures(folder: Path, sha256: str, name: str) -> tuple[str, str]:
    """Tiles and card; or one line that says why there are none."""
    try:
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        if record["model"].get("weights_sha256", sha256) != sha256:
            return _no_figures("metrics.json is of other weights"), ""
        tiles = _tiles(record)
    except FileNotFoundError:
        return _no_figures("these weights have no metrics.json, so nobody knows how good they are"), ""
    except _DAMAGED:
        return _no_figures("metrics.json is damaged or has no test part"), ""
    try:
        return tiles, _card(folder, name)
    except (UserError, OSError) as error:
        return f'{tiles}<p class="words subdued">No card: {html.escape(str(error).replace(f"{folder}/", ""))}.</p>', ""


def _no_figures(reason: str) -> str:
    return f'<p class="words">No figures: {html.escape(reason)}.</p>'


def _tiles(record: dict[str, Any]) -> str:
    test, external = record["splits"]["test"], record.get("external")
    recalls = {
        name: test["per_class"][name]["recall"] for name in test["per_class"] if test["per_class"][name]["recall"]
    }
    worst = min(recalls, key=lambda name: recalls[name]["value"])
    tiles = [
        ("accuracy", test["accuracy"], ""),
        ("macro F1", test["macro_f1"], ""),
        ("found of the worst class", recalls[worst], f"{TITLES[worst]}; "),
        ("tumours found, other collection", external and external["sensitivity"], "Br35H; " if external else ""),
    ]
    cells = "".join(
        f'<div><dt>{words}</dt><dd>{_share(figure)}</dd><dd class="small">{note}{_interval(figure)}</dd></div>'
        for words, figure, note in tiles
    )
    return (
        f'<dl class="tiles">{cells}</dl><p class="words">{test["n"]:,} test images under '
        f"<code>{html.escape(record['protocol'])}</code> ({html.escape(str(record['protocol_note']))}).</p>"
    )


def _refusals(folder: Path) -> str:
    """How well the check for brain MRI does on what it was not fitted on; "" where nobody measured that."""
    try:
        left_out = json.loads((folder / "trust.json").read_text(encoding="utf-8"))["measured"]["left_out"]
        foreign, brain = _refused(left_out["foreign"]), _refused(left_out["brain"])
        kinds = sorted(left_out["foreign"].items(), key=lambda item: item[1]["refused"])[:3]
        least = ", ".join(f"{kind.replace('-', ' ')} {100 * found['refused']:.0f} %" for kind, found in kinds)
    except (*_DAMAGED, ZeroDivisionError):
        return ""
    cells = "".join(
        f'<div><dt>{words}</dt><dd>{100 * share:.1f} %</dd><dd class="small">of {n:,} in {kinds_} {of}</dd></div>'
        for words, (share, n, kinds_), of in (
            ("pictures of other things, refused", foreign, "kinds, each judged by a check that had not seen it"),
            ("brain MRI, refused by mistake", brain, "collections, each judged by a check that had not seen it"),
        )
    )
    return (
        f'<section class="panel" id="refusals"><h2>What is refused as no brain MRI</h2><dl class="tiles">{cells}</dl>'
        f'<p class="words">Least refused: {html.escape(least)}. Such pictures are answered as if they were slices.</p>'
        "</section>"
    )


def _refused(groups: dict[str, dict[str, float]]) -> tuple[float, int, int]:
    """Share refused of all pictures, how many these are, and in how many groups."""
    n = sum(int(group["n"]) for group in groups.values())
    return sum(group["n"] * group["refused"] for group in groups.values()) / n, n, len(groups)


def _share(figure: dict[str, float] | None) -> str:
    return f"{100 * figure['value']:.1f} %" if figure else "not measured"


def _interval(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "so do not count on it"
    return f"95 %: {100 * figure['low']:.1f}–{100 * figure['high']:.1f}" if "low" in figure else "no interval"


def _card(folder: Path, name: str) -> str:
    """The card without its metadata and title; its plots inside."""
    hub_id = name.split("@")[0]
    owner = PLACEHOLDER.split("/")[0]
    repo_id = hub_id if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", hub_id) else f"{owner}/{folder.resolve().name}"
    text = re.sub(r"\A\s*# .*\n", "", render_card(folder, repo_id=repo_id).split("\n---\n", 1)[1])

    def picture(found: re.Match[str]) -> str:
        content = (folder / found[2]).read_bytes()
        return f"![{found[1]}]({data_uri('image/png', content)})"

    return re.sub(r"!\[([^\]]*)\]\(([\w.-]+\.png)\)", picture, text)


def build_model_view(demo: gr.Blocks, model: "ModelHandle") -> None:
    """Lay out the view, within the blocks that are open; it fills when the model is there.

    Args:
        demo: the page.
        model: the classifier to describe.
    """
    waiting = '<section class="panel"><p class="words subdued">The model is loading ...</p></section>'
    top = gr.HTML(waiting, elem_id="model")
    card = gr.Markdown(elem_id="model-card", visible=False)

    def fill() -> tuple[str, Any]:
        try:
            figures, text = model_facts(model.get(), model.name)
        except UserError as error:
            return f'<section class="panel"><p class="words">No model: {html.escape(str(error))}.</p></section>', None
        return figures, gr.update(value=text, visible=bool(text))

    demo.load(fill, None, [top, card], api_visibility="private", show_progress="hidden", queue=False)
