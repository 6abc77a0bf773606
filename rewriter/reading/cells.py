"""What the cells of recurrent layers compute in one step, as calls of layers on symbolic tensors.

A cell keeps one kernel for all its gates, side by side, and so do the layers that are made of it:
``<name>_input`` for the input of all steps, with the bias, and ``<name>_recurrent`` for the state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from rewriter.keras_compat import Flavour
from rewriter.keras_compat.variables import read
from rewriter.lifting.block import ClosedError


class Kit:
    """The layers that stand for one cell, each made once, and called in every step.

    Args:
      flavour: the Keras.
      cell: a built one.
      name: of the layer that it is the cell of, before the names of the new ones.
      made: the new layers by name; those that are there are used again.
      trainable: whether the weights train.
    """

    def __init__(self, flavour: Flavour, cell: Any, name: str, made: dict, trainable: bool):
        self.flavour, self.cell, self.kind = flavour, cell, flavour.class_name(cell)
        self._name, self._made, self._trainable = name, made, trainable

    def layer(self, name: str, kind: str, *args: Any) -> Any:
        """The stock layer without weights of this name."""
        if name not in self._made:
            self._made[name] = getattr(self.flavour.keras.layers, kind)(*args, name=name)
        return self._made[name]

    def of(self, role: str, kind: str, *tensors: Any) -> Any:
        """What the layer in this role, of a stock class, makes of tensors."""
        return self.layer(f"{self._name}_{role}", kind)(list(tensors))

    def activation(self, role: str, x: Any, which: str = "activation") -> Any:
        """One of the cell's activations; ``which``: its attribute."""
        return self.layer(f"{self._name}_{role}", "Activation", getattr(self.cell, which))(x)

    def gate(self, role: str, x: Any) -> Any:
        """The activation of gates."""
        return self.activation(role, x, "recurrent_activation")

    def less_one(self, role: str, x: Any) -> Any:
        """``x - 1``, one operator in a file; ``1 - x`` would be three."""
        return self.layer(f"{self._name}_{role}", "Rescaling", 1.0, -1.0)(x)

    def split(self, x: Any, count: int) -> Sequence[Any]:
        """Equal parts of the last axis."""
        return self.flavour.function("split")(x, count, axis=-1) if count > 1 else [x]

    def dense(self, role: str, x: Any, weight: str, kernel: Any, bias: Any = None) -> Any:
        """A product with a kernel of the cell.

        Args:
          role: of the layer.
          x: the tensor, of any number of axes.
          weight: the cell's variable that the kernel is, ``"kernel"`` or ``"recurrent"``.
          kernel: its values, (features, units).
          bias: the bias's, or None.
        """
        name = f"{self._name}_{role}"
        if name not in self._made:
            cell, given = self.cell, {}
            for option in ("regularizer", "constraint"):
                given[f"kernel_{option}"] = getattr(cell, f"{weight}_{option}")
                given[f"bias_{option}"] = getattr(cell, f"bias_{option}")
            dense = self.flavour.keras.layers.Dense(
                kernel.shape[-1], use_bias=bias is not None, name=name, **given
            )
            dense.build((None, kernel.shape[0]))
            dense.set_weights([kernel] if bias is None else [kernel, bias])
            dense.trainable = self._trainable
            self._made[name] = dense
        return self._made[name](x)

    def projected(self, inputs: Any) -> Any:
        """What the inputs of all steps, (batch, steps, features), give to the gates."""
        bias = read(self.cell.bias) if self.cell.use_bias else None
        if bias is not None and bias.ndim == 2:
            bias = bias[0]  # the other is the recurrent one
        return self.dense("input", inputs, "kernel", read(self.cell.kernel), bias)

    def steps(self, x: Any) -> Sequence[Any]:
        """The steps of a tensor, (batch, steps, features), as so many of (batch, features)."""
        _, count, width = x.shape
        flat = self.flavour.function("reshape")(x, (-1, count * width))
        return self.split(flat, count)

    def recurrent(self, x: Any) -> Any:
        """The product of the state with the recurrent kernel of all gates; with its bias."""
        bias = read(self.cell.bias) if self.cell.use_bias else None
        bias = bias[1] if bias is not None and bias.ndim == 2 else None
        return self.dense("recurrent", x, "recurrent", read(self.cell.recurrent_kernel), bias)

    def start(self, x: Any) -> Sequence[Any]:
        """The states before the first step, given what the input of all steps gives.

        None, where zeros give nothing to the next. A GRU has a bias for its state, and zeros.
        """
        if self.kind != "GRUCell":
            return ()
        before = self.flavour.function("pad")(x, [[0, 0], [1, 0], [0, 0]])
        return [before[:, 0, : self.cell.units]]


def _lstm(kit: Kit, x: Any, states: Sequence[Any]) -> Sequence[Any]:
    """``c = f c + i g``, ``h = o tanh(c)`` (Hochreiter and Schmidhuber 1997; Gers et al. 2000)."""
    z = kit.of("sum", "Add", x, kit.recurrent(states[0])) if states else x
    i, f, g, o = kit.split(z, 4)
    cell = kit.of("update", "Multiply", kit.gate("input_gate", i), kit.activation("candidate", g))
    if states:
        kept = kit.of("kept", "Multiply", kit.gate("forget_gate", f), states[1])
        cell = kit.of("cell", "Add", kept, cell)
    output = kit.gate("output_gate", o)
    return kit.of("output", "Multiply", output, kit.activation("cell_activation", cell)), cell


def _gru(kit: Kit, x: Any, states: Sequence[Any]) -> Sequence[Any]:
    """``h = z h - (z - 1) tanh(x + r (h U))`` (Cho et al. 2014, arXiv:1406.1078).

    Or, where the reset gate comes before the product, ``tanh(x + (r h) U)``.
    """
    (state,) = states
    z, r, g = kit.split(x, 3)
    if kit.cell.reset_after:
        for_z, for_r, for_g = kit.split(kit.recurrent(state), 3)
    else:
        units, kernel = kit.cell.units, read(kit.cell.recurrent_kernel)
        gates, rest = kernel[:, : 2 * units], kernel[:, 2 * units :]
        for_z, for_r = kit.split(kit.dense("recurrent", state, "recurrent", gates), 2)
        for_g = state
    z = kit.gate("update_gate", kit.of("update_sum", "Add", z, for_z))
    r = kit.gate("reset_gate", kit.of("reset_sum", "Add", r, for_r))
    for_g = kit.of("reset", "Multiply", r, for_g)
    if not kit.cell.reset_after:
        for_g = kit.dense("recurrent_candidate", for_g, "recurrent", rest)
    g = kit.activation("candidate", kit.of("candidate_sum", "Add", g, for_g))
    update = kit.of("update", "Multiply", kit.less_one("update_rest", z), g)
    return [kit.of("output", "Subtract", kit.of("kept", "Multiply", z, state), update)]


def _simple(kit: Kit, x: Any, states: Sequence[Any]) -> Sequence[Any]:
    """``h = tanh(x + h U)`` (Elman 1990)."""
    if states:
        x = kit.of("sum", "Add", x, kit.recurrent(states[0]))
    return [kit.activation("output", x)]


def _refuse_halves(cell: Any) -> None:
    """Raise ClosedError where a part of a variable cannot have what the whole has."""
    names = ["bias"] if cell.use_bias and cell.reset_after else []
    names += [] if cell.reset_after else ["recurrent"]
    for name in names:
        for option in ("regularizer", "constraint"):
            if getattr(cell, f"{name}_{option}") is not None:
                raise ClosedError(
                    f"it has a {name}_{option}, of a variable that is two here. Build the layer "
                    "without it"
                )


@dataclasses.dataclass(frozen=True)
class Cell:
    """A kind of cell.

    Attributes:
      step: of a kit, what the input gives, and the states (none before the first step, where they
        are zeros), makes the next states; the first of them is the output.
      refuse: raises ClosedError for a cell that has no such form.
      states: how many it has.
    """

    step: Callable[[Kit, Any, Sequence[Any]], Sequence[Any]]
    refuse: Callable[[Any], None] = lambda cell: None
    states: int = 1


CELLS: dict[str, Cell] = {
    "LSTMCell": Cell(_lstm, states=2),
    "GRUCell": Cell(_gru, _refuse_halves),
    "SimpleRNNCell": Cell(_simple),
}
