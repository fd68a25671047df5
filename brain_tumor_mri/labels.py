"""The four classes: their order, names, folder names and plain-language text. Nothing else spells a class name.

The order is the model's output order and never changes: glioma, meningioma, notumor, pituitary. A laboratory's own
classes (``--labels``) are names in a model's ``config.json``; ``class_named`` gives what is known of one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UserError, safe_line


@dataclass(frozen=True)
class TumorClass:
    """One class of the model.

    Attributes:
        name: the label in files, in ``config.json`` and in every output.
        title: the name shown to people.
        description: one sentence in plain language.
        folders: folder names, in lower case, that hold this class in known copies of the data set.
    """

    name: str
    title: str
    description: str
    folders: tuple[str, ...]


CLASSES: tuple[TumorClass, ...] = (
    TumorClass(
        "glioma",
        "Glioma",
        "A tumour that grows from the brain's supporting (glial) cells, within the brain tissue.",
        ("glioma", "glioma_tumor"),
    ),
    TumorClass(
        "meningioma",
        "Meningioma",
        "A tumour of the meninges, the membranes around the brain; it lies at the edge and presses inwards.",
        ("meningioma", "meningioma_tumor"),
    ),
    TumorClass(
        "notumor",
        "No tumour",
        "None of the three kinds of tumour is recognised; this is not a finding of health.",
        ("notumor", "no_tumor"),
    ),
    TumorClass(
        "pituitary",
        "Pituitary tumour",
        "A tumour of the pituitary gland, at the base of the brain behind the eyes.",
        ("pituitary", "pituitary_tumor"),
    ),
)

LABELS: tuple[str, ...] = tuple(c.name for c in CLASSES)
NUM_LABELS = len(LABELS)
ID2LABEL: dict[int, str] = dict(enumerate(LABELS))
LABEL2ID: dict[str, int] = {name: i for i, name in ID2LABEL.items()}


class _Titles(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name


TITLES: dict[str, str] = _Titles({c.name: c.title for c in CLASSES})
"""Class -> its name for people; one that is none of these four is its own title."""
NO_TUMOR = "notumor"
ANY_TUMOR = -1
"""Label of a training slice that shows a tumour of unknown type: any class but ``NO_TUMOR`` is right."""
FOLDER_TO_LABEL: dict[str, str] = {folder: c.name for c in CLASSES for folder in c.folders}
OWN_LABELS = "own_labels"
"""Key of a model's ``config.json``: true where its classes are a laboratory's own, and none of this project's."""
FOLDERS = "folders"
"""Value of ``--labels`` that takes the classes from the names of the training folders."""


def class_named(name: str) -> TumorClass:
    """Return one of ``CLASSES``, or for a class of a laboratory's own what is known of it: its name."""
    return next((c for c in CLASSES if c.name == name), TumorClass(name, name, "", (name.lower(),)))


def require_project_classes(names: Sequence[str], what: str) -> None:
    """Refuse a model with a laboratory's own classes where tumours, or these four, are what a thing is about."""
    if tuple(names) != LABELS:
        raise UserError(f"{what}: for models with this project's classes; this one has {', '.join(names)}")


def own_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Check a laboratory's own classes, in the order in which they were given."""
    names, shown = tuple(names), ",".join(names)
    if len(names) < 2 or len({name.lower() for name in names}) < len(names):
        raise UserError(f"--labels {safe_line(shown)}: give two classes or more, each once: --labels a,b,c")
    for name in names:
        if not re.fullmatch(r"\w[\w-]*", name):
            raise UserError(f"--labels {safe_line(shown)}: a class is named by letters, digits, _ and - alone")
    if set(names) == set(LABELS):
        raise UserError(f"--labels {shown}: these are this project's classes; leave it out")
    return names


RESEARCH_NOTICE = "Research software, not a medical device: its answers must not be used to diagnose or treat anyone."
