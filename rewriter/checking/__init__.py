"""Whether twin, file and trained model agree: comparisons and what they found.

LiteRT runs in another process, as its kernels may end theirs. What may be done here: running models
and files; nothing is changed, and the figures are made before anything is said about them.
"""
