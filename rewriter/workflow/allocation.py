"""One width for each layer under a budget of bytes: exact, and greedy for comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import optimize, sparse

from rewriter.errors import RecipeError

Costs = Sequence[Mapping[int, float]]  # for each layer by width
Bytes = Sequence[Mapping[int, int]]


def cheapest(costs: Costs, sizes: Bytes, budget: float) -> tuple[int, ...]:
    """The widths with the smallest sum of costs of which the sizes add up to the budget at most.

    A multiple-choice knapsack problem: one variable of 0 or 1 for each layer and width, solved to
    the optimum by :func:`scipy.optimize.milp`.

    Args:
      costs: what each width of each layer costs, not negative.
      sizes: its bytes, for the same widths.
      budget: for all layers together, bytes.

    Raises:
      RecipeError: the smallest widths need more.
    """
    least = sum(min(of.values()) for of in sizes)
    if least > budget:
        raise RecipeError(
            f"The budget leaves {max(int(budget), 0):,} bytes for the kernels, which take "
            f"{least:,} at the least. Give a larger budget."
        )
    choices = [(layer, width) for layer, of in enumerate(costs) for width in of]
    if not choices:
        return ()
    largest = max(costs[layer][width] for layer, width in choices) or 1.0
    cost = np.array([costs[layer][width] / largest for layer, width in choices])
    size = np.array([sizes[layer][width] for layer, width in choices], float)
    one = sparse.csr_array(
        (np.ones(len(choices)), ([layer for layer, _ in choices], range(len(choices)))),
        shape=(len(costs), len(choices)),
    )
    found = optimize.milp(
        cost,
        integrality=np.ones(len(choices)),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one, 1, 1),
            optimize.LinearConstraint(size[None], ub=np.floor(budget)),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        raise RecipeError(f"No widths were found for {budget:,.0f} bytes: {found.message}")
    taken = {layer: width for (layer, width), x in zip(choices, found.x, strict=True) if x > 0.5}
    return tuple(taken[layer] for layer in range(len(costs)))


def greedy(costs: Costs, sizes: Bytes, budget: float) -> tuple[int, ...]:
    """As :func:`cheapest`, step by step: the width that costs least for each byte that it saves.

    What a search without a solver does; it may end above the optimum.

    Raises:
      RecipeError: the smallest widths need more.
    """
    chosen = [max(of) for of in costs]
    while sum(size[width] for size, width in zip(sizes, chosen, strict=True)) > budget:
        steps = [
            ((cost[width] - cost[now]) / (size[now] - size[width]), layer, width)
            for layer, (cost, size, now) in enumerate(zip(costs, sizes, chosen, strict=True))
            for width in cost
            if size[width] < size[now]
        ]
        if not steps:
            raise RecipeError(
                f"The smallest widths need more than {budget:,.0f} bytes. Give a larger budget."
            )
        _, layer, width = min(steps)
        chosen[layer] = width
    return tuple(chosen)
