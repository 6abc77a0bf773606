"""Models, twins and recipes that were saved before the package had rooms load and predict as then.

The files were written when every module lay directly in the package, with TensorFlow 2.21. They hold
quantizers of ours and of TFMOT, a pipeline, and layers of every class.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

import rewriter
from rewriter import Recipe

FOLDER = Path(__file__).with_name("saved_before")
EXPECTED = np.load(FOLDER / "expected.npz")
MODELS = sorted(p.name for p in FOLDER.iterdir() if p.suffix in (".keras", ".h5"))
RECIPES = sorted(p.name for p in FOLDER.glob("*.json"))


# An older Keras does not read what a newer one wrote, and another TensorFlow may sum in another order.
_VERSION = importlib.metadata.version("tensorflow")
pytestmark = pytest.mark.skipif(
    not _VERSION.startswith("2.21."),
    reason=f"the files are of TensorFlow 2.21, this one is {_VERSION}",
)


def _key(name: str) -> str:
    return "tf_keras_explicit" if name == "tf_keras_saved_model" else Path(name).stem


def test_there_are_files() -> None:
    assert len(MODELS) == 10 and len(RECIPES) == 4


@pytest.mark.parametrize("name", [*MODELS, "tf_keras_saved_model"])
def test_a_model(name: str) -> None:
    model = rewriter.load_model(FOLDER / name)
    found = np.asarray(model(EXPECTED["x"], training=False))
    np.testing.assert_array_equal(found, EXPECTED[_key(name)])


@pytest.mark.parametrize("name", MODELS)
def test_with_the_loader_of_its_keras(name: str) -> None:
    keras = importlib.import_module("tf_keras" if name.startswith("tf_keras") else "keras")
    model = keras.models.load_model(FOLDER / name, compile=False)
    found = np.asarray(model(EXPECTED["x"], training=False))
    np.testing.assert_array_equal(found, EXPECTED[_key(name)])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe(name: str) -> None:
    text = (FOLDER / name).read_text()
    recipe = Recipe.from_json(text)
    # Written as it was, so that an earlier version reads it, too.
    assert recipe.to_json() == text
