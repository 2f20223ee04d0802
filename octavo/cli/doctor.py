"""`octavo doctor`: what the machine offers, which kernels would run and why, the memory plan; nothing is loaded."""

from __future__ import annotations

import math
import platform
from importlib.metadata import version

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo import __version__, env
from octavo.cli.fetch import fetch_with_progress
from octavo.config.engine import EngineConfig
from octavo.config.hardware import Hardware, detect
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.modelfiles import gguf, safetensors
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles

MIB = 1 << 20
_ISA = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
)


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    return table


def _hardware(hardware: Hardware) -> Table:
    isa = ", ".join(f for f in _ISA if f in hardware.cpu_flags) or "none known"
    rows = [
        ("octavo", f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("cpu", f"{hardware.cpu_name}, {hardware.cores} cores this process may use"),
        ("instructions", isa),
        ("memory", f"{hardware.memory_available / MIB:,.0f} MiB available of {hardware.memory_total / MIB:,.0f}"),
    ]
    return _table("Hardware", rows)


def _kernels(resolved: ResolvedConfig) -> Table:
    from octavo.kernels import registry

    rows = [("pytorch", version("torch"))]
    spec = registry.Spec(resolved.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, env.forced_isa())
    for report in registry.report(spec, env.forced_backend()):
        rows.append((report.name, ("chosen: " if report.chosen else "not chosen: ") + report.reason))
    return _table("Kernels", rows)


def count_weights(files: ModelFiles) -> int:
    """Numbers in all tensors of the model, from the headers alone."""
    if files.is_gguf:
        return sum(math.prod(t.shape) for t in gguf.read_header(files.path).tensors.values())
    headers = safetensors.find_tensors(files.path).values()
    return sum(math.prod(t.shape) for header in headers for t in header.tensors.values())


def memory_plan(resolved: ResolvedConfig, facts: ModelFacts, num_weights: int) -> list[tuple[str, str]]:
    """Rows of the plan: what weights and pages take, and what that holds. Exact for dense weights."""
    element = 4 if resolved.dtype == "float32" else 2
    weights = num_weights * element
    per_token = facts.kv_bytes_per_token(element)
    one_sequence = per_token * resolved.max_model_len
    rows = [
        ("weights", f"{weights / MIB:,.0f} MiB: {num_weights / 1e6:,.0f} M parameters as {resolved.dtype}"),
        ("KV per token", f"{per_token / 1024:,.1f} KiB; one page holds {resolved.block_size} tokens"),
        ("KV of one sequence", f"{one_sequence / MIB:,.0f} MiB at max_model_len {resolved.max_model_len}"),
    ]
    given = resolved.kv_cache_memory
    if given is not None:
        rows.append(("KV pages", f"{given / MIB:,.0f} MiB as given: {given // per_token:,} tokens"))
    else:
        rows.append(("KV pages", "sized by the profile run at start, out of what the budget leaves"))
    fits = resolved.memory_budget >= weights + (given or one_sequence)
    rows.append(("fits", "yes" if fits else "no: lower --max-model-len, or give the process more memory"))
    return rows


def run_doctor(config: EngineConfig) -> None:
    """Print hardware, model, choices with reasons, kernels and memory plan. Loads no weights."""
    console = Console(highlight=False)
    hardware = detect()
    console.print(_hardware(hardware), "")
    files = fetch_with_progress(config)
    facts = read_facts(files)
    resolved = resolve(config, hardware, facts, files.name)
    model = [
        ("name", resolved.served_model_name),
        ("file", str(files.path)),
        ("architecture", facts.architecture),
        ("shape", f"{facts.num_layers} layers, hidden {facts.hidden_size}, {facts.num_heads} heads, "
                  f"{facts.num_kv_heads} KV heads of {facts.head_dim}, vocabulary {facts.vocab_size:,}"),
        ("context", f"{facts.max_position:,} tokens"),
    ]  # fmt: skip
    console.print(_table("Model", model), "")
    choices = [(reason.partition(":")[0], reason.partition(":")[2].strip()) for reason in resolved.reasons]
    console.print(_table("Choices", choices), "")
    console.print(_kernels(resolved), "")
    console.print(_table("Memory plan", memory_plan(resolved, facts, count_weights(files))))
