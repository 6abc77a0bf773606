"""From the graph of a trained model to a quantization-aware one: decide, then build.

The fate of every batch normalization, how each operation treats ranges, where quantizers go, the
plan, the recipe, and the new model with the trained values. What may be done here: decisions, and
making layers; there is no arithmetic on tensors, and the original model stays as it is.
"""
