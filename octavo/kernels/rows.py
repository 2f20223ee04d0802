"""What a device keeps of every running request, so that the inputs of its next token need nothing from the host. Made
by the worker (worker/device_rows.py), changed by it at admission and by `Ops.decode_done`.

Invariant: between steps equal to the worker's rows on the host, save for last_token, which only the device knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DeviceRows:
    """Arrays over rows that never move. One row more than there can be requests: the last is the padding of a batch,
    which computes token 0 at position 0 of a page that is nobody's; `decode_done` leaves it as it is."""

    last_token: Tensor  # [rows] int64: the last of the row's tokens
    num_computed: Tensor  # [rows] int32
    block_tables: Tensor  # [paged groups, rows, pages] int32
    sampling_ints: Tensor  # [rows, n] int64: top_k, seed, output tokens so far

    @property
    def padding(self) -> int:
        return self.last_token.shape[0] - 1
