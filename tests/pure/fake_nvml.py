"""The driver's library as config/gpus.py asks it, without a driver."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from octavo.config.gpus import Cuda, Gpu

GIB = 1 << 30
H200 = Gpu("NVIDIA H200", (9, 0), 140 * GIB, 139 * GIB)
L4 = Gpu("NVIDIA L4", (8, 9), 22 * GIB, 22 * GIB)
A10 = Gpu("NVIDIA A10", (8, 6), 22 * GIB, 22 * GIB)
T4 = Gpu("Tesla T4", (7, 5), 15 * GIB, 15 * GIB)
P40 = Gpu("Tesla P40", (6, 1), 24 * GIB, 24 * GIB)


def cuda(*gpus: Gpu) -> Cuda:
    """These, with all the software they need."""
    return Cuda(gpus, "", (13, 0), (13, 0), True)


class NVMLError(Exception):
    pass


@dataclass
class FakeNvml:
    gpus: list[Gpu]
    """One with a problem fails when it is asked for its memory."""
    init_error: str | None = None
    version: int = 13000
    inits: int = 0
    shutdowns: int = 0

    def nvmlInit(self) -> None:
        if self.init_error is not None:
            raise NVMLError(self.init_error)
        self.inits += 1

    def nvmlShutdown(self) -> None:
        self.shutdowns += 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return self.version

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if not uuid.startswith("MIG-"):
            raise NVMLError("Not Found")
        return int(uuid[-1])

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{'abcdef'[handle]}000-1111".encode()

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.gpus[handle].name

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.gpus[handle].capability

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> SimpleNamespace:
        gpu = self.gpus[handle]
        if gpu.problem is not None:
            raise NVMLError(gpu.problem)
        return SimpleNamespace(total=gpu.memory_total, free=gpu.memory_free)
