"""Files of one operator with a kernel of 4 bits, written by hand, and LiteRT on them."""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from rewriter.litert import flatbuffer
from rewriter.program import Operator

_VERSIONS = {"CONV_2D": 7, "DEPTHWISE_CONV_2D": 7, "FULLY_CONNECTED": 10}
_OPTIONS = {"CONV_2D": "Conv2D", "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
            "FULLY_CONNECTED": "FullyConnected"}  # fmt: skip
_FUSED = {"none": 0, "relu": 1, "relu6": 3}


def _packed(values: np.ndarray) -> np.ndarray:
    """Two to the byte, the first in the low half."""
    flat = np.concatenate([values.ravel(), np.zeros(values.size % 2)]).astype(np.int8)
    low, high = (flat[i::2].view(np.uint8) & 15 for i in (0, 1))
    return low | high << 4


def write(operator: Operator, shape: tuple[int, ...], result: tuple[int, ...]) -> bytes:
    """``shape``, ``result``: of input and output, without the batch."""
    kind, kernel, attributes = operator.kind, operator.kernel, operator.attributes
    axis = 3 if kind == "DEPTHWISE_CONV_2D" else 0
    if kind == "CONV_2D":
        kernel = kernel.transpose(3, 0, 1, 2)
    elif kind == "FULLY_CONNECTED":
        kernel = kernel.T
    else:
        kernel = kernel.reshape(1, *kernel.shape[:2], -1)
    biases = np.float32(operator.inputs[0].scale) * operator.kernel_scale
    parts = [
        ((1, *shape), "INT8", [operator.inputs[0].scale], operator.inputs[0].zero_point, 0, None),
        (kernel.shape, "INT4", operator.kernel_scale, 0, axis, _packed(kernel)),
        (operator.bias.shape, "INT32", biases, 0, 0, operator.bias.view(np.uint8)),
        ((1, *result), "INT8", [operator.output.scale], operator.output.zero_point, 0, None),
    ]
    buffers, tensors = [schema.BufferT()], []
    for index, (size, dtype, scale, zero, along, data) in enumerate(parts):
        scale = np.asarray(scale, np.float32)
        grid = schema.QuantizationParametersT(
            scale=scale, zeroPoint=np.full(scale.shape, zero, np.int64), quantizedDimension=along
        )
        tensors.append(schema.TensorT(
            shape=np.asarray(size, np.int32), type=getattr(schema.TensorType, dtype),
            buffer=len(buffers) if data is not None else 0, name=f"t{index}", quantization=grid,
        ))  # fmt: skip
        if data is not None:
            buffers.append(schema.BufferT(data=data))
    values: dict[str, Any] = {"fusedActivationFunction": _FUSED[operator.activation]}
    if kind == "FULLY_CONNECTED":
        values["keepNumDims"] = bool(attributes.get("keep_num_dims", False))
    else:
        (height, width), (down, right) = attributes["strides"], attributes["dilations"]
        values |= {"padding": getattr(schema.Padding, attributes["padding"]), "strideH": height,
                   "strideW": width, "dilationHFactor": down, "dilationWFactor": right}  # fmt: skip
    if kind == "DEPTHWISE_CONV_2D":
        values["depthMultiplier"] = operator.kernel.shape[3]
    code = getattr(schema.BuiltinOperator, kind)
    made = schema.OperatorT(
        inputs=np.array([0, 1, 2], np.int32),
        outputs=np.array([3], np.int32),
        builtinOptionsType=getattr(schema.BuiltinOptions, f"{_OPTIONS[kind]}Options"),
        builtinOptions=getattr(schema, f"{_OPTIONS[kind]}OptionsT")(**values),
    )
    graph = schema.SubGraphT(
        tensors=tensors, inputs=np.array([0], np.int32), outputs=np.array([3], np.int32),
        operators=[made],
    )  # fmt: skip
    codes = [schema.OperatorCodeT(
        deprecatedBuiltinCode=code, builtinCode=code, version=_VERSIONS[kind]
    )]  # fmt: skip
    return flatbuffer.pack(
        schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=buffers)
    )


def run(content: bytes, q: np.ndarray) -> np.ndarray:
    """The raw outputs for int8 samples, on LiteRT's default path."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    rows = []
    for row in q:
        interpreter.set_tensor(source["index"], row[None].astype(np.int8))
        interpreter.invoke()
        rows.append(interpreter.get_tensor(output["index"]).copy())
    return np.concatenate(rows)
