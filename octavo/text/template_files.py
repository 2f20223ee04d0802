"""Where a model keeps its chat templates: GGUF metadata, chat_template.jinja, tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles
from octavo.modelfiles.gguf import read_header
from octavo.modelfiles.jsonfile import read_object

MAX_TEMPLATE_BYTES = 1 << 20


def templates_of(files: ModelFiles) -> dict[str, str]:
    """The templates by name. Raises ModelFileError when one is there but not readable."""
    return _gguf_templates(files.path) if files.is_gguf else _folder_templates(files.path)


def _gguf_templates(path: Path) -> dict[str, str]:
    """`tokenizer.chat_template`, and the named ones `tokenizer.chat_template.NAME`."""
    prefix = "tokenizer.chat_template"
    found: dict[str, str] = {}
    for key, value in read_header(path).metadata.items():
        if key == prefix or key.startswith(prefix + "."):
            found[key[len(prefix) + 1 :] or "default"] = _checked(path.name, key, value)
    return found


def _folder_templates(folder: Path) -> dict[str, str]:
    """chat_template.jinja wins over tokenizer_config.json, whose entry is one template or a list of named ones."""
    found: dict[str, str] = {}
    if (folder / "tokenizer_config.json").is_file():
        value = read_object(folder / "tokenizer_config.json").get("chat_template")
        entries = (
            value if isinstance(value, list) else [] if value is None else [{"name": "default", "template": value}]
        )
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise ModelFileError("tokenizer_config.json", "chat_template is not a template or a list of named ones")
            found[entry["name"]] = _checked("tokenizer_config.json", "chat_template", entry.get("template"))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read_template(path)
    if (folder / "chat_template.jinja").is_file():
        found["default"] = _read_template(folder / "chat_template.jinja")
    return found


def _read_template(path: Path) -> str:
    try:
        return _checked(path.name, "template", path.read_bytes().decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileError(path.name, f"not readable: {error}") from None


def _checked(file: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEMPLATE_BYTES:
        raise ModelFileError(file, f"{key} is not a template of at most {MAX_TEMPLATE_BYTES} characters")
    return value
