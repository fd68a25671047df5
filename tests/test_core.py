"""What `pip install .` alone brings answers, draws heat maps and says what else a task needs: no torch, no gradio."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = [re.match(r"[\w-]+", line)[0].lower() for line in PROJECT["dependencies"]]
ONLY_THE_CORE = """\
import importlib.util
import sys
from importlib import metadata

from packaging.requirements import Requirement

allowed, pending = {"brain-tumor-mri"}, set(sys.argv[1].split(","))
while pending:
    name = pending.pop()
    allowed.add(name)
    needed = map(Requirement, metadata.requires(name) or [])
    found = {r.name.lower().replace("_", "-") for r in needed if not r.marker or r.marker.evaluate({"extra": ""})}
    pending |= found - allowed
owners = metadata.packages_distributions()

class Refused:
    def find_spec(self, name, path=None, target=None):
        owned = {owner.lower().replace("_", "-") for owner in owners.get(name.partition(".")[0], [])}
        if owned and not owned & allowed:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def absent(name, package=None, find_spec=importlib.util.find_spec):
    try:
        return find_spec(name, package)
    except ModuleNotFoundError:
        return None

sys.meta_path.insert(0, Refused())
importlib.util.find_spec = absent
from brain_tumor_mri.commands.main import main
sys.exit(main(sys.argv[2:]))
"""
"""The command line, in a process that may import nothing but the core's packages and what they ask for themselves."""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-c", ONLY_THE_CORE, ",".join(CORE), *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def slices(phantom_dir: Path) -> list[Path]:
    return sorted(phantom_dir.glob("Testing/*/*.png"))


def test_the_core_has_no_big_packages():
    named = {"numpy", "pillow", "onnxruntime", "huggingface-hub", "safetensors", "rich", "psutil", "filelock"}
    assert set(CORE) == named
    assert set(PROJECT["optional-dependencies"]) >= {"train", "page", "dicom", "volumes", "clinical", "federated"}


def test_a_model_with_its_onnx_file_answers_without_torch_as_pytorch_does(tiny_onnx_dir: Path, slices: list[Path]):
    from brain_tumor_mri import TumorClassifier

    done = command("predict", *slices, "--model", tiny_onnx_dir, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["model"]["backend"] == "onnx" and told["summary"]["errors"] == 0
    expected = TumorClassifier.from_pretrained(tiny_onnx_dir, device="cpu", backend="torch").predict(slices)
    for found, prediction in zip(told["predictions"], expected, strict=True):
        assert found["label"] == prediction.label
        assert found["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-4)


def test_nothing_is_reported_and_no_identifier_is_kept(tiny_onnx_dir: Path, slices: list[Path], tmp_path: Path):
    code = "import sys; from brain_tumor_mri.commands.main import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "predict", str(slices[0]), "--model", str(tiny_onnx_dir), "--backend", "onnx"]
    environment = {k: v for k, v in os.environ.items() if "TELEMETRY" not in k} | {"HOME": str(tmp_path)}
    result = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # onnxruntime's identifier was one


def test_heat_maps_are_drawn_without_torch(tiny_onnx_dir: Path, slices: list[Path], tmp_path: Path):
    done = command(
        "explain", *slices[:2], "--model", tiny_onnx_dir, "--class", "glioma", "--output_dir", tmp_path / "maps"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "maps").glob("*-overlay.png"))) == 2


def test_what_the_core_cannot_do_names_the_extra_that_can(tiny_model_dir: Path, slices: list[Path], tmp_path: Path):
    import nibabel
    import numpy as np

    volume = tmp_path / "volume.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)), volume)
    cases = {
        "[train]": ("predict", slices[0], "--model", tiny_model_dir),
        "[volumes]": ("predict", volume),
        "[page]": ("app",),
    }
    for extra, arguments in cases.items():
        done = command(*arguments)
        assert done.returncode == 2 and extra in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_a_dicom_file_among_others_is_a_row_that_names_the_extra(
    tiny_onnx_dir: Path, slices: list[Path], tmp_path: Path
):
    file = tmp_path / "slice.dcm"
    file.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 64)
    done = command("predict", slices[0], file, "--model", tiny_onnx_dir, "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(done.stdout)["predictions"]
    assert first["label"] and "brain-tumor-mri[dicom]" in second["error"]


def test_the_installed_metadata_is_that_of_the_project_file():
    wanted = [line for line in metadata.requires("brain-tumor-mri") or [] if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0].lower() for line in wanted}
    if "torch" in names:
        pytest.skip("this environment was made before the extras; pip install -e . again")
    assert names == set(CORE)
