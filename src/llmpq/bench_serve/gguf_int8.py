"""The packaged GGUF file once more at 8 bits (Q8_0: blocks of 32 with a scale), for engines that read GGUF.

The packaged file's own grid is the reference model, which its 4-bit codes hold without loss; at Q8_0 the dequantised weights are rounded.
"""

import os
from pathlib import Path

import gguf
import numpy as np

from llmpq.errors import LlmpqError

_FILE_TYPE = "general.file_type"
_WRITTEN_ANYWAY = (gguf.Keys.General.ARCHITECTURE,)


def write_int8(source: Path, target: Path) -> None:
    """Write ``target``: the metadata of ``source``, its matrices at Q8_0 and its vectors in fp32. Atomic."""
    try:
        reader = gguf.GGUFReader(source)
    except (OSError, ValueError) as error:
        raise LlmpqError(f"{source}: not a GGUF file: {error}") from None
    partial = target.with_suffix(".partial")
    architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
    writer = gguf.GGUFWriter(partial, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _WRITTEN_ANYWAY:
            continue
        kinds = field.types
        value = int(gguf.LlamaFileType.MOSTLY_Q8_0) if name == _FILE_TYPE else field.contents()
        writer.add_key_value(name, value, kinds[0], sub_type=kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        # a vector may be stored in rows of its own type already
        values = np.ascontiguousarray(values, dtype=np.float32).reshape([int(size) for size in reversed(tensor.shape)])
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, target)
