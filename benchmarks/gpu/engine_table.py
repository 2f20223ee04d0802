"""The engine check's result as Markdown: the figures that are asked, all others, Transformers beside them, and what is
missing."""

from __future__ import annotations

from typing import Any

from engine_work import goal

HEAD = (
    "| work | model | Octavo | limit | share | asked | reached | Transformers | Octavo / Transformers |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def judged(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with its share of the limit, what is asked of it and whether that is met."""
    found = []
    for figure in figures:
        value, limit = figure["value"], figure["limit"]
        share = value / limit if value is not None and limit else None
        asked = goal(figure["work"], figure["model"]) if figure["engine"] == "octavo" else None
        more = {"share": share, "asked": asked and asked.words, "met": asked and asked.met(value, share)}
        found.append({**figure, **more})
    return found


def _value(figure: dict[str, Any] | None, name: str = "value") -> str:
    if figure is None or figure[name] is None:
        return "-"
    number = figure[name]
    if figure["unit"].startswith("of "):
        return f"{number:.1%} {figure['unit']}"
    return f"{number:,.0f} {figure['unit']}" if number >= 100 else f"{number:,.2f} {figure['unit']}"


def _row(figure: dict[str, Any], peer: dict[str, Any] | None) -> str:
    share = "-" if figure["share"] is None else f"{figure['share']:.0%}"
    limit = _value(figure, "limit") + (f" ({figure['bound']})" if figure["limit"] else "")
    met = {None: "", True: "yes", False: "**no**"}[figure["met"]]
    both = figure["value"] is not None and peer is not None and peer["value"]
    ratio = f"{figure['value'] / peer['value']:.2f}" if both and peer else "-"
    cells = [figure["work"], figure["model"], _value(figure), limit, share, figure["asked"] or "", met]
    return "| " + " | ".join([*cells, _value(peer), ratio]) + " |"


def markdown(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    about = f"{result['device']}, {result.get('date', '')}, commit {result.get('commit', '')}; {versions}."
    lines = ["# Engine check", "", about, ""]
    if result["mode"] == "dry":
        lines += ["Tiny models on the CPU: a test of the scripts. **Nothing was measured.**", ""]
    if rates := result["rates"]:
        lines += [
            f"Copy on the device: {rates['copy'] / 1e12:.2f} TB/s read and written; bf16 product of 8,192³: "
            f"{rates['matmul'] / 1e12:.0f} TFLOP/s. Limits are the bytes of weights and KV pages over the one, or the "
            "operations over the other. Weights are random, of true shapes, in bf16.",
            "",
        ]
    if tests := result["tests"]:
        lines += [f"Tests of the engine: {tests['summary'] or 'did not end'}", ""]
    ours = [figure for figure in result["figures"] if figure["engine"] == "octavo"]
    peers = {(f["work"], f["model"]): f for f in result["figures"] if f["engine"] != "octavo"}
    for title, figures in (
        ("What figures are asked of", [figure for figure in ours if figure["asked"]]),
        ("Beside them", [figure for figure in ours if not figure["asked"]]),
    ):
        rows = [_row(figure, peers.get((figure["work"], figure["model"]))) for figure in figures]
        lines += [f"## {title}", "", HEAD, *rows, ""]
    alone = [peer for key, peer in peers.items() if key not in {(f["work"], f["model"]) for f in ours}]
    if alone:
        lines += ["## Transformers alone", "", *(f"- {f['work']}, {f['model']}: {_value(f)}" for f in alone), ""]
    for title, items in (
        ("Failed", [f"{line.get('part', '')}: {line['failed']}" for line in result["failed"]]),
        ("Left out: no time was left", result["left_out"]),
    ):
        if items:
            lines += [f"## {title}", "", *(f"- {item}" for item in items), ""]
    return "\n".join(lines)
