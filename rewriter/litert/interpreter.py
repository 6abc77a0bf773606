"""Run a LiteRT file sample by sample, as a device would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer
from rewriter.program import Quantization

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:  # TensorFlow carries the same interpreter
    from tensorflow.lite.python.interpreter import Interpreter, OpResolverType

KERNELS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}

Progress = Callable[[int, int], None]


def quantize(real: np.ndarray, quantization: Quantization) -> np.ndarray:
    """``clip(rint(real * (1 / scale)) + zero_point)``, in float32, as LiteRT's QUANTIZE does.

    Multiplying by the rounded reciprocal, not dividing: at ties the two can differ by one step.

    Returns:
      int8 or int16, in the shape of ``real``.
    """
    inverse = np.float32(1.0) / np.float32(quantization.scale)
    steps = np.rint(np.asarray(real, np.float32) * inverse)
    limited = np.clip(
        steps,
        quantization.qmin - quantization.zero_point,
        quantization.qmax - quantization.zero_point,
    )
    dtype = np.int8 if quantization.bits == 8 else np.int16
    return (limited + quantization.zero_point).astype(dtype)


def dequantize(stored: np.ndarray, quantization: Quantization) -> np.ndarray:
    """``scale * (stored - zero_point)`` in float32."""
    steps = (np.asarray(stored, np.int32) - quantization.zero_point).astype(np.float32)
    return steps * np.float32(quantization.scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Raw values, samples first.

    Attributes:
      outputs: one array per output of the file.
      tensors: the tensors that were asked for, by their index in the file.
    """

    outputs: list[np.ndarray]
    tensors: dict[int, np.ndarray]


class Runner:
    """A loaded file.

    Args:
      content: the file's bytes. Its batch size must be 1.
      kernels: ``"xnnpack"`` (what an application gets by default), ``"builtin"`` or
        ``"reference"``.
      all_tensors: make every activation readable. The tensors become outputs of the loaded
        model, so that the kernels stay the ones that were asked for.
      num_threads: threads for one sample; ``None`` leaves it to LiteRT.

    Raises:
      VerificationError: unknown ``kernels``, or LiteRT cannot load the file.
    """

    def __init__(
        self,
        content: bytes,
        *,
        kernels: str = "xnnpack",
        all_tensors: bool = False,
        num_threads: int | None = None,
    ):
        if kernels not in KERNELS:
            raise VerificationError(
                f"Unknown kernels. Expected one of {sorted(KERNELS)}. Received: {kernels!r}."
            )
        self.file = flatbuffer.read(content)
        self._readable = set(self.file.outputs) | set(self.file.inputs)
        if all_tensors:
            content = flatbuffer.with_all_outputs(content)
            self._readable = set(flatbuffer.read(content).outputs) | set(self.file.inputs)
        try:
            self._interpreter: Any = Interpreter(
                model_content=content,
                experimental_op_resolver_type=KERNELS[kernels],
                num_threads=num_threads,
            )
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"LiteRT cannot load this file: {error}") from error

    def quantization(self, index: int) -> Quantization | None:
        """The quantization of an activation of the file; ``None`` if it is not quantized."""
        tensor = self.file.tensors[index]
        if not tensor.quantized or tensor.dtype == "UINT8":
            return None
        bits = 16 if tensor.dtype == "INT16" else 8
        return Quantization(float(tensor.scale[0]), int(tensor.zero_point[0]), bits)

    def prepare(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The inputs in the file's types: float arrays are quantized for quantized inputs.

        Raises:
          VerificationError: the number of inputs, their shapes or the numbers of samples do not
            fit.
        """
        if len(inputs) != len(self.file.inputs):
            raise VerificationError(
                f"The file has {len(self.file.inputs)} inputs. Received: {len(inputs)}."
            )
        ready = []
        for array, index in zip(inputs, self.file.inputs, strict=True):
            tensor, array = self.file.tensors[index], np.asarray(array)
            if array.shape[1:] != tensor.shape[1:] or len(array) != len(np.asarray(inputs[0])):
                raise VerificationError(
                    f"Input '{tensor.name}' needs {len(np.asarray(inputs[0]))} samples of shape "
                    f"{tensor.shape[1:]}. Received an array of shape {array.shape}."
                )
            quantization = self.quantization(index)
            if array.dtype.kind == "f" and quantization is not None:
                array = quantize(array, quantization)
            ready.append(array.astype(tensor.dtype.lower(), copy=False))
        return ready

    def run(
        self,
        inputs: Sequence[np.ndarray],
        *,
        tensors: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Result:
        """Run all samples, one by one.

        Args:
          inputs: one array per input, samples first: float, or already in the file's type.
          tensors: indexes of tensors to return beside the outputs (see ``all_tensors``).
          progress: called with (samples done, samples in all) after each sample.

        Raises:
          VerificationError: the inputs do not fit, or a tensor is not readable.
        """
        hidden = [self.file.tensors[i].name for i in tensors if i not in self._readable]
        if hidden:
            raise VerificationError(
                f"These tensors are not kept by the interpreter: {hidden[:5]}. "
                "Load the file with all_tensors=True."
            )
        ready = self.prepare(inputs)
        count = len(ready[0]) if ready else 0
        wanted = list(dict.fromkeys([*self.file.outputs, *tensors]))
        kept = {}
        for i in wanted:
            if i not in self.file.inputs:
                tensor = self.file.tensors[i]
                # A tensor may have several rows a sample: the steps of a TimeDistributed layer.
                rows = count * (tensor.shape[0] if tensor.shape else 1)
                kept[i] = np.empty((rows, *tensor.shape[1:]), tensor.dtype.lower())
        for sample in range(count):
            for array, index in zip(ready, self.file.inputs, strict=True):
                self._interpreter.set_tensor(index, array[sample : sample + 1])
            self._interpreter.invoke()
            for index, store in kept.items():
                rows = len(store) // count
                found = self._interpreter.get_tensor(index).reshape(rows, *store.shape[1:])
                store[sample * rows : (sample + 1) * rows] = found
            if progress is not None:
                progress(sample + 1, count)
        kept.update(zip(self.file.inputs, ready, strict=True))
        return Result([kept[i] for i in self.file.outputs], {i: kept[i] for i in tensors})


def run(
    content: bytes,
    inputs: Sequence[np.ndarray],
    *,
    kernels: str = "xnnpack",
    num_threads: int | None = None,
    progress: Progress | None = None,
) -> list[np.ndarray]:
    """The raw outputs of a file for all samples; see :class:`Runner`."""
    runner = Runner(content, kernels=kernels, num_threads=num_threads)
    return runner.run(inputs, progress=progress).outputs
