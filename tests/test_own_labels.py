"""A laboratory's own classes from training to the page; and what is refused, because it is about tumours."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from test_train_command import SMALL

import train
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.hub.plan_model import plan_model
from brain_tumor_mri.inference.classifier import TumorClassifier
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import LABELS, own_labels
from brain_tumor_mri.page import ModelHandle, intro_words
from brain_tumor_mri.page.view_slice import answer_slice, explain_slice
from brain_tumor_mri.training.arguments import parse_arguments

OWN = ("normal", "mild", "severe")
FOLDERS = {"normal": "notumor", "mild": "glioma", "severe": "meningioma"}
SMOKE = str(Path(__file__).parents[1] / "configs" / "smoke.yaml")


@pytest.fixture(scope="module")
def own_data(phantom_dir, tmp_path_factory) -> Path:
    """Synthetic slices in three classes of other names."""
    root = tmp_path_factory.mktemp("own-data")
    for part in ("Training", "Testing"):
        for name, folder in FOLDERS.items():
            shutil.copytree(phantom_dir / part / folder, root / part / name)
    return root


@pytest.fixture(scope="module")
def own_model(own_data, tiny_model_dir, tmp_path_factory) -> Path:
    """Fine-tuned from a model with this project's four classes."""
    folder = tmp_path_factory.mktemp("own-model") / "stages"
    start = ["--model_name_or_path", str(tiny_model_dir), "--from_scratch", "false"]
    paths = ["--data_dir", str(own_data), "--output_dir", str(folder), "--labels", ",".join(OWN)]
    train.main([SMOKE, *SMALL, "--num_train_epochs", "1", *start, *paths])
    return folder


def test_a_model_is_fine_tuned_to_own_classes_and_measured(own_model, own_data, capsys):
    config, record = (json.loads((own_model / f"{name}.json").read_text()) for name in ("config", "metrics"))
    assert config["label_names"] == list(OWN) and config["own_labels"] is True
    assert list(record["splits"]["test"]["per_class"]) == list(OWN)
    assert record["data"]["counts"]["test"] == dict.fromkeys(OWN, 4)
    assert (own_model / "confusion_matrix.png").is_file()
    capsys.readouterr()
    assert main(["evaluate", "--model", str(own_model), "--data_dir", str(own_data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"]["test"] == record["splits"]["test"]
    assert main(["evaluate", "--model", str(own_model), "--data_dir", str(own_data)]) == 0
    assert "severe" in capsys.readouterr().out


def test_predict_and_explain_name_own_classes(own_model, own_data, tmp_path, capsys):
    table = tmp_path / "answers.csv"
    assert main(["predict", str(own_data / "Testing"), "--model", str(own_model), "--csv", str(table)]) == 0
    assert "severe" in capsys.readouterr().out
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} <= set(OWN) and sum(float(rows[0][name]) for name in OWN) == pytest.approx(1)
    assert main(["predict", str(own_data / "Testing" / "mild"), "--model", str(own_model), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["labels"] == list(OWN) and set(answer["summary"]["per_label"]) == set(OWN)
    image = next((own_data / "Testing" / "mild").iterdir())
    target = ["--class", "severe", "--output_dir", str(tmp_path / "maps")]
    assert main(["explain", str(image), "--model", str(own_model), *target]) == 0
    assert (tmp_path / "maps" / f"{image.stem}-severe-overlay.png").is_file()
    assert main(["explain", str(image), "--model", str(own_model), "--class", "glioma"]) == 2
    assert "normal, mild, severe" in capsys.readouterr().err


def test_own_classes_are_calibrated_exported_and_published_with_a_card_without_tumours(own_model, own_data, tmp_path):
    folder = Path(shutil.copytree(own_model, tmp_path / "stages"))
    assert main(["calibrate", "--model", str(folder), "--data_dir", str(own_data)]) == 0
    images = sorted(map(str, own_data.glob("Testing/*/*.png")))[:4]
    assert main(["export", "--model", str(folder), "--format", "onnx", "--check_images", *images]) == 0
    classifier = TumorClassifier.from_pretrained(folder)
    assert classifier.folder.backend == "onnx" and classifier.labels == OWN
    prediction = classifier.predict(images[0])
    assert prediction.decision and set(prediction.prediction_set) <= set(OWN)
    plan = plan_model(folder, "lab/stages", onnx=True)
    card = next(file.content for file in plan.files if file.path == "README.md").decode()
    assert "| `severe` | severe |" in card and "onnx/model.onnx" in {file.path for file in plan.files}
    for word in ("Br35H", "Cheng", "glioma", "brain-tumor\n", "notumor"):
        assert word not in card, word


def test_the_page_shows_own_classes(own_model, own_data):
    model = ModelHandle(str(own_model))
    assert model.labels == OWN and "severe" in intro_words(model.labels)
    path = str(next((own_data / "Testing" / "severe").iterdir()))
    assert "Glioma" not in (panel := answer_slice(model, path).panel) and "severe" in panel
    viewer, _ = explain_slice(model, path)
    assert all(f"--heat-{name}:url" in viewer for name in OWN)


def test_volumes_and_an_ensemble_with_four_classes_are_refused(own_model, tiny_model_dir):
    with pytest.raises(UserError, match="normal, mild, severe"):
        VolumeClassifier.from_pretrained(own_model)
    with pytest.raises(UserError, match="different classes"):
        TumorClassifier.from_pretrained([own_model, tiny_model_dir])


def test_the_folders_can_name_the_classes(own_data):
    arguments = parse_arguments([SMOKE, "--data_dir", str(own_data), "--labels", "folders"])
    assert arguments.data.names == ("mild", "normal", "severe")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--labels", "one"], "two classes or more"),
        (["--labels", "a,A"], "each once"),
        (["--labels", "a,<b>"], "letters, digits"),
        (["--labels", ",".join(reversed(LABELS))], "this project's classes"),
        (["--labels", "a,b", "--external_dir", "br35h"], "--external_dir"),
        (["--labels", "a,b", "--collections_dir", "more"], "--collections_dir"),
        (["--labels", "a,b", "--outlines_dir", "figshare"], "--outlines_dir"),
        (["--labels", "a,b", "--protocol", "patient-disjoint"], "patient-disjoint"),
        (["--labels", "a,b", "--class_weights", "1,2,3"], "2 positive numbers"),
    ],
)
def test_what_own_classes_cannot_have_is_refused_in_a_line(flags, told):
    with pytest.raises(UserError, match=told):
        parse_arguments([SMOKE, *flags])


def test_a_stranger_s_names_in_a_config_are_refused(own_model, tmp_path):
    folder = Path(shutil.copytree(own_model, tmp_path / "bad"))
    config = json.loads((folder / "config.json").read_text())
    config["label_names"] = ["a", '"><script>', "c"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="letters, digits"):
        TumorClassifier.from_pretrained(folder)
    assert own_labels(OWN) == OWN
