"""What has rows in several files has them in all: red until a host or an operation is whole.

`docs/extending.md` says which rows these are.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rewriter import grid
from rewriter.keras_compat import symbols
from rewriter.layers.linear import LINEAR
from rewriter.litert import integer
from rewriter.litert.rows import ROWS as FILE_ROWS
from rewriter.lowering import host_layers, operators
from rewriter.reading import stock_activations, stock_functions, stock_layers
from rewriter.reading.hosts import HOSTS
from rewriter.rewriting.behaviours import BEHAVIOURS

GUIDE = Path(__file__).parents[1] / "docs" / "extending.md"


def test_hosts() -> None:
    integers = {name for name, row in HOSTS.items() if not row.float_only}
    assert set(HOSTS) == set(LINEAR)
    assert integers == set(host_layers._OPERATORS)


def test_operations_have_a_behaviour_and_integers() -> None:
    assert set(BEHAVIOURS) == set(operators.ROWS)


@pytest.mark.parametrize("table", ["TENSORFLOW", "KERAS3"])
def test_names_are_read(table: str) -> None:
    """Every symbol of a Keras names a reader."""
    readers = {row.split()[0] for row in getattr(symbols, table).values()}
    assert readers <= set(stock_functions._READERS)


def test_every_reader_is_of_use() -> None:
    named = {row.split()[0] for t in (symbols.TENSORFLOW, symbols.KERAS3) for row in t.values()}
    assert set(stock_functions._READERS) <= named


def test_what_is_read_is_an_operation() -> None:
    """The names of operations in the readers' own text: each has a behaviour."""
    named: set[str] = set()
    for module in (stock_functions, stock_layers, stock_activations):
        text = Path(module.__file__ or "").read_text()
        named |= set(re.findall(r"\bOperation\(\s*\"(\w+)\"", text))
        named |= set(re.findall(r"\b_(?:named|one|only|reduction|global)\(\"(\w+)\"", text))
    assert len(named) > 20 and named <= set(BEHAVIOURS)


def test_operators_of_the_file_have_integers() -> None:
    assert set(FILE_ROWS) == integer.SUPPORTED
    assert set(grid.KERNEL_STORAGE) <= set(FILE_ROWS)


def test_the_guide_names_what_there_is() -> None:
    """Every file and test that the guide sends its reader to."""
    paths = re.findall(r"`((?:rewriter|tests)/[\w/]+\.py)(?:`|:)", GUIDE.read_text())
    assert len(paths) > 15
    missing = [p for p in paths if not (GUIDE.parents[1] / p).exists()]
    assert not missing
