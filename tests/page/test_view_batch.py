"""Many files without a browser: order, errors, archives, a stop, the table, the CSV, and files spoiled in many ways."""

import base64
import csv
import html
import io
import random
import threading
import weakref
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from app_server import EXAMPLES
from PIL import Image
from pydicom.data import get_testdata_file

from brain_tumor_mri import TumorClassifier, UserError
from brain_tumor_mri.images.facts import SliceFacts
from brain_tumor_mri.images.read import load_image
from brain_tumor_mri.inference.prediction import Prediction, csv_columns, csv_row
from brain_tumor_mri.labels import LABELS
from brain_tumor_mri.page.handle import ModelHandle
from brain_tumor_mri.page.uploads import CHUNK, MAX_FILES, Files, Row, answer_files, batch_answer, csv_uri
from brain_tumor_mri.page.view_batch import Stops, answer_batch, status, table
from brain_tumor_mri.trust.decision import ANSWER, DECISIONS, NOT_A_BRAIN_MRI, UNCERTAIN, UNFAMILIAR

# pytest shows all warnings whatever filters the code set; that they stay unseen is tested elsewhere
pytestmark = [pytest.mark.filterwarnings(rf"ignore:::{name}") for name in (r"PIL\..*", r"pydicom\..*")]

PHANTOMS = [str(EXAMPLES / f"phantom-{name}.png") for name in LABELS]


@pytest.fixture(scope="module")
def classifier(tiny_model_dir: Path) -> TumorClassifier:
    return TumorClassifier.from_pretrained(tiny_model_dir, device="cpu")


def answers(classifier: TumorClassifier, paths: list[str]) -> list[Prediction]:
    with Files(paths) as files:
        return [row.prediction for row in answer_files(classifier, files)]


def test_answers_are_those_of_predict_in_the_order_given(classifier: TumorClassifier):
    paths = PHANTOMS * 5  # more than a chunk
    assert len(paths) > 2 * CHUNK
    for given, found, alone in zip(paths, answers(classifier, paths), classifier.predict(paths), strict=True):
        assert found.name == Path(given).name
        assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)


def test_a_bad_file_among_good_ones_is_a_row_of_its_own(classifier: TumorClassifier, tmp_path: Path):
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no archive")
    paths = [PHANTOMS[0], str(tmp_path / "bad.png"), str(tmp_path / "bad.zip"), PHANTOMS[1]]
    found = answers(classifier, paths)
    assert [p.error is None for p in found] == [True, False, False, True]
    assert "not a readable" in found[1].error and "zip archive is damaged" in found[2].error
    assert found[3].probabilities == pytest.approx(classifier.predict(PHANTOMS[1]).probabilities, abs=1e-5)


def test_too_many_files_and_none_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=f"over {MAX_FILES} files"):
        Files([PHANTOMS[0]] * (MAX_FILES + 1))
    with pytest.raises(UserError, match="No file"):
        Files([])
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for number in range(MAX_FILES // 2 + 1):
                archive.writestr(f"{number}.png", b"x")
    with pytest.raises(UserError, match=f"over {MAX_FILES} files"):
        Files([str(tmp_path / "a.zip"), str(tmp_path / "b.zip")])


def test_a_stop_ends_after_the_chunk_and_keeps_what_was_done(tiny_model_dir: Path):
    model = ModelHandle(str(tiny_model_dir))
    stop = threading.Event()
    paths = PHANTOMS * 25
    steps: Iterator[tuple[str, str]] = answer_batch(model, paths, stop)
    next(steps)
    stop.set()
    status, shown = list(steps)[-1]
    assert "Stopped; what was done is kept: 0 of 100 files" in status and shown == ""
    done = list(answer_batch(model, paths[:5], threading.Event()))[-1]
    assert "Done: 5 of 5 files" in done[0] and done[1].count('<td class="file">') == 5


def test_a_stop_in_the_middle_keeps_every_row_so_far(classifier: TumorClassifier):
    asked = iter([False, False, True])
    with Files(PHANTOMS * 10) as files:
        rows = list(answer_files(classifier, files, stopped=lambda: next(asked)))
    assert len(rows) == 2 * CHUNK


def test_a_new_run_stops_the_visitors_old_one_and_nobody_elses():
    stops = Stops()
    stops.start("one")
    stops.start("other")
    old, foreign = stops.of("one"), stops.of("other")
    stops.start("one")
    new = stops.of("one")
    assert old.is_set() and not new.is_set() and not foreign.is_set()
    stops.end("one", old)  # the old run ends last; the new one can still be stopped
    stops.press("one")
    assert new.is_set() and not foreign.is_set()
    stops.press("nobody")


def test_the_csv_is_that_of_the_command_and_harmless_in_a_spreadsheet(classifier: TumorClassifier, tmp_path: Path):
    evil = tmp_path / "=cmd.png"
    Image.open(PHANTOMS[0]).save(evil)
    found = answers(classifier, [PHANTOMS[0], str(evil)])
    content = base64.b64decode(csv_uri(found).split(",", 1)[1]).decode()
    rows = list(csv.reader(io.StringIO(content)))
    assert rows == [list(csv_columns()), *(csv_row(prediction) for prediction in found)]
    assert rows[2][0] == "./=cmd.png"


def test_the_table_shows_names_and_errors_as_text():
    evil = "<script>alert(1)</script>"
    shown = table([Row(Prediction(evil, None, None, {}, evil))])
    assert "<script" not in shown and "&lt;script" in shown
    assert table([]) == ""


def test_only_answers_count_by_class_and_every_other_decision_by_itself():
    plain = Prediction("x.png", "glioma", 0.6, dict.fromkeys(LABELS, 0.25))
    decided = {
        name: replace(plain, decision=name, reason="it is so", prediction_set=("glioma", "notumor"))
        for name in DECISIONS
    }
    rows = [Row(decided[name]) for name in DECISIONS] + [Row(Prediction("y", None, None, {}, "empty"))]
    said = status(5, 5, "Done", rows)
    assert "(1 glioma, 1 uncertain, 1 unfamiliar, 1 not a brain MRI, 1 not readable)" in said
    assert "1 glioma" in status(1, 1, "Done", [Row(plain)]), "without a trust.json the class is all there is"
    shown = {name: table([Row(prediction)]) for name, prediction in decided.items()}
    assert "60.0" not in shown[NOT_A_BRAIN_MRI] and "Glioma" not in shown[NOT_A_BRAIN_MRI]
    assert all("60.0" in shown[name] for name in DECISIONS if name != NOT_A_BRAIN_MRI)
    for name, words in ((ANSWER, "Model's answer"), (UNCERTAIN, "Glioma or no tumour"), (UNFAMILIAR, "do not rely")):
        assert words in html.unescape(shown[name])


def test_pictures_are_let_go_one_by_one(classifier: TumorClassifier, monkeypatch):
    pictures: list[weakref.ref] = []
    alive: list[int] = []

    def watched(source: object, name: str) -> tuple[Image.Image, SliceFacts]:
        alive.append(sum(picture() is not None for picture in pictures))
        picture = load_image(source, name=name)
        pictures.append(weakref.ref(picture))
        return picture, SliceFacts()

    monkeypatch.setattr("brain_tumor_mri.page.uploads.read_upload", watched)
    with Files(PHANTOMS * 3) as files:
        assert sum(1 for _ in answer_files(classifier, files)) == len(pictures) == 12
    assert max(alive) <= 1


def test_a_file_that_nobody_thought_of_is_a_row_and_the_others_are_answered(classifier: TumorClassifier, monkeypatch):
    whole = classifier.preprocess

    def broken(image: Image.Image) -> np.ndarray:
        if image.width == 256 and image.getpixel((0, 0)) == (1, 2, 3):
            raise MemoryError
        return whole(image)

    def read(source: str, name: str) -> tuple[Image.Image, SliceFacts]:
        image = load_image(source)
        if name == "phantom-meningioma.png":
            image.putpixel((0, 0), (1, 2, 3))
        return image, SliceFacts()

    monkeypatch.setattr(classifier, "preprocess", broken)
    monkeypatch.setattr("brain_tumor_mri.page.uploads.read_upload", read)
    found = {prediction.name: prediction.error for prediction in answers(classifier, PHANTOMS)}
    assert "MemoryError" in found.pop("phantom-meningioma.png")
    assert list(found.values()) == [None] * 3


def test_a_model_that_fails_keeps_the_rows_that_were_answered(tiny_model_dir: Path, monkeypatch):
    model = ModelHandle(str(tiny_model_dir))
    asked = iter([True, False])
    answer = model.get().answer_readings

    def fails_later(readings: object) -> list[Prediction]:
        if not next(asked):
            raise UserError("the weights hold NaN")
        return answer(readings)

    monkeypatch.setattr(model.get(), "answer_readings", fails_later)
    shown, rows = list(answer_batch(model, PHANTOMS * 4, threading.Event()))[-1]
    assert 'role="alert"' in shown and "the weights hold NaN" in shown
    assert rows.count('<td class="file">') == CHUNK


def spoiled(number: int, chance: random.Random) -> tuple[str, bytes]:
    """A file of one of the accepted kinds, cut, flipped or renamed."""
    kinds = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "DICOM", "ZIP"]
    kind = kinds[number % len(kinds)]
    if kind == "DICOM":
        content = Path(get_testdata_file("MR_small.dcm")).read_bytes()
    elif kind == "ZIP":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.write(PHANTOMS[0], "a.png")
        content = buffer.getvalue()
    else:
        buffer = io.BytesIO()
        Image.open(PHANTOMS[0]).convert("RGB").resize((64, 64)).save(buffer, kind)
        content = buffer.getvalue()
    way = chance.choice(["truncate", "flip", "both", "rename"])
    spoil = bytearray(content)
    if way in ("truncate", "both"):
        spoil = spoil[: chance.randrange(1, len(spoil))]
    if way in ("flip", "both"):
        for _ in range(chance.randrange(1, 30)):
            spoil[chance.randrange(len(spoil))] = chance.randrange(256)
    suffix = chance.choice(["png", "jpg", "dcm", "zip", "tif"]) if way == "rename" else kind.lower()
    return f"file-{number}.{suffix}", bytes(spoil)


def test_two_hundred_malformed_files_each_give_an_answer_or_one_line(classifier: TumorClassifier, tmp_path: Path):
    chance = random.Random(7)
    paths = []
    for number in range(200):
        name, content = spoiled(number, chance)
        (tmp_path / name).write_bytes(content)
        paths.append(str(tmp_path / name))
    found = batch_answer(classifier, "model", paths)
    assert found["summary"]["complete"] and found["summary"]["images"] >= 200
    errors = [prediction["error"] for prediction in found["predictions"] if prediction["error"] is not None]
    assert len(errors) > 60
    for error in errors:
        assert error and "\n" not in error and "Traceback" not in error and str(tmp_path) not in error
    for prediction in found["predictions"]:
        assert (prediction["label"] is None) == (prediction["error"] is not None)
        if prediction["label"]:
            assert np.isclose(sum(prediction["probabilities"].values()), 1)


def test_problems_stand_first_and_a_row_knows_its_file_and_kind():
    plain = Prediction("fine.png", "glioma", 0.6, dict.fromkeys(LABELS, 0.25), decision=ANSWER)
    unsure = replace(plain, name="unsure.png", decision=UNCERTAIN, prediction_set=("glioma", "notumor"))
    bad = Prediction("bad.png", None, None, {}, "empty")
    shown = table([Row(plain, "data:,"), Row(unsure), Row(bad)])
    places = [shown.index(f'<td class="file">{name}') for name in ("bad.png", "unsure.png", "fine.png")]
    assert places == sorted(places)
    assert 'data-row="0" data-kind="answer"' in shown and 'data-row="2" data-kind="error"' in shown
    assert 'aria-label="Open fine.png"' in shown and '<option value="uncertain">uncertain (1)</option>' in shown
