"""step_profile.py's JSON as a Markdown table, for docs/performance.md. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(document: Mapping[str, Any]) -> str:
    """Operations down, work across: microseconds of a step, and the share of the limit where there is one."""
    steps: Mapping[str, Any] = document["steps"]
    names = list(dict.fromkeys(line["operation"] for step in steps.values() for line in step["operations"]))
    lines = [f"| microseconds of a step (share of its limit) | {' | '.join(steps)} |", "|---|" + "---:|" * len(steps)]
    for name in names:
        cells = [
            _cell(next((each for each in s["operations"] if each["operation"] == name), None)) for s in steps.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    rest = [f"{max(0.0, step['us'] - _sum(step)):,.0f}" for step in steps.values()]
    lines.append(f"| between and around | {' | '.join(rest)} |")
    whole = [f"**{step['us']:,.0f}**" for step in steps.values()]
    lines.append(f"| **the step** | {' | '.join(whole)} |")
    limits, machine = document["limits"], document["machine"]
    rates = f"int8 {limits['int8_gops']:,.0f} and bf16 {limits['bf16_gops']:,.0f} GOP/s"
    about = (
        f"{document['model']} on {machine['cpu']}, {machine['cores']} cores; limits measured in the same run: memory"
        f" {limits['read_gb_s']:.0f} GB/s, {rates}. Commit {document['commit']}, {document['date'][:10]}."
    )
    return "\n".join(lines) + f"\n\n{about}\n"


def _sum(step: Mapping[str, Any]) -> float:
    return float(sum(line["us"] for line in step["operations"]))


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "-"
    share = "" if line["share"] is None else f" ({line['share']:.0%})"
    return f"{line['us']:,.0f}{share}"
