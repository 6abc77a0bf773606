"""Users' subclasses of stock layers: the same where nothing is computed anew, else their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, keras_of, normal
from rewriter.errors import UnsupportedModelError
from rewriter.keras_compat import flavour_of


@pytest.fixture(params=KERASES)
def keras(request: Any) -> Any:
    return builders.fresh(keras_of(request.param))


def classes(keras: Any) -> dict[str, Any]:
    """Subclasses as people write them: a name, an attribute, a method, another way to be kept."""
    layers, register = keras.layers, keras.saving.register_keras_serializable("test_subclasses")

    @register
    class Patches(layers.Conv2D):  # type: ignore[misc,name-defined]
        def __init__(self, *args: Any, resampled: int = 1, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.resampled = resampled

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "resampled": self.resampled}

        def resample(self) -> None:
            raise NotImplementedError

    @register
    class Norm(layers.BatchNormalization):  # type: ignore[misc,name-defined]
        """With defaults of its own."""

        def __init__(self, momentum: float = 0.9, **kwargs: Any) -> None:
            super().__init__(momentum=momentum, **kwargs)

    @register
    class Rectified(layers.ReLU):  # type: ignore[misc,name-defined]
        pass

    @register
    class Narrow(Patches):
        pass

    @register
    class Head(layers.Dense):  # type: ignore[misc,name-defined]
        pass

    found = (Patches, Norm, Rectified, Narrow, Head)
    return {cls.__name__: cls for cls in found}


def test_one_that_only_adds_is_its_base(keras: Any, tmp_path: Path) -> None:
    own = classes(keras)
    x = image = keras.Input((8, 8, 3), name="image")
    for name, make in (("a", own["Patches"]), ("b", own["Narrow"])):
        x = make(4, 3, resampled=2, use_bias=False, name=name)(x)
        x = own["Rectified"](name=f"{name}_relu")(own["Norm"](name=f"{name}_norm")(x))
    x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    model = keras.Model(image, own["Head"](3, name="scores")(x))
    data = normal(32, 8, 8, 3, seed=1)
    plan = rewriter.plan(model)
    assert [(e.action, e.host) for e in plan.entries] == [("fused", "a"), ("fused", "b")]
    qat = rewriter.rewrite(model)
    rewriter.set_phase(qat, "float")
    np.testing.assert_array_equal(qat.predict(data, verbose=0), model.predict(data, verbose=0))
    assert qat.get_layer("a").batch_norm.momentum == 0.9
    rewriter.calibrate(qat, data, progress=False)
    file = tmp_path / "m.tflite"
    rewriter.export_tflite(qat, file)  # refused where anything stays in float
    found = rewriter.verify(qat, file, data, progress=False).comparison
    assert all(each.identical == 1 for each in found.operator_by_operator)
    qat.save(tmp_path / "q.keras")  # hosts and normalizations are ours: no class of the user's
    again = rewriter.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again.predict(data, verbose=0), qat.predict(data, verbose=0))


@pytest.mark.parametrize(
    "changed", ["call", "build", "compute_output_shape", "add_weight", "supports_masking"]
)
def test_one_that_changes_anything_is_not(keras: Any, changed: str) -> None:
    layers = keras.layers
    value: Any = True if changed == "supports_masking" else getattr(layers.Dense, changed)
    if callable(value):
        original = value

        def value(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **kwargs)

    layer = type("Dense", (layers.Dense,), {changed: value})(3)  # by the name of the stock class
    assert flavour_of(layer).class_name(layer) == ""
    between = type("Between", (type(layer),), {})(3)  # what it only adds to is not stock
    assert flavour_of(between).class_name(between) == ""


def test_one_with_a_property_is_not(keras: Any) -> None:
    """Such as a kernel that is standardized whenever it is read."""
    dense = keras.layers.Dense
    kernel = property(lambda self: self.kept - 1, lambda self, value: setattr(self, "kept", value))
    layer = type("Standardized", (dense,), {"kernel": kernel})(3)
    assert flavour_of(layer).class_name(layer) == ""


def test_a_normalization_that_computes_in_another_way_is_refused(keras: Any) -> None:
    class Doubled(keras.layers.BatchNormalization):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any, training: bool = False) -> Any:
            return 2 * super().call(inputs, training=training)

    image = keras.Input((8, 8, 3))
    x = Doubled(name="twice")(keras.layers.Conv2D(4, 3)(image))
    with pytest.raises(
        UnsupportedModelError, match=r"'twice'.*Doubled is a subclass that computes"
    ):
        rewriter.rewrite(keras.Model(image, x))
