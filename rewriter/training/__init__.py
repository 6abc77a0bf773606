"""What users call between rewriting and exporting: calibration, schedules, re-estimated statistics.

What may be done here: running a quantization-aware model on data, and setting its variables. No
model is made here.
"""
