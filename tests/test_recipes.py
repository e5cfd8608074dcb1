import dataclasses
import functools as ft
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from test_data_images import binary, COUNTS, HARD, mnist_files, path_files, write

import dnarch_eqx as dn
from dnarch_eqx import nn
from recipes import (
    _decided,
    _folder,
    _hyperparameters,
    _main,
    _network,
    _settings,
    _task,
    _train,
    cifar,
    generate,
    lra,
    mnist,
    nasbench360,
    ucr,
)
from recipes._decided import Decided
from recipes._network import Network
from recipes._settings import Options, Overrides
from recipes._task import Task
from recipes.data import aan, Arrays, cifar as cifar_files, generate_darcy, pathfinder, Splits


@pytest.fixture
def quick():
    """With fewer optimisations, for they take most of the time. Optax relies on JAX's standard
    promotion.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


#
# Settings.
#


def test_tables():
    """As the paper prints them."""
    four, five = _hyperparameters.TABLE_4, _hyperparameters.TABLE_5
    assert len(four) == 10 and len(five) == 4
    pathx = four["pathx"]
    assert (pathx.epochs, pathx.batch_size, pathx.learning_rate) == (80, 32, 0.001)
    assert (pathx.omega_0, pathx.resolution_temperature, pathx.weight_decay) == (30000, 100, 0)
    assert (four["listops"].budget_weight, four["cifar100"].budget_weight) == (5, 5)
    assert (five["cifar100"].budget_weight, five["cosmic"].batch_size) == (0.1, 4)
    assert (five["cifar10"].depth_temperature, five["cifar10"].width_temperature) == (16, 50)
    assert four["text"].dropout == 0.2 and four["cosmic"].dropout == 0.3
    assert {n for n, row in four.items() if row.warmup == 5} == {
        "listops",
        "retrieval",
        "pathx",
    }
    assert four["image"].omega_0 == 12500 and five["darcy"].omega_0 == 7500
    assert set(_hyperparameters.LAPTOP) == {*four, *_hyperparameters.OURS}


def test_rows():
    assert _hyperparameters.row("darcy", nn.CCNN_6_380).batch_size == 12
    assert _hyperparameters.row("darcy", nn.CCNN_4_140).batch_size == 8
    # Table 5 has no sequences.
    assert _hyperparameters.row("text", nn.CCNN_6_380).omega_0 == 19500
    with pytest.raises(ValueError, match="`task` must be one of .*'listops'.*, got 'chess'"):
        _hyperparameters.row("chess", nn.CCNN_4_140)


def test_the_paper_preset():
    settings = _settings.resolve("listops", Options(preset="paper"), 96_000, 2048)
    assert (settings.depth, settings.width, settings.steps) == (4, 140, 50 * 1920)
    assert (settings.warmup, settings.segment) == (5 * 1920, 1920)
    assert (settings.omega_0, settings.sigma, settings.budget_weight) == (27500, 0.5, 5)
    assert settings.temperatures == (50, 25, 8) and settings.learn == "KRWD"


def test_only_widths_and_depth_are_under_the_budget():
    """Section 4: kernels and resolutions are learned by the task's loss alone."""
    weight = lambda variant, over=None: (
        _settings.resolve(
            "listops",
            Options(variant=variant, preset="paper", overrides=Overrides(budget_weight=over)),
            96_000,
            2048,
        ).budget_weight
    )
    assert [weight(v) for v in ("base", "k", "kr", "krwd")] == [0, 0, 0, 5]
    assert weight("kr", 0.3) == 0.3


def test_a_shorter_grid_has_a_smaller_omega():
    """So that a kernel turns as often a position."""
    settings = _settings.resolve("listops", Options(), 4000, 256)
    assert settings.omega_0 == 27500 / 8 and settings.mask_rate == 0.3
    assert (settings.depth, settings.width) == (2, 24)


def test_overrides():
    overrides = Overrides(steps=30, batch_size=4, omega_0=7.0, dropout=0.0)
    options = Options(variant="base", base="3x9", overrides=overrides, preset="paper")
    settings = _settings.resolve("text", options, 100, 16)
    assert (settings.steps, settings.batch_size, settings.warmup) == (30, 4, 3)
    assert (settings.omega_0, settings.dropout, settings.learn) == (7.0, 0.0, "")
    assert settings.base == nn.Base(3, 9) and settings.weight_decay == 0.01


@pytest.mark.parametrize("base", ["4", "4x", "x140", "0x3", "4x140x2", "4X140", "-4x140"])
def test_bases_that_are_none(base):
    with pytest.raises(ValueError, match="`base` must be DEPTHxWIDTH, as 4x140, got "):
        _settings.resolve("text", Options(base=base), 100, 16)


@pytest.mark.parametrize("start", [0.5, 0.75, 2.0])
def test_other_sizes_to_start_at(start):
    network = Network((16,), 3, 1)
    known: Any = {"sigma": 0.2, "temperatures": (25, 25, 8), "omega_0": 10.0, "dropout": 0.0}
    build = lambda start: _network.build(
        network, nn.Base(4, 12), "KRWD", start=start, key=jr.key(0), **known
    )
    base, other = build(1.0), build(start)
    size = lambda built: float(built.masks["blocks.0.mid"].unclipped_size())
    assert size(other) == pytest.approx(start * size(base), rel=1e-4)
    # The target stays that of the base.
    assert other.target == base.target
    with pytest.raises(ValueError, match="`start` must be positive, got 0.0"):
        _settings.resolve("ucr", Options(start=0.0), 48, 16)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="`batch_size` must lie between 1 and the 20 examples"):
        _settings.resolve("text", Options(overrides=Overrides(batch_size=21)), 20, 16)
    # Some series of the archive are so few.
    assert _settings.resolve("ucr", Options(), 20, 16).batch_size == 20
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        _settings.resolve("text", Options(overrides=Overrides(steps=0)), 100, 16)


#
# Data that are missing.
#


@pytest.mark.parametrize(
    "make, name, match",
    [
        (lra.task, "text", "text cannot be generated.*aclImdb.*ai.stanford.edu"),
        (lra.task, "retrieval", "new_aan_pairs.train.tsv.*lra_release.gz"),
        (lra.task, "image", "cifar-10-binary.tar.gz.*cs.toronto.edu"),
        (cifar.task, "cifar100", "cifar100 cannot be .*cifar-100-binary.*cs.toronto.edu"),
        (ucr.task, "FordA", "FordA/FordA_TRAIN.tsv in it.*cs.ucr.edu"),
    ],
)
def test_missing_data(make, name, match):
    with pytest.raises(FileNotFoundError, match=match):
        make(name, None, None, 0)


def test_missing_data_are_all_that_is_said():
    with pytest.raises(SystemExit, match="FordA cannot be generated: give `--data FOLDER`"):
        _main.run("FordA", "ucr", ucr.task, Options())


def test_missing_data_of_mnist_in_full():
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz in it"):
        mnist.task("mnist", None, None, 0)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="`data` must be a folder.*nowhere"):
        cifar.task("cifar10", tmp_path / "nowhere", None, 0)
    with pytest.raises(FileNotFoundError, match="basic_train.tsv"):
        lra.task("listops", tmp_path, None, 0)
    with pytest.raises(FileNotFoundError, match="piececonst_r421_N1024_smooth1.mat"):
        nasbench360.task("darcy", tmp_path, None, 0)
    # Neither LRA's files nor the stand-in.
    with pytest.raises(FileNotFoundError, match="no new_aan_pairs.train.tsv.*aclImdb_v1"):
        lra.task("retrieval", tmp_path, None, 0)


def test_damaged_data_are_all_that_is_said(tmp_path):
    (tmp_path / "Toy").mkdir()
    (tmp_path / "Toy" / "Toy_TRAIN.tsv").write_text("1\t2\tx\n")
    with pytest.raises(SystemExit, match="Toy_TRAIN.tsv, line 1: could not convert"):
        _main.run("Toy", "ucr", ucr.task, Options(data=tmp_path))


@pytest.mark.parametrize(
    "options, match",
    [
        (Options(overrides=Overrides(dropout=2.0)), r"`dropout` must lie in \[0, 1\), got 2.0"),
        (
            Options(overrides=Overrides(learning_rate=-1.0)),
            "`learning_rate` must be a positive",
        ),
        (Options(variant="s4d"), "`variant` s4d is for classes of single sequences"),
    ],
)
def test_impossible_settings_are_all_that_is_said(options, match, tmp_path):
    """And leave nothing behind that would be in the way of the right ones."""
    options = dataclasses.replace(options, out=tmp_path / "run")
    with pytest.raises(SystemExit, match=match):
        _main.run("mnist", "mnist", mnist.task, options)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_all_that_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match="has a run of other settings"):
        _main.run("mnist", "mnist", mnist.task, Options(out=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


#
# Tasks.
#


def few(name: str, **changes) -> _hyperparameters.Laptop:
    laptop = dataclasses.replace(_hyperparameters.LAPTOP[name], sizes=(8, 3, 4))
    return dataclasses.replace(laptop, **changes)


@pytest.mark.parametrize("name, length", [("listops", 128), ("pathfinder", 256)])
def test_generated_sequences(name, length):
    task = lra.task(name, None, few(name), 0)
    splits = (task.splits.train, task.splits.valid, task.splits.test)
    assert [len(part) for part in splits] == [8, 3, 4]
    assert task.network.shape == (length,)
    again, other = (lra.task(name, None, few(name), seed) for seed in (0, 1))
    x = np.stack([task.splits.train[i][0] for i in range(8)])
    assert (x == np.stack([again.splits.train[i][0] for i in range(8)])).all()
    assert (x != np.stack([other.splits.train[i][0] for i in range(8)])).any()


@pytest.mark.parametrize("name, shape", [("mnist", (1, 8, 8)), ("permuted", (1, 64))])
def test_digits(name, shape):
    task = mnist.task(name, None, few(name), 0)
    assert _task.example_shape(task.splits.train) == shape
    assert task.network == Network(shape[1:], 10, 1)


def test_the_permuted_digits_are_the_digits():
    plain, permuted = (
        mnist.task(name, None, few("mnist"), 0).splits.test for name in ("mnist", "permuted")
    )
    x, z = plain[1][0].ravel(), permuted[1][0].ravel()
    assert (x != z).any()
    order = np.random.RandomState(92916).permutation(64)
    # Which four of the 450 are drawn is the same for both.
    assert [x[i] for i in order] == z.tolist()


def test_pairs_of_papers(tmp_path, monkeypatch):
    """LRA's files are taken before a stand-in, and have two inputs."""
    for part in ("train", "eval", "test"):
        rows = [f"{i % 2}\ta{i}\tb{i}\t{'abc' * (i + 1)}\tcb\n" for i in range(12)]
        (tmp_path / f"new_aan_pairs.{part}.tsv").write_text("".join(rows))
    task = lra.task("retrieval", tmp_path, few("retrieval", side=10), 0)
    (a, b), y = task.splits.train[1]
    assert a.shape == b.shape == (10,) and y in (0, 1)
    # Three letters, and what stands for padding, the unknown and the end.
    assert task.network == Network((10,), 2, None, 6, 32, towers=True)
    with pytest.raises(ValueError, match="train.tsv has 12 examples, not the 147,086"):
        lra.task("retrieval", tmp_path, None, 0)
    monkeypatch.setattr(aan, "COUNTS", (12, 12, 12))
    full = lra.task("retrieval", tmp_path, None, 0)
    assert full.network.shape == (4000,) and full.network.embedding == 256


def test_images(tmp_path, monkeypatch):
    """From the official files: in full, and as means over squares on a laptop."""
    write(tmp_path, binary(10) | binary(100) | mnist_files())
    load = ft.partial(cifar_files.load, counts=COUNTS)
    monkeypatch.setattr(cifar_files, "load", load)
    monkeypatch.setattr(mnist.mnist, "COUNTS", (40, 9))
    # The task, the shape in full, what of it is an image, and the squares of the laptop.
    cases = (
        (lra.task, "image", (1, 1024), (1, 32, 32), 2),
        (cifar.task, "cifar10", (3, 32, 32), (3, 32, 32), 2),
        (cifar.task, "cifar100", (3, 32, 32), (3, 32, 32), 2),
        (mnist.task, "mnist", (1, 28, 28), (1, 28, 28), 2),
        (mnist.task, "sequential", (1, 784), (1, 28, 28), 2),
    )
    for make, name, shape, image, factor in cases:
        full = make(name, tmp_path, None, 0)
        laptop = make(name, tmp_path, few(name, sizes=(99, 99, 99)), 0)
        classes = 100 if name == "cifar100" else 10
        assert full.network == Network(shape[1:], classes, shape[0])
        for part in ("train", "valid", "test"):
            one, other = (getattr(task.splits, part) for task in (full, laptop))
            assert len(one) == len(other) > 3
            for i in range(3):
                (x, y), (z, label) = one[i], other[i]
                assert x.shape == shape and y == label
                channels, rows, columns = image
                squares = x.reshape(channels, rows // factor, factor, columns // factor, factor)
                np.testing.assert_allclose(z.ravel(), squares.mean((2, 4)).ravel(), atol=1e-5)
    order = np.random.RandomState(mnist.PERMUTATION).permutation(784)
    plain, permuted = (
        mnist.task(name, tmp_path, None, 0).splits.test[2][0]
        for name in ("sequential", "permuted")
    )
    assert np.array_equal(permuted, plain[:, order])
    assert cifar.task("cifar10", tmp_path, None, 0, augment=True).transform is not None


def test_what_is_generated_is_read(tmp_path, monkeypatch):
    """By the recipe of its name, from the folder that was given."""
    sizes: dict[generate.Name, Any] = {
        "listops": (generate.generate_listops, {"sizes": (30, 10, 10)}),
        "pathfinder": (generate.generate_pathfinder, {"size": 20}),
    }
    for name, (module, fewer) in sizes.items():
        whole = module.write

        def write(*args, whole=whole, fewer=fewer, **kwargs):
            bound = inspect.signature(whole).bind(*args, **kwargs)
            bound.arguments |= fewer
            whole(*bound.args, **bound.kwargs)

        monkeypatch.setattr(module, "write", write)
        generate.main(name, tmp_path / name)
        task = lra.task(name, tmp_path / name, few(name, sizes=(15, 5, 5)), 0)
        assert task.about.startswith("LRA's files") and len(task.splits.train) == 15
        with pytest.raises(SystemExit, match="is there already"):
            generate.main(name, tmp_path / name)


def test_drawings(tmp_path, monkeypatch):
    write(tmp_path / "pathfinder32", path_files(HARD, 0, 20))
    laptop = few("pathfinder", sizes=(99, 99, 99))
    task = lra.task("pathfinder", tmp_path, laptop, 0)
    assert task.network == Network((256,), 2, 1)
    assert "LRA's files, 16 x 16 pixels" in task.about
    with pytest.raises(ValueError, match="has 20 examples, not the 200,000"):
        lra.task("pathfinder", tmp_path, None, 0)
    monkeypatch.setattr(pathfinder, "COUNT", 20)
    assert lra.task("pathfinder", tmp_path, None, 0).network == Network((1024,), 2, 1)
    with pytest.raises(ValueError, match="images of 32 pixels on a side, not 128"):
        lra.task("pathx", tmp_path / "pathfinder32", laptop, 0)


def test_expressions(tmp_path):
    for part in ("train", "val", "test"):
        rows = "".join(f"( ( [SM {i} ) {i} ) ] )\t{2 * i % 10}\n" for i in range(10))
        (tmp_path / f"basic_{part}.tsv").write_text("Source\tTarget\n" + rows)
    task = lra.task("listops", tmp_path, few("listops", sizes=(9, 9, 9)), 0)
    assert task.network == Network((2048,), 10, None, 18, 32)
    assert len(task.splits.train) == 9
    with pytest.raises(ValueError, match="basic_train.tsv has 10 examples, not the 96,000"):
        lra.task("listops", tmp_path, None, 0)


def test_series(tmp_path):
    """Of any length and number of classes; on a laptop they are means over windows."""
    series = np.random.default_rng(0).normal(size=(30, 24))
    for part in ("TRAIN", "TEST"):
        (tmp_path / "Toy").mkdir(exist_ok=True)
        rows = ["\t".join(map(str, [i % 3, *x])) + "\n" for i, x in enumerate(series)]
        (tmp_path / "Toy" / f"Toy_{part}.tsv").write_text("".join(rows))
    assert ucr.task("Toy", tmp_path, None, 0).network == Network((24,), 3, 1)
    laptop = dataclasses.replace(_hyperparameters.LAPTOP["ucr"], side=6, sizes=(30, 30, 30))
    task = ucr.task("Toy", tmp_path, laptop, 0)
    assert task.network == Network((6,), 3, 1)
    x = np.stack([task.splits.test[i][0] for i in range(30)])
    np.testing.assert_allclose(x[:, 0], series.reshape(30, 6, 4).mean(2), atol=1e-6)


@pytest.mark.parametrize(
    "name, channels, targets, side", [("darcy", 3, 1, 36), ("cosmic", 1, 2, 32)]
)
def test_dense_tasks(name, channels, targets, side, quick):
    """Outputs at every point, and losses of them that can be learned by."""
    task = nasbench360.task(name, None, few(name), 0)
    x, y = task.splits.train[0]
    assert x.shape == (channels, side, side) and y.shape == (targets, side, side)
    built = small(task.network, "")
    batch = tuple(np.stack(arrays) for arrays in zip(*(task.splits.train[i] for i in range(4))))
    loss, slope = eqx.filter_jit(eqx.filter_value_and_grad(task.loss))(built.model, batch, None)
    assert 0 < float(loss) < 10
    norms = [float(jnp.abs(g).max()) for g in jax.tree.leaves(eqx.filter(slope, eqx.is_array))]
    assert np.isfinite(norms).all() and max(norms) > 0


def test_coarser():
    x = np.arange(2 * 16, dtype=np.float32).reshape(2, 1, 4, 4)
    part = Arrays(x, np.zeros(2, np.int32))
    new = _task.coarser(Splits(part, part, part), 2).train
    want = np.array([[2.5, 4.5], [10.5, 12.5]], np.float32)  # (0 + 1 + 4 + 5) / 4 and so on
    np.testing.assert_array_equal(new[0][0][0], want)
    flat = _task.coarser(Splits(part, part, part), 2, sequential=True).train
    np.testing.assert_array_equal(flat[0][0][0], np.ravel(want))


def test_held_examples_are_drawn():
    source = Arrays(np.arange(50.0), np.arange(50))
    drawn = _task.held(source, 20, seed=3)
    assert len(set(drawn.y.tolist())) == 20 and (np.diff(drawn.y) > 0).all()
    assert max(drawn.y) > 25  # not the first ones
    assert (drawn.x == drawn.y).all()
    assert len(_task.held(source, 80)) == 50


def test_darcy_is_encoded():
    """By mean and deviation of the examples to train on, and decodes to what was solved."""
    spec = generate_darcy.Spec(size=13, low=10.0)
    raw = generate_darcy.splits(0, (6, 2, 2), spec, every=3)
    splits, by = nasbench360.encoded(raw)
    x, y = (np.stack(arrays) for arrays in zip(*(splits.train[i] for i in range(6))))
    assert x.shape == (6, 3, 5, 5) and x.dtype == y.dtype == np.float32
    for encoded, plain in ((x[:, :1], 0), (y, 1)):
        fields = np.stack([raw.train[i][plain] for i in range(6)]).astype(np.float64)
        by_hand = (fields - fields.mean(0)) / (fields.std(0, ddof=1) + 1e-5)
        np.testing.assert_allclose(encoded, by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by.decode(splits.test[1][1]), raw.test[1][1], atol=1e-5)
    # Columns run along the last axis, as in the loader of the files.
    np.testing.assert_allclose(x[3, 1, 4], np.linspace(0, 1, 5), atol=1e-7)
    np.testing.assert_allclose(x[3, 2, :, 4], np.linspace(0, 1, 5), atol=1e-7)


#
# Losses and metrics.
#


def test_accuracy(getkey):
    outputs = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 5.0], [1.0, 2.0, 3.0]], np.float32)
    y = np.array([0, 2, 1], np.int32)
    found = _task.accuracy(outputs, y)
    assert found["accuracy"] == pytest.approx(2 / 3)
    exact = -np.mean([np.log(np.exp(o[i]) / np.exp(o).sum()) for o, i in zip(outputs, y)])
    assert found["loss"] == pytest.approx(exact, rel=1e-5)
    loss = _task.cross_entropy(jnp.asarray(outputs), jnp.asarray(y))
    assert float(loss) == pytest.approx(exact, rel=1e-5)
    outputs[1, 0] = np.nan
    assert np.isnan(list(_task.accuracy(outputs, y).values())).all()


def test_relative_error():
    """The scale is that of the field, not of what the network is trained on."""
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 3, 1, 4, 5)).astype(np.float32)
    decode = lambda a: 2.0 * a + 7.0
    error = _task.RelativeError(decode)
    by_hand = np.mean(
        [np.linalg.norm(2 * (a - b)) / np.linalg.norm(2 * b + 7) for a, b in zip(p, y)]
    )
    assert error.measure(p, y)["relative l2"] == pytest.approx(by_hand, rel=1e-5)
    assert float(error(jnp.asarray(p), jnp.asarray(y))) == pytest.approx(by_hand, rel=1e-5)
    slope = jax.grad(lambda p: error(p, jnp.asarray(y)))(jnp.asarray(y))
    assert np.isfinite(slope).all()  # of a perfect prediction


def test_ignored_pixels_do_not_count():
    rng = np.random.default_rng(1)
    outputs = rng.normal(size=(3, 1, 6, 6)).astype(np.float32)
    y = (rng.random((3, 2, 6, 6)) < 0.3).astype(np.float32)
    other = np.where(y[:, 1:] == 1, 100.0, outputs).astype(np.float32)
    losses = [_task.pixels(jnp.asarray(o), jnp.asarray(y)) for o in (outputs, other)]
    assert float(losses[0]) == float(losses[1])
    assert _task.rays(outputs, y) == _task.rays(other, y)
    kept = y[:, 1] == 0
    p = 1 / (1 + np.exp(-outputs[:, 0][kept].astype(float)))
    t = y[:, 0][kept]
    by_hand = -np.mean(t * np.log(p) + (1 - t) * np.log(1 - p))
    assert float(losses[0]) == pytest.approx(by_hand, rel=1e-5)


def test_rays():
    rng = np.random.default_rng(2)
    # Rounded, so that there are ties.
    outputs = rng.normal(size=(4, 1, 5, 5)).round(1).astype(np.float32)
    y = (rng.random((4, 2, 5, 5)) < 0.4).astype(np.float32)
    found = _task.rays(outputs, y)
    kept = y[:, 1] == 0
    scores, truth = outputs[:, 0][kept], y[:, 0][kept]
    assert found["1 - auroc"] == pytest.approx(1 - roc_auc_score(truth, scores))
    binary = (scores > 0).astype(float)
    assert found["fnr"] == pytest.approx(np.mean(binary[truth == 1] == 0))
    assert found["(fpr + fnr) / 2"] == pytest.approx(1 - roc_auc_score(truth, binary))
    none = _task.rays(outputs, 0 * y)
    assert np.isnan(list(none.values())).all()
    # A network that has diverged is not a good one.
    assert np.isnan(list(_task.rays(outputs * np.nan, y).values())).all()


#
# Networks.
#


def small(network: Network, learn: str = "KRWD") -> _network.Built:
    return _network.build(
        network,
        nn.Base(1, 4),
        learn,
        sigma=0.4,
        temperatures=(25.0, 25.0, 8.0),
        omega_0=20.0,
        dropout=0.0,
        key=jr.key(0),
    )


TOWERS = Network((12,), 2, None, 9, 5, towers=True)


def test_two_towers(getkey, quick):
    """One encoder for both, and an MLP of the four. A learner finds the masks inside, and what
    is deployed is the same network, and small.
    """
    built = small(TOWERS, "WD")
    x = tuple(jr.randint(getkey(), (3, 12), 0, 9) for _ in range(2))
    full = dn.materialize(built.model, built.axes, built.masks, {})
    outputs = eqx.filter_jit(_network.apply)(full, x)
    encode = eqx.filter_jit(lambda net, x: jax.vmap(net, axis_name="batch")(x))
    a, b = np.split(np.asarray(encode(full.encoder, jnp.concatenate(x))), 2)
    joined = np.concatenate([a, b, a * b, a - b], 1)
    first, last = full.first, full.last
    hidden = jax.nn.gelu(joined @ first.weight.T + first.bias[None])
    np.testing.assert_allclose(outputs, hidden @ last.weight.T + last.bias[None], atol=1e-5)

    assert set(built.masks) == set(small(dataclasses.replace(TOWERS, towers=False), "WD").masks)
    learner = dn.Learner(lambda *_: jnp.zeros(()), dn.adamw(0.01, steps=9), built.axes)
    learner.init(built.model, built.masks)  # raises if a mask enters nowhere
    net = _network.deploy(built, built.model, built.masks, {})
    close = eqx.filter_jit(_network.apply)(net, x)
    np.testing.assert_allclose(close, outputs, atol=2e-5, rtol=1e-4)
    assert dn.parameters(net) < dn.parameters(built.model)


#
# The folder.
#


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    _folder.write_text(path, "old")
    with pytest.raises(RuntimeError), _folder.atomic(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


def test_saved_trees(tmp_path):
    tree = {"a": jnp.arange(3.0), "b": jnp.ones((2, 2), jnp.int32)}
    path = tmp_path / "tree.eqx"
    _folder.save(path, {"step": 3}, tree)
    header, loaded = _folder.load(path, lambda header: jax.tree.map(jnp.zeros_like, tree))
    assert header == {"step": 3} and eqx.tree_equal(loaded, tree)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="tree.eqx is damaged, or of another network"):
        _folder.load(path, lambda header: tree)
    path.write_bytes(b"\x93\x00\n")
    with pytest.raises(ValueError, match="tree.eqx does not begin with a line of JSON"):
        _folder.load(path, lambda header: tree)


def test_a_tree_whose_structure_follows_from_the_one_before(tmp_path):
    masks = {"a": dn.Sigmoid(8, size=3.0)}
    path = tmp_path / "trees.eqx"
    _folder.save(path, {}, masks, jnp.arange(3))
    like = {"a": dn.Sigmoid(8, size=7.0)}
    small = lambda header, masks: jnp.zeros(int(masks["a"].active()), jnp.int32)
    _, loaded, x = _folder.load(path, lambda header: like, small)
    assert eqx.tree_equal(loaded, masks) and x.tolist() == [0, 1, 2]


def test_trajectories(tmp_path):
    """At every step of it: as it was there, and as it was saved."""
    trace = lambda n: dn.runtime.Trace.of(("a", "b"), np.array([[3, 1], [2, 1], [2, 2]][:n]))
    mask = {"b": dn.Gaussian(9, sigma=0.4), "a": dn.Sigmoid(8, size=3.0)}
    history = [mask]
    for _ in range(3):
        history.append({axis: jax.tree.map(lambda x: 0.9 * x, m) for axis, m in mask.items()})
        mask = history[-1]
    all_of_it = [_folder.Trajectory.start(history[0])]
    for step in (1, 2, 3):
        all_of_it.append(all_of_it[-1].at(step, history[step], trace(step)))
    whole = all_of_it[-1]
    assert eqx.tree_equal(jax.tree.map(jnp.asarray, whole.masks), dn.stack(history))
    whole.save(tmp_path / "trajectory.npz")
    saved = _folder.Trajectory.load(tmp_path / "trajectory.npz", history[2])
    for step in (1, 2, 3):
        for found in (whole.until(step, trace(step)), saved.until(step, trace(step))):
            wanted = all_of_it[step]
            assert found.steps.tolist() == wanted.steps.tolist() == [*range(step + 1)]
            assert eqx.tree_equal(found.masks, wanted.masks, typematch=True)
    assert saved.trace is not None and saved.trace.axes == ("a", "b")
    assert saved.trace.every_step().tolist() == [[3, 1], [2, 1], [2, 2]]
    with np.load(tmp_path / "trajectory.npz") as file:
        sizes = file["masks/a.offset"]
    assert sizes.tolist() == [float(m["a"].offset) for m in history]


def test_the_trace_of_a_run_that_decided():
    """By hand: the counts of the axes that are decided stay, and steps go on."""
    before = dn.runtime.Trace.of(("a", "b", "c"), np.array([[3, 1, 5], [2, 1, 5], [2, 2, 5]]))
    gone = {"a": dn.Sigmoid(8, size=4.0), "c": dn.Sigmoid(8, size=6.0)}
    decided = Decided(gone, {}, before)
    after = dn.runtime.Trace.of(("b",), np.array([[2], [2], [1]]))
    whole = decided.joined({"b": dn.Sigmoid(8)}, after)
    assert whole.axes == ("a", "b", "c") and whole.length == 6
    later = [[4, 2, 6], [4, 2, 6], [4, 1, 6]]
    assert whole.every_step().tolist() == [*before.every_step().tolist(), *later]
    assert whole.until(3).every_step().tolist() == before.every_step().tolist()
    nothing = dn.runtime.Trace.of((), np.zeros((2, 0), int))
    masks = gone | {"b": dn.Sigmoid(8, size=3.0)}
    whole = Decided(masks, {}, before).joined({}, nothing)
    assert whole.every_step()[-2:].tolist() == [[4, 3, 6]] * 2
    with pytest.raises(ValueError, match="`length` must be 1 to 5, got 6"):
        whole.until(6)


def test_lines_that_were_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert _folder.read_lines(path) == []
    _folder.append(path, {"step": 1})
    _folder.append(path, {"step": 2})
    path.write_text(path.read_text()[:-3])
    assert _folder.read_lines(path) == [{"step": 1}]


#
# Runs.
#


def toy() -> tuple[Task, _settings.Settings]:
    """Which of three frequencies a noisy series has."""
    rng = np.random.default_rng(0)
    y = np.arange(72, dtype=np.int32) % 3
    t = np.arange(16)[None]
    x = np.cos(2 * np.pi * (1 + y[:, None]) * t / 16 + rng.normal(size=(72, 1)))
    x = (x + 0.1 * rng.normal(size=x.shape))[:, None].astype(np.float32)
    train, valid, test = (Arrays(x[i:j], y[i:j]) for i, j in ((0, 48), (48, 60), (60, 72)))
    network = Network((16,), 3, 1)
    task = Task("toy", Splits(train, valid, test), network, _task.cross_entropy, _task.accuracy)
    options = Options(overrides=Overrides(steps=8, batch_size=8, learning_rate=0.1), base="1x8")
    settings = _settings.resolve("ucr", options, 48, 16)
    # So that there are a few plans in so few steps.
    few = {"variant": "kw", "log": 2, "segment": 3, "compile_steps": 2.0, "headroom": 0.0}
    few |= {"settle": 4}
    settings = dataclasses.replace(settings, mask_rate=0.3, **few)
    return task, settings


def assert_same(one: _train.Run, other: _train.Run) -> None:
    a, b = one.trajectory.trace, other.trajectory.trace
    assert a is not None and b is not None
    assert a.length == b.length == one.settings.steps
    np.testing.assert_array_equal(a.every_step(), b.every_step())
    np.testing.assert_array_equal(one.trajectory.steps, other.trajectory.steps)
    assert eqx.tree_equal(one.trajectory.masks, other.trajectory.masks)
    assert eqx.tree_equal(one.deployed, other.deployed)
    assert (one.plan, one.valid, one.test) == (other.plan, other.valid, other.test)
    kept = ("step", "loss", "complexity", "valid accuracy", "valid loss")
    rows = [[{k: row.get(k) for k in kept} for row in run.rows] for run in (one, other)]
    assert rows[0] == rows[1]


def planned(folder: Path) -> dict[str, Any]:
    """What the planner of a run has saved."""
    header = json.loads((folder / "checkpoint.eqx").read_bytes().split(b"\n", 1)[0])
    return json.loads(header["planner"])["fields"]


class Interrupted(Exception):
    pass


def test_a_run_can_be_repeated_and_interrupted(tmp_path, quick):
    """Bit for bit, although it was broken off after a checkpoint, and steps were lost."""
    task, settings = toy()
    run = _train.train(task, settings, tmp_path / "one")
    moved: Any = run.trajectory.masks["blocks.0.in"]
    assert len(np.unique(moved.offset)) > 3
    # What is said of the network that is deployed, from its sizes.
    counts = {axis: mask.count() for axis, mask in run.masks.items()}
    cost, target = run.built.cost, run.built.target
    wanted = float(cost(counts) / cost(target))
    rows = [row for row in run.rows if "deployed" in row]
    assert [row["deployed"] for row in rows[-2:]] == pytest.approx([wanted] * 2)
    # More than one plan, and none of them compiled for anew after a checkpoint: the first, and
    # that of the network that was decided on, follow none.
    assert len(run.compilations) > 2
    assert sum(not c["changes"] for c in run.compilations) == 2

    # Before the architecture is decided on, and after.
    for at in (4, 8):

        def interrupt(step, at=at):
            if step == at:
                raise Interrupted

        with pytest.raises(Interrupted):
            _train.train(task, settings, tmp_path / "two", watch=interrupt)
        assert _folder.read_lines(tmp_path / "two" / "metrics.jsonl")[-1]["step"] == at
    seen: list[int] = []
    again = _train.train(task, settings, tmp_path / "two", watch=seen.append)
    assert seen == [8]
    assert_same(run, again)
    # Plans were taken at the same steps, and what is to come would be decided alike, too.
    switches = [step for step, _ in planned(tmp_path / "one")["switches"]]
    assert min(switches) == 0
    assert planned(tmp_path / "one") == planned(tmp_path / "two")

    # What is there is complete: a run that is done is not done again.
    folder = tmp_path / "two"
    seen.clear()
    assert_same(run, _train.train(task, settings, folder, watch=seen.append))
    assert not seen
    saved = _folder.Trajectory.load(folder / "trajectory.npz", run.masks)
    assert saved.steps.tolist() == [0, 2, 3, 4, 6, 8]
    last = jax.tree.map(lambda x: jnp.asarray(x[-1]), dict(saved.masks))
    assert eqx.tree_equal(last, dict(run.masks))
    assert eqx.tree_equal(_train.load_deployed(folder / "deployed.eqx"), run.deployed)
    config = json.loads((folder / "config.json").read_text())
    assert config["learning_rate"] == 0.1 and config["network"]["out_channels"] == 3
    assert run.error < 1e-4

    from recipes import _report

    text = _report.write(folder, run)
    assert "# toy: KW, CCNN 1 x 8" in text
    pictures = ("learning", "compilations", "sizes", "trajectory", "masks", "complexity")
    for name in pictures:
        assert (folder / f"{name}.png").is_file()
        assert f"({name}.png)" in (folder / "report.md").read_text()

    other = dataclasses.replace(settings, seed=1)
    with pytest.raises(ValueError, match=r"run of other settings \(seed: 0, not 1\)"):
        _train.train(task, other, folder)
    augmented = dataclasses.replace(task, about="augmented")
    with pytest.raises(ValueError, match=r"run of other settings \(about: '', not 'augmented'"):
        _train.train(augmented, settings, folder)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 2000])
def test_a_run_is_decided_on_after_its_first_steps(steps):
    """And at the end of a segment."""
    options = Options(overrides=Overrides(steps=steps))
    settings = _settings.resolve("ucr", options, 48, 16)
    assert 1 <= settings.settle == settings.segment


def test_what_a_decided_network_costs():
    """That of its sizes over the base's, by the paper's formula: one block of 16 positions, of
    widths 8, 5 and 8 in place of 8, 8 and 8.
    """
    task, settings = toy()
    built = _train.build(task.network, settings)
    learner = _train._learner(task, settings, built)
    masks = {a: m.with_count(5) if a.endswith(".mid") else m for a, m in built.masks.items()}
    state = learner.init(built.model, masks)
    small = _decided.smaller(state, built.axes, {}, _train._optim(settings))
    rest = _decided.rest(built, masks, small)
    target = float(built.cost(built.target))
    budget: Any = _train._learner(task, settings, rest, held_to=target).budget
    cost = lambda mid: 16 * (8 * mid + mid * 8) + 8 * 16 * 4 + 16 * (2 * mid + 8)
    assert float(budget.deployed(small.masks)) == pytest.approx(cost(5) / cost(8))
    assert small.model.blocks[0].linear1.weight.shape == (5, 8)


@pytest.mark.filterwarnings("ignore:The network has")  # of so few positions
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["magnitude", "l0", "diffstride"])
def test_other_ways_to_prune(variant, tmp_path, quick):
    """They end at the base's complexity; a run that is interrupted, and loaded, is the same."""
    task, settings = toy()
    settings = dataclasses.replace(
        settings, variant=variant, steps=24, segment=8, settle=18, depth=2, width=12
    )
    if variant != "magnitude":
        settings = dataclasses.replace(settings, hold="exact", mask_rate=1.0)
    run = _train.train(task, settings, tmp_path / "one")
    deployed = run.rows[-2]["deployed"]
    assert deployed == pytest.approx(1, abs=0.04)
    assert run.error < 1e-4

    def interrupt(step):
        if step == 12:
            raise Interrupted

    with pytest.raises(Interrupted):
        _train.train(task, settings, tmp_path / "two", watch=interrupt)
    again = _train.train(task, settings, tmp_path / "two")
    assert_same(run, again)
    loaded = _train.load_deployed(tmp_path / "two" / "deployed.eqx")
    assert eqx.tree_equal(loaded, run.deployed)

    from recipes import _report

    assert f"# toy: {variant}, CCNN 2 x 12" in _report.write(tmp_path / "two", run)


@pytest.mark.slow
def test_two_processes_do_the_same(tmp_path):
    """The same seed, each in a process of its own: the same files, byte by byte."""
    code = """
import sys
from pathlib import Path
import test_recipes
from recipes import _train
task, settings = test_recipes.toy()
_train.train(task, settings, Path(sys.argv[1]))
"""
    folders = [tmp_path / "one", tmp_path / "two"]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said
    contents = []
    for folder in folders:
        files = ("checkpoint.eqx", "deployed.eqx", "config.json")
        with np.load(folder / "trajectory.npz") as file:
            saved = {name: array.tobytes() for name, array in file.items()}
        metrics = [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in _folder.read_lines(folder / "metrics.jsonl")
        ]
        contents.append([*((folder / f).read_bytes() for f in files), metrics, saved])
    assert contents[0] == contents[1]


@pytest.mark.filterwarnings("ignore:The backend")
def test_the_base_network_and_measured_times(tmp_path, quick):
    """Nothing to learn of the architecture, and the other policy: both run to the end."""
    task, settings = toy()
    base = dataclasses.replace(settings, variant="base", policy="break-even", hold="penalty")
    run = _train.train(task, base, tmp_path)
    assert not run.masks and run.trajectory.trace is not None
    assert run.trajectory.trace.length == 8 and len(run.compilations) == 1

    from recipes import _report

    assert "CCNN 1 x 8" in _report.write(tmp_path, run)
    assert not (tmp_path / "sizes.png").exists()


def test_command_lines():
    """They parse, and name the data that are missing."""
    root = Path(__file__).parent.parent
    code = """
import tyro
from recipes import cifar, lra, membranes, mnist, nasbench360, ucr
seen = []
for module in (cifar, lra, membranes, mnist, nasbench360, ucr):
    module._main.run = lambda *args: seen.append(args)
tyro.cli(lra.main, args="listops --variant krwd --base 4x140 --preset paper --seed 3".split())
tyro.cli(cifar.main, args="cifar100 --augment --learning-rate 0.5".split())
tyro.cli(mnist.main, args="sequential --policy break-even".split())
tyro.cli(nasbench360.main, args="darcy --data somewhere --steps 9".split())
tyro.cli(ucr.main, args="FordA --out there".split())
tyro.cli(membranes.main, args="--data slices --variant kr --start 0.5".split())
(lra_, cifar_, mnist_, nas, ucr_, slices) = seen
assert lra_[0] == "listops" and lra_[3].base == "4x140" and lra_[3].seed == 3
assert cifar_[0] == "cifar100" and cifar_[3].overrides.learning_rate == 0.5
assert mnist_[0] == "sequential" and mnist_[3].policy == "break-even"
assert str(nas[3].data) == "somewhere" and nas[3].overrides.steps == 9
assert ucr_[:2] == ("FordA", "ucr") and str(ucr_[3].out) == "there"
assert str(slices[3].data) == "slices" and slices[3].start == 0.5
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
