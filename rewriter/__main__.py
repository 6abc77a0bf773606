"""``python -m rewriter``: the same as the command ``rewriter``."""

from rewriter_command import run

if __name__ == "__main__":
    run()
