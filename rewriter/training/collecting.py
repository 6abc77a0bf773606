"""What calibration sees of each tensor, and the ranges that it makes of that."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import tensorflow as tf

from rewriter.errors import CalibrationError, RecipeError
from rewriter.keras_compat import flat_layers
from rewriter.layers.observing import ranges_apart
from rewriter.layers.quantize import QuantizeMixin
from rewriter.quantization import levels
from rewriter.quantization.powers_of_two import PowerOfTwoRangeQuantizer, candidates
from rewriter.quantization.quantizers import (
    CALIBRATIONS,
    UNSET_MAX,
    UNSET_MIN,
    RangeQuantizer,
    calibration_method,
)
from rewriter.reading.graph import Graph
from rewriter.training import range_methods
from rewriter.training.histograms import Recorder

Methods = str | Mapping[str, str] | None

_GROWN = 0.25  # of a range, in the second half of the data: it is not known yet


class Collector:
    """Sees the tensors that get a range of ours while batches pass.

    Args:
      graph: of the rewritten model.
      layers: those with a range.
      methods: see :func:`rewriter.calibrate`.

    Raises:
      CalibrationError: a method or a pattern of ``methods`` is not known.
    """

    def __init__(self, graph: Graph, layers: Sequence[Any], methods: Methods):
        self._layers = [each for each in layers if isinstance(each.quantizer, RangeQuantizer)]
        self._names = {id(layer): name for layer, name in _named(graph, self._layers)}
        self._methods = _chosen(self._layers, self._names, methods)
        self._before = [
            (each.quantizer.calibration, each.quantizer.levels, each.quantizer.held)
            for each in self._layers
        ]
        self._recorders = self._new_recorders()
        # Of what was seen as in training: by the id of each layer.
        self._apart: dict[int, dict[str, Any]] = {}
        self._apart_recorders: dict[int, Recorder] = {}
        self._inputs = _of_inputs(graph, self._layers)
        self._finders = [levels.LevelFinder() for _ in self._inputs]
        self._halfway: tuple[int, list[tuple[float, float]]] = (0, [])
        self._next = 1

    def observe(self, layer: Any, outputs: Any) -> None:
        """Record what a layer returns, in the graph that is being traced."""
        apart = layer.range_variables is self._apart.get(id(layer))
        recorder = (self._apart_recorders if apart else self._recorders).get(id(layer))
        if recorder is not None:
            recorder.record(outputs)

    @contextlib.contextmanager
    def in_training(self) -> Iterator[None]:
        """Within, what is traced observes the model as it is in training.

        :meth:`finish` then makes ranges that hold what was observed so, too.
        """
        for layer in self._layers:
            own = {"min_var": tf.Variable(UNSET_MIN), "max_var": tf.Variable(UNSET_MAX)}
            self._apart[id(layer)] = {**layer.range_variables, **own}
        self._apart_recorders = self._new_recorders()
        with ranges_apart(self._apart):
            yield

    def _new_recorders(self) -> dict[int, Recorder]:
        """One for each layer whose range is not made of the extremes."""
        observed = (each for each in self._layers if self._methods[id(each)] != CALIBRATIONS[0])
        return {id(layer): Recorder() for layer in observed}

    def look(self, inputs: Sequence[Any], count: int) -> None:
        """See a batch of inputs, of which ``count`` samples went before."""
        for (_, place), finder in zip(self._inputs, self._finders, strict=True):
            finder.look(inputs[place])
        if count >= self._next:  # after 1, 2, 4, ... samples, so once at least in the second half
            self._halfway = (count, [_range(layer.range_variables) for layer in self._layers])
            self._next = 2 * count

    def finish(self) -> None:
        """Set the ranges."""
        for layer in self._layers:
            method = self._methods[id(layer)]
            layer.quantizer.calibration = method
            layer.quantizer.held = method != CALIBRATIONS[0]
            seen = _range(layer.range_variables)
            found = self._made(layer, seen, self._recorders)
            if id(layer) in self._apart:
                trained = _range(self._apart[id(layer)])
                other = self._made(layer, trained, self._apart_recorders)
                found = min(found[0], other[0]), max(found[1], other[1])
            if found != seen or isinstance(layer.quantizer, PowerOfTwoRangeQuantizer):
                layer.set_range(*found)
        for (layer, _), finder in zip(self._inputs, self._finders, strict=True):
            found = finder.levels()
            grid = layer.quantizer.grid
            if found is None or not layer.quantizer.takes_levels:
                continue
            place = levels.placed(found, grid.qmin, grid.qmax)
            if place is None:
                continue
            bounds = [place.scale * (q - place.zero_point) for q in (grid.qmin, grid.qmax)]
            layer.set_range(*bounds, levels=(found.first, found.step, found.count))

    def _made(
        self, layer: Any, seen: range_methods.Range, recorders: Mapping[int, Recorder]
    ) -> Any:
        """The range that the method of a layer makes of what was seen."""
        recorder = recorders.get(id(layer))
        if recorder is None or not seen[0] < seen[1]:
            return seen
        method, grid = self._methods[id(layer)], layer.quantizer.grid
        if method == "mse" and isinstance(layer.quantizer, PowerOfTwoRangeQuantizer):
            return range_methods.closest(candidates(*seen, grid), recorder.histogram(), grid.steps)
        return range_methods.METHODS[method](seen, recorder.histogram(), grid.steps)

    def moving(self, count: int) -> str | None:
        """What to say of ranges that the second half of the data has widened a lot; None if none.

        Args:
          count: how many samples there were.
        """
        samples, ranges = self._halfway
        worst, name = _GROWN, None
        for layer, (low, high) in zip(self._layers, ranges, strict=False):
            now = _range(layer.range_variables)
            width = now[1] - now[0]
            grown = (width - (high - low)) / width if width > 0 else 0.0
            if grown > worst:
                worst, name = grown, self._names[id(layer)]
        if name is None:
            return None
        return (
            f"The ranges still move: that of {name!r} was {100 * worst:.0f} % smaller after "
            f"{samples} of the {count} samples. Calibrate with more of them."
        )

    def restore(self) -> None:
        """Have the quantizers as they were; the ranges are variables, which others restore."""
        for layer, (calibration, found, held) in zip(self._layers, self._before, strict=True):
            layer.quantizer.calibration, layer.quantizer.levels = calibration, found
            layer.quantizer.held = held


def _range(variables: Mapping[str, Any]) -> range_methods.Range:
    return float(variables["min_var"].numpy()), float(variables["max_var"].numpy())


def _named(graph: Graph, layers: Sequence[Any]) -> list[tuple[Any, str]]:
    """Each layer with a name that a user knows: the parts of another have that one's."""
    owners: dict[int, str] = {}
    for call in graph.calls:
        for part in flat_layers(call.layer):
            owners.setdefault(id(part), call.path)
    return [(layer, owners.get(id(layer), layer.name)) for layer in layers]


def _chosen(layers: Sequence[Any], names: Mapping[int, str], methods: Methods) -> dict[int, str]:
    """The method of each layer by its id."""
    own = {id(layer): layer.quantizer.calibration for layer in layers}
    if methods is None:
        return own
    wanted = {"*": methods} if isinstance(methods, str) else dict(methods)
    unused = set(wanted) - {"*"}
    try:
        for name in wanted.values():
            calibration_method(name)
    except RecipeError as error:
        raise CalibrationError(f"method: {error}") from error
    for layer in layers:
        for pattern, method in wanted.items():
            if any(fnmatchcase(name, pattern) for name in {names[id(layer)], layer.name}):
                own[id(layer)] = method
                unused.discard(pattern)
                break
    if unused:
        raise CalibrationError(
            f"method: no layer with a range is called {sorted(unused)[0]!r}. "
            f"Received: {wanted}. Names and patterns are those of the model's layers."
        )
    return own


def _of_inputs(graph: Graph, layers: Sequence[Any]) -> list[tuple[Any, int]]:
    """The layers that quantize an input and nothing else, with the place of the input."""
    places = {ref: place for place, ref in enumerate(graph.input_refs())}
    known = {id(layer) for layer in layers}
    found, count = {}, collections.Counter(id(call.layer) for call in graph.calls)
    for call in graph.calls:
        ours = isinstance(call.layer, QuantizeMixin) and id(call.layer) in known
        if ours and count[id(call.layer)] == 1 and call.refs[0] in places:
            found[id(call.layer)] = (call.layer, places[call.refs[0]])
    return list(found.values())
