"""Pure: options + hardware + model facts → the values in force, and the reasons for each choice."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from octavo.capability import FP8_FROM, dotted
from octavo.config.engine import EngineConfig
from octavo.config.gpus import Gpu
from octavo.config.hardware import Hardware
from octavo.config.sizes import parse_bytes
from octavo.errors import ConfigError
from octavo.modelfiles.facts import ModelFacts

DEFAULT_GPU_MEMORY_UTILIZATION = EngineConfig().gpu_memory_utilization
MIN_FREE_MEMORY = 1 << 29
MIB = 1 << 20


class _Sizes(NamedTuple):
    num_seqs: int
    batched_tokens: int


ON_CPU = _Sizes(64, 512)
ON_GPU = _Sizes(256, 8192)
"""The defaults: a GPU is busy only with many tokens at once."""
FLOAT32_SHARE = 0.75
"""Of the memory, that float32 weights may take before auto rounds them."""


class ResolvedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's values in force: `options` as they were given, and what was derived from them, the hardware and the
    model. Bytes are ints, nothing is 'auto' any more."""

    options: EngineConfig
    device: str
    """cpu or cuda:N."""
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    """That of `dtype`, or int8 (CPU) or fp8 (GPU)."""
    kv_cache_memory: int | None
    """Bytes for KV pages when given; None: sized by the profile run within `memory_budget`."""
    memory_budget: int
    """Bytes that weights, workspace and KV pages may take together; on a GPU what is known of it before anything
    loads, and worker/kv.py plans with what is measured there."""
    threads: int
    async_scheduling: bool = False
    """Two steps are in flight; never on the CPU, where nothing runs later than it is asked for."""
    served_model_name: str
    model_aliases: tuple[str, ...] = ()
    """Further names that requests may say."""
    reasons: list[str]

    @property
    def block_size(self) -> int:
        return self.options.block_size

    @property
    def gpu_memory_utilization(self) -> float:
        return self.options.gpu_memory_utilization

    @property
    def attention_backend(self) -> str:
        """On a GPU, where auto is resolved by the kernels that are installed (kernels/attention.py)."""
        return self.options.attention_backend

    @property
    def enforce_eager(self) -> bool:
        return self.options.enforce_eager

    @property
    def load_format(self) -> Literal["auto", "dummy"]:
        return self.options.load_format


def choose_device(config: EngineConfig, hardware: Hardware) -> tuple[str, str]:
    """cpu or cuda:N, and why: --device, or for auto the first GPU if it can be used. Raises ConfigError."""
    kind, _, number = config.device.partition(":")
    index, cuda = int(number or 0), hardware.cuda
    if kind != "cpu":
        why_not = cuda.why_not(index)
        if why_not is None:
            return f"cuda:{index}", _about(cuda.gpus[index])
        if kind == "cuda":
            raise ConfigError(f"--device {config.device}: {why_not}")
    reason = f"{hardware.cpu_name}, {hardware.cores} cores this process may use"
    return "cpu", reason if kind == "cpu" else f"{reason}; {why_not}"


def _about(gpu: Gpu) -> str:
    taken = f", {gpu.memory_taken / MIB:.0f} MiB of them taken" if gpu.memory_taken else ""
    return f"{gpu.name}, compute capability {dotted(gpu.capability)}, {gpu.memory_total / MIB:.0f} MiB{taken}"


def _refuse_unsupported(config: EngineConfig, hardware: Hardware, gpu: Gpu | None) -> None:
    """`gpu`: None on the CPU."""
    if config.isq is not None:
        raise ConfigError(f"--isq {config.isq} is not supported yet; leave it out")
    if config.block_size & (config.block_size - 1):
        raise ConfigError(f"--block-size {config.block_size} is not a power of two")
    if config.state_checkpoint_interval % config.block_size:
        raise ConfigError(
            f"--state-checkpoint-interval {config.state_checkpoint_interval} is not a multiple of --block-size "
            f"{config.block_size}"
        )
    if gpu is None:
        _refuse_on_cpu(config, None if config.device == "cpu" else hardware.cuda.why_not(0))
        return
    here = f"{gpu.name} has compute capability {dotted(gpu.capability)}"
    if config.kv_cache_dtype == "int8":
        raise ConfigError("--kv-cache-dtype int8 is for the CPU, and the device is a GPU; use fp8 or auto")
    if config.kv_cache_dtype == "fp8" and gpu.capability < FP8_FROM:
        raise ConfigError(f"--kv-cache-dtype fp8 needs compute capability {dotted(FP8_FROM)}, and {here}; use auto")


def _refuse_on_cpu(config: EngineConfig, why_no_gpu: str | None) -> None:
    here = "the device is the CPU" + (f" ({why_no_gpu})" if why_no_gpu else "")
    if config.kv_cache_dtype == "fp8":
        raise ConfigError(f"--kv-cache-dtype fp8 is for a GPU, and {here}; use int8 or auto")
    if config.gpu_memory_utilization != DEFAULT_GPU_MEMORY_UTILIZATION:
        raise ConfigError(f"--gpu-memory-utilization is for a GPU, and {here}; leave it out, or give --kv-cache-memory")
    if config.attention_backend != "auto":
        raise ConfigError(
            f"--attention-backend {config.attention_backend} is for a GPU, and {here}, where attention is part of the "
            "CPU's kernels; leave it out"
        )
    if config.enforce_eager:
        raise ConfigError(f"--enforce-eager is for a GPU, and {here}, where there are no graphs; leave it out")


def _choose_dtype(
    config: EngineConfig, facts: ModelFacts, hardware: Hardware, gpu: Gpu | None
) -> tuple[str, str | None]:
    """And why, where there is something to say. Hangs on nothing that changes while the machine runs: an engine that
    is started again goes on with what the one before began."""
    if config.dtype != "auto":
        exact = config.dtype == "float32" and gpu is None
        return config.dtype, "no rounding anywhere; quantized weights are held dense, 4 bytes each" if exact else None
    memory, beside = hardware.memory_total if gpu is None else gpu.memory_total, ""
    if facts.dtype == "float32":
        needed = 4 * facts.num_weights()
        if needed <= FLOAT32_SHARE * memory:
            return "float32", "that of the file's weights; bfloat16 would take half the memory (--dtype auto)"
        beside = f"; the file's float32 would take {needed / MIB:.0f} of {memory / MIB:.0f} MiB"
    if facts.dtype == "float16":
        return "float16", "that of the file's weights (--dtype auto)"
    return "bfloat16", f"half the memory traffic of float32{beside} (--dtype auto)"


def _budget(config: EngineConfig, hardware: Hardware, gpu: Gpu | None) -> tuple[int, str]:
    """Bytes, and why so many."""
    if gpu is None:
        budget = max(hardware.memory_available - MIN_FREE_MEMORY, 0)
        return budget, f"what is available less {MIN_FREE_MEMORY >> 20} MiB"
    share = config.gpu_memory_utilization
    budget = max(int(share * gpu.memory_total) - gpu.memory_taken, 0)
    why = f"{share:g} of the GPU's {gpu.memory_total / MIB:.0f} MiB (--gpu-memory-utilization)"
    return budget, f"{why}, less {gpu.memory_taken / MIB:.0f} MiB that are taken" if gpu.memory_taken else why


def resolve(config: EngineConfig, hardware: Hardware, facts: ModelFacts, model_name: str) -> ResolvedConfig:
    """Raises ConfigError where the options contradict the model, the hardware or what is built so far."""
    device, why = choose_device(config, hardware)
    gpu = None if device == "cpu" else hardware.cuda.gpus[int(device.partition(":")[2])]
    _refuse_unsupported(config, hardware, gpu)
    reasons = [f"device {device}: {why}"]
    dtype, why_dtype = _choose_dtype(config, facts, hardware, gpu)
    if why_dtype is not None:
        reasons.append(f"dtype {dtype}: {why_dtype}")
    max_model_len = config.max_model_len or facts.max_position
    if max_model_len > facts.max_position:
        raise ConfigError(
            f"--max-model-len {max_model_len} is more than the model's {facts.max_position} positions; lower it"
        )
    reasons.append(
        f"max_model_len {max_model_len}: " + ("as given" if config.max_model_len else "the model's positions")
    )
    budget, why_budget = _budget(config, hardware, gpu)
    reasons.append(f"memory budget {budget / MIB:.0f} MiB: {why_budget}")
    if config.load_format == "dummy":
        reasons.append("load_format dummy: random weights; what the model says means nothing")
    sizes = ON_CPU if gpu is None else ON_GPU
    names = list(dict.fromkeys(config.served_model_name or (model_name,)))
    return ResolvedConfig(
        options=config,
        device=device,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs or sizes.num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens or sizes.batched_tokens,
        kv_cache_dtype=dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        kv_cache_memory=parse_bytes(config.kv_cache_memory, "--kv-cache-memory") if config.kv_cache_memory else None,
        memory_budget=budget,
        threads=config.threads or hardware.cores,
        async_scheduling=config.async_scheduling and gpu is not None,
        served_model_name=names[0],
        model_aliases=tuple(names[1:]),
        reasons=reasons,
    )
