"""Log lines: what a person reads, what a machine parses, and that nothing in them can pose as a line of its own."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import log
from octavo.modelfiles.hub.progress import console_progress, running

HOSTILE = 'a\nb\r\nc\x1b[31m\x00\u2028d\x85" } { \ud800'


@pytest.fixture
def out(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """What `log.setup` with the format named by the test's parameter writes."""
    root, octavo = logging.getLogger(), logging.getLogger("octavo")
    before = (root.handlers[:], root.level, octavo.level, sys.excepthook)
    stream = io.StringIO()
    log.setup("server", "debug", getattr(request, "param", "text"), stream)
    yield stream
    root.handlers[:], octavo.level = before[0], before[2]
    root.setLevel(before[1])
    octavo.setLevel(before[2])
    sys.excepthook = before[3]
    logging.captureWarnings(False)


logger = logging.getLogger("octavo.test")


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    lines = stream.getvalue().splitlines()
    assert stream.getvalue() == "".join(line + "\n" for line in lines), "a line is cut in two"
    return [json.loads(line) for line in lines]


def test_text_is_one_line_with_time_level_role_message_and_id(out: io.StringIO) -> None:
    logger.warning("%d requests", 3)
    logger.info("one of them", extra=log.about("req-1", tokens=5))
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d WARNING server: 3 requests\n\d\d:\d\d:\d\d INFO    server: one of them \[req-1\]\n",
        out.getvalue(),
    )


@pytest.mark.parametrize("out", ["json"], indirect=True)
def test_json_is_one_object_with_the_documented_keys(out: io.StringIO) -> None:
    logger.info("%d requests", 3, extra=log.about("req-1", tokens=5, message="not this one"))
    (line,) = objects(out)
    moment = datetime.fromisoformat(line.pop("timestamp").replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(seconds=10)
    assert isinstance(line.pop("pid"), int)
    assert line == {
        "level": "info", "logger": "octavo.test", "process": "server", "message": "3 requests",
        "request_id": "req-1", "tokens": 5,
    }  # fmt: skip


@pytest.mark.parametrize("out", ["json"], indirect=True)
def test_json_holds_an_exception_in_a_field(out: io.StringIO) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed with %s", HOSTILE)
    (line,) = objects(out)
    assert line["level"] == "error" and line["message"] == f"failed with {HOSTILE}"
    assert line["exception"].startswith("Traceback") and "ValueError: a\nb" in line["exception"]


def test_a_traceback_in_text_is_set_in(out: io.StringIO) -> None:
    try:
        raise ValueError("first\n12:00:00 INFO    server: forged\x1b[2J")
    except ValueError:
        logger.exception("failed")
    first, *rest = out.getvalue().splitlines()
    assert first.endswith("ERROR   server: failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in out.getvalue() and rest[-1].endswith("forged\\x1b[2J")


@pytest.mark.parametrize("out", ["text", "json"], indirect=True)
def test_stacks_stand_beneath_the_line_or_in_a_field(out: io.StringIO) -> None:
    logger.critical("a hang", extra=log.about(stacks="Thread 1:\n  File x\n"))
    if out.getvalue().startswith("{"):
        assert objects(out)[0]["stacks"] == "Thread 1:\n  File x\n"
    else:
        assert out.getvalue().splitlines()[1:] == ["    Thread 1:", "      File x"]


@given(message=st.text(), request_id=st.text(), value=st.text())
def test_nothing_forges_a_line(message: str, request_id: str, value: str) -> None:
    record = logging.LogRecord("octavo", logging.INFO, __file__, 1, "%s", (message,), None)
    record.__dict__.update(log.about(request_id, value=value))
    text = log.TextFormatter("server").format(record)
    assert len(text.splitlines()) == 1 and not re.search(r"[\x00-\x1f\x7f-\x9f]", text)
    line = log.JsonFormatter("server").format(record)
    assert line.isascii() and len(line.splitlines()) == 1
    parsed = json.loads(line)
    assert parsed["message"] == message and parsed["value"] == value
    assert parsed.get("request_id", "") == request_id


@pytest.mark.parametrize("out", ["text", "json"], indirect=True)
def test_a_record_names_the_request_being_handled(out: io.StringIO) -> None:
    token = log.REQUEST_ID.set("current")
    try:
        logger.info("inside")
        logger.info("of another", extra=log.about("other"))
    finally:
        log.REQUEST_ID.reset(token)
    logger.info("outside")
    inside, other, outside = out.getvalue().splitlines()
    assert "current" in inside and "other" in other and "current" not in other + outside


@pytest.mark.parametrize("out", ["text", "json"], indirect=True)
def test_the_last_words_have_the_form_of_the_other_lines(out: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    log.last_words("port 80 is in use")
    if out.getvalue():
        assert objects(out)[0]["message"] == "port 80 is in use" and objects(out)[0]["level"] == "critical"
    else:
        assert capsys.readouterr().err == "octavo: error: port 80 is in use\n"


def test_with_json_even_warnings_and_what_nobody_caught_are_objects() -> None:
    code = (
        "import logging, threading, warnings; from octavo import log; log.setup('engine', form='json');"
        "warnings.warn('mind\\nthe gap'); logging.getLogger('foreign').warning('from a library');"
        "t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join(); raise RuntimeError('end')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    lines = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "foreign", "octavo", "octavo"]
    assert "mind" in lines[0]["message"] and "ZeroDivisionError" in lines[2]["exception"]
    assert lines[3]["message"] == "uncaught: RuntimeError" and "RuntimeError: end" in lines[3]["exception"]
    assert {line["process"] for line in lines} == {"engine"}


@pytest.mark.parametrize("out", ["json"], indirect=True)
def test_with_json_a_download_tells_its_progress_in_the_log(out: io.StringIO) -> None:
    progress = console_progress(as_log=True)
    with running(progress, "model.gguf", 5_000_000):
        progress.advance(5_000_000)
    first, last = objects(out)
    assert first["message"] == "model.gguf: fetching 5.0 MB" and last["message"].startswith("model.gguf: 5.0 MB in")
