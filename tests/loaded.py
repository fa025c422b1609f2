"""What commands compile, and import late, in the process that tests/running.py forks. Knows nothing of what is run."""

from models import embeddings, kernels
from streaming import compiled

compiled.load()
embeddings.load()
kernels.load()
