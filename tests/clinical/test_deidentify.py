"""Headers without the patient's data."""

from io import BytesIO

import pytest

pytest.importorskip("dicomanonymizer", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.synthetic_series import SECRETS, series
from pydicom import Dataset

from brain_tumor_mri.clinical.deidentify import deidentify


def test_no_name_date_or_number_is_left_and_what_answers_need_stays() -> None:
    made = series("x", 1, SeriesDescription=SECRETS[0], ContrastBolusAgent="Gd", InstitutionName=SECRETS[0])[0]
    private = made.private_block(0x11, "SOMEBODY", create=True)
    private.add_new(1, "LO", SECRETS[0])
    item = Dataset()
    item.PatientName, item.EffectiveEchoTime = SECRETS[0], 10.0
    made.MREchoSequence = [item]
    pixels, uids = made.PixelData, (made.SOPInstanceUID, made.SeriesInstanceUID, made.StudyInstanceUID)
    buffer = BytesIO()
    deidentify(made).save_as(buffer, enforce_file_format=True)
    assert not any(secret.encode() in buffer.getvalue() for secret in SECRETS)
    assert made.PixelData == pixels and uids == (made.SOPInstanceUID, made.SeriesInstanceUID, made.StudyInstanceUID)
    assert (made.RepetitionTime, made.EchoTime, made.ContrastBolusAgent) == (500, 10, "Gd")
    assert made.MREchoSequence[0].EffectiveEchoTime == 10 and made.PatientIdentityRemoved == "YES"
