"""The command line: what its commands do, the data files that they read, and the demo.

The parser is ``rewriter_parser``, outside of the package. What may be done here: printing, and
anything that the other rooms offer; none of them imports this one.
"""
