"""Checkpoints read onto a device: through pinned pieces that are never rewritten in flight, with the bits of the CPU,
little memory beside the result, the same errors, and progress told."""

from __future__ import annotations

import logging
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from fake_device import FakeDevice
from mapped import mapped_bytes
from safetensors.torch import save_file
from tiny_models import make_reference, resolved_config, save_gguf, save_safetensors
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.errors import DeviceLost, ModelFileError
from octavo.kernels.layouts import Dense, Layout
from octavo.kernels.reference.backend import ReferenceOps
from octavo.modelfiles.facts import read_facts
from octavo.modelfiles.files import ModelFiles, locate
from octavo.models.registry import build
from octavo.weights import mapping, place
from octavo.weights.checkpoint import Checkpoint, open_checkpoint
from octavo.weights.formats import convert
from octavo.weights.formats.blocks import BLOCK_FORMATS
from octavo.weights.formats.convert import FORMATS
from octavo.weights.progress import LoadingLog

KINDS = sorted(FORMATS - {"F64"})
META = torch.device("meta")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Any bytes as blocks: every q and sub-scale, f16 scales from tiny to infinite and NaN; two chunks of elements."""
    path = tmp_path_factory.mktemp("gguf") / "kinds.gguf"
    writer, generator = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    for kind in KINDS:
        number = gguf.GGMLQuantizationType[kind]
        block, nbytes = gguf.GGML_QUANT_SIZES[number]
        data = generator.integers(0, 256, (9, 1024 // block * nbytes), dtype=np.uint8)
        writer.add_tensor(f"{kind}.weight", data, raw_dtype=number)
    writer.add_tensor("norm.weight", generator.standard_normal(1000, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return locate(path)


def tensors_of(layout: Layout) -> dict[str, Tensor]:
    return {field.name: getattr(layout, field.name) for field in fields(layout)}  # type: ignore[arg-type]


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert torch.equal(found.reshape(-1).view(torch.uint8), expected.reshape(-1).view(torch.uint8))


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.names() == expected.names()
    for name in sorted(expected.names()):
        for dtype in (torch.float32, torch.bfloat16):
            assert_same_bits(found.tensor(name, dtype), expected.tensor(name, dtype))
        if len(expected.shape(name)) == 2:
            here, there = found.matrix(name), expected.matrix(name)
            assert type(here) is type(there), name
            for field, tensor in tensors_of(there).items():
                assert_same_bits(tensors_of(here)[field], tensor)


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("piece", [1 << 12, 1 << 20])
def test_every_format_has_the_bits_of_the_cpu(
    every_kind: ModelFiles, piece: int, seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "PIECE_BYTES", piece)
    monkeypatch.setattr(convert, "CHUNK_ELEMENTS", 1 << 13)
    device = FakeDevice(pick=None if seed is None else random.Random(seed))
    with open_checkpoint(every_kind, device) as found, open_checkpoint(every_kind) as expected:
        assert_same(found, expected)


def test_safetensors_have_the_bits_of_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "PIECE_BYTES", 1000)
    noise = torch.randn(60, 50, generator=torch.Generator().manual_seed(0))
    tensors = {str(dtype): noise.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)}
    save_file({**tensors, "scalar": torch.tensor(3.0), "empty": torch.zeros(0)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_checkpoint(locate(tmp_path), FakeDevice()) as found, open_checkpoint(locate(tmp_path)) as expected:
        assert_same(found, expected)


def test_matrices_come_rounded_to_the_type_of_the_backend(every_kind: ModelFiles) -> None:
    """As its `prepare` would round them, which would hold them in both types at once."""
    with (
        open_checkpoint(every_kind, FakeDevice(), torch.bfloat16) as found,
        open_checkpoint(every_kind) as expected,
    ):
        for kind in KINDS:
            here, there = found.matrix(f"{kind}.weight"), expected.matrix(f"{kind}.weight")
            if isinstance(there, Dense):
                assert isinstance(here, Dense) and here.data.dtype == torch.bfloat16
                assert_same_bits(here.data.nan_to_num(), there.dequantize(torch.bfloat16).nan_to_num())
            else:
                assert type(here) is type(there)


class Watched(FakeDevice):
    """Notes what had not run each time that the file was read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.in_flight: list[int] = []
        self.num_buffers = 0
        read_into = mapping.MappedFile.read_into

        def watched(file: mapping.MappedFile, out: Tensor, offset: int) -> None:
            self.in_flight.append(self.pending)
            read_into(file, out, offset)

        monkeypatch.setattr(mapping.MappedFile, "read_into", watched)

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        self.num_buffers += 1
        return super().host_buffer(size, dtype)


def one_tensor(folder: Path, count: int) -> ModelFiles:
    save_file({"a": torch.arange(float(count))}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return locate(folder)


def test_the_next_piece_is_read_while_one_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "PIECE_BYTES", 1000)
    device = Watched(monkeypatch)
    with open_checkpoint(one_tensor(tmp_path, 1100), device) as checkpoint:
        assert torch.equal(checkpoint.tensor("a", torch.float32), torch.arange(1100.0))
        assert device.in_flight == [0, 1, 1, 1, 1], "of two pieces one is on its way, never both"
        assert device.pending == 0, "what was asked for is there"
        checkpoint.tensor("a", torch.float32)
    assert device.num_buffers == 2, "the pieces serve all tensors"


class Hasty(FakeDevice):
    """Its events are over at once: what a loader without them would see."""

    def event(self) -> Any:
        class Now:
            def wait(self) -> None: ...

        return Now()


def test_a_piece_rewritten_in_flight_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That the tests above would fail if pieces were written too soon."""
    monkeypatch.setattr(place, "PIECE_BYTES", 1000)
    device = Hasty()
    with open_checkpoint(one_tensor(tmp_path, 1100), device) as checkpoint:
        checkpoint.tensor("a", torch.float32)
        with pytest.raises(AssertionError, match="was rewritten before"):
            device.synchronize()


def test_a_device_that_is_lost(tmp_path: Path) -> None:
    device = FakeDevice()
    with open_checkpoint(one_tensor(tmp_path, 10), device) as checkpoint:
        checkpoint.tensor("a", torch.float32)
        upload = device.upload

        def last(source: Tensor, target: Tensor) -> None:
            upload(source, target)
            device.lose()

        device.upload = last  # type: ignore[method-assign]
        with pytest.raises(DeviceLost):
            checkpoint.tensor("a", torch.float32)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "PIECE_BYTES", 1000)
    files = one_tensor(tmp_path, 4096)
    real = mapping.MappedFile

    def shrinking(file: Path) -> mapping.MappedFile:
        with file.open("r+b") as opened:
            opened.truncate(9000)
        return real(file)

    monkeypatch.setattr("octavo.weights.safetensors.MappedFile", shrinking)
    with open_checkpoint(files, FakeDevice()) as checkpoint:
        with pytest.raises(ModelFileError, match=r"model.safetensors: ends before byte"):
            checkpoint.tensor("a", torch.float32)
        with pytest.raises(ModelFileError, match="tensor 'b' is missing"):
            checkpoint.tensor("b", torch.float32)


def test_damaged_files_are_refused_when_opened(tmp_path: Path, every_kind: ModelFiles) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(every_kind.path.read_bytes()[:-4000])
    for device in (None, FakeDevice()):
        with pytest.raises(ModelFileError, match=r"cut.gguf: tensor 'norm.weight': its \d+ bytes at \d+ run past"):
            open_checkpoint(locate(cut), device)


# ---- a device that is not the CPU: torch's "meta", whose tensors have no data and do not mix with others ------------


class MetaDevice:
    """An Uploader whose copies do nothing."""

    where = META

    def host_buffer(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype)

    def upload(self, source: Tensor, target: Tensor) -> None:
        assert source.device.type == "cpu" and target.device == META and source.shape == target.shape

    def event(self) -> Any:
        return Hasty().event()


class Live(TorchDispatchMode):
    """The bytes of all tensors of the device that there are, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor) and tensor.device == META and not hasattr(tensor, "counted"):
                tensor.counted = True  # type: ignore[attr-defined]
                self._add(tensor)
        return made

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        self._users[key] = self._users.get(key, 0) + 1
        if self._users[key] == 1:
            self.now += size
            self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            self.now -= size


class NoBytes:
    """A `Source` for the device."""

    device = META

    def __call__(self, out: Tensor, first: int) -> None:
        assert out.device == META and out.dtype == torch.uint8


@pytest.fixture
def finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one question about values that is asked while a matrix is read."""
    monkeypatch.setattr(torch, "isinf", lambda tensor: torch.zeros(1, dtype=torch.bool))


@pytest.mark.usefixtures("finite")
@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_little_is_beside_the_result(kind: str) -> None:
    """Of a matrix of true size; all is computed on the device."""
    reads: list[Callable[[], Layout]] = [
        lambda: convert.read_layout(NoBytes(), kind, (32768, 4096), torch.bfloat16),
        lambda: Dense(convert.read_dense(NoBytes(), kind, (32768, 4096), torch.bfloat16)),
    ]
    for read in reads:
        with Live() as live:
            layout = read()
        assert live.now == layout.nbytes and all(part.device == META for part in tensors_of(layout).values())
        assert live.most - live.now <= 256 << 20
    assert kind not in BLOCK_FORMATS or live.most > live.now, "chunks are seen"


def all_tensors(thing: object, seen: set[int]) -> Iterator[Tensor]:
    """Whatever is reachable from a model."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            yield from all_tensors(part, seen)
    elif type(thing).__module__.startswith("octavo"):
        for part in vars(thing).values():
            yield from all_tensors(part, seen)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_all_that_a_model_holds_is_on_the_device(kind: str, form: str, tmp_path: Path) -> None:
    reference = make_reference(kind, tie_word_embeddings=kind == "qwen3")
    gguf_file = tmp_path / "m.gguf"
    files = save_gguf(reference, gguf_file) if form == "gguf" else save_safetensors(reference, tmp_path)
    facts, ops = read_facts(files), ReferenceOps(torch.bfloat16, META)
    with open_checkpoint(files, MetaDevice(), torch.bfloat16) as checkpoint:
        model = build(facts, checkpoint, ops, resolved_config("bfloat16"))
    found = list(all_tensors(model, set()))
    assert len(found) > 4 * facts.num_layers and {tensor.device for tensor in found} == {META}


def test_a_quantized_file_is_repacked_on_the_device(demo_gguf: Path) -> None:
    """By the backend that computes there, from layouts that came there; nothing is dense meanwhile."""
    triton_ops = pytest.importorskip("octavo.kernels.triton.backend")
    files = locate(demo_gguf)
    facts, ops = read_facts(files), triton_ops.TritonOps(torch.bfloat16, torch.bfloat16, META)
    with Live() as live, open_checkpoint(files, MetaDevice(), torch.bfloat16) as checkpoint:
        model = build(facts, checkpoint, ops, resolved_config("bfloat16"))
    assert {tensor.device for tensor in all_tensors(model, set())} == {META}
    assert model.nbytes <= live.now <= live.most < 2 * demo_gguf.stat().st_size


# ---- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [None, FakeDevice()])
def test_progress_goes_from_nothing_to_all(every_kind: ModelFiles, device: FakeDevice | None) -> None:
    told: list[tuple[int, int]] = []
    with open_checkpoint(every_kind, device, progress=lambda done, total: told.append((done, total))) as checkpoint:
        assert not told
        for name in checkpoint.names():
            checkpoint.tensor(name, torch.float32)
    done, totals = [done for done, _ in told], {total for _, total in told}
    assert done == sorted(done) and totals == {done[-1]}
    assert done[-1] > sum(9 * 1024 // 32 * form.nbytes // (form.block // 32) for form in BLOCK_FORMATS.values())


@pytest.mark.parametrize(
    ("total", "said"),
    [
        (16_060_000_000, ["12% of 16.1 GB, 1.8 GB/s", "46% of 16.1 GB, 1.8 GB/s", "80% of 16.1 GB, 1.8 GB/s"]),
        (98_400_000, ["12% of 98 MB, 11 MB/s", "46% of 98 MB, 11 MB/s", "80% of 98 MB, 11 MB/s"]),
    ],
)
def test_progress_in_the_log(caplog: pytest.LogCaptureFixture, total: int, said: list[str]) -> None:
    now = 100.0
    with caplog.at_level(logging.INFO, "octavo"):
        tell = LoadingLog(clock=lambda: now)
        for step in range(1, 101):
            now = 100.0 + step * 0.09
            tell(total * step // 100, total)
    assert [record.getMessage() for record in caplog.records] == [f"loading weights: {line}" for line in said]


def test_a_short_load_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    with caplog.at_level(logging.INFO, "octavo"):
        tell = LoadingLog(clock=lambda: now)
        for step in range(1, 10):
            now = step * 0.1
            tell(step, 9)
        tell(0, 0)
    assert not caplog.records


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_mapping_stays_small(demo_gguf: Path) -> None:
    """As on the CPU: the pages of each piece are given back."""

    with open_checkpoint(locate(demo_gguf), FakeDevice()) as checkpoint:
        checkpoint.matrix("token_embd.weight")
        assert mapped_bytes(demo_gguf) < 8 << 20
