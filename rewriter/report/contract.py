"""What goes into the file and what comes out of it, with lines of code that fill and read them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from rewriter.checking import reading
from rewriter.litert.file_model import FileModel

_C = {
    "INT8": "int8_t",
    "UINT8": "uint8_t",
    "INT16": "int16_t",
    "INT32": "int32_t",
    "FLOAT32": "float",
}
_LIMITS = {"INT8": (-128, 127), "UINT8": (0, 255), "INT16": (-32767, 32767)}


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or an output of the file.

    Attributes:
      name: in the signature.
      dtype: as in LiteRT's schema.
      shape: samples first.
      scale, zero_point: real = scale * (stored - zero_point); None where it is not quantized.
      line: for an input whose values are levels, such as a camera's: the line of C that makes the
        integer ``q`` of level number ``pixel``; None for all others.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | None
    zero_point: int | None
    line: str | None = None

    @property
    def c_type(self) -> str:
        """The type of its elements in C; that of LiteRT's schema where C has none."""
        return _C.get(self.dtype, self.dtype)

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def limits(self) -> tuple[int, int] | None:
        """The smallest and the largest stored integer; None where it is not quantized."""
        return None if self.scale is None else _LIMITS.get(self.dtype)


@dataclasses.dataclass(frozen=True)
class Contract:
    """All inputs and outputs, in the file's order, and code that uses them.

    Attributes:
      inputs, outputs: the ports.
      c: functions in C99 that convert between real numbers and what is stored.
      python: lines that run the file from the array or arrays ``inputs``.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    c: str
    python: str


def of_file(content: bytes, lines: Mapping[str, str], path: str) -> Contract:
    """The contract of a file.

    Args:
      content: the file.
      lines: see :func:`rewriter.export.input_lines`.
      path: where it is, for the code.
    """
    file = reading.read(content)
    inputs = tuple(_ports(file, 0, lines))
    outputs = tuple(_ports(file, 1, {}))
    functions = [_fill(number, port) for number, port in enumerate(inputs)]
    functions += [_read(number, port) for number, port in enumerate(outputs)]
    functions = list(filter(None, functions)) or ["/* Nothing is quantized: there is no scale. */"]
    c = "\n\n".join(["#include <math.h>\n#include <stdint.h>", *functions])
    return Contract(inputs, outputs, c, _python(inputs, outputs, path))


def _ports(file: FileModel, side: int, lines: Mapping[str, str]) -> Iterator[Port]:
    names = {index: name for name, index in file.signature[side]}
    for place in (file.inputs, file.outputs)[side]:
        tensor = file.tensors[place]
        name = names.get(place, tensor.name)
        yield Port(
            name,
            tensor.dtype,
            tensor.shape,
            float(tensor.scale[0]) if tensor.quantized else None,
            int(tensor.zero_point[0]) if tensor.quantized else None,
            lines.get(name) if tensor.dtype == "INT8" else None,
        )


def _single(value: float) -> str:
    """A number of float32 in C, to the bit."""
    text = f"{value:.9g}"
    return (text if re.search(r"[.e]", text) else f"{text}.0") + "f"


def _fill(number: int, port: Port) -> str:
    if port.limits is None or port.scale is None:
        return ""
    low, high = port.limits
    text = (
        f"/* Input {number}: real numbers into {port.c_type}. */\n"
        f"void fill_input_{number}(const float *real, {port.c_type} *stored) {{\n"
        f"    for (int i = 0; i < {port.size}; ++i) {{\n"
        f"        float q = roundf(real[i] / {_single(port.scale)}) + {port.zero_point};\n"
        f"        stored[i] = ({port.c_type})fmaxf({low}, fminf({high}, q));\n"
        "    }\n}"
    )
    if port.line is None:
        return text
    line, _, meaning = port.line.partition("  // ")
    table = line.startswith("static")
    body = "        stored[i] = q[pixels[i]];\n"
    if not table:
        body = (
            f"        int pixel = pixels[i], q;\n        {line}\n        stored[i] = (int8_t)q;\n"
        )
    return (
        f"{text}\n\n/* The same from pixels, {meaning}. */\n"
        f"void fill_input_{number}_from_pixels(const uint8_t *pixels, int8_t *stored) {{\n"
        + (f"    {line}\n" if table else "")
        + f"    for (int i = 0; i < {port.size}; ++i) {{\n{body}    }}\n}}"
    )


def _read(number: int, port: Port) -> str:
    if port.scale is None:
        return ""
    return (
        f"/* Output {number}: {port.c_type} into real numbers. */\n"
        f"void read_output_{number}(const {port.c_type} *stored, float *real) {{\n"
        f"    for (int i = 0; i < {port.size}; ++i)\n"
        f"        real[i] = {_single(port.scale)} * (float)(stored[i] - ({port.zero_point}));\n"
        "}"
    )


def _python(inputs: tuple[Port, ...], outputs: tuple[Port, ...], path: str) -> str:
    lines = [
        "import numpy as np",
        "from ai_edge_litert.interpreter import Interpreter",
        "",
        f"interpreter = Interpreter({path!r})",
        "interpreter.allocate_tensors()",
    ]
    for number, port in enumerate(inputs):
        lines.append(f"x = inputs[{number}]  # real numbers of shape {port.shape}")
        if port.limits is not None:
            low, high = port.limits
            lines.append(f"x = np.round(x / np.float32({port.scale!r})) + {port.zero_point}")
            lines.append(f"x = np.clip(x, {low}, {high})")
        lines.append(f"index = interpreter.get_input_details()[{number}]['index']")
        lines.append(f"interpreter.set_tensor(index, x.astype(np.{port.dtype.lower()}))")
    lines += ["interpreter.invoke()", "outputs = []"]
    for number, port in enumerate(outputs):
        lines.append(f"index = interpreter.get_output_details()[{number}]['index']")
        lines.append("y = interpreter.get_tensor(index)")
        if port.scale is not None:
            single = f"np.float32({port.scale!r})"
            lines.append(f"y = {single} * (y.astype(np.float32) - {port.zero_point})")
        lines.append("outputs.append(y)")
    return "\n".join(lines)
