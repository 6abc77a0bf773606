"""What the layer normalizations of models that were saved with ours become on the device.

Those of models that are rewritten now: :mod:`rewriter.lowering.operators.normalizations`.
"""

from __future__ import annotations

import math

import numpy as np

from rewriter.errors import ExportError
from rewriter.grid import TANH_RANGE
from rewriter.lowering import folding
from rewriter.lowering.linear import channel_affine
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Shape, Value
from rewriter.program import Quantization
from rewriter.reading import layer_norms
from rewriter.reading.graph import Call

FINEST_MEAN = 1 / 256  # the smallest step of the mean, in steps of the input
NEGLIGIBLE = 1 / 48  # a quarter of the variance of a rounding, in steps squared


def layer_norm(low: ProgramBuilder, call: Call, x: Value) -> Value:
    """MEAN, SUB, L2_NORMALIZATION, and gamma and beta as a depthwise convolution.

    Several axes are normalized as one. See ``QuantizedLayerNormalization`` for the algebra.

    Raises:
      ExportError: naming the layer, if its axes are not the last ones of this input, or the grid
        of the deviations from the mean does not hold the root of epsilon.
    """
    layer = call.layer
    sizes = low.static(x.shape, call)
    axes = layer_norms.axes(layer.norm, len(sizes) + 1)
    outer = len(sizes) - len(axes)
    if axes != list(range(outer + 1, len(sizes) + 1)):
        raise ExportError(
            f"Layer {call.path!r} normalizes the axes {axes} of a tensor of rank "
            f"{len(sizes) + 1}; LiteRT normalizes trailing axes only. Move them to the end."
        )
    count = math.prod(sizes[outer:])
    shape: Shape = x.shape
    if len(axes) > 1 or len(sizes) > 3:
        shape = (None, *([math.prod(sizes[:outer])] if outer else []), count)
    rows = low.reshape(call, x, shape)
    mean = low.free("MEAN", call, [rows], (*shape[:-1], 1), axes=[len(shape) - 1], keepdims=True)
    mean.layer += "/mean"
    # Of an input that is normalized already the mean is nothing but rounding.
    least = low.grid(rows).scale * FINEST_MEAN
    mean = low.quantize(mean, layer.mean, f"{call.path}/mean", least)
    centred = low.free("SUB", call, [rows, mean], shape)
    centred.layer += "/centred"
    centred = low.quantize(centred, layer.centred, f"{call.path}/centred")
    unit = _unit(low, call, centred, float(layer.norm.epsilon))
    gamma, beta = (
        fallback if variable is None else np.asarray(variable, np.float64).ravel()
        for variable, fallback in ((layer.norm.gamma, np.ones(1)), (layer.norm.beta, np.zeros(1)))
    )
    value = channel_affine(low, call, unit, gamma * math.sqrt(count), beta)
    return low.reshaped(call, value, (None, *call.shapes[0][1:]))


def _unit(low: ProgramBuilder, call: Call, centred: Value, epsilon: float) -> Value:
    """``d / sqrt(sum(d * d) + n * epsilon)`` over the last axis.

    LiteRT's operator has no epsilon: constants beside the values, and taken off again, have the
    sum of squares that it stands for. An epsilon far below the variance of the rounding of ``d``,
    a twelfth of a step squared, changes nothing and is left out.
    """
    *rest, count = low.static(centred.shape, call)
    grid = low.grid(centred)
    steps = epsilon / grid.scale**2
    added = constants(count * steps, grid, limit=count) if steps > NEGLIGIBLE else []
    if added is None:
        raise ExportError(
            f"Layer {call.path!r} has an epsilon of {epsilon}, far beyond the squares of its "
            f"deviations from the mean, whose range is {grid.range}. Use a quantizer that keeps "
            "the range of what it is given, or a smaller epsilon."
        )
    unit = folding.activation_quantization(*TANH_RANGE)
    if not added:
        return low.apply("L2_NORMALIZATION", call, [centred], centred.shape, quantization=unit)
    wide: Shape = (None, *rest, count + len(added))
    paddings = [[0, 0] for _ in wide[:-1]] + [[0, len(added)]]
    value = low.apply("PAD", call, [centred], wide, paddings=paddings)
    value = low.apply(
        "ADD",
        call,
        [value],
        wide,
        constant=[0.0] * count + [number * grid.scale for number in added],
        constant_quantization={"scale": grid.scale, "zero_point": grid.zero_point},
    )
    value = low.apply("L2_NORMALIZATION", call, [value], wide, quantization=unit)
    return low.apply(
        "STRIDED_SLICE",
        call,
        [value],
        centred.shape,
        begin=[0] * len(wide),
        end=[0] * (len(wide) - 1) + [count],
        strides=[1] * len(wide),
        begin_mask=2 ** len(wide) - 1,
        end_mask=2 ** (len(wide) - 1) - 1,
    )


def constants(total: float, grid: Quantization, limit: int) -> list[int] | None:
    """Few integers on a grid, less its zero point, whose squares add up to ``total`` rounded.

    Returns:
      None if about ``limit`` of them do not reach it.
    """
    sign = 1 if grid.qmax - grid.zero_point >= grid.zero_point - grid.qmin else -1
    largest = max(grid.qmax - grid.zero_point, grid.zero_point - grid.qmin)
    if not total <= (limit + 1) * largest**2:
        return None
    found, left = [], round(total)
    while left > 0:
        found.append(min(largest, math.isqrt(left)))
        left -= found[-1] ** 2
    return [sign * number for number in found]
