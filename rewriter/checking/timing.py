"""How long each operator of a file takes, by itself.

LiteRT's interpreter has no profiler in Python. So each operator becomes a file of its own, with its
constants, which is timed as the whole file is: with the kernels that an application gets by
default, on one thread, on this computer. What several operators save together, as when a
delegate merges them, and what the caches hold from one operator to the next, is not in it.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np

from rewriter.checking import child
from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer
from rewriter.litert.file_model import schema

_RUNS, _SECONDS = 50, 0.05  # of each operator, at most


@dataclasses.dataclass(frozen=True)
class Times:
    """What was measured, in seconds for one invocation: medians.

    Attributes:
      whole: of the file.
      operators: of each operator by itself, in the file's order; None where it does not run so.
      reasons: why not, by the operator's place.
    """

    whole: float
    operators: tuple[float | None, ...]
    reasons: dict[int, str]


def measure(content: bytes, kernels: str = "xnnpack") -> Times:
    """Time a file and each of its operators, in the child process that runs LiteRT.

    Args:
      content: the file.
      kernels: as for :class:`rewriter.checking.interpreter.Runner`.

    Raises:
      VerificationError: the file as a whole cannot be run.
    """
    request = ("time", content, kernels, _RUNS, 10 * _SECONDS)
    try:
        whole = child.shared.request(request)
    except child.Died as error:
        raise VerificationError(f"LiteRT's {kernels} kernels crash ({error.how}).") from error
    model = flatbuffer.unpack(content)
    times: list[float | None] = []
    reasons: dict[int, str] = {}
    for place, operator in enumerate(model.subgraphs[0].operators):
        try:
            request = ("time", alone(model, operator), kernels, _RUNS, _SECONDS)
            times.append(child.shared.request(request))
        except (VerificationError, child.Died) as error:
            times.append(None)
            reasons[place] = str(error)
    return Times(whole, tuple(times), reasons)


def alone(model: Any, operator: Any) -> bytes:
    """A file with one operator of ``model`` and its constants; what else it reads is an input.

    Args:
      model: the unpacked file; it is left as it is.
      operator: one of its main subgraph.
    """
    graph = model.subgraphs[0]
    places: dict[int, int] = {}  # in the new file, by those in the old one
    tensors: list[Any] = []
    inputs: list[int] = []
    buffers = [schema.BufferT()]
    for index in (*operator.inputs, *operator.outputs):
        if index < 0 or index in places:
            continue
        tensor = copy.copy(graph.tensors[index])
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            buffer = schema.BufferT()
            buffer.data = data
            buffers.append(buffer)
            tensor.buffer = len(buffers) - 1
        else:
            tensor.buffer = 0
            if index in operator.inputs:
                inputs.append(len(tensors))
        places[index] = len(tensors)
        tensors.append(tensor)
    only = copy.copy(operator)
    only.opcodeIndex = 0
    only.inputs = np.asarray([places.get(index, -1) for index in operator.inputs], np.int32)
    only.outputs = np.asarray([places[index] for index in operator.outputs], np.int32)
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.operators = tensors, [only]
    subgraph.inputs, subgraph.outputs = np.asarray(inputs, np.int32), only.outputs
    result = schema.ModelT()
    result.version = model.version
    result.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    result.subgraphs, result.buffers = [subgraph], buffers
    return flatbuffer.pack(result)
