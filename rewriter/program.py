"""The integer program: what the device computes, as plain data.

A :class:`Program` is the last form of a model before it becomes a file. It knows nothing of
Keras: tensors have names, and every :class:`Step` applies one LiteRT operator to them. The
twin (:func:`rewriter.fold`) evaluates it in Keras, :mod:`rewriter.export` turns it into a
``.tflite`` file, and :mod:`rewriter.checking.verify` compares the two, so all three see the same
scales, zero points, kernels and biases.

Numbers of words, of classes or of places are integers themselves (:func:`whole`): a grid with steps
of 1, of 32 or 64 bits, which a file stores without a scale.

Quantized values follow the LiteRT 8-bit specification
(https://ai.google.dev/edge/litert/models/quantization_spec): ``real = scale * (q - zero_point)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from rewriter import grid
from rewriter.grid import Grid


@dataclasses.dataclass(frozen=True)
class Quantization:
    """Per-tensor affine quantization of an activation.

    Attributes:
      scale: the step, in units of the real value; exactly representable in float32.
      zero_point: the integer that stands for the real value 0.
      bits: width of the stored integer: 8 or 16; 32 or 64 of whole numbers.
    """

    scale: float
    zero_point: int
    bits: int = grid.BITS

    @property
    def whole(self) -> bool:
        """Whether the tensor's values are the integers themselves, see :func:`whole`."""
        return self.bits in grid.WHOLE.values()

    @property
    def grid(self) -> Grid:
        """The integers that may be stored."""
        return grid.activation(self.bits)

    @property
    def qmin(self) -> int:
        """Smallest stored integer: -128 for int8; -32767 (symmetric) for int16."""
        return self.grid.qmin

    @property
    def qmax(self) -> int:
        """Largest stored integer: 127 for int8, 32767 for int16."""
        return self.grid.qmax

    @property
    def lowest(self) -> int:
        """The smallest integer that LiteRT's kernels return: for int16 the one below ``qmin``."""
        return -(2 ** (self.bits - 1))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real value that can be stored."""
        return (
            self.scale * (self.qmin - self.zero_point),
            self.scale * (self.qmax - self.zero_point),
        )


def whole(dtype: str) -> Quantization:
    """The grid of a tensor of whole numbers, which nothing quantizes.

    Args:
      dtype: one of :data:`rewriter.grid.WHOLE`; KeyError for any other.
    """
    return Quantization(1.0, 0, grid.WHOLE[dtype])


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """One LiteRT operator with its constants, quantized.

    Attributes:
      kind: the operator's name in the LiteRT schema (``"CONV_2D"``, ``"ADD"``, ...), or
        ``"FLOAT"`` for a layer that stays in float (see ``function``).
      inputs: quantization of each input tensor; ``None`` for a float tensor.
      output: quantization of the output tensor; ``None`` for a float tensor.
      attributes: the operator's options, JSON values only (``strides``, ``padding``, ``axes``...);
        beside them the ``table`` of a GATHER, int8 or int16 on the output's grid.
      activation: fused activation: ``"none"``, ``"relu"``, ``"relu6"`` or ``"relu_n1_to_1"``.
      kernel: int8 kernel in Keras's layout (HWIO for ``CONV_2D``, HWIM for
        ``DEPTHWISE_CONV_2D``, HWOI for ``TRANSPOSE_CONV``, IO for ``FULLY_CONNECTED``).
      kernel_grid: the integers that the kernel may take, of its storage's width; its ``axes`` are
        those of Keras's layout. None for a kernel of any int8 values.
      kernel_scale: float32, one per output channel (``C * M`` of them for depthwise).
      bias: int32 (int64 with 16-bit activations), one per output channel, on the grid
        ``inputs[0].scale * kernel_scale``.
      function: for ``"FLOAT"``: the callable on real-valued tensors; it returns a list of which the
        output is number ``attributes["part"]``, or the output itself.
    """

    kind: str
    inputs: tuple[Quantization | None, ...]
    output: Quantization | None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    activation: str = "none"
    kernel: np.ndarray | None = None
    kernel_scale: np.ndarray | None = None
    bias: np.ndarray | None = None
    function: Callable[..., Any] | None = None
    kernel_grid: Grid | None = None

    def real(self, *values: Any) -> Any:
        """The output of a ``"FLOAT"`` operator, from real inputs; ValueError for any other."""
        if self.function is None:
            raise ValueError(f"{self.kind} has no function on real values.")
        return self.part(self.function(*values))

    def part(self, result: Any) -> Any:
        """What the operator's output is of the result of its function."""
        return result[self.attributes["part"]] if "part" in self.attributes else result

    @property
    def kernel_storage_bits(self) -> int | None:
        """The width in which the kernel is stored; None without a kernel.

        Raises:
          ValueError: see :func:`rewriter.grid.storage`.
        """
        if self.kernel is None:
            return None
        return grid.storage(self.kind, self.kernel_grid or grid.kernel())


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One operator in its place.

    Attributes:
      name: unique in the program; a valid TensorFlow scope name.
      layer: the Keras layer that it comes from, for messages.
      operator: what is computed.
      inputs: names of the input tensors.
      output: name of the output tensor.
    """

    name: str
    layer: str
    operator: Operator
    inputs: tuple[str, ...]
    output: str


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """A named tensor: its static shape (batch is ``None``) and quantization."""

    name: str
    shape: tuple[int | None, ...]
    quantization: Quantization | None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """Steps in topological order, with the tensors they read and write.

    Attributes:
      inputs: the names of the input tensors, in the order of the model's flattened inputs.
      outputs: the names of the output tensors, in the order of the model's flattened outputs.
      tensors: every tensor by name.
      steps: in the order of execution.
      input_names, output_names: the names that the Keras model gives to its inputs and outputs.
      unsigned: the inputs that the Keras model takes as uint8.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    unsigned: frozenset[str] = frozenset()
