"""How many threads sums are made on: one, so that they come in one order, and to the same bytes, however many cores a machine has.

Knows nothing of what is summed.
"""

from importlib import import_module

import torch
from threadpoolctl import threadpool_limits

WITH_POOLS = "faiss", "scipy.linalg"
"""Libraries that bring pools of threads of their own, beside torch's and numpy's. A limit holds for what is loaded when it is set."""


def one_thread() -> None:
    """All sums of this process on one thread from here on.

    It is the faster way too on small work: where two processes share two cores, their pools wait for each other, and eigenvectors of 512
    dimensions take 3.4 s in place of .1.
    """
    for name in WITH_POOLS:
        import_module(name)
    torch.set_num_threads(1)
    threadpool_limits(1)
