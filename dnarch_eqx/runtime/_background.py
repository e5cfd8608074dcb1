import atexit
import ctypes
import platform
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


_threads: list[threading.Thread] = []


def in_background(compile: Callable[[], Any]) -> Future[Any]:
    """Compiles on a thread of its own, which nobody has to wait for when the process ends."""
    future: Future[Any] = Future()

    def run():
        try:
            future.set_result(compile())
        except BaseException as error:
            future.set_exception(error)

    if not _threads:
        atexit.register(_leave)
    _threads[:] = [thread for thread in _threads if thread.is_alive()]
    thread = threading.Thread(target=run, name="dnarch_eqx-compile", daemon=True)
    _threads.append(thread)
    thread.start()
    return future


def _leave() -> None:
    """XLA cannot be told to stop, and a thread that comes back from it while Python is shutting
    down ends the process by `abort`: Python unwinds the thread through C++ that forbids it. So
    such a thread is put to sleep, as Python 3.14 does, and when all else is done the process
    ends, with its exit status, and without the destructors that would wait for the thread.
    """
    if not any(thread.is_alive() for thread in _threads):
        return
    try:
        if platform.libc_ver()[0] != "glibc":
            raise OSError
        libc, cpp = ctypes.CDLL(None), ctypes.CDLL("libstdc++.so.6")
        cpp["_ZSt13set_terminatePFvvE"](libc.pause)
        libc.on_exit(libc._exit, None)
    except (OSError, AttributeError):
        for thread in _threads:
            thread.join()
