"""The page in a browser: nothing is asked for, nothing complained of, nothing wider than it is."""

from __future__ import annotations

import numpy as np
import pytest
from test_report import EVIL, HEADINGS, classifier

import browser
import rewriter


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report with layers whose names are markup or long."""
    import keras

    folder = tmp_path_factory.mktemp("page")
    model = classifier(keras, EVIL)
    layers = keras.layers
    long = "a_name_without_an_end" * 8
    x = layers.Dense(10, name=long)(model.output)
    x = layers.Dense(5, activation="softmax", name="last")(layers.BatchNormalization(name="bn")(x))
    model = keras.Model(model.input, x, name="<b>model</b>")
    data = np.random.default_rng(0).uniform(size=(40, 8, 8, 1)).astype(np.float32)
    labels = np.arange(40) % 5
    result = rewriter.quantize(
        model, data, labels, output=folder / "m.tflite", epochs=1, progress=False
    )
    rewriter.write_report(result, folder / "report.html", measure_times=False)
    return folder / "report.html"


@pytest.mark.parametrize("width", [420, 1280])
def test_in_a_browser(page, width, tmp_path):
    seen = browser.look(page, width, tmp_path)
    assert [text.split(". ", 1)[1] for text in seen.headings] == HEADINGS
    assert seen.width <= width
    assert not seen.console and not seen.requests
    assert seen.scripts == 0 and EVIL in seen.text and "<b>model</b>" in seen.text
    assert seen.drawings > 10


@pytest.mark.parametrize(
    "body, fault",
    [
        ('<div style="width:600px">x</div>', "width"),
        ('<img src="http://127.0.0.1:9/x.png">', "requests"),
        ("<script>undefined_name</script>", "console"),
    ],
)
def test_the_browser_sees_faults(body, fault, tmp_path):
    """The checks above can fail."""
    (tmp_path / "p.html").write_text(f"<!DOCTYPE html><body>{body}</body>")
    seen = browser.look(tmp_path / "p.html", 420, tmp_path)
    found = {
        "width": seen.width > 420, "requests": bool(seen.requests), "console": bool(seen.console),
    }  # fmt: skip
    assert found[fault]
