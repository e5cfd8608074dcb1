# The networks that are measured: materialized ones, and ones of the same sizes written by hand.

import dataclasses
import functools as ft
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import optax
from jaxtyping import Array, Float, Int

import dnarch_eqx as dn
from benchmarks import _hand_written
from dnarch_eqx import nn


CLASSES, OMEGA = 10, 10_000.0
# Plans as tight as they can be, for the sizes below.
_RULES = {
    "*.kernel*": dn.ladders.odd(ratio=1),
    "*.resolution*": dn.ladders.smooth(ratio=1),
    "depth": dn.ladders.every(),
    "*": dn.ladders.multiples(4),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A CCNN that is trained: `depth` blocks of `width` channels, all of KRWD learned, and the
    width of the stream with them. The capacities are twice as large unless given.

    `resolutions` and `kernels` are sizes for the blocks in turn, the same on every spatial
    axis; where there are none, they are the input's, and global.
    """

    depth: int
    width: int
    shape: tuple[int, ...]
    batch: int
    resolutions: tuple[int, ...] = ()
    kernels: tuple[int, ...] = ()
    capacity: nn.Base | None = None


# Three sizes in one dimension and three in two. Where one has many kernels and resolutions,
# they are below the largest. (The batch makes all steps long enough to be timed.)
CASES = {
    "1d-140": Case(4, 140, (1024,), 16),
    "1d-64": Case(2, 64, (512,), 32),
    "1d-96": Case(6, 96, (256,), 32, (256, 192, 128, 128, 96, 64), (31, 63, 129, 15, 63, 257)),
    "2d-64": Case(4, 64, (32, 32), 16),
    "2d-48": Case(3, 48, (28, 28), 16),
    "2d-96": Case(4, 96, (32, 32), 16, (32, 24, 16, 16), (7, 11, 15, 33)),
}


@dataclasses.dataclass(frozen=True)
class Step:
    """Training steps: what runs the next, what lowers it, and what has it compiled, by default
    from there (for `jax.jit` that is what it runs).
    """

    run: Callable[[], Any]
    lower: Callable[[], jax.stages.Lowered]
    compiled: Callable[[], Any] | None = None

    @ft.cached_property
    def program(self) -> Any:
        return self.lower().compile() if self.compiled is None else self.compiled()

    @property
    def temporary(self) -> float:
        """Bytes of temporary memory."""
        return self.program.memory_analysis().temp_size_in_bytes

    def counted(self, what: str) -> float:
        """By XLA: `"flops"` or `"bytes accessed"`."""
        return self.program.cost_analysis()[what]


class Learned:
    """The network of a case at its capacities, with masks of the case's sizes."""

    def __init__(self, case: Case):
        base = nn.Base(case.depth, case.width)
        if case.capacity is not None:
            base = nn.Base(case.capacity.depth // 2, case.capacity.width // 2)
        model, masks = nn.dnarch(
            base,
            "KRWD",
            1,
            CLASSES,
            case.shape,
            omega_0=OMEGA,
            stream=True,
            key=jr.key(0),
        )
        if case.capacity is not None:
            masks |= nn.width_masks(model, case.width, stream=True)
            masks |= nn.depth_masks(model, case.depth, temperature=25.0)
        for i, block in enumerate(model.blocks):
            for gate in block.conv.resolution if case.resolutions else ():
                size = case.resolutions[i % len(case.resolutions)]
                masks[gate.axis] = dn.Sigmoid(gate.size, size=size)
            for gate in block.conv.kernel if case.kernels else ():
                size = case.kernels[i % len(case.kernels)]
                masks[gate.axis] = dn.Gaussian(gate.size, size=size)
        self.plan = dn.plan(masks, dn.buckets(masks, _RULES))
        self._batch = batch(case)
        budget = dn.Budget(nn.complexity(model), nn.base_sizes(model, base))
        optim = dn.adamw(1e-3, steps=1000, warmup=10, weight_decay=0.01)
        self._axes = nn.axes(model)
        self._learner = dn.Learner(_loss, optim, self._axes, budget, strict=False)
        self._state = self._learner.init(model, masks)

    def step(self, plan: dn.Plan | None = None) -> Step:
        """The training step under a plan, by default the smallest that covers the masks."""
        plan = self.plan if plan is None else plan
        state = self._state

        def run() -> dn.State:
            nonlocal state
            state, _ = self._learner.step(state, self._batch, plan)
            return state

        return Step(
            run,
            lambda: self._learner.lower(self._state, self._batch, plan),
            lambda: self._compiled(plan),
        )

    def _compiled(self, plan: dn.Plan) -> Any:
        """What the learner runs: not compiled once more if it is there."""
        learner, rest = self._learner, (self._batch, None, self._learner.budget)
        key = learner.key(learner.signature(self._state), rest)
        return learner.compiled(self._state, rest, plan, key).compiled

    def constant_masks(self) -> Step:
        """The training step of the weights alone, under the plan, whose masks are constants of
        the program.
        """
        optim, masks = _optim(), self._state.masks
        weights, rest = eqx.partition(self._state.model, eqx.is_inexact_array)

        @jax.jit
        def step(weights, opt_state, batch):
            def loss(weights):
                model = eqx.combine(weights, rest)
                net = dn.materialize(model, self._axes, masks, self.plan, check_coverage=False)
                return _loss(net, batch, None)

            grads = jax.grad(loss)(weights)
            updates, opt_state = optim.update(grads, opt_state, weights)
            return eqx.apply_updates(weights, updates), opt_state

        start = weights, optim.init(weights)
        state = start

        def run() -> Any:
            nonlocal state
            state = step(*state, self._batch)
            return state

        return Step(run, lambda: step.lower(*start, self._batch))


def by_hand(case: Case, plan: dn.Plan, *, roomy: bool = True) -> Step:
    """The training step of a network of the sizes of a plan, written by hand. If `roomy`, with
    the periods that masks of any size need, as the materialized one.
    """
    depth, width = plan["depth"], plan["stream"]
    extents = lambda i, what: tuple(plan[axis] for axis in plan if f"blocks.{i}.{what}" in axis)
    kernels = [extents(i, "kernel") for i in range(depth)]
    resolutions = [extents(i, "resolution") for i in range(depth)]
    params = _hand_written.init(
        jr.key(0), shape=case.shape, channels=1, classes=CLASSES, depth=depth, width=width
    )
    return _step_by_hand(case, params, kernels, resolutions, roomy)


def masked_by_hand(case: Case) -> Step:
    """The training step of the paper's own way in JAX, for a case in one dimension with
    global kernels at the full resolution.
    """
    params = _hand_written.masked_init(
        jr.key(0),
        shape=case.shape,
        channels=1,
        classes=CLASSES,
        depth=case.depth,
        width=case.width,
    )
    (length,) = case.shape
    blocks = 2 * case.depth
    return _step_by_hand(case, params, [(length + 1,)] * blocks, [(length,)] * blocks)


def batch(case: Case) -> tuple[Float[Array, "batch 1 *space"], Int[Array, " batch"]]:
    key = jr.key(0)
    x = jr.normal(key, (case.batch, 1, *case.shape))
    return x, jr.randint(key, (case.batch,), 0, CLASSES)


def _loss(net, batch, key):
    del key
    x, y = batch
    logits = jax.vmap(net, axis_name="batch")(x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def _optim() -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, decay_steps=1000)
    return optax.adamw(schedule, weight_decay=0.01)


def _step_by_hand(
    case: Case, params: Any, kernels: list, resolutions: list, roomy: bool = True
) -> Step:
    optim = _optim()
    forward = ft.partial(
        _hand_written.forward,
        omega_0=OMEGA,
        kernels=kernels,
        resolutions=resolutions,
        roomy=roomy,
    )

    @jax.jit
    def step(params, opt_state, batch):
        def loss(params):
            x, y = batch
            logits = forward(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optim.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    start = params, optim.init(params)
    state, examples = start, batch(case)

    def run() -> Any:
        nonlocal state
        *state, _ = step(*state, examples)
        return state

    return Step(run, lambda: step.lower(*start, examples))
