"""The Space: this source tree's app, its requirements pinned and its model written down.

``plan_space(repo_id, model)`` lists the files, ``try_space.check_space(plan, model)`` tries them out, and
``push.push(plan)`` sends them. The model is named in the file ``space.json``, not in variables of the
Space: so code and model change in one commit and go back in one. Variables MODEL_ID and MODEL_REVISION win over it.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from huggingface_hub import SpaceCardData

from .. import __version__
from ..errors import UserError
from ..labels import RESEARCH_NOTICE
from .push import Plan, Upload

SOURCE = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).parents[1].name
EXAMPLE = "examples/phantom-glioma.png"

_PACKAGE_SUFFIXES = {".py", ".md", ".css", ".js", ".html", ".svg", ".json", ".csv"}
REQUIREMENTS = (
    "gradio", "huggingface-hub", "jinja2", "matplotlib", "nibabel", "numpy", "onnxruntime", "pillow", "psutil",
    "pydicom", "rich", "safetensors", "scipy", "SimpleITK",
)  # fmt: skip
"""What the app runs on, without PyTorch: the model's ONNX file answers. Their own dependencies are left to pip, as a
Space's builder installs packages of its own."""
_HUB_ID = r"[\w-][\w.-]*/[\w-][\w.-]*"
_STALE = (f"{PACKAGE}/*", "examples/*")


@dataclass(frozen=True)
class ModelVersion:
    """A model on the Hub.

    Attributes:
        id: ``owner/name``.
        revision: branch, tag or commit; None for the latest.
    """

    id: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelVersion:
        """Read ``owner/name`` or ``owner/name@revision``."""
        found = re.fullmatch(rf"({_HUB_ID})(?:@(\w[\w./-]*))?", text)
        if not found:
            raise UserError(f"--model_id {text}: give a model's Hub id, owner/name or owner/name@revision")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def plan_space(repo_id: str, model: ModelVersion, *, source: Path = SOURCE) -> Plan:
    """List the files of the Space."""
    if not re.fullmatch(_HUB_ID, repo_id):
        raise UserError(f"--repo_id {repo_id}: give the Space's Hub id, owner/name")
    if missing := [name for name in ("app.py", PACKAGE, EXAMPLE, "LICENSE") if not (source / name).exists()]:
        raise UserError(f"{source} has no {missing[0]}; a Space is published from the source tree: clone that first")
    package = [file for file in (source / PACKAGE).rglob("*") if file.suffix in _PACKAGE_SUFFIXES and file.is_file()]
    examples = [file for file in (source / "examples").iterdir() if file.suffix in (".png", ".md")]
    copied = [source / "app.py", source / "LICENSE", *package, *examples]
    settings = {"model_id": model.id, "revision": model.revision}
    written = {
        "README.md": _readme(model),
        "requirements.txt": _requirements_file(requirements()),
        "space.json": json.dumps(settings, indent=2) + "\n",
    }
    files = [Upload(file.relative_to(source).as_posix(), file) for file in copied]
    files += [Upload(name, text.encode()) for name, text in written.items()]
    return Plan(
        repo_id,
        tuple(sorted(files, key=lambda file: file.path)),
        message=f"Answer with {model}",
        description=f"published by brain-tumor-mri {__version__}",
        stale=_STALE,
        repo_type="space",
        space_sdk="gradio",
    )


def requirements() -> dict[str, str]:
    """Return what the app runs on, and the versions installed here."""
    try:
        # what follows the plus sign names a build (2.9.0+cu128) that registries do not have
        return {name: metadata.version(name).partition("+")[0] for name in REQUIREMENTS}
    except metadata.PackageNotFoundError as error:
        raise UserError(f"the app needs {error.name}, which is not installed; `pip install` it first") from error


def _requirements_file(pinned: dict[str, str]) -> str:
    lines = [f"{name}=={version}" for name, version in pinned.items()]
    return "\n".join(["# What app.py runs on, as it was when this Space was published.", *lines, ""])


def _readme(model: ModelVersion) -> str:
    data = SpaceCardData(
        title="Brain tumour MRI classifier",
        emoji="🧠",
        colorFrom="blue",
        colorTo="gray",
        sdk="gradio",
        sdk_version=metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        short_description="One MRI slice in, four probabilities out; for research",
        license="apache-2.0",
        models=[model.id],
        tags=["medical-imaging", "mri", "brain-tumor", "image-classification"],
    )
    version = f", revision `{model.revision}`" if model.revision else ""
    return f"""---
{data.to_yaml()}
---

# Brain tumour MRI classifier

**{RESEARCH_NOTICE}**

One brain MRI slice in, four probabilities out: glioma, meningioma, pituitary tumour, or none of them. The answers are
those of the model `{model.id}`{version}. Its card says on which images it was measured, how often it is wrong, and for
what it must not be used, and what it makes of a picture that is no brain MRI. The examples are synthetic drawings and
an average of 152 healthy brains (terms: `examples/README.md`), no patients. Do not upload images of patients.

A CPU is enough. `pip install -r requirements.txt && python app.py` serves the same page elsewhere. `space.json` names
the model; the variables `MODEL_ID` and `MODEL_REVISION` win over it.
"""
