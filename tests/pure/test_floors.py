"""What counts the inside of octavo/server counts right: on a small server whose numbers one can see."""

from __future__ import annotations

from tools import floors

SMALL = floors.Server(
    {
        "app": "from octavo.server.routes import ENDPOINTS\nimport octavo.server.core.errors\n",
        "routes": "from octavo.server.faces.openai import chat\n",
        "faces.openai": "",
        "faces.openai.chat": "def f():\n    from octavo.server.http.sse import stream\n",
        "http.sse": "from octavo.server.core.errors import clean\nfrom octavo.errors import ApiError\n",
        "core.errors": "from octavo.errors import ApiError\n",
        "core.odd": "from octavo.server.faces.openai import chat\n",
    }
)


def test_a_chain_is_counted_from_its_top() -> None:
    assert SMALL.longest_chain == ["app", "routes", "faces.openai.chat", "http.sse", "core.errors"]


def test_arrows_and_lines() -> None:
    assert SMALL.upward == [("core.odd", "faces.openai.chat")]
    assert [SMALL.lines(wing) for wing in floors.WINGS] == [2, 2, 2, 3] and SMALL.lines() == 9
    assert SMALL.most_in_a_folder == 2 and len(SMALL.imports) == 6


def test_the_files_before_have_a_wing() -> None:
    flat = floors.Server({"errors": "x = 1", "openai.chat": "from octavo.server.errors import x", "process": ""})
    assert [flat.wing(name) for name in flat.sources] == ["core", "faces", "top"] and not flat.upward


def test_the_page_has_the_table() -> None:
    page = floors.PAGE.read_text()
    start, end = (page.index(mark) for mark in floors.MARKS)
    shown = page[start:end].splitlines()[1:]
    made = floors.table(SMALL, SMALL).splitlines()
    assert [row.split("|")[1] for row in shown if row] == [row.split("|")[1] for row in made]
