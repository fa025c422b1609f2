"""What this machine can do at best, to say which share of it a step reaches.

Knows nothing of models, of training or of what is compared with it.
"""

import time

import torch

FEWEST = 3


def matmul_peak_gflops(dtype: torch.dtype = torch.float32, threads: int = 1, size: int = 1536, seconds: float = 1.0) -> float:
    """Billions of operations a second of the fastest of many square matrix products; a product counts as 2 · size³."""
    left, right = (torch.ones(size, size, dtype=dtype) for _ in range(2))
    result = torch.empty(size, size, dtype=dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        times_s: list[float] = []
        while len(times_s) < FEWEST or sum(times_s) < seconds:
            started_s = time.perf_counter()
            torch.mm(left, right, out=result)
            result[0, 0].item()  # a GPU works on by itself until it is asked
            times_s.append(time.perf_counter() - started_s)
    finally:
        torch.set_num_threads(before)
    # the best of them: everything slower is other work on the machine
    return 2 * size**3 / min(times_s) / 1e9
