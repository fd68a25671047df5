"""``brain-tumor-mri node`` and ``ping`` as people run them."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.orthanc import free_port
from clinical.synthetic_series import SECRETS, push, series

from brain_tumor_mri.clinical.config import read_config
from brain_tumor_mri.commands.main import main
from brain_tumor_mri.errors import UserError


def write_config(folder, **more) -> str:
    settings = {
        "folder": str(folder / "node"), "port": free_port(), "stable_seconds": 0.2,
        "send": {"dicomweb": "http://127.0.0.1:1/dicom-web"}, "accept": [{"modality": ["MR"]}],
    }  # fmt: skip
    (folder / "node.yaml").write_text(json.dumps(settings | more))  # JSON is YAML
    return str(folder / "node.yaml")


def until(holds) -> None:
    for _ in range(1500):
        if holds():
            return
        time.sleep(0.2)
    raise AssertionError("it never held")


def test_no_identifier_is_in_the_log_an_error_or_a_file_name_and_a_pacs_that_is_off_is_waited_for(
    tmp_path, tiny_model_dir, capsys
) -> None:
    config = write_config(tmp_path)
    port = read_config(config).port
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "brain_tumor_mri.commands.main", "node", "--config", config]
    with (tmp_path / "said").open("w") as said:
        node = subprocess.Popen([*command, "--model", str(tiny_model_dir)], stdout=said, stderr=said, env=environment)
    try:
        until(lambda: "not for clinical use" in (tmp_path / "said").read_text() or node.poll() is not None)
        assert node.poll() is None, (tmp_path / "said").read_text()
        push(port, series("broken sex", PatientSex="0000", StudyID=None, SeriesDescription=SECRETS[0]))
        push(port, series("broken dates", StudyDate=None, BodyPartExamined=SECRETS[0].upper()))
        push(port, series("other modality", Modality="CT", BodyPartExamined=SECRETS[0].upper()))
        push(port, series("no pixels", PixelData=b"\0\1" * 64, PatientComments=SECRETS[0]))
        push(port, series("half"), abort=True)

        def entries():
            capsys.readouterr()
            main(["node", "status", "--config", config, "--json"])
            return json.loads(capsys.readouterr().out)["series"]

        expected = ["discarded", "failed", "incomplete", "working", "working"]
        until(lambda: sorted(e["state"] for e in entries()) == expected or node.poll() is not None)
        until(lambda: len([e for e in entries() if "no connection" in e["reason"]]) == 2 or node.poll() is not None)
    finally:
        node.send_signal(signal.SIGTERM)
        node.wait(60)
    assert main(["node", "status", "--config", config]) == 0
    names = "".join(str(path) for path in tmp_path.rglob("*"))
    everything = (tmp_path / "said").read_text() + capsys.readouterr().out + names
    assert not any(secret.lower() in everything.lower() for secret in SECRETS)
    assert "Traceback" not in everything and node.returncode == 0
    assert "PatientSex is none of M, F, O" in everything and "StudyDate is missing" in everything
    assert not list((tmp_path / "tmp").iterdir())  # slices on their way lie in the node's folder


def test_ping_ends_with_1_and_a_line_where_the_pacs_is_off(tmp_path, capsys) -> None:
    assert main(["ping", "--config", write_config(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("QIDO http://127.0.0.1:1/dicom-web: ") and "is the PACS on" in out
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"send": {}}, "send needs dicomweb"),
        ({"accept": [{"sequence": ["t1ce"]}]}, "sequence has no t1ce"),
        ({"accept": [{"plane": ["axial"]}]}, "accept has no plane"),
        ({"accept": [{"orientation": ["oblique"]}]}, "orientation has no oblique"),
        ({"accept": []}, "accept has no rule"),
        ({"poll": {"url": "x"}}, "poll needs dicomweb"),
        ({"poll": {"dicomweb": "x", "seconds": 0}}, "seconds"),
        ({"deidentify": "yes"}, "deidentify"),
        ({"no_such": 1}, "no_such"),
        ({"port": "DICOM"}, "DICOM"),
        ({"port": 70000}, "port"),
        ({"ae_title": "MUCH.TOO.LONG.A.TITLE"}, "AE title"),
        ({"send": {"host": "127.0.0.1", "port": "x", "ae_title": "PACS"}}, "port"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_file_and_key(tmp_path, more, said) -> None:
    config = write_config(tmp_path, **more)
    with pytest.raises(UserError) as error:
        read_config(config)
    assert said in str(error.value) and str(error.value).startswith(config) and "\n" not in str(error.value)


def test_a_series_that_is_unknown_cannot_be_taken_up_anew(tmp_path, capsys) -> None:
    assert main(["node", "retry", "1.2.3", "--config", write_config(tmp_path)]) == 2
    assert "1.2.3" in capsys.readouterr().err
