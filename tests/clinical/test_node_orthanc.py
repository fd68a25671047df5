"""The node beside a real Orthanc: series come by DIMSE or are found by DICOMweb, results go back, each once."""

import json
import shutil
import subprocess
import time

import numpy as np
import pytest

pytest.importorskip("pynetdicom", reason="pip install 'brain-tumor-mri[clinical]'")
from clinical.orthanc import Orthanc, free_port
from clinical.synthetic_series import SECRETS, FakeClassifier, examination, push, series, write
from dicomweb_client import DICOMwebClient

from brain_tumor_mri.clinical.node import Node, take_up
from brain_tumor_mri.clinical.pacs import ping
from brain_tumor_mri.clinical.results import NOTICE, ModelId

MODEL = ModelId("model", "1.0", "ab" * 32)
RESULTS = ["OT", "SEG", "SR"]
pytestmark = [
    pytest.mark.orthanc,
    pytest.mark.skipif(not shutil.which("Orthanc"), reason="apt install orthanc orthanc-dicomweb"),
]


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory):
    server = Orthanc(tmp_path_factory.mktemp("orthanc")).start()
    yield server
    server.stop()


@pytest.fixture
def node_of():
    """Makes nodes that listen until the test ends."""
    nodes = []

    def make(config, classifier=None) -> Node:
        nodes.append(Node(config, classifier or FakeClassifier(), MODEL))
        nodes[-1].listen()
        return nodes[-1]

    yield make
    for node in nodes:
        node.close()


def work(node: Node) -> int:
    """Look, and answer all there is; how many series that were."""
    node._next_poll = 0.0
    node.look()
    return sum(iter(lambda: node.answer_next(), False))


def test_of_four_series_in_the_pacs_the_right_one_is_answered_and_a_second_run_sends_nothing(
    orthanc, tmp_path, node_of
) -> None:
    made = examination("four")
    DICOMwebClient(orthanc.web).store_instances([d for datasets in made.values() for d in datasets])
    study = made["t1"][0].StudyInstanceUID
    options = {"poll": {"dicomweb": orthanc.web, "days": None}, "port": free_port()}
    accept = ({"modality": ["MR"], "sequence": ["t1c"], "orientation": ["axial"]},)
    node = node_of(orthanc.config(tmp_path / "first", accept=accept, stable_seconds=2, **options))
    assert work(node) == 0  # not known yet to be stable
    time.sleep(2.2)
    assert work(node) == 4
    states = {e.uid: (e.state, e.reason) for e in node.queue.entries() if e.study == study}
    for sequence, datasets in made.items():
        state, reason = states[datasets[0].SeriesInstanceUID]
        assert state == ("done" if sequence == "t1c" else "discarded"), reason
        assert "sequence" in reason and "orientation axial" in reason
    assert "contrast agent recorded" in states[made["t1c"][0].SeriesInstanceUID][1]
    assert orthanc.modalities(study) == RESULTS
    assert not any((tmp_path / "first" / "inbox").iterdir())
    assert work(node) == 0
    again = node_of(orthanc.config(tmp_path / "second", accept=accept, **(options | {"port": free_port()})))
    work(again)
    assert [e.reason for e in again.queue.entries() if e.state == "done"] == ["the PACS has this model's report of it"]
    assert orthanc.modalities(study) == RESULTS


def test_a_series_that_grows_in_the_pacs_is_answered_when_it_is_whole(orthanc, tmp_path, node_of) -> None:
    made, seen = series("grows"), []

    class Counting(FakeClassifier):
        def predict(self, source, *, heat_map=False):
            seen.append(len(list(source.glob("*.dcm"))))
            return super().predict(source, heat_map=heat_map)

    orthanc.upload(made[:3])
    poll = {"dicomweb": orthanc.web, "days": None}
    node = node_of(orthanc.config(tmp_path, poll=poll, accept=({"body_part": ["BRAIN"]},)), Counting())
    for e in node.queue.entries():
        node.queue.finish(e.uid, "discarded")
    node._next_poll = 0.0
    node.look()
    orthanc.upload(made[3:])
    while node.answer_next():
        pass
    state = {e.uid: e.state for e in node.queue.entries()}[made[0].SeriesInstanceUID]
    assert (state, seen[-1]) == ("done", 6) and 3 not in seen


@pytest.mark.parametrize("by", ["stow", "c-store"])
def test_a_series_is_answered_once_and_half_a_series_not_at_all(orthanc, tmp_path, caplog, by, node_of) -> None:
    node = node_of(orthanc.config(tmp_path, by))
    made = series(by, PatientSex="0000")
    push(node.config.port, made[:3], abort=True)
    assert work(node) == 0
    push(node.config.port, made[3:])
    assert work(node) == 1
    assert [e.state for e in node.queue.entries()] == ["done"]
    push(node.config.port, made)
    assert work(node) == 0
    assert orthanc.modalities(made[0].StudyInstanceUID) == RESULTS
    said = caplog.text + "".join(str(path) for path in tmp_path.rglob("*")) + str(node.queue.entries())
    assert "PatientSex" in caplog.text and not any(secret in said for secret in SECRETS)
    again = node_of(orthanc.config(tmp_path / "again", by, port=free_port()))  # remembers nothing, so asks the PACS
    push(again.config.port, made)
    assert work(again) == 1
    assert [e.reason for e in again.queue.entries()] == ["the PACS has this model's report of it"]
    assert not (tmp_path / "again" / "outbox" / made[0].SeriesInstanceUID).exists()


@pytest.mark.parametrize("by", ["stow", "c-store"])
def test_what_orthanc_routes_is_answered_even_if_it_breaks_off_after_the_last_slice(
    orthanc, tmp_path, by, node_of
) -> None:
    made, broken = series(f"routed {by}"), series(f"broken {by}")
    orthanc.upload([*made, *broken])
    node = node_of(orthanc.config(tmp_path, by))
    found = orthanc.rest("/tools/lookup", str(made[0].SeriesInstanceUID).encode())
    orthanc.rest("/modalities/node/store", json.dumps([found[0]["ID"]]).encode())
    push(node.config.port, broken[:5], abort=True)
    time.sleep(0.5)
    assert work(node) == 1
    assert orthanc.modalities(made[0].StudyInstanceUID) == RESULTS
    push(node.config.port, broken[5:], abort=True)
    assert work(node) == 1  # Orthanc has no more slices than came
    assert orthanc.modalities(broken[0].StudyInstanceUID) == RESULTS


def test_what_was_stored_is_read_back_where_and_as_it_was_computed(orthanc, tmp_path, node_of) -> None:
    made = series("read back")
    files = write(made, tmp_path / "in")
    node = node_of(orthanc.config(tmp_path / "node"))
    push(node.config.port, made)
    assert work(node) == 1
    stored = {d.Modality: d for d in DICOMwebClient(orthanc.web).retrieve_study(made[0].StudyInstanceUID)}
    answer = FakeClassifier().predict(files)
    voxels = np.argwhere(answer.mask)
    ras = answer.volume.affine @ np.append(voxels.mean(0), 1)
    places = []
    mask = np.zeros_like(answer.mask)
    seg = stored["SEG"]
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        x, y, z = map(float, frame.PlanePositionSequence[0].ImagePositionPatient)
        mask[:, :, round(z / 5)] = pixels.T
        places += [(x + 4 * column, y + 4 * row, z) for row, column in np.argwhere(pixels)]
    assert np.array_equal(mask, answer.mask)
    assert np.abs(np.mean(places, 0) * (-1, -1, 1) - ras[:3]).max() < 4
    assert stored["SR"].PatientName == made[0].PatientName  # filed with the study's patient
    if not shutil.which("dsrdump"):
        pytest.skip("apt install dcmtk")
    stored["SR"].save_as(tmp_path / "sr.dcm", enforce_file_format=True)
    shown = subprocess.run(["dsrdump", "+Pl", str(tmp_path / "sr.dcm")], capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for field in ("Imaging Measurement Report", "Meningioma", MODEL.sha256, NOTICE, "Partial", "Preliminary"):
        assert field.lower() in shown.stdout.lower(), field


@pytest.mark.parametrize("by", ["stow", "c-store"])
def test_with_deidentify_the_disk_knows_no_patient_and_the_pacs_still_files_the_answer(
    orthanc, tmp_path, by, node_of
) -> None:
    made = series(f"deidentify {by}", SeriesDescription=f"of {SECRETS[0]}")
    orthanc.upload(made)
    kept = []

    class Looking(FakeClassifier):
        def predict(self, source, *, heat_map=False):
            kept.extend(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            return super().predict(source, heat_map=heat_map)

    node = node_of(orthanc.config(tmp_path, by, deidentify=True), Looking())
    push(node.config.port, made)
    real, sent = node.pacs.store, []

    def store(dataset):
        kept.extend(path.read_bytes() for path in (tmp_path / "outbox").rglob("*") if path.is_file())
        sent.append(dataset)
        real(dataset)

    node.pacs.store = store
    assert work(node) == 1
    assert len(kept) > 12 and not any(secret.encode() in data for data in kept for secret in SECRETS)
    assert {str(d.PatientName) for d in sent} == {f"{SECRETS[0]}^Erika"} and {d.PatientID for d in sent} == {"P1"}
    assert orthanc.modalities(made[0].StudyInstanceUID) == RESULTS
    study = orthanc.rest("/tools/lookup", str(made[0].StudyInstanceUID).encode())
    assert len([hit for hit in study if hit["Type"] == "Study"]) == 1  # one patient, not two


def test_a_series_that_was_discarded_can_be_taken_up_anew(orthanc, tmp_path, node_of) -> None:
    made = series("discarded")
    node = node_of(orthanc.config(tmp_path, accept=({"sequence": ["flair"]},)))
    push(node.config.port, made)
    assert work(node) == 1 and orthanc.modalities(made[0].StudyInstanceUID) == []
    uid = made[0].SeriesInstanceUID
    assert len(list((tmp_path / "discard" / uid).iterdir())) == 6
    object.__setattr__(node.config, "accept", ({"sequence": ["t1"]},))
    assert take_up(node.config, uid) and work(node) == 1
    assert orthanc.modalities(made[0].StudyInstanceUID) == RESULTS


def test_ping_tries_each_verb_and_reads_back_what_it_stored(orthanc, tmp_path) -> None:
    for _ in range(2):
        assert [problem for _, problem in ping(orthanc.config(tmp_path))] == [None] * 4
        assert [problem for _, problem in ping(orthanc.config(tmp_path, "c-store"))] == [None] * 4
    assert [verb.split()[0] for verb, _ in ping(orthanc.config(tmp_path), store=False)] == ["QIDO", "WADO"]


@pytest.mark.parametrize(
    ("send", "said"),
    [
        ({"dicomweb": "http://127.0.0.1:1/dicom-web"}, "is the PACS on"),
        ({"dicomweb": "http://127.0.0.1:{http}/dicomweb"}, "/dicom-web"),
        ({"dicomweb": "http://127.0.0.1:{http}"}, "/dicom-web"),
        ({"dicomweb": "http://me:secret@127.0.0.1:1/x"}, "http://127.0.0.1:1/x: no connection"),
        ({"host": "127.0.0.1", "port": 1, "ae_title": "ORTHANC"}, "are host and port right"),
        ({"host": "127.0.0.1", "port": "{dicom}", "ae_title": "OTHER"}, "called ae title not recognised"),
        ({"host": "127.0.0.1", "port": "{http}", "ae_title": "ORTHANC"}, "no DICOM association"),
    ],
)
def test_ping_says_in_a_line_what_is_wrong(orthanc, tmp_path, send, said) -> None:
    ports = {"http": orthanc.http, "dicom": orthanc.dicom}
    send = {k: v.format(**ports) if isinstance(v, str) else v for k, v in send.items()}
    found = ping(orthanc.config(tmp_path, send=send))
    assert len(found) == 1 and said.lower() in found[0][1].lower(), found
    assert "\n" not in found[0][1]


def test_a_node_that_orthanc_does_not_know_is_told_so(orthanc, tmp_path) -> None:
    found = ping(orthanc.config(tmp_path, "c-store", ae_title="STRANGER"))
    assert len(found) == 1 and "does the PACS know the node" in found[0][1], found


def test_only_named_callers_may_send(orthanc, tmp_path, node_of) -> None:
    node = node_of(orthanc.config(tmp_path, callers=("ORTHANC",)))
    with pytest.raises(AssertionError):
        push(node.config.port, series("stranger"))
    assert node.queue.entries() == []
