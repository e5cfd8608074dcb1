import collections
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.monitoring as monitoring
import jax.tree_util as jtu
import numpy as np
from jaxtyping import PyTree


# `eqx.filter_jit` waits for every call, looks at every leaf twice, and keeps what it compiled
# for ever. Here are the few things of it that a training step needs: arrays are traced, all
# else is static, and compiled programs are owned.


_ARRAYS = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)


def is_traced(x: Any) -> bool:
    """Whether a leaf is traced: arrays, and their shapes; all else is static."""
    return isinstance(x, _ARRAYS)


class Signature:
    """All that a compiled function depends on but the arrays' values. Hashed once: it has
    hundreds of entries.
    """

    __slots__ = ("_hash", "_of")

    def __init__(self, *trees: PyTree):
        leaves, treedef = jtu.tree_flatten(trees)
        self._of = treedef, tuple(map(_leaf, leaves))
        self._hash = hash(self._of)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Signature) and self._hash == other._hash and self._of == other._of
        )


def _leaf(x: Any) -> Hashable:
    if not is_traced(x):
        return x
    sharding = getattr(x, "sharding", None)
    if sharding is not None and len(sharding.device_set) == 1:
        sharding = None  # so that shapes stand for arrays
    return x.shape, x.dtype, getattr(x, "weak_type", False), sharding


class Program:
    """A function of a PyTree for one signature: traced at once, called once it is compiled."""

    def __init__(self, fn: Callable[[PyTree], PyTree], args: PyTree, *, donate: bool = False):
        """**Arguments:**

        - `fn`: from a PyTree to a PyTree; traced at once.
        - `args`: the PyTree, or one of the same signature.
        - `donate`: whether the arrays of `args[0]` are given up for the results.
        """
        leaves, treedef = jtu.tree_flatten(args)
        first = jtu.tree_structure(args[0]).num_leaves if donate else 0
        self._traced = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
        donated = sum(i < first for i in self._traced)
        static = [None if is_traced(leaf) else leaf for leaf in leaves]
        self._out: Any = None

        def flat(donated, kept):
            filled = list(static)
            for i, x in zip(self._traced, (*donated, *kept)):
                filled[i] = x
            out, outdef = jtu.tree_flatten(fn(treedef.unflatten(filled)))
            arrays = [x for x in out if isinstance(x, jax.Array)]
            rest = [None if isinstance(x, jax.Array) else x for x in out]
            places = [i for i, x in enumerate(out) if isinstance(x, jax.Array)]
            self._out = outdef, rest, places
            return arrays

        self._donated = donated
        arrays = [leaves[i] for i in self._traced]
        jitted = jax.jit(flat, donate_argnums=0 if donate else ())
        start = time.perf_counter()
        self.lowered: jax.stages.Lowered = jitted.lower(arrays[:donated], arrays[donated:])
        self.tracing = time.perf_counter() - start
        self.compiling = 0.0
        self.cached = False
        self.compiled: Any = None
        self.known: Any = None

    def compile(self) -> "Program":
        """Compiles; on any thread."""
        start, hits = time.perf_counter(), _hits()
        self.compiled = self.lowered.compile()
        self.compiling = time.perf_counter() - start
        self.cached = _hits() > hits
        del self.lowered  # tens of megabytes of text
        return self

    def __call__(self, args: PyTree) -> PyTree:
        leaves = jtu.tree_leaves(args)
        arrays = [leaves[i] for i in self._traced]
        results = self.compiled(arrays[: self._donated], arrays[self._donated :])
        outdef, rest, places = self._out
        out = list(rest)
        for i, x in zip(places, results):
            out[i] = x
        return outdef.unflatten(out)


class Programs:
    """The compiled programs in use: a bounded store, from which the one not used for the
    longest time is dropped, with its memory, and one worker that compiles.
    """

    changes: int

    def __init__(self, keep: int):
        self.changes = 0
        self._keep = keep
        self._held: collections.OrderedDict[Hashable, Program] = collections.OrderedDict()
        self._worker: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held

    def get(self, key: Hashable) -> Program | None:
        if key in self._held:
            self._held.move_to_end(key)
        return self._held.get(key)

    def put(self, key: Hashable, program: Program) -> None:
        program.known = key
        self.changes += 1
        self._held[key] = program
        self._held.move_to_end(key)
        while len(self._held) > self._keep:
            self._held.popitem(last=False)

    def submit(self, program: Program) -> Future[Program]:
        """Compiles on the worker. The program is not yet in the store."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "dnarch_eqx-compile")
        return self._worker.submit(program.compile)


#
# What is known of all compilations of this process, through `jax.monitoring`.
#


_counters = threading.local()
_forbidden: contextvars.ContextVar[bool] = contextvars.ContextVar("forbidden", default=False)


def _hits() -> int:
    """How many compilations of this thread were found in JAX's persistent cache."""
    return getattr(_counters, "hits", 0)


def _on_event(event: str, **_: Any) -> None:
    if event == "/jax/compilation_cache/cache_hits":
        _counters.hits = _hits() + 1


def _on_duration(event: str, duration_secs: float, **_: Any) -> None:
    # After lowering, before XLA: whatever is about to be compiled comes by here.
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        check_allowed("a function")


monitoring.register_event_listener(_on_event)
monitoring.register_event_duration_secs_listener(_on_duration)


def check_allowed(what: str) -> None:
    """Raises where compilation is forbidden."""
    if _forbidden.get():
        raise RuntimeError(
            f"Compiling {what}, within `dnarch_eqx.forbid_compilation()`. Compile before: "
            "`learner.compile(state, batch, plan)`."
        )


@contextlib.contextmanager
def forbid_compilation() -> Iterator[None]:
    """A region in which nothing may be compiled, by JAX as a whole: for tests and for
    serving. What would be raises `RuntimeError` instead.

    It holds for this thread (and task): what a worker compiles meanwhile is its own.
    """
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
