"""A slice's decision where its DICOM header says that it is of another sequence than the kinds were measured on."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from brain_tumor_mri import TumorClassifier
from brain_tumor_mri.images.read import SEQUENCE
from brain_tumor_mri.inference.prediction import Answers


@pytest.mark.parametrize(
    ("sequence", "unlikeness", "expected"),
    [("unknown", 0.5, "answer"), ("t1c", 0.5, "answer"), ("flair", 0.5, "unfamiliar"), ("flair", 2.0, "unfamiliar")],
)
def test_a_slice_of_a_sequence_on_which_nothing_was_measured_is_unfamiliar_and_the_sequence_is_named(
    tiny_model_dir: Path, sequence: str, unlikeness: float, expected: str
):
    classifier = TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")
    one = np.array([[0.97, 0.01, 0.01, 0.01]])
    answers = Answers(one, dict.fromkeys((90, 95), one > 0.5), np.array([unlikeness]), np.zeros(1))
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    image.info[SEQUENCE] = sequence
    (answer,) = classifier.answer_readings([classifier.read(image, "slice")], answers=answers)
    assert answer.decision == expected
    assert ("(FLAIR)" in str(answer.reason)) == (expected == "unfamiliar" and unlikeness < 1)
