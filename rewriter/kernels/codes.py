"""What the arguments ``phase`` and ``clamp`` of the kernels may be.

A phase is an int32 scalar; :mod:`rewriter.quantization.phases` names and sets them.
"""

from __future__ import annotations

FLOAT, OBSERVE, QUANTIZE, QUANTIZE_FROZEN = range(4)
# As QUANTIZE_FROZEN, for a layer whose range is known to be set: nothing in the graph looks.
QUANTIZE_FIXED = 4

# The activations that a quantizer of activations applies first; LiteRT fuses them.
CLAMPS = ("none", "relu", "relu6")
