"""Signal to noise as an overlay for Model Explorer, Google's viewer of networks.

The format is its node data for one graph (``GraphNodeData``): values by the name of a node's output
tensor, see https://github.com/google-ai-edge/model-explorer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rewriter.checking import reading
from rewriter.checking.mapping import mapping_from_names
from rewriter.checking.verify import Verification
from rewriter.errors import RewriterError, VerificationError
from rewriter.files import outputs
from rewriter.files.replacing import write_bytes
from rewriter.report import graph

EQUAL_DB = 200.0  # stands for an infinite ratio, which JSON lacks


def write_model_explorer(verification: Verification, path: str | Path) -> dict[str, Any]:
    """Write the signal to noise of every operator as node data for Model Explorer.

    Open the ``.tflite`` file there, and load the overlay as custom node data. Values are in dB,
    trained model to twin, end to end; 200 stands for equal tensors.

    Args:
      verification: what :func:`rewriter.verify` returned.
      path: where to write, with the suffix ``.json``; an older overlay there is replaced.

    Returns:
      What was written, as JSON values.

    Raises:
      RewriterError: ``path`` holds something else, or the verification does not say what it
        compared.
      OSError: the file cannot be written.
    """
    check(path)
    evidence = verification.evidence
    if evidence is None:
        raise VerificationError(
            "This Verification does not hold what was compared. Take one that verify returned."
        )
    names = mapping_from_names(evidence.lowered.program, reading.read(evidence.content)).names
    values = {
        names[tensor.name]: tensor.snr_db if math.isfinite(tensor.snr_db) else EQUAL_DB
        for tensor in verification.training.tensors
        if tensor.name in names
    }
    bounds = [bound for bound, _, _ in graph.COLOURS[:-1]] + [EQUAL_DB - 1, EQUAL_DB]
    colours = [*(own for _, own, _ in graph.COLOURS), graph.EQUAL[0]]
    data = {
        "results": {name: {"value": round(value, 2)} for name, value in values.items()},
        "thresholds": [
            {"value": bound, "bgColor": own} for bound, own in zip(bounds, colours, strict=True)
        ],
    }
    write_bytes(path, json.dumps(data).encode())
    return data


def check(path: str | Path) -> None:
    """Check, before the work, that an overlay can be written.

    Raises:
      RewriterError: ``path`` has another suffix, or holds something else.
    """
    refusal = outputs.refusal(path, (".json",), "An overlay for Model Explorer")
    if refusal is not None:
        raise RewriterError(refusal)
