# What is known of all compilations of this process, through `jax.monitoring`; and where none
# may happen.

import contextlib
import contextvars
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.monitoring as monitoring


_counters = threading.local()
_forbidden: contextvars.ContextVar[bool] = contextvars.ContextVar("forbidden", default=False)


def cache_hits() -> int:
    """How many compilations of this thread were found in JAX's persistent cache."""
    return getattr(_counters, "hits", 0)


def check_allowed(what: str) -> None:
    """Raises `RuntimeError` where compilation is forbidden."""
    if _forbidden.get():
        raise RuntimeError(
            f"Compiling {what}, within `dnarch_eqx.runtime.forbid_compilation()`. Compile "
            "before: `learner.compile(state, batch, plan)`."
        )


@contextlib.contextmanager
def forbid_compilation() -> Iterator[None]:
    """A region in which nothing may be compiled, by JAX as a whole: for tests and for
    serving. What would be raises `RuntimeError` instead.

    It holds for this thread (and task): what a worker compiles meanwhile is its own.
    """
    listen()
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def persistent_cache(folder: str | Path, *, at_least: float = 0.0) -> None:
    """Turns on JAX's persistent compilation cache, so that a plan that this or another run
    has compiled is read from disk. What tracing takes is not saved.

    **Arguments:**

    - `folder`: where; `~` is the home. Only what this process may trust: JAX executes what
        it finds there.
    - `at_least`: seconds that a compilation has to take to be written.
    """
    jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", at_least)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def listen() -> None:
    """Listens to JAX from now on; once is enough. Not at import: who only imports this library
    is not listened to.
    """
    if not _listening:
        _listening.append(True)
        monitoring.register_event_listener(_on_event)
        monitoring.register_event_duration_secs_listener(_on_duration)


_listening: list[bool] = []


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _counters.hits = cache_hits() + 1


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    # After lowering, before XLA: whatever is about to be compiled comes by here.
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        check_allowed("a function")
