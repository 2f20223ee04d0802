"""Every kernel compiled for an H200 (sm_90) without one: registers, spills, shared memory, how wide it loads and
stores, which matrix instructions it has. Inspected code, no measurement of speed.

    python benchmarks/gpu/compiled.py                      # all of it into benchmarks/results/h200/compiled.{json,md}
    python benchmarks/gpu/compiled.py --one --out FOLDER   # one size of each kernel; what has not changed is taken over

What is compiled is what the operations launch: each case of the kernel check is run with tensors that have shapes and
no memory, and its launches are recorded instead of made. Needs the compiler that comes with Triton, and no GPU.
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

import torch  # noqa: E402
import triton  # noqa: E402
from kernels import all_cases  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import JITFunction  # noqa: E402

from octavo.kernels.triton import launch  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "h200" / "compiled.json"
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TARGET = GPUTarget("cuda", 90, 32)
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


def launches() -> Iterator[tuple[Any, Launch]]:
    """(case, launch) of all cases."""
    found: list[Launch] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found.append(recorded(kernel, args, options))

    cases = all_cases(tiny=False)  # before: where kernels are interpreted they would be of f16
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


def inspected(each: Launch) -> dict[str, Any]:
    """Compiles it and reads the machine code."""
    names = list(each.signature)
    source = ASTSource(
        each.kernel, each.signature, constexprs={(names.index(name),): value for name, value in each.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in each.aligned},
    )  # fmt: skip
    compiled = triton.compile(source, target=TARGET, options=each.options)
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder) / "k.cubin", Path(folder) / "k.ptx"
        cubin.write_bytes(compiled.asm["cubin"])
        ptx.write_text(compiled.asm["ptx"])
        said = _tool("ptxas", "-v", "--gpu-name", "sm_90a", "-o", "/dev/null", str(ptx))
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        code = _tool("cuobjdump", "-sass", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert found and spills, usage + said
    return {
        "registers": int(found[1]), "stack": int(found[2]), "spilled": int(spills[1]) + int(spills[2]),
        "shared": compiled.metadata.shared, "loads": widths(code, r"LDG\.E|LDGSTS\.E"),
        "stores": widths(code, r"STG\.E"),
        "hgmma": len(re.findall(r"\bHGMMA\.", code)), "hmma": len(re.findall(r"\bHMMA\.", code)),
        "qgmma": len(re.findall(r"\bQGMMA\.", code)),
        "bulk": len(re.findall(r"\bUTMALDG|\bUBLKCP", code)),
    }  # fmt: skip


def widths(code: str, instruction: str) -> dict[str, int]:
    """How many of these instructions move 16, 8, 4 and fewer bytes a thread."""
    found = {"16": 0, "8": 0, "4": 0, "less": 0}
    for suffix in re.findall(rf"\b(?:{instruction})((?:\.\w+)*)", code):
        parts = suffix.split(".")
        width = "16" if "128" in parts else "8" if "64" in parts else "4"
        found["less" if {"U8", "S8", "U16", "S16"} & set(parts) else width] += 1
    return found


def entries(one: bool, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One for each different launch; `one`: for the first of each kernel. `known`: results by key, taken over."""
    found: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for case, each in launches():
        if each.key in found:
            if case.name not in found[each.key]["cases"]:
                found[each.key]["cases"].append(case.name)
            continue
        if one and each.name in names:
            continue
        names.add(each.name)
        facts = known.get(each.key) or inspected(each)
        print(f"{each.name}: {case.name}", file=sys.stderr, flush=True)
        sizes = {name: value for name, value in each.constants.items() if isinstance(value, (int, bool))}
        found[each.key] = {
            **{name: facts[name] for name in FACTS}, "kernel": each.name, "key": each.key, "cases": [case.name],
            "constants": sizes, "options": each.options,
        }  # fmt: skip
    return sorted(found.values(), key=lambda entry: (entry["kernel"], entry["cases"][0]))


FACTS = ("registers", "stack", "spilled", "shared", "loads", "stores", "hgmma", "qgmma", "hmma", "bulk")


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Compiled code of the kernels for an H200 (sm_90a)",
        "",
        f"Written by `benchmarks/gpu/compiled.py` with Triton {result['triton']} on a machine without a GPU. **This is "
        "inspected code: nothing here was run or timed.** Loads and stores are instructions in the code by bytes a "
        "thread moves: 16 / 8 / 4 / less; copies into shared memory count as loads. Each row is one launch and the "
        "first size that makes it; the others stand in compiled.json.",
        "",
        "| kernel | first size | and | warps | stages | registers | spilled bytes | shared KiB | loads | stores "
        "| HGMMA | QGMMA | HMMA |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["entries"]:
        options, (first, *others) = entry["options"], entry["cases"]
        loads, stores = (" / ".join(str(entry[kind][width]) for width in entry[kind]) for kind in ("loads", "stores"))
        lines.append(
            f"| {entry['kernel']} | {first} | {len(others)} | {options.get('num_warps', 4)} | "
            f"{options.get('num_stages', 3)} | {entry['registers']} | {entry['spilled']} | "
            f"{entry['shared'] / 1024:.1f} | {loads} | {stores} | {entry['hgmma']} | {entry['qgmma']} | "
            f"{entry['hmma']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile every kernel for sm_90 and read its code.")
    parser.add_argument("--out", type=Path, default=RESULTS.parent)
    parser.add_argument("--one", action="store_true", help="one launch of each kernel")
    args = parser.parse_args()
    known = {entry["key"]: entry for entry in json.loads(RESULTS.read_text())["entries"]} if RESULTS.exists() else {}
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "triton": triton.__version__,
        "target": "sm_90a", "measured": False, "entries": entries(args.one, known),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compiled.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "compiled.md").write_text(markdown(result))


if __name__ == "__main__":
    main()
