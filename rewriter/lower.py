"""From the quantization-aware model to the integer program.

Walks the model's calls. An operator whose output has no quantization yet is *pending*: a ReLU
right after it becomes its fused activation, and the Quantize layer after that gives it its
output scale. What each layer becomes is in :mod:`rewriter.lower_hosts` (the linear layers and
batch normalizations) and :mod:`rewriter.lower_ops` (everything else).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rewriter import (
    folding,
    graph,
    lower_float,
    lower_hosts,
    lower_ops,
    peephole,
    quantizers,
    stock_layers,
)
from rewriter.errors import ExportError
from rewriter.graph import Call, Ref
from rewriter.program import Operator, Program, Quantization, Step, Tensor
from rewriter.values import BOUNDS, Shape, Value, read


class Lowerer:
    """The program so far, and the means to add to it."""

    def __init__(self, model: Any):
        self.graph = graph.read(model)
        self.flavour = self.graph.flavour
        self.tensors: dict[str, Tensor] = {}
        self.steps: list[Step] = []
        self.unset: list[str] = []
        self._names: set[str] = set()

    def run(self) -> Program:
        """Lower every call.

        Raises:
          ExportError: naming the layers whose ranges are not set, or that have no integer form.
        """
        env: dict[Ref, Value] = {}
        for index, call in enumerate(self.graph.calls):
            for i, value in enumerate(self._call(call, env)):
                env[Ref(index, i)] = value
        if self.unset:
            raise ExportError(
                f"The ranges of {len(self.unset)} activations have not been set: "
                f"{', '.join(self.unset)}. Run rewriter.calibrate(model, data), or train in phase "
                "'observe' or 'quantize', before exporting."
            )
        outputs = [self._output(env[ref]) for ref in self.graph.output_refs()]
        self._drop_unused(outputs)
        self.steps, self.tensors = peephole.simplify(self.steps, self.tensors, outputs)
        inputs = [env[ref].name or "" for ref in self.graph.input_refs()]
        outputs = self._name_outputs(outputs)
        return Program(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            tensors=self.tensors,
            steps=tuple(self.steps),
            input_names=tuple(inputs),
            output_names=self.graph.output_names,
        )

    def _drop_unused(self, outputs: Sequence[str]) -> None:
        """Forget steps that nothing reads: masks, and the statistics of a loss."""
        live, kept = set(outputs), []
        for step in reversed(self.steps):
            if step.output in live:
                live.update(step.inputs)
                kept.append(step)
            else:
                del self.tensors[step.output]
        self.steps = kept[::-1]

    def _name_outputs(self, outputs: list[str]) -> list[str]:
        """Call the output tensors what Keras calls the outputs.

        The file's outputs carry these names, so no other tensor may have one of them: the logits
        of ``Dense(10, activation="softmax", name="digit")`` are not ``digit``.
        """
        made = {step.output for step in self.steps}
        names: dict[str, str] = {}
        for tensor, name in zip(outputs, self.graph.output_names, strict=True):
            if tensor in made and name not in names.values():
                names.setdefault(tensor, name)
        given = set(names.values())
        for tensor in self.tensors:
            if tensor in given and tensor not in names and tensor in made:
                names[tensor] = self.unique(tensor)
        self.tensors = {
            names.get(key, key): dataclasses.replace(tensor, name=names.get(key, key))
            for key, tensor in self.tensors.items()
        }
        self.steps = [
            dataclasses.replace(
                step,
                inputs=tuple(names.get(name, name) for name in step.inputs),
                output=names.get(step.output, step.output),
            )
            for step in self.steps
        ]
        return [names.get(name, name) for name in outputs]

    def _call(self, call: Call, env: Mapping[Ref, Value]) -> Sequence[Value]:
        kind = type(call.layer).__name__
        if kind == "InputLayer":
            return [self._input(call)]
        if kind == "Quantize":
            return [self.quantize(env[call.refs[0]], call.layer, call.path)]
        if kind in lower_hosts.LOWER:
            return [lower_hosts.LOWER[kind](self, call, env[call.refs[0]])]
        operation = stock_layers.read(self.flavour, call)
        if operation is not None:
            values = [env[ref] for ref in operation.operands]
            result = lower_ops.ROWS[operation.name](self, call, operation, values)
            return [result] if isinstance(result, Value) else result
        return lower_float.lower(self, call, env)

    def _input(self, call: Call) -> Value:
        name = self.unique(call.layer.name)
        self.tensors[name] = Tensor(name, _batched(call.shapes[0]), None)
        return Value(_batched(call.shapes[0]), name)

    def _output(self, value: Value) -> str:
        if value.name is None:
            raise ExportError(
                f"The output of {value.layer!r} has no quantization. Rewrite the model with "
                "rewriter.rewrite, so that every output gets one."
            )
        return value.name

    # What the rows use

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
        names = [self.quantized(v, call.path) for v in inputs]
        grids = tuple(self.tensors[n].quantization for n in names)
        operator = Operator(kind, grids, quantization or grids[0], attributes)
        return self.add(call.path, operator, names, result or _batched(call.shapes[0]))

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

        def finish(output: Quantization, activation: str) -> Operator:
            return Operator(kind, grids, output, attributes, activation)

        shape = result or _batched(call.shapes[0])
        value = self.pending(call.path, inputs, shape, finish, fusable)
        grids = tuple(self.tensors[n].quantization for n in value.inputs)
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
                "Give the model's Input a full static shape."
            )
        return tuple(int(size or 0) for size in shape[1:])

    def grid(self, value: Value) -> Quantization:
        """The quantization of a finished tensor."""
        quantization = self.tensors[value.name or ""].quantization
        if quantization is None:
            raise ExportError(f"The tensor {value.name!r} is not quantized.")
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
                "follows. Give the input the dtype float32, and rewrite the model with "
                "rewriter.rewrite."
            )
        if self.tensors[value.name].quantization is None:
            raise ExportError(
                f"Layer {layer!r} reads {value.name!r}, which stays in float and has no range. "
                "Rewrite the model with rewriter.rewrite and calibrate it."
            )
        return value.name

    def _floats(self) -> set[str]:
        return {step.output for step in self.steps if step.operator.kind == "FLOAT"}

    def real(self, value: Value) -> str:
        """The name of a tensor that may also be in float."""
        if value.name is None:
            raise ExportError(f"The output of {value.layer!r} has no quantization.")
        return value.name

    def quantize(self, value: Value, layer: Any, path: str, least: float = 0.0) -> Value:
        """What a Quantize layer does: gives a pending operator or an input its grid.

        ``least``: the smallest step that is of use; a finer grid is made as coarse as that.
        """
        if layer.clamp != "none":
            value = self.clamp(value, *BOUNDS[layer.clamp], path)
        grid = self._range(layer, path)
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
        made = {step.output for step in self.steps}
        if tensor.quantization is None and value.name not in made:  # a model input
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
        attributes = {
            "constant": bound,
            "constant_quantization": {
                "scale": quantization.scale,
                "zero_point": quantization.zero_point,
            },
        }
        operator = Operator(kind, (quantization,), quantization, attributes)
        return self.add(layer, operator, [value.name or ""], value.shape)

    def _range(self, layer: Any, path: str) -> Quantization:
        quantizer = layer.quantizer
        if isinstance(quantizer, quantizers.FixedQuantizer):
            return folding.activation_quantization(quantizer.minimum, quantizer.maximum)
        variables = layer.range_variables
        if "min_var" not in variables or "max_var" not in variables:
            raise ExportError(
                f"The quantizer {type(quantizer).__qualname__} of {path!r} has no min_var and "
                "max_var, so its range is not known. Use a quantizer whose build returns them."
            )
        low, high = (float(read(variables[k])) for k in ("min_var", "max_var"))
        if not low <= high or not np.isfinite([low, high]).all():
            self.unset.append(path)
            low = high = 0.0
        return folding.activation_quantization(low, high)


def _batched(shape: Sequence[int | None]) -> Shape:
    return (None, *shape[1:])


def lower(model: Any) -> Program:
    """The integer program of a calibrated quantization-aware model.

    Args:
      model: what :func:`rewriter.rewrite` returned, calibrated or trained.

    Raises:
      ExportError: if ranges are not set, or a layer has no integer form; it names them.
    """
    return Lowerer(model).run()
