"""The active counts of a run, as they are written down and as they are kept."""

import itertools as it

import hypothesis as hp
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import trace_of

from dnarch_eqx import runtime as rt
from dnarch_eqx.runtime._trace import Recording


few = hp.settings(max_examples=30, deadline=None, derandomize=True)

# Few different values, so that counts stay for a while.
tables = st.integers(0, 3).flatmap(
    lambda axes: st.lists(st.tuples(*[st.integers(0, 2)] * axes), min_size=1, max_size=12).map(
        lambda rows: np.array(rows, int).reshape(len(rows), axes)
    )
)


def names(axes: int) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.in" for i in range(axes))


#
# Traces.
#


@few
@hp.given(tables)
def test_every_step(active):
    trace = rt.Trace.of(names(active.shape[1]), active)
    assert trace.length == len(active)
    assert np.array_equal(trace.every_step(), active)
    assert trace.every_step().dtype == int
    # The changes and no more.
    assert trace.steps[0] == 0 and np.all(np.diff(trace.steps) > 0)
    assert np.all(np.any(trace.active[1:] != trace.active[:-1], axis=1))
    assert sum(trace.lengths()) == len(active)


def test_changes_by_hand():
    trace = rt.Trace.of(("a", "b"), np.array([[5, 1], [5, 1], [5, 2], [5, 2], [4, 2]]))
    assert trace.axes == ("a", "b") and trace.length == 5
    assert trace.steps.tolist() == [0, 2, 4]
    assert trace.active.tolist() == [[5, 1], [5, 2], [4, 2]]
    assert trace.lengths().tolist() == [2, 2, 1]


@few
@hp.given(active=tables)
def test_files(tmp_path_factory, active):
    path = tmp_path_factory.mktemp("traces") / "run.npz"
    trace = rt.Trace.of(names(active.shape[1]), active)
    trace.save(path)
    again = rt.Trace.load(path)
    assert again.axes == trace.axes and again.length == trace.length
    assert type(again.length) is int and all(type(axis) is str for axis in again.axes)
    for name in ("steps", "active"):
        a, b = getattr(again, name), getattr(trace, name)
        assert np.array_equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("name", ("run", "run.trace", "run.npz"))
def test_a_file_is_where_it_was_put(tmp_path, name):
    trace_of(3, 2).save(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert rt.Trace.load(tmp_path / name).every_step().tolist() == [[3], [2]]


def test_no_pickle_is_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("It was called.",)

    for name in ("axes", "steps", "active", "length"):
        good = {"axes": ["x"], "steps": [0], "active": [[1]], "length": 1}
        trap = np.array([Trap()], object)
        np.savez_compressed(tmp_path / "run.npz", **{**good, name: trap})
        with pytest.raises(ValueError, match="pickle"):
            rt.Trace.load(tmp_path / "run.npz")
    (tmp_path / "no.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(ValueError, match="pickle"):
        rt.Trace.load(tmp_path / "no.npz")


@pytest.mark.parametrize(
    "axes, shape, message",
    (
        (("b", "a"), (3, 2), r"`axes` must be in the order of their names, got \('b', 'a'\)"),
        (("a",), (3, 2), r"`active` must have a row a step and 1 columns.*\(3, 2\)"),
        (("a", "b"), (0, 2), r"`active` must have a row a step and 2 columns.*\(0, 2\)"),
    ),
)
def test_trace_errors(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        rt.Trace.of(axes, np.ones(shape, int))


#
# Recordings.
#


def recorded(rows) -> Recording:
    recording = Recording()
    for row in rows:
        recording = recording.record(row)
    return recording


@few
@hp.given(tables)
def test_a_recording_is_a_trace(active):
    """As long as there are not too many changes."""
    axes = names(active.shape[1])
    found, wanted = recorded(active).trace(axes), rt.Trace.of(axes, active)
    assert found.axes == axes and found.length == len(active)
    assert found.steps.tolist() == wanted.steps.tolist()
    assert found.active.tolist() == wanted.active.tolist()
    assert found.steps.dtype == found.active.dtype == int


@pytest.mark.parametrize("changes", (63, 64, 65, 127, 128, 1000))
def test_a_recording_of_many_changes_is_exact(changes):
    """Those of a block, of blocks, and one more or less."""
    rng = np.random.default_rng(changes)
    steps = np.arange(changes)[:, None]
    active = np.repeat(np.concatenate([steps, steps % 7], 1), rng.integers(1, 4, changes), 0)
    recording = recorded(active)
    assert recording.stride == 1
    trace = recording.trace(("a", "b"))
    assert trace.every_step().tolist() == active.tolist()
    assert len(trace.steps) == changes


def test_nothing_was_recorded():
    with pytest.raises(ValueError, match="No step was looked at yet"):
        Recording().trace(("a",))


def test_recordings_are_values():
    first = recorded(np.array([[5], [4]]))
    second, third = first.record(np.array([9])), first.record(np.array([3]))
    assert first.trace(("x",)).every_step().tolist() == [[5], [4]]
    assert second.trace(("x",)).every_step().tolist() == [[5], [4], [9]]
    assert third.trace(("x",)).every_step().tolist() == [[5], [4], [3]]


def noisy(changes: int, apart: int) -> np.ndarray:
    """Two axes that shrink, and go back and forth every few steps."""
    rng = np.random.default_rng(0)
    drift = np.linspace(60, 20, changes)[:, None]
    counts = (drift + rng.normal(size=(changes, 2)) * (3, 0.5)).round().astype(int)
    return np.repeat(counts, rng.integers(1, 2 * apart, changes), axis=0)


def spiky(changes: int, apart: int) -> np.ndarray:
    """One axis that has another count in a single step now and then."""
    counts = np.full((changes * apart, 1), 10)
    counts[::apart] = 50
    return counts


LONG = {
    "at every step": noisy(20_000, 1),
    "now and then": noisy(9_000, 3),
    "spikes": spiky(4_500, 6),
}


@pytest.mark.parametrize("kind", LONG)
def test_recordings_are_bounded_and_cover(kind):
    active = LONG[kind]
    recording, strides, most = Recording(), [1], 0
    for row in active:
        recording = recording.record(row)
        if recording.stride != strides[-1]:
            strides.append(recording.stride)
            most = max(most, len(recording.trace(names(active.shape[1])).steps))
    # It is doubled, again and again, whenever there would be more than about 8,192 changes.
    assert len(strides) > 1 and all(b == 2 * a for a, b in it.pairwise(strides))
    trace = recording.trace(names(active.shape[1]))
    assert max(most, len(trace.steps)) <= 8192 + 1024
    assert trace.length == len(active) and trace.steps[0] == 0
    assert np.all(np.diff(trace.steps) > 0) and trace.steps[-1] < len(active)
    # No count is below what it was.
    assert np.all(trace.every_step() >= active)


@pytest.mark.parametrize("kind", LONG)
def test_recordings_are_coarse_by_no_more_than_their_stride(kind):
    """No count is above the largest of the steps that it is taken together with: a spike is no
    plateau.
    """
    active = LONG[kind]
    recording = recorded(active)
    found, stride = recording.trace(names(active.shape[1])).every_step(), recording.stride
    largest = np.maximum.reduceat(active, np.arange(0, len(active), stride))
    beyond = found > np.repeat(largest, stride, axis=0)[: len(active)]
    assert not beyond.any(), (stride, beyond.mean(), found.mean(), active.mean())


def test_a_long_recording_costs_no_more_than_its_bound():
    """All but the last few changes are shared with the recording before."""
    recording = recorded(np.arange(1000)[:, None] % 17)
    again = recording.record(np.array([50]))
    shared = {id(block) for block in recording.blocks} & {id(block) for block in again.blocks}
    assert len(shared) == len(recording.blocks) > 10
    assert len(recording.tail) <= 64
