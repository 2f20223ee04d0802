"""What a client loads of a model: its tokenizer, its chat template, its sampling defaults."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import ModelFileError
from octavo.modelfiles.files import ModelFiles, locate
from octavo.modelfiles.generation import sampling_defaults
from octavo.text.template import ChatTemplate
from octavo.text.tokenizer import Tokenizer
from octavo.types import SamplingParams


@dataclass(frozen=True)
class ClientModel:
    path: str
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams

    @classmethod
    def load(cls, files: ModelFiles) -> ClientModel:
        """Raises ModelFileError."""
        try:
            files = locate(files.path, files.name)
            tokenizer = Tokenizer.load(files)
            return cls(files.address, tokenizer, ChatTemplate.load(files, tokenizer), sampling_defaults(files))
        except OSError as error:
            raise ModelFileError(files.path.name, f"cannot be read: {error.strerror}") from None
