"""What every command compiles, in the process that tests/running.py forks. Knows nothing of what is run."""

from streaming import compiled

compiled.load()
