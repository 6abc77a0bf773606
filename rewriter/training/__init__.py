"""What users call between rewriting and exporting, and what they put into recipes.

Calibration, phases, schedules, re-estimated statistics, quantizers, and pipelines on the variables
of batch normalizations. What may be done here: setting variables of a quantization-aware model.
Nothing here knows the graph of a model.
"""
