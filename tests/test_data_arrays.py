"""Files of numbers: UCR, Darcy, Cosmic."""

import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.io

from recipes.data import _source, batches, cosmic, darcy, ucr


SHARED = Path(__file__).parents[2] / "shared" / "data"


def examples(split) -> list:
    return [split[i] for i in range(len(split))]


#
# UCR.
#


def write_ucr(folder: Path, train: str, test: str, name: str = "Toy") -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / f"{name}_TRAIN.tsv").write_text(train)
    (folder / name / f"{name}_TEST.tsv").write_text(test)


def test_ucr_by_hand(tmp_path):
    train = "-1\t1.5\t2\t3e-1\n7\t0\t-0.5\t1\n2\t1\t1\t1\n"
    write_ucr(tmp_path, train, "7\t4\t5\t6\r\n-1\t0\t0\t0\r\n")
    splits = ucr.load(tmp_path, "Toy", valid=0)
    assert splits.valid is splits.test
    assert [(x.tolist(), int(y)) for x, y in examples(splits.train)] == [
        ([[1.5, 2, np.float32(0.3)]], 0),
        ([[0, -0.5, 1]], 2),
        ([[1, 1, 1]], 1),
    ]
    assert [(x.tolist(), int(y)) for x, y in examples(splits.test)] == [
        ([[4, 5, 6]], 2),
        ([[0, 0, 0]], 0),
    ]
    x, y = splits.train[0]
    assert x.dtype == np.float32 and y.dtype == np.int32


def test_missing_values_and_shorter_series(tmp_path):
    rows = ("1\t1\tNaN\tNaN\t4", "1\tNaN\t2\t3\tNaN", "2\t1\t2\tNaN\tNaN", "2\t5\tNaN\t7\tNaN")
    write_ucr(tmp_path, "\n".join(rows), rows[0])
    splits = ucr.load(tmp_path, "Toy", valid=0)
    found = [x[0].tolist() for x, _ in examples(splits.train)]
    assert found == [[1, 2, 3, 4], [2, 2, 3, 0], [1, 2, 0, 0], [5, 6, 7, 0]]
    normal = ucr.load(tmp_path, "Toy", valid=0, normalise=True).train
    r = np.sqrt(5)
    np.testing.assert_allclose(normal[0][0][0], [-3 / r, -1 / r, 1 / r, 3 / r], rtol=1e-6)
    # What is beyond a series has no part in its mean.
    np.testing.assert_allclose(normal[2][0][0], [-1, 1, 0, 0], rtol=1e-6)


def test_a_constant_series(tmp_path):
    write_ucr(tmp_path, "1\t3\t3\n", "1\t3\t3\n")
    assert ucr.load(tmp_path, "Toy", valid=0, normalise=True).train[0][0].tolist() == [[0, 0]]


def test_ucr_to_choose_by(tmp_path):
    rows = "".join(f"1\t{i}\t0\n" for i in range(20))
    write_ucr(tmp_path, rows, rows)
    load = lambda **kwargs: ucr.load(tmp_path, "Toy", **kwargs)
    splits = load()
    held = [x[0, 0] for x, _ in examples(splits.valid)]
    assert len(held) == 2 and len(splits.train) == 18
    assert sorted(held + [x[0, 0] for x, _ in examples(splits.train)]) == list(range(20))
    assert [x[0, 0] for x, _ in examples(load(seed=1).valid)] != held
    assert next(batches(splits.train, 6, seed=0, process=(0, 1)))[0].shape == (6, 1, 2)


@pytest.mark.parametrize(
    "train, test, message",
    (
        ("1\t2\t3\n1\t2\n", "1\t2\t3", "TRAIN.tsv, line 2 has 2 columns, line 1 3"),
        ("1\t2\t3\n", "1\t2", "has 3 columns to train and 2 to test"),
        ("1\t2\tx\n", "1\t2\t3", "TRAIN.tsv, line 1: could not convert.*x"),
        ("1\n", "1", "TRAIN.tsv, line 1 has 1 columns"),
        ("", "1\t2", "TRAIN.tsv is empty"),
        ("1\t2\n\n", "1\t2", "TRAIN.tsv, line 2"),
        ("1\tNaN\tNaN\n", "1\t2\t3", "has a series without any value"),
        ("NaN\t1\t2\n", "1\t2\t3", "has the label nan, no number"),
        ("1\tinf\t2\n", "1\t2\t3", "has an infinite value"),
        ("1\t2\n2\t2\n", "1\t2\n3\t2\n", r"TEST.tsv has the labels \[.*3.0.*\]"),
    ),
)
def test_damaged_ucr(tmp_path, train, test, message):
    write_ucr(tmp_path, train, test)
    with pytest.raises(ValueError, match=message):
        ucr.load(tmp_path, "Toy")


def test_ucr_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="FordA_TRAIN.tsv.*cs.ucr.edu"):
        ucr.load(tmp_path, "FordA")
    with pytest.raises(ValueError, match="`name` must be that of a data set"):
        ucr.load(tmp_path, "../FordA")
    with pytest.raises(ValueError, match="`valid` must be at least 0 and below 1"):
        ucr.load(tmp_path, "FordA", valid=1.0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs sample data")
def test_real_ucr(tmp_path):
    with np.load(SHARED / "ucr_ElectricDevices.npz") as file:
        x, y = file["x_train"][:400], file["y_train"][:400]
    rows = [
        "\t".join([str(int(label)), *map(repr, map(float, row))]) for row, label in zip(x, y)
    ]
    write_ucr(tmp_path, "\n".join(rows), "\n".join(rows[:50]))
    splits = ucr.load(tmp_path, "Toy", valid=0)
    found = np.stack([x[0] for x, _ in examples(splits.train)])
    assert np.array_equal(found, x.reshape(400, 96).astype(np.float32))
    assert [int(k) for _, k in examples(splits.train)] == np.unique(y, return_inverse=True)[
        1
    ].tolist()


#
# Darcy.
#


def fields(n: int, size: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    coeff = np.where(rng.random((n, size, size)) < 0.5, 3.0, 12.0)
    sol = rng.normal(size=(n, size, size)) * np.linspace(1e-4, 1, size)
    return {"coeff": coeff, "sol": sol}


def write_darcy(folder: Path, **changes) -> list[dict[str, np.ndarray]]:
    parts = [fields(14, 21, 0) | changes, fields(6, 21, 1)]
    for name, part in zip(darcy.FILES, parts):
        scipy.io.savemat(folder / name, part)
    return parts


SIZES = (8, 4, 5)


def test_darcy(tmp_path):
    learn, test = write_darcy(tmp_path)
    splits, normaliser = darcy.load(tmp_path, sizes=SIZES)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [8, 4, 5]
    mean, std = (
        [f(learn[name][:8, ::5, ::5]) for name in ("coeff", "sol")]
        for f in (lambda a: a.mean(0), lambda a: a.std(0, ddof=1) + 1e-5)
    )
    chosen = ((splits.train, learn, 0), (splits.valid, learn, 8), (splits.test, test, 0))
    for split, part, start in chosen:
        for i, (x, y) in enumerate(examples(split)):
            coeff, sol = (part[name][start + i, ::5, ::5] for name in ("coeff", "sol"))
            assert x.shape == (3, 5, 5) and y.shape == (1, 5, 5)
            assert x.dtype == y.dtype == np.float32
            np.testing.assert_allclose(x[0], (coeff - mean[0]) / std[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(y[0], (sol - mean[1]) / std[1], rtol=1e-4, atol=1e-5)
            # Columns first, as `meshgrid` has them.
            assert x[1].tolist() == [[0, 0.25, 0.5, 0.75, 1]] * 5
            assert x[2].tolist() == x[1].T.tolist()
            for array in (y, jnp.asarray(y)):
                decoded = normaliser.decode(array)
                assert decoded.dtype == np.float32
                np.testing.assert_allclose(decoded[0], sol, rtol=1e-4, atol=1e-5)
    train = np.stack([y for _, y in examples(splits.train)])
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    assert np.all(train.std(0, ddof=1) < 1)  # by the 1e-5


def test_whole_numbers_are_real(tmp_path):
    # MATLAB writes 3 and 12 as bytes when it compresses; SciPy gives what was written.
    learn, _ = write_darcy(tmp_path)
    wanted, _ = darcy.load(tmp_path, sizes=SIZES)
    write_darcy(tmp_path, coeff=learn["coeff"].astype(np.uint8))
    found, _ = darcy.load(tmp_path, sizes=SIZES)
    for (x, _), (x_, _) in zip(examples(found.train), examples(wanted.train)):
        assert np.array_equal(x, x_)


def test_the_whole_grid(tmp_path):
    write_darcy(tmp_path)
    splits, _ = darcy.load(tmp_path, every=1, sizes=SIZES)
    assert splits.train[0][0].shape == (3, 21, 21)
    x, y = next(batches(splits.train, 4, seed=0, process=(0, 1)))
    assert x.shape == (4, 3, 21, 21) and y.shape == (4, 1, 21, 21)


@pytest.mark.parametrize(
    "changes, kwargs, message",
    (
        (
            {"sol": np.zeros((14, 21, 20))},
            {},
            r"sol of .*smooth1.mat is an array \(14, 21, 20\)",
        ),
        ({"sol": np.zeros((14, 21))}, {}, r"is an array \(14, 21\)"),
        ({"sol": np.zeros((14, 21, 21)) * 1j}, {}, "complex"),
        ({"sol": np.zeros((11, 21, 21))}, {}, "has 11 examples, not 12"),
        ({"sol": np.zeros((14, 16, 16))}, {}, r"are \(12, 5, 5\), \(12, 4, 4\)"),
        ({"sol": np.full((14, 21, 21), np.nan)}, {}, "sol of .* is not finite"),
        ({}, {"every": 3}, "`every` must divide 20"),
        ({}, {"every": 0}, "`every` must divide 20"),
        ({}, {"sizes": (1, 1, 1)}, "`sizes` must be at least 2, 1 and 1"),
        ({}, {"sizes": (8, 4, 7)}, "smooth2.mat has 6 examples, not 7"),
    ),
)
def test_damaged_darcy(tmp_path, changes, kwargs, message):
    write_darcy(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        darcy.load(tmp_path, **{"sizes": SIZES} | kwargs)


def test_darcy_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="smooth1.mat.*pde-xd.s3"):
        darcy.load(tmp_path)
    write_darcy(tmp_path)
    path = tmp_path / darcy.FILES[0]
    content = path.read_bytes()
    for damaged in (content[: len(content) // 3], content[:50], b"", b"<html>" * 100):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="smooth1.mat (is no MATLAB file|has no)"):
            darcy.load(tmp_path, sizes=SIZES)
    scipy.io.savemat(path, {"other": np.zeros(3)})
    with pytest.raises(ValueError, match="smooth1.mat has no coeff"):
        darcy.load(tmp_path, sizes=SIZES)


HEADER = b"MATLAB 7.3 MAT-file".ljust(116) + bytes(8) + b"\x00\x02IM"


def test_matlab_73_without_h5py(tmp_path, monkeypatch):
    write_darcy(tmp_path)
    (tmp_path / darcy.FILES[0]).write_bytes(HEADER.ljust(600, b"\0"))
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(
        ImportError, match="smooth1.mat is a file of MATLAB 7.3, which takes h5py"
    ):
        darcy.load(tmp_path, sizes=SIZES)


def test_matlab_73(tmp_path):
    import h5py

    learn, _ = write_darcy(tmp_path)
    wanted, _ = darcy.load(tmp_path, sizes=SIZES)
    path = tmp_path / darcy.FILES[0]
    with h5py.File(path, "w", userblock_size=512) as file:
        for name in ("coeff", "sol"):
            file[name] = learn[name].T
    with path.open("r+b") as file:
        file.write(HEADER)
    found, _ = darcy.load(tmp_path, sizes=SIZES)
    for a, b in zip(examples(found.train), examples(wanted.train)):
        assert all(np.array_equal(*pair) for pair in zip(a, b))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="smooth1.mat is no MATLAB file, or a damaged one"):
        darcy.load(tmp_path, sizes=SIZES)
    path.write_bytes(content)
    with h5py.File(path, "a") as file:
        del file["sol"]
    with pytest.raises(ValueError, match="smooth1.mat has no sol"):
        darcy.load(tmp_path, sizes=SIZES)


#
# Cosmic.
#


def frame(seed: int, layers: int = 3, size: int = 256) -> np.ndarray:
    rng = np.random.default_rng(seed)
    masks = rng.random((2, size, size)) < 0.1
    return np.stack([rng.normal(100, 30, size=(size, size)), *masks])[:layers].astype(
        np.float32
    )


def write_cosmic(folder: Path) -> dict[str, list[Path]]:
    """The frames that count, in the order of their names."""
    found = {"train": [], "test": []}
    for part, field, number, layers in (
        ("train", "f435w/10760/2", 10, 3),
        ("train", "f435w/9490/a3", 5, 2),
        ("train", "f435w/10595/2", 2, 3),  # a globular cluster
        ("train", "f606w/10760/2", 2, 3),  # another filter
        ("test", "f435w/10342/3", 4, 3),
    ):
        visit = folder / f"npy_{part}" / field
        visit.mkdir(parents=True)
        np.save(visit / "sky.npy", 10.0 * np.arange(1, 4))
        for i in range(number):
            path = visit / f"{i % 3 + 1}_{i}.npy"
            np.save(path, frame(len(field) * 100 + i, layers))
            if "f435w" in field and "10595" not in field:
                found[part].append(path)
    (folder / "npy_train/f435w/9490/a3/sky.npy").unlink()
    return {part: sorted(paths) for part, paths in found.items()}


def test_cosmic(tmp_path):
    paths = write_cosmic(tmp_path)
    splits = cosmic.load(tmp_path, counts=None)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [13, 2, 4]
    order = _source.permutation(15, 42)
    read = [*examples(splits.train), *examples(splits.valid), *examples(splits.test)]
    wanted = [*(paths["train"][k] for k in order), *paths["test"]]
    for (x, y), path in zip(read, wanted, strict=True):
        content = np.load(path)
        assert x.shape == (1, 128, 128) and y.shape == (2, 128, 128)
        assert x.dtype == y.dtype == np.float32
        assert np.array_equal(x[0], content[0, 64:192, 64:192])
        assert np.array_equal(y[0], content[1, 64:192, 64:192])
        ignored = content[2, 64:192, 64:192] if len(content) == 3 else np.zeros((128, 128))
        assert np.array_equal(y[1], ignored)


def test_skies(tmp_path):
    paths = write_cosmic(tmp_path)
    plain, splits = (
        cosmic.load(tmp_path, counts=None),
        cosmic.load(tmp_path, sky=True, counts=None),
    )
    order = _source.permutation(15, 42)
    factors = {}
    data = batches(
        splits.train,
        13,
        seed=0,
        epochs=2,
        shuffle=False,
        process=(0, 1),
        transform=cosmic.brighten,
    )
    for epoch, (x, y) in enumerate(data):
        assert x.shape == (13, 1, 128, 128) and y.shape == (13, 2, 128, 128)
        assert x.dtype == np.float32
        for i in range(13):
            path, (dark, _) = paths["train"][order[i]], plain.train[i]
            sky = 0 if "a3" in path.parts else 10.0 * int(path.name[0])
            added = np.unique(np.round(x[i] - dark, 2))
            assert np.ptp(added) < 0.05
            if sky:
                factors[epoch, i] = added[0] / sky
            else:
                assert added.tolist() == [0]
    assert len(set(factors.values())) == len(factors) > 10
    assert min(factors.values()) > -0.91 and max(factors.values()) < 3.01
    assert max(factors.values()) - min(factors.values()) > 1.5
    # To choose by and to test, a frame always has the same sky, but its own.
    again = cosmic.load(tmp_path, sky=True, counts=None)
    added = []
    for a, b, c in zip(examples(splits.test), examples(again.test), examples(plain.test)):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[1], c[1])
        added.append(float(np.mean(a[0] - c[0])))
    assert len({round(a, 3) for a in added}) == 4


def test_standardise():
    x = np.random.default_rng(0).normal(5, 3, size=(4, 1, 8, 8)).astype(np.float32)
    x[0] += 100  # a brighter sky remains brighter
    for array in (x, jnp.asarray(x)):
        y = np.asarray(cosmic.standardise(array))
        np.testing.assert_allclose([y.mean(), y.std()], [0, 1], atol=1e-5)
        assert y[0].mean() > 1 and y.dtype == np.float32


def saved(array: np.ndarray, **kwargs) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def zipped(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, message",
    (
        (saved(frame(0))[:1000], "is no array, or a damaged one"),
        (b"", "is no array, or a damaged one"),
        (b"\x80\x04N.", "is no array, or a damaged one"),
        (saved(np.array([print], object), allow_pickle=True), "is no array, or a damaged one"),
        (saved(frame(0, 1)), r"has an array \(1, 256, 256\), not two or three"),
        (saved(frame(0, size=190)), r"\(3, 190, 190\)"),
        (saved(frame(0)[0]), r"has an array \(256, 256\)"),
        (saved(frame(0) * 2), "has 2.0 in a mask, not 0 or 1"),
        (saved(frame(0) * np.nan), "a frame that is not finite"),
        (zipped(frame(0)), "is an archive of arrays, not one"),
        (zipped(frame(0))[:1000], "is no array, or a damaged one"),
    ),
)
def test_damaged_frames(tmp_path, content, message):
    paths = write_cosmic(tmp_path)
    splits = cosmic.load(tmp_path, counts=None)
    paths["test"][2].write_bytes(content)
    splits.test[1]
    with pytest.raises(ValueError, match=f"{paths['test'][2].name} .*{message}"):
        splits.test[2]


def test_damaged_skies(tmp_path):
    path = write_cosmic(tmp_path)["test"][0]
    split = cosmic.load(tmp_path, sky=True, counts=None).test
    np.save(path.with_name("sky.npy"), np.zeros(0))
    with pytest.raises(ValueError, match=r"sky.npy, an array \(0,\), has no level for 1_0.npy"):
        split[0]
    np.save(path.with_name("sky.npy"), np.full(9, np.inf))
    with pytest.raises(ValueError, match="sky.npy has the level inf for 1_0.npy"):
        split[0]


def test_cosmic_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="Unpack deepCR.ACS-WFC.train.tar from https"):
        cosmic.load(tmp_path, counts=None)
    write_cosmic(tmp_path)
    with pytest.raises(ValueError, match="npy_train has 15 examples, not the 4,830 that were"):
        cosmic.load(tmp_path)
    (tmp_path / "npy_test/f435w").rename(tmp_path / "npy_test/f814w")
    with pytest.raises(FileNotFoundError, match="Unpack deepCR.ACS-WFC.test.tar"):
        cosmic.load(tmp_path, counts=None)
