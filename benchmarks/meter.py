"""Seconds of the clock and of the processor, and the peak of the memory, of one stage."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Reading:
    """``wall`` and ``cpu``: seconds. ``peak``: MB above what was resident before."""

    wall: float
    cpu: float
    peak: float


def memory(field: str) -> float:
    """``VmRSS`` (resident now) or ``VmHWM`` (its peak) of this process in MB; Linux only."""
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    if found is None:
        raise OSError(f"/proc/self/status has no {field}.")
    return int(found.group(1)) / 1024


def settle() -> float:
    """Give freed memory back, forget the peak; resident MB."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def read(function: Callable[[], Any]) -> tuple[Reading, Any]:
    """Run ``function`` once; also its result."""
    resident = settle()
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Reading(wall, cpu, max(0.0, memory("VmHWM") - resident)), result
