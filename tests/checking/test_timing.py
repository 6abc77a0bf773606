"""Operators as files of their own: each computes what it does in the whole file."""

from __future__ import annotations

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import rewriter
from rewriter.checking import child, timing, worker
from rewriter.errors import VerificationError
from rewriter.litert import flatbuffer
from saved_models import KERASES, X, build


@pytest.fixture(scope="module", params=list(KERASES))
def content(request, tmp_path_factory):
    qat = rewriter.rewrite(build(KERASES[request.param]))
    rewriter.calibrate(qat, X, progress=False)
    path = tmp_path_factory.mktemp("timing") / "m.tflite"
    rewriter.export_tflite(qat, path)
    return path.read_bytes()


def interpreter(content, **options):
    found = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF, **options
    )
    found.allocate_tensors()
    return found


def test_an_operator_alone_computes_what_it_does_in_the_file(content):
    whole = interpreter(content, experimental_preserve_all_tensors=True)
    (put,) = whole.get_input_details()
    random = np.random.default_rng(0)
    whole.set_tensor(put["index"], random.integers(-128, 128, put["shape"]).astype(np.int8))
    whole.invoke()
    model = flatbuffer.unpack(content)
    operators = model.subgraphs[0].operators
    assert len(operators) >= 3
    for operator in operators:
        alone = interpreter(timing.alone(model, operator))
        given = [
            i
            for i in operator.inputs
            if model.buffers[model.subgraphs[0].tensors[i].buffer].data is None
        ]
        for details, index in zip(alone.get_input_details(), given, strict=True):
            alone.set_tensor(details["index"], whole.get_tensor(index))
        alone.invoke()
        (out,) = alone.get_output_details()
        np.testing.assert_array_equal(
            alone.get_tensor(out["index"]), whole.get_tensor(operator.outputs[0])
        )


def test_all_operators_are_timed(content):
    times = timing.measure(content)
    assert len(times.operators) == len(flatbuffer.unpack(content).subgraphs[0].operators)
    assert all(0 < each < 1 for each in (*times.operators, times.whole)) and not times.reasons


def test_an_operator_that_does_not_run_alone_says_why(content, monkeypatch):
    request = child.shared.request
    seen = []

    def refusing(message, *more):
        seen.append(message)
        if len(seen) == 3:
            raise VerificationError("LiteRT reports: no")
        return request(message, *more)

    monkeypatch.setattr(child.shared, "request", refusing)
    times = timing.measure(content)
    assert times.operators[1] is None and times.reasons == {1: "LiteRT reports: no"}
    assert None not in (times.operators[0], *times.operators[2:])


def test_the_median_of_the_runs_is_taken(content, monkeypatch):
    ticks = iter([0, 0, 1, 1, 5, 5, 7])  # the start; runs of 1, 4 and 2 seconds
    monkeypatch.setattr(worker.time, "perf_counter", lambda: next(ticks))
    assert worker.median_seconds(content, "builtin", 3, 1e9) == 2
