"""What a figure was measured on, and how quiet it was."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from ctrkit_serving.latency import Quantiles, control_kernel, quantiles


def environment() -> dict[str, Any]:
    """Processor, cores that may be used, memory, system and Python: what every figure must be read with."""
    return {
        "cpu": processor(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def serving_environment() -> dict[str, Any]:
    """`environment`, the versions that scores are computed by, and the load that other processes make."""
    return {
        **environment(),
        "versions": {name: importlib.metadata.version(name) for name in ("ctrkit", "numpy", "onnxruntime")},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def control(repeats: int = 1000) -> Quantiles:
    """The control kernel alone: where its tail is long, so is everyone's."""
    took = np.empty(repeats)
    for i in range(repeats):
        start = time.perf_counter_ns()
        control_kernel()
        took[i] = time.perf_counter_ns() - start
    return quantiles(took / 1e6)


def processor() -> str:
    """The processor's own name where Linux tells it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on, which a container can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    """Physical memory in GiB, None where the system does not tell."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
