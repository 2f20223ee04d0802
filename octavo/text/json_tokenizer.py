"""Reads a model folder's tokenizer.json, and the small files beside it that name special tokens. For Tokenizer.load.

Every key is checked before it is used; what cannot be served exactly is refused by name (ModelFileError).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles.generation import end_ids
from octavo.modelfiles.jsonfile import read_object
from octavo.text.parts import AddedToken, TokenizerParts, byte_level_piece, sentencepiece_piece

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_parts(folder: Path) -> TokenizerParts:
    """The tokenizer of a folder with tokenizer.json; tokenizer_config.json and generation_config.json are optional."""
    from tokenizers import AddedToken as BackendToken
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = "; convert its tokenizer.model first" if (folder / "tokenizer.model").is_file() else ""
        raise ModelFileError(folder.name, f"folder has no tokenizer.json{hint}")
    try:
        # The library raises bare Exception for everything it cannot read.
        backend = Backend.from_buffer(path.read_bytes())  # its path need be no text
    except Exception as error:
        raise ModelFileError(path.name, f"not a readable tokenizer: {error}") from None
    backend.no_truncation()
    backend.no_padding()

    config = read_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    declared = _declared_tokens(config)
    known = backend.get_added_tokens_decoder()
    backend.add_tokens([BackendToken(**fields) for i, fields in sorted(declared.items()) if i not in known])
    names = _special_names(folder, config)
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    backend.add_special_tokens([name for name in dict.fromkeys(names.values()) if name not in special])
    special.update(names.values())
    added = tuple(
        AddedToken(i, t.content, t.content in special, t.lstrip, t.rstrip, t.single_word)
        for i, t in sorted(backend.get_added_tokens_decoder().items())
    )
    spelling, strips_space = _spelling(path.name, _decoder(backend))
    bos = names.get("bos_token")
    prefix_ids, suffix_ids = _affixes(backend)
    return TokenizerParts(
        backend=backend,
        piece=_piece_reader(backend, added, spelling),
        added=added,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1,
        bos_id=None if bos is None else backend.token_to_id(bos),
        eos_ids=_eos_ids(folder, backend, names),
        prefix_ids=prefix_ids,
        suffix_ids=suffix_ids,
        strips_space=strips_space,
        fresh_start=spelling is sentencepiece_piece,
        names=names,
    )


def _piece_reader(
    backend: Any, added: tuple[AddedToken, ...], spelling: Callable[[str], bytes]
) -> Callable[[int], bytes]:
    contents = {token.id: token.content.encode() for token in added}

    def piece(token_id: int) -> bytes:
        if token_id in contents:
            return contents[token_id]
        token = backend.id_to_token(token_id)
        return b"" if token is None else spelling(token)

    return piece


def _declared_tokens(config: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """added_tokens_decoder of tokenizer_config.json: id → fields of an added token."""
    declared = config.get("added_tokens_decoder", {})
    flags = ("special", "lstrip", "rstrip", "single_word", "normalized")
    try:
        return {
            int(i): {"content": str(t["content"]), **{flag: bool(t[flag]) for flag in flags if flag in t}}
            for i, t in declared.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ModelFileError("tokenizer_config.json", "added_tokens_decoder is not a map of id to token") from None


def _special_names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The named special tokens, from tokenizer_config.json, else special_tokens_map.json."""
    names: dict[str, str] = {}
    older = folder / "special_tokens_map.json"
    for source in (config, read_object(older) if older.is_file() else {}):
        for name in NAMES:
            value = source.get(name)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names.setdefault(name, value)
    return names


def _eos_ids(folder: Path, backend: Any, names: dict[str, str]) -> frozenset[int]:
    """The tokenizer's own end token and those that generation_config.json and config.json add."""
    own = {backend.token_to_id(names["eos_token"])} if "eos_token" in names else set()
    return frozenset(own.union(end_ids(folder)))


def _affixes(backend: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts around a prompt, seen on a line break."""
    encoding = backend.encode("\n")
    plain = backend.encode("\n", add_special_tokens=False).ids
    ids = encoding.ids
    for start in range(len(ids) - len(plain) + 1):
        if ids[start : start + len(plain)] == plain and all(encoding.special_tokens_mask[:start]):
            return tuple(ids[:start]), tuple(ids[start + len(plain) :])
    raise ModelFileError("tokenizer.json", "its post_processor changes the tokens of the text")


def _decoder(backend: Any) -> Any:
    """The decoder's own JSON, without parsing the whole file a second time."""
    return None if backend.decoder is None else json.loads(backend.decoder.__getstate__())


def _spelling(file: str, decoder: Any) -> tuple[Callable[[str], bytes], bool]:
    """How the decoder spells tokens, and whether it drops the first space of a text."""
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if kinds and set(kinds) <= {"ByteLevel", "Fuse"} and "ByteLevel" in kinds:
        return byte_level_piece, False
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips = any(
            (s["type"] == "Strip" and s.get("content") == " " and s.get("start", 0) > 0)
            or (
                s["type"] == "Metaspace"
                and s.get("prepend_scheme", "always") != "never"
                and s.get("add_prefix_space", True)
            )
            for s in steps
        )
        return sentencepiece_piece, strips
    raise ModelFileError(file, f"decoder {kinds or decoder!r} is not supported; known: byte-level and SentencePiece")
