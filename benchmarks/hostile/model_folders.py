"""Tamper with a model folder in every way that a stranger could, load it, and ask it about a slice; Linux.

    python benchmarks/hostile/model_folders.py --model model-lite --output results/hostile/model_folders.json

Named tamperings (other code, other files, sizes of gigabytes, damaged weights, pipes, deep JSON), then ``--folders``
more by a seed: bytes of one of the folder's files changed. A folder is to answer with finite numbers or be refused in a
line; code that it brings leaves a file behind where it runs.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness import run
from benchmarks.hostile.children import ASKED, ask

CONFIG, WEIGHTS, TRUST, EXPORT = "config.json", "model.safetensors", "trust.json", "export.json"
Tampering = Callable[[Path], object]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, default="model-lite")
    parser.add_argument("--folders", type=int, default=200, help="tampered with by the seed, besides the named ones")
    parser.add_argument("--seconds", type=float, default=900, help="no further folders after so long")
    parser.add_argument("--seed", type=int, default=0)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    names: list[str] = []
    words: list[int] = []
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace"
        stop = time.monotonic() + args.seconds

        def folders() -> Iterator[Path]:
            for name, tamper in chain(named(trace).items(), islice(by_seed(args.seed), args.folders)):
                if time.monotonic() > stop:
                    return
                folder = Path(scratch) / "model"
                shutil.rmtree(folder, ignore_errors=True)
                kept = () if name.startswith("ONNX") else (EXPORT, "*.onnx")  # else PyTorch and its weights never run
                shutil.copytree(args.model, folder, ignore=shutil.ignore_patterns(*kept))
                tamper(folder)
                names.append(name)
                yield folder

        found = [one | {"tampering": names[i]} for i, one in enumerate(ask([ASKED, "folders"], folders(), words))]
        found = json.loads(json.dumps(found).replace(scratch, "."))
        ran = trace.exists()
    kinds = {"answered": "answered", "refused_in_a_line": "said", "unforeseen_errors": "unforeseen"}
    record = {
        "seed": args.seed,
        "folders": len(found),
        "named": len(named(trace)),
        **{name: sum(key in one for one in found) for name, key in kinds.items()},
        "answers_of_no_finite_number": sum(one.get("answered") is False for one in found),
        "crashes": sum("ended" in one for one in found),
        "hangs": sum("hangs" in one for one in found),
        "code_of_a_folder_ran": ran,
        "bytes_on_stderr": sum(words),
        "worst_cpu_seconds": round(max(one["seconds"] for one in found[1:] or found), 2),
        "faults": [one for one in found if one.get("answered") is not True and "said" not in one],
    }
    odd = len(record["faults"])
    came = f"neither a line nor a finite answer: {odd}; code of theirs ran: {'yes' if ran else 'no'}"
    return record | {"summary": [["model folders tampered with", str(len(found)), came]]}


def named(trace: Path) -> dict[str, Tampering]:
    """Name -> what is done to a folder; code that runs writes ``trace``."""
    code = f"open({str(trace)!r}, 'w').close()\nclass C: pass\nM = P = C\n"
    autos = {"AutoConfig": "evil.C", "AutoModelForImageClassification": "evil.M", "AutoImageProcessor": "evil.P"}

    def evil(folder: Path) -> None:
        (folder / "evil.py").write_text(code)
        edit(folder, model_type="evil", architectures=["M"], auto_map=autos)

    def evil_beside(folder: Path) -> None:
        (folder / "evil.py").write_text(code)
        edit(folder, auto_map=autos)

    def pipe(name: str) -> Tampering:
        return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))

    def text(name: str, content: str) -> Tampering:
        return lambda folder: (folder / name).write_text(content)

    def cfg(**changes: object) -> Tampering:
        def tamper(folder: Path) -> None:
            config = json.loads((folder / CONFIG).read_text())
            edit(folder, pretrained_cfg=config["pretrained_cfg"] | changes)

        return tamper

    def config(**changes: object) -> Tampering:
        return lambda folder: edit(folder, **changes)

    def head(start: bytes) -> Tampering:
        return lambda folder: (folder / WEIGHTS).write_bytes(start + (folder / WEIGHTS).read_bytes()[len(start) :])

    def cut(share: float) -> Tampering:
        def tamper(folder: Path) -> None:
            whole = (folder / WEIGHTS).read_bytes()
            (folder / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])

        return tamper

    def onnx(change: Callable[[bytes], bytes]) -> Tampering:
        def tamper(folder: Path) -> None:
            record = json.loads((folder / EXPORT).read_text())
            entry = record["files"]["onnx"]
            content = change((folder / entry["file"]).read_bytes())
            (folder / entry["file"]).write_bytes(content)
            entry["sha256"] = hashlib.sha256(content).hexdigest()  # as one who knows of it would
            (folder / EXPORT).write_text(json.dumps(record))

        return tamper

    def spoiled(content: bytes) -> bytes:
        rng = np.random.default_rng(len(content))
        head = bytearray(content[:4096])
        for place in rng.integers(len(head), size=8):
            head[place] = rng.integers(256)
        return bytes(head) + content[4096:]

    def weights(change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Tampering:
        def tamper(folder: Path) -> None:
            (folder / TRUST).unlink(missing_ok=True)  # else it says that these are other weights
            save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})

        return tamper

    def filled(value: float) -> Tampering:
        def fill(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {n: np.full_like(v, value) if v.dtype.kind == "f" else v for n, v in state.items()}

        return weights(fill)

    deep = "[" * 100_000
    changes: dict[str, Tampering] = {
        "other code": evil,
        "other code beside a known type": evil_beside,
        "nothing": lambda folder: None,
        "no trust.json": lambda folder: (folder / TRUST).unlink(),
        "no weights": lambda folder: (folder / WEIGHTS).unlink(),
        "weights as pickle": lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        "weights of 0 bytes": cut(0),
        "weights cut in half": cut(0.5),
        "weights cut at the end": cut(0.999),
        "a header of 2^40 bytes": head((2**40).to_bytes(8, "little")),
        "a header of 0 bytes": head(bytes(8)),
        "a header of no JSON": head((64).to_bytes(8, "little") + b"x" * 64),
        "a header of deep JSON": head((60_000).to_bytes(8, "little") + b"[" * 60_000),
        "weights NaN": filled(np.nan),
        "weights infinite": filled(np.inf),
        "weights 1e30": filled(1e30),
        "weights 0": filled(0),
        "weights of another shape": weights(lambda state: {n: v[..., None] for n, v in state.items()}),
        "weights of other names": weights(lambda state: {f"x{n}": v for n, v in state.items()}),
        "an index to files elsewhere": text(
            "model.safetensors.index.json", '{"metadata": {}, "weight_map": {"x": "../../x.safetensors"}}'
        ),
        "seven classes": config(num_classes=7),
        "no classes": config(label_names=[]),
        "an id that is no number": config(label_names=None, id2label={"\u00b2": "glioma"}),
    }
    changes |= {
        "ONNX: whole": lambda folder: None,
        "ONNX: of 0 bytes": onnx(lambda content: b""),
        "ONNX: cut in half": onnx(lambda content: content[: len(content) // 2]),
        "ONNX: other bytes": onnx(spoiled),
        "ONNX: text": onnx(lambda content: b"[" * 100_000),
        "ONNX: a pipe": pipe("onnx/model.onnx"),
        "ONNX: weights cut off": cut(0.5),
        "ONNX: a pipe as weights": pipe(WEIGHTS),
        "ONNX: a pipe as export.json": pipe(EXPORT),
        "ONNX: no export.json": lambda folder: (folder / EXPORT).unlink(),
    }
    changes |= {f"ONNX: {c[:9]!r} as export.json": text(EXPORT, c) for c in (deep, "", "[]", "nan")}
    for name in (CONFIG, TRUST, "decoder.json", "appearance.json"):
        changes |= {f"{name}: {c[:9]!r}": text(name, c) for c in (deep, '{"a":' * 100_000, "", "[]", "nan", "9" * 9000)}
    changes |= {f"a pipe as {name}": pipe(name) for name in (CONFIG, WEIGHTS, TRUST, "preprocessor_config.json")}
    for key, value in (
        ("model_type", "vit"), ("model_type", None), ("architecture", "local-dir:/tmp"), ("architecture", "hf-hub:a/b"),
        ("architecture", "../x"), ("architecture", "resnet5000"), ("architecture", "test_vit"), ("architecture", 7),
        ("model_args", {"checkpoint_path": "/tmp/x.pt"}), ("model_args", {"pretrained": True}), ("model_args", [1]),
        ("model_args", {"cache_dir": "/tmp"}), ("model_args", {"pretrained_cfg": {}}), ("model_args", {"x": 1}),
        ("num_classes", "4"), ("dtype", "float1"), ("initializer_range", 7), ("do_pooling", 7), ("pretrained_cfg", 7),
    ):  # fmt: skip
        changes[f"{key}: {value}"] = config(**{key: value})
    for key, value in (
        ("input_size", [3, 0, 0]), ("input_size", [3, 60_000, 60_000]), ("input_size", [1, 224, 224]), ("std", [0] * 3),
        ("input_size", [3, 224]), ("input_size", "x"), ("std", [1e-30] * 3), ("std", [0.2]), ("mean", [1e30] * 3),
        ("mean", None), ("crop_pct", 1e-9), ("crop_pct", 0), ("crop_pct", "x"), ("crop_mode", "x"), ("crop_mode", 7),
        ("interpolation", "x"), ("interpolation", 7), ("input_size", [3, 9, 9]), ("input_size", [3, 1024, 8]),
    ):  # fmt: skip
        changes[f"{key}: {value}"] = cfg(**{key: value})
    return changes


def edit(folder: Path, **changes: object) -> None:
    """Change entries of ``config.json``."""
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def by_seed(seed: int) -> Iterator[tuple[str, Tampering]]:
    """Tamperings without end: up to 16 bytes of a file, mostly of its first 4096, get other values."""
    rng = np.random.default_rng(seed)
    while True:
        name = (CONFIG, TRUST, WEIGHTS)[rng.integers(3)]
        places, values = rng.random(16), rng.integers(256, size=16)
        count, near = rng.integers(1, 17), rng.random() < 0.8

        def tamper(folder: Path, name=name, places=places, values=values, count=count, near=near) -> None:
            content = bytearray((folder / name).read_bytes())
            reach = min(len(content), 4096) if near else len(content)
            for place, value in zip(places[:count], values, strict=False):
                content[int(place * reach)] = value
            (folder / name).write_bytes(content)

        yield f"bytes of {name}", tamper


if __name__ == "__main__":
    raise SystemExit(run(__doc__, add_arguments, measure, output="results/hostile/model_folders.json"))
