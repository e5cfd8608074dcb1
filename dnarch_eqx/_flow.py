# What becomes of the inactive positions of an axis on their way through a program: they are
# zero from where a mask is multiplied in, until something makes a number of them again. What
# sums over an axis needs zeros there; else it depends on how many positions a plan crops.

import dataclasses
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ._program import Block, Op, Program, Value
from ._rules import ALIKE, CUMULATIVE, mapped, raises, REDUCTIONS
from ._terms import Atom, atoms
from ._where import Where


# An array of the module, one of its dimensions, and an axis that lies there.
Gate = tuple[str, int, Atom]


@dataclasses.dataclass(frozen=True)
class _Same:
    """Of a value in the body of a scan: on the turns that are inactive it is what the carry at
    this place was before.
    """

    turns: Atom
    place: int


_Zeros = frozenset[Atom | _Same]


@dataclasses.dataclass(frozen=True)
class Fault:
    """An operation that gives something else if inactive positions of an axis are cropped.

    - `reads`: whether it would not, if they were zero.
    """

    axis: Atom
    op: str
    where: Where
    reads: bool


# At 0 these are 0.
_KEEPS_ZERO = frozenset(
    """
    abs asin asinh atan atanh bessel_i1e bitcast_convert_type broadcast_in_dim cbrt ceil conj
    convert_element_type copy copy_p dynamic_slice erf erf_inv expand_dims expm1 fft floor
    gather imag log1p neg real reduce_precision
    reduce_sum reduce_window_sum reshape round sign sin sinh slice split sqrt square squeeze
    stop_gradient tan tanh transpose
    """.split()
)
# With zeros where axes are inactive these are exact.
_MAPPED_SUMS = frozenset({"psum", "psum_invariant"})
_SUMS = _MAPPED_SUMS | {
    "dot_general",
    "conv_general_dilated",
    "reduce_or",
    "reduce_sum",
    "reduce_xor",
}
# Of two numbers of which either is 0 these are 0.
_PRODUCTS = frozenset({"mul", "and", "dot_general", "conv_general_dilated"})
# Of two numbers of which the first is 0.
_FIRST = frozenset({"div", "rem", "shift_left", "shift_right_logical"})
# Compared with a number, 0 gives false: so much is known of the number.
_FALSE: dict[str, Callable[[Any], bool]] = {
    "gt": lambda c: c >= 0,
    "ge": lambda c: c > 0,
    "lt": lambda c: c <= 0,
    "le": lambda c: c < 0,
    "ne": lambda c: c == 0,
    # And so of these.
    "max": lambda c: c <= 0,
    "min": lambda c: c >= 0,
    "pow": lambda c: c > 0,
}


def said(fault: Fault) -> str:
    """What stands against learning an axis, in words."""
    if fault.reads:
        return f"`{fault.op}` over it, of what is not zero where it is inactive, {fault.where}"
    return f"`{fault.op}` over it, {fault.where}"


def faults(
    program: Program, gates: Collection[Gate], counted: Collection[Atom] = ()
) -> list[Fault]:
    """What is not exact, if masks are multiplied in here.

    - `counted`: the axes that norms of `eqx.nn` know of.
    """
    found: list[Fault] = []
    by_path: dict[tuple[str, int], set[Atom]] = {}
    for path, dim, atom in gates:
        by_path.setdefault((path, dim), set()).add(atom)
    start = {
        path: frozenset().union(*(by_path.get((path, i), ()) for i in range(len(value.dims))))
        for path, value in program.arrays.items()
    }
    values = {id(value): start[path] for path, value in program.arrays.items()}
    ins = [values.get(id(value), frozenset()) for value in program.block.ins]
    _Flow(found, frozenset(counted)).block(program.block, ins)
    return list(dict.fromkeys(found))


@dataclasses.dataclass
class _Flow:
    found: list[Fault]
    counted: frozenset[Atom]
    # The axes of the turns of the scans around.
    turns: frozenset[Atom] = frozenset()

    def block(self, block: Block, ins: Iterable[_Zeros]) -> list[_Zeros]:
        """The zeros of the results."""
        env = dict(zip(map(id, block.ins), ins))
        zeros = lambda value: env.get(id(value), frozenset())
        for op in block.ops:
            outs = self.op(op, [zeros(value) for value in op.ins])
            for value, out in zip(op.outs, outs):
                carried = {atom for term in value.dims for atom in atoms(term)} | self.turns
                same = {x for x in out if isinstance(x, _Same)}
                env[id(value)] = frozenset(out & carried | same)
        return [zeros(value) for value in block.outs]

    def op(self, op: Op, ins: list[_Zeros]) -> list[_Zeros]:
        if op.blocks:
            return self.control(op, ins)
        if op.name in ALIKE:
            return ins[: len(op.outs)]
        for atom, reads in _taken(op):
            if not reads or not any(atom in zeros for zeros in ins):
                self.fault(op, atom, reads)
        if op.name in _MAPPED_SUMS:
            return ins
        return [_result(op, ins)] * len(op.outs)

    def fault(self, op: Op, atom: Atom, reads: bool) -> None:
        if atom.size == 1:
            return
        exact = atom in self.counted and op.where.counted
        if atom.fixed is None and not exact:
            self.found.append(Fault(atom, op.name, op.where, reads))

    def control(self, op: Op, ins: list[_Zeros]) -> list[_Zeros]:
        if op.name == "cond":
            branches = [self.block(block, ins[1:]) for block in op.blocks]
            return [frozenset.intersection(*outs) for outs in zip(*branches)]
        if op.name == "scan":
            consts, end = op.params["num_consts"], op.params["num_carry"]
            end += consts
            before, start, after = ins[:consts], ins[consts:end], ins[end:]
            body, conditions = op.blocks[0], []
            over = {a for value in op.ins[end:] for a in atoms(value.dims[0])}
            turns = frozenset(atom for atom in over if atom.fixed is None)
        else:
            first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
            before, start, after = ins[first : first + second], ins[first + second :], []
            body, conditions = op.blocks[1], [(op.blocks[0], ins[:first])]
            turns = frozenset()
        around, self.turns = self.turns, self.turns | turns
        known = len(self.found)
        while True:  # until what is handed on is zero where it was
            del self.found[known:]
            same = [{_Same(atom, i) for atom in turns} for i in range(len(start))]
            carry = [a | b for a, b in zip(start, same)]
            outs = self.block(body, [*before, *carry, *after])
            kept = [a & b for a, b in zip(start, outs)]
            if kept == start:
                break
            start = kept
        self.turns = around
        for atom in turns:
            if any(_Same(atom, i) not in outs[i] for i in range(len(start))):
                self.fault(op, atom, True)
        outs = [frozenset(x for x in out if not isinstance(x, _Same)) for out in outs]
        for condition, constants in conditions:
            self.block(condition, [*constants, *start])
        return [*start, *outs[len(start) :]]


def _taken(op: Op) -> Iterable[tuple[Atom, bool]]:
    """The axes along which an operation goes, and whether zeros make it exact."""
    params, first = op.params, op.ins[0].dims if op.ins else []
    over: list[Any] = []
    if op.name == "dot_general":
        over = [first[i] for i in params["dimension_numbers"][0][0]]
    elif op.name == "conv_general_dilated" and params["feature_group_count"] == 1:
        over = [first[params["dimension_numbers"].lhs_spec[1]]]
    elif op.name == "conv_general_dilated":
        over = [op.ins[1].dims[params["dimension_numbers"].rhs_spec[1]]]
    elif op.name in REDUCTIONS:
        over = [first[i] for i in params["axes"]]
    elif op.name in ("psum", "psum_invariant", "pmax", "pmin"):
        over = [first[i] for i in mapped(op)]
    elif op.name in CUMULATIVE:
        over = [first[params["axis"]]]
    elif op.name == "rev":
        over = [first[i] for i in params["dimensions"]]
    elif op.name == "sort":
        over = [first[params["dimension"]]]
    elif op.name in ("top_k", "approx_top_k"):
        over = [first[-1]]
    reads = op.name in _SUMS
    return [(atom, reads) for term in over for atom in atoms(term)]


def _result(op: Op, ins: list[_Zeros]) -> _Zeros:
    return _zeros(op, [_plain(x) for x in ins]) | _same(op, ins)


def _plain(zeros: _Zeros) -> _Zeros:
    return frozenset(x for x in zeros if not isinstance(x, _Same))


def _same(op: Op, ins: list[_Zeros]) -> _Zeros:
    """What is left of a carry where nothing is added to it."""
    if op.name in ("convert_element_type", "copy", "copy_p"):
        return ins[0] - _plain(ins[0])
    if op.name in ("add", "add_any", "sub"):
        a, b = ins
        left = {x for x in a if isinstance(x, _Same) and x.turns in b}
        right = {x for x in b if isinstance(x, _Same) and x.turns in a and op.name != "sub"}
        return frozenset(left | right)
    return frozenset()


def _zeros(op: Op, ins: list[_Zeros]) -> _Zeros:
    name = op.name
    if not ins:
        return frozenset()
    if raises(op):
        return frozenset(a for value in op.outs for term in value.dims for a in atoms(term))
    if name in _KEEPS_ZERO or name in _FIRST:
        return ins[0]
    if name in _PRODUCTS:
        return ins[0] | ins[1]
    if name == "pad":
        return ins[0] if _is_zero(op.ins[1]) else frozenset()
    if name == "integer_pow":
        return ins[0] if op.params["y"] > 0 else frozenset()
    if name == "clamp":
        low, _, high = (value.constant for value in op.ins)
        inside = low is not None and high is not None and low <= 0 <= high
        return ins[1] if inside else frozenset()
    if name in _FALSE:
        (x, y), (one, two) = ins, (value.constant for value in op.ins)
        if two is not None:
            return x if _FALSE[name](two) else frozenset()
        if one is not None and name in ("max", "min"):
            return y if _FALSE[name](one) else frozenset()
        return x & y if name in ("max", "min", "ne", "gt", "lt") else frozenset()
    if name in ("add", "sub", "add_any", "or", "xor"):
        return _agreeing(op.ins, ins)
    if name == "select_n":
        cases = _agreeing(op.ins[1:], ins[1:])
        chosen = ins[0] if _is_zero(op.ins[1]) else ins[0] & ins[1]
        return cases | chosen
    if name == "concatenate":
        carried = [{a for term in value.dims for a in atoms(term)} for value in op.ins]
        every = set().union(*carried)
        return frozenset(
            a for a in every if all(a in z for z, c in zip(ins, carried) if a in c)
        )
    return frozenset()


def _agreeing(values: list[Value], ins: list[_Zeros]) -> _Zeros:
    """Where all are zero."""
    left = [zeros for value, zeros in zip(values, ins) if not _is_zero(value)]
    return frozenset.intersection(*left) if left else frozenset()


def _is_zero(value: Value) -> bool:
    return value.constant is not None and not value.constant
