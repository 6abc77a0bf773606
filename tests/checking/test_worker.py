"""LiteRT in a child process: what it computes, and what becomes of a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import builders
import litert_programs as programs
import rewriter
from commands import error_of
from litert_files import written
from rewriter.checking import child, interpreter, worker
from rewriter.checking.crash import InterpreterCrash
from rewriter.errors import VerificationError

ROOT = Path(__file__).parents[2]


class Calls:
    """A message that makes the process that reads it call a function."""

    def __init__(self, function, *arguments):
        self.called = function, arguments

    def __reduce__(self):
        return self.called


@pytest.fixture
def own():
    """A child process of the test's own."""
    process = child.Child()
    yield process
    process.close()


@pytest.fixture(scope="module")
def residual():
    program = programs.residual()
    content, _ = written(program)
    return content, programs.samples(program, 5)


@pytest.fixture(scope="module")
def fatal(tmp_path_factory):
    """A model whose softmax the reference kernels refuse by ending the process; file and data."""
    layers = keras.layers
    keras.utils.set_random_seed(0)
    image = keras.Input((8,), name="image")
    x = layers.Dense(6, name="logits")(layers.Dense(8, activation="relu", name="first")(image))
    x = layers.Dense(4, name="last")(layers.Softmax(name="soft")(x))
    model = keras.Model(image, x)
    logits = model.get_layer("logits")
    logits.set_weights([w * np.float32(1e-9) for w in logits.get_weights()])
    data = builders.normal(8, 8)
    qat = builders.calibrated(model, data)
    folder = tmp_path_factory.mktemp("fatal")
    rewriter.export_tflite(qat, folder / "m.tflite")
    qat.save(folder / "m.keras")
    np.save(folder / "data.npy", data)
    return qat, folder, data


@pytest.mark.parametrize("kernels", ["xnnpack", "builtin", "reference"])
def test_the_same_as_in_this_process(residual, kernels):
    content, inputs = residual
    here = interpreter.Runner(content, kernels=kernels, all_tensors=True)
    there = interpreter.Runner(content, kernels=kernels, all_tensors=True, isolated=True)
    calls = []
    tensors = [i for i in here._readable if here.file.tensors[i].quantized]
    expected = here.run(inputs, tensors=tensors)
    found = there.run(inputs, tensors=tensors, progress=lambda *done: calls.append(done))
    assert calls == [(i + 1, 5) for i in range(5)]
    for a, b in zip(expected.outputs, found.outputs, strict=True):
        np.testing.assert_array_equal(a, b)
    for index in tensors:
        np.testing.assert_array_equal(expected.tensors[index], found.tensors[index])


def test_one_process_serves_all(residual):
    content, inputs = residual
    first, second = (interpreter.Runner(content, isolated=True) for _ in range(2))
    expected = first.run(inputs).outputs
    pid = child.shared.pid
    for runner in (second, first, second):  # each finds the other's file loaded
        np.testing.assert_array_equal(runner.run(inputs).outputs[0], expected[0])
    assert child.shared.pid == pid
    second.close()
    assert not child.shared.holds(second)
    first.close()
    np.testing.assert_array_equal(first.run(inputs).outputs[0], expected[0])


def test_an_error_of_litert_is_an_error(own):
    with pytest.raises(VerificationError, match="LiteRT reports"):
        own.request(("load", b"no such file", "xnnpack", None))
    with pytest.raises(VerificationError, match="no file is loaded"):
        own.request(("run", [], {}))
    own.request(("unload",))


def test_a_crash_is_an_error_that_names_operator_and_layer(fatal):
    qat, folder, data = fatal
    path = folder / "m.tflite"
    for _ in range(2):
        with pytest.raises(VerificationError, match="crash") as caught:
            rewriter.verify(qat, path, data, kernels="reference", progress=False)
        assert isinstance(caught.value, InterpreterCrash)
        assert (caught.value.kind, caught.value.tensor) == ("SOFTMAX", "soft")
        assert "SOFTMAX" in str(caught.value) and "layer 'soft'" in str(caught.value)
    assert rewriter.verify(qat, path, data, progress=False).parts_at is None


def test_a_crash_on_the_command_line_is_one_line(fatal, capsys):
    _, folder, _ = fatal
    arguments = [folder / "m.keras", folder / "m.tflite", "--data", folder / "data.npy"]
    message = error_of(capsys, "verify", *arguments, "--kernels", "reference")
    assert "SOFTMAX" in message and "layer 'soft'" in message


def test_a_crash_while_running_is_searched_for(residual, monkeypatch):
    """With processes that end themselves on the third operator."""
    content, inputs = residual
    runner = interpreter.Runner(content, isolated=True)
    whole, loaded = child.Child.request, [runner.file]

    def request(self, message, progress=None):
        if message[0] == "load":
            loaded.append(interpreter.reading.read(message[1]))
        if message[0] == "run" and len(loaded[-1].operators) >= 3:
            message = (Calls(os._exit, 7),)
        return whole(self, message, progress)

    monkeypatch.setattr(child.Child, "request", request)
    third = runner.file.operators[2]
    with pytest.raises(InterpreterCrash, match="when they run this file") as caught:
        runner.run(inputs)
    assert caught.value.kind == third.kind
    assert caught.value.tensor == runner.file.tensors[third.outputs[0]].name
    assert "exit code 7" in str(caught.value)


def test_a_crash_that_does_not_come_again_has_no_operator(residual, monkeypatch):
    content, inputs = residual
    runner = interpreter.Runner(content, isolated=True)
    whole = child.Child.request
    monkeypatch.setattr(
        child.Child, "request",
        lambda self, message, progress=None: whole(
            self, message if self is not child.shared else (Calls(os._exit, 7),), progress
        ),
    )  # fmt: skip
    with pytest.raises(InterpreterCrash, match="exit code 7") as caught:
        runner.run(inputs)
    assert caught.value.kind is None


def test_a_process_that_has_died_is_started_again(own):
    own.request(("unload",))
    before = own.pid
    os.kill(before, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
    own._process.wait()
    own.request(("unload",))
    assert own.pid not in (None, before)


def test_what_it_said_last_is_told(own):
    with pytest.raises(child.Died) as caught:
        own.request((Calls(exec, "import sys; sys.exit('a reason')"),))
    assert caught.value.text == "a reason" and caught.value.how == "exit code 1"


def test_one_that_does_not_answer_is_ended(own, monkeypatch):
    own.request(("unload",))
    process = own._process
    monkeypatch.setattr(child, "PATIENCE_S", 0.3)
    with pytest.raises(child.Died, match="no answer for"):
        own.request((Calls(time.sleep, 60),))
    assert process.poll() is not None and own.pid is None


def test_an_interrupt_ends_it(residual):
    content, inputs = residual
    runner = interpreter.Runner(content, isolated=True)
    expected = runner.run(inputs).outputs[0]

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runner.run(inputs, progress=interrupt)
    np.testing.assert_array_equal(runner.run(inputs).outputs[0], expected)


def test_a_fork_gets_its_own(own, monkeypatch):
    own.request(("unload",))
    process = own._process
    monkeypatch.setattr(child.os, "getpid", lambda: -1)
    own.request(("unload",))
    assert own._process is not process and process.poll() is None
    process.kill()
    process.wait()


def test_python_that_cannot_be_started(own, monkeypatch, tmp_path):
    monkeypatch.setattr(child.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(VerificationError, match="cannot be started"):
        own.request(("unload",))


def test_messages_of_any_size():
    array = np.arange(200_000, dtype=np.int8).reshape(4, -1)
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source, os.fdopen(write, "wb") as sink:
        thread = threading.Thread(target=worker.send, args=(sink, ("run", [(3, array)], {})))
        thread.start()
        kind, ((index, found),), _ = worker.receive(source)
        thread.join()
    assert (kind, index) == ("run", 3)
    np.testing.assert_array_equal(found, array)


def test_the_child_imports_no_tensorflow(own):
    code = (
        "import sys; heavy = {'tensorflow', 'keras', 'tf_keras', 'rewriter'} & set(sys.modules)\n"
        "sys.exit(repr(sorted(heavy)))"
    )
    with pytest.raises(child.Died) as caught:
        own.request((Calls(exec, code),))
    assert caught.value.text == "[]"


def test_a_script_without_a_guard_leaves_no_process(residual, tmp_path):
    content, inputs = residual
    (tmp_path / "m.tflite").write_bytes(content)
    np.savez(tmp_path / "x.npz", *inputs)
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np\n"
        "from rewriter.checking import child, interpreter\n"
        "content = open('m.tflite', 'rb').read()\n"
        "inputs = list(np.load('x.npz').values())\n"
        "outputs = interpreter.run(content, inputs, isolated=True)\n"
        "print('pid', child.shared.pid, len(outputs[0]))\n"
    )
    before = sorted(os.listdir(tmp_path))
    result = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    _, pid, count = result.stdout.split()
    assert count == "5"
    assert sorted(os.listdir(tmp_path)) == before
    with pytest.raises(OSError):
        os.kill(int(pid), 0)
