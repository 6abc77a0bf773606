"""From the quantization-aware model to the integer program.

Walks the model's calls and adds what each becomes to a :class:`ProgramBuilder`. That is in
:mod:`rewriter.lowering.host_layers` for the linear layers and batch normalizations, and in
:mod:`rewriter.lowering.operators` for everything else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rewriter import grid as grids
from rewriter.errors import ExportError
from rewriter.grid import BYTES
from rewriter.lowering import (
    float_steps,
    folding,
    fusions,
    host_layers,
    operators,
    peephole,
    precisions,
)
from rewriter.lowering.program_builder import ProgramBuilder
from rewriter.lowering.values import Value, batched
from rewriter.program import Program, Tensor, whole
from rewriter.quantization import phases
from rewriter.reading import from_keras
from rewriter.reading.graph import UNQUANTIZED, Call, Graph, Ref
from rewriter.reading.operations import Operation
from rewriter.reading.roles import BatchNorm, Input, Ours, Within


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the quantization-aware model has a tensor of the program.

    Attributes:
      call: the index of the call in the graph.
      layer: the Quantize layer, part of the called one or itself, whose output it is; ``None``: it
        is an output of the call.
      index: which output of the call.
    """

    call: int
    layer: Any = None
    index: int = 0


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program with what it came from.

    Attributes:
      program: the program.
      graph: the calls of the quantization-aware model.
      sources: for each tensor of the program that the model has too, where.
    """

    program: Program
    graph: Graph
    sources: Mapping[str, Source]


def require_ranges(builder: ProgramBuilder) -> None:
    """Raise ExportError if a builder has met Quantize layers whose ranges are not set."""
    if builder.unset:
        raise ExportError(
            f"The ranges of {len(builder.unset)} activations have not been set or are not finite: "
            f"{', '.join(builder.unset)}. Run rewriter.calibrate(model, data), or train in phase "
            "'observe' or 'quantize', before exporting."
        )


class _Lowerer(ProgramBuilder):
    """Adds a model's calls, one after the other, and finishes the program."""

    def __init__(self, model: Any):
        self.graph = from_keras.read(model)
        super().__init__(self.graph.flavour)
        if not any(self.flavour.is_ours(call.layer) for call in self.graph.calls):
            raise ExportError(
                f"The model {self.graph.name!r} is not quantization-aware. Rewrite the model with "
                "rewriter.rewrite and calibrate it (on the command line: rewriter convert, or "
                "quantize --save-model), and give what that returns or writes."
            )
        frozen = (
            call.path for call in self.graph.calls if type(call.layer).__name__ == "FakeQuantize"
        )
        if path := next(frozen, None):
            raise ExportError(
                f"The model {self.graph.name!r} is what rewriter.freeze returned, or holds it: "
                f"{path!r} is the grid of an activation for other converters. Give the "
                "quantization-aware model that it was made of."
            )
        paths = {call.path for call in self.graph.calls}
        for call in self.graph.calls:
            # A layer that gave its name to the Quantize layer after it: users know it by that.
            original = call.path.removesuffix(UNQUANTIZED)
            if original in paths:
                call.path = original
        self._index = 0  # of the call that is lowered
        found = (getattr(layer, "quantizer", None) for layer in phases.phased_layers(model))
        self._wide = any(grids.of(q) == grids.activation(grids.WIDE) for q in found if q)
        self._entries: dict[Ref, str] = {}  # of the inputs, whatever is made of them at once
        self._quantized: dict[str, Source] = {}
        self._returned: dict[str, Source] = {}

    def quantize(self, value: Value, layer: Any, path: str, least: float = 0.0) -> Value:
        done = super().quantize(value, layer, path, least)
        # A grid that was made coarser is not the model's.
        if done.name is not None and (not least or self.grid(done).scale > np.float32(least)):
            self._quantized.setdefault(done.name, Source(self._index, layer))
        return done

    def run(self) -> Lowered:
        """Lower every call.

        Raises:
          ExportError: naming the layers whose ranges are not set, or that have no integer form.
        """
        env: dict[Ref, Value] = {}
        for index, call in enumerate(self.graph.calls):
            self._index = index
            for i, value in enumerate(self._call(call, env)):
                env[Ref(index, i)] = value
                # What is pending is not on its grid in the model; what is not in float32 there is
                # not what the program has in float; -inf is on no grid.
                if value.name is not None and not self._differs(call, i, value.name):
                    self._returned.setdefault(value.name, Source(index, index=i))
        require_ranges(self)
        outputs = [self._output(env[ref]) for ref in self.graph.output_refs()]
        self._drop_unused(outputs)
        before = {name: tensor.quantization for name, tensor in self.tensors.items()}
        self.steps, self.tensors = peephole.simplify(self.steps, self.tensors, outputs)
        self.steps, self.tensors, outputs = fusions.fuse(self.steps, self.tensors, outputs)
        refs = self.graph.input_refs()
        inputs = [self._entries.get(ref, env[ref].name or "") for ref in refs]
        # A tensor that got another grid has other values than in the model.
        same = {n for n, tensor in self.tensors.items() if before.get(n) == tensor.quantization}
        outputs, names = self._name_outputs(outputs)
        program = Program(
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            tensors=self.tensors,
            steps=tuple(self.steps),
            input_names=tuple(inputs),
            output_names=self.graph.output_names,
            unsigned=frozenset(
                name
                for name, ref in zip(inputs, self.graph.input_refs(), strict=True)
                if self.graph.calls[ref.call].dtypes == ("uint8",)
            ),
        )
        sources = {**self._returned, **self._quantized}
        kept = {names.get(n, n): source for n, source in sources.items() if n in same}
        return Lowered(program, self.graph, kept)

    def _differs(self, call: Call, index: int, name: str) -> bool:
        if self.steps and self.steps[-1].output == name and self.steps[-1].operator.kind == "PADV2":
            return True  # -inf, in the model
        return self.tensors[name].quantization is None and precisions.other(call.dtypes[index])

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

    def _name_outputs(self, outputs: list[str]) -> tuple[list[str], dict[str, str]]:
        """Call the output tensors what Keras calls the outputs; also the new names by the old.

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
            names.get(key, key): dataclasses.replace(tensor, name=names[key])
            if key in names
            else tensor
            for key, tensor in self.tensors.items()
        }
        self.steps = [
            dataclasses.replace(
                step,
                inputs=tuple(names.get(name, name) for name in step.inputs),
                output=names.get(step.output, step.output),
            )
            if step.output in names or any(name in names for name in step.inputs)
            else step
            for step in self.steps
        ]
        return [names.get(name, name) for name in outputs], names

    def _call(self, call: Call, env: Mapping[Ref, Value]) -> Sequence[Value]:
        match call.role:
            case Input():
                return [self._input(call, Ref(self._index))]
            case Ours() | BatchNorm() if (own := host_layers.of(call.layer)) is not None:
                return [own(self, call, env[call.refs[0]])]
            case Within():
                return [Value(batched(call.shapes[0]), layer=call.path)]
            case Operation() as operation:
                values = [env[ref] for ref in operation.operands]
                result = operators.ROWS[operation.name](self, call, operation, values)
                return [result] if isinstance(result, Value) else result
        numbers = [Ref(self._index, i) in self.graph.whole for i in range(len(call.dtypes))]
        return float_steps.lower(self, call, env, numbers)

    def _input(self, call: Call, ref: Ref) -> Value:
        name = self._entries[ref] = self.unique(call.layer.name)
        # Bytes are on their own grid already.
        ends = BYTES.get(call.dtypes[0])
        grid = None if ends is None else folding.activation_quantization(*ends)
        if ref in self.graph.whole:
            dtype = call.dtypes[0]
            grid = whole(dtype if dtype in grids.WHOLE else "int32")
        self.tensors[name] = Tensor(name, batched(call.shapes[0]), grid)
        value = Value(batched(call.shapes[0]), name)
        if ends is None or not self._wide:
            return value
        # What reads them computes in 16 bits, on which they are exact.
        wide = grids.activation(grids.WIDE)
        ends = grids.prescribed(ends, wide.bits)
        return self.finish(value, folding.activation_quantization(*ends, wide), call.path)

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
    return lower_with_sources(model).program


def lower_with_sources(model: Any) -> Lowered:
    """As :func:`lower`, with where the model has the program's tensors."""
    return _Lowerer(model).run()
