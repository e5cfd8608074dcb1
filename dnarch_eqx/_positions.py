# What operations that go by positions say of dimensions: most keep their sizes.

from ._control import Shapes
from ._program import Op, Rule, Walk, why
from ._terms import fix, new, size, Term, unify


def _gather(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    x, indices = op.ins[0].dims, op.ins[1].dims
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    gone = (*numbers.collapsed_slice_dims, *batching)
    kept = [i for i in range(len(x)) if i not in gone]
    out: list[Term] = [new(n, why(op)) for n in shapes[0]]
    for place, i in zip(numbers.offset_dims, kept):
        if sizes[i] == size(x[i]):
            out[place] = x[i]
        else:
            fix(x[i], why(op))
    for i in numbers.collapsed_slice_dims:
        fix(x[i], f"indices of {why(op)}")
    rest = iter(indices[:-1])
    for place in range(len(out)):
        if place not in numbers.offset_dims:
            term = next(rest)
            if size(term) == shapes[0][place]:
                out[place] = term
    for i, j in zip(batching, getattr(numbers, "start_indices_batching_dims", ())):
        unify(x[i], indices[j], why(op))
    return [out]


def _dynamic_slice(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    out = []
    for term, n in zip(op.ins[0].dims, shapes[0]):
        if size(term) != n:
            fix(term, f"indices of {why(op)}")
            term = new(n, f"indices of {why(op)}")
        out.append(term)
    return [out]


def _dynamic_update_slice(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    for whole, part in zip(op.ins[0].dims, op.ins[1].dims):
        if size(whole) == size(part):
            unify(whole, part, why(op))
        else:
            fix(whole, f"indices of {why(op)}")
            fix(part, f"indices of {why(op)}")
    return [list(op.ins[0].dims)]


def _window(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    out = []
    for term, extent, n in zip(op.ins[0].dims, op.params["window_dimensions"], shapes[0]):
        if extent != 1 or n != size(term):
            fix(term, f"positions of {why(op)}")
            term = new(n, f"positions of {why(op)}")
        out.append(term)
    return [out]


def _fft(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    over = len(op.params["fft_lengths"])
    kept, gone = op.ins[0].dims[:-over], op.ins[0].dims[-over:]
    for term in gone:
        fix(term, f"positions of {why(op)}")
    return [[*kept, *(new(n, f"positions of {why(op)}") for n in shapes[0][-over:])]]


def _iota(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    numbered = op.params["dimension"]
    return [[new(n, why(op) if i == numbered else None) for i, n in enumerate(shapes[0])]]


def _random(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    return [[new(n) for n in shape] for shape in shapes]


def _linear_algebra(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    """The last two dimensions keep their sizes, the others lie beside."""
    for value in op.ins:
        for term in value.dims[-2:]:
            fix(term, why(op))
    lead = op.ins[0].dims[:-2]
    for value in op.ins[1:]:
        for a, b in zip(lead, value.dims[:-2]):
            unify(a, b, why(op))
    return [[*lead, *(new(n, why(op)) for n in shape[len(lead) :])] for shape in shapes]


POSITIONS: dict[str, Rule] = {
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "reduce_window_sum": _window,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window": _window,
    "fft": _fft,
    "iota": _iota,
    "random_bits": _random,
    "random_clone": _random,
    "random_fold_in": _random,
    "random_gamma": _random,
    "random_seed": _random,
    "random_unwrap": _random,
    "random_wrap": _random,
    "threefry2x32": _random,
    "cholesky": _linear_algebra,
    "triangular_solve": _linear_algebra,
    "qr": _linear_algebra,
    "lu": _linear_algebra,
    "eigh": _linear_algebra,
    "svd": _linear_algebra,
}
