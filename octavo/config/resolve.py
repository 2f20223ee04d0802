"""Pure: options + hardware + model facts → the values in force, and the reasons for each choice."""

from __future__ import annotations

import msgspec

from octavo.config.engine import EngineConfig
from octavo.config.hardware import Hardware
from octavo.errors import ConfigError
from octavo.modelfiles.facts import ModelFacts

DEFAULT_GPU_MEMORY_UTILIZATION = EngineConfig().gpu_memory_utilization
MIN_FREE_MEMORY = 1 << 29


class ResolvedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's values in force. Bytes are ints, nothing is 'auto' any more."""

    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    kv_cache_dtype: str
    """That of `dtype`, or int8."""
    kv_cache_memory: int | None
    """Bytes for KV pages when given; None: sized by the profile run within `memory_budget`."""
    memory_budget: int
    """Bytes that weights, workspace and KV pages may take together."""
    prefix_cache: bool
    max_queued_requests: int
    threads: int
    seed: int | None
    watchdog_timeout: float
    attention_backend: str = "auto"
    """On a GPU, where auto is resolved by the kernels that are installed (kernels/attention.py)."""
    async_scheduling: bool = True
    """On a GPU the host prepares a step while the one before is computed."""
    served_model_name: str
    reasons: list[str]


_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def parse_bytes(text: str, option: str) -> int:
    """'512MiB' → 536870912. Raises ConfigError that names the option."""
    number = text.strip().lower().rstrip("kmgib")
    unit = text.strip().lower()[len(number) :]
    try:
        if unit not in _UNITS or (size := int(float(number) * _UNITS[unit])) <= 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ConfigError(f"{option}: {text!r} is not a size; write it as 512MiB or 4GiB") from None
    return size


def _refuse_unsupported(config: EngineConfig) -> None:
    if config.kv_cache_dtype == "fp8":
        raise ConfigError("--kv-cache-dtype fp8 is for a GPU, and only cpu is supported yet; use int8 or auto")
    if config.isq is not None:
        raise ConfigError(f"--isq {config.isq} is not supported yet; leave it out")
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"--device {config.device}: only cpu is supported yet")
    if config.gpu_memory_utilization != DEFAULT_GPU_MEMORY_UTILIZATION:
        raise ConfigError("--gpu-memory-utilization is for a GPU, and only cpu is supported yet; leave it out")
    if config.attention_backend != "auto":
        raise ConfigError(
            f"--attention-backend {config.attention_backend} is for a GPU: on the CPU attention is part of the CPU "
            "kernels; leave it out"
        )
    if config.block_size & (config.block_size - 1):
        raise ConfigError(f"--block-size {config.block_size} is not a power of two")


def resolve(config: EngineConfig, hardware: Hardware, facts: ModelFacts, model_name: str) -> ResolvedConfig:
    """Raises ConfigError where the options contradict the model, the hardware or what is built so far."""
    _refuse_unsupported(config)
    reasons = [f"device cpu: {hardware.cpu_name}, {hardware.cores} cores this process may use"]
    dtype = config.dtype
    if dtype == "auto":
        dtype = "bfloat16"
        reasons.append("dtype bfloat16: half the memory traffic of float32 (--dtype auto)")
    elif dtype == "float32":
        reasons.append("dtype float32: no rounding anywhere; quantized weights are held dense, 4 bytes each")
    max_model_len = config.max_model_len or facts.max_position
    if max_model_len > facts.max_position:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the model's {facts.max_position} positions; lower it"
        )
    reasons.append(
        f"max_model_len {max_model_len}: " + ("as given" if config.max_model_len else "the model's positions")
    )
    threads = config.threads or hardware.cores
    budget = max(hardware.memory_available - MIN_FREE_MEMORY, 0)
    reasons.append(f"memory budget {budget / 2**20:.0f} MiB: what is available less {MIN_FREE_MEMORY >> 20} MiB")
    return ResolvedConfig(
        device="cpu",
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        kv_cache_dtype=dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        kv_cache_memory=parse_bytes(config.kv_cache_memory, "--kv-cache-memory") if config.kv_cache_memory else None,
        memory_budget=budget,
        prefix_cache=config.prefix_cache,
        max_queued_requests=config.max_queued_requests,
        threads=threads,
        seed=config.seed,
        watchdog_timeout=config.watchdog_timeout,
        attention_backend=config.attention_backend,
        served_model_name=config.served_model_name or model_name,
        reasons=reasons,
    )
