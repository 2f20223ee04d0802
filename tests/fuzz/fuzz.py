"""Fuzz one target with atheris: `python tests/fuzz/fuzz.py TARGET CORPUS SECONDS`. Called by tools/fuzz.

Ends with 0 when the time is over. A crash, an exception that is none of ours, more than 10 s for one input or more than
2 GiB of memory ends it with another code and leaves the input in the folder above the corpus.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS / "fuzz"), str(TESTS / "procs"), str(TESTS / "pure")]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["octavo"], enable_loader_override=False):
    import targets


def main() -> None:
    name, corpus, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(targets.seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    logging.disable(logging.CRITICAL)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-max_len=8192",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={corpus.parent}/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], targets.TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
