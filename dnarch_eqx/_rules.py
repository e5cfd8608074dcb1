# What the operations of JAX say of dimensions: which are the same, which are parts of which,
# and which keep their size.

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from ._control import CONTROL
from ._positions import POSITIONS
from ._program import Op, Rule, Walk, why
from ._terms import Atom, Cat, cut, fix, new, reshape, size, Term, unify


_Shapes = list[tuple[int, ...]]
_RULES: dict[str, Callable[[Walk, Op, _Shapes], list[list[Term]] | None]] = {}

# Position by position.
ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or
    population_count pow real reduce_precision regularized_incomplete_beta rem round rsqrt
    select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor
    """.split()
)
REDUCTIONS = frozenset(
    "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax "
    "argmin".split()
)
CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


@functools.cache
def rule(name: str) -> Rule | None:
    """What is known of an operation."""
    if name in ELEMENTWISE:
        return _elementwise
    found: Any = (CONTROL | POSITIONS | _RULES).get(name)
    return found


def _of(*names: str):
    def register(fn):
        for name in names:
            _RULES[name] = fn
        return fn

    return register


def _elementwise(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    shape = shapes[0]
    if op.name == "bitcast_convert_type" and len(op.ins[0].dims) != len(shape):
        return [[*op.ins[0].dims, *(new(n, why(op)) for n in shape[len(op.ins[0].dims) :])]]
    out: list[Term] | None = None
    for value in op.ins:
        # Scalars go with everything.
        dims = value.dims if len(value.dims) == len(shape) else []
        fits = bool(dims) and all(size(term) == n for term, n in zip(dims, shape))
        if out is None and fits:
            out = list(dims)
            continue
        out = out or [new(n) for n in shape]
        for i, term in enumerate(dims):
            if term is not out[i] and size(term) == shape[i] != 1:
                unify(out[i], term, why(op))
    out = [new(n) for n in shape] if out is None else out
    return [out for _ in shapes]


# Results are what is given, one by one.
ALIKE = frozenset(
    """
    debug_callback debug_print device_put layout_constraint mesh_cast name nonbatchable
    nondifferentiable nondifferentiable_backward nontraceable optimization_barrier pvary reshard
    sharding_constraint
    """.split()
)


@_of(*ALIKE)
def _alike(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    return [list(value.dims) for value, _ in zip(op.ins, shapes)]


@_of("pure_callback")
def _callback(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]] | None:
    return [[new(n) for n in shape] for shape in shapes] if raises(op) else None


def raises(op: Op) -> bool:
    """Whether it is what `eqx.error_if` calls: its results are never used."""
    if op.name != "pure_callback":
        return False
    called = getattr(op.params["callback"], "callback_func", None)
    return getattr(called, "__module__", None) == "equinox._errors"


@_of("unvmap_all", "unvmap_any", "unvmap_max")
def _unmapped(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    return [[] for _ in shapes]


@_of("broadcast_in_dim")
def _broadcast(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    out = [new(n) for n in shapes[0]]
    for term, i in zip(op.ins[0].dims, op.params["broadcast_dimensions"]):
        if size(term) == shapes[0][i]:
            out[i] = term
    return [out]


@_of("transpose")
def _transpose(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    return [[op.ins[0].dims[i] for i in op.params["permutation"]]]


@_of("squeeze")
def _squeeze(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    gone = op.params["dimensions"]
    return [[term for i, term in enumerate(op.ins[0].dims) if i not in gone]]


@_of("reshape")
def _reshape(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    return [reshape(op.ins[0].dims, shapes[0], why(op))]


@_of("dot_general")
def _dot(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    (left, right), (left_batch, right_batch) = op.params["dimension_numbers"]
    a, b = op.ins[0].dims, op.ins[1].dims
    for i, j in zip((*left, *left_batch), (*right, *right_batch)):
        unify(a[i], b[j], why(op))
    return [
        [
            *(a[i] for i in left_batch),
            *(term for i, term in enumerate(a) if i not in (*left, *left_batch)),
            *(term for j, term in enumerate(b) if j not in (*right, *right_batch)),
        ]
    ]


@_of("conv_general_dilated")
def _conv(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]] | None:
    numbers, groups = op.params["dimension_numbers"], op.params["feature_group_count"]
    if op.params["batch_group_count"] != 1:
        return None
    x, w, reason = op.ins[0].dims, op.ins[1].dims, why(op)
    batch, features, *space = numbers.lhs_spec
    out, inner, *kernel = numbers.rhs_spec
    if groups == 1:
        unify(x[features], w[inner], reason)
    elif size(w[inner]) == 1 and groups == size(w[out]):
        unify(x[features], w[out], reason)
    else:
        group = new(groups)
        unify(x[features], (*group, *w[inner]), reason)
        unify(w[out], (*group, *new(size(w[out]) // groups)), reason)
    result: list[Term] = [new(n, f"positions of {reason}") for n in shapes[0]]
    result[numbers.out_spec[0]], result[numbers.out_spec[1]] = x[batch], w[out]
    for i in space:
        fix(x[i], f"positions of {reason}")
    for i in kernel:
        fix(w[i], f"the extent of {reason}: declare it, with a Gaussian mask")
    return [result]


@_of(*REDUCTIONS)
def _reduce(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    gone = tuple(op.params["axes"])
    kept = [term for i, term in enumerate(op.ins[0].dims) if i not in gone]
    return [kept for _ in shapes]


@_of("psum", "pmax", "pmin", "psum_invariant")
def _reduce_mapped(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    gone = mapped(op)
    return [[term for i, term in enumerate(value.dims) if i not in gone] for value in op.ins]


def mapped(op: Op) -> tuple[int, ...]:
    """The dimensions that a `psum` over a mapped axis goes over."""
    return tuple(axis for axis in op.params["axes"] if isinstance(axis, int))


@_of(*CUMULATIVE, "rev", "sort")
def _in_order(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    for value in op.ins[1:]:
        for a, b in zip(op.ins[0].dims, value.dims):
            unify(a, b, why(op))
    return [list(op.ins[0].dims) for _ in shapes]


@_of("top_k", "approx_top_k")
def _top_k(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    last = new(shapes[0][-1], f"the number of {why(op)}")
    return [[*op.ins[0].dims[:-1], last] for _ in shapes]


@_of("concatenate")
def _concatenate(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    dimension = op.params["dimension"]
    out = []
    for i, term in enumerate(op.ins[0].dims):
        others = [value.dims[i] for value in op.ins]
        if i == dimension:
            one = len(others) == 1
            out.append(others[0] if one else (Cat(tuple(map(_piece, others))),))
            continue
        for other in others[1:]:
            unify(term, other, why(op))
        out.append(term)
    return [out]


def _piece(term: Term) -> Term:
    """Of a concatenation: one of size 1 has to stay there."""
    return term if size(term) > 1 else (Atom(1, "one position"),)


@_of("split")
def _split(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    axis, sizes = op.params["axis"], list(op.params["sizes"])
    pieces = cut(op.ins[0].dims[axis], np.cumsum(sizes)[:-1].tolist(), why(op))
    return [
        [piece if i == axis else term for i, term in enumerate(op.ins[0].dims)]
        for piece in pieces
    ]


@_of("slice")
def _slice(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    starts, limits = op.params["start_indices"], op.params["limit_indices"]
    strides = op.params["strides"] or (1,) * len(starts)
    out = []
    for term, low, high, stride, n in zip(op.ins[0].dims, starts, limits, strides, shapes[0]):
        whole = size(term)
        if n == whole:
            out.append(term)
        elif stride != 1:
            fix(term, f"strides of {why(op)}")
            out.append(new(n, f"strides of {why(op)}"))
        else:
            at = [i for i in (low, high) if 0 < i < whole]
            out.append(cut(term, at, why(op))[1 if low > 0 else 0])
    return [out]


@_of("pad")
def _pad(walk: Walk, op: Op, shapes: _Shapes) -> list[list[Term]]:
    out = []
    for term, (low, high, inner), n in zip(
        op.ins[0].dims, op.params["padding_config"], shapes[0]
    ):
        if (low, high, inner) == (0, 0, 0):
            out.append(term)
        elif low >= 0 and high >= 0 and inner == 0:
            sides = [(new(k, why(op)) or _piece(()),) for k in (low, high)]
            before, after = [side[0] if k else None for side, k in zip(sides, (low, high))]
            pieces = [piece for piece in (before, _piece(term), after) if piece is not None]
            out.append((Cat(tuple(pieces)),))
        else:
            fix(term, why(op))
            out.append(new(n, why(op)))
    return [out]
