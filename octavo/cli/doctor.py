"""`octavo doctor`: what the machine offers, which kernels would run and why, the memory plan; nothing is loaded.

Invariant: what is counted and what is only estimated are told apart.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo import __version__, env
from octavo.capability import dotted
from octavo.cli.fetch import fetch_with_progress
from octavo.cli.table import numbers_by_type
from octavo.config.decide import count_weights, decide, describe, weight_bytes
from octavo.config.engine import EngineConfig
from octavo.config.gpus import Cuda, Gpu
from octavo.config.hardware import Hardware, detect
from octavo.config.memory import (
    CPU_DEFAULT_LIMIT,
    CPU_SHARE,
    GroupSize,
    MemoryUse,
    estimate,
    group_sizes,
    host_blocks,
    kv_bytes_per_token,
    num_checkpoints,
    plan_blocks,
    sequence_bytes,
    state_bytes,
    total_bytes,
)
from octavo.config.resolve import ResolvedConfig, choose_device
from octavo.errors import OutOfMemory
from octavo.modelfiles.facts import ModelFacts

MIB = 1 << 20


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    return table


def hardware_rows(hardware: Hardware) -> list[tuple[str, str]]:
    isa = ", ".join(hardware.isa) or "none known"
    return [
        ("octavo", f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("cpu", f"{hardware.cpu_name}, {hardware.cores} cores this process may use"),
        ("instructions", isa),
        ("memory", f"{hardware.memory_available / MIB:,.0f} MiB available of {hardware.memory_total / MIB:,.0f}"),
        *_gpu_rows(hardware.cuda),
    ]


def _gpu_rows(cuda: Cuda) -> list[tuple[str, str]]:
    if not cuda.gpus:
        return [("gpu", f"none: {cuda.absent}")]
    driver = "not known" if cuda.driver is None else f"up to {dotted(cuda.driver)}"
    torch = "PyTorch without CUDA" if cuda.torch is None else f"PyTorch for CUDA {dotted(cuda.torch)}"
    triton = "Triton" if cuda.has_triton else "no Triton"
    rows = [(f"cuda:{i}", _about(gpu)) for i, gpu in enumerate(cuda.gpus)]
    return [*rows, ("cuda", f"{driver} by the driver; installed: {torch}, {triton}")]


def _about(gpu: Gpu) -> str:
    if gpu.problem is not None:
        return f"{gpu.name}: {gpu.problem}"
    return (
        f"{gpu.name}, compute capability {dotted(gpu.capability)}, {gpu.memory_free / MIB:,.0f} MiB free of "
        f"{gpu.memory_total / MIB:,.0f}"
    )


def kernel_choices(resolved: ResolvedConfig, facts: ModelFacts) -> tuple[Table, str | None]:
    """And the name of the backend that would run."""
    from octavo.kernels import registry

    rows = [("pytorch", version("torch"))]
    spec = registry.Spec(
        resolved.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, env.forced_isa(),
        attention=resolved.attention_backend, head_dim=facts.attention.head_dim,
    )  # fmt: skip
    reports = registry.report(spec, env.forced_backend())
    attention = [(f"attention, {report.name}", report) for report in registry.attention_report(spec)]
    for name, report in [*((report.name, report) for report in reports), *attention]:
        rows.append((name, ("chosen: " if report.chosen else "not chosen: ") + report.reason))
    return _table("Kernels", rows), next((report.name for report in reports if report.chosen), None)


def memory_plan(
    resolved: ResolvedConfig, facts: ModelFacts, weights_by_type: dict[str, int], packed: bool, gpu: Gpu | None = None
) -> list[tuple[str, str]]:
    """Rows of the plan: what weights and pages take, and what that holds. `packed`: quantized weights stay so. `gpu`:
    the one to compute on; None: the CPU."""
    weights, per_token = weight_bytes(resolved, weights_by_type, packed), kv_bytes_per_token(resolved, facts)
    sizes = group_sizes(resolved, facts)
    of_one = sequence_bytes(resolved, sizes, resolved.max_model_len)
    forms = numbers_by_type(weights_by_type)
    rows = [
        ("weights", f"{weights / MIB:,.0f} MiB: {forms}, " + ("packed" if packed else f"as {resolved.dtype}")),
        (
            "KV per token",
            f"{per_token / 1024:,.1f} KiB; one page holds {resolved.block_size} tokens of {resolved.kv_cache_dtype}",
        ),
        ("KV of one sequence", f"{of_one / MIB:,.0f} MiB at max_model_len {resolved.max_model_len}"),
    ]
    states = state_bytes(resolved, facts)
    if states:
        rows.append((
            "states",
            f"{states / MIB:,.0f} MiB of recurrent layers: {resolved.max_num_seqs} sequences, "
            f"{num_checkpoints(resolved, facts)} checkpoints",
        ))  # fmt: skip
    if gpu is None:
        return rows + _on_host(resolved, weights + states, sizes)
    return rows + _on_gpu(resolved, facts, weights, sizes, gpu)


def _on_host(resolved: ResolvedConfig, weights: int, sizes: tuple[GroupSize, ...]) -> list[tuple[str, str]]:
    try:
        blocks = host_blocks(resolved, sizes, weights, 0)
    except OutOfMemory as error:
        return [("fits", f"no: {error.message}")]
    why = "as given" if resolved.kv_cache_memory else f"{CPU_SHARE:.0%} of what the budget leaves, {_LIMIT}"
    return [
        (
            "KV pages",
            f"{total_bytes(sizes, blocks) / MIB:,.0f} MiB, {max(blocks) * resolved.block_size:,} tokens: {why}",
        ),
        ("fits", "yes, if the largest step does: what that takes is measured at start"),
    ]


_LIMIT = f"at most {CPU_DEFAULT_LIMIT // MIB} MiB, at least one sequence; --kv-cache-memory sets it"


def _on_gpu(
    resolved: ResolvedConfig, facts: ModelFacts, weights: int, sizes: tuple[GroupSize, ...], gpu: Gpu
) -> list[tuple[str, str]]:
    about = estimate(facts, resolved)
    free = gpu.memory_free - weights - about.tables
    states = state_bytes(resolved, facts)
    use = MemoryUse(gpu.memory_total, free - states, weights, about.activations, about.graphs, sizes, states)
    note = "estimated; measured at start"
    rows = [
        ("taken already", f"{gpu.memory_taken / MIB:,.0f} MiB, by other processes and the driver"),
        ("CUDA and tables", f"about {about.tables / MIB:,.0f} MiB, {note}"),
        ("largest step", f"about {about.activations / MIB:,.0f} MiB, {note}"),
        ("graphs", f"about {about.graphs / MIB:,.0f} MiB, {note}" if about.graphs else "none: --enforce-eager"),
    ]
    try:
        plan = plan_blocks(resolved, use)
    except OutOfMemory as error:
        return [*rows, ("fits", f"no: {error.message}")]
    tokens = max(plan.blocks) * resolved.block_size
    sequences = tokens / resolved.max_model_len
    return [
        *rows,
        (
            "KV pages",
            f"about {plan.kv_bytes / MIB:,.0f} MiB: {tokens:,} tokens, {sequences:,.1f} sequences of max_model_len; "
            f"at most {resolved.max_num_seqs} run at once",
        ),
        ("fits", "yes, by these estimates"),
    ]


def run_doctor(config: EngineConfig) -> None:
    """Print hardware, model, choices with reasons, kernels and memory plan. Loads no weights."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 1000  # a file has no edge, and what is broken into lines cannot be searched
    hardware = detect()
    console.print(_table("Hardware", hardware_rows(hardware)), "")
    choose_device(config, hardware)  # a model need not be fetched to learn that there is no such GPU
    files = fetch_with_progress(config)
    said = describe(config, hardware, files)
    facts, resolved = said.facts, said.resolved
    heads = facts.attention
    model = [
        ("name", ", ".join((resolved.served_model_name, *resolved.model_aliases))),
        ("file", str(files.path)),
        ("architecture", facts.architecture),
        ("shape", f"{facts.num_layers} layers, hidden {facts.hidden_size}, {heads.num_heads} heads, "
                  f"{heads.num_kv_heads} KV heads of {heads.head_dim}, vocabulary {facts.vocab_size:,}"),
        ("context", f"{facts.max_position:,} tokens"),
    ]  # fmt: skip
    console.print(_table("Model", model), "")
    choices = [(what, why) for what, _, why in (reason.partition(": ") for reason in resolved.reasons)]
    console.print(_table("Choices", choices), "")
    kernels, chosen = kernel_choices(resolved, facts)
    console.print(kernels, "")
    gpu = None if resolved.device == "cpu" else hardware.cuda.gpus[int(resolved.device.partition(":")[2])]
    packed = chosen == "cpu" or gpu is not None
    console.print(
        _table("Memory plan", memory_plan(resolved, facts, count_weights(files, facts, resolved), packed, gpu))
    )
    decide(config, hardware, files)  # what ends a start ends this too, with the same words and code
