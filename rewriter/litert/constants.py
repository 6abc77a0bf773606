"""Exact constants: kernels, biases and their scales in a converted file.

The converter chooses its own kernel scale per channel (max|w| / 127). Where a channel is dead, has
a scale bounded from below so that its bias fits, or shares one scale with the others, that is not
the program's grid. So the program's integers are written over the converter's, after a check that
the converter's mean the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import flatbuffer
from rewriter.litert.flatbuffer import FileOperator
from rewriter.litert.integer_elementwise import constant
from rewriter.program import Operator, Step


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a LiteRT operator stores its constants.

    Attributes:
      kernel, bias: positions among the operator's inputs.
      to_file: from Keras's kernel layout to the file's.
      axis: the axis of the output channels in the file's kernel.
    """

    kernel: int
    bias: int
    to_file: Callable[[np.ndarray], np.ndarray]
    axis: int


LAYOUTS = {
    "CONV_2D": Layout(1, 2, lambda w: w.transpose(3, 0, 1, 2), 0),  # HWIO -> OHWI
    "DEPTHWISE_CONV_2D": Layout(  # HWIM -> 1HW(I*M)
        1, 2, lambda w: w.reshape(1, *w.shape[:2], -1), 3
    ),
    "TRANSPOSE_CONV": Layout(1, 3, lambda w: w.transpose(2, 0, 1, 3), 0),  # HWOI -> OHWI
    "FULLY_CONNECTED": Layout(1, 2, lambda w: w.transpose(1, 0), 0),  # IO -> OI
}


def kernel_disagreement(model: Any, op: FileOperator, operator: Operator) -> str | None:
    """Why the converter's kernel and bias are not the operator's; ``None`` if they are.

    Every weight must be within half a step of the converter's own grid, and equal where both
    grids are the same one (the channel's largest magnitude is 127).
    """
    layout = LAYOUTS[op.kind]
    tensors = model.subgraphs[0].tensors
    if op.kind != operator.kind:
        return f"the file has {op.kind} in the place of {operator.kind}"
    tensor = tensors[op.inputs[layout.kernel]]
    if tensor.type != flatbuffer.schema.TensorType.INT8:
        return "the kernel in the file is not int8"
    found = flatbuffer.stored(model, op.inputs[layout.kernel])
    wanted = layout.to_file(np.asarray(operator.kernel))
    if found.shape != wanted.shape:
        return f"the kernel's shape is {found.shape}, expected {wanted.shape}"
    found = _by_channel(found, layout.axis)
    wanted = _by_channel(wanted, layout.axis)
    own = np.broadcast_to(np.asarray(tensor.quantization.scale, np.float64), found.shape[:1])
    ours = np.asarray(operator.kernel_scale, np.float64)
    top = np.maximum(wanted.max(axis=1, initial=0), -wanted.min(axis=1, initial=0).astype(np.int16))
    # Where the integers are the same, the largest is the farthest apart in real values.
    off = np.abs(top * own - top * ours) > 0.51 * own
    other = np.flatnonzero((found != wanted).any(axis=1))
    if other.size:
        off[other] = _differ(found[other], wanted[other], own[other], ours[other], top[other])
    off &= top > 0
    if off.any():
        channels = np.flatnonzero(off)
        return f"the weights differ in output channels {channels[:8].tolist()}"
    return _bias_disagreement(model, op, operator, own, ours)


def _by_channel(kernel: np.ndarray, axis: int) -> np.ndarray:
    """One contiguous row of weights for each output channel."""
    return np.ascontiguousarray(np.moveaxis(kernel, axis, 0)).reshape(kernel.shape[axis], -1)


def _differ(
    found: np.ndarray, wanted: np.ndarray, own: np.ndarray, ours: np.ndarray, top: np.ndarray
) -> np.ndarray:
    """Which rows of weights are not the same numbers: see :func:`kernel_disagreement`."""
    own, ours = own[:, None], ours[:, None]
    off = np.abs(found * own - wanted * ours) > 0.51 * own
    full = (top[:, None] == 127) & np.isclose(own, ours, rtol=1e-5, atol=0)
    return (off | (full & (found != wanted))).any(axis=1)


def _bias_disagreement(
    model: Any, op: FileOperator, operator: Operator, own: np.ndarray, ours: np.ndarray
) -> str | None:
    """The same for the bias, where the converter's int32 could hold it."""
    position = LAYOUTS[op.kind].bias
    present = len(op.inputs) > position and op.inputs[position] >= 0
    if operator.bias is None or not present or operator.inputs[0] is None:
        return None
    bias = flatbuffer.stored(model, op.inputs[position]).astype(np.float64)
    step, our_step = operator.inputs[0].scale * own, operator.inputs[0].scale * ours
    real = operator.bias * our_step
    held = np.abs(real) < 2.0**30 * step
    # A float32 bias carries a relative error of 2**-24 into the converter.
    off = np.abs(bias * step - real) > 0.51 * step + our_step + 1e-6 * np.abs(real)
    if (off & held).any():
        channels = np.flatnonzero(off & held)
        return f"the bias differs in output channels {channels[:8].tolist()}"
    return None


def constant_difference(model: Any, op: FileOperator, operator: Operator) -> str | None:
    """How the constants of a finished file differ from the operator's, to the bit."""
    if op.kind not in LAYOUTS or op.kind != operator.kind:
        return f"the file has {op.kind} in the place of {operator.kind}"
    layout, tensors = LAYOUTS[op.kind], model.subgraphs[0].tensors

    def differs(position: int, values: np.ndarray, scale: np.ndarray) -> bool:
        index = op.inputs[position] if position < len(op.inputs) else -1
        return (
            index < 0
            or not np.array_equal(flatbuffer.stored(model, index), values)
            or not np.array_equal(tensors[index].quantization.scale, scale)
        )

    scale = np.asarray(operator.kernel_scale, np.float32)
    if differs(layout.kernel, layout.to_file(np.asarray(operator.kernel)), scale):
        return "the kernel or its scales differ"
    source = operator.inputs[0]
    if operator.bias is None or source is None:
        return None
    if differs(layout.bias, operator.bias, np.float32(source.scale) * scale):
        return "the bias or its scales differ"
    return None


class ConstantWriter:
    """Gives operators constants of their own; equal ones are stored once."""

    def __init__(self, model: Any):
        self._model = model
        self._seen: dict[tuple[Any, ...], int] = {}

    def add(
        self, name: str, values: np.ndarray, scale: np.ndarray, axis: int, zero_point: int = 0
    ) -> int:
        """Append a quantized constant; returns the index of its tensor."""
        shape = np.shape(values)
        values, scale = np.ascontiguousarray(values), np.asarray(scale, np.float32)
        data = values.tobytes()
        key = (shape, values.dtype.str, axis, zero_point, data, scale.tobytes())
        if key in self._seen:
            return self._seen[key]
        schema = flatbuffer.schema
        raw = np.frombuffer(data, np.uint8)
        self._model.buffers.append(schema.BufferT(data=raw))
        tensor = schema.TensorT()
        tensor.name = name
        tensor.shape = np.asarray(shape, np.int32)
        tensor.type = getattr(schema.TensorType, values.dtype.name.upper())
        tensor.buffer = len(self._model.buffers) - 1
        tensor.hasRank = True
        tensor.quantization = schema.QuantizationParametersT(
            scale=scale,
            zeroPoint=np.full(scale.shape, zero_point, np.int64),
            quantizedDimension=axis,
        )
        tensors = self._model.subgraphs[0].tensors
        tensors.append(tensor)
        self._seen[key] = len(tensors) - 1
        return self._seen[key]


def patch_constants(model: Any, steps: list[tuple[Step, FileOperator, int]]) -> None:
    """Overwrite kernels, kernel scales, biases and bias scales with the program's.

    Args:
      model: the file as ``ModelT``, changed in place.
      steps: each step with constants, its operator in the file and that operator's position.

    Raises:
      ExportError: the converter's constants are not roundings of the program's: something was
        reordered on the way. The message names the Keras layer.
    """
    writer = ConstantWriter(model)
    graph = model.subgraphs[0]
    for step, op, position in steps:
        reason = kernel_disagreement(model, op, step.operator)
        if reason is not None:
            raise ExportError(
                f"Layer '{step.layer}': the converted file does not hold the constants of step "
                f"'{step.name}' ({step.operator.kind}): {reason}. Please report this model."
            )
        layout, operator = LAYOUTS[op.kind], step.operator
        inputs = list(op.inputs) + [-1] * (layout.bias + 1 - len(op.inputs))
        scale = np.asarray(operator.kernel_scale, np.float32)
        kernel = layout.to_file(np.asarray(operator.kernel, np.int8))
        inputs[layout.kernel] = writer.add(f"{step.name}/kernel", kernel, scale, layout.axis)
        source = operator.inputs[0]
        if operator.bias is not None and source is not None:
            # 16-bit activations accumulate in 64 bits, and their kernels read a 64-bit bias.
            wide = np.int64 if source.bits == 16 else np.int32
            inputs[layout.bias] = writer.add(
                f"{step.name}/bias",
                np.asarray(operator.bias, wide),
                np.float32(source.scale) * scale,
                0,
            )
        graph.operators[position].inputs = np.asarray(inputs, np.int32)


def patch_operands(model: Any, steps: list[tuple[Step, FileOperator, int]]) -> None:
    """Put the constant operands (of ADD, MUL, PRELU, ...) on the program's grids.

    The converter gives one tensor, on a grid of its own, to equal constants of several operators.

    Args:
      model: the file as ``ModelT``, changed in place.
      steps: each step with such a constant, its operator in the file and that one's position.

    Raises:
      ExportError: the file's operator has no such constant, or another one. The message names
        the Keras layer.
    """
    writer = ConstantWriter(model)
    graph = model.subgraphs[0]
    for step, op, position in steps:
        reason = operand_disagreement(model, op, step.operator)
        if reason is not None:
            raise ExportError(
                f"Layer '{step.layer}': the converted file does not hold the constant of step "
                f"'{step.name}' ({step.operator.kind}): {reason}. Please report this model."
            )
        place = _operand(model, op)
        values, grid = constant(step.operator)
        inputs = list(op.inputs)
        shape = tuple(graph.tensors[inputs[place]].shape)
        inputs[place] = writer.add(
            f"{step.name}/constant",
            values.astype(np.int8).reshape(shape),
            np.float32([grid.scale]),  # type: ignore[arg-type]
            0,
            grid.zero_point,
        )
        graph.operators[position].inputs = np.asarray(inputs, np.int32)


def _operand(model: Any, op: FileOperator) -> int:
    """The place of the one constant among an operator's inputs; -1 if there is not one."""

    def stored(index: int) -> bool:
        data = model.buffers[model.subgraphs[0].tensors[index].buffer].data
        return data is not None and len(data) > 0

    places = [i for i, index in enumerate(op.inputs) if index >= 0 and stored(index)]
    return places[0] if len(places) == 1 else -1


def operand_disagreement(
    model: Any, op: FileOperator, operator: Operator, exact: bool = False
) -> str | None:
    """Why the file's constant operand is not the program's; ``None`` if it is.

    Within half a step of either grid; ``exact``: the same integers, scale and zero point.
    """
    place = _operand(model, op)
    if place < 0:
        return "the operator has no constant operand"
    tensor = model.subgraphs[0].tensors[op.inputs[place]]
    found = flatbuffer.stored(model, op.inputs[place])
    values, grid = constant(operator)
    if found.size != values.size or found.dtype != np.int8:
        return f"the constant is {found.dtype} of shape {found.shape}, expected {values.shape}"
    scale = float(tensor.quantization.scale[0])
    zero_point = int(tensor.quantization.zeroPoint[0])
    if exact:
        same = np.array_equal(found.ravel(), values.ravel())
        same = same and (np.float32(scale), zero_point) == (np.float32(grid.scale), grid.zero_point)
        return None if same else "the constant or its scale differs"
    real = (found.astype(np.float64).ravel() - zero_point) * scale
    wanted = (values.astype(np.float64).ravel() - grid.zero_point) * grid.scale
    off = np.abs(real - wanted) > 0.51 * (scale + grid.scale)
    return f"{int(off.sum())} of {off.size} values differ" if off.any() else None
