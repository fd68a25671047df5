"""The four classes: their order, names, folder names and plain-language text. Nothing else spells a class name.

The order is the model's output order and never changes: glioma, meningioma, notumor, pituitary.
"""

from dataclasses import dataclass


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
TITLES: dict[str, str] = {c.name: c.title for c in CLASSES}
NO_TUMOR = "notumor"
ANY_TUMOR = -1
"""Label of a training slice that shows a tumour of unknown type: any class but ``NO_TUMOR`` is right."""
FOLDER_TO_LABEL: dict[str, str] = {folder: c.name for c in CLASSES for folder in c.folders}

RESEARCH_NOTICE = "Research software, not a medical device: its answers must not be used to diagnose or treat anyone."
