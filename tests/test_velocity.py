"""How fast axes move, over short spans of steps and long ones."""

import numpy as np
import pytest

from dnarch_eqx.runtime import Velocity


def after(positions) -> Velocity:
    velocity = Velocity.none(np.shape(positions)[1])
    for position in np.asarray(positions, float):
        velocity = velocity.update(position)
    return velocity


def test_nothing_was_seen():
    assert Velocity.none(2).rise(100.0, 1.0).tolist() == [0, 0]
    assert after([[3.0, 4.0]]).rise(100.0, 1.0).tolist() == [0, 0]


@pytest.mark.parametrize("deviations", (-1.0, 0.0, 1.0))
def test_steady(deviations):
    """What moves evenly goes on, what shrinks does not rise, and of both that is certain."""
    steps = np.arange(5000)[:, None]
    velocity = after(steps * np.array([0.25, -0.25, 0.0]))
    horizons = np.array([1.0, 10.0, 500.0, 1e5])
    rise = velocity.rise(horizons, deviations)
    np.testing.assert_allclose(rise[:, 0], 0.25 * horizons, rtol=1e-3)
    assert (rise[:, 1:] == 0).all()


def test_by_hand():
    velocity = Velocity.none(2)
    for position, ahead, peak in (
        ((3.0, 8.0), (0.0, 0.0), (0.0, 0.0)),  # nothing has moved yet
        ((7.0, 8.0), (8.0, 0.0), (4.0, 0.0)),
        ((7.0, 4.0), (4.0, 0.0), (4 * 15 / 16, 0.0)),
        ((7.0, 4.5), (8 / 3, 0.0), (4 * (15 / 16) ** 2, 0.5)),
        ((7.0, 9.0), (2.0, 0.5), (4 * (15 / 16) ** 3, 4.5)),
    ):
        velocity = velocity.update(np.array(position))
        assert velocity.rise(2.0) == pytest.approx(ahead)
        assert velocity.peak == pytest.approx(peak)


def test_short_runs():
    """Before there are as many steps as a horizon has, all of them count alike (but for the
    last few, which are taken together by 16).
    """
    walk = np.cumsum(np.random.default_rng(0).normal(size=(60, 20)), 0)
    for steps in (1, 5, 15, 16, 48, 59):
        last = steps if steps < 16 else steps // 16 * 16
        mean = (walk[last] - walk[0]) / last
        velocity = after(walk[: steps + 1])
        np.testing.assert_allclose(velocity.rise(300.0), np.maximum(300 * mean, 0), atol=1e-12)


def test_noise_is_no_movement():
    """Of positions about a fixed one no rise is foreseen, by however much they move a step,
    beyond what they were seen to move.
    """
    noise = np.random.default_rng(0).normal(size=(8_000, 200))
    rise = after(10 + noise).rise(1000.0, -1.0)
    assert (rise == 0).all()
    # Extrapolated from the last steps it would be hundreds of positions.
    fast = (noise[-1] - noise[-17]) / 16 * 1000
    assert np.max(fast) > 100


def test_spread_of_a_random_walk():
    """One standard deviation holds about as many walks as a Gaussian says: rises of a walk
    without drift over n steps are normal with variance n.
    """
    rng = np.random.default_rng(0)
    walks = np.cumsum(rng.normal(size=(6000, 400)), 0)
    horizon = 256
    velocity = after(walks[:-horizon])
    spread = velocity.rise(float(horizon), 1.0) - velocity.rise(float(horizon))
    # Of the moves that rise alone, so half of the variance.
    assert 0.5 < np.mean(spread) / np.sqrt(horizon / 2) < 1.5
    held = walks[-1] - walks[-1 - horizon] <= velocity.rise(float(horizon), 1.0)
    assert 0.7 < held.mean() < 0.95


def test_what_only_shrinks_is_given_no_room():
    steps = np.random.default_rng(0).exponential(size=(3000, 50))
    velocity = after(-np.cumsum(steps, 0))
    assert (velocity.rise(np.array([1.0, 100.0, 1e4]), 3.0) == 0).all()


def test_a_change_of_pace_is_seen_first_on_short_spans():
    positions = np.concatenate([np.zeros(4000), np.arange(100) * 0.1])[:, None]
    velocity = after(positions)
    near, far = velocity.rise(10.0)[0], velocity.rise(4000.0)[0]
    assert near == pytest.approx(1.0, rel=0.01)
    assert far == pytest.approx(4000 * 10 / 4096, rel=0.1)  # 10 positions in 4,096 steps


def test_rounding_is_no_movement():
    positions = np.float32(100) + np.float32(1e-6) * np.arange(5000, dtype=np.float32)
    assert after(positions[:, None].astype(float)).rise(1e4, 0.0).tolist() == [0]


def test_fraction_is_how_much_of_the_next_position_there_is():
    assert Velocity.none(2).fraction.tolist() == [0, 0]
    assert after([[3.25, 4.0]]).fraction.tolist() == [0.25, 0]
    # Where axes are now, not where they came from.
    assert after([[3.25, 4.0], [2.5, 4.75]]).fraction.tolist() == [0.5, 0.75]


def test_values():
    """An update makes another one, and leaves the old as it was."""
    first = after([[0.0], [1.0]])
    before = first.rise(10.0)
    first.update(np.array([5.0]))
    assert first.rise(10.0) == before == 10
    assert first.peak == 1 and first.update(np.array([5.0])).peak == 4
