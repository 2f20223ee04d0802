"""Reads the tensors of a model from a checkpoint, by their Hugging Face names, and checks them. Used by model files.

Invariant: every tensor of the checkpoint is either used by the model or named by it as safe to ignore; what is left
over is an error, for then the model computes something else than the file means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from octavo.errors import ModelFileError
from octavo.kernels.layouts import Layout
from octavo.weights.checkpoint import Checkpoint

GGUF_PARTS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of names that most families share: Transformers', and those of GGUF files."""


def gguf_name(name: str, parts: Mapping[str, str]) -> str:
    """'model.layers.3.self_attn.q_proj.weight' → 'blk.3.attn_q.weight'. Names without a rule stay as they are."""
    part, _, kind = name.rpartition(".")
    layer, rest = "", part
    if part.startswith("model.layers."):
        number, _, rest = part.removeprefix("model.layers.").partition(".")
        layer = f"blk.{number}."
    return f"{layer}{parts[rest]}.{kind}" if rest in parts else name


class Reader:
    """`stored_name` maps the names that models use to those of the file."""

    def __init__(self, checkpoint: Checkpoint, stored_name: Callable[[str], str] = str) -> None:
        self._checkpoint = checkpoint
        self._stored_name = stored_name
        self._left = checkpoint.names()

    @property
    def left(self) -> list[str]:
        """Names in the file that nobody has asked for so far."""
        return sorted(self._left)

    def has(self, name: str) -> bool:
        return self._stored_name(name) in self._left

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A dense one of any rank, in f32."""
        return self._checkpoint.tensor(self._take(name, shape), torch.float32)

    def vector(self, name: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """[size] in `dtype`."""
        return self._checkpoint.tensor(self._take(name, (size,)), dtype)

    def matrix(self, name: str, rows: int, columns: int) -> Layout:
        """[rows, columns] in the layout that holds it without loss."""
        return self._checkpoint.matrix(self._take(name, (rows, columns)))

    def matrices(self, name: str, count: int, rows: int, columns: int) -> list[Layout]:
        """`count` matrices [rows, columns] of one tensor."""
        stack = self._checkpoint.stack(self._take(name, (count, rows, columns)))
        return [stack.shard(0, number, count) for number in range(count)]

    def same(self, name: str, other: str) -> bool:
        """Whether two tensors hold the same bytes."""
        return self._checkpoint.same(self._stored_name(name), self._stored_name(other))

    def ignore(self, name: str) -> None:
        """The model does without this tensor, whether it is there or not."""
        self._left.discard(self._stored_name(name))

    def finish(self, ignorable: Sequence[str] = (), beside: Sequence[str] = ()) -> None:
        """Raises ModelFileError when tensors are left over, save those whose names end in one of `ignorable`, or in the
        file begin with one of `beside`."""
        known = (name for name in self._left if not name.startswith(tuple(beside)))
        left = sorted(name for name in known if not name.endswith(tuple(ignorable)))
        if left:
            more = f" and {len(left) - 3} more" if len(left) > 3 else ""
            raise ModelFileError(
                self._checkpoint.file,
                f"tensors {', '.join(map(repr, left[:3]))}{more} are not part of the architecture the file names",
            )

    def _take(self, name: str, shape: tuple[int, ...]) -> str:
        stored = self._stored_name(name)
        self._checkpoint.expect(stored, shape)
        self._left.discard(stored)
        return stored
