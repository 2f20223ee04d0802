"""What a model is called with: the gathered inputs of one step, and what each layer keeps. Read-only, save for the
contents of caches."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """A ragged batch: the tokens of all running rows one after the other, row i at query_start[i]:query_start[i+1].

    `max_query_len` and `max_context_len` are host integers so that no backend reads a tensor back. `slots`,
    `page_start` and `page_ids` are those of one paged cache group; `of` gives the step with those of another.
    """

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64: place in the sequence
    slots: Tensor  # [tokens] int64: page * block_size + offset, where the token's K and V go
    query_start: Tensor  # [rows + 1] int32
    context_lens: Tensor  # [rows] int32: tokens in the sequence after this step
    page_start: Tensor  # [rows + 1] int32: CSR row pointer into page_ids
    page_ids: Tensor  # [pages] int32: the rows' block tables, ceil(context_len / block_size) pages each
    logits_index: Tensor  # [samples] int64: tokens whose logits are wanted
    block_size: int
    max_query_len: int
    max_context_len: int
    rows: Tensor  # [rows] int32: the permanent row of each, where its recurrent states are
    on_host: tuple[Tensor, Tensor, Tensor] | None = None
    """query_start, context_lens and page_start once more, for who plans on the host, where the step was made there."""
    tight: bool = True
    """Row i's pages end where those of row i + 1 start. Else page_start tells starts alone, and page_ids has gaps."""
    group: int = 0
    others: tuple[Step, ...] = ()
    """Of the first group's step: the steps of the further ones, which differ in where their blocks lie."""

    def of(self, group: int) -> Step:
        """This step as the layers of a paged cache group see it; always the same object."""
        return self if group == self.group else self.others[group - 1]

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]

    @property
    def num_rows(self) -> int:
        return self.context_lens.shape[0]


@dataclass(frozen=True)
class PagedCache:
    """One layer's keys and values in the blocks of a cache group: `blocks` [2, blocks, *Ops.kv_page]."""

    group: int
    blocks: Tensor


@dataclass(frozen=True)
class RecurrentCache:
    """One layer's states, one tensor [rows, *shape] f32 for each that its spec names, rows as Step.rows counts them.
    What a row's hold before its first position is computed is of no account."""

    states: tuple[Tensor, ...]


LayerCache = PagedCache | RecurrentCache | None
"""None: the layer keeps nothing. Layers that share a cache are given the same one."""
