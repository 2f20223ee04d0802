"""Facts of a GGUF file, from the keys under the architecture's own prefix (llama.block_count) and its list of tensors,
read as llama.cpp reads them, with its defaults."""

from __future__ import annotations

from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.families import GGUF
from octavo.modelfiles.families.reading import Header
from octavo.modelfiles.fields import Fields, refuse_architecture
from octavo.modelfiles.gguf import GGUFHeader

NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.logit_softcapping": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
}
"""Keys that would change the output in families that read them, and the values by which they change nothing."""
_WHY = {
    "expert_count": "a mixture of experts is not supported yet",
    "attention.causal": "only causal attention is",
}


def gguf_facts(header: GGUFHeader, file: str) -> ModelFacts:
    """Raises ModelFileError that names `file` and the key."""
    general = Fields(file, header.metadata)
    architecture = general.string("general.architecture")
    if not architecture:
        general.fail("general.architecture", "is missing")
    if architecture not in GGUF:
        refuse_architecture(file, architecture, GGUF)
    if general.integer("split.count", 1, low=0) > 1:
        general.fail("split.count", "one file of several; join them with gguf-split --merge first")
    fields = Header(file, header, architecture)
    facts = GGUF[architecture](fields)
    read = set(fields.asked)
    for key, values in NEUTRAL.items():
        if key in read:
            continue
        if (value := fields.get(key)) is not None and value not in values:
            fields.fail(key, f"{value!r:.40}: {_WHY.get(key, 'is not part of this architecture')}")
    return facts
