"""The environment names that are not options. Options are read as OCTAVO_<OPTION> by config/flags.py.

Only config, env and cli read the environment.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE = "OCTAVO_CACHE"
"""Folder for downloaded models; default $XDG_CACHE_HOME/octavo or ~/.cache/octavo."""

FAULTS = "OCTAVO_FAULTS"
"""Test-only fault injection in the engine, as raise_at_step=N,step_delay_ms=N; engine/faults.py has the names."""

BACKEND = "OCTAVO_BACKEND"
"""Forces one kernel backend by name (for tests and comparisons)."""

CPU_ISA = "OCTAVO_CPU_ISA"
"""Forces an instruction set of the native kernels that is lower than the best: avx512, avx2 or portable."""

NOT_OPTIONS = (CACHE, FAULTS, BACKEND, CPU_ISA)


def expanded(path: str, origin: str) -> Path:
    """With ~ or ~user at its beginning replaced. Raises ConfigError that begins with `origin` where nobody knows that
    home."""
    from octavo.errors import ConfigError

    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{origin}: no home folder is known for {path.partition('/')[0]}; write it out") from None


def home_cache() -> Path:
    """Where programs of this user keep what can be fetched again: $XDG_CACHE_HOME or ~/.cache. Raises ConfigError when
    the user has no home: a container's user often has neither $HOME nor an entry in /etc/passwd."""
    from octavo.errors import ConfigError

    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        raise ConfigError(
            f"there is no folder for models: user {os.getuid()} has no home (HOME is not set); name one with {CACHE}, "
            "or give MODEL as a path"
        ) from None


def cache_dir() -> Path:
    """The folder that holds downloaded models (not created here). Raises ConfigError."""
    if named := os.environ.get(CACHE):
        return expanded(named, f"{CACHE}={named}")
    return home_cache() / "octavo"


def runtime_dir() -> Path | None:
    """The user's own folder for sockets and the like, which ends with the session."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    return Path(named) if named else None


def faults() -> dict[str, int]:
    """Parse OCTAVO_FAULTS into {name: number}; unknown names are errors."""
    from octavo.errors import ConfigError

    known = (
        "raise_at_step", "hang_at_step", "step_delay_ms", "crash_at_step", "crash_at_token", "lose_device_at_step",
    )  # fmt: skip
    found: dict[str, int] = {}
    for item in filter(None, os.environ.get(FAULTS, "").split(",")):
        name, _, value = item.partition("=")
        if name not in known or not value.isdigit():
            raise ConfigError(f"{FAULTS}: {item!r} is not one of {', '.join(n + '=N' for n in known)}")
        found[name] = int(value)
    return found


def huggingface_endpoint() -> str:
    """The hub's address, $HF_ENDPOINT as its own library has it."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def modelscope_endpoint() -> str:
    """ModelScope's address, $MODELSCOPE_ENDPOINT or the public one."""
    return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")


def modelscope_token() -> str | None:
    return os.environ.get("MODELSCOPE_API_TOKEN") or None


def modelscope_cache() -> Path:
    """Where ModelScope's own library keeps what it has fetched."""
    return expanded(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope", "MODELSCOPE_CACHE")


def child_environment(**changes: str) -> dict[str, str]:
    """The environment for a child process: this one's, with `changes`."""
    return {**os.environ, **changes}


def without_keys() -> dict[str, str]:
    """The environment for a child that is told the API keys in another way."""
    return {name: value for name, value in os.environ.items() if name != "OCTAVO_API_KEY"}


def triton_is_interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, slowly: $TRITON_INTERPRET, as its own library reads it."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def forced_backend() -> str | None:
    return os.environ.get(BACKEND) or None


def forced_isa() -> str | None:
    """Raises ConfigError when it is none that exists; whether the machine runs it the kernels know."""
    from octavo.errors import ConfigError

    isa = os.environ.get(CPU_ISA) or None
    if isa not in (None, "avx512", "avx2", "portable"):
        raise ConfigError(f"{CPU_ISA}={isa}: there are avx512, avx2 and portable")
    return isa


def visible_gpus() -> list[str] | None:
    """Numbers or UUIDs of the GPUs that $CUDA_VISIBLE_DEVICES leaves to this process, in its order; None: all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    names = [name.strip() for name in named.split(",")]
    end = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:end]


def visible_gpu(index: int) -> int | str:
    """Which GPU of the machine is the process's `cuda:index`: its number for the driver, or its UUID."""
    visible = visible_gpus() or []
    if index >= len(visible):
        return index
    return int(visible[index]) if visible[index].isdigit() else visible[index]


def number_gpus_as_the_driver() -> None:
    """Before CUDA starts: it would number the fastest GPU first, and the driver by their slots. What the user has set
    stays."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def limit_openmp_spinning() -> None:
    """Before torch is imported: threads that wait for one another spin briefly, then sleep. By default they spin for
    milliseconds; beside any other busy process (our own server, for one) each of the hundreds of waits in a step then
    lasts a time slice, which made steps 30 times slower. Measured on two cores: nothing lost when alone, 8 times faster
    beside a busy process. What the user has set stays."""
    if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = "10000"


def cuda_home() -> Path:
    """Where NVIDIA's compiler is looked for, as its users do: $CUDA_HOME, $CUDA_PATH or /usr/local/cuda."""
    return Path(os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda")
