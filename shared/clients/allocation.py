"""How the process asks for memory: so that what was freed is given back.

Batches, row groups and blocks are large, live shortly, and are freed by other threads than took them. Left to
themselves the allocators keep what was freed: Arrow's own (mimalloc) a heap for each thread, glibc an arena for each
thread, whose end may stay as large as 64 MiB, since it raises both limits below whenever a large block is freed.
``docs/performance.md`` has what that came to. Source of the parameters: mallopt(3), Arrow's "Environment Variables".
"""

import ctypes
import functools
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MIB = 1024 * 1024


def share_memory_among_threads() -> None:
    """For the whole process, before it has threads and has imported Arrow; what the environment says holds."""
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if "MALLOC_ARENA_MAX" not in os.environ:
        _mallopt(_M_ARENA_MAX, 2)


@functools.cache
def give_back_what_is_freed() -> None:
    """For the whole process, once rows of tables are on their way in it.

    With lower limits the kernel clears pages for every batch, which took a quarter more CPU of rows with LOBs; with
    higher ones a hundred megabytes more stay.
    """
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        _mallopt(_M_MMAP_THRESHOLD, 4 * _MIB)
        _mallopt(_M_TRIM_THRESHOLD, 8 * _MIB)


def _mallopt(parameter: int, value: int) -> None:
    """Without effect where the C library is not glibc."""
    try:
        ctypes.CDLL("libc.so.6").mallopt(parameter, value)
    except (OSError, AttributeError):
        return
