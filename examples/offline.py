"""Complete a few prompts in one process. Run: .venv/bin/python examples/offline.py"""

from octavo import LLMEngine, SamplingParams

with LLMEngine(model="smollm2-135m") as engine:
    prompts = ["The capital of France is", "Water boils at", "def fibonacci(n):"]
    for output in engine.generate(prompts, SamplingParams(temperature=0, max_tokens=32)):
        print(f"{output.prompt}{output.text}")
        print(f"  {output.metrics.completion_tokens} tokens, {output.metrics.tokens_per_second:.0f} tokens/s\n")
