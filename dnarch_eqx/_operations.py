# What each operation of a traced program costs, in sizes of axes.

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ._count import add, factor, number, scaled, size_of, Terms, times
from ._program import Block, Op, Value
from ._rules import CUMULATIVE, ELEMENTWISE, REDUCTIONS
from ._terms import Atom, size


Names = Mapping[Atom, str]

# As XLA counts: one for each element, transcendental functions too, but for these.
_ELEMENTWISE = {"logistic": 4, "copy": 0, "copy_p": 0, "stop_gradient": 0, "real": 0, "imag": 0}
_ELEMENTWISE |= {"bitcast_convert_type": 0, "reduce_precision": 0}


def operations(block: Block, names: Names) -> Terms:
    """The operations of a program, one after the other: the body of a scan as often as it
    runs, of branches the largest, of a `while` one turn, as nobody knows how many there are.
    """
    return add(*(_weighted(op, names, _operation(op, names)) for op in block.ops))


def _weighted(op: Op, names: Names, terms: Terms) -> Terms:
    """Only where its blocks are there."""
    there = (factor(axis, i) for axis, i in dict.fromkeys(op.where.blocks))
    return times(terms, *there) if op.where.blocks and terms else terms


def _operation(op: Op, names: Names) -> Terms:
    if op.name in ELEMENTWISE:
        each = _ELEMENTWISE.get(op.name, 1)
        if op.name == "integer_pow":
            each = max(
                abs(int(op.params["y"])).bit_length() + bin(op.params["y"]).count("1") - 2, 1
            )
        return scaled(each, _size(op.outs[0], names)) if each else {}
    if op.name in REDUCTIONS:
        # Of arguments with their places.
        each = 9 if op.name.startswith("arg") else 1
        whole, left = _size(op.ins[0], names), _size(op.outs[0], names)
        return scaled(each, add(whole, scaled(-1, left)))
    if op.name in CUMULATIVE:
        return _size(op.outs[0], names)
    if op.name == "scan":
        return times(_turns(op, names), operations(op.blocks[0], names))
    if op.blocks:
        inner = [operations(block, names) for block in op.blocks]
        return add(*inner) if op.name == "while" else max(inner, key=total)
    rule = _RULES.get(op.name)
    return {} if rule is None else rule(op, names)


def total(terms: Terms) -> float:
    """Without regard to sizes: to compare branches."""
    return sum(terms.values())


def _size(value: Value, names: Names) -> Terms:
    return size_of(value.dims, names)


def _turns(op: Op, names: Names) -> Terms:
    over = op.ins[op.params["num_consts"] + op.params["num_carry"] :]
    return size_of([over[0].dims[0]], names) if over else number(op.params["length"])


def _dot(op: Op, names: Names) -> Terms:
    (left, _), _ = op.params["dimension_numbers"]
    summed = size_of([op.ins[0].dims[i] for i in left], names)
    return scaled(2, times(_size(op.outs[0], names), summed))


def _conv(op: Op, names: Names) -> Terms:
    numbers, w, out = op.params["dimension_numbers"], op.ins[1].dims, op.outs[0].dims
    o, inner, *kernel = numbers.rhs_spec
    batch, channels, *space = numbers.out_spec
    pairs = [_pairs(op, i, w[kernel[i]], out[space[i]], names) for i in range(len(kernel))]
    groups = op.params["batch_group_count"]
    maps = size_of([out[batch], out[channels], w[inner]], names)
    return scaled(2 / groups, times(maps, *pairs))


def _pairs(op: Op, i: int, kernel: Any, out: Any, names: Names) -> Terms:
    """Along one dimension: how many pairs of an output and a position of the kernel there are
    that do not lie on padding.
    """
    n, k = size(out), size(kernel)
    whole = size(op.ins[0].dims[op.params["dimension_numbers"].lhs_spec[2 + i]])
    stride, low = op.params["window_strides"][i], op.params["padding"][i][0]
    spread, apart = op.params["lhs_dilation"][i], op.params["rhs_dilation"][i]
    at = np.arange(n)[:, None] * stride + np.arange(k) * apart - low
    count = int(np.sum((at >= 0) & (at <= (whole - 1) * spread) & (at % spread == 0)))
    both = times(size_of([out], names), size_of([kernel], names))
    if all(factors == () for factors in both):
        return number(count)
    # Of a kernel whose extent is learned: the share of it that lies on padding at its largest
    # goes with its square.
    lost = n * k - count
    square = times(size_of([kernel], names), size_of([kernel], names))
    return add(both, scaled(-lost / (k * k), square))


def _fft(op: Op, names: Names) -> Terms:
    lengths = op.params["fft_lengths"]
    kind = str(op.params["fft_type"])
    real = op.outs[0] if "IRFFT" in kind else op.ins[0]
    each = 8 * math.prod(max(n.bit_length() - 1, 1) for n in lengths)
    return scaled(each, _size(real, names))


def _sort(op: Op, names: Names) -> Terms:
    n = size(op.ins[0].dims[op.params["dimension"]])
    return scaled(max(math.ceil(math.log2(max(n, 2))), 1), _size(op.ins[0], names))


def _windows(op: Op, names: Names) -> Terms:
    each = math.prod(op.params["window_dimensions"]) - 1
    return scaled(each, _size(op.outs[0], names))


def _updates(op: Op, names: Names) -> Terms:
    return _size(op.ins[2], names)


_RULES: dict[str, Callable[[Op, Names], Terms]] = {
    "dot_general": _dot,
    "ragged_dot": _dot,
    "conv_general_dilated": _conv,
    "fft": _fft,
    "sort": _sort,
    "scatter-add": _updates,
    "scatter_add": _updates,
}
_RULES |= {f"reduce_window_{kind}": _windows for kind in ("sum", "max", "min")}


#
# Bytes.
#


# What a backward pass needs of these: the arguments, or the results.
_KEEPS_INS = frozenset(
    """
    abs acos acosh asin asinh atan atan2 atanh cos cosh digamma div erf erf_inv erfc integer_pow
    lgamma log log1p max min mul pow rem sign sin sinh square conv_general_dilated dot_general
    sort top_k reduce_max reduce_min reduce_prod cumprod cummax cummin clamp
    """.split()
)
_KEEPS_OUTS = frozenset(
    "cbrt exp exp2 expm1 logistic rsqrt sqrt tan tanh cumlogsumexp reduce_max".split()
)
# Not fused with what is around them.
_ALONE = _KEEPS_INS & frozenset(("dot_general", "conv_general_dilated", "sort", "top_k"))
_ALONE |= REDUCTIONS | CUMULATIVE | {"fft", "gather", "scatter-add", "scatter"}


def bytes_of(value: Value, names: Names) -> Terms:
    return scaled(value.itemsize, _size(value, names))


def kept(block: Block, names: Names, weights: set[int]) -> Terms:
    """The bytes that a backward pass needs of a forward pass, each array once, without those
    of the weights.

    - `weights`: the values, by identity, that only depend on these.
    """
    weights, seen, some = set(weights), set(), []
    for op in block.ops:
        if op.ins and all(id(x) in weights for x in op.ins):
            weights |= {id(x) for x in op.outs}
            continue
        needed = [*(op.ins if op.name in _KEEPS_INS else ())]
        needed += op.outs if op.name in _KEEPS_OUTS else ()
        for value in needed:
            if id(value) not in weights | seen and value.dims and value.constant is None:
                seen.add(id(value))
                some.append(_weighted(op, names, bytes_of(value, names)))
        if op.blocks:
            inner = [kept(b, names, weights) for b in op.blocks]
            each = max(inner, key=total) if op.name == "cond" else add(*inner)
            turns = _turns(op, names) if op.name == "scan" else number(1)
            some.append(_weighted(op, names, times(turns, each)))
    return add(*some)


def moved(block: Block, names: Names) -> Terms:
    """The bytes that go in and out of the operations that are not fused with others."""
    some = []
    for op in block.ops:
        if op.blocks:
            inner = [moved(b, names) for b in op.blocks]
            each = max(inner, key=total) if op.name == "cond" else add(*inner)
            turns = _turns(op, names) if op.name == "scan" else number(1)
            some.append(_weighted(op, names, times(turns, each)))
        elif op.name in _ALONE:
            # Of a gather what it takes.
            values = op.outs * 2 if op.name == "gather" else [*op.ins, *op.outs]
            some.append(_weighted(op, names, add(*(bytes_of(x, names) for x in values))))
    return add(*some)


def calls(block: Block, names: Names) -> Terms:
    """How many operations are not fused with others, each turn of a scan on its own."""
    some = []
    for op in block.ops:
        if op.blocks:
            each = max((calls(b, names) for b in op.blocks), key=total)
            turns = _turns(op, names) if op.name == "scan" else number(1)
            some.append(_weighted(op, names, times(turns, each)))
        elif op.name in _ALONE:
            some.append(_weighted(op, names, number(1)))
    return add(*some)


def alive(block: Block, names: Names, outside: Terms) -> Iterator[Terms]:
    """At each operation, the bytes of the values that are still to be read.

    - `outside`: what is alive around, weights too.
    """
    last: dict[int, int] = {}
    for i, op in enumerate(block.ops):
        last |= {id(x): i for x in op.ins}
    last |= {id(x): len(block.ops) for x in block.outs}
    free = {id(x) for x in block.ins}
    live: dict[int, Terms] = {}
    for i, op in enumerate(block.ops):
        for x in op.outs:
            if id(x) not in free and x.dims:
                live[id(x)] = _weighted(op, names, bytes_of(x, names))
        now = add(outside, *live.values())
        for inner in op.blocks:
            yield from alive(inner, names, now)
        if not op.blocks:
            yield now
        live = {x: terms for x, terms in live.items() if last.get(x, -1) > i}
