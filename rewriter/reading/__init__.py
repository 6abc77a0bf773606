"""What a model is: its files, its call graph, and what every call in it computes.

What may be done here: looking. A front end (``from_keras``) makes a graph in which each call has a
role; the rows say what stock layers and functions compute. Nothing is decided or built here, and no
model is changed.
"""
