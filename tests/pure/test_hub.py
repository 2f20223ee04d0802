"""Hub downloads against a local fake: choice of files, resume, digests, errors, and starting without a network."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub, serving
from gguf_bytes import llama

from octavo.config import EngineConfig
from octavo.errors import ConfigError, DownloadError, ModelFileError
from octavo.modelfiles.hub import choose, fetch, store, transfer
from octavo.modelfiles.hub.progress import Silent

WEIGHTS = bytes(range(256)) * 4000
GGUF = llama()
REPO = "acme/tiny"
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"never fetched",
    "original/model.safetensors": b"never fetched",
    "README.md": b"never fetched",
    ".gitattributes": b"never fetched",
}
CHOSEN = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}
SOURCES = ("huggingface", "modelscope")


class Counted(Silent):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.total = self.arrived = 0
        self.num_starts = self.num_ends = 0
        self.notes: list[str] = []

    def start(self, label: str, total: int | None) -> None:
        self.num_starts += 1
        self.total = total or 0

    def advance(self, num_bytes: int) -> None:
        self.arrived += num_bytes

    def note(self, text: str) -> None:
        self.notes.append(text)

    def done(self) -> None:
        self.num_ends += 1


class Interrupting(Counted):
    """Presses Ctrl-C once so many bytes have arrived."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._after = after

    def advance(self, num_bytes: int) -> None:
        super().advance(num_bytes)
        if self.arrived >= self._after:
            raise KeyboardInterrupt


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    import huggingface_hub.constants

    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    monkeypatch.setattr(transfer, "WAITS", (0.0, 0.0))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(FakeHub({REPO: dict(FILES), "acme/ggufs": {"a.gguf": GGUF, "sub/b.gguf": GGUF}})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        yield hub


def config(source: str, model: str = REPO, **options: str) -> EngineConfig:
    return EngineConfig(model=model, source=source, **options)  # type: ignore[arg-type]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def names_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {store.STAMP}


def test_a_model_folder_has_the_files_a_model_needs(hub: FakeHub, source: str) -> None:
    progress = Counted()
    files = fetch(config(source), progress)
    assert files.name == REPO
    assert names_below(files.path) == CHOSEN
    assert all((files.path / name).read_bytes() == FILES[name] for name in CHOSEN)
    assert progress.arrived == progress.total == sum(len(FILES[name]) for name in CHOSEN)
    assert progress.num_starts == progress.num_ends == 1


def test_a_model_that_is_here_needs_no_network(hub: FakeHub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fetch(config(source), Silent())
    num_requests = len(hub.requests)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(config(source), Silent()) == first
    assert len(hub.requests) == num_requests


def test_refresh_takes_the_new_version_and_keeps_the_old_one_on_the_disk(hub: FakeHub, source: str) -> None:
    old = fetch(config(source), Silent())
    hub.commit = "d" * 40
    hub.repos[REPO]["model.safetensors"] = WEIGHTS[::-1]
    assert fetch(config(source), Silent()) == old
    new = fetch(config(source), Silent(), refresh=True)
    assert (new.path / "model.safetensors").read_bytes() == WEIGHTS[::-1]
    assert (old.path / "model.safetensors").read_bytes() == WEIGHTS
    assert fetch(config(source), Silent()) == new


def test_a_damaged_file_is_fetched_again_alone(hub: FakeHub, source: str) -> None:
    files = fetch(config(source), Silent())
    (files.path / "tokenizer.json").write_bytes(b"x" * len(FILES["tokenizer.json"]))
    hub.requests.clear()
    assert fetch(config(source), Silent()) == files
    assert (files.path / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert len(hub.file_requests()) == 1


@pytest.mark.parametrize("name", ["a.gguf", "sub/b.gguf"])
def test_one_gguf_file(hub: FakeHub, source: str, name: str) -> None:
    files = fetch(config(source, "acme/ggufs", gguf_file=name), Silent())
    assert files.is_gguf and files.path.read_bytes() == GGUF
    assert len(hub.file_requests()) == 1
    assert fetch(config(source, "acme/ggufs", gguf_file=name), Silent()) == files


def test_a_broken_connection_is_resumed_where_it_broke(hub: FakeHub, source: str) -> None:
    hub.cuts["model.safetensors"] = [300_000, 100_000]
    progress = Counted()
    files = fetch(config(source), progress)
    assert (files.path / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [headers.get("range") for path, headers in hub.file_requests() if "model.safetensors" in path]
    assert ranges == [None, "bytes=300000-", "bytes=400000-"]
    assert progress.arrived == progress.total


def test_the_next_run_goes_on_after_an_interruption(hub: FakeHub, source: str) -> None:
    interrupting = Interrupting(after=600_000)
    with pytest.raises(KeyboardInterrupt):
        fetch(config(source), interrupting)
    assert interrupting.num_ends == 1
    hub.requests.clear()
    progress = Counted()
    files = fetch(config(source), progress)
    assert (files.path / "model.safetensors").read_bytes() == WEIGHTS
    asked = [(path, headers.get("range")) for path, headers in hub.file_requests()]
    assert len(asked) == 1, "the small files were complete"
    assert asked[0][1] is not None and asked[0][1] > "bytes=5"
    assert progress.arrived == progress.total
    assert names_below(files.path) == CHOSEN


def test_a_server_without_ranges_sends_it_all_again(hub: FakeHub, source: str) -> None:
    hub.cuts["model.safetensors"] = [300_000]
    hub.ignores_range = True
    progress = Counted()
    files = fetch(config(source), progress)
    assert (files.path / "model.safetensors").read_bytes() == WEIGHTS
    assert progress.arrived == progress.total


def test_a_wrong_partial_file_costs_one_more_download(hub: FakeHub) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch(config("huggingface"), Interrupting(after=600_000))
    (partial,) = (store.model_dir("huggingface", "acme", "tiny")).rglob(".partial-*")
    partial.write_bytes(b"?" * 1000)
    progress = Counted()
    files = fetch(config("huggingface"), progress)
    assert (files.path / "model.safetensors").read_bytes() == WEIGHTS
    assert progress.arrived == progress.total


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_contents_with_another_digest_are_refused(hub: FakeHub, source: str, name: str) -> None:
    hub.corrupts.add(name)
    with pytest.raises(DownloadError, match=f"{name}: the downloaded contents do not have the checksum"):
        fetch(config(source), Silent())
    hub.corrupts.clear()
    assert (fetch(config(source), Silent()).path / name).read_bytes() == FILES[name]


def test_a_hub_that_is_busy_is_asked_again(hub: FakeHub, source: str) -> None:
    hub.failures = [503, 429]
    assert names_below(fetch(config(source), Silent()).path) == CHOSEN


def test_a_hub_that_stays_busy_is_an_error(hub: FakeHub, source: str) -> None:
    hub.failures = [503] * 9
    with pytest.raises(DownloadError, match="answers HTTP 503; try again later"):
        fetch(config(source), Silent())


def test_unknown_model(hub: FakeHub, source: str) -> None:
    with pytest.raises(DownloadError, match="acme/none: no such model"):
        fetch(config(source, "acme/none"), Silent())


def test_unknown_revision(hub: FakeHub, source: str) -> None:
    with pytest.raises(DownloadError, match="revision 'v9'"):
        fetch(config(source, revision="v9"), Silent())


def test_known_revision(hub: FakeHub) -> None:
    assert fetch(config("huggingface", revision=hub.commit), Silent()).path.name == hub.commit
    assert fetch(config("modelscope", revision="v2"), Silent()).name == REPO


def test_gated_model_names_the_token(hub: FakeHub, source: str) -> None:
    hub.gated = True
    token = {"huggingface": "HF_TOKEN", "modelscope": "MODELSCOPE_API_TOKEN"}[source]
    with pytest.raises(DownloadError, match=token):
        fetch(config(source), Silent())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"config.json": b'{"architectures": ["GPT2LMHeadModel"]}'},
            "'GPT2LMHeadModel' is not supported yet; supported",
        ),
        ({"config.json": b'{"model_type": "llama", "quantization_config": {}}'}, "quantization_config"),
        ({"config.json": b"{"}, "not valid JSON"),
        ({"tokenizer.json": None}, "acme/tiny: the repository has no tokenizer.json"),
        ({"tokenizer.json": None, "tokenizer.model": b"x"}, "no tokenizer.json; convert its tokenizer.model first"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_before_its_weights_are_fetched(
    hub: FakeHub, source: str, changed: dict[str, bytes | None], message: str
) -> None:
    files = {**hub.repos[REPO], **changed}
    hub.repos[REPO] = {name: data for name, data in files.items() if data is not None}
    with pytest.raises(ModelFileError, match=message):
        fetch(config(source), Silent())
    assert not any("model.safetensors" in path for path, _ in hub.file_requests())


@pytest.mark.parametrize("num_tokens", [4, 200_000])
def test_a_gguf_is_refused_by_its_header(hub: FakeHub, source: str, num_tokens: int) -> None:
    """Long before all of it is here, however much of it is vocabulary."""
    size = 40 << 20
    hub.repos["acme/ggufs"]["a.gguf"] = llama(num_tokens, size, architecture="gpt2")
    progress = Counted()
    with pytest.raises(ModelFileError, match=r"a\.gguf: architecture 'gpt2' is not supported yet; supported: .*llama"):
        fetch(config(source, "acme/ggufs", gguf_file="a.gguf"), progress)
    assert progress.arrived < size / 4


def test_a_gguf_with_a_long_vocabulary_is_fetched(hub: FakeHub) -> None:
    hub.repos["acme/ggufs"]["a.gguf"] = llama(200_000, 1 << 20)
    files = fetch(config("huggingface", "acme/ggufs", gguf_file="a.gguf"), Silent())
    assert files.path.read_bytes() == hub.repos["acme/ggufs"]["a.gguf"]


def test_offline_says_what_to_do(hub: FakeHub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DownloadError, match=r"cannot be reached.*connect and try again") as caught:
        fetch(config(source), Silent())
    assert "\n" not in caught.value.message


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-secret")
    with serving(FakeHub(hub.repos)) as elsewhere:
        hub.redirect_to = elsewhere.address
        for source in SOURCES:
            fetch(config(source), Silent())
    told = {headers.get("authorization") for _, headers in hub.file_requests()}
    assert told == {"Bearer hf_secret", "Bearer ms-secret"}
    assert elsewhere.requests
    assert {headers.get("authorization") for _, headers in elsewhere.requests} == {None}


def test_a_gguf_that_is_not_there_lists_those_that_are(hub: FakeHub, source: str) -> None:
    with pytest.raises(DownloadError, match=r"no file 'c.gguf'; its .gguf files: a.gguf, sub/b.gguf"):
        fetch(config(source, "acme/ggufs", gguf_file="c.gguf"), Silent())
    with pytest.raises(DownloadError, match=r"choose one with --gguf-file: a.gguf, sub/b.gguf"):
        fetch(config(source, "acme/ggufs"), Silent())


def test_files_of_the_hubs_own_cache_are_used(hub: FakeHub, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "models--acme--tiny" / "snapshots" / hub.commit
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(WEIGHTS)
    files = fetch(config("huggingface"), Silent())
    assert (files.path / "model.safetensors").read_bytes() == WEIGHTS
    assert not any("model.safetensors" in path for path, _ in hub.file_requests())
    shutil.rmtree(tmp_path / "hf")
    assert (fetch(config("huggingface"), Silent()).path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_full_disk_is_one_sentence(hub: FakeHub, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(Path.cwd())
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DownloadError, match=r"is full \(about 1.0 MB are needed\); free some space or .* OCTAVO_CACHE"):
        fetch(config(source), Silent())
    monkeypatch.undo()
    error = store.disk_error(OSError(errno.ENOSPC, "No space left on device"), Path("/models"), "tiny")
    assert "is full" in error.message


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match=r"cannot write to .*OCTAVO_CACHE"):
        fetch(config("huggingface"), Silent())


@pytest.mark.parametrize(
    "path", ["../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\b.gguf", "c:x.gguf", "\0.gguf", ".git/x.gguf", ""]
)
def test_names_that_leave_the_folder_are_never_chosen(path: str) -> None:
    assert not choose.is_safe(path)
    with pytest.raises(DownloadError):
        choose.wanted([path], path, "evil")


def test_shards_are_chosen_by_the_index_and_copies_are_not() -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    paths = ["config.json", "model.safetensors.index.json", "consolidated.safetensors", *shards]
    assert choose.wanted(paths, None, "x") == ["config.json", "model.safetensors.index.json", *shards]


def test_repositories_without_weights_we_load_are_refused() -> None:
    with pytest.raises(DownloadError, match=r"only pytorch_model.bin; Octavo loads safetensors or GGUF"):
        choose.wanted(["config.json", "pytorch_model.bin"], None, "x")
    with pytest.raises(DownloadError, match="no weights"):
        choose.wanted(["config.json"], None, "x")
    with pytest.raises(DownloadError, match=r"no config.json"):
        choose.wanted(["model.safetensors"], None, "x")


def test_model_folders_are_names_not_paths() -> None:
    for parts in (("..",), ("a/b",), ("",), ("a", "..")):
        with pytest.raises(DownloadError):
            store.model_dir(*parts)


def test_local_paths_and_nonsense(tmp_path: Path) -> None:
    model = tmp_path / "mine"
    model.mkdir()
    with pytest.raises(ModelFileError, match=r"config.json"):
        fetch(EngineConfig(model=str(model)), Silent())
    (model / "config.json").write_text("{}")
    (model / "q4.gguf").write_bytes(GGUF)
    assert fetch(EngineConfig(model=str(model)), Silent()).path == model
    assert fetch(EngineConfig(model=str(model), gguf_file="q4.gguf"), Silent()).path == model / "q4.gguf"
    for wrong in ("q5.gguf", "../mine/../../etc/passwd"):
        with pytest.raises(ConfigError, match=r"there: q4.gguf"):
            fetch(EngineConfig(model=str(model), gguf_file=wrong), Silent())
    with pytest.raises(ConfigError, match="--revision"):
        fetch(EngineConfig(model=str(model), revision="main"), Silent())
    with pytest.raises(ConfigError, match="--gguf-file"):
        fetch(EngineConfig(model="smollm2-135m", gguf_file="x.gguf"), Silent())
    with pytest.raises(DownloadError, match=r"smollm2-135m, gemma3-270m"):
        fetch(EngineConfig(model="no-such-model"), Silent())
