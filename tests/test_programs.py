import gc
import threading
import weakref

import equinox as eqx
import jax
import jax.monitoring as monitoring
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest

import dnarch_eqx as dn


@pytest.fixture(autouse=True)
def standard():
    """Optax relies on JAX's standard promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


class Net(eqx.Module):
    weight: jax.Array
    out: jax.Array

    def __call__(self, x):
        return self.out @ jnp.tanh(self.weight @ x)


def learner_of(**kwargs):
    net = Net(jr.normal(jr.key(0), (16, 3)), jr.normal(jr.key(1), (2, 16)))
    where = lambda m: (m.weight, m.out)
    axes = dn.declare(net, where, (dn.Axes("h", None), dn.Axes(None, dn.gated("h"))))
    learner = dn.Learner(_loss, optax.sgd(1e-3), axes, strict=False, **kwargs)
    return learner, learner.init(net, {"h": dn.Sigmoid(16, size=6.0)})


def _loss(net, batch, key):
    del key
    return jnp.mean(jax.vmap(net)(batch) ** 2)


def batch_of(n: int = 4):
    return jnp.linspace(-1.0, 1.0, 3 * n).reshape(n, 3)


def plan_of(h: int) -> dn.Plan:
    return dn.Plan({"h": h})


#
# The store.
#


def test_the_store_is_bounded_and_lets_go():
    learner, state = learner_of(keep=2)
    programs = []
    for h in (8, 10, 12):
        learner.step(state, batch_of(), plan_of(h))
        *_, program = learner._programs._held.values()
        programs.append(weakref.ref(program.compiled))
        assert len(learner._programs) <= 2
        del program
    gc.collect()
    assert programs[0]() is None, "dropped, and its memory with it"
    assert programs[1]() is not None and programs[2]() is not None


def test_the_one_not_used_for_the_longest_time_is_dropped():
    learner, state = learner_of(keep=2)
    order = (8, 10, 8, 12, 8, 10, 12)
    for h in order:
        learner.step(state, batch_of(), plan_of(h))
    # 12 drops 10, which then drops 12: returning to 8 is free.
    assert [c.plan["h"] for c in learner.compilations] == [8, 10, 12, 10, 12]
    with pytest.raises(ValueError, match="`keep` must be at least 1, got 0"):
        learner_of(keep=0)


def test_donated_states_are_gone():
    kept, state = learner_of()
    kept.step(state, batch_of(), plan_of(8))
    wanted, _ = kept.step(state, batch_of(), plan_of(8))
    donating, state = learner_of(donate=True)
    new, _ = donating.step(state, batch_of(), plan_of(8))
    assert state.model.weight.is_deleted() and not new.model.weight.is_deleted()
    np.testing.assert_array_equal(new.model.weight, wanted.model.weight)


#
# Ahead of time.
#


def test_ahead_of_time_from_shapes():
    learner, state = learner_of()
    shapes = jtu.tree_map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if eqx.is_array(x) else x, state
    )
    batch = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    learner.compile(shapes, batch, plan_of(8))
    learner.compile(state, batch_of(), plan_of(8))
    learner.compile(state, batch_of(), {"h": 10})
    with dn.forbid_compilation():
        state, _ = learner.step(state, batch_of(), plan_of(8))
        # As an array of numpy, too.
        state, aux = learner.step(state, np.asarray(batch_of()), plan_of(10))
    assert int(state.step) == 2 and aux.covered
    assert [c.plan["h"] for c in learner.compilations] == [8, 10]
    assert all(c.call == 0 and not c.cached and c.hidden == 0 for c in learner.compilations)


def test_where_compilation_is_forbidden():
    learner, state = learner_of()
    learner.step(state, batch_of(), plan_of(8))
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    with dn.forbid_compilation():
        double(jnp.ones(3))
        learner.step(state, batch_of(), plan_of(8))
        with pytest.raises(RuntimeError, match=r"the step of Plan\(h=10\).*learner.compile"):
            learner.step(state, batch_of(), plan_of(10))
        with pytest.raises(RuntimeError, match="forbid_compilation"):
            double(jnp.ones(4))
        # What another thread compiles is its own.
        found = []
        thread = threading.Thread(target=lambda: found.append(double(jnp.ones(5))))
        thread.start()
        thread.join()
        assert found[0].shape == (5,)
    assert double(jnp.ones(4)).shape == (4,)
    learner.step(state, batch_of(), plan_of(10))
    assert len(learner.compilations) == 2


def test_the_persistent_cache(tmp_path):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    try:
        dn.persistent_cache(str(tmp_path))
        found = []
        for _ in range(2):
            learner, state = learner_of()
            learner.step(state, batch_of(5), plan_of(9))
            found += [c.cached for c in learner.compilations]
        assert found == [False, True]
        assert any(tmp_path.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_compilations_are_monitored():
    seen = []

    def listen(event, duration_secs, **kwargs):
        if event.startswith("/dnarch_eqx"):
            seen.append((event, duration_secs, kwargs))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        learner, state = learner_of()
        for h in (8, 10, 8):
            learner.step(state, batch_of(), plan_of(h))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    first, second = seen
    assert first[0] == "/dnarch_eqx/compile_duration" and first[2]["axes"] == ""
    assert second[2] == {"axes": "h", "hidden": "0.000", "cached": "False"}
    assert second[1] == learner.compilations[1].seconds > 0
