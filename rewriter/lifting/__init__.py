"""From a graph of operators to layers: a SavedModel that holds only functions, as a Keras model.

``lift.lift`` is the one function that other rooms call. Nothing of the file is run: its
signature's function is read as a graph, inlined, and each operator or group of operators becomes a
layer by a row of data. Operators that may stand in the graph are listed (``operators.ALLOWED``),
all others are refused. Imports nothing above the two Kerases, files and errors.
"""
