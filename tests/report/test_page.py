"""The page in a browser: nothing is asked for, nothing complained of, nothing wider than it is."""

from __future__ import annotations

import pytest

import browser
import rewriter
from reports import EVIL, HEADINGS, classifier, hostile
from rewriter.cli import demo
from rewriter.report import page as page_text
from rewriter.report import report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report in which every name is markup, and long."""
    import keras

    folder = tmp_path_factory.mktemp("page")
    data = demo.digits()
    result = rewriter.quantize(
        classifier(keras), data.x_test[:100], data.y_test[:100], output=folder / "m.tflite",
        epochs=1, progress=False,
    )  # fmt: skip
    made = hostile(report.make(result, None, measure_times=False), "_without_an_end" * 8)
    (folder / "report.html").write_text(page_text.html(made))
    return folder / "report.html"


@pytest.mark.parametrize("width", [420, 1280])
def test_in_a_browser(page, width, tmp_path):
    seen = browser.look(page, width, tmp_path)
    assert [text.split(". ", 1)[1] for text in seen.headings] == HEADINGS
    assert seen.width <= width
    assert not seen.console and not seen.requests
    assert seen.scripts == 0 and EVIL in seen.text
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
