"""A large examination costs little memory."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

WORK = """
import json, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from brain_tumor_mri.inference.prediction import Prediction
from brain_tumor_mri.inference.volume import VolumeClassifier
from brain_tumor_mri.labels import LABELS

class Same:
    def predict_stream(self, pictures):
        for picture in pictures:
            yield Prediction("slice", LABELS[0], 0.7, dict(zip(LABELS, (0.7, 0.1, 0.1, 0.1))), decision="answer")

    def explain(self, picture, target):
        return SimpleNamespace(heat_map=np.ones((7, 7), np.float32))

answer = VolumeClassifier(Same()).predict(sys.argv[1], heat_map=True)
assert answer.mask.any() and answer.heat_map.shape == answer.mask.shape == (512, 512, 384)
# not ru_maxrss, which starts at the size of the process that started this one
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
print(json.dumps([len(answer.slices), int(peak.split()[1])]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """384 slices of 512 x 512."""
    x, y, z = np.ogrid[-1:1:512j, -1:1:512j, -1:1:384j]
    grey = ((x * x + y * y + z * z) < 0.8) * np.int16(1000)
    grey += np.random.default_rng(0).integers(0, 40, grey.shape, np.int16)
    file = tmp_path_factory.mktemp("large") / "t1c.nii"
    nibabel.save(nibabel.Nifti1Image(grey, np.diag([0.5, 0.5, 0.5, 1])), file)
    return file


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_384_slices_and_their_heat_map_take_under_a_gigabyte_and_a_half_beside_the_model(large: Path):
    done = subprocess.run([sys.executable, "-c", WORK, str(large)], capture_output=True, text=True, check=True)
    slices, kilobytes = json.loads(done.stdout)
    assert slices > 250 and kilobytes < 1.5 * 2**20
