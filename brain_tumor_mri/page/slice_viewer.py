"""The picture of one slice as HTML: as it was read, under its heat maps, and tools for the screen alone.

All maps come together, so that class and opacity change in the browser (page.js).
"""

import html
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..heat_maps.explain import MOSTLY, Explanation, colour
from ..images.facts import SliceFacts
from ..labels import NO_TUMOR, TITLES
from .fragments import drawing, info, percent, picture_uri, png_uri

PREVIEW_PIXELS = 1024  # longest side of the picture sent back to the browser
OPACITY = 60  # percent, where the slider starts


def heat_uri(heat: np.ndarray) -> str:
    """Return a map in [0, 1] as a PNG that lies over the slice: its colour, as opaque as the map is high."""
    # A table of 256 colours with their opacities takes a fifth of what four channels take.
    picture = Image.fromarray(np.rint(255 * heat).astype(np.uint8)).convert("P")
    picture.putpalette(colour(np.arange(256) / 255).tobytes())
    picture.info["transparency"] = bytes(range(256))
    return png_uri(picture)


def waiting_viewer() -> str:
    """The place of the picture, before there is one."""
    return (
        f'<section class="viewer waiting" {drawing()}><p>The slice and where the model looks appear here.</p></section>'
    )


def viewer(
    image: Image.Image,
    explanations: Sequence[Explanation] = (),
    facts: SliceFacts = SliceFacts(),  # noqa: B008 - frozen
    note: str = "",
) -> str:
    """Draw the slice in its own aspect ratio and, beside it, the same under the heat map.

    Args:
        image: the slice as read.
        explanations: one a class; switched and faded by page.js.
        facts: of its header.
        note: shown in place of the heat map's controls.
    """
    width, height = image.size
    # The frame has the slice's ratio, also before the picture is decoded, so that nothing jumps.
    ratio, uri = f'style="--ratio:{width / height:.5f}"', picture_uri(image, PREVIEW_PIXELS)
    sides = "".join(
        f'<span class="side {place}" title="Side of the patient, by the DICOM header">{letter}</span>'
        for place, letter in (("left", facts.left), ("right", facts.right))
        if letter
    )

    def figure(kind: str, alt: str, caption: str, over: str = "") -> str:
        return (
            f'<figure class="{kind}"><div class="stack" {ratio}><div class="pane"><img src="{uri}" alt="{alt}" '
            f'draggable="false">{over}</div>{sides}</div><figcaption>{caption}</figcaption></figure>'
        )

    figures = figure("whole", "The slice as it was read", f"Slice as read, {width} × {height} pixels")
    style, target, controls = "", "", f'<p class="note">{html.escape(note)}</p>' if note else ""
    extra = ""
    if explanations:
        uris = ";".join(f"--heat-{e.target}:url({heat_uri(e.shown_map)})" for e in explanations)
        probabilities = explanations[0].prediction.probabilities
        target = max((str(e.target) for e in explanations), key=lambda name: probabilities[name])
        # where "no tumour" is the answer, no map lies over the slice until a class is chosen
        target = "none" if explanations[0].prediction.label == NO_TUMOR else target
        style = f' style="{uris};--heat-none:none;--heat:var(--heat-{target})"'
        heat = '<div class="heat" aria-hidden="true"></div>'
        caption = 'Under the heat map<span class="hint">; press it, or hold M, for the slice alone</span>'
        figures += figure("mapped", "The slice under the heat map", caption, heat)
        controls = _heat_controls(explanations, target)
        seen = explanations[0].image
        extra = (
            "<details><summary>What the model sees</summary>"
            f'<figure class="seen"><img src="{png_uri(seen)}" alt="The slice as the model sees it" '
            f'width="{seen.width}" height="{seen.height}">'
            f"<figcaption>Squashed to {seen.width}\u00a0×\u00a0{seen.height} pixels"
            "</figcaption></figure></details>"
        )
    rows = "".join(f"<div><dt>{what}</dt><dd>{html.escape(value)}</dd></div>" for what, value in facts.lines)
    header = f'<dl class="header-facts" aria-label="From the DICOM header">{rows}</dl>' if rows else ""
    state = f'{drawing()} data-target="{target}"'
    return (
        f'<section class="viewer" aria-label="The slice" {state}{style}>{_tools()}<div class="figures">{figures}</div>'
        f"{header}{controls}{extra}</section>"
    )


def _tools() -> str:
    """Zoom, invert and window; they change the picture on the screen alone, never what the model sees."""
    buttons = "".join(
        f'<button type="button" data-tool="{name}"{pressed} title="{words}" aria-label="{words}">{sign}</button>'
        for name, sign, words, pressed in (
            ("in", "+", "Zoom in", ""),
            ("out", "−", "Zoom out", ""),
            ("reset", "Reset", "Reset zoom, window and level", ""),
            ("invert", "Invert", "Invert the grey scale", ' aria-pressed="false"'),
        )
    )
    sliders = "".join(
        f'<label><span>{title}</span><input type="range" name="{name}" min="{low}" max="{high}" value="{value}" '
        f'aria-label="{words}"></label>'
        for name, title, words, low, high, value in (
            ("window", "Window", "Window: width of the grey values shown, percent", 5, 200, 100),
            ("level", "Level", "Level: middle of the grey values shown, percent", 0, 100, 50),
        )
    )
    functions = "".join(f'<feFunc{c} type="linear" slope="1" intercept="0"/>' for c in "RGB")
    return (
        f'<div class="tools" role="group" aria-label="Display">{buttons}{sliders}</div><svg width="0" height="0" '
        'aria-hidden="true" class="filter"><filter id="grey-window" color-interpolation-filters="sRGB">'
        f"<feComponentTransfer>{functions}</feComponentTransfer></filter></svg>"
    )


def _heat_controls(explanations: Sequence[Explanation], target: str) -> str:
    shown = [(str(e.target), TITLES[str(e.target)]) for e in explanations]
    choices = "".join(
        f'<label><input type="radio" name="heat-class" value="{name}"{" checked" if name == target else ""}>'
        f"<span>{html.escape(title)}</span></label>"
        for name, title in [*shown, ("none", "None")]
    )
    notes = "".join(
        f'<p class="map-note" data-class="{name}"{"" if name == target else " hidden"}>{html.escape(words)}</p>'
        for name, words in [*((str(e.target), map_words(e)) for e in explanations), ("none", "No map is shown.")]
    )
    meaning = info(
        "What the heat map means",
        "Where the model finds evidence for the class. It is no outline of a tumour, and no proof that the model "
        "looked at the right thing. It is drawn inside the head only, and all classes share one scale: a class "
        "that is hardly probable is hardly seen. No tumour has no place, so it has no map.",
    )
    return (
        f'<div class="controls"><label class="opacity"><span>Opacity <output>{OPACITY}</output> %</span>'
        f'<input type="range" name="heat-opacity" min="0" max="100" step="5" value="{OPACITY}"></label>'
        f'<fieldset class="switch"><legend>Heat map: what speaks for {meaning}</legend>'
        f'<div class="choices">{choices}</div></fieldset>{notes}'
        '<div class="scale"><span>little</span><span class="ramp" aria-hidden="true"></span><span>most</span></div>'
        "</div>"
    )


def map_words(explanation: Explanation) -> str:
    """What must be known before a map is looked at."""
    title = TITLES[str(explanation.target)].lower()
    share = percent(explanation.prediction.probabilities[str(explanation.target)])
    if explanation.outside_head > MOSTLY:
        return (
            f"Do not rely on this: {100 * explanation.outside_head:.0f} % of the evidence for {title} lies outside the "
            "head, where no tumour can be."
        )
    if explanation.is_empty:
        return f"The map is empty: the model finds hardly any evidence for {title} ({share}) in one place."
    return (
        f"{title.capitalize()} {share}; {100 * explanation.outside_head:.0f} % of the evidence lies outside the head."
    )
