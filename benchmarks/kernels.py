"""Each native kernel alone: how long it takes, and its share of what this machine can do at most.

    python benchmarks/kernels.py                               # every kernel, the demo model's and a 1B model's shapes
    python benchmarks/kernels.py --shapes smollm2 --only linear,attention --rows 1,32

The limit of a kernel is the larger of two times: its bytes at the rate at which memory can be read, and its operations
at the rate of the instructions it is made of; both rates are measured beside it (csrc/probe.cpp). Weights and KV pages
come in so many copies that no cache holds them; activations lie in cache: both as in a step. Writes a table and JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from native.arrays import FORMATS, KINDS, Arrays, last_level_cache
from peers import machine

from octavo.kernels.cpu import _native

ROOT = Path(__file__).resolve().parents[1]
ROWS = (1, 4, 8, 32, 128, 512)
SECONDS, LEAST_RUNS = 0.15, 5
HEAD_ROWS = 32
"""More rows than this never sample at once in these shapes."""
CONTEXT = 512
EPS = 1e-5
KV_BF16 = 1


@dataclass(frozen=True)
class Shape:
    """A model's sizes. `head`: the kind of its vocabulary projection where that differs from the other matrices."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    head: str | None = None

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


SHAPES = {
    "smollm2": Shape("smollm2", 576, 9, 3, 64, 1536, 49152, head="int8"),
    "llama-1b": Shape("llama-1b", 2048, 32, 8, 64, 8192, 128256),
}


@dataclass(frozen=True)
class Figure:
    """One line of the result. `share`: limit_us / us, where 1 is all the machine can do; None where a kernel neither
    multiplies nor reads what is not in cache."""

    kernel: str
    shape: str
    kind: str
    rows: int
    us: float
    megabytes: float
    megaops: float
    limit_us: float
    share: float | None


@dataclass(frozen=True)
class Case:
    """`run` computes once and returns (seconds, bytes, operations) of each execution of the kernel in it."""

    kernel: str
    shape: str
    kind: str
    rows: int
    run: Callable[[], list[tuple[float, float, float]]]
    arithmetic: str | None
    """Which of the machine's rates limits it; None: memory's alone, and only in cache."""


class Cases:
    """Makes the cases of one shape, one at a time: each holds more memory than the caches."""

    def __init__(self, pool: _native.Pool, isa: str, shape: Shape, kinds: list[str]) -> None:
        self._pool, self._isa, self._shape, self._kinds = pool, isa, shape, kinds
        self._beyond_cache = 2 * last_level_cache()

    def all(self, kernels: list[str], rows: list[int]) -> Iterator[Case]:
        for kernel in kernels:
            make = getattr(self, f"_{kernel}")
            yield from make(rows)

    def _linear(self, rows: list[int]) -> Iterator[Case]:
        s = self._shape
        for kind in self._kinds:
            yield from self._products("linear qkv", kind, s.qkv, s.hidden, rows)
            yield from self._products("linear o +", kind, s.hidden, s.heads * s.head_dim, rows, add=True)
            yield from self._products("linear down +", kind, s.hidden, s.inner, rows, add=True)
        heads = {s.head} if s.head in self._kinds else set(self._kinds)
        for kind in sorted(heads):
            yield from self._products("linear head", kind, s.vocab, s.hidden, [r for r in rows if r <= HEAD_ROWS])

    def _products(self, name: str, kind: str, n: int, k: int, rows: list[int], add: bool = False) -> Iterator[Case]:
        weights = Arrays().matrices(kind, n, k, self._beyond_cache)
        for count in rows:
            arrays, program = self._program(count, 1, 1)
            x = arrays.rows(self._pool, self._isa, count, k, FORMATS[kind])
            out = arrays.aligned(count * n * 4)
            for weight in weights:
                program.linear(x, weight, 0, out, n, add)
            yield self._case(name, kind, count, program, arrays, _arithmetic(kind))

    def _gate_up(self, rows: list[int]) -> Iterator[Case]:
        s = self._shape
        for kind in self._kinds:
            weights = Arrays().matrices(kind, 2 * s.inner, s.hidden, self._beyond_cache)
            for count in rows:
                arrays, program = self._program(count, 1, 1)
                x = arrays.rows(self._pool, self._isa, count, s.hidden, FORMATS[kind])
                out = arrays.aligned(count * _native.row_bytes(FORMATS[kind], s.inner))
                for weight in weights:
                    program.gate_up(x, weight, 0, out, FORMATS[kind])
                yield self._case("gate_up", kind, count, program, arrays, _arithmetic(kind))

    def _norm(self, rows: list[int]) -> Iterator[Case]:
        k = self._shape.hidden
        for form in sorted({FORMATS[kind] for kind in self._kinds}):
            for count in rows:
                arrays, program = self._program(count, 1, 1)
                x, add, weight = (arrays.normal(r, k) for r in (count, count, 1))
                out = arrays.aligned(count * _native.row_bytes(form, k))
                for _ in range(30):
                    program.norm(x, k, add, k, weight, EPS, k, out, form)
                yield self._case("norm +", _format_name(form), count, program, arrays, None)

    def _convert(self, rows: list[int]) -> Iterator[Case]:
        k = self._shape.heads * self._shape.head_dim
        for form in sorted({FORMATS[kind] for kind in self._kinds} - {0}):
            for count in rows:
                arrays, program = self._program(count, 1, 1)
                x, out = arrays.normal(count, k), arrays.aligned(count * _native.row_bytes(form, k))
                for _ in range(30):
                    program.convert(x, k, k, out, form)
                yield self._case("convert", _format_name(form), count, program, arrays, None)

    def _rope(self, rows: list[int]) -> Iterator[Case]:
        s = self._shape
        q_width, kv_width = s.heads * s.head_dim, s.kv_heads * s.head_dim
        for count in rows:
            arrays, program = self._program(count, 1, CONTEXT)
            pages, blocks, layers = self._pages(arrays, count, CONTEXT)
            qkv, cos_sin = arrays.normal(count, s.qkv), arrays.normal(CONTEXT, s.head_dim)
            out = arrays.aligned(count * q_width * 4)
            places = (qkv, s.qkv, qkv + 4 * q_width, s.qkv, qkv + 4 * (q_width + kv_width), s.qkv)
            for layer in range(layers):
                kv = (pages[layer], KV_BF16, blocks, 16, s.kv_heads, s.head_dim)
                program.rope_cache(*places, s.heads, cos_sin, s.head_dim, 0, 0, 0.0, *kv, out, q_width)
            yield self._case("rope_cache", "bf16 pages", count, program, arrays, None)

    def _attention(self, rows: list[int]) -> Iterator[Case]:
        for count in rows:
            if count <= 128:
                yield self._attend(f"attention decode at {CONTEXT}", count, 1, CONTEXT)
        for new in (128, 512):
            yield self._attend(f"attention prefill of {new}", 1, new, new)

    def _attend(self, name: str, count: int, new: int, context: int) -> Case:
        s = self._shape
        width = s.heads * s.head_dim
        arrays, program = self._program(count, new, context)
        pages, blocks, layers = self._pages(arrays, count, context)
        q, out = arrays.normal(count * new, width), arrays.aligned(count * new * width * 4)
        for layer in range(layers):
            kv = (pages[layer], KV_BF16, blocks, 16, s.kv_heads, s.head_dim)
            program.attention(q, width, s.heads, *kv, s.head_dim**-0.5, 0, 0.0, out, width)
        return self._case(name, "bf16 pages", count * new, program, arrays, "bf16")

    def _sample(self, rows: list[int]) -> Iterator[Case]:
        settings = {"greedy": (0.0, 1.0, 0.0, 0), "top_k 40, top_p 0.9": (0.8, 0.9, 0.0, 40), "all": (1.0, 1.0, 0.0, 0)}
        for name in settings:
            for count in (r for r in rows if r <= HEAD_ROWS):
                yield self._samples(name, count, settings[name])

    def _samples(self, name: str, count: int, settings: tuple[float, float, float, int]) -> Case:
        vocab, arrays = self._shape.vocab, Arrays()
        logits, floats, ints = arrays.normal(count, vocab), arrays.aligned(count * 12), arrays.aligned(count * 24)
        _fill(floats, list(settings[:3]) * count)
        _fill(ints, [settings[3], 1, 0] * count)
        rows = list(range(count))

        def run(keep: Arrays = arrays) -> list[tuple[float, float, float]]:
            started = time.perf_counter()
            _native.sample_rows(self._pool, self._isa, logits, vocab, vocab, rows, floats, 3, ints, 3)
            return [(time.perf_counter() - started, count * vocab * 4.0, 0.0)]

        return Case("sample", self._shape.name, name, count, run, None)

    def _program(self, rows: int, new: int, context: int) -> tuple[Arrays, _native.Program]:
        arrays = Arrays()
        program = _native.Program(self._pool, arrays.step(rows, new, context), self._isa)
        program.profiling = True
        return arrays, program

    def _pages(self, arrays: Arrays, rows: int, context: int) -> tuple[list[int], int, int]:
        """→ the addresses of layers' pages, blocks of a layer, layers: more than the caches hold, at most 64."""
        blocks = rows * -(-context // 16)
        nbytes = 2 * blocks * _native.kv_page_bytes(KV_BF16, 16, self._shape.kv_heads, self._shape.head_dim)
        layers = min(64, max(2, self._beyond_cache // nbytes))
        return [arrays.aligned(nbytes) for _ in range(layers)], blocks, layers

    def _case(
        self, kernel: str, kind: str, rows: int, program: _native.Program, keep: Arrays, arithmetic: str | None
    ) -> Case:
        def run(keep: Arrays = keep) -> list[tuple[float, float, float]]:
            program.run()
            return [(seconds, nbytes, operations) for _, seconds, nbytes, operations in program.profile()]

        return Case(kernel, self._shape.name, kind, rows, run, arithmetic)


def _arithmetic(kind: str) -> str:
    return "int8" if kind in ("int4", "int8") else kind


def _format_name(form: int) -> str:
    return {0: "f32", 1: "bf16", 2: "int8 rows"}[form]


def _fill(address: int, values: list[float] | list[int]) -> None:
    kind = ctypes.c_float if isinstance(values[0], float) else ctypes.c_int64
    (kind * len(values)).from_address(address)[:] = values


@dataclass(frozen=True)
class Measured:
    case: Case
    seconds: float
    nbytes: float
    operations: float

    def against(self, limits: dict[str, float]) -> Figure:
        case = self.case
        limit = self.nbytes / (limits["read_gb_s"] * 1e9)
        if case.arithmetic is not None:
            limit = max(limit, self.operations / (limits[f"{case.arithmetic}_gops"] * 1e9))
        return Figure(
            case.kernel,
            case.shape,
            case.kind,
            case.rows,
            round(self.seconds * 1e6, 2),
            round(self.nbytes / 1e6, 4),
            round(self.operations / 1e6, 3),
            round(limit * 1e6, 2),
            None if case.arithmetic is None else round(limit / self.seconds, 3),
        )


def measure(case: Case) -> Measured:
    """The median over all executions in at least SECONDS and LEAST_RUNS runs, after one to warm up."""
    case.run()
    found: list[tuple[float, float, float]] = []
    started, runs = time.perf_counter(), 0
    while runs < LEAST_RUNS or time.perf_counter() - started < SECONDS:
        found += case.run()
        runs += 1
    kept = replace(case, run=list)  # lets go of the memory
    return Measured(kept, statistics.median(each[0] for each in found), found[0][1], found[0][2])


def line(figure: Figure) -> str:
    rate = f"{figure.megabytes / figure.us * 1e3:6.1f} GB/s {figure.megaops / figure.us * 1e3:6.0f} GOP/s"
    share = "     -" if figure.share is None else f"{figure.share:6.0%}"
    return (
        f"{figure.shape:9} {figure.kernel:25} {figure.kind:20} {figure.rows:4} rows {figure.us:10.1f} us"
        f" {figure.megabytes:9.3f} MB {rate} {share}"
    )


def parse() -> argparse.Namespace:
    kernels = ("linear", "gate_up", "norm", "convert", "rope", "attention", "sample")
    split = lambda text: text.split(",")  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=split, default=list(SHAPES))
    parser.add_argument("--only", type=split, default=list(kernels), help=", ".join(kernels))
    parser.add_argument("--kinds", type=split, default=["int4", "int8", "bf16"], help=", ".join(KINDS))
    parser.add_argument("--rows", type=lambda text: [int(each) for each in text.split(",")], default=list(ROWS))
    parser.add_argument("--isa", default=_native.isas()[0], help=", ".join(_native.isas()))
    parser.add_argument("--threads", type=int, default=machine.facts()["cores"])
    parser.add_argument(
        "--out", type=Path, help="write FOLDER/ISA.json and .txt; benchmarks/results/kernels keeps ours"
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    pool = _native.Pool(args.threads)
    limits = machine.limits(args.isa, args.threads)
    found: list[Measured] = []
    for name in args.shapes:
        for case in Cases(pool, args.isa, SHAPES[name], args.kinds).all(args.only, args.rows):
            found.append(measure(case))
            print(f"{case.shape} {case.kernel} {case.kind} {case.rows}", file=sys.stderr)
        again = machine.limits(args.isa, args.threads)  # on a shared machine memory is now faster, now slower
        limits = {key: max(limits[key], again[key]) for key in limits}
    figures = [each.against(limits) for each in found]
    lines = [f"{args.isa}, {args.threads} threads: {', '.join(f'{k} {v:g}' for k, v in limits.items())}"]
    lines += [line(figure) for figure in figures]
    print("\n".join(lines))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        document = {
            "isa": args.isa,
            "threads": args.threads,
            "limits": limits,
            "machine": machine.facts(),
            "commit": machine.commit(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "figures": [asdict(figure) for figure in figures],
        }
        (args.out / f"{args.isa}.json").write_text(json.dumps(document, indent=1) + "\n")
        (args.out / f"{args.isa}.txt").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
