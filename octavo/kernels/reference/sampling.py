"""What the sampling operations of kernels/ops.py mean, in plain PyTorch; assembled into the reference backend.

Order within a row: temperature → top_k → top_p → min_p, then one draw. Truncation is by value: a row keeps every
token whose scaled logit reaches the row's threshold, so equal logits at a boundary stay or go together and no
result hangs on the order in which a sort leaves ties. No row's result depends on the other rows.

Sources: nucleus sampling, Holtzman et al. 2019 (arXiv:1904.09751); min-p, Nguyen et al. 2024 (arXiv:2407.01082);
repetition penalty, Keskar et al. 2019 (arXiv:1909.05858); the draw as an exponential race, the same trick as
Gumbel-max (Maddison et al. 2014, arXiv:1411.0030); its noise by counter, Salmon et al. 2011 (Random123), with the
finalizer of splitmix64 (Steele et al. 2014) as mixing function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.sampling_rows import PenaltyRows, SamplingRows

CANDIDATES = (512, 8192)
"""How many of a row's largest values are looked at first; only rows that keep more are looked at again, and only those
that keep more than the last number are sorted whole. On one core, 32 rows of 49,152: 7, 25 and 96 ms."""

BLOCK = 64
"""Token ids per block of the two-stage draw."""


def mask(logits: Tensor, places: Tensor, allowed: Tensor) -> None:
    """See Ops.mask. In place on logits [samples, vocab] f32."""
    held = (places >= 0).nonzero().squeeze(-1)
    words = allowed[places[held]]  # [held, words]
    bits = (words.unsqueeze(-1) >> torch.arange(32, device=words.device)) & 1
    logits[held] = logits[held].masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, -torch.inf)


def penalize(logits: Tensor, rows: PenaltyRows) -> None:
    """See Ops.penalize. In place on logits [samples, vocab] f32."""
    held = (rows.places >= 0).nonzero().squeeze(-1)
    places = rows.places[held]
    counts, x = rows.output_counts[places], logits[held]
    seen = (counts > 0) | rows.prompt_seen[places]
    settings = rows.presence, rows.frequency, rows.repetition
    presence, frequency, repetition = (each[held].unsqueeze(-1) for each in settings)
    x = torch.where(seen, torch.where(x > 0, x / repetition, x * repetition), x)
    logits[held] = x.sub_(counts * frequency).sub_((counts > 0) * presence)


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """See Ops.logprobs: chosen [samples], top values and ids [samples, num_top]."""
    total = logits.logsumexp(-1, keepdim=True)  # [samples, 1]
    chosen = logits.gather(-1, token_ids.unsqueeze(-1)).sub_(total).squeeze(-1)
    top, top_ids = logits.topk(num_top, dim=-1)
    return chosen, top - total, top_ids


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """See Ops.sample: [samples, vocab] f32 → [samples] int64."""
    largest, chosen = logits.max(-1)  # the largest is NaN when any is
    fine = largest.isfinite()
    random = ((rows.temperature > 0) & (rows.top_k != 1) & fine).nonzero().squeeze(-1)
    if random.numel() == logits.shape[0]:
        return _draw(logits, rows)
    if random.numel():
        chosen[random] = _draw(logits[random], rows.of(random))
    return chosen.masked_fill_(~fine, -1)


def _draw(logits: Tensor, rows: SamplingRows) -> Tensor:
    top_k, top_p = rows.top_k, rows.top_p
    # The largest becomes 0 before the division: no temperature, however small, overflows.
    scaled = (logits - logits.amax(-1, keepdim=True)).div_(rows.temperature.unsqueeze(-1))
    floor = rows.min_p.log()  # [samples]; the share of the top token does not change with what is dropped
    vocab = logits.shape[-1]
    cut = (((top_k > 0) & (top_k < vocab)) | (top_p < 1)).nonzero().squeeze(-1)
    if cut.numel():
        floor[cut] = torch.maximum(floor[cut], _truncation(scaled[cut], top_k[cut], top_p[cut]))
    if bool((floor > -torch.inf).any()):
        scaled.masked_fill_(scaled < floor.unsqueeze(-1), -torch.inf)
    return _race(scaled.softmax(-1), rows.seeds, rows.indices)


def _truncation(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """[samples] smallest scaled logit that top_k, then top_p keep."""
    vocab = scaled.shape[-1]
    floor, settled = _truncation_within(scaled, top_k, top_p, min(CANDIDATES[0], vocab))
    for width in (*CANDIDATES[1:], vocab):
        rows = (~settled).nonzero().squeeze(-1)
        if rows.numel() == 0:
            break
        floor[rows], settled[rows] = _truncation_within(scaled[rows], top_k[rows], top_p[rows], min(width, vocab))
    return floor


def _truncation_within(scaled: Tensor, top_k: Tensor, top_p: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Looks at each row's `width` largest values only. → (thresholds, rows for which that was enough)."""
    vocab = scaled.shape[-1]
    top = scaled.topk(width, dim=-1).values if width < vocab else scaled.sort(-1, descending=True).values
    limited = (top_k > 0) & (top_k < vocab)
    kth = top.gather(-1, top_k.clamp(1, width).unsqueeze(-1) - 1).squeeze(-1)
    floor = torch.where(limited, kth, -torch.inf)
    settled = ~limited | (top_k <= width)
    if not bool((top_p < 1).any()):
        return floor, settled
    kept = floor.unsqueeze(-1)
    # In f64, so that neither the order of a sum nor the number of rows beside this one moves the boundary.
    mass = scaled.exp().masked_fill_(scaled < kept, 0).sum(-1, dtype=torch.float64)
    reached = top.exp().masked_fill_(top < kept, 0).cumsum(-1, dtype=torch.float64)
    wanted = top_p * mass
    last = (reached < wanted.unsqueeze(-1)).sum(-1).clamp_max(width - 1)  # first place that reaches the mass
    nucleus = top.gather(-1, last.unsqueeze(-1)).squeeze(-1)
    inside = (reached[:, -1] >= wanted) | (limited & (top_k <= width))
    return torch.where(top_p < 1, torch.maximum(floor, nucleus), floor), settled & (inside | (top_p >= 1))


def _race(weights: Tensor, seeds: Tensor, indices: Tensor) -> Tensor:
    """Draws one id per row of weights [samples, vocab], in two stages so that noise is needed for
    vocab / BLOCK + BLOCK ids of a row instead of all: a block of ids by its mass, then an id of that block.

    A stage gives each entry the arrival time E / weight, E exponential, and takes the first: entry i wins with
    probability weight_i / sum(weights), exactly. E is a function of (seed, index, entry) alone.
    """
    samples, vocab = weights.shape
    if vocab % BLOCK:
        weights = F.pad(weights, (0, BLOCK - vocab % BLOCK))
    blocks = weights.view(samples, -1, BLOCK)  # [samples, blocks, BLOCK]
    num_blocks = blocks.shape[1]
    keys = _mix(_mix(seeds) + indices * _GOLDEN).unsqueeze(-1)  # [samples, 1]
    block_ids = torch.arange(num_blocks, device=weights.device)
    block = (blocks.sum(-1, dtype=torch.float64) / _exponential(keys, ~block_ids)).argmax(-1)
    inside = blocks[torch.arange(samples, device=weights.device), block]  # [samples, BLOCK]
    token_ids = block.unsqueeze(-1) * BLOCK + torch.arange(BLOCK, device=weights.device)
    offset = (inside / _exponential(keys, token_ids)).argmax(-1)
    return block * BLOCK + offset


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer on int64, arithmetic modulo 2^64."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _exponential(keys: Tensor, entries: Tensor) -> Tensor:
    """Exponential(1) noise in f64, a pure function of (key, entry); token ids are entries >= 0, blocks are < 0."""
    bits = _shift(_mix(keys + entries * _GOLDEN), 11)  # 53 bits
    return -((bits.double() + 0.5) * 2.0**-53).log()
