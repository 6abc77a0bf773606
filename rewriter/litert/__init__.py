"""The back end for LiteRT: an integer program becomes a file, and what a runtime makes of it.

Rows say how each operator stands in a file, and from which version on; ``integer*`` compute what
LiteRT's kernels compute, bit by bit; ``islands`` are the layers that stay in float. What may be
done here: everything that is LiteRT's own. Nothing here knows Keras. Another back end would stand
beside it.
"""
