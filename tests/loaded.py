"""What commands compile, and import late, in the process that tests/running.py forks. Knows nothing of what is run."""

from models.embeddings import ItemTable
from streaming import compiled

compiled.load()
ItemTable(1, 1)
