import ctypes
import platform


# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Has the C library keep the memory that a step frees, instead of having it given back to
    the system and mapped anew, page by page, at the next. On CPUs that can take a third of a
    step's time. To be called once, before anything is computed: it holds for the whole process,
    which then keeps what it needed at most, and threads that were at work before go on as
    they did.

    Returns whether it could be set: on Linux with glibc. Elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # With one arena for all, the thread that starts steps waits for those that run them.
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 2}
    return all([mallopt(name, value) for name, value in settings.items()])
