"""Processes that are gone once the one that began them is. Knows nothing of what they do."""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def bound_to(original: int) -> bool:
    """Have the kernel kill this process once the thread that began it is gone (Linux); whether `original` is its parent still."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == original
