"""From the quantization-aware model to the integer program.

Walks the model's calls and adds what each becomes to a :class:`ProgramBuilder`. That is in
:mod:`rewriter.lower_hosts` for the linear layers and batch normalizations, and in
:mod:`rewriter.lower_ops` for everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rewriter import fusions, graph, lower_float, lower_hosts, lower_ops, peephole, stock_layers
from rewriter.errors import ExportError
from rewriter.graph import Call, Ref
from rewriter.program import Program, Tensor
from rewriter.program_builder import ProgramBuilder
from rewriter.values import Value, batched


class _Lowerer(ProgramBuilder):
    """Adds a model's calls, one after the other, and finishes the program."""

    def __init__(self, model: Any):
        self.graph = graph.read(model)
        super().__init__(self.graph.flavour)

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
        self.steps, self.tensors, outputs = fusions.fuse(self.steps, self.tensors, outputs)
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
        self.tensors[name] = Tensor(name, batched(call.shapes[0]), None)
        return Value(batched(call.shapes[0]), name)

    def _output(self, value: Value) -> str:
        if value.name is None:
            raise ExportError(
                f"The output of {value.layer!r} has no quantization. Rewrite the model with "
                "rewriter.rewrite, so that every output gets one."
            )
        return value.name


def lower(model: Any) -> Program:
    """The integer program of a calibrated quantization-aware model.

    Args:
      model: what :func:`rewriter.rewrite` returned, calibrated or trained.

    Raises:
      ExportError: if ranges are not set, or a layer has no integer form; it names them.
    """
    return _Lowerer(model).run()
