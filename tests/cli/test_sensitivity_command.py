"""`rewriter sensitivity`: a table, a recipe that the other commands take, and a plot."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import commands
from commands import error_of, output_of
from rewriter import Recipe
from rewriter_command import main
from saved_models import KERASES

folder = commands.folder


@pytest.mark.parametrize("name", KERASES)
def test_sensitivity(name: str, folder: Path, tmp_path: Path, capsys) -> None:
    model, data = folder / f"{name}.keras", folder / "data.npz"
    recipe, qat = tmp_path / "recipe.json", tmp_path / "qat.keras"
    args = ["sensitivity", model, "--data", data, "--labels", "y"]
    values = json.loads(output_of(capsys, *args, "--json", "--widths", "8,4"))
    assert values["proposal"] is values["recipe"] is None and values["task"] == "classification"
    assert {tuple(layer["widths"]) for layer in values["layers"]} == {("8", "4")}

    budget = values["int8_bytes"] - 40
    found = output_of(capsys, *args, "--budget-bytes", budget, "-o", recipe)
    assert "<- proposed" in found and "proposed" in found.splitlines()[0]
    assert {rule.kernel_bits for rule in Recipe.load(recipe).layers} & {2, 4}
    given = ["convert", model, "-o", qat, "--recipe", recipe, "--calibrate", data]
    assert main([str(each) for each in given]) == 0
    capsys.readouterr()  # a warning: so little data
    report = json.loads(output_of(capsys, "export", qat, "-o", tmp_path / "m.tflite", "--json"))
    assert report["bytes"] <= budget


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="draws with matplotlib")
def test_plot(folder: Path, tmp_path: Path, capsys) -> None:
    args = ["sensitivity", folder / f"{next(iter(KERASES))}.keras", "--data", folder / "data.npz"]
    output_of(capsys, *args, "--budget-share", "0.98", "--plot", tmp_path / "sizes.png")
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")


def test_refused(folder: Path, tmp_path: Path, capsys) -> None:
    args = ["sensitivity", folder / f"{next(iter(KERASES))}.keras", "--data", folder / "data.npz"]
    recipe = tmp_path / "recipe.json"
    assert "needs a budget: --budget-bytes" in error_of(capsys, *args, "-o", recipe)
    error = error_of(capsys, *args, "--budget-share", "0.1", "-o", recipe)
    assert "Give a larger budget" in error and not recipe.exists()
    assert "plot" in error_of(capsys, *args, "--plot", tmp_path / "sizes.txt")
