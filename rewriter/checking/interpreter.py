"""Run a LiteRT file sample by sample, as a device would."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rewriter.checking import child, crash, reading
from rewriter.checking.worker import KERNELS, Engine
from rewriter.errors import VerificationError
from rewriter.grid import BITS
from rewriter.litert import affine
from rewriter.litert.file_model import FileModel
from rewriter.program import Quantization

Progress = Callable[[int, int], None]


def quantize(real: np.ndarray, quantization: Quantization) -> np.ndarray:
    """:func:`rewriter.litert.affine.quantize` of an array: int8 or int16, in its shape."""
    dtype = np.int8 if quantization.bits == BITS else np.int16
    return affine.quantize(real, quantization).numpy().astype(dtype)


def dequantize(stored: np.ndarray, quantization: Quantization) -> np.ndarray:
    """:func:`rewriter.litert.affine.dequantize` of an array: float32, in its shape."""
    return affine.dequantize(stored, quantization).numpy()


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
      content: the file's bytes.
      kernels: ``"xnnpack"`` (what an application gets by default), ``"builtin"`` or
        ``"reference"``.
      all_tensors: make every activation readable. The tensors become outputs of the loaded
        model, so that the kernels stay the ones that were asked for.
      num_threads: threads for one sample; ``None`` leaves it to LiteRT.
      isolated: run LiteRT in a child process. What would end this process is an error then.
      file: what the file consists of, where the caller knows; None: read from ``content``.

    Raises:
      VerificationError: unknown ``kernels``, or LiteRT cannot load the file.
      InterpreterCrash: (``isolated``) LiteRT crashes while loading it.
    """

    def __init__(
        self,
        content: bytes,
        *,
        kernels: str = "xnnpack",
        all_tensors: bool = False,
        num_threads: int | None = None,
        isolated: bool = False,
        file: FileModel | None = None,
    ):
        if kernels not in KERNELS:
            raise VerificationError(
                f"Unknown kernels. Expected one of {sorted(KERNELS)}. Received: {kernels!r}."
            )
        self.file = reading.read(content) if file is None else file
        self._readable = set(self.file.outputs) | set(self.file.inputs)
        if all_tensors:
            content = reading.with_all_outputs(content)
            self._readable = set(reading.read(content).outputs) | set(self.file.inputs)
        self._content, self._kernels, self._num_threads = content, kernels, num_threads
        self._engine: Engine | None = None
        if isolated:
            self._load()
            return
        try:
            self._engine = Engine(content, kernels, num_threads)
        except (RuntimeError, ValueError) as error:
            raise VerificationError(f"LiteRT cannot load this file: {error}") from error

    @property
    def batch(self) -> int:
        """How many samples the file takes at a time."""
        shapes = [self.file.tensors[index].shape for index in self.file.inputs]
        return shapes[0][0] if shapes and shapes[0] else 1

    def _load(self) -> None:
        """Have the child process load the file, unless it has."""
        if child.shared.holds(self):
            return
        request = ("load", self._content, self._kernels, self._num_threads)
        try:
            child.shared.load(self, request)
        except child.Died as error:
            raise crash.explained(error, self._content, self._kernels, None) from error
        except VerificationError as error:
            raise VerificationError(f"LiteRT cannot load this file: {error}") from error

    def close(self) -> None:
        """Let the child process forget the file; without one there is nothing to do."""
        if self._engine is None:
            child.shared.unload(self)

    def quantization(self, index: int) -> Quantization | None:
        """The quantization of an activation of the file; ``None`` if it is not quantized."""
        tensor = self.file.tensors[index]
        if not tensor.quantized or tensor.unsigned:
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
            ready.append(self._stored(array, index).astype(tensor.dtype.lower(), copy=False))
        return ready

    def _stored(self, array: np.ndarray, index: int) -> np.ndarray:
        """Real values, and bytes of another type than the file's, on the grid of an input."""
        tensor = self.file.tensors[index]
        others = {"INT8": "fu", "INT16": "fu", "UINT8": "f"}.get(tensor.dtype, "")
        if not tensor.quantized or array.dtype.kind not in others:
            return array
        real = array.astype(np.float32)
        found = self.quantization(index)
        if found is not None:
            return quantize(real, found)
        shift = 128
        grid = Quantization(float(tensor.scale[0]), int(tensor.zero_point[0]) - shift)
        return quantize(real, grid).astype(np.int32) + shift

    def run(
        self,
        inputs: Sequence[np.ndarray],
        *,
        tensors: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Result:
        """Run all samples, as many at a time as the file takes.

        Args:
          inputs: one array per input, samples first: float, or already in the file's type.
          tensors: indexes of tensors to return beside the outputs (see ``all_tensors``).
          progress: called with (samples done, samples in all) after each sample.

        Raises:
          VerificationError: the inputs do not fit, or a tensor is not readable.
          InterpreterCrash: (isolated) LiteRT crashes.
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
        numbered = list(zip(self.file.inputs, ready, strict=True))
        shapes = {
            i: (self.file.tensors[i].shape, self.file.tensors[i].dtype.lower())
            for i in wanted
            if i not in self.file.inputs
        }

        def report(done: int) -> None:
            if progress is not None:
                progress(done, count)

        if self._engine is not None:
            kept = self._engine.run(numbered, shapes, report, self.batch)
        else:
            kept = self._run_in_child(numbered, shapes, report)
        kept.update(zip(self.file.inputs, ready, strict=True))
        return Result([kept[i] for i in self.file.outputs], {i: kept[i] for i in tensors})

    def _run_in_child(
        self, inputs: list[tuple[int, np.ndarray]], shapes: Any, progress: Callable[[int], None]
    ) -> dict[int, np.ndarray]:
        try:
            with child.shared.lock:
                self._load()  # another file may have been, or the process be a new one
                request = ("run", inputs, shapes, self.batch)
                kept: dict[int, np.ndarray] = child.shared.request(request, progress)
        except child.Died as error:
            batch = np.minimum(error.done + np.arange(self.batch), len(inputs[0][1]) - 1)
            sample = [(index, array[batch]) for index, array in inputs]
            raise crash.explained(error, self._content, self._kernels, sample) from error
        return kept


def run(
    content: bytes,
    inputs: Sequence[np.ndarray],
    *,
    kernels: str = "xnnpack",
    num_threads: int | None = None,
    progress: Progress | None = None,
    isolated: bool = False,
) -> list[np.ndarray]:
    """The raw outputs of a file for all samples; see :class:`Runner`."""
    runner = Runner(content, kernels=kernels, num_threads=num_threads, isolated=isolated)
    try:
        return runner.run(inputs, progress=progress).outputs
    finally:
        runner.close()
