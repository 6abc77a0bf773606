"""How tensors are put on their grids while a model trains: quantizers, pipelines, phases.

What a recipe may hold, and what layers are given. What may be done here: describing a quantization
and its variables; the arithmetic is in :mod:`rewriter.kernels`. Nothing here knows a graph.
"""
