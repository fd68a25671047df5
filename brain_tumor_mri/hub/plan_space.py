"""The Space: this source tree's app, its requirements pinned and its model written down.

``plan_space(repo_id, model)`` lists the files, ``space_check.check_space(plan, model)`` tries them out, and
``hub.push(plan)`` sends them. The model is named in the file ``space.json``, not in variables of the
Space: so code and model change in one commit and go back in one. Variables MODEL_ID and MODEL_REVISION win over it.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..labels import RESEARCH_NOTICE
from .push import Plan, Upload

SOURCE = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).parents[1].name
EXAMPLE = "examples/phantom-glioma.png"

_PACKAGE_SUFFIXES = {".py", ".md", ".css", ".js", ".html", ".svg", ".json", ".csv"}
_IMPORTED_BY_NAME = {"timm", "torchvision"}
"""What transformers imports to build the model and its preprocessing, and no module here does for the app."""
_NOT_NEEDED = {"onnxruntime", "ai_edge_litert", "tensorrt"}
"""What the package imports for exports only, which a Space does not run."""
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
        """Read ``owner/name`` or ``owner/name@revision``.

        Raises:
            UserError: it is neither.
        """
        found = re.fullmatch(rf"({_HUB_ID})(?:@(\w[\w./-]*))?", text)
        if not found:
            raise UserError(f"--model_id {text}: give a model's Hub id, owner/name or owner/name@revision")
        return cls(found[1], found[2])

    def __str__(self) -> str:
        return f"{self.id}@{self.revision}" if self.revision else self.id


def plan_space(repo_id: str, model: ModelVersion, *, source: Path = SOURCE) -> Plan:
    """List the files of the Space.

    Args:
        repo_id: the Space's Hub id ``owner/name``.
        model: what it answers with.
        source: the source tree; app.py, examples/ and LICENSE are not part of an installed package.

    Raises:
        UserError: no Hub id; no source tree; an import of the app is of no installed package.
    """
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
        "requirements.txt": _requirements_file(requirements(source)),
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


def requirements(source: Path = SOURCE) -> dict[str, str]:
    """Return what the app runs on: the packages that it imports, here and now, with their versions.

    Their own dependencies are left to pip: the builder of a Space installs packages of its own beside these, which pins
    of everything could contradict.

    Returns:
        Version by name, sorted.

    Raises:
        UserError: an import is of no installed package, or a file is no Python.
    """
    providers = metadata.packages_distributions()
    pinned = {}
    for module in imported_modules(source) - _NOT_NEEDED | _IMPORTED_BY_NAME:
        if not (names := providers.get(module)):
            raise UserError(f"the app imports {module}, which no installed package has; `pip install` it first")
        name = min(names)
        # what follows the plus sign names a build (2.9.0+cu128) that registries do not have
        pinned[re.sub("[-_.]+", "-", name).lower()] = metadata.version(name).partition("+")[0]
    return dict(sorted(pinned.items()))


def imported_modules(source: Path) -> set[str]:
    """Return the top-level modules that app.py imports, itself or by modules of the package.

    Imports inside functions count; those under ``if TYPE_CHECKING`` and of the standard library do not.
    """
    package = source / PACKAGE
    pending, seen, found = [source / "app.py", package / "__init__.py"], set(), set()
    while pending:
        file = pending.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except SyntaxError as error:
            raise UserError(f"{file}, line {error.lineno}: {error.msg}; repair it first") from error
        for name in _imports(tree, file.relative_to(source).parent.parts):
            top, *below = name.split(".")
            if top == PACKAGE:
                # a folder's __init__ runs before what is imported from the folder
                for depth in range(1, len(below) + 1):
                    path = package.joinpath(*below[:depth])
                    pending += [path.with_suffix(".py"), path / "__init__.py"]
            elif top not in sys.stdlib_module_names:
                found.add(top)
    return found


def _imports(node: ast.AST, home: tuple[str, ...]) -> Iterator[str]:
    """Yield the dotted names of modules, and of what may be modules, that a tree of the folder ``home`` imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), home)
        elif isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = home[: len(home) + 1 - child.level] if child.level else ()
            base = ".".join((*above, *([child.module] if child.module else [])))
            yield from (base, *(f"{base}.{alias.name}" for alias in child.names if base.split(".")[0] == PACKAGE))
        else:
            yield from _imports(child, home)


def _requirements_file(pinned: dict[str, str]) -> str:
    lines = [f"{name}=={version}" for name, version in pinned.items()]
    return "\n".join(["# What app.py imports, as it was when this Space was published.", *lines, ""])


def _readme(model: ModelVersion) -> str:
    from huggingface_hub import SpaceCardData

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
