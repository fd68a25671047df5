"""The answer for a slice on one page of PDF: no name of the file, and none of its header's identifiers."""

from __future__ import annotations

import hashlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from PIL import Image

from ..images.facts import SliceFacts
from .report_page import INK, draw_bars, new_page, page_pdf, write, write_facts, write_lines

if TYPE_CHECKING:
    from ..heat_maps.explain import Explanation
    from ..inference.prediction import Prediction


@dataclass(frozen=True)
class SliceReport:
    """What the page of PDF shows.

    Attributes:
        heading: what kind of answer it is.
        finding: the answer.
        words: what it means, or why there is none.
        prediction: the answer with its probabilities.
        image: the slice as it was read.
        facts: of its header.
        model_name: the weights that answered.
        explanation: the heat map that is shown, and what must be known of it; None without one.
        map_words: of ``explanation``.
    """

    heading: str
    finding: str
    words: str
    prediction: Prediction
    image: Image.Image
    facts: SliceFacts
    model_name: str
    explanation: Explanation | None = None
    map_words: str = ""

    def pdf(self) -> bytes:
        """Return the page."""
        return page_pdf(self.figure, "Slice")

    def figure(self) -> Figure:
        """Draw the page."""
        figure = new_page("slice")
        write(figure, 0.885, self.heading, 9)
        write(figure, 0.853, self.finding, 20, bold=True)
        bottom = write_lines(figure, 0.828, [self.words])
        draw_bars(figure, self.prediction, bottom)
        digest = hashlib.sha256(self.image.tobytes()).hexdigest()
        scores = (("Unlikeness", self.prediction.unlikeness), ("Foreign", self.prediction.foreign))
        sets = ((f"{coverage} % set", ", ".join(names)) for coverage, names in self.prediction.prediction_sets.items())
        facts = [
            ("Decision", self.prediction.decision or "none: these weights have no trust.json"),
            *sets,
            *((name, f"{score:.2f}") for name, score in scores if score is not None),
            ("Pixels", f"{self.image.width} × {self.image.height}"),
            ("Model", textwrap.shorten(self.model_name, 40, placeholder="...")),
            ("SHA-256", f"{digest[:16]} (of the pixels)"),
        ]
        write_facts(figure, bottom, facts)
        y = write_lines(figure, 0.645, [f"{what}: {value}" for what, value in self.facts.lines], size=8)
        pictures = [("The slice as it was read", self.image)]
        if self.explanation:
            pictures.append((self.map_words, self.explanation.overlay()))
        for column, (words, picture) in enumerate(pictures):
            axes = figure.add_axes((0.08 + 0.44 * column, y - 0.36, 0.4, 0.3))
            axes.imshow(picture, interpolation="bilinear", aspect=self._aspect(picture))
            axes.set_axis_off()
            axes.set_title(textwrap.fill(words, 58), fontsize=7.5, loc="left", color=INK)
        if self.explanation:
            told = "A heat map shows where the model finds evidence. It is no outline of a tumour."
            write_lines(figure, y - 0.39, [told], size=8)
        return figure

    def _aspect(self, picture: Image.Image) -> float:
        """The model sees the slice squashed; on paper it has its own ratio again."""
        return (self.image.height / self.image.width) * (picture.width / picture.height)
