"""Models complete in the cache of a hub's own library, when the hub cannot be asked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from octavo.config import EngineConfig
from octavo.errors import DownloadError
from octavo.modelfiles.hub import fetch, transfer
from octavo.modelfiles.hub.progress import Silent

REPO, COMMIT = "acme/tiny.v2", "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 400,
}
INDEXED = {
    "config.json": FILES["config.json"],
    "tokenizer.json": b"{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    ).encode(),
    "model-1-of-2.safetensors": b"one",
    "model-2-of-2.safetensors": b"two",
}


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub answers."""
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(transfer, "WAITS", (0.0,))
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def huggingface(root: Path, files: dict[str, bytes], ref: str = "main", kind: str = "sha256") -> None:
    """A cache as the library lays it out: blobs under their digests, links to them."""
    home = root / "hf" / ("models--" + REPO.replace("/", "--"))
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    (home / "refs" / ref).parent.mkdir(parents=True)
    (home / "refs" / ref).write_text(COMMIT)
    for name, data in files.items():
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        blob = hashlib.sha256(data).hexdigest() if kind == "sha256" else sha1
        (home / "blobs" / blob).write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(home / "blobs" / blob)


def wish(source: str = "huggingface", **options: str) -> EngineConfig:
    return EngineConfig(model=REPO, source=source, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["sha256", "git"])
@pytest.mark.parametrize("is_set", [True, False])
def test_a_complete_copy_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_set: bool) -> None:
    huggingface(tmp_path, FILES, kind=kind)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", is_set)
    files = fetch(wish(), Silent())
    assert files.name == REPO
    assert {name: (files.path / name).read_bytes() for name in FILES} == FILES
    assert fetch(wish(), Silent()) == files


def test_the_revision_decides(tmp_path: Path) -> None:
    huggingface(tmp_path, FILES, ref="pr/7")
    assert fetch(wish(revision="pr/7"), Silent()).path == fetch(wish(revision=COMMIT), Silent()).path
    for revision in ({}, {"revision": "other"}, {"revision": "../snapshots"}):
        with pytest.raises(DownloadError, match=r"cannot be reached.*nor is it here: .*has no copy of it at revision"):
            fetch(wish(**revision), Silent())


@pytest.mark.parametrize("missing", ["config.json", "model-2-of-2.safetensors"])
def test_a_copy_that_is_not_complete_is_named(tmp_path: Path, missing: str) -> None:
    huggingface(tmp_path, {name: data for name, data in INDEXED.items() if name != missing})
    with pytest.raises(DownloadError, match=rf"nor is it here: .*(no|lacks) {missing}"):
        fetch(wish(), Silent())


def test_shards_and_gguf_files(tmp_path: Path) -> None:
    huggingface(tmp_path, {**INDEXED, "sub/a.gguf": b"GGUF" + bytes(60)})
    assert (fetch(wish(), Silent()).path / "model-2-of-2.safetensors").read_bytes() == b"two"
    assert fetch(wish(gguf_file="sub/a.gguf"), Silent()).path.read_bytes() == b"GGUF" + bytes(60)
    with pytest.raises(DownloadError, match=r"has no file 'b.gguf'; its .gguf files: sub/a.gguf"):
        fetch(wish(gguf_file="b.gguf"), Silent())


def test_a_damaged_copy_is_not_used(tmp_path: Path) -> None:
    huggingface(tmp_path, FILES)
    weights = tmp_path / "hf" / ("models--" + REPO.replace("/", "--")) / "snapshots" / COMMIT / "model.safetensors"
    weights.resolve().write_bytes(FILES["model.safetensors"][::-1])
    with pytest.raises(DownloadError, match=r"cannot be reached|checksum"):
        fetch(wish(), Silent())


def test_pull_asks_the_hub(tmp_path: Path) -> None:
    huggingface(tmp_path, FILES)
    with pytest.raises(DownloadError, match="cannot be reached"):
        fetch(wish(), Silent(), refresh=True)


@pytest.mark.parametrize(
    "place",
    ["models/acme--tiny.v2/snapshots/master", "models/acme/tiny___v2", "hub/models/acme/tiny___v2", "acme/tiny.v2"],
)
def test_modelscopes_folders(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "ms" / place
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    files = fetch(wish("modelscope"), Silent())
    assert (files.name, (files.path / "model.safetensors").read_bytes()) == (REPO, FILES["model.safetensors"])
    with pytest.raises(DownloadError, match=r"ModelScope .*cannot be reached.*nor is it here"):
        fetch(wish("modelscope", revision="v9"), Silent())
