"""Headers without the patient's data: ``deidentify(dataset)``, the Basic Profile of DICOM PS3.15 by dicom-anonymizer.

UIDs stay (the standard's Retain UIDs option), as results must name the slices they speak of; so does the contrast
agent, without which T1 with contrast cannot be told. Pixels are not touched: a face stays in them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from dicomanonymizer.dicomfields_selector import dicom_anonymization_database_selector
from dicomanonymizer.simpledicomanonymizer import anonymize_dataset, initialize_actions, keep
from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.tag import Tag

EDITION = "dicomfields_2026c"
"""Of the table of PS3.15, as the library names it."""
_KEPT = ("ContrastBolusAgent", "ContrastBolusAgentSequence")
_METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113110", "Retain UIDs Option"),
)


def deidentify(dataset: Dataset) -> Dataset:
    """Clear a dataset in place, the items of its sequences, too; returns it, marked as de-identified."""
    _clear(dataset)
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethodCodeSequence = [_code(*method) for method in _METHODS]
    return dataset


def _clear(dataset: Dataset) -> None:
    anonymize_dataset(dataset, base_rules_gen=lambda: dict(_rules()))
    for element in dataset:  # the library looks at the top level only
        if element.VR == "SQ":
            for item in element.value:
                _clear(item)


@cache
def _rules() -> dict[Any, Any]:
    rules = initialize_actions(EDITION)
    uids = dicom_anonymization_database_selector(EDITION)["U_TAGS"]
    contrast = [(Tag(tag).group, Tag(tag).element) for tag in map(tag_for_keyword, _KEPT)]
    return rules | dict.fromkeys([*uids, *contrast], keep)


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code
