"""A real Orthanc for tests, on free ports of this machine; stopped and started at will."""

import json
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from brain_tumor_mri.clinical.config import NodeConfig


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Orthanc:
    """Orthanc with DICOMweb; HTTP for this machine only, DIMSE for known modalities only."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http, self.dicom, self.node = folder, free_port(), free_port(), free_port()
        self.web = f"http://127.0.0.1:{self.http}/dicom-web"
        self.log = folder / "orthanc.log"
        config = {
            "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": self.http,
            "DicomPort": self.dicom, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC", "DicomAlwaysAllowStore": False, "DicomAlwaysAllowEcho": False,
            "DicomAlwaysAllowFind": False, "DicomCheckModalityHost": True, "DicomCheckCalledAet": True,
            "DicomModalities": {"node": ["BRAINTUMORMRI", "127.0.0.1", self.node]},
            "Plugins": ["/usr/share/orthanc/plugins/libOrthancDicomWeb.so"],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(config))
        self._process: subprocess.Popen | None = None

    def start(self) -> "Orthanc":
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(["Orthanc", str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        for _ in range(300):
            try:
                self.rest("/system")
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text()[-2000:])

    def stop(self) -> None:
        """Stop it; what it stored stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def rest(self, path: str, data: bytes | None = None, method: str | None = None) -> Any:
        """Orthanc's own REST."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data, method=method)
        return json.loads(urllib.request.urlopen(request, timeout=30).read() or b"null")

    def upload(self, datasets) -> None:
        """Have it hold a series."""
        from io import BytesIO

        for dataset in datasets:
            buffer = BytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
            self.rest("/instances", buffer.getvalue())

    def modalities(self, study: str) -> list[str]:
        """Modality of each instance of a study that QIDO finds, without MR."""
        url = f"{self.web}/studies/{study}/instances?includefield=00080060"
        request = urllib.request.Request(url, headers={"Accept": "application/dicom+json"})
        found = json.loads(urllib.request.urlopen(request, timeout=10).read() or b"[]")
        return sorted(m for m in (i["00080060"]["Value"][0] for i in found) if m != "MR")

    def config(self, folder: Path, by: str = "stow", **more: Any) -> NodeConfig:
        """A node beside it, which sends by ``stow`` or ``c-store``."""
        dimse = {"host": "127.0.0.1", "port": self.dicom, "ae_title": "ORTHANC"}
        send = {"dicomweb": self.web} if by == "stow" else dimse
        return NodeConfig(folder, **({"port": self.node, "stable_seconds": 0, "send": send} | more))
