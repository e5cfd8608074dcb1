import dataclasses
import itertools as it

import jax
import numpy as np
import pytest

from recipes.data import _source, Arrays, batches, Images, Source, Subset


def numbered(n: int) -> Arrays:
    """Examples that say which they are."""
    x = {"a": np.arange(n, dtype=np.float32)[:, None] * np.ones(3, np.float32)}
    return Arrays(x, np.arange(n, dtype=np.int32))


def read(n: int, size: int, **kwargs) -> list[list[int]]:
    kwargs = {"seed": 0, "epochs": 1, "process": (0, 1)} | kwargs
    found = []
    for x, y in batches(numbered(n), size, **kwargs):
        assert isinstance(y, np.ndarray) and y.dtype == np.int32 and x["a"].dtype == np.float32
        assert x["a"].shape == (len(y), 3) and np.array_equal(x["a"][:, 1], y)
        found.append(y.tolist())
    return found


def flat(found: list[list[int]]) -> list[int]:
    return list(it.chain(*found))


#
# Batches.
#


@pytest.mark.parametrize("threads, ahead", ((0, 0), (1, 0), (2, 4), (5, 1)))
def test_batches_in_order(threads, ahead):
    found = read(10, 4, shuffle=False, threads=threads, ahead=ahead, epochs=2)
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2
    kept = read(10, 4, shuffle=False, drop_last=False, threads=threads, ahead=ahead, epochs=2)
    assert kept == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]] * 2


def test_every_epoch_is_another_shuffle_of_everything():
    found = read(60, 5, epochs=4)
    epochs = [flat(found[i : i + 12]) for i in range(0, 48, 12)]
    assert all(sorted(epoch) == list(range(60)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert list(range(60)) not in epochs


def test_the_seed_says_it_all():
    assert read(50, 7, epochs=3, threads=0) == read(50, 7, epochs=3, threads=4, ahead=9)
    assert read(50, 7, seed=1) != read(50, 7, seed=2)


@dataclasses.dataclass(frozen=True)
class OneByOne:
    """A source that gives no two examples at once."""

    source: Source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.source[index]


@pytest.mark.parametrize("process", ((0, 1), (1, 2)))
@pytest.mark.parametrize("shuffle", (True, False))
def test_batches_at_once_are_those_of_one_by_one(shuffle, process):
    rng = np.random.default_rng(0)
    pixels = rng.integers(256, size=(23, 3, 4, 5), dtype=np.uint8)
    images = Images(pixels, rng.integers(9, size=23), np.array([0.4, 0.5, 0.6]), np.ones(3) / 4)
    for source in (images, numbered(31), Subset(images, np.array([7, 3, 3, 0, 22]))):
        found, expected = (
            list(batches(s, 2, seed=3, epochs=2, shuffle=shuffle, process=process))
            for s in (source, OneByOne(source))
        )
        assert len(found) == len(expected) > 1
        for batch, other in zip(found, expected):
            jax.tree.map(np.testing.assert_array_equal, batch, other)
            assert jax.tree.map(lambda a: a.dtype, batch) == jax.tree.map(
                lambda a: a.dtype, other
            )


def test_without_end():
    data = batches(numbered(5), 2, seed=0, process=(0, 1))
    for _ in range(3):
        epoch = [*next(data)[1], *next(data)[1]]
        assert len(set(epoch)) == 4  # no epoch reaches into the next


@pytest.mark.parametrize("n, count", ((24, 3), (26, 3), (31, 4), (8, 1)))
@pytest.mark.parametrize("shuffle", (False, True))
def test_processes_share_everything(n, count, shuffle):
    kwargs = {"shuffle": shuffle, "drop_last": False, "epochs": 2}
    parts = [read(n, 3, process=(i, count), **kwargs) for i in range(count)]
    assert len({tuple(map(len, part)) for part in parts}) == 1
    half = len(parts[0]) // 2
    left_out = []
    for epoch in (slice(half), slice(half, None)):
        read_by = [flat(part[epoch]) for part in parts]
        assert {len(examples) for examples in read_by} == {n // count}
        assert len(set(flat(read_by))) == count * (n // count)
        left_out.append(set(range(n)) - set(flat(read_by)))
    if shuffle and n % count:
        assert left_out[0] != left_out[1]


def test_processes_are_jax_by_default():
    source = numbered(12)
    assert [y.tolist() for _, y in batches(source, 4, seed=3, epochs=1)] == read(12, 4, seed=3)


@pytest.mark.parametrize("stop", (0, 1, 5, 8, 13, 15))
@pytest.mark.parametrize("threads", (0, 3))
def test_checkpoints(stop, threads):
    make = lambda start=0: batches(
        numbered(21),
        4,
        seed=7,
        epochs=3,
        process=(0, 1),
        transform=noisy,
        start=start,
        threads=threads,
    )
    whole = list(make())
    assert len(whole) == 15
    first = make()
    for _ in range(stop):
        next(first)
    state = first.get_state()
    # Neither going on nor another position changes what a state means.
    for _ in range(min(2, 15 - stop)):
        next(first)
    second = make()
    next(second)
    second.set_state(state)
    for rest in (list(second), list(make(start=stop))):
        assert len(rest) == 15 - stop
        for (x, y), (x_, y_) in zip(rest, whole[stop:]):
            assert np.array_equal(x, x_) and np.array_equal(y, y_)


def noisy(example, rng):
    x, y = example
    return x["a"] + rng.normal(size=3).astype(np.float32), y


def test_transforms_have_their_own_randomness():
    draw = lambda seed=0, threads=2: {
        (epoch, int(y)): float(x[0] - y)
        for epoch, batch in enumerate(
            batches(numbered(6), 6, seed=seed, epochs=3, transform=noisy, threads=threads)
        )
        for x, y in zip(*batch)
    }
    noise = draw()
    assert len(noise) == 18 and len(set(noise.values())) == 18
    assert draw() == noise == draw(threads=0)
    assert not set(draw(seed=1).values()) & set(noise.values())


def test_transforms_of_processes_differ():
    noise = []
    for i in range(2):
        for x, y in batches(numbered(8), 4, seed=0, epochs=2, process=(i, 2), transform=noisy):
            noise += (x[:, 0] - y).tolist()
    assert len(noise) == len(set(noise)) == 16


def test_workers_change_nothing():
    source = numbered(20)
    kwargs = {"seed": 4, "epochs": 2, "process": (0, 1), "transform": noisy}
    alone = list(batches(source, 3, **kwargs))
    shared = batches(source, 3, workers=2, **kwargs)
    found = [next(shared) for _ in range(5)]
    state = shared.get_state()
    rest = list(shared)
    shared.set_state(state)
    # With any number of workers from where one left off.
    for again in (rest, list(shared), list(batches(source, 3, start=5, workers=3, **kwargs))):
        together = [*found, *again]
        assert len(together) == len(alone)
        for (x, y), (x_, y_) in zip(together, alone):
            assert np.array_equal(x, x_) and np.array_equal(y, y_)


@pytest.mark.parametrize(
    "kwargs, message",
    (
        ({"batch_size": 0}, "`batch_size` must be positive, got 0"),
        ({"batch_size": 11}, "10 examples over 1 processes are no batch of 11"),
        ({"process": (2, 2)}, "`process` must be an index and a larger count, got 2 and 2"),
        ({"process": (0, 4)}, "10 examples over 4 processes are no batch of 4"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"seed": 2**32}, "`seed` must be from 0"),
        ({"epochs": 0}, "`epochs` must be positive or `None`, got 0"),
        ({"threads": -1}, "must not be negative, got 0, -1, 4 and 0"),
        ({"start": -1}, "must not be negative, got -1, 1, 4 and 0"),
    ),
)
def test_errors(kwargs, message):
    kwargs = {"batch_size": 4, "seed": 0, "process": (0, 1)} | kwargs
    with pytest.raises(ValueError, match=message):
        batches(numbered(10), **kwargs)


#
# Sources.
#


def test_images():
    pixels = np.random.default_rng(0).integers(256, size=(5, 2, 3, 4)).astype(np.uint8)
    mean, std = np.array([0.4, 0.6]), np.array([0.2, 0.3])
    source = Images(pixels, np.arange(5, dtype=np.int32), mean, std)
    assert len(source) == 5
    x, y = source[3]
    wanted = (pixels[3].astype(float) / 255 - mean[:, None, None]) / std[:, None, None]
    assert x.dtype == np.float32 and y.dtype == np.int32 and y == 3
    np.testing.assert_allclose(x, wanted, atol=1e-6)


def test_lengths_of_arrays():
    with pytest.raises(ValueError, match=r"hold \[2, 3\] examples"):
        Arrays((np.zeros((3, 1)), np.zeros((3, 2))), np.zeros(2))


def test_a_subset():
    part = Subset(numbered(9), np.array([7, 2]))
    assert len(part) == 2 and [y for _, y in (part[0], part[1])] == [7, 2]


@pytest.mark.parametrize(
    "n, seed, first",
    (
        # Of `torch.randperm(n, generator=torch.Generator().manual_seed(seed))`, torch 2.13.
        (10, 0, [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]),
        (10, 42, [2, 6, 1, 8, 4, 5, 0, 9, 3, 7]),
        (50_000, 42, [37542, 44491, 216, 43688, 41558, 32245, 27206, 10863, 2190, 31849]),
        (200_000, 42, [37542, 143173, 127710, 58234, 152906, 31060, 95762, 141650, 121758]),
        (60_000, 7, [21615, 50166, 37383, 3791, 38823, 45497, 50045, 50591, 33124, 43229]),
    ),
)
def test_permutations_are_those_of_pytorch(n, seed, first):
    order = _source.permutation(n, seed)
    assert order[: len(first)].tolist() == first
    assert np.array_equal(np.sort(order), np.arange(n))


def test_permutations_of_pytorch_itself():
    torch = pytest.importorskip("torch")
    for n, seed in ((0, 0), (1, 0), (2, 3), (1000, 5)):
        wanted = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        assert np.array_equal(_source.permutation(n, seed), wanted.numpy())


def test_splits():
    parts = _source.random_split(numbered(10), (7, 0, 3), 42)
    assert [[int(part[i][1]) for i in range(len(part))] for part in parts] == [
        [2, 6, 1, 8, 4, 5, 0],
        [],
        [9, 3, 7],
    ]
    with pytest.raises(ValueError, match=r"`lengths` must add up to 10, got \[7, 2\]"):
        _source.random_split(numbered(10), (7, 2), 42)
    with pytest.raises(ValueError, match="`lengths`"):
        _source.random_split(numbered(10), (-1, 11), 42)
