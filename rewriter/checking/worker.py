"""LiteRT's interpreter: in this process, or as the program of a child process.

A kernel that meets a value which its authors ruled out ends the process that runs it. What has to
go on therefore runs this file as a program of its own (:mod:`rewriter.checking.child` starts it by
its path). It imports NumPy and LiteRT only: importing TensorFlow takes seconds.

Messages in both directions are a pickled object and the arrays in it, each behind its length.
"""

from __future__ import annotations

import os
import pickle
import signal
import statistics
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

if __name__ == "__main__":
    sys.path[:1] = []  # this folder: its modules are the package's, not for import by their names

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:  # TensorFlow carries the same interpreter
    from tensorflow.lite.python.interpreter import Interpreter, OpResolverType

KERNELS = {
    "xnnpack": OpResolverType.AUTO,
    "builtin": OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    "reference": OpResolverType.BUILTIN_REF,
}

_COUNT, _LENGTH = struct.Struct("<I"), struct.Struct("<Q")


class Engine:
    """A loaded file.

    Args:
      content: the file's bytes.
      kernels: a key of :data:`KERNELS`.
      num_threads: threads for one sample; ``None`` leaves it to LiteRT.

    Raises:
      RuntimeError, ValueError: LiteRT cannot load the file.
    """

    def __init__(self, content: bytes, kernels: str, num_threads: int | None):
        self._interpreter: Any = Interpreter(
            model_content=content,
            experimental_op_resolver_type=KERNELS[kernels],
            num_threads=num_threads,
        )
        self._interpreter.allocate_tensors()

    def run(
        self,
        inputs: Sequence[tuple[int, np.ndarray]],
        tensors: Mapping[int, tuple[tuple[int, ...], str]],
        progress: Callable[[int], None] | None = None,
        batch: int = 1,
    ) -> dict[int, np.ndarray]:
        """Run all samples, as many at a time as the file takes.

        Args:
          inputs: index and values of each input, samples first, in the file's types.
          tensors: shape in the file and dtype of each tensor to read, by its index.
          progress: called with the number of samples done, after each run.
          batch: how many samples the file takes. The last run is filled up with the last sample.

        Returns:
          The values of ``tensors``, samples first: several rows a sample where the interpreter has
          several.
        """
        count = len(inputs[0][1]) if inputs else 0
        rows: dict[int, int] = {}
        kept = {i: np.empty((0, *shape[1:]), dtype) for i, (shape, dtype) in tensors.items()}
        for start in range(0, count, batch):
            stop = min(start + batch, count)
            for index, array in inputs:
                part = array[start:stop]
                missing = np.repeat(part[-1:], start + batch - stop, axis=0)
                self._interpreter.set_tensor(index, np.concatenate([part, missing]))
            self._interpreter.invoke()
            for index, store in kept.items():
                values = self._interpreter.get_tensor(index).reshape(-1, *store.shape[1:])
                if len(values) == 1:  # maybe one for all samples
                    values = np.repeat(values, batch, axis=0)
                if index not in rows:  # of an open batch the file does not say how many
                    rows[index] = len(values) // batch
                    store = np.empty((count * rows[index], *store.shape[1:]), store.dtype)
                    kept[index] = store
                store[start * rows[index] : stop * rows[index]] = values[
                    : (stop - start) * rows[index]
                ]
            if progress is not None:
                progress(stop)
        return kept


def median_seconds(content: bytes, kernels: str, runs: int, seconds: float) -> float:
    """How long one invocation of a file takes: the median of several, on one thread.

    int8 inputs are random, whole numbers 0, for random ones would be beyond tables; all others as
    the interpreter allocates them.

    Args:
      content: the file's bytes.
      kernels: a key of :data:`KERNELS`.
      runs: how many are timed at most, after one that is not.
      seconds: after which no further one is begun; at least three are timed.

    Raises:
      RuntimeError, ValueError: LiteRT cannot load or run the file.
    """
    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=KERNELS[kernels], num_threads=1
    )
    interpreter.allocate_tensors()
    random = np.random.default_rng(0)
    for details in interpreter.get_input_details():
        if details["dtype"] == np.int8:
            values = random.integers(-128, 128, details["shape"], np.int8)
            interpreter.set_tensor(details["index"], values)
        elif details["dtype"] in (np.int32, np.int64):
            interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    interpreter.invoke()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs and (len(times) < 3 or time.perf_counter() < end):
        begin = time.perf_counter()
        interpreter.invoke()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def send(stream: BinaryIO, message: Any) -> None:
    """Write one message."""
    buffers: list[pickle.PickleBuffer] = []
    parts: list[Any] = [pickle.dumps(message, 5, buffer_callback=buffers.append)]
    parts += [buffer.raw() for buffer in buffers]
    stream.write(_COUNT.pack(len(parts)))
    for part in parts:
        stream.write(_LENGTH.pack(memoryview(part).nbytes))
        stream.write(part)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """The next message.

    Raises:
      EOFError: the other side has gone.
    """
    (count,) = _COUNT.unpack(_exactly(stream, _COUNT.size))
    parts = []
    for _ in range(count):
        (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
        parts.append(_exactly(stream, length))
    return pickle.loads(parts[0], buffers=parts[1:])


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        got = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        done += got
    return data


def main() -> None:
    """Answer requests until there are no more of them.

    A request is ``("load", content, kernels, num_threads)``, ``("run", inputs, tensors, batch)``,
    ``("unload",)``, or ``("time", content, kernels, runs, seconds)``, which leaves the file that is
    loaded as it is. The answers are ``("progress", samples done)``, any number of them, and then
    ``("done", result)`` or ``("failed", message)``: whatever running a file raises.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever is interrupted ends this process
    # Anything that a library prints would end up between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    engine: Engine | None = None

    def progress(done: int) -> None:
        send(answers, ("progress", done))

    while True:
        try:
            kind, *arguments = receive(requests)
        except EOFError:
            return
        try:
            result: Any = None
            if kind == "run":
                if engine is None:
                    raise RuntimeError("no file is loaded")
                inputs, tensors, batch = arguments
                result = engine.run(inputs, tensors, progress, batch)
            elif kind == "time":
                result = median_seconds(*arguments)
            else:
                engine = None  # not two files at a time
                engine = Engine(*arguments) if kind == "load" else None
        except Exception as error:  # of a damaged file, LiteRT and NumPy raise anything
            send(answers, ("failed", str(error) or type(error).__name__))
        else:
            send(answers, ("done", result))


if __name__ == "__main__":
    main()
