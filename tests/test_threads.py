"""models/threads.py: whatever was set before, sums are made on one thread."""

import torch
from threadpoolctl import threadpool_info, threadpool_limits

from models.threads import one_thread


def test_all_pools_have_one_thread() -> None:
    torch.set_num_threads(2)
    with threadpool_limits(2):
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
        one_thread()
        pools = threadpool_info()
        assert torch.get_num_threads() == 1
    one_thread()
    assert {pool["num_threads"] for pool in pools} == {1}
    assert all(any(f"/{name}" in pool["filepath"] for pool in pools) for name in ("faiss", "numpy", "scipy", "torch"))
