"""The tables of what lifting makes of the architectures, from the rows of coverage.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks import report

KINDS = ("lift", "lifted")
BAR = 1e-5
Row = dict[str, Any]

_INTRODUCTION = f"""# Lifted architectures

Written by `benchmarks/coverage.py run --kinds lift lifted`. Random weights, ten classes; statistics
of the batch normalizations from data, then perturbed; the smallest input that is allowed.
*Difference*: of the lifted model's logits from the original's, to the largest magnitude; the bar is
{BAR:g}. *Same plan*: as many batch normalizations, with the same actions, and as many trained
weights of the same sizes. *Kept*: operators that are a layer of their own. *Load*: processor
seconds of `rewriter.load_model` of the graph and of Keras's `load_model` of the same model's
`.keras` file, in the same process; *memory*: what each adds at its peak."""


def writers(rows: list[Row]) -> Iterator[tuple[Row, str, Row]]:
    """Of each architecture and writer: its row, the writer, and what was found."""
    for row in rows:
        for writer, found in row.get("writers", {}).items():
            yield row, writer, found


def met(found: Row) -> bool:
    """Whether a lifted model is the original one."""
    same = found["plan"] and found["weights"] and found["floats"] == 0
    return bool(same and found["difference"] <= BAR)


def slower(row: Row, found: Row) -> float | None:
    """How often Keras's load of the same model the lifted load took; None where Keras fails."""
    if "keras load" not in row:
        return None
    return float(found["load"]["cpu"] / row["keras load"]["cpu"])


def render(rows: list[Row]) -> str:
    """Markdown."""
    lifts = sorted((r for r in rows if r["kind"] == "lift"), key=lambda r: (r["name"], r["keras"]))
    ways = sorted((r for r in rows if r["kind"] == "lifted"), key=lambda r: (r["name"], r["keras"]))
    parts = [_INTRODUCTION]
    if lifts:
        parts += [_summary(lifts), _lifts(lifts)]
    if ways:
        parts.append(_ways(ways))
    return "\n\n".join(parts)


def _summary(rows: list[Row]) -> str:
    every = list(writers(rows))
    good = sum(met(found) for _, _, found in every)
    worst = max((found["difference"] for _, _, found in every), default=0.0)
    ratios = [ratio for row, _, found in every if (ratio := slower(row, found)) is not None]
    slowest = max((found["load"]["wall"] for _, _, found in every), default=0.0)
    names = len({row["name"] for row in rows})
    return (
        f"{names} architectures, {len(every)} files: {good} with the same plan, the same weights, "
        f"no layer more in float, and within the bar; the largest difference is {worst:.1e}. The "
        f"longest load took {slowest:.1f} s; to Keras's load at most {max(ratios, default=0):.2f}."
    )


def _lifts(rows: list[Row]) -> str:
    head = ["architecture", "Keras, written by", "operators", "layers", "BN", "fused",
            "kept", "difference", "same plan", "load s", "Keras's", "ratio", "memory MB",
            "Keras's"]  # fmt: skip
    body = []
    for row, writer, found in writers(rows):
        own, keras, ratio = found["load"], row.get("keras load"), slower(row, found)
        body.append(
            [
                row["name"],
                f"{row['keras']} {writer}",
                found["operators"],
                found["layers"],
                row["norms"],
                row["fused"],
                found["kept"],
                f"{found['difference']:.0e}",
                "yes" if found["plan"] and found["weights"] else "no",
                f"{own['cpu']:.1f}",
                f"{keras['cpu']:.1f}" if keras else "fails",
                "" if ratio is None else f"{ratio:.2f}",
                f"{own['peak']:.0f}",
                f"{keras['peak']:.0f}" if keras else "",
            ]
        )
    return report.table(head, body)


def _ways(rows: list[Row]) -> str:
    head = ["architecture", "Keras", "float phase", "operators", "float tensors", "identical"]
    body = [
        [
            row["name"],
            row["keras"],
            f"{row['float']:.0e}",
            row["operators"],
            row["float_tensors"],
            f"{100 * row['identical']:.3f}",
        ]
        for row in rows
        if "operators" in row
    ]
    text = (
        "The smallest of each family as `export` of its Keras wrote it: lifted, rewritten, "
        "calibrated, exported. *Identical*: the smallest share of equal integers of any tensor, "
        "operator by operator, in %."
    )
    return f"## The whole way\n\n{text}\n\n{report.table(head, body)}"
