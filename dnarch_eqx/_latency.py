# What a call of a network takes on the device at hand, as a function of its sizes.

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._axes import AxisMap
from ._costs import Costs, costs as derived
from ._count import Count
from ._custom_types import Sizes
from ._freeze import freeze
from ._masks import Masks
from ._misc import as_float, at_least, positive
from ._plan import exact
from ._stateful import state_of, with_state


@dataclasses.dataclass(frozen=True)
class Latency:
    """Seconds of a call as a differentiable function of the sizes, a cost for
    [`dnarch_eqx.Budget`][]: see [`dnarch_eqx.latency`][].

    - `constant`: the seconds of a call that computes nothing.
    - `terms`: counts, with the seconds that one of each takes.
    - `error`: of networks that were measured and not fitted to, the mean of what it is off,
        relative to what they take. `worst`: the largest.
    - `device`: what was measured on.
    """

    constant: float
    terms: tuple[tuple[float, Count], ...]
    error: float
    worst: float
    device: str
    unit: str = "seconds"

    def __call__(self, sizes: Sizes) -> Float[Array, ""]:
        return sum(
            (seconds * count(sizes) for seconds, count in self.terms),
            start=as_float(self.constant),
        )

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        Path(path).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Latency":
        """Reads what [`dnarch_eqx.Latency.save`][] wrote.

        Raises `ValueError` for a file that is none.
        """
        try:
            fields = json.loads(Path(path).read_text())
            terms = tuple((float(s), _count(count)) for s, count in fields.pop("terms"))
            return cls(terms=terms, **fields)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is not the file of a latency: {error}") from error


def latency(
    model: PyTree,
    axes: AxisMap,
    masks: Masks,
    *inputs: PyTree,
    call: Callable[..., PyTree] | None = None,
    costs: Costs | None = None,
    plans: int = 12,
    held_out: int = 4,
    repeats: int = 15,
    seed: int = 0,
) -> Latency:
    """Measures networks of random sizes on the device at hand, and fits what they take: a
    constant, and so much for an operation, for a byte that is moved, and for a call of what is
    not fused. Each is compiled, and they take turns.

    **Arguments:**

    - `model`, `axes`, `masks`: as for [`dnarch_eqx.materialize`][]. Of masks only what sizes
        they admit counts.
    - `inputs`: arrays.
    - `call`: `call(net, *inputs)`, by default `net(*inputs)`; to measure a training step, one
        that computes gradients.
    - `costs`: of the forward pass, from [`dnarch_eqx.costs`][]. By default those of `call`.
    - `plans`: how many are fitted to. `held_out`: how many more tell the error.
    - `repeats`: how often each is timed: the quicker half counts.
    - `seed`: of the sizes.
    """
    from scipy.optimize import nnls  # takes longer to import than this library

    at_least("plans", positive("plans", plans), 5)
    held_out, repeats = positive("held_out", held_out), positive("repeats", repeats)
    call = call or (lambda net, *inputs: net(*inputs))
    counted = derived(model, axes, masks, *inputs, call=call) if costs is None else costs
    features = (counted.operations, counted.traffic, counted.calls)
    rng = np.random.default_rng(seed)
    some = [_random(masks, rng) for _ in range(plans + held_out)]
    seconds = _measured(model, axes, some, inputs, call, repeats)
    sizes = [dict(exact(m)) for m in some]
    x = np.array([[1.0, *(float(f(s)) for f in features)] for s in sizes])
    # Relative errors count: small networks as much as large ones.
    scale = x.max(axis=0)
    rows = x / scale / seconds[:, None]
    found = nnls(rows[:plans], np.ones(plans))[0] / scale
    off = np.abs(x[plans:] @ found / seconds[plans:] - 1)
    return Latency(
        float(found[0]),
        tuple(zip(map(float, found[1:]), features)),
        float(off.mean()),
        float(off.max()),
        str(jax.devices()[0].device_kind),
    )


def _random(masks: Masks, rng: np.random.Generator) -> Masks:
    """All sizes by one factor, and each by one of its own."""
    common = rng.uniform(0.15, 1.0)
    share = lambda: min(common * np.exp(rng.normal(0, 0.3)), 1.0)
    return {axis: mask.resized(share() * mask.capacity) for axis, mask in masks.items()}


def _measured(
    model: PyTree,
    axes: AxisMap,
    some: list[Masks],
    inputs: tuple[PyTree, ...],
    call: Callable[..., PyTree],
    repeats: int,
) -> Float[np.ndarray, " networks"]:
    state, runs = state_of(inputs), []
    for masks in some:
        net, given = freeze(model, axes, masks, model_state=state), inputs
        if state is not None:
            net, small = net
            given = with_state(inputs, small)
        arrays, static = eqx.partition((net, given), eqx.is_array)

        def run(arrays: PyTree, static: Any = static) -> PyTree:
            net, given = eqx.combine(arrays, static)
            return eqx.filter(call(net, *given), eqx.is_array)

        runs.append((jax.jit(run).lower(arrays).compile(), arrays))
    seconds: list[list[float]] = [[] for _ in some]
    for i in range(repeats + 1):
        for (run, arrays), times in zip(runs, seconds):
            start = time.perf_counter()
            jax.block_until_ready(run(arrays))
            if i > 0:  # the first is a warm-up
                times.append(time.perf_counter() - start)
    # What disturbs a machine makes calls slower, never quicker.
    return np.array([np.quantile(times, 0.25) for times in seconds])


def _count(fields: Mapping[str, Any]) -> Count:
    terms = tuple(
        (float(n), tuple((str(a), None if i is None else int(i)) for a, i in factors))
        for n, factors in fields["terms"]
    )
    return Count(
        str(fields["unit"]), terms, tuple((str(a), int(n)) for a, n in fields["capacities"])
    )
