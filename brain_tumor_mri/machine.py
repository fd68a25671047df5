"""What a run ran on: versions of the packages that decide its figures, processors that it may use, hardware."""

from __future__ import annotations

import math
import os
import platform
import re
import shutil
import sys
from contextlib import suppress
from functools import cache
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
    return {"processor": processor, "cores": cpu_count(), "gpus": gpus}


@cache
def has_gpu() -> bool:
    """Say whether there may be a GPU for PyTorch, without importing it: an NVIDIA driver, or Apple's chip."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return apple or Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi") is not None


@cache
def cpu_count() -> int:
    """Return how many processors this process may use: its affinity and its container's limit, not the whole machine.

    Source: Linux control groups, ``cpu.max`` of version 2 and ``cpu.cfs_quota_us`` of version 1.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = getattr(os, "process_cpu_count", lambda: affinity)() or affinity
    limits = [allowed]
    for group in _control_groups():
        with suppress(OSError, ValueError, IndexError, ZeroDivisionError):
            if (new := group / "cpu.max").is_file():
                quota, period = new.read_text().split()[:2]
            else:
                quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # "max" (version 2) and -1 (version 1) stand for no limit
                limits.append(math.ceil(int(quota) / int(period)))
    return max(1, min(limits))


def _control_groups() -> list[Path]:
    """The folders of this process's control group and of those above it, as each may hold a limit."""
    folders = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/cpu")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                own = folders[1 if controllers else 0] / path.strip("/")
                folders += [own, *(parent for parent in own.parents if folders[0] in parent.parents)]
    return folders
