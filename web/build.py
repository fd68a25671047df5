"""Put the static page together: these files, the libraries that npm fetched, and an exported model.

``python web/build.py --model EXPORT_DIR --output DIST`` writes a folder that any web server, or a Static Space, serves
as it is. Libraries and weights are copied, never committed; the texts of the classes come from the package.
"""

import argparse
import gzip
import json
import os
import shutil
import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brain_tumor_mri.commands.script import run_script
from brain_tumor_mri.errors import UserError
from brain_tumor_mri.heat_maps.explain import COLOURS
from brain_tumor_mri.inference.model_folder import DEFAULT_MODEL, EXPORT_FILE, ModelFolder, find_model
from brain_tumor_mri.labels import CLASSES, RESEARCH_NOTICE, require_project_classes
from brain_tumor_mri.trust.trust_file import FILE_NAME as TRUST_FILE
from brain_tumor_mri.trust.trust_file import load_trust

HERE = Path(__file__).resolve().parent
SOURCES = (
    "README.md",
    "app.js",
    "decode.js",
    "heat.js",
    "icon.svg",
    "preprocess.js",
    "style.css",
    "trust.js",
    "worker.js",
)
RUNTIME = HERE / "node_modules" / "onnxruntime-web"
VENDORED = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
"""The second is packed by gzip, to a quarter."""
FORMS = ("onnx", "onnx-int8")


def build(model: Path, output: Path, form: str) -> dict[str, Any]:
    """Write the page."""
    folder = find_model(model, backend=form)
    require_project_classes(folder.labels, "the static page")
    trusted = load_trust(folder.path, folder.sha256) is not None
    if not all((RUNTIME / "dist" / name).is_file() for name in VENDORED):
        raise UserError(f"{RUNTIME} is not there; run `npm install --prefix web --ignore-scripts --omit dev` first")
    if output.exists() and not (output / "page.json").is_file() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} exists and is no page of this command; give another, or remove it")
    page = page_settings(folder, form, trusted)
    part = output.with_name(f".{output.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        _fill(part, folder, page)
        shutil.rmtree(output, ignore_errors=True)
        part.rename(output)
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return page


def page_settings(folder: ModelFolder, form: str, trusted: bool) -> dict[str, Any]:
    """What the page shows of the model, and the texts of the classes: the content of ``page.json``."""
    entry = folder.export["files"][form]
    name = folder.export["source"]["name"]
    runtime = json.loads((RUNTIME / "package.json").read_text(encoding="utf-8"))["version"]
    return {
        "form": form,
        "trusted": trusted,
        "colours": [list(bytes.fromhex(colour)) for colour in COLOURS],
        "model": f"{name} ({form})",
        "classes": [
            {"name": c.name, "title": c.title, "description": c.description, "example": _example(c.name)}
            for c in CLASSES
        ],
        "facts": [
            ["Name", name],
            ["Architecture", f"{folder.architecture} (timm)"],
            ["File", f"{entry['file']}, {entry['size_bytes'] / 1e6:.1f} MB"],
            ["SHA-256 of the weights", folder.sha256()],
            ["SHA-256 of the file", folder.run_sha256()],
            ["Calibration (trust.json)", "yes" if trusted else "none"],
            ["Runs on", f"onnxruntime-web {runtime}, WebAssembly"],
        ],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Build the page from the command line; return the exit status."""
    return run_script(__doc__, add_arguments, run, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's flags."""
    parser.add_argument(
        "--model",
        default=HERE.parent / DEFAULT_MODEL,
        type=Path,
        metavar="DIR",
        help="folder with an ONNX file, such as model-lite",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to be written")
    parser.add_argument("--format", choices=FORMS, default=FORMS[0], help="which file answers (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Build, and say what was built."""
    page = build(args.model, args.output, args.format)
    size = sum(file.stat().st_size for file in args.output.rglob("*") if file.is_file())
    print(f"{page['model']}: {args.output}, {size / 1e6:.1f} MB\n{RESEARCH_NOTICE}")


def _fill(part: Path, folder: ModelFolder, page: dict[str, Any]) -> None:
    weights = folder.weights[0].relative_to(folder.path)
    copies = {name: HERE / name for name in SOURCES}
    script, runtime = VENDORED
    copies[f"vendor/{script}"] = RUNTIME / "dist" / script
    copies |= {f"model/{name}": folder.path / name for name in ("config.json", EXPORT_FILE, weights.as_posix())}
    copies["LICENSE"] = HERE.parent / "LICENSE"
    if page["trusted"]:
        copies[f"model/{TRUST_FILE}"] = folder.path / TRUST_FILE
    copies |= {c["example"]: HERE.parent / c["example"] for c in page["classes"] if c["example"]}
    for name, source in copies.items():
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part / name)
    packed = gzip.compress((RUNTIME / "dist" / runtime).read_bytes(), mtime=0)
    (part / "vendor" / f"{runtime}.gz").write_bytes(packed)
    html = string.Template((HERE / "index.html").read_text(encoding="utf-8")).substitute(notice=RESEARCH_NOTICE)
    (part / "index.html").write_text(html, encoding="utf-8")
    (part / "page.json").write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


def _example(name: str) -> str | None:
    path = f"examples/phantom-{name}.png"
    return path if os.path.isfile(HERE.parent / path) else None


if __name__ == "__main__":
    sys.exit(main())
