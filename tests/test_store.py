"""Compiled steps: what each is for, which are kept, and what is said of them."""

import gc
import os
import subprocess
import sys
import threading
import weakref

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.experimental.compilation_cache.compilation_cache as compilation_cache
import jax.monitoring as monitoring
import jax.numpy as jnp
import jax.random as jr
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from helpers import close
from jax.core import Tracer

import dnarch_eqx as dn
from dnarch_eqx import runtime as rt
from dnarch_eqx.runtime._program import Program
from dnarch_eqx.runtime._signature import Key, Signature
from dnarch_eqx.runtime._store import Store


pytestmark = pytest.mark.usefixtures("standard", "quick")


class Net(eqx.Module):
    weight: jax.Array
    out: jax.Array

    def __call__(self, x):
        return self.out @ jnp.tanh(self.weight @ x)


def net_of() -> Net:
    return Net(jr.normal(jr.key(0), (16, 3)), jr.normal(jr.key(1), (2, 16)))


def squares(net, batch, key):
    del key
    return jnp.mean(jax.vmap(net)(batch) ** 2)


def learner_of(loss=squares, **kwargs):
    net = net_of()
    where = lambda m: (m.weight, m.out)
    axes = dn.declare(net, where, (dn.Axes("h", None), dn.Axes(None, dn.gated("h"))))
    learner = dn.Learner(loss, optax.sgd(1e-3), axes, strict=False, **kwargs)
    return learner, learner.init(net, {"h": dn.Sigmoid(16, size=6.0)})


def batch_of(n: int = 4):
    return jnp.linspace(-1.0, 1.0, 3 * n).reshape(n, 3)


def plan_of(h: int) -> dn.Plan:
    return dn.Plan({"h": h})


def plans_of(learner) -> list[int]:
    return [c.plan["h"] for c in learner.compilations]


#
# Which are kept.
#


PROGRAM = Program(lambda x: x, (np.zeros(2),), name="a test")


def key_of(x) -> Key:
    return Key(Signature("x", x))


@hp.settings(max_examples=50, deadline=None, derandomize=True)
@hp.given(
    keep=st.integers(1, 4),
    asked=st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), max_size=25),
)
def test_the_store_beside_a_list(keep, asked):
    """The one not used for the longest time is dropped, and no other."""
    store, held, compiled = Store(keep), [], []
    for n, name in asked:
        found = store.get(plan_of(n), key_of(name))
        assert (found is not None) == ((n, name) in held)
        if found is None:
            store.put(plan_of(n), key_of(name), PROGRAM, call=len(compiled))
            compiled.append(n)
        held = [*(other for other in held if other != (n, name)), (n, name)][-keep:]
        assert len(store) == len(held)
        for each in "ab":
            wanted = tuple(plan_of(n) for n, name in held if name == each)
            assert store.plans(key_of(each)) == wanted
        assert store.plans(key_of("c")) == ()
    assert [c.plan["h"] for c in store.compilations] == compiled
    assert [c.call for c in store.compilations] == [*range(len(compiled))]


def test_what_is_there_is_not_put_again():
    store = Store(2)
    store.put(plan_of(4), key_of("a"), PROGRAM, call=0)
    other = Program(lambda x: x, (np.zeros(2),), name="a test")
    store.put(plan_of(4), key_of("a"), other, call=1)
    assert store.get(plan_of(4), key_of("a")) is PROGRAM and len(store.compilations) == 1


def test_changes_are_those_from_the_plan_before():
    store = Store(1)
    for h, k in ((4, 8), (4, 6), (2, 6), (2, 6)):
        store.put(dn.Plan({"h": h, "k": k}), key_of(f"{len(store)}{h}"), PROGRAM, call=0)
        store.put(dn.Plan({"h": h, "k": k}), key_of("again"), PROGRAM, call=0)
    changes = [c.changes for c in store.compilations]
    assert changes[0] == {} and changes[2] == {"k": (8, 6)} and changes[4] == {"h": (4, 2)}
    # Something else has changed.
    assert not any(changes[1::2])


def test_programs_that_are_dropped_give_their_memory_back():
    learner, state = learner_of(keep=2)
    programs = []
    for h in (8, 10, 12):
        learner.step(state, batch_of(), plan_of(h))
        key = learner.key(learner.signature(state), (batch_of(), None, None))
        program = learner.store.get(plan_of(h), key)
        assert program is not None and program.compiled is not None
        programs.append(weakref.ref(program.compiled))
        assert len(learner.store) <= 2
        del program
    gc.collect()
    assert programs[0]() is None, "dropped, and its memory with it"
    assert programs[1]() is not None and programs[2]() is not None
    assert learner.store.plans(key) == (plan_of(10), plan_of(12))


def test_a_step_that_is_compiled_again_is_said_once():
    learner, state = learner_of(keep=2)
    for h in (8, 10, 8, 12, 8):
        learner.step(state, batch_of(), plan_of(h))
    # 12 has dropped 10, which then drops 12: returning to 8 was free.
    message = r"The step of Plan\(\{'h': 10\}\) was compiled before.*keep=4"
    with pytest.warns(UserWarning, match=message):
        learner.step(state, batch_of(), plan_of(10))
    learner.step(state, batch_of(), plan_of(12))  # warnings are errors
    assert plans_of(learner) == [8, 10, 12, 10, 12]


def test_keep_is_at_least_one():
    with pytest.raises(ValueError, match="`keep` must be at least 1, got 0"):
        learner_of(keep=0)


#
# What each is for.
#


def test_what_is_no_array_is_static_and_said_to_be_at_the_third_value():
    learner, state = learner_of(lambda net, batch, key: batch[1] * squares(net, batch[0], key))
    losses = []
    for label in (1, 2, 1, 2):
        _, info = learner.step(state, (batch_of(), label), plan_of(8))
        losses.append(float(info.loss))
    np.testing.assert_allclose(np.array(losses) / losses[0], [1, 2, 1, 2], rtol=1e-6)
    assert len(learner.compilations) == 2, "as many as there are values"
    message = "since something that is no array has changed from 2 to 3. Make it an array"
    with pytest.warns(UserWarning, match=message):
        learner.step(state, (batch_of(), 3), plan_of(8))
    learner.step(state, (batch_of(), 4), plan_of(8))  # said once


def test_two_values_of_a_switch_are_nothing_to_warn_of():
    """Say in training and in tests, each with a last batch that is smaller."""

    def loss(net, batch, key):
        return (2.0 if batch[1] else 1.0) * squares(net, batch[0], key)

    learner, state = learner_of(loss)
    batches = [(batch_of(n), value) for value in (True, False) for n in (3, 4)]
    ratios = []
    for batch in (*batches, *batches):
        ratios.append(float(learner.step(state, batch, plan_of(8))[1].loss))
    np.testing.assert_allclose(ratios[:2], 2 * np.array(ratios[2:4]), rtol=1e-6)
    assert ratios[:4] == ratios[4:] and len(learner.compilations) == 4


def test_one_and_true_are_not_the_same():
    def loss(net, batch, key):
        return (2.0 if batch[1] is True else 1.0) * squares(net, batch[0], key)

    learner, state = learner_of(loss)
    losses = [
        float(learner.step(state, (batch_of(), label), plan_of(8))[1].loss)
        for label in (1, True, 1, True)
    ]
    np.testing.assert_allclose(np.array(losses) / losses[0], [1, 2, 1, 2], rtol=1e-6)
    assert len(learner.compilations) == 2


def test_floats_are_traced():
    """As under `jax.jit`: a learning rate that anneals is no reason to compile."""

    def loss(net, batch, key):
        return jnp.abs(batch["scale"]) * squares(net, batch["x"], key)

    learner, state = learner_of(loss)
    scales = (1.0, 0.25, 2.0, np.float32(3.0), np.float32(0.5))
    losses = [
        float(learner.step(state, {"x": batch_of(), "scale": scale}, plan_of(8))[1].loss)
        for scale in scales
    ]
    np.testing.assert_allclose(np.array(losses) / losses[0], np.array(scales), rtol=1e-6)
    # Those of Python are weak.
    assert len(learner.compilations) <= 2
    seen = len(learner.compilations)
    for scale in (3.0 + 4.0j, 5.0j):
        _, info = learner.step(state, {"x": batch_of(), "scale": scale}, plan_of(8))
        np.testing.assert_allclose(float(info.loss) / losses[0], 5.0, rtol=1e-6)
    assert len(learner.compilations) == seen + 1


@hp.settings(max_examples=40, deadline=None, derandomize=True)
@hp.given(
    *2
    * [
        st.sampled_from(
            (
                *(0, 1, 2, True, False, None, "a", "b", (1, "a"), (True, "a"), [1], {"a": 1}),
                *(np.zeros(2, "f4"), np.ones(2, "f4"), np.zeros(3, "f4")),
                *(np.zeros((2, 1), "f4"), np.zeros(2, "i4"), jnp.zeros(2), jnp.ones(2)),
                *(jnp.float32(1), np.float32(1), jnp.asarray(1.0), jr.key(0), None),
            )
        )
    ]
)
def test_signatures_are_what_jit_traces_for(a, b):
    """Two arguments need one program just where `jax.jit` with what is no array as static
    needs one.
    """

    def split(x):
        leaves, treedef = jtu.tree_flatten(x)
        is_array = [isinstance(leaf, (np.ndarray, np.generic, jax.Array)) for leaf in leaves]
        arrays = [leaf for leaf, array in zip(leaves, is_array) if array]
        static = [(type(x), x) for x, array in zip(leaves, is_array) if not array]
        return arrays, (treedef, tuple(is_array), tuple(static))

    traces = []
    fn = jax.jit(lambda arrays, static: traces.append(1), static_argnums=1)
    for x in (a, b):
        fn(*split(x))
    same = Signature("x", a) == Signature("x", b)
    assert same == (len(traces) == 1)
    if same:
        assert hash(Signature("x", a)) == hash(Signature("x", b))


def test_settings_that_change_a_program_compile_anew():
    learner, state = learner_of()
    step = lambda: learner.step(state, batch_of(), plan_of(8))
    text = lambda: learner.lower(state, batch_of(), plan_of(8)).as_text()
    step()
    assert "HIGHEST" not in text()
    with jax.default_matmul_precision("highest"):
        step()
        assert "HIGHEST" in text() and len(learner.compilations) == 2
    step()
    with jax.default_matmul_precision("highest"):
        step()
    assert len(learner.compilations) == 2
    # `jax.jit` has a program for each as well.
    with jax.numpy_rank_promotion("allow"):
        step()
    assert len(learner.compilations) == 3


@pytest.mark.parametrize(
    "batch, message",
    (
        ({"x": {1, 2}}, r"`batch\['x'\]` is neither an array nor hashable"),
        ((1, bytearray()), r"`batch\[1\]` is neither an array nor hashable"),
        ((1, np.array(["a"])), r"`batch\[1\]` is an array of <U1"),
        (np.array([None]), "`batch` is an array of object"),
    ),
)
def test_what_cannot_be_an_argument_is_named(batch, message):
    learner, state = learner_of()
    with pytest.raises(ValueError, match=message):
        learner.step(state, batch, plan_of(8))
    assert not learner.compilations


def test_inside_jit_there_is_advice():
    learner, state = learner_of()
    arrays, static = eqx.partition(state, eqx.is_array)
    inside = jax.jit(
        lambda arrays: learner.step(eqx.combine(arrays, static), batch_of(), plan_of(8))[1].loss
    )
    with pytest.raises(RuntimeError, match=r"`state.model.weight` is being traced.*make_step"):
        inside(arrays)


#
# Devices.
#


DEVICES = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np, warnings
import jax.tree_util as jtu
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import test_store as t

warnings.simplefilter("error")
one, two = jax.devices()
learner, state = t.learner_of()
batch = np.asarray(t.batch_of())
put = lambda x, to: jtu.tree_map(lambda a: jax.device_put(a, to) if eqx.is_array(a) else a, x)
at = lambda state: state.model.weight.devices()
count = lambda: len(learner.compilations)

wanted, info = learner.step(state, batch, t.plan_of(8))
assert at(wanted) == {one} and count() == 1
# The same device, by the user's will.
new, _ = learner.step(put(state, one), batch, t.plan_of(8))
assert at(new) == {one} and count() == 1
moved = put(state, two)
for _ in range(2):  # there and back
    new, info = learner.step(moved, batch, t.plan_of(8))
    assert at(new) == info.loss.devices() == {two} and count() == 2
    np.testing.assert_allclose(new.model.weight, wanted.model.weight, rtol=1e-6)
    new, _ = learner.step(state, batch, t.plan_of(8))
    assert at(new) == {one} and count() == 2
# The state comes along with a batch.
new, _ = learner.step(state, put(batch, two), t.plan_of(8))
assert at(new) == {two} and count() == 2
# What nobody has put anywhere lies on the default device.
with jax.default_device(two):
    learner_, state_ = t.learner_of()
    new, _ = learner_.step(state_, batch, t.plan_of(8))
    assert at(new) == {two}
# Spread over both, and where it was afterwards.
mesh = Mesh(np.array([one, two]), ("batch",))
everywhere = put(state, NamedSharding(mesh, P()))
rows = jax.device_put(batch, NamedSharding(mesh, P("batch")))
for _ in range(2):
    before = everywhere
    everywhere, info = learner.step(everywhere, rows, t.plan_of(8))
    assert jtu.tree_all(jtu.tree_map(
        lambda a, b: not eqx.is_array(a) or a.sharding == b.sharding, everywhere, before
    ))
assert count() == 3
once, _ = learner.step(put(state, NamedSharding(mesh, P())), rows, t.plan_of(8))
np.testing.assert_allclose(once.model.weight, wanted.model.weight, rtol=1e-5)
explicit = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
try:
    rows = jax.device_put(batch, NamedSharding(explicit, P("batch")))
    learner.step(state, rows, t.plan_of(8))
except ValueError as error:
    assert "some of whose axes are explicit" in str(error), error
else:
    raise AssertionError("not refused")
print("DONE")
"""


def test_two_devices():
    here = os.path.dirname(__file__)
    path = os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")])
    env = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and "DONE" in done.stdout, done.stderr[-3000:]


#
# Debugging.
#


def test_without_jit_nothing_is_traced():
    traced = []

    def loss(net, batch, key):
        traced.append(isinstance(batch, Tracer))
        return squares(net, batch, key)

    learner, state = learner_of(loss, verify=False)
    wanted, _ = learner.step(state, batch_of(), plan_of(8))
    assert traced == [True]
    with jax.disable_jit():
        # Whether it was compiled before or not.
        for h in (8, 10):
            new, info = learner.step(state, batch_of(), plan_of(h))
            close(new.model, wanted.model)
            assert info.covered
    assert traced == [True, False, False]
    learner.step(state, batch_of(), plan_of(8))
    assert traced == [True, False, False]


@pytest.mark.parametrize(
    "setting, bad", ((jax.debug_nans, jnp.nan), (jax.debug_infs, jnp.inf)), ids=("nan", "inf")
)
def test_not_finite_under_the_flags_that_look_for_it(setting, bad):
    loss = lambda net, batch, key: squares(net, batch[0], key) * jnp.log(batch[1])
    learner, state = learner_of(loss, on_nonfinite="ignore")
    good, broken = (batch_of(), 2.0), (batch_of(), -1.0 if bad is jnp.nan else 0.0)
    learner.step(state, good, plan_of(8))
    assert not learner.step(state, broken, plan_of(8))[1].finite
    with setting(True):
        # As `jax.jit` has it.
        step = jax.jit(lambda x: jnp.log(x))
        with pytest.raises(FloatingPointError):
            step(jnp.float32(broken[1]))
        _, info = learner.step(state, good, plan_of(8))
        assert info.finite
        for h in (8, 10):
            with pytest.raises(FloatingPointError):
                learner.step(state, broken, plan_of(h))


#
# Donation.
#


def test_donated_states_are_gone_and_the_users_arrays_are_not():
    kept, state = learner_of()
    wanted, _ = kept.step(state, batch_of(), plan_of(8))
    assert not state.model.weight.is_deleted()
    donating, _ = learner_of(donate=True)
    model, masks = net_of(), {"h": dn.Sigmoid(16, size=6.0)}
    before = jax.device_get(model)
    state = donating.init(model, masks)
    new, _ = donating.step(state, batch_of(), plan_of(8))
    assert state.model.weight.is_deleted() and jtu.tree_leaves(state.masks)[0].is_deleted()
    assert not any(x.is_deleted() for x in jtu.tree_leaves((new, model, masks)))
    np.testing.assert_array_equal(model.weight, before.weight)
    np.testing.assert_array_equal(new.model.weight, wanted.model.weight)
    message = "arrays of `state` were given up to an earlier step.*donate=True"
    with pytest.raises(ValueError, match=message):
        donating.step(state, batch_of(), plan_of(8))
    # A second run from the same model is none the wiser.
    again, _ = donating.step(donating.init(model, masks), batch_of(), plan_of(8))
    np.testing.assert_array_equal(again.model.weight, wanted.model.weight)


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
    with rt.forbid_compilation():
        state, _ = learner.step(state, batch_of(), plan_of(8))
        # As an array of numpy, too.
        state, info = learner.step(state, np.asarray(batch_of()), plan_of(10))
    assert int(state.step) == 2 and info.covered
    assert plans_of(learner) == [8, 10]
    for c in learner.compilations:
        assert c.call == 0 and not c.cached and c.overlapped == 0
        assert c.seconds == c.tracing + c.compiling > c.tracing > 0


def test_ahead_of_time_with_a_key():
    learner, state = learner_of()
    key = jax.ShapeDtypeStruct((), jr.key(0).dtype)
    learner.compile(state, batch_of(), plan_of(8), key=key)
    learner.step(state, batch_of(), plan_of(8), key=jr.key(3))
    assert plans_of(learner) == [8]
    learner.step(state, batch_of(), plan_of(8))
    assert plans_of(learner) == [8, 8], "no key is another program"


def test_lower_says_what_a_step_takes():
    learner, state = learner_of()
    small, large = (learner.lower(state, batch_of(), plan_of(h)).compile() for h in (2, 16))
    operations = lambda compiled: compiled.cost_analysis()["flops"]
    assert operations(small) < operations(large)
    assert not learner.compilations and len(learner.store) == 0


#
# Where compilation is forbidden.
#


def test_where_compilation_is_forbidden():
    learner, state = learner_of()
    learner.step(state, batch_of(), plan_of(8))
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    with rt.forbid_compilation():
        double(jnp.ones(3))
        learner.step(state, batch_of(), plan_of(8))
        message = r"Compiling the step of Plan\(\{'h': 10\}\).*learner.compile"
        with pytest.raises(RuntimeError, match=message):
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
    assert plans_of(learner) == [8, 10]


def test_forbidden_regions_end_whatever_happens():
    double = jax.jit(lambda x: 2 * x)
    with pytest.raises(KeyError), rt.forbid_compilation():
        raise KeyError
    with rt.forbid_compilation():
        with rt.forbid_compilation():
            pass
        with pytest.raises(RuntimeError, match="forbid_compilation"):
            double(jnp.ones(6))
    assert double(jnp.ones(6)).shape == (6,)


#
# On disk.
#


@pytest.fixture
def cache(tmp_path):
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def tokens_of():
    """A network that reads tokens, in all its sizes learned."""
    base = dn.nn.Base(depth=1, width=4)
    net, masks = dn.nn.dnarch(
        base, "K", None, 3, (8,), vocabulary=5, embedding=4, hidden=8, key=jr.key(0)
    )

    def loss(net, batch, key):
        del key
        return jnp.mean(jax.vmap(net, axis_name="batch")(batch) ** 2)

    learner = dn.Learner(loss, optax.sgd(1e-3), dn.nn.axes(net), strict=False)
    return learner, learner.init(net, masks), jnp.arange(32).reshape(4, 8) % 5, dn.exact(masks)


def plain_of():
    return *learner_of(), batch_of(5), plan_of(9)


@pytest.mark.parametrize("start", (plain_of, tokens_of), ids=("plain", "tokens"))
def test_a_second_start_finds_its_steps_on_disk(start, cache):
    rt.persistent_cache(cache)
    cached, losses = [], []
    for _ in range(2):
        learner, state, batch, plan = start()
        _, info = learner.step(state, batch, plan)
        losses.append(float(info.loss))
        cached += [c.cached for c in learner.compilations]
        # Another process knows nothing of what this one has in memory.
        jax.clear_caches()
    assert cached == [False, True] and losses[0] == losses[1]
    assert any(cache.iterdir())


def test_what_is_quick_to_compile_is_not_written(cache):
    rt.persistent_cache(cache, at_least=1e6)
    learner, state = learner_of()
    learner.step(state, batch_of(), plan_of(8))
    assert not any(path.name.startswith("jit_") for path in cache.iterdir())


#
# What is told of them.
#


def test_compilations_are_monitored():
    events = []

    def listen(event, duration_secs, **kwargs):
        if event.startswith("/dnarch_eqx"):
            events.append((event, duration_secs, kwargs))

    monitoring.register_event_duration_secs_listener(listen)
    try:
        learner, state = learner_of()
        for h in (8, 10, 8):
            learner.step(state, batch_of(), plan_of(h))
        learner.network(state, plan_of(10))
    finally:
        monitoring.unregister_event_duration_listener(listen)
    assert [event for event, *_ in events] == 2 * ["/dnarch_eqx/compile_duration"]
    assert [kwargs["axes"] for *_, kwargs in events] == ["", "h"]
    assert events[1][2] == {"axes": "h", "overlapped": "0.000", "cached": "False"}
    assert [seconds for _, seconds, _ in events] == [c.seconds for c in learner.compilations]
    assert all(seconds > 0 for _, seconds, _ in events)


IMPORT = """
import jax.monitoring as monitoring

def register(name):
    before = getattr(monitoring, name)
    def noted(listener, *args):
        found.append(listener.__module__)
        return before(listener, *args)
    setattr(monitoring, name, noted)

found = []
for name in ("register_event_listener", "register_event_duration_secs_listener"):
    register(name)
import dnarch_eqx as dn
assert not any(name.startswith("dnarch_eqx") for name in found), found
with dn.runtime.forbid_compilation():
    pass
assert any(name.startswith("dnarch_eqx") for name in found), found
"""


def test_who_only_imports_is_not_listened_to():
    root = os.path.dirname(os.path.dirname(__file__))
    subprocess.run([sys.executable, "-c", IMPORT], check=True, cwd=root, timeout=120)
