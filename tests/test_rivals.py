"""The networks of the recipes to compare with, against their definitions."""

import dataclasses
import itertools as it

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from dnarch_eqx import nn
from recipes import _folder, _network, _rivals, _settings, _train
from recipes._network import Network
from recipes._settings import Options
from recipes._task import accuracy, cross_entropy, Task
from recipes.data import Arrays, Splits


def test_state_space_is_a_recurrence(getkey):
    """The states of the discretised equations, one step after the other, in complex128."""
    width, length = 3, 20
    layer = _rivals.StateSpace(width, key=getkey())
    x = np.asarray(jr.normal(getkey(), (width, length)))
    shape = (width, -1)
    step = np.exp(np.asarray(layer.log_step, np.float64))[:, None]
    a = -np.exp(np.asarray(layer.log_decay, np.float64).reshape(shape))
    a = a + 1j * np.asarray(layer.frequency, np.float64).reshape(shape)
    real, imaginary = np.moveaxis(np.asarray(layer.readout).reshape(2, *a.shape, 2), -1, 0)
    c = real + 1j * imaginary
    hold = np.exp(step * a)
    b = (hold - 1) / a

    def run(x, c):
        state, y = np.zeros_like(a), []
        for t in range(length):
            state = hold * state + b * x[:, t, None]
            y.append(2 * (c * state).sum(1).real)
        return np.stack(y, 1)

    along = run(x, c[0])
    # Against the sequence, and not the position itself, which is in the other.
    against = np.pad(run(x[:, ::-1], c[1])[:, ::-1][:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(layer(jnp.asarray(x)), along + against + x, rtol=1e-3, atol=1e-3)


def test_spectral_convolution(getkey):
    """Frequency by frequency, of whole exponentials."""
    width, rows, columns = 2, 10, 9
    layer = _rivals.SpectralConv(width, (6, 8), key=getkey())  # 3 rows, 4 columns
    x = np.asarray(jr.normal(getkey(), (width, rows, columns)), np.float64)
    weight = np.asarray(layer.weight[0]) + 1j * np.asarray(layer.weight[1])
    u, v = np.arange(rows)[:, None] / rows, np.arange(columns)[None] / columns
    want = np.zeros_like(x)
    for k, l in it.product(range(-3, 3), range(4)):
        wave = np.exp(2j * np.pi * (k * u + l * v))
        part = (x * wave.conj()).sum((1, 2)) / (rows * columns)
        row = weight[0, :, :, k, l] if k >= 0 else weight[1, :, :, k, l]
        new = part @ row
        if l == 0:
            # A real field has the half of these frequencies twice: irfft takes the real part.
            want += (new[:, None, None] * wave).real
        else:
            want += 2 * (new[:, None, None] * wave).real
    np.testing.assert_allclose(layer(jnp.asarray(x, jnp.float32)), want, atol=1e-5)


@pytest.mark.parametrize(
    "name, network, match",
    [
        ("fno", Network((16,), 2), "fields in two dimensions"),
        ("fno", Network((8, 8), 2), "fields in two dimensions"),
        ("s4d", Network((8, 8), 1, pool=False), "classes of single sequences"),
        ("s4d", Network((16,), 2, None, 5, towers=True), "classes of single sequences"),
    ],
)
def test_what_does_not_fit(name, network, match):
    with pytest.raises(ValueError, match=match):
        _rivals.build(name, network, nn.Base(1, 4), dropout=0.0, key=jr.key(0))


def test_settings_are_their_own():
    s4d = _settings.resolve("sequential", Options(variant="s4d"), 8000, 196)
    assert (s4d.depth, s4d.width, s4d.learning_rate) == (4, 64, 0.004)
    assert s4d.rival and s4d.learn == ""
    krwd = _settings.resolve("sequential", Options(), 8000, 196)
    assert (krwd.steps, krwd.batch_size) == (s4d.steps, s4d.batch_size)
    assert not krwd.rival and krwd.learn == "KRWD"


@pytest.mark.filterwarnings("ignore:The backend")
def test_they_train(tmp_path):
    """Sequences of tokens by whether there are more ones than twos, in the recipes' loop."""
    rng = np.random.default_rng(0)
    x = rng.integers(1, 3, size=(256, 15)).astype(np.int32)
    part = Arrays(x, ((x == 1).sum(1) > 7).astype(np.int32))
    network = Network((15,), 2, None, vocabulary=3)
    task = Task("toy", Splits(part, part, part), network, cross_entropy, accuracy)
    settings = _settings.resolve("listops", Options(variant="s4d"), 256, 15)
    settings = dataclasses.replace(
        settings, depth=1, width=8, steps=60, warmup=5, segment=60, learning_rate=0.02
    )
    with jax.numpy_dtype_promotion("standard"):  # Optax relies on it
        run = _train.train(task, settings, tmp_path)
    assert run.test["accuracy"] > 0.9
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: (a == b).all(),
            *[
                [leaf for leaf in jax.tree.leaves(net) if isinstance(leaf, jax.Array)]
                for net in (_train.load_deployed(tmp_path / "deployed.eqx"), run.deployed)
            ],
        )
    )

    from recipes import _report

    text = _report.write(tmp_path, run)
    assert "# toy: S4D 1 x 8" in text and "Complexity" not in text
    assert (tmp_path / "learning.png").is_file()
    assert _folder.read_lines(tmp_path / "metrics.jsonl")[-1]["step"] == 60


@pytest.mark.slow
def test_fno_takes_any_grid(getkey):
    for side in (9, 29, 32):
        network = Network((side, side + 1), 1, 3, pool=False)
        built = _rivals.build("fno", network, nn.Base(2, 4), dropout=0.0, key=getkey())
        y = _network.apply(built.model, jnp.ones((2, 3, side, side + 1)))
        assert y.shape == (2, 1, side, side + 1) and bool(jnp.isfinite(y).all())
