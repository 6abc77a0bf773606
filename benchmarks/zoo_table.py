"""The results of :mod:`benchmarks.zoo` as tables in Markdown."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.zoo_models import MODELS

FLOAT_BAR = 1e-4
Row = dict[str, Any]


def load(path: Path) -> list[Row]:
    """The results, the last of each model."""
    if not path.exists():
        return []
    rows = map(json.loads, path.read_text().splitlines())
    return list({(r["package"], r["name"], r["keras"]): r for r in rows}.values())


def rewrites(row: Row) -> bool:
    """Whether the model is rewritten, without a normalization left."""
    return row.get("left") == 0


def exports(row: Row) -> bool:
    """Whether there is a file of integers alone."""
    return row.get("export") == "integers"


def unfinished(row: Row) -> bool:
    """Whether a model did not go the whole way."""
    whole = rewrites(row) and exports(row) and row.get("identical") == 1
    return not (whole and row.get("saved") == 0 and "loss" in row and "error" not in row)


def write(results: Path, table: Path) -> None:
    """Write the tables of ``results`` to ``table``."""
    rows = load(results)
    counts = [
        ("models", len(rows)),
        ("rewritten, no normalization left", sum(map(rewrites, rows))),
        ("refused, by a message", sum("rewrite" in r for r in rows)),
        (f"float phase within {FLOAT_BAR:g}", sum(r.get("float", 1) <= FLOAT_BAR for r in rows)),
        ("saved and loaded, the same bits", sum(r.get("saved") == 0 for r in rows)),
        ("trained, loss finite", sum(abs(r.get("loss", float("inf"))) < 1e9 for r in rows)),
        ("exported in integers", sum(map(exports, rows))),
        ("of these the twin's bits", sum(exports(r) and r.get("identical") == 1 for r in rows)),
        ("not done: an error or out of time", sum("error" in r for r in rows)),
    ]
    heads = ["model", "Keras", "layers", "BN", "left", "float", "saved", "trained", "export"]
    body = [_line(row) for row in sorted(rows, key=lambda r: (r["package"], r["name"], r["keras"]))]
    text = [
        "# Models of public packages",
        "`python benchmarks/zoo.py run` (see there for what each column says): "
        f"{len(rows)} of its {sum(len(entry.kerases) for entry in MODELS)} runs; it goes on where "
        "the results end.",
        report.machine(),
        report.table(["", "models"], [[name, str(n)] for name, n in counts]),
        report.table([*heads, "identical"], body),
        "## What keeps a model from integers",
        report.table(["reason", "models"], _reasons(rows)),
    ]
    table.write_text("\n\n".join(text) + "\n")


def _line(row: Row) -> list[str]:
    saved, loss = row.get("saved", ""), row.get("loss")
    export = row.get("export", "")
    if export not in ("", "integers"):
        export = "float parts" if "identical" in row else "refused"
    return [
        f"{row['package']}: {row['name']}",
        row["keras"],
        str(row.get("layers", "")),
        str(row.get("norms", "")),
        str(row.get("left", "refused" if "rewrite" in row else "")),
        f"{row['float']:.0e}" if "float" in row else "",
        "yes" if saved == 0 else ("no" if isinstance(saved, str) and saved else f"{saved}"),
        "" if loss is None else "yes",
        export or ("error" if "error" in row else ""),
        f"{row['identical']:.4%}" if "identical" in row else "",
    ]


def _reasons(rows: Sequence[Row]) -> list[list[str]]:
    """Why models are not exported in integers, the most frequent first."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows:
        name = f"{row['name']} ({row['keras']})"
        if row.get("export", "integers") != "integers":
            found[_shortened(row["export"])].add(name)
        for key in ("rewrite", "error", "with float"):
            if key in row:
                found[f"{key}: {_shortened(row[key])}"].add(name)
        if isinstance(row.get("saved"), str):
            found[f"saved: {_shortened(row['saved'])}"].add(name)
    ordered = sorted(found.items(), key=lambda item: -len(item[1]))
    return [[reason, ", ".join(sorted(names))] for reason, names in ordered]


def _shortened(message: str) -> str:
    """The kinds of layers that an export refuses, else the start of a message."""
    if "would stay in float" in message:
        listed = message.split("would stay in float:", 1)[1].split(". Replace", 1)[0]
        kinds = set(re.findall(r"\((\w+)\)", listed))
        if kinds:
            return ", ".join(sorted(kinds))
    return message[:160].replace("\n", " ").replace("|", "/")
