"""LLMEngine and AsyncLLMEngine on a fake executor: order, options, errors, early ends, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from echo import EchoExecutor, write_model

from octavo.client.fake import IM_END, VOCAB_SIZE
from octavo.client.offline import LLM, AsyncLLMEngine, LLMEngine
from octavo.config import EngineConfig
from octavo.errors import ConfigError, ContextLengthExceeded, DownloadError, EngineError, RequestError
from octavo.types import Message, SamplingParams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("echo-model"))


def engine_on(model: Path, executor: EchoExecutor | None = None, **options: Any) -> LLMEngine:
    return LLMEngine(EngineConfig(model=str(model), **options), executor=executor or EchoExecutor())


def idle(engine: LLMEngine) -> bool:
    """Nothing of any request is left, here and in the scheduler."""
    engine._engine.turn(0)
    loop = engine._engine._loop
    return not len(engine._engine._ledger) and not loop.has_requests


def test_outputs_in_the_order_of_the_prompts(model: Path) -> None:
    executor = EchoExecutor()
    with engine_on(model, executor, max_num_seqs=4) as engine:
        prompts = [f"prompt {i}" + "!" * (i % 5) for i in range(30)]
        outputs = engine.generate(prompts, max_tokens=100, temperature=0.0)
        assert [o.text for o in outputs] == [p.upper() for p in prompts]
        assert [o.prompt for o in outputs] == prompts
        assert all(o.finish_reason == "stop" and o.token_ids[-1] == IM_END for o in outputs)
        metrics = outputs[0].metrics
        assert metrics.prompt_tokens == len(prompts[0]) and metrics.completion_tokens == len(prompts[0]) + 1
        assert metrics.tokens_per_second > 0 and metrics.time_to_first_token_ms > 0
        assert executor.widest == 4 and idle(engine)
    assert executor.shut == 1
    engine.close()
    assert executor.shut == 1


def test_prompts_and_params_in_all_their_forms(model: Path) -> None:
    with engine_on(model) as engine:
        assert [o.text for o in engine.generate("abc")] == ["ABC"]
        assert [o.text for o in engine.generate([97, 98])] == ["AB"]
        assert [o.text for o in engine.generate([[97], "xy"])] == ["A", "XY"]
        assert engine.generate([]) == []
        assert len(engine.generate("a" * 40)[0].token_ids) == 16  # as vLLM when nothing is said
        assert engine.generate("a" * 40)[0].finish_reason == "length"
        both = [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)]
        assert [o.text for o in engine.generate(["abc", "abc"], both)] == ["A", "AB"]
        assert engine.generate("abcdef", SamplingParams(max_tokens=1), stop="D", max_tokens=9)[0].text == "ABC"
        assert [c.text for c in engine.generate("abc", n=3, progress=True)[0].outputs] == ["ABC"] * 3
        assert engine.generate("<|im_end|>a")[0].prompt_token_ids == [IM_END, 97]
    assert LLM is LLMEngine


def test_wrong_arguments_are_refused_before_anything_runs(model: Path) -> None:
    executor = EchoExecutor()
    with engine_on(model, executor) as engine:
        for call, param in (
            (lambda: engine.generate(["ok", "x" * 300]), "prompt"),
            (lambda: engine.generate(["ok", [VOCAB_SIZE]]), "prompt"),
            (lambda: engine.generate(["ok", ""]), "prompt"),
            (lambda: engine.generate(["ok", ["a"]]), "prompt"),  # type: ignore[list-item]
            (lambda: engine.generate("ok", temprature=1), "temprature"),
            (lambda: engine.generate("ok", temperature=float("nan")), "temperature"),
            (lambda: engine.generate(["a", "b"], [SamplingParams()]), "sampling_params"),
            (lambda: engine.chat([{"content": "no role"}]), "messages"),
        ):
            with pytest.raises(RequestError) as caught:
                call()
            assert caught.value.param == param
        with pytest.raises(ContextLengthExceeded):
            engine.generate([1] * 256)
        assert executor.steps == 0 and idle(engine)


def test_config_by_name_and_by_keywords(model: Path) -> None:
    with LLMEngine(str(model), executor=EchoExecutor(), max_num_seqs=3) as engine:
        assert engine.info.max_num_seqs == 3 and engine.info.backend == "echo"
    with LLMEngine(model=str(model), executor=EchoExecutor()) as engine:
        assert engine.generate("a")[0].text == "A"
    with pytest.raises(ConfigError, match="max_seqs"):
        LLMEngine(str(model), max_seqs=3)
    with pytest.raises(ConfigError, match="max_num_seqs"):
        LLMEngine(str(model), max_num_seqs=0)
    with pytest.raises(DownloadError):
        LLMEngine(str(model / "nothing.gguf"))


def test_seeds(model: Path) -> None:
    def seeds(**options: Any) -> list[int]:
        executor = EchoExecutor()
        with engine_on(model, executor, **options) as engine:
            engine.generate(["a", "b", "c"])
            engine.generate(["d"], seed=5)
        return executor.seeds

    first, second = seeds(seed=1), seeds(seed=1)
    assert first == second and len(set(first)) == 4 and first[3] == 5
    assert seeds()[:3] != seeds()[:3]


def test_stream_and_leaving_it_early(model: Path) -> None:
    with engine_on(model) as engine:
        stream = engine.stream("hello", max_tokens=100)
        deltas = list(stream)
        assert "".join(d.text for d in deltas) == "HELLO" and deltas[-1].finish_reason == "stop"
        assert stream.metrics.completion_tokens == 6 and stream.output().text == "HELLO"
        for number, _ in enumerate(engine.stream("hello" * 20, max_tokens=100)):
            if number == 3:
                break
        assert idle(engine)
        left = engine.stream("hello")
        next(left)
        left.close()
        assert idle(engine) and list(left) == []
        one, two = engine.stream("abc"), engine.stream("xyz")
        pairs = [(a.text, b.text) for a, b in zip(one, two, strict=True)]
        assert pairs == [("A", "X"), ("B", "Y"), ("C", "Z"), ("", "")]


def test_a_stop_string_in_a_batch_aborts_only_its_own(model: Path) -> None:
    with engine_on(model) as engine:
        outputs = engine.generate(["abcdef" * 5, "uvwxyz" * 5], max_tokens=100, stop=["DE"])
        assert [o.text for o in outputs] == ["ABC", "UVWXYZ" * 5]
        assert outputs[0].outputs[0].stop_reason == "DE" and idle(engine)


def test_chat(model: Path) -> None:
    messages = [Message("user", "hi <|im_end|>")]
    with engine_on(model) as engine:
        text = engine.apply_chat_template(messages, add_generation_prompt=True)
        assert text == "<|im_start|>user\nhi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
        (output,) = engine.chat(messages, max_tokens=100)
        assert output.prompt == text
        assert output.prompt_token_ids.count(IM_END) == 1  # the one in the message is text
        assert output.text == "USER\nHI <|IM_END|>\nASSISTANT\n"
        dicts = [{"role": "user", "content": "a"}]
        assert len(engine.chat([dicts, messages])) == 2
        assert "".join(d.text for d in engine.stream_chat(dicts, max_tokens=99)) == "USER\nA\nASSISTANT\n"


def test_a_failed_step_is_an_error_and_the_engine_goes_on(model: Path) -> None:
    with engine_on(model, EchoExecutor(fail_at=3)) as engine:
        with pytest.raises(EngineError):
            engine.generate(["abc", "def"], max_tokens=50)
        assert idle(engine)
        assert engine.generate("abc")[0].text == "ABC"


def test_a_closed_engine_says_so(model: Path) -> None:
    engine = engine_on(model)
    stream = engine.stream("hello")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        list(stream)
    with pytest.raises(EngineError, match="closed"):
        engine.generate("a")


def test_ctrl_c_ends_the_answer_and_not_the_engine(model: Path) -> None:
    executor = EchoExecutor(delay=0.01)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    with engine_on(model, executor) as engine:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            engine.generate(["x" * 100] * 3, max_tokens=150, ignore_eos=True)
        timer.join()
        executor.delay = 0
        assert idle(engine)
        assert engine.generate("abc")[0].text == "ABC"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# --- AsyncLLMEngine


def async_engine(model: Path, executor: EchoExecutor | None = None) -> AsyncLLMEngine:
    return AsyncLLMEngine(EngineConfig(model=str(model)), executor=executor or EchoExecutor())


async def settled(engine: AsyncLLMEngine) -> None:
    """Until nothing of any request is left."""
    local = await engine.start()
    for _ in range(200):
        if not len(local._ledger) and not local._loop.has_requests and not engine._readers:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("requests were left behind")


def test_async_streams_side_by_side(model: Path) -> None:
    executor = EchoExecutor()

    async def main() -> None:
        async with async_engine(model, executor) as engine:

            async def read(text: str) -> str:
                return "".join([delta.text async for delta in engine.generate(text, max_tokens=99)])

            texts = [f"text number {i}" for i in range(20)]
            assert await asyncio.gather(*map(read, texts)) == [t.upper() for t in texts]
            output = await engine.chat([Message("user", "hey")], max_tokens=99).output()
            assert output.text == "USER\nHEY\nASSISTANT\n"
            assert output.metrics.completion_tokens == len(output.token_ids)
            assert (await engine.apply_chat_template([Message("user", "a")])).endswith("assistant\n")
            assert (await engine.info()).backend == "echo"
            await settled(engine)

    asyncio.run(main())
    assert executor.widest > 1 and executor.shut == 1
    assert threading.get_ident() not in executor.threads
    assert "octavo-engine" not in {thread.name for thread in threading.enumerate()}


def test_async_cancel_and_break_abort(model: Path) -> None:
    async def main() -> None:
        async with async_engine(model, EchoExecutor(delay=0.002)) as engine:

            async def endless() -> None:
                async for _ in engine.generate("x" * 50, max_tokens=200, ignore_eos=True):
                    pass

            task = asyncio.create_task(endless())
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await settled(engine)
            stream = engine.generate("x" * 50, max_tokens=200)
            async for _ in stream:
                break
            await stream.aclose()
            await settled(engine)

    asyncio.run(main())


def test_async_errors(model: Path) -> None:
    async def main() -> None:
        with pytest.raises(DownloadError):
            await AsyncLLMEngine(str(model / "nothing.gguf")).start()
        async with async_engine(model, EchoExecutor(fail_at=2)) as engine:
            with pytest.raises(RequestError):
                await engine.generate("x" * 300).output()
            with pytest.raises(EngineError):
                await engine.generate("abc").output()
            assert (await engine.generate("abc").output()).text == "ABC"
        with pytest.raises(EngineError, match="closed"):
            await engine.generate("abc").output()

    asyncio.run(main())


def test_an_engine_that_broke_down_says_so(model: Path) -> None:
    """As it does when the GPU is lost."""
    with engine_on(model, EchoExecutor(raise_at=3)) as engine:
        stream = engine.stream("abc")
        next(stream)
        with pytest.raises(RuntimeError, match="a bug on purpose"):
            engine.generate("abcdefgh")
        for call in (stream.output, lambda: engine.generate("abc")):
            with pytest.raises(EngineError, match="stopped: RuntimeError: a bug on purpose"):
                call()


def test_async_engine_thread_that_dies_ends_its_requests(model: Path) -> None:
    async def main() -> None:
        engine = async_engine(model, EchoExecutor(raise_at=2))
        with pytest.raises(EngineError, match="RuntimeError"):
            await engine.generate("abc").output()
        with pytest.raises(EngineError):
            await engine.generate("abc").output()
        await engine.close()

    asyncio.run(main())


def test_async_close_ends_what_is_in_flight(model: Path) -> None:
    async def main() -> None:
        engine = async_engine(model, EchoExecutor(delay=0.01))
        task = asyncio.create_task(engine.generate("x" * 50, max_tokens=200).output())
        await asyncio.sleep(0.1)
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            await task
        await engine.close()

    asyncio.run(main())
