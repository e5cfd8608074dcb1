import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
import scipy.sparse.linalg
from scipy.interpolate import CubicSpline

from recipes.data import darcy as loader, generate_darcy as darcy
from recipes.data.generate_darcy import Spec


SMALL = Spec(size=21)


def directly(coefficient: np.ndarray, force: np.ndarray) -> np.ndarray:
    """The same equations, put together point by point and solved by elimination."""
    size = len(coefficient)
    number = lambda i, j: (i - 1) * (size - 2) + j - 1
    entries, right = {}, np.zeros((size - 2) ** 2)
    for i in range(1, size - 1):
        for j in range(1, size - 1):
            right[number(i, j)] = force[i, j]
            for k, l in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                face = (coefficient[i, j] + coefficient[k, l]) / 2 * (size - 1) ** 2
                here = number(i, j)
                entries[here, here] = entries.get((here, here), 0.0) + face
                if 0 < k < size - 1 and 0 < l < size - 1:
                    entries[here, number(k, l)] = -face
    rows, columns = np.array(list(entries)).T
    matrix = sp.csc_array((list(entries.values()), (rows, columns)))
    u = np.zeros((size, size))
    inner = np.asarray(scipy.sparse.linalg.spsolve(matrix, right))
    u[1:-1, 1:-1] = inner.reshape(size - 2, size - 2)
    return u


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    line = np.linspace(0, 1, size)
    return line[:, None], line[None]


#
# The field.
#


def test_variance_of_the_field():
    """Against the sum over its waves, point by point, and between two points."""
    size, n, alpha, tau = 12, 6000, 2.0, 3.0
    rng = np.random.default_rng(0)
    fields = np.stack([darcy.field(rng, size, alpha=alpha, tau=tau) for _ in range(n)])
    points = (np.arange(size) + 0.5) / size
    wanted = np.zeros((size,) * 4)
    for k in range(size):
        for l in range(size):
            if k or l:
                share = tau ** (2 * alpha - 2) * (np.pi**2 * (k**2 + l**2) + tau**2) ** -alpha
                a = np.cos(np.pi * k * points) * (2**0.5 if k else 1)
                b = np.cos(np.pi * l * points) * (2**0.5 if l else 1)
                wave = a[:, None] * b
                wanted += share * wave[:, :, None, None] * wave
    got = np.einsum("nij,nkl->ijkl", fields, fields) / n
    scale = np.sqrt(np.einsum("ijij->ij", wanted))
    scale = scale[:, :, None, None] * scale
    assert np.max(np.abs(got - wanted) / scale) < 5.5 * (2 / n) ** 0.5
    assert np.max(np.abs(fields.mean(axis=(1, 2)))) < 1e-12  # no constant part


def test_the_field_is_what_it_is_on_finer_grids():
    """Its deviation does not depend on the grid: published 0.27."""
    for size in (40, 160):
        rng = np.random.default_rng(1)
        fields = np.stack([darcy.field(rng, size) for _ in range(60)])
        assert fields.std() == pytest.approx(0.27, abs=0.04)
        assert np.mean(fields > 0) == pytest.approx(0.5, abs=0.02)
        # Neumann: it is flat across the border, more than along it.
        across = np.diff(fields[:, :2], axis=1).std() * size
        along = np.diff(fields[:, :1], axis=2).std() * size
        assert across < 0.7 * along


def test_coefficients():
    cells = darcy.coefficient(np.random.default_rng(3), SMALL)
    normal = darcy.field(np.random.default_rng(3), 21)
    assert np.array_equal(cells, np.where(normal < 0, 3.0, 12.0))
    lognormal = darcy.coefficient(np.random.default_rng(3), Spec(size=21, lognormal=True))
    assert np.allclose(np.log(lognormal), normal)


#
# The equation.
#


def test_against_elimination():
    rng = np.random.default_rng(0)
    for size in (3, 4, 17):
        coefficient = rng.uniform(0.1, 10.0, size=(size, size))
        force = rng.normal(size=(size, size))
        got, wanted = darcy.solve(coefficient, force), directly(coefficient, force)
        assert np.max(np.abs(got - wanted)) < 1e-8 * np.max(np.abs(wanted))


def test_second_order():
    """Where the solution is `sin(pi x) sin(2 pi y)` and the coefficient `2 + x y`."""

    def error(size: int) -> float:
        x, y = grid(size)
        pi = np.pi
        u = np.sin(pi * x) * np.sin(2 * pi * y)
        over_x = pi * np.cos(pi * x) * np.sin(2 * pi * y)
        over_y = 2 * pi * np.sin(pi * x) * np.cos(2 * pi * y)
        force = 5 * pi**2 * (2 + x * y) * u - y * over_x - x * over_y
        return np.abs(darcy.solve(2 + x * y, force) - u).max()

    errors = [error(size) for size in (17, 33, 65, 129)]
    assert errors[-1] < 2e-4
    for coarse, fine in zip(errors, errors[1:]):
        assert np.log2(coarse / fine) == pytest.approx(2, abs=0.06)


def test_a_constant_coefficient():
    """The pressure in the middle of the square is 0.0736713 over the coefficient."""
    u = darcy.solve(np.full((101, 101), 4.0))
    assert u[50, 50] == pytest.approx(0.0736713 / 4, rel=2e-4)
    for other in (u.T, u[::-1], u[:, ::-1]):
        assert np.max(np.abs(u - other)) < 1e-10
    assert u.argmax() == 50 * 101 + 50


def test_bounds():
    rng = np.random.default_rng(4)
    coefficient = np.where(rng.random((33, 33)) < 0.5, 3.0, 12.0)
    u = darcy.solve(coefficient)
    border = np.concatenate([u[0], u[-1], u[:, 0], u[:, -1]])
    assert np.all(border == 0) and np.all(u[1:-1, 1:-1] > 0)
    # The work done is between what it is where everything is the one or the other.
    least, most = (darcy.solve(np.full((33, 33), a)).mean() for a in (12.0, 3.0))
    assert least < u.mean() < most
    # Twice the coefficient, half the pressure.
    assert np.allclose(darcy.solve(2 * coefficient), u / 2, rtol=1e-8)


@pytest.mark.parametrize(
    "coefficient, message",
    (
        (np.ones((3, 4)), r"must be square .* got \(3, 4\)"),
        (np.ones((2, 2)), r"at least 3 points wide, got \(2, 2\)"),
        (np.zeros((3, 3)), "must be positive, got 0.0"),
        (np.full((3, 3), np.nan), "must be positive, got nan"),
    ),
)
def test_solve_errors(coefficient, message):
    with pytest.raises(ValueError, match=message):
        darcy.solve(coefficient)


#
# Examples.
#


def test_the_published_procedure():
    """From the middles of cells to corners by splines, and back."""
    spec = Spec(size=31)
    for seed in range(3):
        cells, pressure = darcy.generate(np.random.default_rng(seed), spec)
        middles, corners = (np.arange(31) + 0.5) / 31, np.linspace(0, 1, 31)

        def carried(a, given, wanted):
            for axis in (0, 1):
                a = CubicSpline(given, a, axis=axis, bc_type="not-a-knot")(wanted)
            return a

        on_corners = carried(cells, middles, corners)
        u = directly(on_corners, np.ones((31, 31)))
        wanted = carried(u, corners, middles)
        assert np.max(np.abs(pressure - wanted)) < 1e-7 * np.max(wanted)
        assert set(np.unique(cells)) <= {3.0, 12.0}


def test_axes():
    """Pressure is high where the coefficient is low, and not where that is transposed."""
    pairs = [darcy.generate(np.random.default_rng(i), SMALL) for i in range(40)]
    low = np.stack([cells == 3 for cells, _ in pairs])
    pressure = np.stack([u for _, u in pairs])
    centred = [a - a.mean(axis=0) for a in (low, pressure)]
    alike = np.mean(centred[0] * centred[1])
    assert alike > 1.5 * abs(np.mean(centred[0] * centred[1].transpose(0, 2, 1)))


def test_steps_do_not_grow_with_the_grid(monkeypatch):
    steps, transform = [], scipy.fft.dstn
    counted = lambda *args, **kwargs: steps.append(0) or transform(*args, **kwargs)
    monkeypatch.setattr(scipy.fft, "dstn", counted)
    counts = []
    for size in (41, 161):
        steps.clear()
        darcy.generate(np.random.default_rng(0), Spec(size=size))
        counts.append(len(steps) / 2)
    assert max(counts) < 45


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"size": 4}, "`size` must be at least 5, got 4"),
        ({"alpha": 0.0}, "`alpha` must be positive, got 0.0"),
        ({"low": -1.0}, "`low` must be positive, got -1.0"),
    ),
)
def test_spec_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Spec(**arguments)


#
# Sources and files.
#


def test_source():
    source = darcy.source(2, 4, SMALL, every=5)
    x, y = source[3]
    cells, pressure = darcy.generate(np.random.default_rng((2, 3)), SMALL)
    assert x.shape == y.shape == (1, 5, 5) and x.dtype == y.dtype == np.float32
    assert np.array_equal(x[0], cells[::5, ::5])
    assert np.allclose(y[0], pressure[::5, ::5])
    assert np.array_equal(darcy.splits(2, (2, 1, 1), SMALL).test[0][1], y)
    with pytest.raises(ValueError, match="`every` must divide 20, got 3"):
        darcy.source(0, 1, SMALL, every=3)


def test_work_is_taken_up_again(tmp_path, monkeypatch):
    darcy.store(tmp_path, 2, 5, SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(before) == ["0.npz", "1.npz", "settings.json"]
    made, generate = [], darcy.generate
    monkeypatch.setattr(darcy, "generate", lambda *args: made.append(0) or generate(*args))
    (tmp_path / "2.part").write_bytes(b"half of it")  # broken off
    darcy.store(tmp_path, 4, 5, SMALL)
    assert len(made) == 2 and len(list(tmp_path.iterdir())) == 5
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content
    with np.load(tmp_path / "3.npz", allow_pickle=False) as file:
        cells, pressure = generate(np.random.default_rng((5, 3)), SMALL)
        assert np.array_equal(file["coeff"], cells) and np.array_equal(file["sol"], pressure)
    for seed, spec in ((6, SMALL), (5, Spec(size=25))):
        with pytest.raises(ValueError, match="has examples of .*'seed': 5.*, not of"):
            darcy.store(tmp_path, 1, seed, spec)


def test_write(tmp_path):
    darcy.write(tmp_path, (3, 2), 5, SMALL)
    files = [tmp_path / f"piececonst_r21_N{n}_smooth{k}.mat" for n, k in ((3, 1), (2, 2))]
    assert {path.suffix for path in tmp_path.iterdir()} == {"", ".mat"}
    read = [scipy.io.loadmat(path) for path in files]
    i = 0
    for file, n in zip(read, (3, 2)):
        assert file["coeff"].shape == file["sol"].shape == (n, 21, 21)
        for coeff, sol in zip(file["coeff"], file["sol"]):
            cells, pressure = darcy.generate(np.random.default_rng((5, i)), SMALL)
            assert np.array_equal(coeff, cells) and np.array_equal(sol, pressure)
            i += 1
    with pytest.raises(FileExistsError, match="smooth1.mat is there already"):
        darcy.write(tmp_path, (3, 2), 5, SMALL)


def test_the_loader_reads_what_is_written(tmp_path):
    darcy.write(tmp_path, (6, 3), 5, SMALL)
    for number, name in ((1, loader.FILES[0]), (2, loader.FILES[1])):
        (path,) = tmp_path.glob(f"*smooth{number}.mat")
        path.rename(tmp_path / name)
    splits, normaliser = loader.load(tmp_path, every=5, sizes=(4, 2, 3))
    made = darcy.source(5, 9, SMALL)
    for split, start in ((splits.train, 0), (splits.valid, 4), (splits.test, 6)):
        for i in range(len(split)):
            got = normaliser.decode(split[i][1])
            assert np.allclose(got, made[start + i][1], atol=1e-6)
