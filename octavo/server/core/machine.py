"""The machine under the server: its processors, memory and the GPU that the engine runs on, as /v1/metrics shows them.

Invariant: however often it is asked, the processors' load is a mean over at least PERIOD_S, and a driver that is
missing or fails is no GPU, not an error.
"""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass
from typing import Any

import psutil

from octavo import env

logger = logging.getLogger("octavo.server")

MIB = 1 << 20
PERIOD_S = 0.5
"""A shorter time than that measures nothing but its own noise."""


@dataclass(frozen=True)
class Gpu:
    device_id: int
    utilization_percent: float
    memory_used_mb: float
    memory_total_mb: float
    temperature_celsius: float


class Machine:
    """`nvml`: the module of the NVIDIA driver's library, imported when it is first needed."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._handles: dict[int, Any] = {}
        self._failed = False
        psutil.cpu_percent()  # the first call only sets the base of the next
        self._measured_at = time.monotonic()
        self._percent = 0.0

    def cpu_percent(self) -> float:
        """Of all processors together, since it was last measured."""
        now = time.monotonic()
        if now - self._measured_at >= PERIOD_S:
            self._percent, self._measured_at = psutil.cpu_percent(), now
        return self._percent

    def gpu(self, device: str) -> Gpu | None:
        """`device`: what the engine says it runs on, as cuda:0. None where that is no NVIDIA GPU."""
        kind, _, number = device.partition(":")
        if kind != "cuda" or self._failed:
            return None
        index = int(number or 0)
        try:
            return self._read(index)
        except Exception as error:  # of a library with many kinds, and none is worth a failed answer
            logger.warning("the GPU's state cannot be read: %s", error)
            self._failed = True
            return None

    def _read(self, index: int) -> Gpu:
        if self._nvml is None:
            self._nvml = importlib.import_module("pynvml")
        nvml = self._nvml
        if index not in self._handles:
            nvml.nvmlInit()
            gpu = env.visible_gpu(index)
            find = nvml.nvmlDeviceGetHandleByIndex if isinstance(gpu, int) else nvml.nvmlDeviceGetHandleByUUID
            self._handles[index] = find(gpu)
        handle = self._handles[index]
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        return Gpu(
            device_id=index,
            utilization_percent=float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            memory_used_mb=round(memory.used / MIB, 1),
            memory_total_mb=round(memory.total / MIB, 1),
            temperature_celsius=float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        )
