"""The node beside a real Orthanc: series come by DIMSE, results go back by STOW or C-STORE, each once."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.synthetic_series import SECRETS, FakeClassifier, series
from pynetdicom import AE

from brain_tumor_mri.clinical.node import Node, NodeConfig, ping
from brain_tumor_mri.clinical.results import ModelId

pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(not shutil.which("Orthanc"), reason="apt install orthanc orthanc-dicomweb"),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orthanc")
    http, dicom = free_port(), free_port()
    config = {
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": http, "DicomPort": dicom,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAet": "ORTHANC",
        "DicomAlwaysAllowStore": False, "DicomAlwaysAllowEcho": False, "DicomCheckModalityHost": True,
        "DicomModalities": {"node": ["BRAINTUMORMRI", "127.0.0.1", 1]},
        "Plugins": ["/usr/share/orthanc/plugins"], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        ["Orthanc", str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{http}/system", timeout=2)
            break
        except OSError:
            time.sleep(0.1)
    yield http, dicom
    process.terminate()
    process.wait(20)


def stored(http: int, study: str) -> list[str]:
    url = f"http://127.0.0.1:{http}/dicom-web/studies/{study}/instances"
    request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
    answer = urllib.request.urlopen(request, timeout=10).read()
    return sorted(i["00080060"]["Value"][0] for i in json.loads(answer or b"[]"))


def push(port: int, datasets, abort: bool = False) -> None:
    ae = AE("SCANNER")
    ae.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port)
    assert association.is_established
    for dataset in datasets:
        assert association.send_c_store(dataset).Status == 0
    association.abort() if abort else association.release()
    time.sleep(0.5)


@pytest.mark.parametrize("by", ["stow", "c-store"])
def test_a_series_is_answered_once_and_half_a_series_not_at_all(orthanc, tmp_path, caplog, by) -> None:
    http, dicom = orthanc
    to = {"host": "127.0.0.1", "port": dicom, "ae_title": "ORTHANC"}
    to = {"dicomweb": f"http://127.0.0.1:{http}/dicom-web"} if by == "stow" else to
    config = NodeConfig(tmp_path, port=free_port(), stable_seconds=0, send=to)
    assert [problem for _, problem in ping(config)] == [None]
    node = Node(config, FakeClassifier(), ModelId("model", "1.0", "ab" * 32))
    node.listen()
    try:
        made = series(by, PatientSex="0000")
        push(config.port, made[:3], abort=True)
        assert not node.answer_next()
        push(config.port, made[3:])
        assert node.answer_next() and not node.answer_next()
        assert [(e.state, e.reason) for e in node.queue.entries()] == [("done", "")]
        push(config.port, made)
        assert not node.answer_next()
    finally:
        node._server.shutdown()
    assert stored(http, made[0].StudyInstanceUID) == ["OT", "SEG", "SR"]
    said = caplog.text + "".join(str(path) for path in tmp_path.rglob("*")) + str(node.queue.entries())
    assert "PatientSex" in caplog.text and not any(secret in said for secret in SECRETS)
