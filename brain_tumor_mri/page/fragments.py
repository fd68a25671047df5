"""Pieces of HTML that the page's views share: percentages, bars, decisions in words, pictures as data URIs.

Pictures travel inside the HTML, so that no file of a visitor's slice is ever written for the browser to fetch.
"""

import base64
import html
import io
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..labels import TITLES
from ..trust.decision import NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR

if TYPE_CHECKING:
    from PIL import Image

_drawings = itertools.count(1)
_SPACE = "\N{NO-BREAK SPACE}"
_MARKS = {UNCERTAIN: ("uncertain", "?"), UNFAMILIAR: ("unfamiliar", "!"), NOT_A_BRAIN_MRI: ("refused", "✕")}


def percent(probability: float) -> str:
    """Format a probability, on one line, without claiming the 0 % or 100 % that a softmax never reaches."""
    if probability > 0.999:
        return f">{_SPACE}99.9{_SPACE}%"
    if probability < 0.001:
        return f"<{_SPACE}0.1{_SPACE}%"
    return f"{100 * probability:.1f}{_SPACE}%"


def bars(probabilities: dict[str, float] | None, names: Iterable[str] = TITLES) -> str:
    """Draw the probabilities as meters, always in the model's order so that slices compare at a glance."""
    top = max(probabilities, key=probabilities.__getitem__) if probabilities else None
    rows = []
    for name in probabilities or names:
        title, value = TITLES[name], probabilities[name] if probabilities else 0.0
        text = percent(value) if probabilities else "–"
        rows.append(
            f'<li class="{"top" if name == top else "other"}"><span>{html.escape(title)}</span>'
            f'<span class="percent">{html.escape(text)}</span>'
            f'<div class="track" role="meter" aria-label="{html.escape(title)}" aria-valuemin="0" aria-valuemax="100" '
            f'aria-valuenow="{100 * value:.1f}" aria-valuetext="{html.escape(text)}">'
            f'<div class="fill" style="width:{100 * value:.2f}%"></div></div></li>'
        )
    return f'<ul class="bars">{"".join(rows)}</ul>'


def classes_in_words(names: Sequence[str], of: int = 0) -> str:
    """Return ``Glioma, meningioma or no tumour`` of class names; where they are all ``of`` the model, that says it."""
    if len(names) == of:
        return "No class ruled out"
    titles = [TITLES[name] if i == 0 else TITLES[name].lower() for i, name in enumerate(names)]
    return " or ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)


def problem_panel(title: str, message: str) -> str:
    """A panel that screen readers announce at once."""
    return (
        f'<section class="panel problem" role="alert" {drawing()}><h2>{html.escape(title)}</h2>'
        f'<p class="words">{html.escape(message)}</p></section>'
    )


def info(title: str, words: str) -> str:
    """An (i) that opens an explanation."""
    return (
        f'<details class="info"><summary aria-label="{html.escape(title)}">i</summary>'
        f'<div class="bubble">{html.escape(words)}</div></details>'
    )


def decision_mark(decision: str | None) -> str:
    """A sign for what is not to be taken as it stands; shape and colour say the same, and words stand beside it.

    An answer has none: a tick would read as "confirmed".
    """
    if decision not in _MARKS:
        return ""
    kind, sign = _MARKS[decision]
    return f'<span class="mark {kind}" aria-hidden="true">{sign}</span>'


def drawing() -> str:
    """An attribute, different each time, by which page.js sees that an element shows something new."""
    return f'data-drawing="{next(_drawings)}"'


def picture_uri(image: "Image.Image", longest: int, quality: int = 90) -> str:
    """Return an RGB picture, made no larger than ``longest`` pixels a side, as the data URI of a JPEG."""
    shown = image.copy()
    shown.thumbnail((longest, longest))
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=quality)
    return data_uri("image/jpeg", buffer.getvalue())


def png_uri(image: "Image.Image") -> str:
    """Return a picture as the data URI of a PNG, unchanged in every pixel."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri("image/png", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Return content of a MIME type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
