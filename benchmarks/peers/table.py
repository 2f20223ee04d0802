"""The comparison as Markdown, made from compare.py's JSON alone; and its place in the README. Standard library only."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers.work import WORK

BEGIN, END = "<!-- from here: written by a script in benchmarks/ -->", "<!-- to here -->"

Document = Mapping[str, Any]
"""model, files (weights → name, megabytes), machine, versions, commit, date, rounds, work (names of WORK), peers (key,
name, package, weights), failures (key → text), runs: {round, peer, figures, octavo}, the last
two by name of work, and load_s."""


def markdown(document: Document) -> str:
    """One table per form of the weights, and what a reader must know to judge them."""
    tables = [_table(document, weights) for weights in document["files"]]
    return "\n\n".join([*filter(None, tables), _about(document)]) + "\n"


def put(text: str, block: str) -> str:
    """`text` with what stands between the two marks replaced. Raises ValueError when they are not there."""
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise ValueError(f"there is no {BEGIN} … {END}")
    return f"{head}{BEGIN}\n{block}{END}{tail}"


def current(text: str) -> str | None:
    """What stands between the marks; None without marks."""
    _, found, rest = text.partition(BEGIN)
    block, closed, _ = rest.partition(END)
    return block.removeprefix("\n") if found and closed else None


def medians(runs: Sequence[Mapping[str, Any]], side: str, name: str) -> float | None:
    values = [run[side][name] for run in runs if name in run[side]]
    return statistics.median(values) if values else None


def ratio(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The median over the rounds of Octavo's rate divided by the peer's just before it."""
    values = [
        run["octavo"][name] / run["figures"][name] for run in runs if name in run["octavo"] and name in run["figures"]
    ]
    return statistics.median(values) if values else None


def _table(document: Document, weights: str) -> str:
    peers = [peer for peer in document["peers"] if peer["weights"] == weights]
    runs = {peer["key"]: [run for run in document["runs"] if run["peer"] == peer["key"]] for peer in peers}
    beside = [run for key in runs for run in runs[key]]
    if not beside:
        return ""
    file, work = document["files"][weights], document["work"]
    titles = [WORK[name].title for name in work]
    lines = [f"| {file['name']}, {file['megabytes']} MB | {' | '.join(titles)} | start, s |"]
    lines.append("|---|" + "---|" * (len(work) + 1))
    own = [_number(medians(beside, "octavo", name)) for name in work]
    lines.append(f"| **Octavo** | {' | '.join(f'**{each}**' for each in own)} | {_seconds(beside, 'octavo')} |")
    for peer in peers:
        cells = [_cell(runs[peer["key"]], name) for name in work]
        lines.append(f"| {_title(document, peer)} | {' | '.join(cells)} | {_seconds(runs[peer['key']], 'figures')} |")
    return "\n".join(lines)


def _title(document: Document, peer: Mapping[str, Any]) -> str:
    version = document["versions"].get(peer["key"], {}).get(peer["package"])
    return f"{peer['name']} ({peer['package']} {version})" if version else str(peer["name"])


def _cell(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    found, times = medians(runs, "figures", name), ratio(runs, name)
    return _number(found) if times is None else f"{_number(found)} ({times:.2f}x)"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _seconds(runs: Sequence[Mapping[str, Any]], side: str) -> str:
    value = medians(runs, side, "load_s")
    return "-" if value is None else f"{value:.1f}"


def _about(document: Document) -> str:
    machine = document["machine"]
    bandwidth = machine.get("read_gb_s")
    memory = f", memory read at {bandwidth:.0f} GB/s" if bandwidth else ""
    lines = [
        "Tokens a second: of the prompt until its first answered token (prefill), else of the answers over the whole"
        " time, prompts included. In brackets: how many times as fast Octavo was in the run right after, the median of"
        f" {document['rounds']}. Random token ids, greedy, no prefix cache,"
        f" {machine['cores']} threads."
        " Start: from starting Python until the model is ready.",
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['isa'])}{memory};"
        f" commit {document['commit']}, {document['date'][:10]}.",
    ]
    lines += [f"{key} did not run: {text.splitlines()[-1]}" for key, text in document["failures"].items()]
    return "\n\n".join(lines)


def write(document: Document, folder: Path, stem: str) -> Path:
    """→ the Markdown file beside the JSON file that compare.py writes."""
    path = folder / f"{stem}.md"
    path.write_text(markdown(document))
    return path
