import dataclasses
import itertools as it
import math
from typing import Any

import equinox as eqx
import hypothesis as hp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
import scipy.optimize as so
from helpers import moved

import dnarch_eqx as dn


few = hp.settings(max_examples=40, deadline=None, derandomize=True)

# Few different capacities: each is a compilation.
_INIT = {
    "width": lambda: dn.Sigmoid(280, size=140.0),
    "resolution": lambda: dn.Sigmoid(280, temperature=50.0),
    "depth": lambda: dn.Sigmoid(8, size=4.0, temperature=8.0),
    "half": lambda: dn.Sigmoid(33, size=20.0, threshold=0.5),
    "small": lambda: dn.Gaussian(129, sigma=0.0325),
    "global": lambda: dn.Gaussian(129),
    "kernel": lambda: dn.Gaussian(33, size=11.0, threshold=0.3),
}


def learned(mask):
    return "offset" if isinstance(mask, dn.Sigmoid) else "sigma"


def printed(mask, x, parameters=None):
    """Eq. 3 and 4 before the threshold, as printed, in numpy's float64."""
    if isinstance(mask, dn.Sigmoid):
        mu, tau = parameters or (float(mask.offset), float(mask.temperature))
        with np.errstate(over="ignore"):
            return 1 - 1 / (1 + np.exp(-tau * (x - mu)))
    sigma, mu = parameters or (float(mask.sigma), float(mask.mean))
    return np.exp(-((x - mu) ** 2) / (2 * sigma**2))


def positions(mask):
    """In float64: of a sigmoid where their sizes begin, but for a thousandth of a position; of
    a Gaussian evenly on [-1, 1].
    """
    n = mask.capacity
    if isinstance(mask, dn.Sigmoid):
        return np.array([-1] + [-1 + 2 * (i + 1e-3) / n for i in range(1, n)])
    return np.array([-1 + 2 * i / (n - 1) for i in range(n)])


def values(mask):
    smooth = printed(mask, positions(mask))
    return np.where(smooth >= mask.threshold, smooth, 0)


def root(mask):
    """Where the printed mask meets the threshold, to the right of its middle."""
    middle = 0.0 if isinstance(mask, dn.Sigmoid) else float(mask.mean)
    f = lambda x: float(printed(mask, x)) - mask.threshold
    left = -10.0 if isinstance(mask, dn.Sigmoid) else middle
    return float(so.brentq(f, left, 10.0, xtol=1e-13))  # pyright: ignore


def length(mask):
    """The size, not clipped, by the root: an axis of length 2 is the capacity, and what lies
    between the outermost positions is one less.
    """
    if isinstance(mask, dn.Sigmoid):
        return (root(mask) + 1) * mask.capacity / 2
    return (root(mask) - float(mask.mean)) * (mask.capacity - 1)


def shares(mask, share):
    """The mask at this share of its admissible range."""
    low, high = (moved(mask, learned(mask), to).project() for to in (-9.0, 9.0))
    low, high = getattr(low, learned(mask)), getattr(high, learned(mask))
    return moved(mask, learned(mask), (1 - share) * low + share * high)


@pytest.fixture(params=(False, True), ids=("float32", "x64"))
def precision(request):
    with jax.enable_x64(request.param):
        yield 1e-12 if request.param else 2e-5


def central(f, x, eps=1e-5):
    return (float(f(x + eps)) - float(f(x - eps))) / (2 * eps)


def wild(mask):
    """A loss that depends on every value and on the size."""
    return jnp.sum(mask() ** 2) + mask.size()


_wild = jax.jit(jax.value_and_grad(wild))
_active = jax.jit(lambda mask: mask.active())


#
# Values and cutoffs.
#


@pytest.mark.parametrize("name", _INIT)
def test_values(name):
    mask = _INIT[name]()
    out = mask()
    assert out.shape == (mask.capacity,)
    assert np.allclose(out, values(mask), rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", _INIT)
def test_values_x64(name, x64):
    mask = _INIT[name]()
    out = mask()
    assert out.dtype == jnp.float64
    assert np.allclose(out, values(mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", _INIT)
def test_values_away_from_the_start(name, x64):
    mask = _INIT[name]()
    for by in (0.8, 0.95, 1.05):
        other = moved(mask, learned(mask), float(getattr(mask, learned(mask))) * by)
        assert not np.array_equal(other(), mask())
        assert np.allclose(other(), values(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mean", (-0.4, 0.25))
def test_gaussian_with_a_mean(mean, x64):
    mask = moved(dn.Gaussian(33, sigma=0.1, learn=("sigma", "mean")), "mean", mean)
    assert np.allclose(mask(), values(mask), rtol=0, atol=1e-12)
    kept = np.flatnonzero(values(mask))
    assert mask.active() == 1 + 2 * max(abs(kept - 16))


@pytest.mark.parametrize("name", _INIT)
def test_threshold(name):
    mask = _INIT[name]()
    out = np.asarray(mask())
    assert np.all((out == 0) | (out >= mask.threshold))
    # `smooth` has no threshold, `at` has: at coordinates on both sides of the cutoff.
    x = root(mask) + np.array([-0.01, 0.01])
    smooth, thresholded = mask.smooth(jnp.array(x)), mask.at(jnp.array(x))
    assert np.allclose(smooth, printed(mask, x), atol=1e-5)
    assert thresholded[0] == smooth[0] and thresholded[1] == 0 < smooth[1]


@pytest.mark.parametrize("name", _INIT)
def test_cutoff(name, x64):
    mask = _INIT[name]()
    assert np.allclose(mask.cutoff(), root(mask), rtol=0, atol=1e-10)


def test_cutoff_with_a_mean(x64):
    mask = moved(dn.Gaussian(33, sigma=0.1), "mean", 0.3)
    assert np.allclose(mask.cutoff(), root(mask), rtol=0, atol=1e-10)


#
# Sizes.
#


@pytest.mark.parametrize("name", _INIT)
def test_size(name, x64):
    # With the cutoffs found numerically.
    start = _INIT[name]()
    for mask in (start, *(shares(start, share) for share in (0.0, 0.2, 0.6, 1.0))):
        assert np.allclose(mask.unclipped_size(), length(mask), rtol=1e-9)
        assert np.allclose(mask.size(), min(length(mask), mask.capacity), rtol=1e-9)


@pytest.mark.parametrize("share", (0.0, 0.3, 0.7, 1.0))
def test_size_does_not_depend_on_the_start(share):
    """Masks with the same parameters are the same, however they were made."""
    for one, *others in (
        [dn.Sigmoid(64), dn.Sigmoid(64, size=20.0), dn.Sigmoid(64, size=64.0)],
        [dn.Gaussian(33), dn.Gaussian(33, size=7.0), dn.Gaussian(33, sigma=1.7)],
    ):
        one, *others = (shares(mask, share) for mask in (one, *others))
        assert all(eqx.tree_equal(one, other) for other in others)
        size = min(float(one.unclipped_size()), one.capacity)
        by_size = type(one)(one.capacity, size=size + 1e-4 * (share == 0))
        assert np.isclose(float(by_size.size()), size, atol=2e-4)


@few
@hp.given(
    capacity=st.sampled_from([8, 33, 280]),
    fraction=st.floats(0, 1),
    temperature=st.floats(8, 200),
    gaussian=st.booleans(),
)
def test_construction_from_a_size(capacity, fraction, temperature, gaussian):
    capacity += gaussian and capacity % 2 == 0
    if gaussian:
        smallest = 1.001 * 2
        wanted = smallest + fraction * (capacity - smallest)
        mask = dn.Gaussian(capacity, size=wanted)
    else:
        smallest = 1.001 * capacity / 2 * (math.log(19) + math.log(9)) / temperature
        wanted = smallest + fraction * (capacity - smallest)
        mask = dn.Sigmoid(capacity, size=wanted, temperature=temperature)
    assert np.isclose(float(mask.size()), wanted, rtol=1e-5)
    # What is constructed is admissible.
    assert np.isclose(float(mask.project().size()), wanted, rtol=1e-5)


@pytest.mark.parametrize("capacity", (1, 2, 8, 280))
@pytest.mark.parametrize("temperature", (8.0, 25.0, 100.0))
def test_sigmoid_by_default_has_its_capacity(capacity, temperature):
    mask = dn.Sigmoid(capacity, temperature=temperature)
    assert float(mask.size()) == int(mask.active()) == capacity
    beyond = (math.log(0.85 / 0.15) + math.log(9)) / temperature
    assert np.isclose(float(mask.unclipped_size()), capacity * (1 + beyond / 2), rtol=1e-6)
    assert np.isclose(float(mask.at(jnp.array([1.0]))[0]), 0.85, atol=1e-4)
    # It shrinks from the first step.
    assert moved(mask, "offset", mask.offset - 0.01).unclipped_size() < mask.unclipped_size()


@pytest.mark.parametrize("capacity", (1, 2, 8, 280, 16384))
def test_sigmoid_of_a_whole_size(capacity):
    """Not one position more or less by rounding."""
    sizes = np.unique(np.linspace(min(capacity, 0.2 * capacity + 1), capacity, 40).astype(int))
    for n in sizes:
        mask = dn.Sigmoid(capacity, size=float(n))
        assert _active(mask) == n and np.isclose(float(mask.size()), n, rtol=1e-6)
        assert np.isclose(
            float(mask.smooth(jnp.array([2 * n / capacity - 1]))[0]), 0.1, atol=1e-4
        )


@pytest.mark.parametrize("capacity", (3, 33))
def test_gaussian_by_default_is_global(capacity):
    mask = dn.Gaussian(capacity)
    assert mask.sigma == 0.5
    unclipped = 0.5 * math.sqrt(2 * math.log(10)) * (capacity - 1)  # 2.146 and 34.34
    assert np.isclose(float(mask.size()), min(unclipped, capacity), rtol=1e-6)
    assert mask.active() == capacity
    assert moved(mask, "sigma", 0.49).unclipped_size() < mask.unclipped_size()


@pytest.mark.parametrize("size", (2.5, 3.0, 11.0, 32.0, 33.0))
def test_gaussian_from_a_size(size, x64):
    mask = dn.Gaussian(33, size=size, threshold=0.3)
    assert np.isclose(mask.sigma, size / 32 / math.sqrt(-2 * math.log(0.3)), rtol=1e-12)


@pytest.mark.parametrize("name", _INIT)
def test_gradient_of_size(name, x64):
    mask = _INIT[name]()
    at = getattr(mask, learned(mask)) * 0.9
    size = lambda x: moved(mask, learned(mask), x).size()
    gradient = getattr(
        jax.grad(lambda m: m.size())(moved(mask, learned(mask), at)), learned(mask)
    )
    assert abs(gradient) > 1
    assert np.isclose(gradient, central(size, at), rtol=1e-7)


@pytest.mark.parametrize("temperature", (8.0, 25.0, 50.0))
def test_size_is_clipped_straight_through(temperature, x64):
    mask = dn.Sigmoid(280, size=140.0, temperature=temperature)
    mask = moved(mask, "offset", 100.0).project()
    assert mask.unclipped_size() > 280.5
    value, gradient = jax.value_and_grad(lambda m: m.size())(mask)
    assert value == 280
    unclipped = lambda x: moved(mask, "offset", x).unclipped_size()
    assert np.isclose(gradient.offset, central(unclipped, mask.offset), rtol=1e-7)
    # 1.07 = mu_max at temperature 25: the worth that FACTS 0.5 gives.
    if temperature == 25.0:
        assert np.isclose(mask.unclipped_size(), 302, atol=0.1)


def test_gaussian_size_is_clipped_straight_through():
    mask = moved(dn.Gaussian(33), "sigma", 100.0).project()
    value, gradient = jax.value_and_grad(lambda m: m.size())(mask)
    assert value == 33
    assert gradient.sigma > 1


@pytest.mark.parametrize(
    "capacity, temperature, size",
    (
        (280, 25.0, 28.79),
        (280, 50.0, 14.40),
        (760, 25.0, 78.15),
        (760, 50.0, 39.08),
        (8, 8.0, 2.57),
        (12, 16.0, 1.93),
    ),
)
def test_smallest_sizes(capacity, temperature, size):
    # The masks of the paper's base networks, at their lower clip.
    mask = dn.Sigmoid(capacity, size=capacity / 2, temperature=temperature)
    assert np.isclose(float(moved(mask, "offset", -9.0).project().size()), size, atol=0.005)
    with pytest.raises(ValueError, match="smallest admissible"):
        dn.Sigmoid(capacity, size=size - 0.01, temperature=temperature)
    dn.Sigmoid(capacity, size=size + 0.01, temperature=temperature)


def test_smallest_width_has_29_channels():
    assert moved(dn.Sigmoid(280, size=140.0), "offset", -9.0).project().active() == 29


@pytest.mark.parametrize(
    "temperature, lowest, highest, cutoff_lowest, cutoff_highest, half",
    (
        (8.0, -0.6319, 1.2168, -0.3573, 1.4915, -0.2747),
        (16.0, -0.8160, 1.1084, -0.6786, 1.2457, -0.1373),
        (25.0, -0.8822, 1.0694, -0.7943, 1.1573, -0.0879),
        (50.0, -0.9411, 1.0347, -0.8972, 1.0786, -0.0439),
        (100.0, -0.9706, 1.0173, -0.9486, 1.0393, -0.0220),
    ),
)
def test_closed_forms(temperature, lowest, highest, cutoff_lowest, cutoff_highest, half):
    mask = dn.Sigmoid(280, size=140.0, temperature=temperature)
    low, high = (moved(mask, "offset", to).project() for to in (-9.0, 9.0))
    found = (low.offset, high.offset, low.cutoff(), high.cutoff(), mask.offset)
    wanted = (lowest, highest, cutoff_lowest, cutoff_highest, half)
    assert np.allclose(jnp.stack(found), wanted, rtol=0, atol=6e-5)
    assert np.isclose(float(mask.cutoff()), 0, atol=1e-6)


def test_depth_mask_weights_the_blocks():
    # What the blocks of the paper's base network start with.
    mask = dn.Sigmoid(8, size=4.0, temperature=8.0)
    assert np.allclose(mask(), [0.997, 0.978, 0.858, 0.450, 0, 0, 0, 0], atol=6e-4)
    assert mask.active() == 4


#
# Other sizes.
#


_resized = jax.jit(lambda mask, size: mask.resized(size))


@pytest.mark.parametrize("name", _INIT)
def test_resized(name, precision):
    mask = _INIT[name]()
    low, high = (float(shares(mask, share).unclipped_size()) for share in (0.0, 1.0))
    rtol = 1e-12 if precision < 1e-6 else 1e-4
    for start in (mask, shares(mask, 0.1), shares(mask, 1.0)):
        for wanted in np.linspace(low, high, 7)[1:-1]:
            other = _resized(start, wanted)
            assert np.isclose(length(other), wanted, rtol=max(rtol, 1e-10))
            assert np.isclose(other.unclipped_size(), wanted, rtol=rtol)
            assert eqx.tree_equal(other.project(), other)
            # No parameter but the one has moved.
            back = moved(other, learned(mask), getattr(start, learned(mask)))
            assert eqx.tree_equal(back, start)
        # Or as near as is admissible.
        for wanted, end in ((0.9 * low, 0.0), (1.1 * high, 1.0)):
            assert eqx.tree_equal(_resized(start, wanted), shares(mask, end), rtol=rtol)


@pytest.mark.parametrize("by", (0.1, 0.7, 0.97, 1.02, 1.4))
def test_resized_by_a_temperature(by, x64):
    """Whose derivative is not constant: by one step, which brings the size nearer."""
    mask = dn.Sigmoid(33, size=16.0, temperature=10.0, learn=("temperature",))
    # The size is c + 16.5 log(9) / temperature. (Beyond 1.5 the step would be too long.)
    part = 16.5 * math.log(9) / 10
    wanted = 16.0 + (by - 1) * part
    other: Any = mask.resized(wanted)
    assert other.offset == mask.offset
    assert np.isclose(other.temperature, 10 * (2 - by), rtol=1e-12)
    assert np.isclose(length(other), 16.0 - part + part / (2 - by), rtol=1e-9)
    assert abs(length(other) - wanted) < abs(16.0 - wanted)


@pytest.mark.parametrize("learn", ((), ("mean",)))
@pytest.mark.parametrize("cls", (dn.Sigmoid, dn.Gaussian))
def test_resized_where_no_size_is_learned(cls, learn):
    mask = cls(9, size=5.0, learn=learn if cls is dn.Gaussian else ())
    for size in (1.0, 5.0, 8.0):
        assert eqx.tree_equal(mask.resized(size), mask)


#
# Active counts and windows.
#


def between(mask):
    """The fewest and the most positions that can be active but for rounding."""
    x, cutoff = positions(mask), root(mask)
    distance = x if isinstance(mask, dn.Sigmoid) else np.abs(x)
    return np.sum(distance < cutoff - 2e-6), np.sum(distance < cutoff + 2e-6)


_values = jax.jit(lambda mask: mask())


def check_active(mask):
    n, (fewest, most) = int(_active(mask)), between(mask)
    assert fewest <= n <= most
    # A bucket of that size holds all active positions and nothing else.
    kept = np.flatnonzero(_values(mask))
    assert np.array_equal(kept, np.arange(mask.capacity)[mask.window(n)])
    # Neither jit nor its absence moves a position across the threshold.
    assert np.array_equal(kept, np.flatnonzero(mask()))


@few
@hp.given(
    capacity=st.sampled_from([1, 2, 8, 33, 280]),
    temperature=st.sampled_from([8.0, 25.0, 100.0]) | st.floats(4, 1e4),
    fraction=st.floats(0, 1),
)
def test_active_of_sigmoid(capacity, temperature, fraction):
    mask = moved(dn.Sigmoid(capacity, size=capacity / 2), "temperature", temperature)
    lowest = -1 + math.log(19) / temperature
    highest = 1 + math.log(0.85 / 0.15) / temperature
    check_active(moved(mask, "offset", lowest + fraction * (highest - lowest)))


@few
@hp.given(capacity=st.sampled_from([3, 33, 129]), fraction=st.floats(0, 1))
def test_active_of_gaussian(capacity, fraction):
    lowest, highest = 1.001 * 2 / (capacity - 1) / math.sqrt(2 * math.log(10)), 1.75
    mask = moved(dn.Gaussian(capacity), "sigma", lowest * (highest / lowest) ** fraction)
    check_active(mask)


@few
@hp.given(
    capacity=st.integers(1, 300),
    temperature=st.sampled_from([8.0, 25.0, 1e4]) | st.floats(8, 1e4),
    threshold=st.sampled_from([0.1, 0.5]),
    by_size=st.booleans(),
    share=st.floats(0, 1),
)
def test_size_is_the_active_count_of_sigmoid(capacity, temperature, threshold, by_size, share):
    """Rounded up."""
    size = 0.4 * capacity if by_size else None
    mask = dn.Sigmoid(capacity, size=size, temperature=temperature, threshold=threshold)
    mask = shares(mask, share)
    n, size = int(_active(mask)), float(mask.unclipped_size())
    assert max(1, min(math.ceil(size - 1.2e-3), capacity)) <= n
    assert n <= max(1, min(math.ceil(size - 0.8e-3), capacity))
    assert -1.2e-3 <= n - mask.size() < 1


@few
@hp.given(
    capacity=st.integers(1, 150).map(lambda half: 2 * half + 1),
    threshold=st.sampled_from([0.01, 0.1]),
    by_size=st.booleans(),
    share=st.floats(0, 1).map(lambda share: share**3),
)
def test_size_is_the_active_count_of_gaussian(capacity, threshold, by_size, share):
    """Within one."""
    size = max(0.4 * capacity, 2.0) if by_size else None
    mask = shares(dn.Gaussian(capacity, size=size, threshold=threshold), share)
    n, size = int(_active(mask)), float(mask.unclipped_size())
    counts = [1 + 2 * math.floor((size + by) / 2) for by in (-1e-4, 1e-4)]
    assert n in [min(count, capacity) for count in counts]
    assert abs(n - mask.size()) <= 1 + 1e-4


@pytest.mark.parametrize("name", _INIT)
def test_position_goes_on_between_counts(name, x64):
    """Its floor is the active count, up to the capacity."""
    for share in np.linspace(0.003, 0.997, 60):
        mask = shares(_INIT[name](), share)
        position, step = float(mask.position()), 1 if isinstance(mask, dn.Sigmoid) else 2
        n = int(_active(mask))
        if n < mask.capacity:
            assert n <= position < n + step
            assert np.isclose(position, length(mask) + (0.999 if step == 1 else 1))
        else:
            assert position > n - 1e-9


@pytest.mark.parametrize("capacity", (9, 33))
@pytest.mark.parametrize("temperature", (8.0, 25.0, 100.0))
def test_active_at_ties(capacity, temperature):
    # The cutoff on a position: rounding decides, but all must decide alike.
    mask = moved(dn.Sigmoid(capacity, size=capacity / 2), "temperature", temperature)
    for x in positions(mask)[1:]:
        check_active(moved(mask, "offset", x - math.log(9) / temperature))


@pytest.mark.parametrize("name", _INIT)
def test_buckets_hold_the_same_values(name):
    mask = _INIT[name]()
    whole = np.asarray(mask())
    gaussian = isinstance(mask, dn.Gaussian)
    sizes = [n for n in (1, 7, mask.capacity - 2) if not gaussian or n % 2]
    for n in sizes:
        start = (mask.capacity - n) // 2 if gaussian else 0
        assert mask.window(n) == slice(start, start + n)
        kept = whole[start : start + n]
        assert np.allclose(mask(n), kept, rtol=2e-7, atol=0)  # zeros are the same


@few
@hp.given(st.lists(st.booleans(), min_size=9, max_size=9))
def test_smallest_bucket_of_gaussian(active):
    # The smallest centred window that holds them, by trying all of them.
    mask = dn.Gaussian(9)
    holds = lambda n: sum(active[mask.window(n)]) == sum(active)
    smallest = next(n for n in range(1, 10, 2) if holds(n))
    assert mask.smallest_bucket(jnp.array(active)) == smallest


def test_product(getkey):
    values = [jax.random.normal(getkey(), (n,)) for n in (3, 4, 5)]
    for wanted, given in (
        (values[0], values[:1]),
        (np.einsum("i,j->ij", *values[:2]), values[:2]),
        (np.einsum("i,j,k->ijk", *values), values),
    ):
        assert np.allclose(dn.product(*given), wanted, rtol=1e-6)


def test_product_of_masks(x64):
    # A 2-D Gaussian is the product of two.
    x, y = dn.Gaussian(33, sigma=0.2), dn.Gaussian(17, sigma=0.4)
    out = dn.product(x(), y())
    r2 = (positions(x) / 0.2)[:, None] ** 2 + (positions(y) / 0.4) ** 2
    kept = np.outer(np.asarray(x()) > 0, np.asarray(y()) > 0)
    assert np.allclose(out, np.where(kept, np.exp(-r2 / 2), 0), atol=1e-12)


def test_product_of_nothing():
    with pytest.raises(ValueError, match="`product` needs"):
        dn.product()


#
# The admissible range.
#


@pytest.mark.parametrize("temperature", (1.0, 8.0, 25.0, 100.0))
def test_range_of_sigmoid(temperature, precision):
    mask = dn.Sigmoid(33, temperature=temperature)
    low, high = (moved(mask, "offset", x).project() for x in (-9.0, 9.0))
    assert np.isclose(low()[0], 0.95, rtol=0, atol=precision)
    assert np.isclose(high.at(jnp.array([1.0]))[0], 0.85, rtol=0, atol=precision)
    for inside in (low.offset + 1e-3, mask.offset - 0.05, high.offset - 1e-3):
        assert moved(mask, "offset", inside).project().offset == inside


@pytest.mark.parametrize("capacity", (3, 33, 16385))
def test_range_of_gaussian(capacity, precision):
    mask = dn.Gaussian(capacity)
    low, high = (moved(mask, "sigma", x).project() for x in (0.0, 9.0))
    assert np.isclose(high()[-1], 0.85, rtol=0, atol=precision)
    kept = np.flatnonzero(low())
    centre = capacity // 2
    assert np.array_equal(kept, [centre - 1, centre, centre + 1])
    assert low.active() == 3
    # It can grow again: the loss sees sigma through the two neighbours.
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(m(3))))(low)
    assert gradient.sigma > 0.1
    assert moved(mask, "sigma", 0.7).project().sigma == jnp.asarray(0.7, mask.sigma.dtype)


@pytest.mark.parametrize("name", _INIT)
def test_projection_is_idempotent(name, precision):
    del precision
    mask = _INIT[name]()
    project = jax.jit(lambda m: m.project())
    slope = jax.jit(jax.grad(lambda m: jnp.sum(m())))
    for to in (-100.0, -1.0, 0.0, 0.01, 0.3, 1.0, 100.0):
        once = project(moved(mask, learned(mask), to))
        assert eqx.tree_equal(project(once), once)
        # Nothing collapses, nothing is beyond recovery.
        assert _active(once) >= 1
        assert abs(getattr(slope(once), learned(mask))) > 1e-3


@pytest.mark.parametrize("threshold", (0.01, 0.5, 0.84))
def test_nothing_collapses_at_any_threshold(threshold):
    # What may be constructed can be projected without losing every position.
    for mask in (dn.Sigmoid(33, threshold=threshold), dn.Gaussian(129, threshold=threshold)):
        assert moved(mask, learned(mask), -9.0).project()().max() >= threshold


def test_projection_of_what_is_not_learned_by_default():
    hot = dn.Sigmoid(8, learn=("temperature",))
    assert moved(hot, "temperature", -3.0).project().temperature == 1
    shifted = dn.Gaussian(9, learn=("mean",))
    assert moved(shifted, "mean", 3.0).project().mean == 1
    assert moved(shifted, "mean", -3.0).project().mean == -1


#
# Extremes.
#


@pytest.mark.parametrize(
    "temperature, size",
    [(1.0, None), *it.product((8.0, 1e3, 1e6, 1e12, 1e30), (None, 16.0, 33.0))],
)
def test_any_temperature(temperature, size):
    learn = ("offset", "temperature")
    mask = dn.Sigmoid(33, size=size, temperature=temperature, learn=learn)
    low = moved(mask, "offset", -9.0).project()
    for m in (mask, moved(mask, "offset", 0.0), mask.project(), low):
        value, gradient = _wild(m)
        assert jnp.isfinite(value) and 0 < m().max() <= 1
        assert all(np.all(np.isfinite(g)) for g in jtu.tree_leaves(gradient))
        assert 1 <= m.active() <= 33


@pytest.mark.parametrize("sigma", (0.0, 1e-30, 1e-8, -1e-30, -0.5, -1e30, 1e30))
@pytest.mark.parametrize("mean", (0.0, 0.03))
def test_any_sigma(sigma, mean):
    mask = moved(dn.Gaussian(33, learn=("sigma", "mean")), "sigma", sigma)
    mask = moved(mask, "mean", mean)
    value, gradient = jax.value_and_grad(lambda m: jnp.sum(m() ** 2))(mask)
    assert jnp.isfinite(value)
    assert jnp.isfinite(mask.size())
    assert all(np.all(np.isfinite(g)) for g in jtu.tree_leaves(gradient))
    assert jnp.isfinite(jax.grad(lambda m: m.size())(mask).sigma)
    # And back.
    assert mask.project().active() >= 3


#
# Masks as data.
#


@pytest.mark.parametrize(
    "cls, learn",
    (
        (dn.Sigmoid, None),
        (dn.Sigmoid, ("temperature",)),
        (dn.Sigmoid, ("offset", "temperature")),
        (dn.Sigmoid, ()),
        (dn.Gaussian, None),
        (dn.Gaussian, ("mean",)),
        (dn.Gaussian, ("sigma", "mean")),
        (dn.Gaussian, ()),
    ),
)
def test_what_is_learned(cls, learn):
    mask = cls(9) if learn is None else cls(9, learn=learn)
    wanted = {"offset" if cls is dn.Sigmoid else "sigma"} if learn is None else set(learn)
    mask = mask if cls is dn.Sigmoid else moved(mask, "mean", 0.1)
    # A weighting without symmetry, lest the gradient of the mean cancel.
    loss = lambda m: jnp.sum(m() * jnp.arange(9.0)) + m.cutoff()
    gradient = jax.grad(loss)(mask)
    names = ("offset", "temperature") if cls is dn.Sigmoid else ("sigma", "mean")
    assert {name for name in names if getattr(gradient, name) != 0} == wanted


@pytest.mark.parametrize("name", ("width", "small"))
def test_gradient_of_values(name, x64):
    mask = _INIT[name]()
    loss = lambda x: jnp.sum(moved(mask, learned(mask), x)() ** 2)
    at = float(getattr(mask, learned(mask))) + 1e-4
    assert np.isclose(
        float(jax.grad(loss)(jnp.asarray(at))), central(loss, at, 1e-7), rtol=1e-5
    )


@pytest.mark.parametrize("name", _INIT)
def test_immutable(name):
    mask = _INIT[name]()
    before = mask()
    for field in (learned(mask), "capacity", "threshold", "new"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(mask, field, 3)
    moved(mask, learned(mask), 0.2).project()
    assert np.array_equal(mask(), before)


@pytest.mark.parametrize("name", _INIT)
def test_dtypes_are_explicit(name, precision):
    mask = _INIT[name]()
    dtype = jnp.float32 if precision > 1e-6 else jnp.float64
    spec = lambda tree: jtu.tree_map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    assert jtu.tree_leaves(mask)
    assert all(x.dtype == dtype and not x.weak_type for x in jtu.tree_leaves(mask))
    # Nothing that an update does makes another trace.
    assert eqx.tree_equal(spec(mask), spec(mask.project()))
    for x in (mask(), mask.size(), mask.cutoff()):
        assert x.dtype == dtype and not x.weak_type
    assert jnp.issubdtype(mask.active().dtype, jnp.integer)


def test_one_trace_for_a_whole_run():
    traces = 0

    @eqx.filter_jit
    def step(mask: dn.AbstractMask):
        nonlocal traces
        traces += 1
        gradient = jax.grad(lambda m: -m.size())(mask)
        return jtu.tree_map(lambda x, g: x - 1e-3 * g, mask, gradient).project()

    mask = dn.Sigmoid(32, size=16.0)
    for _ in range(4):
        mask = step(mask)
    assert mask.size() > 17
    assert traces == 1


def test_stacked_masks_under_vmap():
    wide, tap = dn.Sigmoid(24, size=12.0), dn.Gaussian(9)
    history = [
        {"wide": moved(wide, "offset", offset), "tap": moved(tap, "sigma", sigma)}
        for offset, sigma in ((-0.7, 0.3), (0.0, 0.01), (1.0, 0.2), (7.0, 0.5))
    ]
    path = dn.stack(history)
    assert path["wide"].capacity == 24
    assert all(x.shape[0] == 4 for x in jtu.tree_leaves(path))
    for f in (
        dn.sizes,
        dn.active,
        dn.project,
        lambda masks: {axis: mask() for axis, mask in masks.items()},
        lambda masks: {axis: mask(5) for axis, mask in masks.items()},
        lambda masks: {axis: mask.cutoff() for axis, mask in masks.items()},
        jax.grad(lambda masks: sum(wild(mask) for mask in masks.values())),
    ):
        together, one = jax.jit(jax.vmap(f))(path), jax.jit(f)
        one_by_one = jtu.tree_map(lambda *xs: np.stack(xs), *map(one, history))
        assert jtu.tree_structure(together) == jtu.tree_structure(one_by_one)
        for a, b in zip(jtu.tree_leaves(together), jtu.tree_leaves(one_by_one)):
            assert np.allclose(a, b, rtol=1e-5, atol=1e-6)


#
# What the user reads.
#


@pytest.mark.parametrize(
    "make, message",
    (
        (lambda: dn.Sigmoid(0), "`capacity` must be a positive integer, got 0"),
        (lambda: dn.Sigmoid(-4), "`capacity` must be a positive integer, got -4"),
        (lambda: dn.Sigmoid(True), "`capacity` must be a positive integer, got True"),
        (lambda: dn.Gaussian(0), "`capacity` must be a positive integer, got 0"),
        (lambda: dn.Gaussian(8), "`capacity`.* odd.*at least 3; got 8"),
        (lambda: dn.Gaussian(1), "`capacity`.* odd.*at least 3; got 1"),
        (lambda: dn.Sigmoid(8, temperature=0.5), "`temperature`.*between 1.0 .* got 0.5"),
        (lambda: dn.Sigmoid(8, temperature=0.0), "`temperature`.* got 0.0"),
        (lambda: dn.Sigmoid(8, temperature=-8.0), "`temperature`.* got -8.0"),
        (lambda: dn.Sigmoid(8, temperature=math.nan), "`temperature`.* 1e.30, got nan"),
        (lambda: dn.Sigmoid(8, temperature=math.inf), "`temperature`.* 1e.30, got inf"),
        (lambda: dn.Sigmoid(8, threshold=0.0), r"`threshold` must lie in \(0, 0.85\), got 0.0"),
        (lambda: dn.Sigmoid(8, threshold=0.9), r"`threshold` must lie in \(0, 0.85\), got 0.9"),
        (lambda: dn.Gaussian(9, threshold=-0.1), "`threshold`.* got -0.1"),
        (lambda: dn.Gaussian(9, threshold=math.nan), "`threshold`.* got nan"),
        (lambda: dn.Sigmoid(280, size=28.7), "`size`.* 28.79,.*capacity 280; got 28.7"),
        (lambda: dn.Sigmoid(280, size=280.5), "`size`.*capacity 280; got 280.5"),
        (lambda: dn.Sigmoid(280, size=math.nan), "`size`.* got nan"),
        (lambda: dn.Gaussian(33, size=1.9), "`size`.* 2,.*capacity 33; got 1.9"),
        (lambda: dn.Gaussian(33, size=34.0), "`size`.*capacity 33; got 34.0"),
        (lambda: dn.Gaussian(33, size=math.nan), "`size`.* got nan"),
        (lambda: dn.Gaussian(33, sigma=0.02), "`sigma`.* 0.02913.* 1.754.* got 0.02"),
        (lambda: dn.Gaussian(33, sigma=2.0), "`sigma`.* 0.02913.* 1.754.* got 2.0"),
        (lambda: dn.Gaussian(33, sigma=-0.5), "`sigma`.* got -0.5"),
        (lambda: dn.Gaussian(33, sigma=math.nan), "`sigma`.* got nan"),
        (lambda: dn.Gaussian(33, size=9.0, sigma=0.5), "`size` and `sigma`, not both"),
        (lambda: dn.Sigmoid(8, learn=("sigma",)), r"`learn`.*'offset'.*got \('sigma',\)"),
        (lambda: dn.Sigmoid(8, learn="offset"), "`learn` must be a sequence.*got 'offset'"),
        (lambda: dn.Gaussian(9, learn=("mu",)), r"`learn`.*'sigma'.*got \('mu',\)"),
        (lambda: dn.Sigmoid(8)(9), "bucket.*between 1 and 8, got 9"),
        (lambda: dn.Sigmoid(8)(0), "bucket.*between 1 and 8, got 0"),
        (lambda: dn.Gaussian(9)(4), "bucket.*must be odd, got 4"),
        (lambda: dn.Gaussian(9)(11), "bucket.*between 1 and 9, got 11"),
        (lambda: dn.stack([]), "`history` is empty"),
    ),
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "make",
    (
        lambda: dn.Gaussian(3, size=3.0),
        lambda: dn.Gaussian(33, size=33.0),
        lambda: dn.Sigmoid(1, size=1.0),
        lambda: dn.Sigmoid(8, size=8.0, temperature=2.6),
    ),
)
def test_the_capacity_is_an_admissible_size(make):
    mask = make()
    assert np.isclose(float(mask.size()), mask.capacity, rtol=1e-6)
    assert mask.active() >= 1
