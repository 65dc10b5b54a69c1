"""The C library's allocator, told to keep what XLA gives back."""

import ctypes

import jax

# From malloc.h of glibc.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets a step on CPUs use the memory of the step before. For the whole process; glibc only.

    XLA takes a step's temporary memory from `malloc` and frees it when the step ends. Blocks of
    more than 32 MiB glibc takes from the system each time and gives back at once: every step then
    touches each of their pages for the first time, and waits for the kernel to clear it.
    """
    if jax.default_backend() != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _NEVER)
