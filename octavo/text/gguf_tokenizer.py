"""Builds a tokenizer from GGUF metadata (`tokenizer.ggml.*`). Called by Tokenizer.load.

Two families: `gpt2`, byte-level BPE with merges and a named pre-tokenizer, and `llama`, SentencePiece with scores.
Every key is checked before it is used; what cannot be served exactly is refused by name (ModelFileError).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles.gguf import read_header
from octavo.text.parts import METASPACE, AddedToken, TokenizerParts, byte_level_piece, sentencepiece_piece
from octavo.text.pretokenizers import KINDS, build

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""The values of tokenizer.ggml.token_type."""

END_OF_GENERATION = frozenset(
    {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|end_of_text|>", "<|endoftext|>", "<|end_of_turn|>"}
    | {"<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<eos>", "</s>", "<end_of_utterance>"}
    | {"<turn|>", "<|tool_response>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "[e~["}
    | {"<｜end▁of▁sentence｜>"}  # noqa: RUF001
)
"""Where llama.cpp ends, whatever the file names as EOS (many files name only one of theirs) and whatever type it gives
these tokens: fine-tunes often have them as user-defined or normal, where text of a user could spell them."""
FILL_IN_END = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""The same for what ends code that is filled in: used where the file does not name the id itself."""
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unknown": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""Ids that llama.cpp takes where a file names none, or one that does not exist. Those of gpt2 are Falcon's; in other
vocabularies 11 is a word (a comma, for Qwen), so they count only where that token is a control token."""
NAMES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
}


class _Metadata:
    """Typed reading of the tokenizer's keys; every refusal names the file and the key."""

    def __init__(self, file: str, values: dict[str, Any]) -> None:
        self.file = file
        self._values = values
        self.tokens: list[str] = self.array("tokens", str) or []
        if not self.tokens:
            raise self.error("tokens", "is missing or empty")
        size = len(self.tokens)
        self.types = self.array("token_type", int, size) or [NORMAL] * size
        self.ids = {name: self.token_id(name) for name in (*NAMES, "eot", "eom", *FILL_IN_END)}
        named = {i for name, i in self.ids.items() if i is not None and name != "padding"}
        ends = set(END_OF_GENERATION).union(*FILL_IN_END.values())
        self.special = named | {
            i
            for i, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if kind in (CONTROL, UNKNOWN) or token in ends
        }

    def error(self, key: str, what: str) -> ModelFileError:
        return ModelFileError(self.file, f"tokenizer.ggml.{key} {what}")

    def array(self, key: str, kind: type, size: int | None = None) -> list[Any] | None:
        values = self._values.get(f"tokenizer.ggml.{key}")
        if values is None:
            return None
        if not isinstance(values, list) or not set(map(type, values)) <= {kind}:
            raise self.error(key, f"is not an array of {kind.__name__}")
        if size is not None and len(values) != size:
            raise self.error(key, f"has {len(values)} entries for {size} tokens")
        return values

    def scalar(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._values.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default
        if type(value) is not kind:
            raise self.error(key, f"is {value!r}; expected {kind.__name__}")
        return value

    def token_id(self, name: str) -> int | None:
        """The id under `name`, else llama.cpp's default if there is such a token."""
        value: int | None = self.scalar(f"{name}_token_id", int)
        if value is not None and 0 <= value < len(self.tokens):
            return value
        model = str(self._values.get("tokenizer.ggml.model"))
        default = DEFAULT_IDS.get(model, {}).get(name)
        if default is None or default >= len(self.tokens):
            return None
        return default if model == "llama" or self.types[default] == CONTROL else None

    def around(self, name: str, default: bool) -> int | None:
        """The token that goes before (bos) or after (eos) a prompt, None where none does."""
        if not self.scalar(f"add_{name}_token", bool, default):
            return None
        if self.ids[name] is None:
            raise self.error(f"{name}_token_id", f"is missing, and each prompt needs it (add_{name}_token)")
        return self.ids[name]

    def vocab(self, keep: int | None = None) -> dict[str, int]:
        """Token → id for the model that merges. Special tokens, but `keep`, stand under names that no text spells."""
        hidden = self.special - {keep}
        return {f"\0{i}" if i in hidden else token: i for i, token in enumerate(self.tokens)}

    def architecture(self) -> str:
        return str(self._values.get("general.architecture", ""))


def read_parts(path: Path) -> TokenizerParts:
    """The tokenizer of a .gguf file."""
    return parts_from_metadata(path.name, read_header(path).metadata)


def parts_from_metadata(file: str, metadata: dict[str, Any]) -> TokenizerParts:
    """The tokenizer that GGUF metadata describes; `file` is named in errors."""
    meta = _Metadata(file, metadata)
    model = meta.scalar("model", str)
    if model == "gpt2":
        return _byte_level(meta)
    if model == "llama":
        return _sentencepiece(meta)
    raise meta.error("model", f"is {model!r}, which is not supported; known: gpt2, llama")


def _byte_level(meta: _Metadata) -> TokenizerParts:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    name = meta.scalar("pre", str, "default")
    kind = KINDS.get(name)
    if kind is None:
        raise meta.error("pre", f"is {name!r}, an unknown pre-tokenizer; known: {', '.join(sorted(KINDS))}")
    merges = meta.array("merges", str)
    if merges is None:
        raise meta.error("merges", "is missing")
    hidden = {meta.tokens[i] for i in meta.special}
    pairs = [merge.partition(" ")[::2] for merge in merges]
    pairs = [(a, b) for a, b in pairs if a + b not in hidden and a not in hidden and b not in hidden]
    vocab = meta.vocab()
    backend = Backend(_model(meta, models.BPE, vocab=vocab, merges=pairs, ignore_merges=kind.ignore_merges))
    backend.pre_tokenizer = build(kind)
    if kind.nfc:
        backend.normalizer = normalizers.NFC()
    return _finish(meta, backend, byte_level_piece, kind.add_bos, strips_space=False)


def _sentencepiece(meta: _Metadata) -> TokenizerParts:
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers

    scores = meta.array("scores", float, len(meta.tokens))
    if scores is None:
        raise meta.error("scores", "is missing")
    if meta.architecture() in ("gemma", "gemma2", "gemma3"):
        # Gemma's scores do not follow the order of its merges; its ids do.
        scores = [float(-i) for i in range(len(scores))]
    unknown = meta.ids["unknown"]
    unknown = meta.types.index(UNKNOWN) if unknown is None and UNKNOWN in meta.types else unknown
    vocab = meta.vocab(keep=unknown)
    backend = Backend(
        _model(
            meta,
            models.BPE,
            vocab=vocab,
            merges=_merges_from_scores(meta, vocab, scores),
            unk_token=None if unknown is None else meta.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    adds_space = meta.scalar("add_space_prefix", bool, True)
    steps = [normalizers.Prepend(METASPACE)] if adds_space else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", METASPACE)])
    return _finish(meta, backend, sentencepiece_piece, True, strips_space=adds_space)


def _merges_from_scores(meta: _Metadata, vocab: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece joins the neighbours whose union is the best-scored token: as merges, every way to cut every token
    in two tokens, best-scored unions first."""
    found: list[tuple[float, int, int, str, str]] = []
    for token, i in vocab.items():
        if meta.types[i] not in (NORMAL, USER_DEFINED) or i in meta.special:
            continue
        for cut in range(1, len(token)):
            left = vocab.get(token[:cut])
            if left is not None and (right := vocab.get(token[cut:])) is not None:
                found.append((-scores[i], left, right, token[:cut], token[cut:]))
    found.sort(key=lambda merge: merge[:3])
    return [(left, right) for _, _, _, left, right in found]


def _model(meta: _Metadata, build_model: Callable[..., Any], **arguments: Any) -> Any:
    try:
        # The library raises bare Exception for a merge whose parts or result are not tokens.
        return build_model(**arguments)
    except Exception as error:
        raise meta.error("merges", f"do not fit the vocabulary: {error}") from None


def _finish(
    meta: _Metadata, backend: Any, spelling: Callable[[str], bytes], add_bos: bool, *, strips_space: bool
) -> TokenizerParts:
    """Added tokens, what goes around a prompt, and where generation stops."""
    from tokenizers import AddedToken as BackendToken

    ids, tokens, types = meta.ids, meta.tokens, meta.types
    added = tuple(
        AddedToken(i, token, special=i in meta.special)
        for i, token in enumerate(tokens)
        # Of two equal user-defined tokens the last is the one that the vocabulary knows
        if token and (i in meta.special or (types[i] == USER_DEFINED and backend.token_to_id(token) == i))
    )
    # Special tokens are not told to the backend: Tokenizer puts their ids in.
    backend.add_tokens([BackendToken(t.content, normalized=False, special=False) for t in added if not t.special])
    raw = frozenset(t.id for t in added)

    def piece(token_id: int) -> bytes:
        if token_id in raw or types[token_id] in (CONTROL, USER_DEFINED, UNUSED):
            return tokens[token_id].encode()
        return spelling(tokens[token_id])

    before = meta.around("bos", add_bos)
    after = meta.around("eos", False)
    return TokenizerParts(
        backend=backend,
        piece=piece,
        added=added,
        vocab_size=len(tokens),
        bos_id=ids["bos"],
        eos_ids=_end_ids(ids, added),
        prefix_ids=() if before is None else (before,),
        suffix_ids=() if after is None else (after,),
        strips_space=strips_space,
        fresh_start=strips_space,
        names={name: tokens[i] for key, name in NAMES.items() if (i := ids[key]) is not None},
    )


def _end_ids(ids: dict[str, int | None], added: tuple[AddedToken, ...]) -> frozenset[int]:
    special = {token.content: token.id for token in added if token.special}
    found = {content: i for content, i in special.items() if content in END_OF_GENERATION}
    if found.keys() >= {"<|return|>", "<|call|>"} or found.keys() >= {"<|flush|>", "<|calls|>"}:
        # The harmony format and its kin: <|end|> ends a message, not the turn.
        found.pop("<|end|>", None)
    if "<|tool_response>" in found:
        found.pop("</s>", None)
    for name, contents in FILL_IN_END.items():
        if ids[name] is None:
            found.update({content: special[content] for content in contents if content in special})
    ends = {i for name in ("eos", "eot", "eom", *FILL_IN_END) if (i := ids[name]) is not None}
    return frozenset(ends | set(found.values()))
