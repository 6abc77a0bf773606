"""From a quantization-aware model to the integer program.

What may be done here: algebra on constants, in NumPy, and the choice of operators. Nothing here
knows a file format; what a runtime computes is asked of :mod:`rewriter.litert`.
"""
