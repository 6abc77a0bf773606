"""Normalizations that are refused: each by its name, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import tf_keras

import rewriter
from checks import KERASES, assert_plan, both
from norm_layers import bn
from rewriter.errors import UnsupportedModelError


def _refused(model: Any, name: str, match: str) -> None:
    plan = assert_plan(model, {name: "refused"})
    with pytest.raises(UnsupportedModelError, match=f"'{name}': .*{match}"):
        rewriter.rewrite(model)
    assert match.split(".*")[0] in plan.entries[0].reason


@both
def test_renorm_is_refused(flavour: str) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((6, 8, 4))
    if flavour == "tf_keras":
        layer = tf_keras.layers.BatchNormalization
        layer = next(c for c in layer.__mro__ if c.__name__ == "BatchNormalizationBase")
        norm = layer(renorm=True, name="bn")
    else:
        norm = bn(keras, renorm=True)
    _refused(keras.Model(inputs, norm(inputs)), "bn", "renorm=True.*unset")


def test_virtual_batches_are_refused() -> None:
    base = tf_keras.layers.BatchNormalization.__mro__[1]
    inputs = tf_keras.Input((6, 8, 4), batch_size=8)
    norm = base(virtual_batch_size=4, name="bn")
    _refused(tf_keras.Model(inputs, norm(inputs)), "bn", "virtual_batch_size=4.*unset")


def test_several_axes_are_refused() -> None:
    inputs = tf_keras.Input((6, 8, 4))
    model = tf_keras.Model(inputs, bn(tf_keras, axis=[1, 3])(inputs))
    _refused(model, "bn", "several axes.*reshape")


@both
def test_subclasses_are_refused(flavour: str) -> None:
    keras = KERASES[flavour]

    class Mine(keras.layers.BatchNormalization):  # type: ignore[name-defined]
        def call(self, inputs, training=False):
            return 2 * super().call(inputs, training=training)

    inputs = keras.Input((6, 8, 4))
    _refused(keras.Model(inputs, Mine(name="bn")(inputs)), "bn", "Mine is a subclass.*stock")


@both
@pytest.mark.parametrize("wrapper", ["TimeDistributed"])
def test_norms_inside_wrappers_are_refused(flavour: str, wrapper: str) -> None:
    keras = KERASES[flavour]
    inputs = keras.Input((None, 6, 4))  # how many steps is not known
    outer = getattr(keras.layers, wrapper)(bn(keras), name="outer")
    _refused(keras.Model(inputs, outer(inputs)), "outer/bn", "inside TimeDistributed 'outer'")
