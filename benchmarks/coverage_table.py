"""The table of the coverage matrix, from its results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import lifting_table

Row = dict[str, Any]


def load(results: Path) -> list[Row]:
    """The lines of a results file; of several for one task the last; none if there is no file."""
    if not results.exists():
        return []
    rows = {}
    for line in results.read_text().splitlines():
        row = json.loads(line)
        rows[row["kind"], row["keras"], row["name"]] = row
    return list(rows.values())


def write(results: Path, target: Path) -> None:
    """Write the table of ``results`` to ``target``."""
    target.write_text(render(load(results)))


def render(rows: list[Row]) -> str:
    """Markdown."""
    by_task = {(row["kind"], row["keras"], row["name"]): row for row in rows}
    lifted = [row for row in rows if row["kind"] in lifting_table.KINDS]
    parts = [_INTRODUCTION] if len(lifted) < len(rows) else []
    for keras in ("tf_keras", "keras"):
        found = sorted(
            (row for row in rows if row["keras"] == keras and row["kind"] == "rewrite"),
            key=lambda row: row["name"],
        )
        if found:
            parts.append(_rewrites(keras, found, by_task))
    exports = sorted(
        (row for row in rows if row["kind"] == "export"),
        key=lambda row: (row["name"], row["keras"]),
    )
    if exports:
        parts.append(_exports(exports))
    if lifted:
        parts.append(lifting_table.render(lifted))
    failed = [row for row in rows if "error" in row or row.get("refusal")]
    if failed:
        parts.append(_failures(failed))
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """# The coverage matrix

Written by `benchmarks/coverage.py`. Random weights, ten classes; statistics of the batch
normalizations from data, then perturbed. *Difference*: of the logits in phase `float` from the
original model's, to the largest magnitude. *Rewrite* and *clone*: CPU seconds of `rewrite` (which
plans) and of `clone_model`, in the same process, on a shared machine: only their ratio means
something. *Memory*: the peak of plan and rewrite, the original included, to the peak of building
the original."""


def _rewrites(keras: str, rows: list[Row], by_task: dict[tuple, Row]) -> str:
    good = [row for row in rows if "error" not in row]
    total, fused = _sum(good, "batch_norms"), _sum(good, "fused")
    tfmot = keras == "tf_keras"
    header = ["architecture", "input", "BN", "fused", "standalone", "refused", "left",
              "difference", "rewrite s", "clone s", "ratio", "memory"]  # fmt: skip
    lines = [_line([*header, *(["TFMOT"] if tfmot else [])])]
    lines.append(_line(["---"] * (len(header) + tfmot)))
    for row in rows:
        if "error" in row:
            cells = [row["name"], f"failed: {row['error'][:80]}", *[""] * (len(header) - 2)]
        else:
            cells = [
                row["name"],
                row["side"],
                *(row[key] for key in ("batch_norms", "fused", "standalone", "refused", "left")),
                f"{row['difference']:.1e}",
                *(_number(row, key, 1) for key in ("rewrite_seconds", "clone_seconds")),
                *(_number(row, key, 2) for key in ("time_ratio", "memory_ratio")),
            ]
        if tfmot:
            cells.append(_tfmot(by_task.get(("tfmot", keras, row["name"]))))
        lines.append(_line(cells))
    if not good:
        return f"## {keras}\n\n" + "\n".join(lines)
    summary = (
        f"{len(good)} architectures, {total:,} batch normalizations: {fused:,} fused "
        f"({100 * fused / max(total, 1):.1f} %; {_sum(good, 'expected_fused'):,} follow a linear "
        f"layer as its only consumer), {_sum(good, 'standalone'):,} standalone, "
        f"{_sum(good, 'refused')} refused, {_sum(good, 'left')} left. Largest difference "
        f"{max(row['difference'] for row in good):.1e}; largest ratio to `clone_model` "
        f"{_largest(good, 'time_ratio')}; largest memory ratio "
        f"{_largest(good, 'memory_ratio')}."
    )
    return f"## {keras}\n\n{summary}\n\n" + "\n".join(lines)


def _tfmot(row: Row | None) -> str:
    if row is None:
        return ""
    if "takes" not in row:
        return row["error"][:40]
    return f"takes it, {row['left']} BN left" if row["takes"] else "refuses"


def _exports(rows: list[Row]) -> str:
    header = ["architecture", "Keras", "input", "operators", "float tensors", "worst tensor",
              "within 1", "all tensors", "end to end", "XNNPACK = builtin", "output",
              "output, XNNPACK = builtin"]  # fmt: skip
    lines = [_line(header), _line(["---"] * len(header))]
    for row in rows:
        if "operators" not in row:
            reason = "refused" if row.get("refusal") else "failed"
            lines.append(_line([row["name"], row["keras"], reason, *[""] * (len(header) - 3)]))
            continue
        shares = ("worst_identical", "worst_within_one", "identical", "end_to_end",
                  "kernels_agree", "end_to_end_output", "kernels_agree_output")  # fmt: skip
        cells = [row["name"], row["keras"], row["side"], row["operators"], row["float_tensors"]]
        lines.append(_line([*cells, *(f"{100 * row[key]:.3f}" for key in shares)]))
    text = (
        "The smallest member of each family as an int8 file, in % of the elements. Operator by "
        "operator, each operator given the file's own inputs (XNNPACK): *worst tensor*, the "
        "smallest identical share; *within 1*, the smallest share within one step; *all tensors*, "
        "the identical share of all elements. *End to end*: the same with the whole program run "
        "from the inputs, beside what XNNPACK and the builtin kernels agree on with the same "
        "file: random deep networks are chaotic, so that is the noise floor."
    )
    return f"## Export\n\n{text}\n\n" + "\n".join(lines)


def _failures(rows: list[Row]) -> str:
    lines = [
        f"- {row['kind']} {row['keras']} {row['name']}: {row.get('error') or row['refusal']}"
        for row in rows
    ]
    return "## Failures\n\n" + "\n".join(lines)


def _number(row: Row, key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else "not measured"


def _largest(rows: list[Row], key: str) -> str:
    """The largest value, and of how many rows."""
    values = [row[key] for row in rows if key in row]
    return f"{max(values):.2f} (of {len(values)})" if values else "not measured"


def _sum(rows: list[Row], key: str) -> int:
    return sum(row[key] for row in rows)


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"
