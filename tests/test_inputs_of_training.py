# pyright: reportArgumentType=false
"""Bad and odd input to learners and planners: a clear error that names the argument, before
anything is computed; or something sound.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import jaxtyping
import numpy as np
import optax
import pytest

import dnarch_eqx as dn
from dnarch_eqx import runtime


@pytest.fixture(autouse=True)
def as_users_see_it():
    """Without type checks at run time, and with JAX's standard promotion."""
    jaxtyping.config.update("jaxtyping_disable", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Net(eqx.Module):
    a: eqx.nn.Linear
    b: eqx.nn.Linear

    def __init__(self, width=16):
        self.a = eqx.nn.Linear(4, width, key=jr.key(0))
        self.b = eqx.nn.Linear(width, 3, key=jr.key(1))

    def __call__(self, x):
        return self.b(jax.nn.relu(self.a(x)))


AXES = {
    ".a.weight": dn.Axes("h", None),
    ".a.bias": dn.Axes("h"),
    ".b.weight": dn.Axes(None, dn.gated("h")),
}
X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
BATCH = X, np.arange(8, dtype=np.int32) % 3


def loss(net, batch, key):
    return optax.softmax_cross_entropy_with_integer_labels(
        jax.vmap(net)(batch[0]), batch[1]
    ).mean()


def masks_of(capacity=16, name="h"):
    return {name: dn.Sigmoid(capacity, size=7.5)}


def budget_of(target=8.0):
    return dn.Budget(dn.parameter_cost(Net(), AXES), {"h": target})


def made(loss=loss, optim=None, budget=None, **kwargs):
    """A learner, and the state that it starts from."""
    optim = dn.adamw(1e-2, steps=100) if optim is None else optim
    learner = dn.Learner(loss, optim, AXES, budget_of() if budget is None else budget, **kwargs)
    return learner, learner.init(Net(), masks_of())


def planner_of(learner, masks=None, buckets=None, **kwargs):
    masks = masks_of() if masks is None else masks
    buckets = dn.buckets(masks, dn.ladders.multiples(2)) if buckets is None else buckets
    return dn.Planner(learner, masks, buckets, **{"background": False, **kwargs})


def stepped(batch=BATCH, key=None, state=None, **kwargs):
    learner, start = made(**kwargs)
    return planner_of(learner).step(start if state is None else state, batch, key=key)


def ran(steps=2, **kwargs):
    """A run, to its end."""
    learner, state = made(**kwargs)
    planner = planner_of(learner)
    for _ in range(steps):
        state, _ = planner.step(state, BATCH)
    return planner.finish(state)


def cast(dtype):
    return jtu.tree_map(lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, Net())


def learner_step(plan, **kwargs):
    learner, state = made(**kwargs)
    return learner.step(state, BATCH, plan)


def donated(again):
    learner, state = made(donate=True)
    learner.step(state, BATCH, {"h": 16})
    return again(learner, state)


def inside_jit(step):
    _, state = made()
    return eqx.filter_jit(lambda state: step(state))(state)


NAN = np.full_like(X, np.nan), BATCH[1]
CASES = {
    "plan, an axis without mask": (
        lambda: learner_step({"q": 8}),
        "bucket for 'q', which has no",
    ),
    "plan, too large": (
        lambda: learner_step({"h": 17}),
        "bucket 17 for axis 'h', whose capacity",
    ),
    "plan, zero": (lambda: learner_step({"h": 0}), "Axis 'h': a bucket is a positive integer"),
    "plan, text": (lambda: learner_step("h"), "`plan` must be a `dn.Plan` or a dictionary"),
    "plan, None": (lambda: learner_step(None), "`plan` must be a `dn.Plan` or a dictionary"),
    "plan, cropping": (lambda: learner_step({"h": 2}), r"'h' \(bucket 2, 8 active\)"),
    "batch, objects": (
        lambda: stepped((X.astype(object), BATCH[1])),
        r"`batch\[0\]` is an array of object",
    ),
    "batch, strings": (lambda: stepped((np.array(["a"] * 8), BATCH[1])), r"`batch\[0\]` is an"),
    "batch, a set": (
        lambda: stepped({"x": X, "meta": {1, 2}}),
        r"`batch\['meta'\]` is neither an array nor hashable",
    ),
    "key, an integer": (lambda: stepped(key=3), "`key` must be a key.*not 3"),
    "state, None": (
        lambda: planner_of(made()[0]).step(None, BATCH),
        "`state` must be a `dn.State`",
    ),
    "state, of another optimizer": (
        lambda: stepped(state=made(optim=optax.sgd(1e-2))[1]),
        "`state.opt_state` is not that of this learner's optimizer",
    ),
    "masks, a list": (
        lambda: made()[0].init(Net(), [dn.Sigmoid(16)]),
        "`masks` must be a dictionary",
    ),
    "masks, None": (lambda: made()[0].init(Net(), None), "`masks` must be a dictionary"),
    "masks, arrays": (
        lambda: made()[0].init(Net(), {"h": jnp.ones(16)}),
        "`masks` has ArrayImpl for axis 'h'",
    ),
    "masks, another capacity": (
        lambda: made()[0].init(Net(), masks_of(12)),
        "'h' has capacity 16 .*, but 12 by its mask",
    ),
    "planner, masks of another capacity": (
        lambda: (lambda learner, state: planner_of(learner, masks_of(12)).step(state, BATCH))(
            *made()
        ),
        r"`state` have the capacities \{'h': 16\}; those of the planner have \{'h': 12\}",
    ),
    "planner, masks of other names": (
        lambda: (
            lambda learner, state: planner_of(learner, masks_of(16, "k")).step(state, BATCH)
        )(*made()),
        r"those of the planner have \{'k': 16\}",
    ),
    "planner, a policy's class": (
        lambda: planner_of(made()[0], policy=runtime.BreakEven),
        "`policy` must be a policy",
    ),
    "planner, a ladder of floats": (
        lambda: planner_of(made()[0], buckets={"h": (8.5, 16)}),
        "buckets of axis 'h' must be",
    ),
    "planner, nothing in flight": (
        lambda: planner_of(made()[0], in_flight=0),
        "`in_flight` must be at least 1",
    ),
    "planner, headroom": (
        lambda: planner_of(made()[0], headroom=float("nan")),
        "`headroom` must be at least 0, got nan",
    ),
    "planner, a state of other axes": (
        lambda: planner_of(
            made()[0],
            state=runtime.PlannerState.start(
                runtime.BreakEven(), runtime.Grid(masks_of(), {})
            ).replace(plan=dn.Plan({"q": 3})),
        ),
        r"`state` is of a run with the axes \['q'\]",
    ),
    "weights, float16": (
        lambda: made()[0].init(cast("float16"), masks_of()),
        "`model.a.weight` is in float16",
    ),
    "weights, not finite": (
        lambda: made()[0].init(
            eqx.tree_at(lambda m: m.b.bias, Net(), jnp.full(3, jnp.nan)), masks_of()
        ),
        "`model.b.bias` is not finite",
    ),
    "optim, None": (
        lambda: dn.Learner(loss, None, AXES),
        "`optim` must be an Optax transformation",
    ),
    "optim, not called": (
        lambda: dn.Learner(loss, optax.adam, AXES),
        "`optim` must be an Optax transformation",
    ),
    "axes, None": (
        lambda: dn.Learner(loss, optax.sgd(1.0), None),
        "`axes` must be a dictionary",
    ),
    "budget, a number": (
        lambda: dn.Learner(loss, optax.sgd(1.0), AXES, 3.0),
        "`budget` must be",
    ),
    "budget, far below": (
        lambda: made(budget=dn.Budget(lambda sizes: sizes["h"], 1e-4)),
        "`target` is out of reach",
    ),
    "budget, far above": (
        lambda: made(budget=dn.Budget(lambda sizes: sizes["h"], 1e12)),
        "`target` is out of reach",
    ),
    "keep, zero": (lambda: made(keep=0), "`keep` must be at least 1, got 0"),
    "on_nonfinite, another word": (
        lambda: made(on_nonfinite="go on"),
        "`on_nonfinite` must be 'raise', 'skip' or 'ignore', got 'go on'",
    ),
    "loss, None": (lambda: stepped(loss=lambda n, b, k: None), "`loss` must return.*got None"),
    "loss, a float": (lambda: stepped(loss=lambda n, b, k: 1.0), "`loss` must return.*got 1.0"),
    "loss, a vector": (
        lambda: stepped(loss=lambda n, b, k: jax.vmap(n)(b[0]).sum(1)),
        r"got float32 of shape \(8,\)",
    ),
    "loss, an integer": (
        lambda: stepped(loss=lambda n, b, k: jnp.argmax(jax.vmap(n)(b[0]))),
        "got int32",
    ),
    "loss, a tuple": (
        lambda: stepped(loss=lambda n, b, k: (loss(n, b, k), 1)),
        "give `has_aux=True`",
    ),
    "loss, no tuple": (
        lambda: stepped(has_aux=True),
        r"returns \(value, metrics\); got float32",
    ),
    "loss, two arguments": (
        lambda: made(loss=lambda n, b: 0.0),
        r"`loss` must take three arguments, \(net, batch, key\)",
    ),
    "donated, used again": (
        lambda: donated(lambda learner, state: learner.step(state, BATCH, {"h": 16})),
        "were given up to an earlier step",
    ),
    "finish, an older state": (
        lambda: (lambda learner, state: _finish_old(planner_of(learner), state))(*made()),
        "is not the one that the last step returned",
    ),
    "finish, of nothing": (lambda: planner_of(made()[0]).finish(), "No step was made yet"),
    "report, of nothing": (lambda: planner_of(made()[0]).report(), "No step was looked at yet"),
}


def _finish_old(planner, state):
    older, _ = planner.step(state, BATCH)
    planner.step(older, BATCH)
    return planner.finish(older)


@pytest.mark.parametrize("case", CASES)
def test_refused(case):
    do, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        do()


@pytest.mark.parametrize("batch", [NAN, (np.where(X > 0.5, np.inf, X), BATCH[1])])
def test_what_is_not_finite_is_said(batch):
    learner, state = made()
    planner = planner_of(learner)
    state, _ = planner.step(state, BATCH)
    state, info = planner.step(state, batch)
    with pytest.raises(runtime.NotFiniteError, match="At step 1 this is not finite: the loss"):
        planner.finish(state)
    state = planner.finish(state)
    assert int(state.step) == 1 and not info.finite
    small = dn.freeze(state.model, AXES, state.masks)
    assert small.a.weight.shape == (8, 4) and bool(jnp.all(jnp.isfinite(small.a.weight)))


@pytest.mark.parametrize("step", ["learner", "planner"])
def test_inside_jit(step):
    learner, _ = made()
    planner = planner_of(learner)
    run = {
        "learner": lambda state: learner.step(state, BATCH, {"h": 16})[0],
        "planner": lambda state: planner.step(state, BATCH)[0],
    }[step]
    with pytest.raises(RuntimeError, match="is being traced: .*`dn.make_step`"):
        inside_jit(run)


def test_a_float_in_the_batch_compiles_once():
    learner, state = made(loss=lambda n, b, k: b[2] * loss(n, b, k))
    planner = planner_of(learner)
    losses = []
    for i in range(4):
        state, info = planner.step(state, (*BATCH, 1.0 + i))
        losses.append(info)
    planner.finish(state)
    assert len(learner.compilations) == 1
    assert float(losses[3].loss) > 2 * float(losses[0].loss), "it is no constant"


def test_two_planners_of_one_learner():
    learner, state = made()
    one, other = planner_of(learner), planner_of(learner)
    a = b = state
    for _ in range(4):
        a, _ = one.step(a, BATCH)
        b, _ = other.step(b, BATCH)
    a, b = one.finish(a), other.finish(b)
    assert eqx.tree_equal(a, b) and len(learner.compilations) == 1


def test_what_donates_leaves_the_users_arrays_alone():
    model, masks = Net(), masks_of()
    learner = dn.Learner(loss, dn.adamw(1e-2, steps=9), AXES, donate=True)
    learner.step(learner.init(model, masks), BATCH, {"h": 16})
    assert float(jnp.sum(model.a.weight)) == float(jnp.sum(Net().a.weight))
    assert float(dn.sizes(masks)["h"]) == 7.5
