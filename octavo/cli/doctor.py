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


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows:
        table.add_row(name, Text(value, overflow="fold"))
    return table


def _hardware(hardware: Hardware) -> Table:
    isa = ", ".join(hardware.isa) or "none known"
    rows = [
        ("octavo", f"{__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("cpu", f"{hardware.cpu_name}, {hardware.cores} cores this process may use"),
        ("instructions", isa),
        ("memory", f"{hardware.memory_available / MIB:,.0f} MiB available of {hardware.memory_total / MIB:,.0f}"),
    ]
    return _table("Hardware", rows)


def kernel_choices(resolved: ResolvedConfig, facts: ModelFacts) -> tuple[Table, str | None]:
    """And the name of the backend that would run."""
    from octavo.kernels import registry

    rows = [("pytorch", version("torch"))]
    spec = registry.Spec(
        resolved.device, resolved.dtype, resolved.kv_cache_dtype, resolved.threads, env.forced_isa(),
        attention=resolved.attention_backend, head_dim=facts.head_dim,
    )  # fmt: skip
    reports = registry.report(spec, env.forced_backend())
    attention = [(f"attention, {report.name}", report) for report in registry.attention_report(spec)]
    for name, report in [*((report.name, report) for report in reports), *attention]:
        rows.append((name, ("chosen: " if report.chosen else "not chosen: ") + report.reason))
    return _table("Kernels", rows), next((report.name for report in reports if report.chosen), None)


PACKED = {
    **dict.fromkeys(("Q4_0", "Q4_1"), 4 + 32 / 32),
    **dict.fromkeys(("Q4_K",), 4 + 64 / 32),
    **dict.fromkeys(("Q2_K",), 4 + 64 / 16),
    **dict.fromkeys(("Q8_0", "Q5_0", "IQ4_NL"), 8 + 16 / 32),
    **dict.fromkeys(("IQ4_XS",), 8 + 32 / 32),
    **dict.fromkeys(("Q6_K", "Q3_K"), 8 + 32 / 16),
}
"""Bits that a weight of a GGUF type takes in native kernels: itself, and its share of the scales of its group."""


def count_weights(files: ModelFiles) -> dict[str, int]:
    """How many numbers of each type the model has, from the headers alone."""
    found: dict[str, int] = {}
    if files.is_gguf:
        kinds = [(gguf.GGML_TYPES[t.type].name, t.shape) for t in gguf.read_header(files.path).tensors.values()]
    else:
        headers = safetensors.find_tensors(files.path).values()
        kinds = [(t.dtype, t.shape) for header in headers for t in header.tensors.values()]
    for kind, shape in kinds:
        found[kind] = found.get(kind, 0) + math.prod(shape)
    return found


def memory_plan(
    resolved: ResolvedConfig, facts: ModelFacts, weights_by_type: dict[str, int], native: bool
) -> list[tuple[str, str]]:
    """Rows of the plan: what weights and pages take, and what that holds. `native`: quantized weights stay so."""
    element = 4 if resolved.dtype == "float32" else 2
    packed = PACKED if native else {}
    weights = sum(count * packed.get(kind, 8 * element) / 8 for kind, count in weights_by_type.items())
    forms = ", ".join(f"{count / 1e6:,.1f} M {kind}" for kind, count in sorted(weights_by_type.items()))
    kv_element = 1 + 4 / facts.head_dim if resolved.kv_cache_dtype == "int8" else element
    per_token = facts.kv_bytes_per_token(kv_element)
    one_sequence = per_token * resolved.max_model_len
    rows = [
        ("weights", f"{weights / MIB:,.0f} MiB: {forms}, " + ("packed" if packed else f"as {resolved.dtype}")),
        (
            "KV per token",
            f"{per_token / 1024:,.1f} KiB; one page holds {resolved.block_size} tokens of {resolved.kv_cache_dtype}",
        ),
        ("KV of one sequence", f"{one_sequence / MIB:,.0f} MiB at max_model_len {resolved.max_model_len}"),
    ]
    given = resolved.kv_cache_memory
    if given is not None:
        rows.append(("KV pages", f"{given / MIB:,.0f} MiB as given: {given / per_token:,.0f} tokens"))
    else:
        rows.append(("KV pages", "sized at start, out of what the budget leaves"))
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
    kernels, chosen = kernel_choices(resolved, facts)
    console.print(kernels, "")
    console.print(_table("Memory plan", memory_plan(resolved, facts, count_weights(files), chosen == "cpu")))
