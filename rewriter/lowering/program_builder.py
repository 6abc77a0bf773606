"""An integer program while it is made.

An operator whose output has no quantization yet is *pending*: a ReLU right after it becomes its
fused activation, and the Quantize layer after that gives it its output scale.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.grid import FUSED_ACTIVATIONS
from rewriter.keras_compat import Flavour
from rewriter.keras_compat.variables import read
from rewriter.lowering import folding, ranges, widths
from rewriter.lowering.finite import require_finite
from rewriter.lowering.values import Shape, Value, batched
from rewriter.program import Operator, Quantization, Step, Tensor
from rewriter.quantization import powers_of_two, quantizers
from rewriter.reading.graph import Call

_REWRITE = "Run rewriter.rewrite on the model."


class ProgramBuilder:
    """The program so far, and the means to add to it.

    Attributes:
      flavour: the Keras of the model.
      tensors: of the program, by name.
      steps: of the program, in order.
      unset: the Quantize layers whose ranges have not been set or are not finite, by path.
    """

    def __init__(self, flavour: Flavour):
        self.flavour = flavour
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self.unset: list[str] = []
        self._names: set[str] = set()

    def unique(self, base: str) -> str:
        """A name that no other step or tensor has, valid as a scope."""
        base = re.sub(r"[^A-Za-z0-9_.\-]", "_", base)
        if not re.match(r"[A-Za-z0-9.]", base):
            base = "_" + base if base[:1] != "_" else "x" + base
        name, count = base, 1
        while name.lower() in self._names:
            name, count = f"{base}_{count}", count + 1
        self._names.add(name.lower())
        return name

    def add(self, layer: str, operator: Operator, inputs: Sequence[str], shape: Shape) -> Value:
        """Append a step; its output is a new tensor."""
        widths.require(layer, operator)
        name = self.unique(layer.rpartition("/")[2] or layer)
        self.tensors[name] = Tensor(name, shape, operator.output)
        self.steps.append(Step(name, layer, operator, tuple(inputs), name))
        return Value(shape, name)

    def pending(
        self,
        layer: str,
        inputs: Sequence[Value],
        shape: Shape,
        finish: Callable[[Quantization, str], Operator],
        fusable: bool = True,
    ) -> Value:
        """An operator whose output gets its quantization later."""
        names = tuple(self.quantized(v, layer) for v in inputs)
        return Value(
            shape, inputs=names, layer=layer, raw_shape=shape, finish=finish, fusable=fusable
        )

    def apply(
        self,
        kind: str,
        call: Call,
        inputs: Sequence[Value],
        result: Shape | None = None,
        quantization: Quantization | None = None,
        **attributes: Any,
    ) -> Value:
        """An operator whose output has the quantization of its first input, or the one given."""
        require_finite(call.path, attributes.get("constant", 0))
        names = [self.quantized(v, call.path) for v in inputs]
        sources = tuple(self.tensors[n].quantization for n in names)
        operator = Operator(kind, sources, quantization or sources[0], attributes)
        return self.add(call.path, operator, names, result or batched(call.shapes[0]))

    def free(
        self,
        kind: str,
        call: Call,
        inputs: Sequence[Value],
        result: Shape | None = None,
        fusable: bool = False,
        **attributes: Any,
    ) -> Value:
        """A pending operator without a kernel; ``fusable``: LiteRT fuses activations into it."""

        require_finite(call.path, attributes.get("constant", 0))

        def finish(output: Quantization, activation: str) -> Operator:
            return Operator(kind, sources, output, attributes, activation)

        shape = result or batched(call.shapes[0])
        value = self.pending(call.path, inputs, shape, finish, fusable)
        sources = tuple(self.tensors[n].quantization for n in value.inputs)
        return value

    def reshape(self, call: Call, x: Value, shape: Shape) -> Value:
        """``x`` in another static shape (batch first), if it has not got it already."""
        if x.shape == shape:
            return x
        sizes = self.static(shape, call)
        return self.apply("RESHAPE", call, [x], shape, shape=list(sizes))

    def reshaped(self, call: Call, value: Value, shape: Shape) -> Value:
        """A pending operator whose output is brought into another shape."""
        if value.shape == shape:
            return value
        earlier = value.after

        def after(done: Value, quantization: Quantization) -> Value:
            done = earlier(done, quantization) if earlier is not None else done
            return self.reshape(call, done, shape)

        value.shape, value.after = shape, after
        return value

    def static(self, shape: Shape, call: Call) -> tuple[int, ...]:
        """The sizes of a shape without its batch.

        Raises:
          ExportError: naming the layer, if one is unknown.
        """
        if any(size is None for size in shape[1:]):
            raise ExportError(
                f"Layer {call.path!r} has an unknown size in its shape {shape}. "
                "Give the model's Input a full static shape, or the export an input_shape."
            )
        return tuple(int(size or 0) for size in shape[1:])

    def grid(self, value: Value) -> Quantization:
        """The quantization of a finished tensor. Raises ExportError if it has none."""
        quantization = self.tensors[value.name or ""].quantization
        if quantization is None:
            raise ExportError(f"The tensor {value.name!r} is not quantized. {_REWRITE}")
        return quantization

    def quantized(self, value: Value, layer: str) -> str:
        """The name of a tensor that must have been quantized.

        Raises:
          ExportError: naming the layer that wants it.
        """
        if value.name is None:
            raise ExportError(
                f"Layer {layer!r} reads the output of {value.layer!r}, which no Quantize layer "
                "follows. Rewrite the model with rewriter.rewrite."
            )
        if self.tensors[value.name].quantization is None and value.name not in self._floats():
            raise ExportError(
                f"Layer {layer!r} reads the model input {value.name!r}, which no Quantize layer "
                "follows. Give the input the dtype float32 (bytes: uint8 or int8), and rewrite the "
                "model with rewriter.rewrite."
            )
        if self.tensors[value.name].quantization is None:
            raise ExportError(
                f"Layer {layer!r} reads {value.name!r}, which stays in float and has no range. "
                "Rewrite the model with rewriter.rewrite and calibrate it."
            )
        return value.name

    def _floats(self) -> set[str]:
        return {step.output for step in self.steps if step.operator.kind == "FLOAT"}

    def prescribed(self, ends: tuple[float, float], value: Value) -> Quantization:
        """The grid of a range that LiteRT prescribes, as wide as that of a finished tensor."""
        source = self.tensors[value.name].quantization if value.name is not None else None
        bits = grids.BITS if source is None else source.bits
        return folding.activation_quantization(
            *grids.prescribed(ends, bits), grids.activation(bits)
        )

    def real(self, value: Value) -> str:
        """The name of a tensor, in float or not. Raises ExportError while it is pending."""
        if value.name is None:
            raise ExportError(f"The output of {value.layer!r} has no quantization. {_REWRITE}")
        return value.name

    def quantize(self, value: Value, layer: Any, path: str, least: float = 0.0) -> Value:
        """What a Quantize layer does: gives a pending operator or an input its grid.

        ``least``: the smallest step that is of use; a finer grid is made as coarse as that.
        """
        if layer.clamp != "none":
            value = self.clamp(value, *FUSED_ACTIVATIONS[layer.clamp], path)
        grid = self.range_of(layer, path)
        if grid.scale < least:
            grid = dataclasses.replace(grid, scale=float(np.float32(least)))
        return self.finish(value, grid, path)

    def clamp(self, value: Value, low: float, high: float, path: str) -> Value:
        """``min(max(value, low), high)``: fused into a pending operator, or one of its own."""
        if value.name is None:
            value.clamp(low, high)
            return value
        source = self.tensors[value.name].quantization

        def finish(output: Quantization, activation: str) -> Operator:
            kind = "QUANTIZE" if activation == "none" else activation.upper()
            return Operator(kind, (source,), output)

        # From float the grid's ends clamp, or an operator after it.
        made = Value(
            value.shape,
            inputs=(value.name,),
            layer=path,
            raw_shape=value.shape,
            finish=finish,
            fusable=source is not None,
        )
        made.clamp(low, high)
        return made

    def finish(self, value: Value, quantization: Quantization, path: str) -> Value:
        """``value`` as a tensor on the grid ``quantization``."""
        if value.name is None:
            return self._finish_pending(value, quantization)
        tensor = self.tensors[value.name]
        if tensor.quantization == quantization:
            return value
        used = {name for step in self.steps for name in (step.output, *step.inputs)}
        if tensor.quantization is None and value.name not in used:  # a model input
            self.tensors[value.name] = dataclasses.replace(tensor, quantization=quantization)
            return value
        operator = Operator("QUANTIZE", (tensor.quantization,), quantization)
        return self.add(path, operator, [value.name], value.shape)

    def _finish_pending(self, value: Value, quantization: Quantization) -> Value:
        if value.finish is None:
            raise ExportError(f"The output of {value.layer!r} cannot be quantized.")
        activation = value.activation()
        own = value.grid(quantization) if value.grid is not None else quantization
        operator = value.finish(own, activation)
        done = self.add(value.layer, operator, value.inputs, value.raw_shape)
        if value.after is not None:
            done = value.after(done, quantization)
        bounds = value.left_over(activation, quantization)
        for kind, bound in zip(("MAXIMUM", "MINIMUM"), bounds, strict=True):
            if bound is not None:
                done = self._bounded(value.layer, done, kind, bound, quantization)
        # Later readers of the same tensor see it finished.
        value.name = done.name
        return done

    def _bounded(
        self, layer: str, value: Value, kind: str, bound: float, quantization: Quantization
    ) -> Value:
        grid = dataclasses.asdict(quantization)
        attributes = {"constant": bound, "constant_quantization": grid}
        operator = Operator(kind, (quantization,), quantization, attributes)
        return self.add(layer, operator, [value.name or ""], value.shape)

    def range_of(self, layer: Any, path: str) -> Quantization:
        """The grid of a Quantize layer. Raises ExportError if a file has no such grid.

        A range that is not set is noted in :attr:`unset`."""
        quantizer = layer.quantizer
        grid = ranges.carried(grids.of(quantizer), quantizer, path)
        if isinstance(quantizer, quantizers.FixedQuantizer):
            return folding.activation_quantization(quantizer.minimum, quantizer.maximum, grid)
        variables = layer.range_variables
        if "min_var" not in variables or "max_var" not in variables:
            raise ExportError(
                f"The quantizer {type(quantizer).__qualname__} of {path!r} has no min_var and "
                "max_var, so its range is not known. Use a quantizer whose build returns them."
            )
        low, high = (float(read(variables[k])) for k in ("min_var", "max_var"))
        if not low <= high or not np.isfinite([low, high]).all():
            unset = (low, high) == (quantizers.UNSET_MIN, quantizers.UNSET_MAX)
            self.unset.append(path if unset else f"{path} (from {low:g} to {high:g})")
            low = high = 0.0
        elif layer.learned_grid is not None:
            found = ranges.learned(layer, grid, path)
            if found is not None:
                return found
            self.unset.append(f"{path} (learned)")
        elif isinstance(quantizer, powers_of_two.PowerOfTwoRangeQuantizer):
            low, high = powers_of_two.widened(low, high, grid)  # observed, maybe
        return folding.activation_quantization(low, high, grid)
