"""Functions that LiteRT has no operator for: tables of what they make of each integer.

A CAST has the integers as places, an ADD counts them from 0, and a GATHER reads the table. That is
the function of each real value in float32, rounded once. Functions that differ from channel to
channel have their tables one after the other: the ADD counts those of a channel from its own on.

A product with a function (``x / y``, ``x * rsqrt(y)``) is in 16 bits inside, for its values may lie
further apart than 8 bits tell::

    y -> table in 16 bits -> MUL <- x in 16 bits;  QUANTIZE to 8

A factor that takes one step of ``x`` beyond the output's grid saturates, whatever it is: the table
reaches no further than that, so a pole leaves room for the other values. Its steps are then within
half a step of the output.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.grid import BITS, WIDE, activation
from rewriter.layers.off_zero import SHARE
from rewriter.litert import affine
from rewriter.lowering.operators.rows import Row
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value, batched
from rewriter.program import Operator, Quantization, whole
from rewriter.reading.graph import Call
from rewriter.reading.operations import Operation

_MOST = activation(WIDE).qmax
_FINER = 128  # int16 steps to a step of the input: 255 of those fit
_PLACES = "int32"


def _function(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    source, shape = low.grid(x[0]), x[0].shape
    count = int(operation.options.get("channels", 1))
    if count > 1 and source.bits > BITS:
        raise ExportError(
            f"Layer {call.path!r} computes another function for each of {count} channels, and "
            f"tables of {WIDE} bits for all of them would be {count * 128} KiB. Use the recipe "
            '"int8", or one function for all channels.'
        )
    results = _results(call, operation.options["function"], source, x[0].off_zero)
    places = low.apply("CAST", call, x, shape, whole(_PLACES))
    places = _counted(low, call, places, source, count)

    def finish(output: Quantization, fused: str) -> Operator:
        return Operator("GATHER", (whole(_PLACES),), output, {"table": _table(results, output)})

    return low.pending(call.path, [places], shape, finish, fusable=False)


def _times(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    values, factors = x
    source, grid = low.grid(values), low.grid(factors)
    if {source.bits, grid.bits} != {BITS}:
        raise ExportError(
            f"Layer {call.path!r} divides tensors of {WIDE} bits, or multiplies by a function as "
            "steep as a reciprocal, and no table of LiteRT's is fine enough for that. Use the "
            'recipe "int8", or another layer.'
        )
    shape = batched(call.shapes[0])
    results = _results(call, operation.options["function"], grid, factors.off_zero)

    def finish(output: Quantization, fused: str) -> Operator:
        return Operator("CAST", (grid,), whole(_PLACES))

    def after(places: Value, output: Quantization) -> Value:
        places = _counted(low, call, places, grid)
        reach = max(abs(end) for end in output.range)
        most = min(float(np.abs(results).max()), reach / source.scale) or 1.0
        steps = Quantization(float(np.float32(most / _MOST)), 0, WIDE)
        factor = low.apply(
            "GATHER", call, [places], factors.shape, steps, table=_table(results, steps)
        )
        fine = Quantization(float(np.float32(source.scale / _FINER)), 0, WIDE)
        wide = low.apply("QUANTIZE", call, [values], values.shape, fine)
        made = Quantization(float(np.float32(reach / _MOST)), 0, WIDE)
        product = low.apply("MUL", call, [wide, factor], shape, made)
        return low.apply("QUANTIZE", call, [product], shape, output)

    value = low.pending(call.path, [factors], factors.shape, finish, fusable=False)
    value.shape, value.after = shape, after
    return value


def _off_zero(low: ProgramBuilder, call: Call, operation: Operation, x: Sequence[Value]) -> Value:
    return dataclasses.replace(x[0], off_zero=operation.options["width"])


def _counted(
    low: ProgramBuilder, call: Call, places: Value, source: Quantization, channels: int = 1
) -> Value:
    """The integers of a grid, which are in ``places``, from 0 on; channel by channel."""
    grid = {"scale": 1.0, "zero_point": 0, "bits": whole(_PLACES).bits}
    each = source.qmax + 1 - source.lowest
    first = [channel * each - source.lowest for channel in range(channels)]
    lowest = {"constant": first, "constant_quantization": grid}
    return low.apply("ADD", call, [places], places.shape, whole(_PLACES), **lowest)


def _results(
    call: Call, function: Callable[[np.ndarray], np.ndarray], source: Quantization, width: float
) -> np.ndarray:
    """What a function makes of each value of a grid, float32, infinite where it is, in one row.

    Those of several channels follow each other.

    Where it is not a number, as the root of one below 0, it is what it is at the nearest value. 0
    is as ``OffZero`` has it where a step is more than ``width``.

    Raises:
      ExportError: it is a number nowhere.
    """
    steps = np.arange(source.lowest, source.qmax + 1) - source.zero_point
    real = steps.astype(np.float32) * np.float32(source.scale)
    if source.scale > width:
        real[steps == 0] = np.float32(source.scale) * np.float32(SHARE)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.asarray(function(real), np.float32).reshape(real.size, -1)
    if np.isnan(found).all(axis=0).any():
        raise ExportError(
            f"Layer {call.path!r} computes what is not a number of all values from {real[0]:g} to "
            f"{real[-1]:g}, the range of its input. Calibrate with other data, or use another "
            "layer."
        )
    return np.concatenate([_filled(row) for row in found.T])


def _filled(found: np.ndarray) -> np.ndarray:
    """A row with the nearest number in the place of what is none."""
    known = np.flatnonzero(~np.isnan(found))
    above = np.searchsorted(known, np.arange(found.size)).clip(0, known.size - 1)
    below = (above - 1).clip(0)
    place = np.arange(found.size)
    nearer = np.abs(known[below] - place) < np.abs(known[above] - place)
    return found[known[np.where(nearer, below, above)]]


def _table(results: np.ndarray, output: Quantization) -> np.ndarray:
    """The integers of a grid for real values, int8 or int16, saturated at its ends."""
    stored: Any = affine.quantize(results, output).numpy().clip(output.qmin, output.qmax)
    return np.asarray(stored, np.int8 if output.bits == BITS else np.int16)


ROWS: dict[str, Row] = {
    "function": _function,
    "times_function": _times,
    "off_zero": _off_zero,
}
