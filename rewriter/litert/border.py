"""The border of a converted file: its inputs and outputs, their types and their names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rewriter.errors import ExportError
from rewriter.litert import flatbuffer, patching
from rewriter.program import Program, Quantization


def order_inputs(model: Any, program: Program) -> None:
    """Put the file's inputs into the program's order, by the names given in the signature."""
    graph = model.subgraphs[0]
    by_name = {flatbuffer.text(graph.tensors[i].name): int(i) for i in graph.inputs}
    names = [f"input_{i:04d}" for i in range(len(program.inputs))]
    if sorted(by_name) != names:
        raise ExportError(
            "The converter renamed or dropped inputs of the model. "
            f"Expected: {names}. Received: {sorted(by_name)}."
        )
    graph.inputs = [by_name[name] for name in names]
    if len(graph.outputs) != len(program.outputs):
        raise ExportError(
            f"The converted file has {len(graph.outputs)} outputs, "
            f"the model {len(program.outputs)}."
        )


def strip(
    model: Any,
    inputs: Sequence[Quantization | None],
    outputs: Sequence[Quantization | None],
) -> None:
    """Let the chosen inputs and outputs be integers: remove their QUANTIZE and DEQUANTIZE.

    Args:
      model: the file as ``ModelT``, changed in place.
      inputs, outputs: the quantization of each graph input and output; ``None`` leaves it in
        float.
    """
    graph, seen = model.subgraphs[0], flatbuffer.wiring(model)
    producers, consumers = seen.producers(), seen.consumers()
    new_inputs, new_outputs = list(seen.inputs), list(seen.outputs)
    renamed: dict[int, int] = {}
    for i, index in enumerate(seen.inputs):
        quantizers = consumers.get(index, [])
        wanted = inputs[i]
        if wanted is not None and not quantizers and index not in seen.outputs:
            _make_integer(graph.tensors[index], wanted)  # an input that nobody reads
        same = wanted is not None and quantizers and all(op.kind == "QUANTIZE" for op in quantizers)
        if same and index not in seen.outputs:
            targets = [op.outputs[0] for op in quantizers]
            new_inputs[i] = targets[0]
            renamed.update(dict.fromkeys(targets[1:], targets[0]))
    for i, index in enumerate(seen.outputs):
        source = producers.get(index)
        if outputs[i] is not None and source is not None and source.kind == "DEQUANTIZE":
            new_outputs[i] = source.inputs[0]
    drop = set(new_inputs)
    graph.operators = [
        op for op in graph.operators if not drop.intersection(int(o) for o in op.outputs)
    ]
    for op in graph.operators:
        op.inputs = np.asarray([renamed.get(int(t), int(t)) for t in op.inputs], np.int32)
    graph.inputs = np.asarray(new_inputs, np.int32)
    graph.outputs = np.asarray([renamed.get(t, t) for t in new_outputs], np.int32)
    patching.drop_unused(model)


def _make_integer(tensor: Any, wanted: Quantization) -> None:
    schema = flatbuffer.schema
    tensor.type = schema.TensorType.INT8 if wanted.bits == 8 else schema.TensorType.INT16
    tensor.quantization = schema.QuantizationParametersT(
        scale=np.asarray([wanted.scale], np.float32),
        zeroPoint=np.asarray([wanted.zero_point], np.int64),
    )


def set_signature(model: Any, inputs: list[str], outputs: list[str]) -> None:
    """Name the inputs and outputs in one signature, ``serving_default``."""
    schema, graph = flatbuffer.schema, model.subgraphs[0]

    def maps(names: list[str], indexes: Any) -> list[Any]:
        pairs = zip(names, indexes, strict=True)
        return [schema.TensorMapT(name=n, tensorIndex=int(i)) for n, i in pairs]

    model.signatureDefs = [
        schema.SignatureDefT(
            inputs=maps(inputs, graph.inputs),
            outputs=maps(outputs, graph.outputs),
            signatureKey="serving_default",
            subgraphIndex=0,
        )
    ]
