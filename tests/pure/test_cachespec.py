"""What layers keep, who keeps it together, and how memory is shared out among the groups."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_resolve import FACTS, ON_GPUS

from octavo.cachespec import Group, Nothing, Paged, Recurrent, SharedWith, first_needed, groups, most_blocks
from octavo.config.engine import EngineConfig
from octavo.config.memory import GroupSize, sequence_bytes, share_out, total_bytes
from octavo.config.resolve import ResolvedConfig, resolve

STATES, LOCAL, GLOBAL = Recurrent(((4, 3), (2, 8, 8))), Paged(2, 16, 16, 512), Paged(2, 16, 16)
MIB = 1 << 20


def resolved(**options: Any) -> ResolvedConfig:
    return resolve(EngineConfig(**options), ON_GPUS, FACTS, "tiny")


def test_equal_specs_form_a_group_paged_ones_first() -> None:
    specs = (STATES, LOCAL, STATES, GLOBAL, LOCAL, SharedWith(3), Nothing())
    assert groups(specs) == (Group(LOCAL, (1, 4)), Group(GLOBAL, (3,)), Group(STATES, (0, 2)))
    assert STATES.num_bytes == 4 * (12 + 128) and LOCAL.width == 64


@given(computed=st.integers(0, 300), count=st.integers(1, 40), window=st.integers(1, 100), size=st.sampled_from([1, 8]))
def test_no_more_blocks_than_the_bound(computed: int, count: int, window: int, size: int) -> None:
    held = -(-(computed + count) // size) - first_needed(computed, window, size)
    assert held <= most_blocks(computed + count, window, size, count)


def test_five_layers_with_a_window_to_one_without_take_a_fifth() -> None:
    """Of the memory that all of 32k would take, of a model whose groups have 20 and 4 layers."""
    config = resolved(max_model_len=512, max_num_batched_tokens=2048)
    sizes = (GroupSize(20 * 1024, 512), GroupSize(4 * 1024))
    apart, whole = sequence_bytes(config, sizes, 32768), sequence_bytes(config, (GroupSize(24 * 1024),), 32768)
    assert whole / 5 < apart < whole / 4


@pytest.mark.parametrize("mib", [3, 20, 100, 400, 4000])
def test_all_sequences_may_be_equally_long_in_every_group(mib: int) -> None:
    config = resolved(max_model_len=512, max_num_batched_tokens=64, max_num_seqs=16)
    sizes = (GroupSize(MIB // 16, 64), GroupSize(MIB // 64))
    blocks = share_out(config, sizes, mib * MIB)
    assert total_bytes(sizes, blocks) <= mib * MIB
    assert all(count >= most_blocks(512, g.window, 16, 64) for count, g in zip(blocks, sizes, strict=True))
    assert all(count <= 16 * most_blocks(512, g.window, 16, 64) for count, g in zip(blocks, sizes, strict=True))
    if mib >= 20:  # more than one sequence: no group is the bottleneck of short ones
        assert min(blocks) >= 16 * min(min(blocks) // 16, most_blocks(512, 64, 16, 64))
