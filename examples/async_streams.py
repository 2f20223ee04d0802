"""Two streams at once on one event loop; the second is left half-way.

Run: .venv/bin/python examples/async_streams.py
"""

import asyncio

from octavo import AsyncLLMEngine, SamplingParams


async def tell(engine: AsyncLLMEngine, prompt: str, most: int) -> str:
    text = prompt
    num_deltas = 0
    stream = engine.generate(prompt, SamplingParams(max_tokens=48, seed=1))
    async for delta in stream:
        text += delta.text
        num_deltas += 1
        if num_deltas == most:
            break  # leaving the stream aborts the request
    return text


async def main() -> None:
    async with AsyncLLMEngine(model="smollm2-135m") as engine:
        stories = await asyncio.gather(tell(engine, "Once upon a time", 1000), tell(engine, "In the beginning", 10))
    print("\n\n".join(stories))


asyncio.run(main())
