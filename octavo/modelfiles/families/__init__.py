"""The families that are served: for each what its files say, without torch. A family is two files, this one and its
namesake in octavo/models; adding one is a line here and one in models/registry.py.

A folder's reference is the class in Transformers that its architecture names: a key that is not among its `defaults`
is one that class ignores, and so is ignored here, whatever it means to other families. A GGUF file's reference is
llama.cpp.
"""

from __future__ import annotations

from octavo.modelfiles.families import gemma3, llama, qwen, qwen3_5, qwen_moe
from octavo.modelfiles.families.reading import Folder, ReadGGUF

FOLDERS: dict[str, Folder] = {**llama.FOLDERS, **qwen.FOLDERS, **qwen_moe.FOLDERS, **qwen3_5.FOLDERS, **gemma3.FOLDERS}
"""By what `architectures` names."""
GGUF: dict[str, ReadGGUF] = {**llama.GGUF, **qwen.GGUF, **qwen_moe.GGUF, **qwen3_5.GGUF, **gemma3.GGUF}
"""By general.architecture."""
