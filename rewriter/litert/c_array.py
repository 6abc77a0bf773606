"""A LiteRT file as C: an aligned array, and a header that says what goes in and comes out."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from rewriter.litert.file_model import FileModel

ALIGNMENT = 16  # bytes: of a model in memory, as LiteRT for Microcontrollers asks for
_TYPES = {
    "INT8": "int8_t",
    "UINT8": "uint8_t",
    "INT16": "int16_t",
    "INT32": "int32_t",
    "INT64": "int64_t",
    "FLOAT32": "float",
}
_LINE = 12  # bytes in a line


def identifier(name: str) -> str:
    """A name as one of C: ``my-model`` is ``my_model``."""
    cleaned = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"model_{cleaned}" if not cleaned or cleaned[0].isdigit() else cleaned


def source(content: bytes, name: str) -> str:
    """The array, as the text of a ``.c`` file.

    Args:
      content: the LiteRT file.
      name: of the array and of its header, without a suffix; see :func:`identifier`.
    """
    rows = [content[i : i + _LINE] for i in range(0, len(content), _LINE)]
    lines = ",\n".join("    " + ", ".join(f"0x{byte:02x}" for byte in row) for row in rows)
    array = f"const unsigned char {identifier(name)}[{len(content)}]"
    return f'#include "{name}.h"\n\n_Alignas({ALIGNMENT}) {array} = {{\n{lines}\n}};\n'


def header(file: FileModel, size: int, name: str, lines: Mapping[str, str]) -> str:
    """The declaration and the contract, as the text of a ``.h`` file.

    Args:
      file: what the LiteRT file holds.
      size: of the file, in bytes.
      name: as for :func:`source`.
      lines: for inputs that are pixels: the line of C that fills them, by name.
    """
    own = identifier(name).upper()
    parts = [
        f"#ifndef {own}_H\n#define {own}_H\n",
        "#include <stdint.h>\n",
        '#ifdef __cplusplus\nextern "C" {\n#endif\n',
        f"/* A LiteRT model, aligned to {ALIGNMENT} bytes. */",
        f"#define {own}_SIZE {size}",
        f"extern const unsigned char {identifier(name)}[{own}_SIZE];\n",
    ]
    for kind, places in (("input", file.inputs), ("output", file.outputs)):
        for number, place in enumerate(places):
            prefix = f"{own}_{kind.upper()}_{number}"
            parts += _tensor(file, place, prefix, f"{kind} {number}", lines)
    parts.append(f"#ifdef __cplusplus\n}}\n#endif\n\n#endif /* {own}_H */\n")
    return "\n".join(parts)


def _tensor(
    file: FileModel, place: int, prefix: str, which: str, lines: Mapping[str, str]
) -> list[str]:
    tensor = file.tensors[place]
    names = {index: name for side in file.signature for name, index in side}
    title = names.get(place, tensor.name)
    shape = " x ".join(map(str, tensor.shape))
    text = f"/* {which}, {title!r}: {_TYPES.get(tensor.dtype, tensor.dtype)}, {shape}"
    if tensor.quantized:
        text += f";\n   real = {prefix}_SCALE * (stored - {prefix}_ZERO_POINT)"
    if which.startswith("input") and title in lines:
        text += f";\n   {lines[title].replace('//', '--')}"
    parts = [f"{text}. */", f"#define {prefix}_SIZE {math.prod(tensor.shape)}"]
    if tensor.quantized:
        parts.append(f"#define {prefix}_SCALE {float(tensor.scale[0])!r}f")
        parts.append(f"#define {prefix}_ZERO_POINT ({int(tensor.zero_point[0])})")
    return [*parts, ""]
