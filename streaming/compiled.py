"""Functions in machine code. Knows nothing of what they do.

numba looks for changes in no file but a function's own: compiled functions call only those of their own file, and whoever
changes a constant that one takes from elsewhere changes its file too.
"""

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit
from numba.core.registry import cpu_target

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called and kept on disk beside its source, or where NUMBA_CACHE_DIR says.

    Where nothing can be kept, each process compiles it anew. It runs without the interpreter's lock.
    """
    try:
        return cast(Function, njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no such place can be written to
        return cast(Function, njit(nogil=True)(function))


def load() -> None:
    """Have numba load now, for this process and its forks, what it loads otherwise when the first compiled function is called."""
    cpu_target.target_context.refresh()
    cpu_target.typing_context.refresh()
