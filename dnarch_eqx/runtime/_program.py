import time
from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import jax.tree_util as jtu
from jaxtyping import PyTree

from ._guards import cache_hits, check_allowed
from ._signature import is_traced, Signature


# `eqx.filter_jit` waits for every call, looks at every leaf twice, and keeps what it compiled
# for ever. Here are the few things of it that a training step needs: arrays are traced, all
# else is static, and compiled programs are owned.


class Program:
    """A function of PyTrees for one signature: traced at once, called once it is compiled."""

    # How many seconds each took, and whether JAX's persistent cache had it.
    tracing: float
    compiling: float
    cached: bool
    # The signature of the first result, once it was called: always the same.
    after: Signature | None

    def __init__(
        self,
        fn: Callable[..., PyTree],
        args: tuple[Any, ...],
        *,
        name: str,
        donate: bool = False,
    ):
        """**Arguments:**

        - `fn`: from PyTrees to a PyTree; traced at once.
        - `args`: its arguments, or some of the same signature.
        - `name`: what it is, for errors.
        - `donate`: whether the arrays of `args[0]` are given up for the results.
        """
        check_allowed(name)
        leaves, treedef = jtu.tree_flatten(args)
        first = jtu.tree_structure(args[0]).num_leaves if donate else 0
        self._traced = [i for i, leaf in enumerate(leaves) if is_traced(leaf)]
        self._donated = sum(i < first for i in self._traced)
        static = [None if is_traced(leaf) else leaf for leaf in leaves]
        self._out: Any = None

        def flat(donated, kept):
            filled = list(static)
            for i, x in zip(self._traced, (*donated, *kept)):
                filled[i] = x
            out, outdef = jtu.tree_flatten(fn(*treedef.unflatten(filled)))
            arrays = [x for x in out if isinstance(x, jax.Array)]
            rest = [None if isinstance(x, jax.Array) else x for x in out]
            places = [i for i, x in enumerate(out) if isinstance(x, jax.Array)]
            self._out = outdef, rest, places
            return arrays

        self._jitted = jax.jit(flat, donate_argnums=0 if donate else ())
        self.after = None
        self.compiling, self.cached, self.compiled = 0.0, False, None
        start = time.perf_counter()
        # Under `disable_jit` nothing is traced.
        self.lowered: Any = None if debugging() else self._jitted.lower(*self._split(leaves))
        self.tracing = time.perf_counter() - start

    def compile(self) -> "Program":
        """Compiles; on any thread."""
        if self.lowered is not None:
            start, hits = time.perf_counter(), cache_hits()
            self.compiled = self.lowered.compile()
            self.compiling = time.perf_counter() - start
            self.cached = cache_hits() > hits
            self.lowered = None  # tens of megabytes of text
        return self

    def __call__(self, *args: PyTree) -> PyTree:
        # `jax.jit` itself knows what its debugging flags ask for.
        run = self._jitted if self.compiled is None or debugging() else self.compiled
        results = run(*self._split(jtu.tree_leaves(args)))
        outdef, rest, places = self._out
        out = list(rest)
        for i, x in zip(places, results):
            out[i] = x
        return outdef.unflatten(out)

    def _split(self, leaves: list[Any]) -> tuple[list[Any], list[Any]]:
        arrays = [leaves[i] for i in self._traced]
        return arrays[: self._donated], arrays[self._donated :]


def debugging() -> bool:
    """Whether JAX runs operation by operation, to find a fault."""
    config: Any = jax.config
    return config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs


def placed(x: Any, sharding: Any) -> Any:
    """Spread over devices as it was before; on one there is nothing to say."""
    if sharding is None or len(sharding.device_set) == 1:
        return x
    return lax.with_sharding_constraint(x, sharding)
