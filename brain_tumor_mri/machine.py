"""What a run ran on: versions of the packages that decide its figures, and the hardware."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch", "torchvision", "timm", "transformers", "datasets", "evaluate", "accelerate", "huggingface-hub", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the installed version of Python, of this package and of those that decide a result."""
    found = {"python": platform.python_version()}
    for name in ("brain-tumor-mri", *PACKAGES):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Return what the run ran on: processor, cores, and GPUs if torch is loaded and sees any."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file() and (name := re.search(r"model name\s*: (.*)", info.read_text())):
        processor = name[1]
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch else []
    return {"processor": processor, "cores": os.cpu_count(), "gpus": gpus}
