# What a program computes in Python from the sizes of its arrays, and so would compute otherwise
# under another plan: the number that a mean divides by, a number of heads that a module keeps.
# It shows when the same program is traced once more, at other sizes.

import collections
import dataclasses
import itertools as it
import math
import re
import traceback
from collections.abc import Iterator, Mapping

import numpy as np

from ._program import Op, Program
from ._terms import Atom, atoms, resolved, size, Term
from ._where import is_users, Where


@dataclasses.dataclass(frozen=True)
class Stale:
    """What is not as it has to be at other sizes.

    - `near`: the axes that lie on what is computed at this place.
    """

    what: str
    where: Where
    near: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.what}, {self.where}"


# These layers of `eqx.nn` are brought in line by what `materialize` gives them.
_IN_LINE = frozenset({"eqx.nn.MultiheadAttention"})


def stale(
    full: Program, small: Program, names: Mapping[Atom, str], sizes: Mapping[str, int]
) -> list[Stale]:
    """Compares a program with the same one at other sizes.

    - `names`: of the axes of `full`.
    - `sizes`: those of `small`, by name; of others they are as in `full`.
    """
    found: list[Stale] = []
    add = lambda what, op: found.append(
        Stale(what, op.where, near(full, op.where.place, names))
    )
    # Blocks that are left out are not there.
    there = (
        op for op in full.ops() if all(i < sizes.get(x, i + 1) for x, i in op.where.blocks)
    )
    for a, b in it.zip_longest(there, small.ops()):
        if a is None or b is None or a.name != b.name or len(a.ins) != len(b.ins):
            op = a or b
            assert op is not None
            add("Python goes another way at another size", op)
            break
        known = bool(a.outs) and all(value.constant is not None for value in a.outs)
        # Of what is only computed on the way to a number, the number counts.
        for x, y in zip(a.ins, b.ins) if not known else ():
            if x.constant is None or y.constant is None or a.where.layer in _IN_LINE:
                continue
            if not np.array_equal(x.constant, y.constant, equal_nan=True):
                add(f"{x.constant} becomes {y.constant} at another size", a)
        for x, y in zip(a.outs, b.outs):
            wanted, given = _shape(x.dims, names, sizes), tuple(map(size, y.dims))
            free = [_is_free(term, names) for term in x.dims]
            if any(m != n and not f for m, n, f in zip(wanted, given, free)):
                add(f"`{a.name}` gives the shape {given} where {wanted} is right", a)
                return list(dict.fromkeys(found))
    return list(dict.fromkeys(found))


def otherwise(full: Program, small: list[str], names: Mapping[Atom, str]) -> list[Stale]:
    """Compares a program with the outline of the same one, where sizes agree."""
    for a, b in it.zip_longest(full.ops(), small):
        if a is None or a.name != b:
            what = "where sizes are equal Python goes another way"
            op = a or list(full.ops())[-1]
            return [Stale(what, op.where, near(full, op.where.place, names))]
    return []


def distinct(capacities: Mapping[str, int]) -> dict[str, int]:
    """Smaller sizes, different ones as far as there are, so that none agree by chance. Of very
    many axes those that differ by numbers in their names get the same: JAX traces layers of
    the same shapes quicker.
    """
    many = len(capacities) > 16
    kind = lambda axis: re.sub(r"\d+", "*", axis) if many else axis
    kinds = {(capacity, kind(axis)): 0 for axis, capacity in sorted(capacities.items())}
    used: set[int] = set()
    for capacity, name in sorted(kinds):
        lowest = min(2, max(capacity - 1, 1))
        some = range(max(capacity - 1, 1), lowest - 1, -1)
        kinds[capacity, name] = next((n for n in some if n not in used), some[0])
        used.add(kinds[capacity, name])
    return {axis: kinds[capacity, kind(axis)] for axis, capacity in capacities.items()}


def agreeing(program: Program, capacities: Mapping[str, int]) -> list[dict[str, int]]:
    """Plans under which sizes agree that do not otherwise, with one another and with sizes
    that are fixed: what Python does where it compares them.
    """
    fixed = collections.Counter(
        atom.size
        for value in program.arrays.values()
        for term in value.dims
        for atom in atoms(term)
        if atom.fixed is not None and atom.size > 1
    )
    below = [n for n, _ in fixed.most_common() if n < max(capacities.values(), default=0)]
    below = below or [max(2, min(capacities.values(), default=2) - 1)]
    # Each is another trace, which takes long where there are thousands of operations.
    few = 1 if sum(1 for _ in program.ops()) > 1000 else 3
    plans = [{axis: n for axis, m in capacities.items() if m > n} for n in below[:few]]
    return list(filter(None, plans))


def failed(full: Program, error: Exception, names: Mapping[Atom, str]) -> Stale:
    """The program cannot be traced at other sizes."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if is_users(frame.filename)]
    place = ""
    if users:
        last = users[-1]
        place = f"{last.filename}:{last.lineno} ({last.name})"
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    what = f"at another size it fails ({line})"
    lines = {op.where.place for op in full.ops()}
    # Names of functions are more exact where a program was traced.
    same = [p for p in lines if p.rsplit(" (", 1)[0] == place.rsplit(" (", 1)[0]]
    place = same[0] if same else place
    return Stale(what, Where(place, ""), near(full, place, names))


def near(program: Program, place: str, names: Mapping[Atom, str]) -> tuple[str, ...]:
    """The axes that lie on what is computed there."""
    found = {
        names[atom]
        for op in program.ops()
        if op.where.place == place
        for atom in _atoms(op)
        if atom in names
    }
    return tuple(sorted(found))


def named(
    terms: Mapping[str, tuple[Term, ...]], names: Mapping[Atom, str], other: Program
) -> dict[Atom, str]:
    """The names of the axes of another program of the same arrays."""
    found: dict[Atom, str] = {}
    for path, dims in terms.items():
        value = other.arrays.get(path)
        for one, two in zip(dims, () if value is None else value.dims):
            for a, b in _pairs(one, two):
                if a in names:
                    found[b] = names[a]
    return found


def _pairs(one: Term, two: Term) -> Iterator[tuple[Atom, Atom]]:
    for a, b in zip(resolved(one), resolved(two)):
        if isinstance(a, Atom) and isinstance(b, Atom):
            yield a, b
        elif not isinstance(a, Atom) and not isinstance(b, Atom):
            for x, y in zip(a.parts, b.parts):
                yield from _pairs(x, y)


def _atoms(op: Op) -> Iterator[Atom]:
    for value in (*op.ins, *op.outs):
        for term in value.dims:
            yield from atoms(term)


def _shape(
    dims: list[Term], names: Mapping[Atom, str], sizes: Mapping[str, int]
) -> tuple[int, ...]:
    def count(term: Term) -> int:
        return math.prod(
            sizes.get(names.get(part, ""), part.size)
            if isinstance(part, Atom)
            else sum(map(count, part.parts))
            for part in resolved(term)
        )

    return tuple(map(count, dims))


def _is_free(term: Term, names: Mapping[Atom, str]) -> bool:
    """Whether nothing of the module or its inputs goes with it: it may be of any size."""
    return any(atom.fixed is None and atom not in names for atom in atoms(term))
