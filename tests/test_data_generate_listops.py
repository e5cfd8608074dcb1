import csv
import itertools as it
import pickle

import numpy as np
import pytest

from recipes.data import generate_listops as listops, listops as loader
from recipes.data._generated import Generated
from recipes.data.generate_listops import Grammar, LRA, SHORT


def tokens(text: str) -> list[str]:
    """Without parentheses: what a network sees."""
    return [token for token in text.split() if token not in "()"]


def computed(text: str) -> int:
    """The value, by a stack of its own, from the brackets alone."""
    stack = []
    for token in tokens(text):
        if token != "]":
            stack.append(token)
            continue
        arguments = []
        while not stack[-1].startswith("["):
            arguments.append(int(stack.pop()))
        n = len(arguments)
        middle = sorted(arguments)[(n - 1) // 2 : n // 2 + 1]
        results = {
            "[MIN": sorted(arguments)[0],
            "[MAX": sorted(arguments)[-1],
            "[MED": sum(middle) // len(middle),
            "[SM": int(str(sum(arguments))[-1]),
        }
        stack.append(str(results[stack.pop()]))
    (result,) = stack
    return int(result)


def applied(text: str) -> int:
    """The value, from the parentheses: each holds a function and what it is applied to."""
    stack = [[]]
    for token in text.split():
        if token == "(":
            stack.append([])
        elif token == ")":
            function, argument = stack.pop()
            stack[-1].append(
                computed(" ".join([*function, "]"]))
                if argument == "]"
                else [*([function] if isinstance(function, str) else function), str(argument)]
            )
        else:
            stack[-1].append(token)
    ((result,),) = stack
    return int(result)


def depth(text: str) -> int:
    steps = (token.startswith("[") - (token == "]") for token in tokens(text))
    return max(it.accumulate(steps, initial=1))


def drawn(n: int, grammar: Grammar = LRA) -> list[tuple[str, int]]:
    return [listops.generate(np.random.default_rng((7, i)), grammar) for i in range(n)]


#
# Expressions.
#


@pytest.mark.parametrize(
    "node, text, value",
    (
        (7, "7", 7),
        (("MAX", 2, 9), "( ( ( [MAX 2 ) 9 ) ] )", 9),
        (("MIN", 4, 2, 9), "( ( ( ( [MIN 4 ) 2 ) 9 ) ] )", 2),
        # Means of the middle two are rounded down.
        (("MED", 3, 8), "( ( ( [MED 3 ) 8 ) ] )", 5),
        (("MED", 9, 1, 0, 4), "( ( ( ( ( [MED 9 ) 1 ) 0 ) 4 ) ] )", 2),
        (("MED", 9, 1, 2), "( ( ( ( [MED 9 ) 1 ) 2 ) ] )", 2),
        (("SM", 9, 9, 5), "( ( ( ( [SM 9 ) 9 ) 5 ) ] )", 3),
        # Nested as in the paper: [MAX 4 3 [MIN 2 3] 1 0 [MEDIAN 1 5 8 9 2]] is 5.
        (
            ("MAX", 4, 3, ("MIN", 2, 3), 1, 0, ("MED", 1, 5, 8, 9, 2)),
            "( ( ( ( ( ( ( [MAX 4 ) 3 ) ( ( ( [MIN 2 ) 3 ) ] ) ) 1 ) 0 ) "
            "( ( ( ( ( ( [MED 1 ) 5 ) 8 ) 9 ) 2 ) ] ) ) ] )",
            5,
        ),
    ),
)
def test_by_hand(node, text, value):
    assert listops.surface(node) == text
    assert listops.value(node) == computed(text) == value


@pytest.mark.parametrize("grammar, n", ((LRA, 150), (SHORT, 500)), ids=("lra", "short"))
def test_values_and_limits(grammar, n):
    for text, label in drawn(n, grammar):
        assert computed(text) == applied(text) == label
        assert grammar.min_length < len(tokens(text)) < grammar.max_length
        assert depth(text) <= grammar.max_depth
        assert set(tokens(text)) <= {*"0123456789]", "[MIN", "[MAX", "[MED", "[SM"}


def test_against_what_the_published_generator_gives():
    """3,000 expressions were drawn with `lra_benchmarks/data/listops.py` itself."""
    published = [514, 274, 232, 235, 271, 264, 230, 228, 232, 520]  # labels, from 0 to 9
    examples = drawn(400)
    counts = np.bincount([label for _, label in examples], minlength=10)
    expected = np.array(published) / 3000 * len(examples)
    assert np.sum((counts - expected) ** 2 / expected) < 27.9  # one in a thousand by chance
    words = [word for text, _ in examples for word in tokens(text)]
    operators = [words.count(f"[{name}") for name in listops.OPERATORS]
    assert np.ptp(operators) < 0.05 * sum(operators)


def test_lengths_against_their_exact_distribution():
    """That of a tree is a mixture of convolutions of that of its subtrees."""
    leaf = np.zeros(2000)
    leaf[1] = 1.0
    lengths = leaf
    for _ in range(9):
        sums, operator = lengths, np.zeros(2000)
        for _ in range(2, 11):
            sums = np.convolve(sums, lengths)[:2000]
            operator[2:] += sums[:-2] / 9
        lengths = 0.75 * leaf + 0.25 * operator
    lengths[:501] = 0.0
    wanted = np.cumsum(lengths) / lengths.sum()
    drawn_lengths = [len(tokens(text)) for text, _ in drawn(400)]
    got = np.cumsum(np.bincount(drawn_lengths, minlength=2000)) / 400
    assert np.abs(got - wanted).max() < 1.95 / 400**0.5  # one in a thousand by chance


def test_the_shape_of_trees():
    """Everything there is to be drawn, where nothing is dropped."""
    grammar = Grammar(min_length=0, max_length=100_000, max_depth=3, max_arguments=4)
    trees = [listops.tree(np.random.default_rng(i), grammar) for i in range(4000)]
    roots = [tree for tree in trees if not isinstance(tree, int)]
    assert len(roots) / 4000 == pytest.approx(0.25, abs=0.03)
    arguments = np.bincount([len(root) - 1 for root in roots], minlength=5)
    assert arguments[:2].sum() == 0 and arguments[2:].min() > 0.27 * len(roots)
    second = [node for root in roots for node in root[1:]]
    below = [node for node in second if not isinstance(node, int)]
    assert len(below) / len(second) == pytest.approx(0.25, abs=0.03)
    assert all(isinstance(leaf, int) for node in below for leaf in node[1:])
    digits = np.bincount([node for node in second if isinstance(node, int)], minlength=10)
    assert len(digits) == 10 and digits.min() > 0.07 * digits.sum()


@pytest.mark.parametrize(
    "arguments, message",
    (
        ({"min_length": 5, "max_length": 5}, "`min_length` must be .* got 5 and 5"),
        ({"min_length": -1}, "`min_length` must be at least 0"),
        ({"max_depth": 0}, "`max_depth` must be at least 1"),
        ({"max_arguments": 1}, "`max_arguments` 2, got 10 and 1"),
        ({"operator": 1.0}, "`operator` must be between 0 and 1, got 1.0"),
    ),
)
def test_grammar_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        Grammar(**arguments)


def test_lengths_that_do_not_occur():
    # Beyond a digit, nothing is shorter than an operator with two arguments.
    grammar = Grammar(min_length=1, max_length=4)
    with pytest.raises(ValueError, match=r"Hardly any expression .* max_length=4"):
        listops.tree(np.random.default_rng(0), grammar)


#
# Sources and files.
#


def test_source():
    from recipes.data.listops import VOCABULARY

    source = listops.source(3, 10, SHORT, length=250)
    assert len(source) == 10 and isinstance(source, Generated)
    for i in (0, 9, 4):
        x, y = source[i]
        assert x.shape == (250,) and x.dtype == np.int32 and y.dtype == np.int32
        text, label = listops.generate(np.random.default_rng((3, i)), SHORT)
        words = [word.replace("]", "X") for word in tokens(text)] + ["<eos>"]
        assert [VOCABULARY[token] for token in x[x != 0]] == words and y == label
    assert np.array_equal(source[-1][0], source[9][0])
    assert not np.array_equal(source[0][0], source[1][0])
    assert listops.source(3, 1)[0][0].shape == (2048,)
    # Workers of Grain get it by a pickle of their own.
    assert np.array_equal(pickle.loads(pickle.dumps(source))[5][0], source[5][0])
    for i in (10, -11):
        with pytest.raises(IndexError, match=f"Example {i} of 10"):
            source[i]


def test_splits_are_ranges_of_one_stream():
    splits = listops.splits(3, (4, 3, 2), SHORT)
    whole = listops.source(3, 9, SHORT)
    parts = [
        split[i]
        for split in (splits.train, splits.valid, splits.test)
        for i in range(len(split))
    ]
    assert len(parts) == 9
    for i, (x, y) in enumerate(parts):
        assert np.array_equal(x, whole[i][0]) and y == whole[i][1]


@pytest.mark.parametrize("name", ("seed", "size", "start"))
def test_source_errors(name):
    arguments = {"seed": 0, "size": 1, "start": 0} | {name: -1}
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
        Generated(lambda rng: (0, 0), **arguments)


def test_write(tmp_path):
    folder = tmp_path / "listops-1000"
    listops.write(folder, (20, 5, 4), seed=1, grammar=SHORT)
    texts = []
    for split, size in (("train", 20), ("val", 5), ("test", 4)):
        with (folder / f"basic_{split}.tsv").open(newline="") as file:
            header, *rows = csv.reader(file, delimiter="\t")
        assert header == ["Source", "Target"] and len(rows) == size
        assert all(computed(text) == int(label) for text, label in rows)
        texts += [text for text, _ in rows]
    assert len(set(texts)) == 29 and len(list(folder.iterdir())) == 3
    raw = (folder / "basic_val.tsv").read_bytes()
    assert raw.startswith(b"Source\tTarget\r\n( ") and b'"' not in raw

    again = tmp_path / "again"
    listops.write(again, (20, 5, 4), seed=1, grammar=SHORT)
    assert (again / "basic_val.tsv").read_bytes() == raw
    with pytest.raises(FileExistsError, match="basic_train.tsv is there already"):
        listops.write(folder, (1, 1, 1))


def test_no_expression_is_written_twice(tmp_path):
    # There are 10 digits and no other expression of one token.
    digits = Grammar(min_length=0, max_length=3)
    listops.write(tmp_path, (5, 3, 2), grammar=digits)
    rows = [row for file in tmp_path.iterdir() for row in file.read_text().splitlines()[1:]]
    assert sorted(rows) == [f"{i}\t{i}" for i in range(10)]


def test_more_expressions_than_there_are(tmp_path):
    digits = Grammar(min_length=0, max_length=3)
    with pytest.raises(ValueError, match=r"`sizes` must be less than \(9, 1, 1\).* than 10 "):
        listops.write(tmp_path, (9, 1, 1), grammar=digits)
    # What is not whole has not its name.
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("basic_test.part", "basic_train.tsv", "basic_val.tsv")
    ]


def test_the_loader_reads_what_is_written(tmp_path):
    listops.write(tmp_path, (20, 5, 4), seed=1, grammar=SHORT)
    splits = loader.load(tmp_path, length=250, counts=(20, 5, 4))
    assert [len(split) for split in (splits.train, splits.valid, splits.test)] == [20, 5, 4]
    text, label = listops.generate(np.random.default_rng(1), SHORT)
    x, y = splits.train[0]
    assert np.array_equal(x, loader.encode(text, 250)) and y == label
