from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from recipes.data import generate_cosmic as cosmic
from recipes.data.generate_cosmic import HUBBLE, Ray, Spec


CATALOGUE = Path(__file__).parents[2] / "shared" / "data" / "cosmic_bits.npz"


def frames(n: int) -> list[cosmic.Frame]:
    return [cosmic.generate(np.random.default_rng((4, i))) for i in range(n)]


def spread(image: np.ndarray) -> tuple[float, float, float]:
    """Along and across a hit, and the angle: by the moments of the charge."""
    y, x = np.indices(image.shape)
    points = np.stack([x.ravel(), y.ravel()])
    values, vectors = np.linalg.eigh(np.cov(points, aweights=image.ravel(), ddof=0))
    angle = np.arctan2(vectors[1, 1], vectors[0, 1])
    return values[1] ** 0.5, values[0] ** 0.5, angle


#
# Rays.
#


@pytest.mark.parametrize("length, width", ((0.0, 0.3), (2.5, 0.5), (14.0, 0.8), (20.0, 2.0)))
@pytest.mark.parametrize("angle", (-1.4, 0.0, 0.6, np.pi / 2))
def test_a_ray_against_scattered_charges(length, width, angle):
    ray = Ray(20.3, 25.7, angle, length, width, 1000.0)
    image = np.zeros((44, 50))
    cosmic.deposit(ray, image)
    assert image.sum() == pytest.approx(1000, rel=1e-3)

    rng = np.random.default_rng(0)
    along, n = rng.uniform(-length / 2, length / 2, size=200_000), 200_000
    y = 20.3 + along * np.sin(angle) + width * rng.normal(size=n)
    x = 25.7 + along * np.cos(angle) + width * rng.normal(size=n)
    edges = [np.arange(size + 1) - 0.5 for size in image.shape]
    counts, *_ = np.histogram2d(y, x, bins=edges)
    wanted = counts * 1000 / n
    # A pixel is the mean of nine points, of charges that are drawn at random.
    tolerance = 0.03 * wanted.max() + 4 * np.sqrt(wanted * 1000 / n) + 0.02
    assert np.all(np.abs(image - wanted) < tolerance)

    a, b, found = spread(image)
    assert (a, b) == pytest.approx(spread(wanted)[:2], rel=0.04)
    # What the catalogue measures of it: pixels add a twelfth, about.
    assert a**2 == pytest.approx(length**2 / 12 + width**2 + 1 / 12, rel=0.1)
    assert b**2 == pytest.approx(width**2 + 1 / 12, rel=0.12)
    if length > 2:
        assert abs(np.sin(found - angle)) < 0.02


def test_rays_at_the_edge():
    whole, part = np.zeros((40, 40)), np.zeros((20, 20))
    for y, x, angle in ((10, 10, 0.4), (30, 8, 1.2), (9.5, 30, -0.7), (29.2, 28.7, 0.0)):
        ray = Ray(y, x, angle, 12.0, 0.7, 500.0)
        cosmic.deposit(ray, whole)
        cosmic.deposit(Ray(y - 10, x - 10, angle, 12.0, 0.7, 500.0), part)
    assert np.allclose(part, whole[10:30, 10:30], atol=1e-3)
    far = np.zeros((5, 5))
    cosmic.deposit(Ray(-50.0, 90.0, 0.0, 3.0, 0.5, 1e6), far)
    assert not far.any()


def test_rays_are_those_of_the_catalogue():
    rng = np.random.default_rng(0)
    rays = [cosmic.draw(rng) for _ in range(4000)]
    lengths = np.array([ray.length for ray in rays])
    widths = np.array([ray.width for ray in rays])
    for share, length, width in zip(cosmic.SHARES[1:], cosmic.LENGTHS[1:], cosmic.WIDTHS[1:]):
        wanted = share / cosmic.SHARES[-1]
        assert np.mean(lengths <= length) == pytest.approx(wanted, abs=0.025)
        blur = max(width**2 - 1 / 12, 0.04) ** 0.5
        if blur > 0.2:
            assert np.mean(widths <= blur) == pytest.approx(wanted, abs=0.025)
    ranks = stats.spearmanr(lengths, widths).statistic  # pyright: ignore
    assert ranks == pytest.approx(cosmic.TOGETHER, abs=0.05)
    # In all directions, and as many at the edges as elsewhere: of long ones more.
    angles = np.array([ray.angle for ray in rays])
    assert stats.kstest(angles[lengths < 3], stats.uniform(-np.pi / 2, np.pi).cdf)[1] > 1e-3
    ys = np.array([ray.y for ray in rays])[lengths < 1]
    assert stats.kstest(ys, stats.uniform(-1, 129).cdf)[1] > 1e-3


def test_charges():
    rng = np.random.default_rng(1)
    rays = [cosmic.draw(rng) for _ in range(4000)]
    charges = [ray.charge / np.hypot(ray.length, 1) for ray in rays]
    # Of a distribution of Moyal, as here, the median is 0.787 widths over the mode.
    assert np.median(charges) == pytest.approx(1000 + 0.787 * 200, rel=0.03)
    wanted = stats.moyal(1000, 200)
    for share in (0.1, 0.9, 0.99):
        assert np.quantile(charges, share) == pytest.approx(wanted.ppf(share), rel=0.06)


@pytest.mark.skipif(not CATALOGUE.exists(), reason="The catalogue is not here.")
def test_quantiles():
    with np.load(CATALOGUE, allow_pickle=False) as file:
        *_, along, across, _ = file["ground_cr_catalogue"].T.astype(float)
    length = np.sqrt(12 * np.maximum(along**2 - across**2, 0))
    assert np.allclose(np.quantile(length, cosmic.SHARES), cosmic.LENGTHS, atol=0.01)
    assert np.allclose(np.quantile(across, cosmic.SHARES), cosmic.WIDTHS, atol=0.01)
    ranks = stats.spearmanr(length, across).statistic  # pyright: ignore
    assert ranks == pytest.approx(cosmic.TOGETHER, abs=0.01)


#
# Frames.
#


def test_frames():
    for frame in frames(8):
        # Only rays that reach into the frame are drawn, and all their charge in it counts.
        charge = np.zeros_like(frame.charge)
        for ray in frame.rays:
            cosmic.deposit(ray, charge)
            assert charge.sum() > 0
        assert np.array_equal(frame.charge, charge)
        # The rest is noise, of the variance that it should have.
        noise = (frame.image - frame.scene - frame.charge) / np.sqrt(frame.scene + 25)
        assert abs(noise.mean()) < 0.04 and noise.std() == pytest.approx(1, abs=0.03)
        above = frame.charge / np.sqrt(frame.scene + 25) > 3
        assert np.array_equal(frame.mask, above)
        assert frame.scene.min() > 0


def test_how_much_is_hit():
    """The instrument's handbook has 1.5 to 3 % of the pixels in 1,000 seconds."""
    many = frames(120)
    assert 0.015 < np.mean([frame.mask.mean() for frame in many]) < 0.03
    assert np.mean([len(frame.rays) for frame in many]) == pytest.approx(11, abs=1.1)
    # Few pixels tell by themselves: other things are as bright.
    hit = np.concatenate([frame.image[frame.mask] for frame in many])
    rest = np.concatenate([frame.image[~frame.mask] for frame in many])
    assert np.mean(rest > np.median(hit)) > 0.005
    assert np.median(hit) > 3 * np.median(rest)


def test_an_empty_sky():
    spec = Spec(size=64, rays=0, stars=0, galaxies=0)
    frame = cosmic.generate(np.random.default_rng(0), spec)
    assert not frame.mask.any() and not frame.charge.any() and frame.rays == ()
    assert np.ptp(frame.scene) == 0
    assert frame.image.mean() == pytest.approx(frame.scene[0, 0], abs=0.5)


def test_stars_have_the_shape_of_the_optics():
    spec = Spec(size=64, rays=0, stars=1, galaxies=0, seeing=2.0)
    for seed in range(30):
        scene = cosmic.generate(np.random.default_rng(seed), spec).scene
        star = scene - np.median(scene)
        y, x = np.unravel_index(star.argmax(), star.shape)
        if min(y, x) > 16 and max(y, x) < 47 and star.max() > 1:
            a, b, _ = spread(star)
            if a < 3:  # there is one only
                assert [a**2, b**2] == pytest.approx([4 + 1 / 12] * 2, rel=0.02)
                return
    pytest.fail("There was no star.")


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"rays": -1.0}, "`rays` must be at least 0, got -1.0"),
        ({"read_noise": 0.0}, "`read_noise` must be positive, got 0.0"),
    ),
)
def test_spec_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Spec(**arguments)


def test_source():
    source = cosmic.source(4, 3)
    x, y = source[2]
    frame = cosmic.generate(np.random.default_rng((4, 2)), HUBBLE)
    assert x.shape == (1, 128, 128) and y.shape == (2, 128, 128)
    assert x.dtype == y.dtype == np.float32
    assert np.allclose(x[0], frame.image) and np.array_equal(y[0], frame.mask)
    assert not y[1].any()
    assert np.array_equal(cosmic.splits(4, (1, 1, 1)).test[0][0], x)
