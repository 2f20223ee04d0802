"""Grammars are tried in a child process: what kills it or takes too long is one request's error, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import psutil
import pytest
from patience import PATIENCE_S

from octavo.client.fake import VOCAB_SIZE, write_byte_tokenizer
from octavo.errors import QueueFull, RequestError
from octavo.grammar import checker as checker_module
from octavo.grammar import trials as trials_module
from octavo.grammar.checker import GrammarChecker
from octavo.grammar.spec import grammar_of
from octavo.modelfiles.files import ModelFiles
from octavo.types import StructuredOutputs

GOOD = 'start: %json {"type": "object"}'
Test = Callable[[GrammarChecker], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "config.json").write_text("{}")
    write_byte_tokenizer(folder)
    return ModelFiles("fake", folder)


@contextlib.asynccontextmanager
async def checking(files: ModelFiles) -> AsyncIterator[GrammarChecker]:
    checker = GrammarChecker(files, VOCAB_SIZE)
    try:
        yield checker
    finally:
        await checker.close()
        assert not grammar_children()


def grammar_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


async def refused(checker: GrammarChecker, grammar: str) -> str:
    with pytest.raises(RequestError) as error:
        await checker.check(grammar)
    assert error.value.param == "grammar"
    assert "\n" not in error.value.message and "0x" not in error.value.message
    return error.value.message


async def stop(checker: GrammarChecker) -> None:
    child = psutil.Process(checker.pid or 0)
    child.suspend()
    while child.status() != psutil.STATUS_STOPPED:
        await asyncio.sleep(0.01)


def _chain(count: int, name: str = "r") -> str:
    return f"start: {name}0\n" + "".join(f"{name}{i}: {name}{i + 1}\n" for i in range(count)) + f'{name}{count}: "a"\n'


HOSTILE = {
    "parentheses": "start: " + "(" * 60_000 + '"a"' + ")" * 60_000,
    "schema": "start: %json " + '{"items":' * 10_000 + "{}" + "}" * 10_000,
    "rules": _chain(5_000),
    "terminals": _chain(5_000, "T"),
    "loop": "start: start",
    "unknown": "start: nothing",
    "syntax": "start: (((",
    "json": "start: %json {",
    "lexer": "start: T\nT: " + " & ".join(f"/(.*x{i}.*){{3}}/" for i in range(14)),
}


def test_hostile_grammars_fail_alone(files: ModelFiles) -> None:
    """T-DEEP, T-BADGRAM: each is one error, the next grammar finds a child, and the event loop keeps its pace."""

    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            slowest = 0.0

            async def pace() -> None:
                nonlocal slowest
                while True:
                    before = time.thread_time()
                    await asyncio.sleep(0.005)
                    slowest = max(slowest, time.thread_time() - before)

            ticking = asyncio.create_task(pace())
            for name, grammar in HOSTILE.items():
                message = await refused(checker, grammar)
                assert "cannot be used" in message, name
                await checker.check(f"start: {json.dumps(name)}")
            ticking.cancel()
            assert slowest < 1.0  # a child takes longer to start than that alone
            assert len(grammar_children()) == 1

    asyncio.run(test())


@pytest.mark.parametrize(
    "grammar", ["start: /(a+)+b/", "start: /(a*)*/", "start: /(a|aa)+$/", 'start: start "a" | "b"', "start: /(x+x+)+y/"]
)
def test_backtracking_has_no_price(files: ModelFiles, grammar: str) -> None:
    """T-REDOS: regexes are automata here."""

    async def test() -> None:
        async with checking(files) as checker:
            with contextlib.suppress(RequestError):
                await checker.check(grammar)
            before = psutil.Process(checker.pid or 0).cpu_times().children_user
            with contextlib.suppress(RequestError):
                await checker.check(grammar + "\n")
            assert psutil.Process(checker.pid or 0).cpu_times().children_user - before < 0.5

    asyncio.run(test())


def test_one_child_tries_a_grammar_once(files: ModelFiles) -> None:
    async def test() -> None:
        async with checking(files) as checker:
            assert checker.pid is None and not grammar_children()  # none before it is needed
            await asyncio.gather(*(checker.check(GOOD) for _ in range(200)))
            assert len(grammar_children()) == 1
            messages = {await refused(checker, "start: x") for _ in range(3)}
            assert len(messages) == 1 and "unknown name" in messages.pop()
            child = psutil.Process(checker.pid or 0)
            assert child.cmdline()[0] == "octavo-grammar"
            # Sockets of the server are not the child's.
            assert not child.net_connections("tcp")

    asyncio.run(test())


def test_a_child_that_is_killed_is_replaced(files: ModelFiles) -> None:
    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            first = checker.pid
            os.kill(first or 0, signal.SIGKILL)
            await checker.check('start: "b"')
            assert checker.pid != first
            await stop(checker)
            stuck = asyncio.create_task(checker.check('start: "c"'))
            await asyncio.sleep(0.05)
            os.kill(checker.pid or 0, signal.SIGKILL)
            await stuck  # tried again: it was not the grammar's fault

    asyncio.run(test())


def test_a_process_that_is_stuck_is_replaced(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            await stop(checker)
            monkeypatch.setattr(trials_module, "WALL_S", 0.3)
            stuck = asyncio.create_task(checker.check('start: "a"'))
            while checker.pid is not None:
                await asyncio.sleep(0.01)
            monkeypatch.setattr(trials_module, "WALL_S", 60)
            await stuck

    asyncio.run(test())


def slow_to_compile(name: str) -> str:
    """It doubles sixty times, and takes all the time that a trial has."""
    rules = "".join(f"r{i} ::= r{i + 1} r{i + 1}\n" for i in range(60))
    return grammar_of(StructuredOutputs(grammar=f'root ::= r0\n{rules}r60 ::= "{name}"'))


def test_a_second_key_waits_for_its_own_work_alone(files: ModelFiles) -> None:
    """T-FAIR: beside a key that sends a dozen grammars that take seconds each."""

    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            bombs = [asyncio.create_task(checker.check(slow_to_compile(f"n{i}"), "a")) for i in range(12)]
            await asyncio.sleep(0)
            assert checker.num_waiting == 12
            for i in range(3):
                await checker.check(f'start: "{i}"', "b")
                assert not any(bomb.done() for bomb in bombs)
            hard = grammar_of(StructuredOutputs(json=HARD))
            assert await checker.check(hard, "b")  # in the line of those that take long, too
            assert sum(bomb.done() for bomb in bombs) <= 3
            for bomb in bombs:
                bomb.cancel()
            await asyncio.gather(*bombs, return_exceptions=True)

    asyncio.run(test())


HARD = {
    "type": "object",
    "properties": {
        f"p{i}": {"anyOf": [{"type": "string"}, {"properties": {f"q{j}": {"type": "integer"} for j in range(20)}}]}
        for i in range(150)
    },
}


def test_one_key_has_so_many_waiting(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "MAX_WAITING", 3)
    monkeypatch.setattr(checker_module, "MAX_WAITING_BYTES", 2_000)

    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            mine = [asyncio.create_task(checker.check(f'start: "{i}"', "a")) for i in range(5)]
            large = [asyncio.create_task(checker.check(f'start: "{i}{"x" * 1_500}"', "c")) for i in range(2)]
            assert await checker.check('start: "mine"', "b") is False
            found = await asyncio.gather(*mine, *large, return_exceptions=True)
            assert [isinstance(each, QueueFull) for each in found] == [False] * 3 + [True] * 2 + [False, True]
            assert checker.num_waiting == 0

    asyncio.run(test())


def test_what_takes_too_much_memory_is_named(files: ModelFiles) -> None:
    async def test() -> None:
        async with checking(files) as checker:
            gbnf = 'root ::= (("\u4e2d"{100}){100}){100}'
            message = await refused(checker, grammar_of(StructuredOutputs(grammar=gbnf)))
            assert any(words in message for words in ("MiB of memory", "too much memory", "takes more than"))

    asyncio.run(test())


def test_many_wait_in_a_row_and_no_more(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker_module, "MAX_WAITING", 8)

    async def test() -> None:
        async with checking(files) as checker:
            results = await asyncio.gather(*(checker.check(f'start: "{i}"') for i in range(12)), return_exceptions=True)
            assert results[:8] == [False] * 8
            assert all(isinstance(result, QueueFull) for result in results[8:])
            await checker.check('start: "again"')

    asyncio.run(test())


def test_a_client_that_leaves_takes_nobody_along(files: ModelFiles) -> None:
    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            first = asyncio.create_task(checker.check('start: "a"'))
            second = asyncio.create_task(checker.check('start: "a"'))
            await asyncio.sleep(0)
            first.cancel()
            await second

    asyncio.run(test())


@pytest.mark.long
def test_what_is_remembered_is_bounded(files: ModelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """T-CACHE."""
    monkeypatch.setattr(checker_module, "REMEMBERED_BYTES", 10_000)

    async def test() -> None:
        async with checking(files) as checker:
            await checker.check(GOOD)
            child = psutil.Process(checker.pid or 0)
            rng = random.Random(1)
            sizes = []
            for i in range(160):
                schema = {"type": "object", "properties": {f"p{i}": {"enum": [i, "x" * rng.randint(1, 40)]}}}
                grammar = f"start: x{i}" if i % 8 else grammar_of(StructuredOutputs(json=schema))
                with contextlib.suppress(RequestError):
                    await checker.check(grammar)
                if i % 40 == 39:
                    sizes.append(child.memory_info().rss)
            assert checker.remembered_bytes <= 10_000
            assert sizes[-1] - sizes[0] < 16 << 20, sizes
            assert child.pid == checker.pid

    asyncio.run(test())


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the parent's death")
def test_the_child_does_not_outlive_its_server(files: ModelFiles) -> None:
    code = f"""
import asyncio
from pathlib import Path
from octavo.grammar.checker import GrammarChecker
from octavo.modelfiles.files import ModelFiles
async def main():
    checker = GrammarChecker(ModelFiles("fake", Path({str(files.path)!r})), {VOCAB_SIZE})
    await checker.check({GOOD!r})
    print(checker.pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        child = psutil.Process(int(server.stdout.readline()))
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()
    psutil.wait_procs([child], timeout=PATIENCE_S)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
