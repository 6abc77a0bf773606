"""A child process that runs LiteRT, so that a crash of LiteRT is not one of the user's session."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewriter.checking import worker
from rewriter.errors import VerificationError

PATIENCE_S = 600.0  # without a sign of life; they come with every sample
LOADING_S = 25.0  # for a small file, which takes milliseconds
_BYTES_PER_S = 10e6  # of a larger one: what any machine loads, however busy


class Died(Exception):
    """The child process ended, or gave no sign of life for :data:`PATIENCE_S`.

    Attributes:
      how: in words: ``"SIGABRT"``, ``"exit code 3"``, ``"no answer for 600 s"``.
      done: how many samples of the request it had finished.
      text: the last line that it wrote to stderr, if any.
    """

    def __init__(self, how: str, done: int, text: str):
        super().__init__(how)
        self.how, self.done, self.text = how, done, text


class Child:
    """One child process, started when it is needed and again after it has died.

    It lives on between requests, for starting it takes about 0.2 s.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # held for requests that belong together
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stderr: Any = None
        self._owner = 0
        self._holder: Any = None

    @property
    def pid(self) -> int | None:
        """Its process id; ``None`` if there is no process."""
        return None if self._process is None else self._process.pid

    def load(self, holder: Any, message: tuple) -> None:
        """Load a file by this request; :meth:`holds` then says that it is ``holder``'s."""
        with self.lock:
            self._holder = None
            self.request(message)
            self._holder = holder

    def holds(self, holder: Any) -> bool:
        """Whether the file that is loaded is ``holder``'s."""
        running = self._process is not None and self._process.poll() is None
        return running and self._owner == os.getpid() and self._holder is holder

    def unload(self, holder: Any) -> None:
        """Forget the file, if it is ``holder``'s."""
        with self.lock:
            if self.holds(holder):
                self._holder = None
                self.request(("unload",))

    def request(self, message: tuple, progress: Callable[[int], None] | None = None) -> Any:
        """The result of one request; see :func:`rewriter.checking.worker.main`.

        Raises:
          Died: the process ended instead of answering.
          VerificationError: LiteRT reports an error, or the process cannot be started.
        """
        with self.lock:
            self._start()
            done = 0
            patience = PATIENCE_S
            if message[0] == "load":
                patience = min(patience, LOADING_S + len(message[1]) / _BYTES_PER_S)
            try:
                with contextlib.suppress(OSError):  # it is gone, which the answer tells
                    worker.send(self._process.stdin, message)  # type: ignore[union-attr, arg-type]
                while True:
                    kind, value = self._answer(done, patience)
                    if kind == "progress":
                        done = value
                        if progress is not None:
                            progress(done)
                    elif kind == "done":
                        return value
                    else:
                        raise VerificationError(f"LiteRT reports: {' '.join(str(value).split())}")
            except VerificationError:
                raise
            except BaseException:  # also KeyboardInterrupt: an answer would come too late
                self.close()
                raise

    def _answer(self, done: int, patience: float) -> Any:
        try:
            answer = self._answers.get(timeout=patience)
        except queue.Empty:
            raise Died(f"no answer for {patience:.0f} s", done, "") from None
        if answer is not None:
            return answer
        code = self._process.wait() if self._process is not None else 0
        raise Died(ending(code), done, self._last_line())

    def _last_line(self) -> str:
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def _start(self) -> None:
        if self._owner != os.getpid():  # a fork has the parent's pipes; they are not for it
            self._process, self._holder, self._owner = None, None, os.getpid()
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        # The child looks for modules where this process does.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        try:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(worker.__file__))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
        except OSError as error:
            raise VerificationError(
                f"Python cannot be started to run LiteRT in ({sys.executable!r}): {error}."
            ) from error
        self._answers = queue.SimpleQueue()
        threading.Thread(
            target=_listen, args=(self._process.stdout, self._answers), daemon=True
        ).start()

    def close(self) -> None:
        """End the process, if there is one."""
        with self.lock:
            process, self._process, self._holder = self._process, None, None
            if process is None or self._owner != os.getpid():
                return
            process.kill()
            process.wait()
            with contextlib.suppress(OSError):  # of what had not been sent yet
                process.stdin.close()  # type: ignore[union-attr]
            self._stderr.close()


def _listen(stream: Any, answers: queue.SimpleQueue[Any]) -> None:
    """Put every message of a stream into a queue, and ``None`` after the last."""
    with stream:
        try:
            while True:
                answers.put(worker.receive(stream))
        except (EOFError, OSError, ValueError):
            answers.put(None)


def ending(code: int) -> str:
    """How a process ended, by its return code."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


shared = Child()
atexit.register(shared.close)
