"""What every command imports and compiles, in the process that tests/running.py forks. Knows nothing of what is run."""

from recsys import cli
from streaming import compiled

__all__ = ["cli"]
compiled.load()
