import functools as ft
import itertools as it
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import close, convolution, FAST, interpolation, joint, noise, outcome

import dnarch_eqx as dn
from dnarch_eqx.nn import fourier_convolution, resize, spatial_convolution
from dnarch_eqx.nn._choices import choose_method, choose_transform
from dnarch_eqx.nn._fourier import convolution_transforms
from dnarch_eqx.nn._transforms import pass_band, to_space


def by_hand(x, kernel, low_pass):
    matrices = [
        jnp.asarray(convolution(k, n, values), x.dtype)
        for k, n, values in zip(kernel.shape[1:], x.shape[1:], low_pass)
    ]
    flat = lambda a: a.reshape(a.shape[0], -1)
    out = jnp.einsum("kin,ck,cn->ci", joint(matrices, "kin"), flat(kernel), flat(x))
    return out.reshape(x.shape[0], *(matrix.shape[1] for matrix in matrices))


fft, dft = (ft.partial(fourier_convolution, transform=how) for how in ("fft", "dft"))
METHODS = {"fft": fft, "dft": dft, "spatial": spatial_convolution}


def run(method, *args):
    """Compiled at once and cheaply: faster than operation by operation."""
    return jax.jit(method, compiler_options=FAST)(*args)


def direct(x, kernel):
    """y[n] = sum_t kernel[centre + t] x[n - t], a loop over the taps."""
    x, kernel = np.asarray(x), np.asarray(kernel)
    half = [k // 2 for k in kernel.shape[1:]]
    padded = np.pad(x, [(0, 0), *((h, h) for h in half)])
    out = np.zeros_like(x)
    for tap in it.product(*(range(k) for k in kernel.shape[1:])):
        window = [slice(2 * h - t, 2 * h - t + n) for h, t, n in zip(half, tap, x.shape[1:])]
        weights = kernel[(slice(None), *tap)]
        out += weights.reshape(-1, *(1,) * len(tap)) * padded[(slice(None), *window)]
    return out


@pytest.mark.parametrize("n", (6, 7))
def test_every_kernel_extent(n, getkey, x64):
    x = noise(getkey(), 2, n)
    for k in range(1, n + 2, 2):
        kernel = noise(getkey(), 2, k)
        wanted = direct(x, kernel)
        for name, method in METHODS.items():
            close(run(method, x, kernel, [None]), wanted, what=f"{name}, {k} taps")
        close(run(by_hand, x, kernel, [None]), wanted, what="the references")


@pytest.mark.parametrize(
    "space, window",
    (
        ((6, 5), (7, 5)),
        ((6, 5), (1, 3)),
        ((5, 6), (5, 7)),
        ((4, 3, 5), (5, 3, 1)),
        ((3, 4, 2), (3, 5, 3)),
    ),
)
def test_convolution_of_several_axes(space, window, getkey, x64):
    x, kernel = noise(getkey(), 2, *space), noise(getkey(), 2, *window)
    wanted = direct(x, kernel)
    none = [None] * len(space)
    for name, method in METHODS.items():
        close(run(method, x, kernel, none), wanted, what=name)


@pytest.mark.parametrize(
    "space, window, reduced",
    (
        ((12,), (13,), (6,)),
        ((12,), (1,), (12,)),
        ((12,), (5,), (7,)),
        ((9,), (9,), (4,)),
        ((9,), (3,), (9,)),
        ((9,), (9,), (1,)),
        ((6, 8), (7, 9), (4, 6)),
        ((6, 5), (5, 3), (6, 3)),
        ((5, 6), (5, 7), (None, 4)),
        ((6, 7), (3, 7), (3, None)),
        ((4, 3, 6), (5, 1, 3), (2, None, 4)),
        ((4, 4, 4), (3, 5, 1), (4, 2, 4)),
    ),
)
def test_filtered_convolution(space, window, reduced, getkey, x64):
    """All methods, values and gradients, against matrices."""
    x, kernel = noise(getkey(), 2, *space), noise(getkey(), 2, *window)
    low_pass = tuple(None if m is None else noise(getkey(), m) for m in reduced)
    wanted = outcome(lambda args, _: by_hand(*args), (x, kernel, low_pass), {})
    assert wanted[0].shape == (2, *(n if m is None else m for n, m in zip(space, reduced)))
    for name, method in METHODS.items():
        got = outcome(lambda args, _: method(*args), (x, kernel, low_pass), {})
        close(got, wanted, what=name)


def test_float32_is_as_precise(getkey):
    x, kernel = noise(getkey(), 3, 60), noise(getkey(), 3, 61) / 8
    low_pass = [dn.Sigmoid(60, size=30.0)(40)]
    wanted = np.asarray(run(by_hand, x, kernel, low_pass), np.float32)
    for name, method in METHODS.items():
        close(run(method, x, kernel, low_pass), wanted, what=name)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_bucket_does_not_change_the_samples(method, getkey, x64):
    """The linear parts are the same function at every even resolution that holds the mask:
    contract 1 on resolutions."""
    n = 24
    mask = dn.Sigmoid(n, size=9.5, temperature=15.0)
    tight = int(mask.active())
    assert tight <= 10
    x, kernel = noise(getkey(), 2, n), noise(getkey(), 2, n + 1)
    outs = {m: run(method, x, kernel, [mask(m)]) for m in (10, 12, 18, 24)}
    for m1, m2 in it.combinations(outs, 2):
        common = math.gcd(m1, m2)
        assert common >= 2
        a, b = (outs[m][:, :: m // common] for m in (m1, m2))
        assert np.max(np.abs(a)) > 0.1
        close(a, b, what=f"{m1} and {m2}")


def test_a_bucket_does_not_change_the_samples_in_2d(getkey, x64):
    masks = dn.Sigmoid(12, size=4.0, temperature=12.0), dn.Sigmoid(8, size=3.5)
    assert [int(mask.active()) for mask in masks] == [4, 4]
    x, kernel = noise(getkey(), 2, 12, 8), noise(getkey(), 2, 13, 9)
    at = lambda *ms: run(fourier_convolution, x, kernel, [f(m) for f, m in zip(masks, ms)])
    full = at(12, 8)
    for m1, m2 in ((4, 4), (6, 4), (4, 8), (12, 4)):
        close(at(m1, m2), full[:, :: 12 // m1, :: 8 // m2], what=f"{m1} x {m2}")


@pytest.mark.parametrize("n, m", ((96, 48), (96, 47), (95, 48), (95, 47), (96, 96), (95, 95)))
def test_band_limited_signals_are_sampled(n, m, x64):
    """FACTS 10.4: a cropped spectrum, times the ratio of the lengths, gives the samples of a
    band-limited signal on the coarser grid. A bump whose spectrum and ends are below 1e-12.
    """
    bump = lambda t: np.exp(-((t - 47.3) ** 2) / 72) * np.cos(0.3 * t)
    x = jnp.asarray(bump(np.arange(n)))[None]
    delta = jnp.asarray([[0.0, 1.0, 0.0]])
    wanted = bump(np.arange(m) * n / m)[None]
    for name, method in METHODS.items():
        close(run(method, x, delta, [jnp.ones(m)]), wanted, what=name)


@pytest.mark.parametrize("m1, m2", ((5, 3), (4, 6), (5, 6), (8, 9), (None, 4)))
def test_crop_commutes_with_transposition(m1, m2, getkey, x64):
    x, kernel = noise(getkey(), 2, 8, 9), noise(getkey(), 2, 7, 9)
    low_pass = [None if m is None else 1 + 0.2 * noise(getkey(), m) for m in (m1, m2)]
    swapped = lambda a: jnp.swapaxes(a, 1, 2)
    got = run(fourier_convolution, swapped(x), swapped(kernel), low_pass[::-1])
    close(swapped(got), run(fourier_convolution, x, kernel, low_pass))


def test_resize_to_the_same_size_is_the_identity(getkey):
    x = noise(getkey(), 2, 5, 6)
    np.testing.assert_array_equal(resize(x, (5, 6)), x)
    assert resize(x, (5, 6)) is x, "no transform"


@pytest.mark.parametrize("m", (7, 8))
@pytest.mark.parametrize("n", (12, 13))
def test_resize_interpolates(m, n, getkey, x64):
    """Exactly the periodic signals of frequencies below half the coarser rate (FACTS 10.4)."""
    amplitude, phase = np.asarray(noise(getkey(), 2, 4)), np.asarray(noise(getkey(), 2, 4))

    def signal(samples):
        t = np.arange(samples)[:, None] / samples
        return np.sum(
            amplitude[:, None] * np.cos(2 * np.pi * t * np.arange(4) + phase[:, None]), -1
        )

    for transform in ("fft", "dft"):
        close(resize(jnp.asarray(signal(m)), (n,), transform), signal(n), what=transform)


@pytest.mark.parametrize(
    "coarse, fine", (((7,), (12,)), ((8,), (13,)), ((1,), (5,)), ((2,), (6,)), ((4, 3), (6, 5)))
)
def test_resize_against_matrices(coarse, fine, getkey, x64):
    """White noise too: values, and gradients by the transposed matrix."""
    x = noise(getkey(), 2, *coarse)
    matrix = joint([interpolation(m, n) for m, n in zip(coarse, fine)], "im")
    reference = lambda x: (x.reshape(2, -1) @ jnp.asarray(matrix).T).reshape(2, *fine)
    wanted, back_wanted = jax.vjp(reference, x)
    along = noise(getkey(), 2, *fine)
    for transform in ("fft", "dft"):
        got, back = jax.vjp(lambda x: resize(x, fine, transform), x)
        close(got, wanted, what=transform)
        close(back(along), back_wanted(along), what=transform)


#
# The ways to compute a transform, and the choice.
#


@pytest.mark.parametrize("transforms", list(it.product(("fft", "dft"), repeat=2)))
@pytest.mark.parametrize("kept", ((None, None), (3, None), (None, 4), (1, 3)))
@pytest.mark.parametrize("centred", (False, True))
def test_transforms_are_numpys(transforms, kept, centred, getkey, x64):
    """On each axis by itself, in any combination, there and back."""
    periods, samples = (9, 10), (5, 7)
    x = np.asarray(noise(getkey(), 2, *samples))
    padded = np.pad(x, [(0, 0), *((0, p - n) for p, n in zip(periods, samples))])
    if centred:
        padded = np.roll(padded, [-(n // 2) for n in samples], (1, 2))
    spectrum = np.fft.rfft2(padded)
    m1, m2 = kept
    rows = np.arange(9) if m1 is None else np.r_[:m1, 9 - m1 + 1 : 9]
    crop = lambda a: a[:, rows][..., :m2]
    got = pass_band(jnp.asarray(x), periods, kept, transforms, centred=centred)
    close(got, crop(spectrum))

    cropped = np.zeros_like(spectrum)
    cropped[:, rows, :m2] = crop(spectrum)
    wanted = np.fft.irfft2(cropped, periods)[:, :4, :6]
    close(to_space(got, periods, (4, 6), kept, transforms), wanted)


def test_products_have_no_transform(getkey):
    x, kernel = jnp.zeros((2, 8, 6)), jnp.zeros((2, 3, 5))
    low_pass = [jnp.ones(4), jnp.ones(6)]
    for method, transforms in ((fft, True), (dft, False)):
        text = str(jax.make_jaxpr(method)(x, kernel, low_pass))
        assert ("fft[" in text) == transforms
    for transform in ("fft", "dft"):
        text = str(jax.make_jaxpr(lambda x: resize(x, (9, 6), transform))(x))
        assert ("fft[" in text) == (transform == "fft")


def at(backend, choose, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: backend)
        return choose(*args)


@pytest.mark.parametrize(
    "backend, space, sizes, wanted",
    (
        ("cpu", (1024,), (32,), ("dft",)),
        ("cpu", (1024,), (1024,), ("fft",)),
        ("cpu", (1024,), (None,), ("fft",)),
        ("cpu", (32, 32), (16, 16), ("dft", "dft")),
        ("cpu", (1024, 32), (1024, 16), ("fft", "dft")),
        ("tpu", (1024,), (256,), ("dft",)),
        ("tpu", (8192,), (8192,), ("fft",)),
        ("gpu", (1024,), (32,), ("fft",)),
    ),
)
def test_few_frequencies_are_products(backend, space, sizes, wanted):
    window = [n + 1 for n in space]
    chosen = at(backend, convolution_transforms, "auto", space, window, sizes)
    assert chosen == wanted
    for transform in ("fft", "dft"):
        asked = convolution_transforms(transform, space, window, sizes)
        assert asked == (transform,) * len(space)


def test_matrices_are_not_too_large():
    """They are constants of the program."""
    assert at("tpu", choose_transform, "auto", 2**20, (2**20,)) == "dft"
    assert at("tpu", choose_transform, "auto", 2**20 + 1, (2**20,)) == "fft"


@pytest.mark.parametrize(
    "backend, window, filtered, wanted",
    (
        ("cpu", (3,), False, "spatial"),
        ("cpu", (3, 3), False, "spatial"),
        ("cpu", (3,), True, "fourier"),
        ("cpu", (7,), False, "fourier"),
        ("cpu", (5, 5), False, "fourier"),
        ("gpu", (49,), True, "spatial"),
        ("gpu", (33, 49), False, "spatial"),
        ("tpu", (51,), False, "fourier"),
    ),
)
def test_local_kernels_are_spatial(backend, window, filtered, wanted):
    assert at(backend, choose_method, "auto", window, filtered) == wanted
    assert at(backend, choose_method, "fourier", window, filtered) == "fourier"


def test_unknown_transform(getkey):
    x = noise(getkey(), 2, 6)
    with pytest.raises(ValueError, match="`transform` must be one of auto, fft, dft"):
        fourier_convolution(x, x[:, :3], [None], "fast")
    with pytest.raises(ValueError, match="`transform` must be one of auto, fft, dft"):
        resize(x, (8,), "fast")
