"""llama.cpp on a GGUF file, through its batch API. Prompts go in together, as many tokens in a call as it takes.

The next token is found with NumPy's argmax on llama.cpp's logits: faster than its own chain of samplers.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import time

import llama_cpp as lc
import numpy as np
from work import Run, arguments, measure, prompts, threads

BATCH, MICRO_BATCH = 4096, 512


class Peer:
    def __init__(self, path: str) -> None:
        self._quiet = lc.llama_log_callback(lambda *_: None)  # kept alive for the library
        lc.llama_log_set(self._quiet, ctypes.c_void_p(0))
        lc.llama_backend_init()
        self._model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self._model))

    def run(self, streams: int, input_len: int, output_len: int) -> Run:
        context = self._context(streams, input_len + output_len)
        given = prompts(streams, input_len, self._vocab_size)
        batch = lc.llama_batch_init(max(BATCH, streams), 0, 1)
        started = time.perf_counter()
        rows = [(s, i, token, i == input_len - 1) for s, prompt in enumerate(given) for i, token in enumerate(prompt)]
        last: dict[int, int] = {}
        for first in range(0, len(rows), BATCH):
            last |= self._decode(context, batch, rows[first : first + BATCH])
        for step in range(output_len - 1):
            rows = [(s, input_len + step, last[s], True) for s in range(streams)]
            last = self._decode(context, batch, rows)
        seconds = time.perf_counter() - started
        lc.llama_batch_free(batch)
        lc.llama_free(context)
        return Run(streams * input_len, streams * output_len, seconds)

    def _context(self, streams: int, length: int) -> object:
        p = lc.llama_context_default_params()
        p.n_ctx, p.n_seq_max = streams * (length + 255) // 256 * 256, streams
        p.n_batch, p.n_ubatch = BATCH, MICRO_BATCH
        p.n_threads = p.n_threads_batch = threads()
        return lc.llama_init_from_model(self._model, p)

    def _decode(self, context: object, batch: object, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """rows: (sequence, position, token, whether its logits are wanted). → the next token by sequence."""
        batch.n_tokens = len(rows)
        for i, (sequence, position, token, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if (code := lc.llama_decode(context, batch)) != 0:
            raise SystemExit(f"llama_decode answered {code}")
        return {
            sequence: int(np.ctypeslib.as_array(lc.llama_get_logits_ith(context, i), (self._vocab_size,)).argmax())
            for i, (sequence, _, _, wanted) in enumerate(rows)
            if wanted
        }


if __name__ == "__main__":
    args = arguments(__doc__)
    peer = Peer(str(args.model))
    measure(peer.run, args.work, {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")})
