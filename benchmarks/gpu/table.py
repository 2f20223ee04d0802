"""The kernel check's result as Markdown: what figures are asked of, then every kernel, then what is missing."""

from __future__ import annotations

from typing import Any


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _row(case: dict[str, Any]) -> str:
    size = f"{case['rows']}" + (f" x {case['context']:,}" if case["context"] else "")
    state = "yes" if case["correct"] else f"**no** ({case['why'] or 'error ' + _number(case['error'], '.1e')})"
    if case.get("us") is None:
        times = ["-"] * 5
    else:
        times = [
            _number(case["us"], ",.1f") + ("" if case["cold"] else " (cached)"),
            _number(case["share"], ".0%") + f" of {case['bound']}",
            _number(case["eager_ratio"], ".2f"),
            _number(case["flashinfer_ratio"], ".2f"),
            case["goal"] or "",
        ]
    amounts = f"{case['nbytes'] / 1e6:,.2f} | {case['operations'] / 1e9:,.1f}"
    return f"| {case['what']} | {case['model']} | {size} | {amounts} | {state} | {' | '.join(times)} |"


HEAD = (
    "| what | model | rows (x context) | MB | GFLOP | right | µs | share | eager / ours | FlashInfer / ours | asked |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    lines = ["# Kernel check", "", f"{result['device']}, {result['date']}, commit {result['commit']}; {versions}.", ""]
    if result["mode"] == "interpret":
        lines += ["Triton's interpreter, tiny sizes: a test of the scripts. **Nothing was measured.**", ""]
    elif limits := result["limits"]:
        lines += [
            f"Copy on the device: {limits['copy_bytes_per_s'] / 1e12:.2f} TB/s read and written; bf16 product of "
            f"8,192³: {limits['matmul_operations_per_s'] / 1e12:.0f} TFLOP/s. Times are medians of graph replays over "
            'arguments that no cache holds (else "cached"); shares are of '
            "the bytes or operations that are needed at least.",
            "",
        ]
    lines += [f"Operation tests: {result['tests']['summary'] or 'did not end'}", ""]
    asked = [case for case in result["cases"] if case["goal"]]
    kernels = dict.fromkeys(case["kernel"] for case in result["cases"])
    for title, cases in (
        ("What figures are asked of", asked),
        *((kernel, [case for case in result["cases"] if case["kernel"] == kernel]) for kernel in kernels),
    ):
        named = title.startswith("What")
        rows = [_row({**case, "what": f"{case['kernel']} {case['what']}".strip()} if named else case) for case in cases]
        lines += [f"## {title}", "", HEAD, *rows, ""]
    if result["left_out"]:
        lines += ["## Left out: no time was left", "", *(f"- {name}" for name in result["left_out"]), ""]
    return "\n".join(lines)
