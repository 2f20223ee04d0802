"""The compiled module (csrc/binding.cpp). Addresses are ints; whoever passes one keeps its memory alive."""

from collections.abc import Callable

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Matrix:
    @staticmethod
    def f32(data: int, n: int, k: int, /) -> Matrix: ...
    @staticmethod
    def bf16(data: int, n: int, k: int, /) -> Matrix: ...
    @staticmethod
    def f16(data: int, n: int, k: int, /) -> Matrix: ...
    @staticmethod
    def int8(q: int, scales: int, f32_scales: bool, group: int, n: int, k: int, /) -> Matrix: ...
    @staticmethod
    def int4(packed: int, scales: int, minimums: int, f32_scales: bool, group: int, n: int, k: int, /) -> Matrix: ...
    @property
    def n(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def group(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def format(self) -> int: ...
    def unpack(self, row0: int, row1: int, out: int, /) -> None: ...

class Inputs:
    def __init__(self, max_tokens: int, max_rows: int, max_pages: int, block_size: int) -> None: ...
    def bind(
        self,
        token_ids: int,
        token_stride: int,
        num_tokens: int,
        num_computed: int,
        num_blocks: int,
        rows: int,
        /,
    ) -> None: ...
    def bind_group(self, block_tables: int, table_stride: int, window: int, /) -> None: ...
    def assign(
        self,
        tokens: int,
        rows: int,
        samples: int,
        block_size: int,
        token_ids: int,
        positions: int,
        slots: int,
        query_start: int,
        context_lens: int,
        page_start: int,
        page_ids: int,
        logits_index: int,
        /,
    ) -> None: ...
    def assign_row_slots(self, row_slots: int, /) -> None: ...
    def gather(self, rows: list[int], counts: list[int], samples: list[int], /) -> None: ...
    def advance(self, token_ids: list[int], /) -> None: ...
    @property
    def tokens(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def num_groups(self) -> int: ...
    def arrays(self, group: int, /) -> list[tuple[int, int]]: ...

class Program:
    profiling: bool
    @property
    def inputs(self) -> Inputs: ...
    def __init__(self, pool: Pool, inputs: Inputs, isa: str = "") -> None: ...
    def embed(self, table: Matrix, ids: int, out: int, ld: int, /) -> None: ...
    def convert(self, x: int, ld: int, k: int, out: int, format: int, /) -> None: ...
    def norm(
        self, x: int, x_ld: int, add: int, add_ld: int, weight: int, eps: float, k: int, out: int, format: int, /
    ) -> None: ...
    def silu_mul(self, x: int, ld: int, k: int, out: int, format: int, /) -> None: ...
    def elementwise(
        self,
        inputs: list[tuple[int, int, bool]],
        scalars: list[float],
        instructions: list[tuple[int, int, int, int]],
        result: int,
        k: int,
        out: int,
        format: int,
        /,
    ) -> None: ...
    def linear(self, x: int, weight: Matrix, bias: int, out: int, ld: int, add: bool, /) -> None: ...
    def gate_up(self, x: int, weight: Matrix, bias: int, out: int, format: int, /) -> None: ...
    def use_group(self, group: int, /) -> None: ...
    def rope_cache(
        self,
        q: int,
        q_ld: int,
        k: int,
        k_ld: int,
        v: int,
        v_ld: int,
        heads: int,
        cos_sin: int,
        rotary_dim: int,
        q_norm: int,
        k_norm: int,
        eps: float,
        kv: int,
        kind: int,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        out: int,
        out_ld: int,
        /,
    ) -> None: ...
    def attention(
        self,
        q: int,
        q_ld: int,
        heads: int,
        kv: int,
        kind: int,
        blocks: int,
        block_size: int,
        kv_heads: int,
        head_dim: int,
        scale: float,
        window: int,
        soft_cap: float,
        out: int,
        out_ld: int,
        /,
    ) -> None: ...
    def head_norm(
        self, x: int, x_ld: int, heads: int, head_dim: int, weight: int, eps: float, out: int, out_ld: int, /
    ) -> None: ...
    def short_conv(
        self, x: int, ld: int, channels: int, taps: int, weight: int, state: int, out: int, out_ld: int, /
    ) -> None: ...
    def delta_rule(
        self,
        q: int,
        q_ld: int,
        k: int,
        k_ld: int,
        v: int,
        v_ld: int,
        g: int,
        g_ld: int,
        beta: int,
        beta_ld: int,
        k_heads: int,
        v_heads: int,
        dk: int,
        dv: int,
        state: int,
        out: int,
        out_ld: int,
        /,
    ) -> None: ...
    def gather_rows(self, x: int, ld: int, n: int, out: int, out_ld: int, /) -> None: ...
    def route(
        self,
        logits: int,
        ld: int,
        experts: int,
        k: int,
        renormalize: bool,
        weights: int,
        weights_ld: int,
        ids: int,
        ids_ld: int,
        /,
    ) -> None: ...
    def experts(
        self,
        x: list[int],
        weights: tuple[int, int],
        ids: tuple[int, int],
        k: int,
        hidden: int,
        inner: int,
        gate_up: list[list[Matrix]],
        down: list[list[Matrix]],
        scratch: int,
        most_tokens: int,
        out: int,
        out_ld: int,
        /,
    ) -> None: ...
    def host(self, name: str, function: Callable[[int, int], None], /) -> None: ...
    def sample(
        self, logits: int, vocab: int, floats: int, float_stride: int, ints: int, int_stride: int, /
    ) -> None: ...
    def begin_tail(self, chunk: int, /) -> None: ...
    def run(self) -> None: ...
    def tail(self, first: int, count: int, /) -> None: ...
    def step(self, rows: list[int], counts: list[int], samples: list[int], sampling: bool, /) -> list[int]: ...
    def finish(self, masks: list[bytes | None], /) -> list[int]: ...
    def profile(self) -> list[tuple[str, float, float, float]]: ...

def isas() -> list[str]: ...
def row_bytes(format: int, k: int, /) -> int: ...
def kv_page_bytes(kind: int, block_size: int, kv_heads: int, head_dim: int, /) -> int: ...
def probe(pool: Pool, kind: str, isa: str, /) -> float: ...
def sample_rows(
    pool: Pool,
    isa: str,
    logits: int,
    ld: int,
    vocab: int,
    rows: list[int],
    floats: int,
    float_stride: int,
    ints: int,
    int_stride: int,
    /,
) -> list[int]: ...
def mask(isa: str, logits: int, vocab: int, allowed: int, /) -> None: ...
def penalize(
    isa: str,
    logits: int,
    vocab: int,
    counts: int,
    seen: int,
    presence: float,
    frequency: float,
    repetition: float,
    /,
) -> None: ...
def logprobs(
    isa: str, logits: int, vocab: int, ids: list[int], count: int, /
) -> tuple[list[float], list[float], list[int]]: ...
