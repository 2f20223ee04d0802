"""Facts of a GGUF file, from the keys under the architecture's own prefix (llama.block_count) and its list of tensors,
read as llama.cpp reads them, with its defaults."""

from __future__ import annotations

from octavo.errors import ModelFileError
from octavo.modelfiles import architectures
from octavo.modelfiles.facts import ModelFacts
from octavo.modelfiles.fields import MAX_LAYERS, MAX_POSITIONS, Fields, heads_of
from octavo.modelfiles.gguf import GGUFHeader
from octavo.modelfiles.rope import gguf_rope
from octavo.modelfiles.stored import exact_dtype, of_gguf

NEUTRAL: dict[str, tuple[object, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
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
"""Keys of other families that would change the output, and the values by which they change nothing."""
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
    if architecture not in architectures.GGUF:
        architectures.refuse(file, architecture, architectures.GGUF)
    if general.integer("split.count", 1, low=0) > 1:
        general.fail("split.count", "one file of several; join them with gguf-split --merge first")
    fields = Fields(file, header.metadata, architecture + ".")
    for key, values in NEUTRAL.items():
        if (value := fields.get(key)) is not None and value not in values:
            fields.fail(key, f"{value!r:.40}: {_WHY.get(key, 'is not part of this architecture')}")
    hidden = fields.integer("embedding_length")
    heads, kv_heads, head_dim = heads_of(
        fields, hidden, "attention.head_count", "attention.head_count_kv", "attention.key_length"
    )
    if (value_dim := fields.integer("attention.value_length", hidden // heads)) != head_dim:
        fields.fail("attention.value_length", f"{value_dim} is not the key length {head_dim}, which is not supported")
    max_position = fields.integer("context_length", high=MAX_POSITIONS)
    return ModelFacts(
        architecture=architecture,
        num_layers=fields.integer("block_count", high=MAX_LAYERS),
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=_vocab_size(header, fields, general),
        max_position=max_position,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope=gguf_rope(fields, head_dim, max_position, "rope_freqs.weight" in header.tensors),
        tie_embeddings="output.weight" not in header.tensors,
        qkv_bias=architecture == "qwen2" or "blk.0.attn_q.bias" in header.tensors,
        out_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_up.bias" in header.tensors,
        dtype=exact_dtype(of_gguf(header)) or "bfloat16",
    )


def _vocab_size(header: GGUFHeader, fields: Fields, general: Fields) -> int:
    """Rows of the embedding; the token list must have as many."""
    table = header.tensors.get("token_embd.weight")
    tokens = general.get("tokenizer.ggml.tokens")
    if tokens is not None and (not isinstance(tokens, list) or not tokens):
        general.fail("tokenizer.ggml.tokens", "is not a list of tokens")
    if table is None:
        return fields.integer("vocab_size", len(tokens) if tokens else None)
    if len(table.shape) != 2:
        raise ModelFileError(fields.file, f"tensor 'token_embd.weight': shape {list(table.shape)} is not a matrix")
    if tokens and len(tokens) != table.shape[0]:
        general.fail(
            "tokenizer.ggml.tokens", f"{len(tokens)} tokens, but tensor 'token_embd.weight' has {table.shape[0]} rows"
        )
    return table.shape[0]
