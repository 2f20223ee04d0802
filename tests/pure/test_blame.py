"""Engines that break, one after the other: the request that breaks them is found, all others go on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine import inflight
from octavo.engine.blame import MOST_AGE, MOST_CRASHES, MOST_KILLS, Blame, identity
from octavo.engine.inflight import InFlight, Past, read

Sequence = tuple[str, int]


class _Engines:
    """Engines at one endpoint, and a client that gives each of them all that has not ended: its requests' sequences,
    of so many tokens each. A request of `poison` breaks every engine that computes more than so many of its tokens."""

    def __init__(self, folder: Path, poison: dict[str, int] | None = None) -> None:
        self.path = str(folder / "inflight")
        self.poison = poison or {}
        self.left: dict[Sequence, int] = {}
        self.done: dict[Sequence, int] = {}
        self.refused: set[str] = set()
        self.crashes = 0
        self.blame = Blame.inherit(self.path, crashed=False)
        self.running: set[Sequence] = set()
        self.heard: set[Sequence] = set()

    def add(self, key: str, *tokens: int) -> None:
        for index, count in enumerate(tokens):
            self.left[key, index] = count
            self.done[key, index] = 0
        self._place()

    def leave(self, key: str) -> None:
        for sequence in [s for s in self.left if s[0] == key]:
            self._end(sequence)
        self._place()

    def die(self, *, crashed: bool) -> None:
        """Without a word, and the next one begins."""
        self.crashes += crashed
        self.blame = Blame.inherit(self.path, crashed=crashed)
        self.running, self.heard = set(), set()
        for key in {key for key, _ in self.left if self.blame.is_guilty(identity(key))}:
            self.refused.add(key)
            self.left = {s: count for s, count in self.left.items() if s[0] != key}
        self._place()

    def step(self) -> None:
        """A token of everything that runs."""
        if any(self.done[s] >= self.poison.get(s[0], 1000) for s in self.running):
            self.die(crashed=True)
            return
        for sequence in sorted(self.running):
            self.done[sequence] += 1
            self.left[sequence] -= 1
            if sequence not in self.heard:
                self.heard.add(sequence)
                self.blame.heard(identity(sequence[0]), sequence)
            if self.left[sequence] == 0:
                self._end(sequence)
        self._place()

    def _end(self, sequence: Sequence) -> None:
        del self.left[sequence]
        self.running.discard(sequence)
        self.blame.leave(identity(sequence[0]), sequence)

    def _place(self) -> None:
        for sequence in self.left:
            digest = identity(sequence[0])
            if sequence not in self.running and self.blame.may_run(digest):
                self.blame.enter(digest, sequence)
                self.running.add(sequence)


def test_a_request_alone_in_flight_at_two_crashes_is_refused(tmp_path: Path) -> None:
    engines = _Engines(tmp_path)
    engines.add("old", 50)
    engines.step()
    engines.die(crashed=True)
    engines.add("new", 5)
    engines.die(crashed=True)
    assert engines.refused == {"old"} and {key for key, _ in engines.running} == {"new"}


def test_engines_killed_from_outside_accuse_nobody(tmp_path: Path) -> None:
    engines = _Engines(tmp_path)
    engines.add("a", 3 * MOST_KILLS)
    engines.add("b", 4, 3 * MOST_KILLS)
    for kill in range(2 * MOST_KILLS):
        if kill % 2:
            engines.step()
        engines.die(crashed=False)
    assert not engines.refused and engines.running == {("a", 0), ("b", 1)}


def test_who_only_ever_meets_killed_engines_is_refused_in_the_end(tmp_path: Path) -> None:
    engines = _Engines(tmp_path)
    engines.add("a", 9)
    for _ in range(MOST_KILLS):
        assert not engines.refused
        engines.die(crashed=False)
    assert engines.refused == {"a"}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_trials_find_the_requests_that_break_the_engine(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """What breaks the engine each time it is computed is refused, all others end complete. Where several do, at
    different tokens, one that meets them all may be taken for one of them; still all ends, soon."""
    rng = random.Random(seed)
    keys = [f"request {n}" for n in range(rng.randint(2, 6))]
    poison = {key: rng.randint(0, 6) for key in keys[: rng.randint(0, 3)]}
    rng.shuffle(keys)
    engines = _Engines(tmp_path_factory.mktemp("engines"), poison)
    wanted = {key: [rng.randint(1, 9) for _ in range(rng.randint(1, 2))] for key in keys}
    for key in keys:
        engines.add(key, *wanted[key])
        for _ in range(rng.randint(0, 2)):
            engines.step()
    for _ in range(200):
        engines.step()
    assert not engines.left
    for key in keys:
        if key not in poison and len(poison) < 2:
            assert key not in engines.refused
            assert [engines.done[key, i] for i in range(len(wanted[key]))] == wanted[key]
    assert engines.crashes <= 5 * len(poison)


def test_crashes_without_a_culprit_end_in_the_end(tmp_path: Path) -> None:
    """An engine that breaks for no reason that a trial shows: what was in flight at too many crashes is refused."""
    engines = _Engines(tmp_path)
    for key in "abc":
        engines.add(key, 100)
    for crash in range(MOST_CRASHES):
        assert not engines.refused, crash
        for _ in range(5):
            engines.step()
        engines.die(crashed=True)
    assert engines.refused == {"a", "b", "c"} and not engines.left


def test_trial_goes_on_when_a_suspect_leaves_and_after_a_kill(tmp_path: Path) -> None:
    engines = _Engines(tmp_path)
    for key in "abcd":
        engines.add(key, 20)
    for _ in range(2):
        engines.die(crashed=True)
    assert engines.running == {("a", 0)}
    engines.leave("a")
    assert engines.running == {("b", 0)}
    engines.leave("c")  # had never run here
    assert engines.running == {("b", 0)}
    engines.die(crashed=False)  # says nothing: both are still suspects
    assert engines.running == {("b", 0)}
    for _ in range(25):
        engines.step()
    assert not engines.left and not engines.refused


def test_all_sequences_of_a_suspect_are_tried_together(tmp_path: Path) -> None:
    engines = _Engines(tmp_path)
    engines.add("a", 9, 9)
    engines.add("b", 9)
    for _ in range(2):
        engines.die(crashed=True)
    assert engines.running == {("a", 0), ("a", 1)}
    engines.step()
    assert engines.running == {("a", 0), ("a", 1), ("b", 0)}


def test_a_verdict_outlives_the_engine_that_knows_it(tmp_path: Path) -> None:
    """The next engine may be killed before the client has sent its requests again."""
    path = str(tmp_path / "inflight")
    blame = Blame.inherit(path, crashed=False)
    blame.enter(identity("a"), "a")
    for _ in range(2):
        blame = Blame.inherit(path, crashed=True)
        blame.enter(identity("a"), "a")
    blame = Blame.inherit(path, crashed=False)
    assert blame.is_guilty(identity("a")) and not blame.is_guilty(identity("b"))
    for _ in range(MOST_AGE):
        blame = Blame.inherit(path, crashed=False)
    assert not blame.is_guilty(identity("a")) and not read(path)


def test_an_engine_that_ends_in_good_order_leaves_nothing(tmp_path: Path) -> None:
    blame = Blame.inherit(str(tmp_path / "inflight"), crashed=False)
    blame.enter(identity("a"), "a")
    blame.end()
    assert not list(tmp_path.iterdir())


def test_requests_without_a_key_are_not_followed(tmp_path: Path) -> None:
    blame = Blame.inherit(str(tmp_path / "inflight"), crashed=False)
    assert identity("") == b"" and blame.may_run(b"")
    blame.enter(b"", 1)
    assert not blame.heard(b"", 1) and not blame.leave(b"", 1)
    assert read(str(tmp_path / "inflight")) == {}


def test_a_folder_that_takes_no_file_is_said_and_lived_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blame = Blame.inherit(str(tmp_path / "nowhere" / "inflight"), crashed=True)
    blame.enter(identity("a"), "a")
    assert not blame.heard(identity("a"), "a")
    assert "will not be found" in caplog.text


# -- the file


def test_the_file_keeps_all_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "_FIRST_SLOTS", 4)
    path = str(tmp_path / "inflight")
    file = InFlight(path, {})
    pasts = {
        identity(str(n)): Past(*(bool(n >> bit & 1) for bit in range(5)), n % 256, n % 7, n % 17, n % 16)
        for n in range(500)
    }
    for digest, past in pasts.items():
        file.write(digest, past)
    for n in range(0, 500, 3):
        digest = identity(str(n))
        file.drop(digest)
        del pasts[digest]
    assert read(path) == pasts
    file.end()
    assert not Path(path).exists()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, bytes(4096)])
def test_what_is_no_such_file_is_read_as_far_as_it_goes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "inflight"
    path.write_bytes(content)
    assert len(read(str(path))) <= len(content) // 32
    Blame.inherit(str(path), crashed=True)
