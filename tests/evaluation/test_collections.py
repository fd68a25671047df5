"""Figures of ``leave-collection-out`` on answers that can be counted by hand."""

import datasets
import numpy as np
import pytest

from brain_tumor_mri.data.collections import TRAINING_LABELS
from brain_tumor_mri.evaluation.collections import collection_figures
from brain_tumor_mri.labels import LABELS, NO_TUMOR


def answers(*rows: tuple[str, float]) -> np.ndarray:
    """Probabilities of (most probable class, its probability); the rest goes to the other three alike."""
    return np.array([[p if name == label else (1 - p) / 3 for name in LABELS] for label, p in rows])


def slices(*rows: tuple[str, str, str]) -> datasets.Dataset:
    """Slices of (true label, collection, sequence), each a group of its own; the family is the collection's letter."""
    labels, collections, sequences = (list(column) for column in zip(*rows, strict=True))
    return datasets.Dataset.from_dict(
        {
            "true_label": labels,
            "label": [TRAINING_LABELS[label] for label in labels],
            "group": [str(i) for i in range(len(rows))],
            "collection": collections,
            "family": [name[0] for name in collections],
            "sequence": sequences,
            "plane": ["axial"] * len(rows),
            "skull_stripped": ["0"] * len(rows),
        }
    )


def value(figures: dict, key: str) -> float:
    return pytest.approx(figures[key]["value"])


def test_each_figure_counts_the_slices_that_can_tell_it():
    measured = collection_figures(
        answers(
            ("glioma", 0.9), ("notumor", 0.7), ("meningioma", 0.6),
            ("notumor", 0.9), ("glioma", 0.4), ("pituitary", 0.8),
        ),
        slices(
            ("glioma", "a1", "t1"), ("glioma", "a1", "t1"), ("tumour", "a1", "t1"),
            ("notumor", "a1", "t1"), ("notumor", "a1", "t1"), ("clear", "a1", "t1"),
        ),
        n_resamples=50,
    )["pooled"]  # fmt: skip
    assert measured["n"] == 6
    assert value(measured, "tumours_found") == 2 / 3  # the third is a tumour of unknown type: any tumour finds it
    assert value(measured, "type_right") == 1 / 2  # of the gliomas
    assert value(measured, "healthy_called_tumour") == 1 / 2
    assert value(measured, "clear_called_tumour") == 1
    # P(tumour): healthy 0.1 and 0.8; tumours 0.9, 0.3 and 1 - 0.4 / 3 = 0.867
    assert value(measured, "auroc") == (2 + 1 + 2) / 6
    assert value(measured, "found_at_90_specificity") == 2 / 3  # above 0.8
    # of known class: 0.9 right, 0.7 wrong, 0.9 right and 0.4 wrong; the two at 0.9 share a bin
    assert value(measured, "ece") == (2 * 0.1 + 0.7 + 0.4) / 4


def test_collections_weigh_alike_in_pooled_figures_and_alone_in_their_own():
    found, missed = ("glioma", 0.9), ("notumor", 0.9)
    measured = collection_figures(
        answers(*[found] * 9, missed, missed),
        slices(*[("glioma", "a1", "t1")] * 10, ("glioma", "b1", "t2")),
        n_resamples=50,
    )
    assert value(measured["pooled"], "tumours_found") == (0.9 + 0) / 2
    assert value(measured["by_family"]["a"], "tumours_found") == 0.9
    assert value(measured["by_family"]["b"], "tumours_found") == 0
    assert [measured["by_sequence"][name]["n"] for name in ("t1", "t2")] == [10, 1]


def test_what_no_slice_tells_is_none_and_an_empty_sequence_is_unknown():
    measured = collection_figures(
        answers(("notumor", 0.9), ("notumor", 0.8)),
        slices(("notumor", "a1", ""), ("notumor", "a2", "")),
        n_resamples=10,
    )
    figures = measured["by_sequence"]["unknown"]
    assert figures == measured["pooled"]
    for key in ("tumours_found", "type_right", "clear_called_tumour", "found_at_90_specificity", "auroc"):
        assert figures[key] is None, key
    assert value(figures, "healthy_called_tumour") == 0


def test_intervals_are_drawn_over_groups_and_reproducible():
    rng = np.random.default_rng(0)
    labels = rng.choice([NO_TUMOR, "glioma"], 200)
    probabilities = rng.dirichlet(np.ones(4), 200)
    table = slices(*((label, "a1", "t1") for label in labels))
    alone, again = (collection_figures(probabilities, table, n_resamples=200)["pooled"] for _ in range(2))
    assert alone == again
    paired = table.remove_columns("group").add_column("group", [str(i // 10) for i in range(200)])
    together = collection_figures(probabilities, paired, n_resamples=200)
    assert together["interval"] == {
        "method": "percentile bootstrap", "confidence": 0.95, "resamples": 200, "over": "group",
    }  # fmt: skip
    assert together["pooled"]["auroc"]["value"] == alone["auroc"]["value"]
    assert together["pooled"]["auroc"]["low"] != alone["auroc"]["low"]
