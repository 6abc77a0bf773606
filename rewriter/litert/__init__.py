"""LiteRT: what its integer kernels compute, how its files are written and read."""
