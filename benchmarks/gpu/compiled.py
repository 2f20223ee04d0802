"""Every kernel compiled for each class of GPU without one: registers, spills, shared memory, how wide it loads and
stores, which matrix instructions it has. Inspected code, no measurement of speed.

    python benchmarks/gpu/compiled.py            # all classes, into benchmarks/results/compiled/sm_*.{json,md}
    python benchmarks/gpu/compiled.py --target 80 --one --out FOLDER   # the first size of each kernel alone

What has not changed since the last results is taken over. What is compiled is what the operations launch: each case of
the kernel check, and some of f32 and of wide heads, is run with tensors that have shapes and no memory, and its
launches are recorded instead of made; of those of one kind (`Launch.kind`) the first. Needs the compiler that comes
with Triton, and no GPU.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import attend  # noqa: E402
import products  # noqa: E402
import torch  # noqa: E402
import triton  # noqa: E402
from case import MODELS, Case  # noqa: E402
from kernels import all_cases  # noqa: E402
from sizes import WIDE_HEADS  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from octavo.kernels.triton import launch  # noqa: E402
from octavo.kernels.triton.shapes import CLASSES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "compiled"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1",
    torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """One kernel as Triton would compile it for these arguments."""

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: frozenset[str]
    """Arguments that divide by 16."""
    options: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kernel.fn.__module__.rsplit('.', 1)[-1]}.{self.kernel.fn.__name__.strip('_')}"

    @property
    def kind(self) -> tuple[object, ...]:
        """What registers and shared memory depend on most: the type of the first input, whether fp8 is among the
        others, the size of a head and the rows of a tile."""
        first, *others = self.signature.values()
        tile = [self.constants.get(name) for name in ("DIM", "SIZE", "M")]
        return self.name, first, "*fp8e4nv" in others, *tile

    @property
    def key(self) -> str:
        """Of all that the compiled code depends on, but the compiler."""
        parts = (
            sources(self.kernel),
            self.signature,
            sorted(self.constants.items()),
            sorted(self.aligned),
            self.options,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def sources(kernel: Any, seen: frozenset[str] = frozenset()) -> str:
    """The text of a kernel and of all kernels it calls."""
    names = [name for name in kernel.fn.__code__.co_names if isinstance(kernel.fn.__globals__.get(name), JITFunction)]
    inner = [sources(kernel.fn.__globals__[name], seen | {name}) for name in names if name not in seen]
    return inspect.getsource(kernel.fn) + "".join(inner)


def recorded(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Launch:
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: options.pop(name) for name in kernel.arg_names if name in options}
    signature, constants, aligned = {}, {}, set()
    for parameter in kernel.params:
        name, value = parameter.name, values[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            if value.storage_offset() * value.element_size() % 16 == 0:
                aligned.add(name)
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i1" if isinstance(value, bool) else "i32" if abs(value) < 1 << 31 else "i64"
            if special and value % 16 == 0:
                aligned.add(name)
    return Launch(kernel, signature, constants, frozenset(aligned), {k: int(v) for k, v in options.items()})


def beside() -> Iterator[Case]:
    """Cases that are not in the check: f32, and heads of 256."""
    bf16, f32, fp8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
    for new in (1, 64):
        for model in (*MODELS[:2], WIDE_HEADS):
            yield attend.launched(model, new, f32, f32)
        yield attend.launched(WIDE_HEADS, new, bf16, bf16)
        yield attend.launched(WIDE_HEADS, new, bf16, fp8)
        yield attend.launched(MODELS[1], new, bf16, fp8)
    for rows in (1, 16, 256):
        for form in ("W8A16", "W4A16"):
            yield products.launched(form, rows, f32)


def launches() -> Iterator[tuple[Any, Launch]]:
    """(case, launch) of all cases."""
    found: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(recorded(kernel, args, options))

    cases = [*all_cases(tiny=False), *beside()]  # before: where kernels are interpreted they would be of f16
    launch.INTERPRETED = True  # tensors without memory are let through
    run, JITFunction.run = JITFunction.run, record
    try:
        for case in cases:
            found.clear()
            case.make(torch.device("meta")).ours()
            yield from ((case, each) for each in found)
    finally:
        JITFunction.run = run


def _tool(name: str, *args: str) -> str:
    ran = subprocess.run([str(TOOLS / name), *args], capture_output=True, text=True, check=True)
    return ran.stdout + ran.stderr


def inspected(each: Launch, target: int) -> dict[str, Any]:
    """Compiles it and reads the machine code."""
    names = list(each.signature)
    source = ASTSource(
        each.kernel, each.signature, constexprs={(names.index(name),): value for name, value in each.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in each.aligned},
    )  # fmt: skip
    compiled = triton.compile(source, target=GPUTarget("cuda", target, 32), options=each.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "k.cubin", Path(folder) / "k.ptx"
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        code = _tool("cuobjdump", "-sass", str(cubin))
        found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
        assert found, usage
        spilled = _spilled(ptx, target) if int(found[2]) else 0
    return {
        "registers": int(found[1]), "stack": int(found[2]), "spilled": spilled,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", 0) or 0, "shared": compiled.metadata.shared,
        "loads": widths(code, r"LDG\.E|LDGSTS\.E"),
        "stores": widths(code, r"STG\.E"),
        "hgmma": len(re.findall(r"\bHGMMA\.", code)), "hmma": len(re.findall(r"\bHMMA\.", code)),
        "utcmma": len(re.findall(r"\bUTC\w*MMA", code)),
    }  # fmt: skip


def _spilled(ptx: Path, target: int) -> int:
    """Bytes that a thread stores and loads."""
    assembler = "ptxas-blackwell" if target >= 100 else "ptxas"
    name = f"sm_{target}{'a' if target >= 90 else ''}"
    said = _tool(assembler, "-v", "--gpu-name", name, "-o", "/dev/null", str(ptx))
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert spills, said
    return int(spills[1]) + int(spills[2])


def widths(code: str, instruction: str) -> dict[str, int]:
    """How many of these instructions move 16, 8, 4 and fewer bytes a thread."""
    found = {"16": 0, "8": 0, "4": 0, "less": 0}
    for suffix in re.findall(rf"\b(?:{instruction})((?:\.\w+)*)", code):
        parts = suffix.split(".")
        width = "16" if "128" in parts else "8" if "64" in parts else "4"
        found["less" if {"U8", "S8", "U16", "S16"} & set(parts) else width] += 1
    return found


def entries(target: int, one: bool, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each kind of launch; `one`: for the first of each kernel. `known`: results by key, taken over."""
    launch.ASSUMED = target
    found: dict[object, dict[str, Any]] = {}
    for case, each in launches():
        if target < 89 and "*fp8e4nv" in each.signature.values():
            continue  # blocks of fp8 are refused there
        kind: object = each.name if one else each.kind
        if kind in found:
            found[kind]["others"] += 1
            continue
        facts = known.get(each.key) or inspected(each, target)
        print(f"sm_{target} {each.name}: {case.name}", file=sys.stderr, flush=True)
        sizes = {name: value for name, value in each.constants.items() if isinstance(value, (int, bool))}
        found[kind] = {
            **{name: facts[name] for name in FACTS}, "kernel": each.name, "key": each.key, "case": case.name,
            "others": 0, "constants": sizes, "options": each.options,
        }  # fmt: skip
    return sorted(found.values(), key=lambda entry: (entry["kernel"], entry["case"]))


FACTS = ("registers", "stack", "spilled", "shared", "tensor_memory", "loads", "stores", "hmma", "hgmma", "utcmma")


def markdown(result: dict[str, Any]) -> str:
    target = result["target"]
    each = "" if result["one"] else " with such a type, head and rows of a tile"
    lines = [
        f"# Compiled code of the kernels for {target}",
        "",
        f"Written by `benchmarks/gpu/compiled.py` with Triton {result['triton']} on a machine without a GPU. **This is "
        "inspected code: nothing here was run or timed.** A program may take "
        f"{result['shared_kib']} KiB of shared memory and 255 registers a thread. Loads and stores are instructions in "
        "the code by bytes a thread moves: 16 / 8 / 4 / less; copies into shared memory count as loads. Matrix "
        "instructions: HMMA / HGMMA (Hopper's) / UTCMMA (Blackwell's). Each row is the first launch of a kernel"
        f"{each}; `and` is how many others have them.",
        "",
        "| kernel | first size | and | tile | warps | stages | registers | spilled bytes | shared KiB | loads | stores "
        "| matrix |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["entries"]:
        options, constants = entry["options"], entry["constants"]
        tile = " x ".join(str(constants[name]) for name in ("SIZE", "M", "N", "K") if name in constants)
        loads, stores = (" / ".join(map(str, entry[kind].values())) for kind in ("loads", "stores"))
        lines.append(
            f"| {entry['kernel']} | {entry['case']} | {entry['others']} | {tile} | {options.get('num_warps', 4)} | "
            f"{options.get('num_stages', 3)} | {entry['registers']} | {entry['spilled']} | "
            f"{entry['shared'] / 1024:.1f} | {loads} | {stores} | {entry['hmma']} / {entry['hgmma']} / "
            f"{entry['utcmma']} |"
        )
    return "\n".join(lines) + "\n"


def written(target: int, one: bool, out: Path) -> None:
    """sm_`target`.json, a line for each entry, and sm_`target`.md."""
    old = RESULTS / f"sm_{target}.json"
    known = {entry["key"]: entry for entry in json.loads(old.read_text())["entries"]} if old.exists() else {}
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "triton": triton.__version__,
        "target": f"sm_{target}", "shared_kib": CLASSES[target].shared, "measured": False, "one": one,
        "entries": entries(target, one, known),
    }  # fmt: skip
    save(result, out)


def save(result: dict[str, Any], out: Path) -> None:
    name, head = result["target"], json.dumps({**result, "entries": []})
    body = ",\n".join(json.dumps(entry) for entry in result["entries"])
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(f"{head[:-2]}\n{body}\n]}}\n")
    (out / f"{name}.md").write_text(markdown(result))


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every kernel for each class of GPU and read its code.")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--target", type=int, action="append", choices=list(CLASSES))
    parser.add_argument("--one", action="store_true", help="one launch of each kernel")
    args = parser.parse_args()
    for target in args.target or CLASSES:
        written(target, args.one, args.out)


if __name__ == "__main__":
    main()
