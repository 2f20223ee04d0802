"""`octavo show`: what a model is, from its files alone: nothing is loaded or fetched."""

from __future__ import annotations

from typing import Any

import msgspec

from octavo.cli.table import numbers_by_type, table
from octavo.config.engine import EngineConfig
from octavo.config.suggest import did_you_mean
from octavo.errors import ConfigError
from octavo.modelfiles.facts import ModelFacts, read_facts
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.generation import sampling_defaults
from octavo.modelfiles.hub.demos import DEMOS
from octavo.modelfiles.hub.fetch import find
from octavo.modelfiles.hub.inventory import inventory
from octavo.modelfiles.hub.progress import megabytes
from octavo.modelfiles.stored import count_numbers


def _size(files: ModelFiles) -> int:
    if files.is_gguf:
        return files.path.stat().st_size
    return sum(path.stat().st_size for path in files.path.glob("*.safetensors"))


def _about(files: ModelFiles, facts: ModelFacts) -> dict[str, Any]:
    defaults = sampling_defaults(files)
    stated = {
        name: value for name in defaults.__struct_fields__ if (value := getattr(defaults, name)) not in (None, 0.0, [])
    }
    return {
        "name": files.name,
        "file": str(files.path),
        "bytes": _size(files),
        "architecture": facts.architecture,
        "layers": facts.num_layers,
        "hidden_size": facts.hidden_size,
        "heads": facts.attention.num_heads,
        "kv_heads": facts.attention.num_kv_heads,
        "head_dim": facts.attention.head_dim,
        "vocabulary": facts.vocab_size,
        "context": facts.max_position,
        "weights": count_numbers(files),
        "sampling": {name: value for name, value in stated.items() if name in SHOWN},
    }


SHOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Of the model's own sampling defaults."""


def run_show(config: EngineConfig, *, as_json: bool) -> None:
    """Print it. Raises ConfigError for a model that is not here, ModelFileError for one that cannot be read."""
    files = find(config)
    if files is None:
        known = [*DEMOS, *(model.name for model in inventory())]
        can_be_fetched = config.model in DEMOS or "/" in config.model
        hint = (config.model not in known and did_you_mean(config.model, known)) or (
            f"; `octavo pull {config.model}` fetches it"
            if can_be_fetched
            else "; `octavo list` lists the models that are"
        )
        raise ConfigError(f"{config.model} is not here{hint}")
    about = _about(files, read_facts(files))
    if as_json:
        print(msgspec.json.encode(about).decode())
        return
    weights = numbers_by_type(about["weights"])
    sampling = ", ".join(f"{name} {value:g}" for name, value in about["sampling"].items())
    rows = [
        ("name", about["name"]),
        ("file", f"{about['file']} ({megabytes(about['bytes'])})"),
        ("architecture", about["architecture"]),
        (
            "shape",
            f"{about['layers']} layers, hidden {about['hidden_size']}, {about['heads']} heads, "
            f"{about['kv_heads']} KV heads of {about['head_dim']}",
        ),
        ("vocabulary", f"{about['vocabulary']:,} tokens"),
        ("context", f"{about['context']:,} tokens"),
        ("weights", weights),
        ("its sampling", sampling or "not stated; see `octavo chat --help`"),
    ]
    print(table(("", ""), rows).lstrip("\n"))
