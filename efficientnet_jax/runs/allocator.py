"""Host memory on Linux with glibc: keep what is freed, for the next step to use.

JAX's CPU backend allocates a step's temporaries anew each step, 1.7 GB for B0 at batch 16 and 224 px. glibc hands blocks of
that size back to the kernel and fetches them again, page by page and zeroed: about a third of the step's time.
main.py keeps it where JAX_PLATFORMS is 'cpu'. All threads then share one heap: on 2 cores tf.data decodes as fast as before within 3 %;
with many cores, as on an accelerator's host, that has not been measured.
"""

import ctypes
import sys

# glibc's malloc.h. Python wraps none of these.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_NEVER = -1


def keep_freed_memory() -> bool:
    """Makes this process keep freed memory for reuse instead of returning it; call it before the first computation.

    The process then stays at its largest size. Returns whether the C library took the settings: False, and nothing is
    changed, on other systems.
    """
    if not sys.platform.startswith('linux'):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    # All large blocks from one heap that never shrinks; other arenas have heaps of 64 MB and could not hold them.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    taken = [mallopt(option, value) for option, value in settings]
    return all(taken)
