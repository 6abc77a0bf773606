"""Sensitivity of layers, and the recipe under a budget."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

import builders
import rewriter
from builders import KERASES, fresh, keras_of
from rewriter import Recipe
from rewriter.errors import RecipeError, RewriterError
from rewriter.workflow import allocation
from rewriter.workflow.kernel_widths import Measure
from rewriter.workflow.sensitivity import best
from rewriter.workflow.sensitivity_report import Choice, Measured

both = pytest.mark.parametrize("kind", KERASES)
X = builders.normal(96, 10, seed=3)


def planted(keras):
    """Four layers; each channel of ``bad`` has one weight that 4 bits spend all their steps on."""
    layers = keras.layers
    x = image = keras.Input((10,), name="features")
    for name, units in (("first", 64), ("good", 64), ("bad", 16)):
        x = layers.Dense(units, name=name)(x)
        x = layers.BatchNormalization(name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    model = keras.Model(image, layers.Dense(5, name="scores")(x))
    model = builders.fit_statistics(builders.randomise_all(model, 0), X)
    # What the outlying weights read is almost nothing: the second layer's channel 0.
    norm, bad = model.get_layer("good_bn"), model.get_layer("bad")
    norm.gamma.assign(np.concatenate([[1e-3], np.asarray(norm.gamma)[1:]]))
    norm.beta.assign(np.concatenate([[0.0], np.asarray(norm.beta)[1:]]))
    kernel, bias = bad.get_weights()
    kernel[0] = 40 * np.abs(kernel).max()
    bad.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module", params=KERASES)
def found(request):
    keras = fresh(keras_of(request.param))
    model = planted(keras)
    labels = model.predict(X, verbose=0).argmax(-1)
    before = model.get_weights()
    results = [
        rewriter.sensitivity(model, X, given, budget_share=0.85, progress=False)
        for given in (None, labels)
    ]
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))
    return model, *results


def test_a_bad_layer_is_found(found):
    _model, by_noise, by_labels = found
    for result in (by_noise, by_labels):
        assert [layer.name for layer in result.layers] == ["first", "good", "bad", "scores"]
        four = {layer.name: layer.widths[4] for layer in result.layers}
        assert result.worst.name == "bad"
        assert min(four, key=lambda name: four[name].snr_db) == "bad"
        assert result.proposal.widths["bad"] == 8
        for layer in result.layers:
            noise = [layer.widths[bits].snr_db for bits in (8, 4, 2)]
            assert noise == sorted(noise, reverse=True)
    assert by_labels.baseline == 1.0 and by_labels.task == "classification"
    assert "bad" in str(by_noise) and "<- proposed" in str(by_noise)
    assert json.loads(by_labels.to_json())["proposal"]["widths"]["bad"] == 8


def test_one_layer_alone_is_what_phase_quantize_makes_of_it(found):
    """Against the model itself, with that layer's kernel in NumPy on its grid."""
    model, by_noise, _ = found
    wanted = model.predict(X, verbose=0).astype(np.float64)
    for layer in by_noise.layers:
        kernel, *others = model.get_layer(layer.name).get_weights()
        for bits, measured in layer.widths.items():
            top = 2 ** (bits - 1) - 1
            scale = np.abs(kernel).max(0) / top
            model.get_layer(layer.name).set_weights([np.rint(kernel / scale) * scale, *others])
            off = wanted - model.predict(X, verbose=0)
            assert measured.snr_db == pytest.approx(
                10 * np.log10((wanted**2).sum() / (off**2).sum()), abs=0.2
            )
        model.get_layer(layer.name).set_weights([kernel, *others])


def test_the_proposal_is_a_recipe_within_its_budget(found, tmp_path):
    model, *results = found
    for result in results:
        recipe = Recipe.from_json(result.recipe.to_json())
        qat = builders.calibrated(model, X, recipe)
        widths = {host.name: host.kernel_quantizers[0].num_bits for host in builders.hosts(qat)}
        assert widths == result.proposal.widths
        report = rewriter.export_tflite(qat, tmp_path / "model.tflite")
        assert report.bytes == result.proposal.bytes <= result.budget_bytes < result.int8_bytes
        plain = rewriter.export_tflite(builders.calibrated(model, X), tmp_path / "int8.tflite")
        assert plain.bytes == result.int8_bytes
        within = [c.measured for c in result.choices if c.bytes <= result.budget_bytes]
        own, first = result.proposal.measured, max(within, key=lambda m: m.rank)
        for other in within:  # uniform widths and the greedy ones among them
            if own.score is None:
                assert own.snr_db >= other.snr_db
            else:
                assert own.score >= first.score - first.score_error
                assert own.snr_db >= other.snr_db or other.score < first.score - first.score_error
        uniform = next(choice for choice in result.choices if set(choice.widths.values()) == {4})
        assert result.proposal.measured.snr_db > uniform.measured.snr_db + 6


def test_standard_error_of_a_score():
    """Of a share of right classes the binomial formula's; of a mean squared error, of a mean's."""
    model, rng = planted(keras_of("keras")), np.random.default_rng(0)
    qat = rewriter.rewrite(model)
    x = builders.normal(400, 10, seed=1)
    wanted = model.predict(x, verbose=0)
    targets = wanted + rng.normal(size=wanted.shape).astype(np.float32)
    squares = np.mean((wanted - targets) ** 2, axis=1)
    found = Measure(qat, [x], targets, 64)()
    assert found.score_error == pytest.approx(squares.std(ddof=1) / 20, rel=0.35)
    right = np.sort(rng.random(400) < 0.7)
    classes = np.where(right, wanted.argmax(-1), wanted.argmin(-1))
    found = Measure(qat, [x], classes, 64)()
    assert found.score_error == pytest.approx(
        np.sqrt(right.mean() * (1 - right.mean()) / 400), rel=0.35
    )


def test_of_choices_that_labels_do_not_tell_apart_the_least_noise_wins():
    def choice(score, error, snr):
        return Choice("", {}, 0, Measured(snr, score, error))

    lucky, quiet, worse = choice(0.90, 0.02, 10), choice(0.89, 0.02, 20), choice(0.87, 0.02, 30)
    assert best([lucky, quiet, worse]) is quiet
    assert best([choice(None, None, 10), choice(None, None, 20)]).measured.snr_db == 20


# The solver


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum(seed):
    """Against every combination; the greedy one is never better, and not always as good."""
    rng = np.random.default_rng(seed)
    sizes = [{8: int(n), 4: -(-int(n) // 2), 2: -(-int(n) // 2)} for n in rng.integers(3, 90, 6)]
    costs = [
        dict(zip((8, 4, 2), np.cumsum(rng.exponential(size=3) ** 3), strict=True)) for _ in sizes
    ]
    budget = 0.7 * sum(size[8] for size in sizes)

    def total(table, widths):
        return sum(row[width] for row, width in zip(table, widths, strict=True))

    best = min(
        total(costs, widths)
        for widths in itertools.product((8, 4, 2), repeat=len(sizes))
        if total(sizes, widths) <= budget
    )
    exact = allocation.cheapest(costs, sizes, budget)
    greedy = allocation.greedy(costs, sizes, budget)
    assert total(sizes, exact) <= budget and total(sizes, greedy) <= budget
    assert total(costs, exact) == pytest.approx(best)
    assert total(costs, greedy) >= best - 1e-9


def test_greedy_is_not_the_optimum():
    """It takes the cheaper saving first, which is not enough, and then needs the other one too."""
    sizes, costs = [{8: 10, 4: 5}, {8: 12, 4: 6}], [{8: 0, 4: 4}, {8: 0, 4: 5}]
    assert allocation.greedy(costs, sizes, 16) == (4, 4)
    assert allocation.cheapest(costs, sizes, 16) == (8, 4)


# What is refused


REFUSED = {
    "too small": ({"budget_bytes": 100}, RecipeError, "Give a larger budget"),
    "both": ({"budget_bytes": 1, "budget_share": 0.5}, RewriterError, "not both"),
    "a share": ({"budget_share": 1.5}, RewriterError, r"in \(0, 1\]. Received: 1.5"),
    "a width": ({"widths": (9,)}, RecipeError, r"widths must be in 2\.\.8. Received: 9"),
    "labels": ({"labels": np.zeros(3, int)}, RewriterError, "96 samples and 3 labels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, error, message = REFUSED[name]
    model = planted(fresh(keras_of(KERASES[0])))
    with pytest.raises(error, match=message):
        rewriter.sensitivity(model, X, progress=False, **arguments)
