"""Which series is answered, and in which words."""

import pytest

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.synthetic_series import SECRETS, examination, series, write

from brain_tumor_mri.clinical.rules import judge


def judged(datasets, folder, *rules):
    return judge(write(datasets, folder), datasets[0], rules)


def test_sequence_and_orientation_are_told_by_the_headers_numbers(tmp_path) -> None:
    for name, datasets in examination("rules").items():
        fits, reason = judged(datasets, tmp_path / name, {"sequence": ["flair"], "orientation": ["Axial"]})
        assert fits == (name == "flair"), reason
    sagittal = series("sagittal", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert not judged(sagittal, tmp_path / "s", {"orientation": ["axial", "coronal"]})[0]
    fits, reason = judged(sagittal, tmp_path / "s", {"modality": ["CT"]}, {"orientation": ["sagittal"]})
    assert fits and reason.startswith("rule 2 fits") and "orientation sagittal" in reason


def test_a_reason_quotes_no_free_text(tmp_path) -> None:
    made = series("secret", Modality=SECRETS[0].upper(), BodyPartExamined=SECRETS[0].upper())
    fits, reason = judged(made, tmp_path / "a", {"modality": ["MR"]})
    assert not fits and SECRETS[0].lower() not in reason.lower()
    fits, reason = judged(series("knee", BodyPartExamined="KNEE"), tmp_path / "b", {"body_part": ["BRAIN", "HEAD"]})
    assert not fits and "body part another" in reason


def test_a_localiser_is_discarded_whatever_the_rules(tmp_path) -> None:
    made = series("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert judged(made, tmp_path, {"modality": ["MR"]}) == (False, "a localiser, not an examination")
