"""Writes a GGUF model again with its matrices dense: F16, BF16 or F32, dequantized by the gguf package.

    python benchmarks/dense_model.py FILE.gguf OUT.gguf [--type F16]

Metadata and all other tensors stay as they are. For quality.py, and to measure speed by dense weights. Needs gguf
(requirements-dev.txt).
"""

from __future__ import annotations

import argparse

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, LlamaFileType
from gguf.quants import dequantize, quantize

FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
}


def write(file: str, out: str, kind: str) -> None:
    reader, target = GGUFReader(file), GGMLQuantizationType[kind]
    architecture = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(out, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        of_elements = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], of_elements)
    writer.add_file_type(FILE_TYPES[kind])
    for tensor in reader.tensors:
        if len(tensor.shape) < 2:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        else:
            dense = quantize(dequantize(tensor.data, tensor.tensor_type), target)
            writer.add_tensor(tensor.name, dense, raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A GGUF model with dense matrices.")
    parser.add_argument("file")
    parser.add_argument("out")
    parser.add_argument("--type", choices=FILE_TYPES, default="F16")
    options = parser.parse_args()
    write(options.file, options.out, options.type)


if __name__ == "__main__":
    main()
