"""Whether a model is served with these options on this machine, as far as its files' headers tell: the one decision of
every command, so that what `octavo doctor` says is what a start does. Torch-free; nothing is loaded.

What only a loaded model tells (its largest step's memory, its tensors' names) is decided when it is there.
"""

from __future__ import annotations

from dataclasses import dataclass

from octavo.config.engine import EngineConfig
from octavo.config.hardware import Hardware
from octavo.config.memory import check_given, group_sizes, host_blocks, state_bytes
from octavo.config.resolve import ResolvedConfig, resolve
from octavo.modelfiles import gguf
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.generation import sampling_defaults
from octavo.modelfiles.loadable import check_types
from octavo.modelfiles.stored import count_numbers


@dataclass(frozen=True)
class Decision:
    facts: ModelFacts
    resolved: ResolvedConfig


def decide(config: EngineConfig, hardware: Hardware, files: ModelFiles) -> Decision:
    """Raises ConfigError, ModelFileError and OutOfMemory, each in one line that says what to change."""
    header = gguf.read_header(files.path) if files.is_gguf else None  # held: all that follows reads it once
    decision = describe(config, hardware, files)
    facts, resolved = decision.facts, decision.resolved
    sampling_defaults(files)
    if resolved.load_format != "dummy":
        check_types(files)
    sizes = group_sizes(resolved, facts)
    if resolved.device == "cpu":
        weights = weight_bytes(resolved, count_weights(files, facts, resolved), packed=True)
        host_blocks(resolved, sizes, weights + state_bytes(resolved, facts), 0)
    elif resolved.kv_cache_memory is not None:
        padding = sum(group.block_bytes for group in sizes)
        check_given(resolved, sizes, resolved.kv_cache_memory - padding)
    del header
    return decision


def describe(config: EngineConfig, hardware: Hardware, files: ModelFiles) -> Decision:
    """The same without a look at memory. Raises ConfigError, ModelFileError."""
    facts = read_facts(files, random_weights=config.load_format == "dummy")
    return Decision(facts, resolve(config, hardware, facts, files.name))


PACKED = {
    **dict.fromkeys(("Q4_0", "Q4_1"), 4 + 32 / 32),
    **dict.fromkeys(("Q4_K",), 4 + 64 / 32),
    **dict.fromkeys(("Q2_K",), 4 + 64 / 16),
    **dict.fromkeys(("Q8_0", "Q5_0", "IQ4_NL"), 8 + 16 / 32),
    **dict.fromkeys(("IQ4_XS",), 8 + 32 / 32),
    **dict.fromkeys(("Q6_K", "Q3_K"), 8 + 32 / 16),
}
"""Bits that a weight of a GGUF type takes in native kernels: itself, and its share of the scales of its group."""


def count_weights(files: ModelFiles, facts: ModelFacts, resolved: ResolvedConfig) -> dict[str, int]:
    """How many numbers of each type the model has, from the headers alone; from its shape where they are random."""
    if resolved.load_format == "dummy":
        return {"random": facts.num_weights()}
    return count_numbers(files, without=("lm_head.weight",) if facts.tie_embeddings else ())


def weight_bytes(resolved: ResolvedConfig, weights_by_type: dict[str, int], packed: bool) -> int:
    """`packed`: quantized weights stay so."""
    element = 4 if resolved.dtype == "float32" else 2
    forms = PACKED if packed else {}
    return int(sum(count * forms.get(kind, 8 * element) / 8 for kind, count in weights_by_type.items()))
