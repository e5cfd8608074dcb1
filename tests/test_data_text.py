"""Texts: ListOps, AAN, IMDB."""

import io
import itertools as it
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipes.data import _text, aan, batches, imdb, listops


SHARED = Path(__file__).parents[2] / "shared" / "data"


def examples(split) -> list:
    return [split[i] for i in range(len(split))]


def read_back(ids: np.ndarray, vocabulary: tuple[str, ...]) -> str:
    return "".join(vocabulary[i] for i in ids if vocabulary[i] != "<pad>")


#
# Vocabularies.
#


def test_characters_by_hand():
    vocabulary = _text.characters(["banana", "bán\u2028"], 7)
    # a 3, n 3, b 2, and once each á and a line separator, by their code points.
    assert vocabulary == ("<pad>", "<unk>", "<eos>", "a", "n", "b", "á", "\u2028")
    assert _text.characters(["banana"], 7, min_freq=2) == ("<pad>", "<unk>", "<eos>", "a", "n")
    # Only `length - 1` characters count: "ban".
    assert _text.characters(["banana"], 4) == ("<pad>", "<unk>", "<eos>", "a", "b", "n")
    assert _text.characters(["ab", "c"], 4, times=[1, 2])[3:] == ("c", "a", "b")


def test_encode_by_hand():
    vocabulary = ("<pad>", "<unk>", "<eos>", "a", "b")
    texts = ["abba", "", "a\U0001f600b", "bbbbbbbb"]
    ids = _text.encode_characters(texts, vocabulary, 6)
    assert [i.tolist() for i in ids] == [[3, 4, 4, 3, 2], [2], [3, 1, 4, 2], [4] * 5 + [2]]
    left, right = (_text.Texts.of(ids, 6, pad) for pad in ("left", "right"))
    assert [left[i].tolist() for i in range(4)] == [
        [0, 3, 4, 4, 3, 2],
        [0, 0, 0, 0, 0, 2],
        [0, 0, 3, 1, 4, 2],
        [4, 4, 4, 4, 4, 2],
    ]
    assert [right[i].tolist() for i in range(3)] == [
        [3, 4, 4, 3, 2, 0],
        [2, 0, 0, 0, 0, 0],
        [3, 1, 4, 2, 0, 0],
    ]
    assert left[0].dtype == np.int32 and len(left) == 4


@pytest.mark.parametrize("load", (listops.load, aan.load, imdb.load, imdb.load_pairs))
def test_arguments(tmp_path, load):
    with pytest.raises(ValueError, match="`length` must be positive, got 0"):
        load(tmp_path, length=0)
    with pytest.raises(ValueError, match="`pad` must be 'left' or 'right', got 'both'"):
        load(tmp_path, pad="both")
    with pytest.raises(FileNotFoundError, match="https://"):
        load(tmp_path)


#
# ListOps.
#

# As LRA writes them.
NESTED = "( ( ( [MAX 2 ) ( ( ( [MED 9 ) 0 ) ] ) ) ] )"


def test_listops_tokens():
    assert len(listops.VOCABULARY) == len(set(listops.VOCABULARY)) == 18
    assert listops.VOCABULARY[:3] == ("<pad>", "<unk>", "<eos>")
    tokens = [listops.VOCABULARY[i] for i in listops.encode(NESTED, 12)]
    assert tokens == ["[MAX", "2", "[MED", "9", "0", "X", "X", "<eos>", *["<pad>"] * 4]
    right = listops.encode(NESTED, 12, "right")
    assert right.dtype == np.int32 and right.tolist()[8:] == [0, 0, 0, 0]
    assert [listops.VOCABULARY[i] for i in listops.encode(NESTED, 4)] == [
        *("[MAX", "2", "[MED"),
        "<eos>",
    ]
    # Brackets need no spaces.
    assert np.array_equal(listops.encode("[SM 1 2]", 9), listops.encode("( [SM ( 1 2 ) ]", 9))
    with pytest.raises(ValueError, match=r"No expression of ListOps has \['\[AVG'\]"):
        listops.encode("[AVG 1 ]", 9)
    with pytest.raises(ValueError, match=r"\['<pad>'\]"):
        listops.encode("<pad>", 9)


def write_listops(folder: Path, train: str, header: str = "Source\tTarget\n") -> None:
    for part in ("train", "val", "test"):
        rows = train if part == "train" else f"{NESTED}\t2\n"
        (folder / f"basic_{part}.tsv").write_bytes((header + rows).encode())


@pytest.mark.parametrize("pad", ("left", "right"))
@pytest.mark.parametrize("end", ("\n", "\r\n"))
def test_listops(tmp_path, pad, end):
    rows = [(f"( ( [SM {i} ) {i} ) ] )", 2 * i % 10) for i in range(10)]
    write_listops(tmp_path, "".join(f"{text}\t{y}{end}" for text, y in rows))
    splits = listops.load(tmp_path, length=16, pad=pad, counts=(10, 1, 1))
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [10, 1, 1]
    assert splits.vocabulary == listops.VOCABULARY
    for (x, y), (text, label) in zip(examples(splits.train), rows):
        assert np.array_equal(x, listops.encode(text, 16, pad)) and y == label
        assert x.dtype == y.dtype == np.int32
    for x, y in batches(splits.train, 4, seed=0, epochs=1, process=(0, 1)):
        assert x.shape == (4, 16) and y.shape == (4,) and x.dtype == np.int32


@pytest.mark.parametrize(
    "rows, message",
    (
        (f"{NESTED}\t2\n{NESTED}\t10\n", "line 3 must end with a tab and a digit.*10"),
        (f"{NESTED}\t2\n{NESTED}", "line 3 must end"),
        (f"{NESTED}\t\n", "line 2 must end"),
        ("[AVG 1 ]\t1\n", r"line 2: No expression of ListOps has \['\[AVG'\]"),
        ("", "has no expressions"),
    ),
)
def test_damaged_listops(tmp_path, rows, message):
    write_listops(tmp_path, rows)
    with pytest.raises(ValueError, match=f"basic_train.tsv.*{message}"):
        listops.load(tmp_path)


def test_listops_cut_off_at_the_end_of_a_line(tmp_path):
    write_listops(tmp_path, f"{NESTED}\t2\n" * 3)
    with pytest.raises(ValueError, match="basic_train.tsv has 3 examples, not the 96,000"):
        listops.load(tmp_path)
    with pytest.raises(ValueError, match="basic_test.tsv has 1 examples, not the 2 "):
        listops.load(tmp_path, counts=(3, 1, 2))
    assert len(listops.load(tmp_path, counts=None).train) == 3


def test_listops_header_and_bytes(tmp_path):
    write_listops(tmp_path, f"{NESTED}\t2\n", header="")
    with pytest.raises(ValueError, match="must begin with 'Source"):
        listops.load(tmp_path)
    write_listops(tmp_path, f"{NESTED}\t2\n")
    (tmp_path / "basic_val.tsv").write_bytes(b"Source\tTarget\n\xff\t1\n")
    with pytest.raises(ValueError, match="basic_val.tsv is not UTF-8"):
        listops.load(tmp_path, counts=None)
    (tmp_path / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match="basic_val.tsv.*lra_release.gz"):
        listops.load(tmp_path, counts=None)


#
# AAN.
#

# Quotes, a form feed, a line separator and a carriage return belong to texts.
PAPERS = ('"Open quote, and on', 'a "quoted" word', "form\x0cfeed", "line\u2028end", "re\rturn")


def write_aan(folder: Path, rows: list[tuple[str, int, int]]) -> None:
    for part in ("train", "eval", "test"):
        chosen = rows if part == "train" else rows[:2]
        lines = [f"{y}\tP{a}\tP{b}\t{PAPERS[a]}\t{PAPERS[b]}\n" for y, a, b in chosen]
        (folder / f"new_aan_pairs.{part}.tsv").write_bytes("".join(lines).encode())


ROWS = [("1.0", 0, 1), ("0.0", 2, 3), ("1", 4, 0), ("0", 1, 1), ("0.0", 0, 2)]


def test_aan(tmp_path):
    write_aan(tmp_path, ROWS)
    splits = aan.load(tmp_path, length=24, counts=(5, 2, 2))
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [5, 2, 2]
    v = splits.vocabulary
    assert v is not None and v[:3] == ("<pad>", "<unk>", "<eos>")
    occur = Counter("".join(PAPERS[a] + PAPERS[b] for _, a, b in ROWS))
    assert v[3:] == tuple(sorted(occur, key=lambda c: (-occur[c], c)))
    for split, rows in ((splits.train, ROWS), (splits.test, ROWS[:2])):
        for ((one, other), y), (label, a, b) in zip(examples(split), rows):
            assert one.shape == other.shape == (24,) and one.dtype == np.int32
            assert read_back(one, v) == PAPERS[a] + "<eos>"
            assert read_back(other, v) == PAPERS[b] + "<eos>"
            assert y == float(label) and y.dtype == np.int32
    (one, other), y = next(batches(splits.train, 4, seed=0, process=(0, 1)))
    assert one.shape == other.shape == (4, 24) and y.shape == (4,)


def test_aan_is_cut(tmp_path):
    write_aan(tmp_path, ROWS)
    splits = aan.load(tmp_path, length=6, pad="right", counts=None)
    assert splits.vocabulary is not None
    assert read_back(splits.train[0][0][0], splits.vocabulary) == PAPERS[0][:5] + "<eos>"
    # What is cut off is in no vocabulary.
    assert set(splits.vocabulary[3:]) == set("".join(p[:5] for p in PAPERS))


def test_papers_are_held_once(tmp_path):
    write_aan(tmp_path, [("1.0", *pair) for pair in it.product(range(5), range(5))])
    train = aan.load(tmp_path, counts=None).train
    assert len(train) == 25
    assert len(train.texts) == 5  # pyright: ignore


@pytest.mark.parametrize(
    "row, message",
    (
        ("2.0\ta\tb\tc\td", "line 2 has the label '2.0', not 0 or 1"),
        ("1.0\ta\tb\tc", "line 2 has 4 columns, not 5"),
        ("1.0\ta\tb\tc\td\te", "line 2 has 6 columns, not 5"),
        ("label\ta\tb\tc\td", "line 2 has the label 'label'"),
    ),
)
def test_damaged_aan(tmp_path, row, message):
    write_aan(tmp_path, ROWS)
    (tmp_path / "new_aan_pairs.eval.tsv").write_text(f"0.0\ta\tb\tc\td\n{row}\n")
    with pytest.raises(ValueError, match=f"new_aan_pairs.eval.tsv, {message}"):
        aan.load(tmp_path, counts=None)


def test_aan_cut_off(tmp_path):
    write_aan(tmp_path, ROWS)
    path = tmp_path / "new_aan_pairs.test.tsv"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(ValueError, match="train.tsv has 5 examples, not the 147,086"):
        aan.load(tmp_path)
    with pytest.raises(ValueError, match="test.tsv has 1 examples, not the 2 "):
        aan.load(tmp_path, counts=(5, 2, 2))


def test_empty_aan(tmp_path):
    write_aan(tmp_path, [])
    with pytest.raises(ValueError, match="train.tsv is empty"):
        aan.load(tmp_path)


#
# IMDB.
#


def review(part: str, label: str, i: int) -> str:
    return f"The {part}<br />{label} caf\u00e9 \u2028 no. {i}"


def imdb_files(n: int = 12, films: int = 4) -> dict[str, bytes]:
    files = {"aclImdb/README": b"no", "aclImdb/train/unsup/0_0.txt": b"no"}
    for part, first in (("train", 100), ("test", 200)):
        for label, rating in (("neg", 1), ("pos", 7)):
            for i in range(n):
                name = f"aclImdb/{part}/{label}/{i}_{rating + i % 4}.txt"
                files[name] = review(part, label, i).encode()
            files[f"aclImdb/{part}/urls_{label}.txt"] = "".join(
                f"http://www.imdb.com/title/tt{first + i % films:07}/usercomments\n"
                for i in range(n)
            ).encode()
    return files


def write_imdb(folder: Path, files: dict[str, bytes], packed: bool = False) -> None:
    if packed:
        with tarfile.open(folder / "aclImdb_v1.tar.gz", "w:gz") as tar:
            # Nobody says that members are in order.
            for name in sorted(files, key=lambda name: name[::-1]):
                info = tarfile.TarInfo(name)
                info.size = len(files[name])
                tar.addfile(info, io.BytesIO(files[name]))
        return
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("place", ("packed", "beside", "inside"))
def test_imdb(tmp_path, place):
    write_imdb(tmp_path, imdb_files(), packed=place == "packed")
    folder = tmp_path / "aclImdb" if place == "inside" else tmp_path
    splits = imdb.load(folder, length=64, min_freq=3)
    v = splits.vocabulary
    assert v is not None and splits.valid is splits.test and len(splits.train) == 24
    assert "\u00e9" in v and "\u2028" in v
    for part, split in (("train", splits.train), ("test", splits.test)):
        wanted = [
            (review(part, label, i), label) for label in ("neg", "pos") for i in range(12)
        ]
        for (x, y), (text, label) in zip(examples(split), wanted, strict=True):
            text = "".join(c if c in v else "<unk>" for c in text)
            assert read_back(x, v) == text + "<eos>" and y == (label == "pos")
            assert x.shape == (64,) and x.dtype == y.dtype == np.int32
    occur = Counter(
        "".join(review("train", label, i) for label in ("neg", "pos") for i in range(12))
    )
    assert set(v[3:]) == {c for c, n in occur.items() if n >= 3}
    assert set("tes") <= set(v) and "8" not in v


def test_imdb_as_bytes(tmp_path):
    write_imdb(tmp_path, imdb_files())
    splits = imdb.load(tmp_path, length=64, min_freq=1, encoding="latin-1", pad="right")
    v = splits.vocabulary
    assert v is not None
    text = read_back(splits.train[0][0], v).removesuffix("<eos>")
    assert text.encode("latin-1") == review("train", "neg", 0).encode("utf-8")


def test_imdb_to_choose_by(tmp_path):
    write_imdb(tmp_path, imdb_files())
    splits = imdb.load(tmp_path, length=64, min_freq=1, valid=0.25)
    assert [len(s) for s in (splits.train, splits.valid, splits.test)] == [18, 6, 24]
    texts = {x.tobytes() for s in (splits.train, splits.valid) for x, _ in examples(s)}
    assert len(texts) == 24
    with pytest.raises(ValueError, match="`valid` must be at least 0 and below 1, got 1"):
        imdb.load(tmp_path, valid=1.0)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"aclImdb/train/neg/3_4.txt": None}, "has 11 reviews of train/neg.*of 12"),
        ({"aclImdb/test/pos/11_10.txt": None}, "has 11 reviews of test/pos.*of 12"),
        ({"aclImdb/train/neg/12_1.txt": b"one more"}, "has 13 reviews of train/neg"),
        ({"aclImdb/train/neg/3_1.txt": b"again"}, "two reviews 3 of train/neg"),
        ({"aclImdb/train/neg/3_7.txt": b"good"}, "3_7.txt of .* has a rating that is not neg"),
        ({"aclImdb/test/pos/3_0.txt": b"bad"}, "3_0.txt of .* has a rating that is not pos"),
        ({"aclImdb/test/urls_pos.txt": None}, "a list urls_pos.txt of 0"),
        ({"aclImdb/test/neg/0_1.txt": b"\xff\xfe"}, "0_1.txt of .* is not utf-8"),
    ),
)
@pytest.mark.parametrize("packed", (False, True))
def test_damaged_imdb(tmp_path, changes, message, packed):
    files = {name: content for name, content in (imdb_files() | changes).items() if content}
    write_imdb(tmp_path, files, packed)
    with pytest.raises(ValueError, match=message):
        imdb.load(tmp_path)


def test_an_archive_that_leads_out(tmp_path):
    write_imdb(tmp_path, {"../aclImdb/train/neg/0_1.txt": b"x"} | imdb_files(), packed=True)
    with pytest.raises(ValueError, match="leads out"):
        imdb.load(tmp_path)


#
# Pairs of reviews.
#


def test_pairs_of_reviews(tmp_path):
    files = imdb_files(n=40, films=20)
    # One film of the test set is in the training set.
    urls = files["aclImdb/test/urls_neg.txt"].replace(b"tt0000203", b"tt0000105")
    write_imdb(tmp_path, files | {"aclImdb/test/urls_neg.txt": urls})
    sizes = (60, 8, 30)
    load = lambda seed: imdb.load_pairs(tmp_path, pairs=sizes, length=64, min_freq=1, seed=seed)
    splits = load(0)
    v = splits.vocabulary
    assert v is not None
    train, test = imdb.read(tmp_path)
    film = {t: f for part in (train, test) for t, f in zip(part.texts, part.film.tolist())}
    films = []
    for split, size in zip((splits.train, splits.valid, splits.test), sizes):
        assert len(split) == size
        seen = [
            [film[read_back(text, v).removesuffix("<eos>")] for text in x] + [y]
            for x, y in examples(split)
        ]
        assert all((a == b) == y for a, b, y in seen)
        assert sum(y for *_, y in seen) == size // 2
        assert all(
            not np.array_equal(*x) for x, y in examples(split)
        )  # nothing is paired with itself
        films.append({f for *pair, _ in seen for f in pair})
    assert not films[0] & films[1] and not (films[0] | films[1]) & films[2]
    assert 105 not in films[2]
    same = lambda a, b: all(
        np.array_equal(x, x_) and np.array_equal(z, z_)
        for ((x, z), _), ((x_, z_), _) in zip(examples(a), examples(b))
    )
    assert same(splits.train, load(0).train) and not same(splits.train, load(1).train)


def test_how_often_a_film_occurs_tells_nothing():
    # 20 films each of 2 to 8 reviews.
    sizes = np.repeat(np.arange(2, 9), 20)
    film = np.random.default_rng(1).permutation(np.repeat(np.arange(140), sizes))
    first, second, y = imdb._pairs(film, 40_000, np.random.default_rng(0))
    pairs = sizes * (sizes - 1) / 2
    for k in (0, 1):
        for side in (first, second):
            occurs = np.bincount(film[side[y == k]], minlength=140)
            for size in range(2, 9):
                share = occurs[sizes == size].sum() / 20_000
                assert share == pytest.approx(
                    pairs[sizes == size].sum() / pairs.sum(), abs=0.01
                )
    # All pairs of a film are drawn, as often as one another.
    drawn = Counter(map(frozenset, zip(first[y == 1].tolist(), second[y == 1].tolist())))
    assert len(drawn) == pairs.sum() and max(drawn.values()) - min(drawn.values()) == 1


def test_too_few_films(tmp_path):
    write_imdb(tmp_path, imdb_files(films=1))
    with pytest.raises(ValueError, match="not two films of two reviews"):
        imdb.load_pairs(tmp_path)
    with pytest.raises(ValueError, match=r"`pairs` must be at least 2 each, got \(1, 2, 2\)"):
        imdb.load_pairs(tmp_path, pairs=(1, 2, 2))


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs sample data")
def test_real_imdb(tmp_path):
    """A part of the published reviews, in the official format."""
    with np.load(SHARED / "imdb_train.npz") as file:
        text, offset = file["text"].tobytes(), file["offset"]
        label, rating, movie = file["label"], file["rating"], file["movie"]
    files, kept = {}, {}
    for k, name in enumerate(("neg", "pos")):
        kept[name] = np.flatnonzero(label == k)[:300]
        for i, j in enumerate(kept[name]):
            files[f"aclImdb/train/{name}/{i}_{rating[j]}.txt"] = text[offset[j] : offset[j + 1]]
        urls = "".join(f"http://www.imdb.com/title/tt{movie[j]:07}/x\n" for j in kept[name])
        files[f"aclImdb/train/urls_{name}.txt"] = urls.encode()
    files |= {name.replace("train", "test"): content for name, content in files.items()}
    write_imdb(tmp_path, files, packed=True)
    train, _ = imdb.read(tmp_path)
    order = np.concatenate([kept["neg"], kept["pos"]])
    assert [t.encode() for t in train.texts] == [text[offset[j] : offset[j + 1]] for j in order]
    assert np.array_equal(train.film, movie[order]) and np.array_equal(train.y, label[order])
    splits = imdb.load(tmp_path)
    assert splits.vocabulary is not None
    assert {" ", "e", "<", "!"} <= set(splits.vocabulary)
    assert splits.train[0][0].shape == (4096,)
