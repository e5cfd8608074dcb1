# Dimensions of a traced program as terms: products and concatenations of atoms. Atoms start out
# unknown; operations say which dimensions are the same, and so which atoms. Mutable, for as
# long as one program is traced.

import dataclasses
import itertools as it
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias


class Atom:
    """A part of a dimension that nothing divides: an axis, once all is unified."""

    __slots__ = ("bound", "fixed", "size")

    def __init__(self, size: int, fixed: str | None = None):
        self.size = size
        # Why it cannot change.
        self.fixed = fixed
        # What it was found to be.
        self.bound: Term | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Cat:
    """Dimensions one after the other."""

    parts: "tuple[Term, ...]"


# A product, slowest first; of size 1 if it is empty.
Term: TypeAlias = tuple[Atom | Cat, ...]


def new(size: int, fixed: str | None = None) -> Term:
    """A dimension of which nothing more is known."""
    return () if size == 1 else (Atom(size, fixed),)


def resolved(term: Term) -> Term:
    """What is known now, with concatenations of concatenations flattened."""
    if all(type(part) is Atom and part.bound is None for part in term):
        return term
    out: list[Atom | Cat] = []
    for part in term:
        if isinstance(part, Cat):
            out.append(Cat(tuple(_flat(part))))
        elif part.bound is None:
            out.append(part)
        else:
            out += resolved(part.bound)
    return tuple(out)


def _flat(cat: Cat) -> Iterator[Term]:
    for part in map(resolved, cat.parts):
        if len(part) == 1 and isinstance(part[0], Cat):
            yield from part[0].parts
        else:
            yield part


def size(term: Term) -> int:
    if len(term) == 1 and type(term[0]) is Atom:
        return term[0].size
    return math.prod(map(_size, term))


def _size(part: Atom | Cat) -> int:
    return part.size if isinstance(part, Atom) else sum(map(size, part.parts))


def atoms(term: Term) -> Iterator[Atom]:
    """All of them, those within concatenations too."""
    for part in resolved(term):
        if isinstance(part, Atom):
            yield part
        else:
            for inner in part.parts:
                yield from atoms(inner)


def fix(term: Term, why: str) -> None:
    """It keeps its size. The first reason counts."""
    for atom in atoms(term):
        atom.fixed = atom.fixed or why


def unify(a: Term, b: Term, why: str) -> None:
    """They are the same. What cannot be is fixed, for this reason."""
    one, two = _parts(a), _parts(b)
    while one and two:
        p, q = one[0], two[0]
        if p is q:
            del one[0], two[0]
        elif _size(p) == _size(q):
            del one[0], two[0]
            _same(p, q, why)
        else:
            (small, rest), (large, other) = sorted(
                [(p, one), (q, two)], key=lambda pair: _size(pair[0])
            )
            split = _divided(large, _size(small), why)
            if split is None:
                break
            del other[0]
            other[:0] = split
            if isinstance(large, Cat):  # a count of equal parts
                _fix_part(small, why)
        one, two = _parts(tuple(one)), _parts(tuple(two))
    if one or two:
        fix((*one, *two), why)


def _parts(term: Term) -> list[Atom | Cat]:
    return [part for part in resolved(term) if _size(part) != 1]


def _same(p: Atom | Cat, q: Atom | Cat, why: str) -> None:
    """Parts of the same size."""
    if isinstance(p, Atom):
        return _bind(p, (q,), why)
    if isinstance(q, Atom):
        return _bind(q, (p,), why)
    one, two = list(p.parts), list(q.parts)
    while one and two:
        if size(one[0]) == size(two[0]):
            unify(one.pop(0), two.pop(0), why)
        elif size(one[0]) > size(two[0]):
            one[:1] = cut(one[0], [size(two[0])], why)
        else:
            two[:1] = cut(two[0], [size(one[0])], why)


def _bind(atom: Atom, term: Term, why: str) -> None:
    inside = list(atoms(term))
    if atom in inside:
        if resolved(term) != (atom,):
            fix(term, why)
        return
    if atom.fixed is not None:
        for other in inside:
            other.fixed = other.fixed or atom.fixed
    atom.bound = term


def _divided(part: Atom | Cat, lead: int, why: str) -> Term | None:
    """A part as a product whose first factor has this size; `None` if it is none."""
    if _size(part) % lead:
        return None
    if isinstance(part, Atom):
        term = (*new(lead), *new(part.size // lead))
        _bind(part, term, why)
        return resolved(term)
    # Equal parts one after the other are a product: of their number and one of them.
    parts = [piece for piece in part.parts]
    if len(parts) % lead or len({size(piece) for piece in parts}) > 1:
        return None
    step = len(parts) // lead
    first = parts[:step]
    for i, piece in enumerate(parts[step:]):
        unify(piece, first[i % step], why)
    rest = first[0] if step == 1 else (Cat(tuple(first)),)
    return (*new(lead, f"{why}, a number of equal parts"), *resolved(rest))


def _fix_part(part: Atom | Cat, why: str) -> None:
    fix((part,), f"{why}, a number of equal parts")


def cut(term: Term, at: Sequence[int], why: str) -> list[Term]:
    """The pieces of a dimension between these places."""
    term = resolved(term)
    bounds = [0, *at, size(term)]
    sizes = [high - low for low, high in it.pairwise(bounds)]
    if not at:
        return [term]
    if len(term) == 1 and isinstance(term[0], Atom):
        pieces = [new(n) for n in sizes]
        if term[0].fixed:
            return [new(n, term[0].fixed) for n in sizes]
        # A piece of size 1 has to remain a piece.
        _bind(term[0], (Cat(tuple(p or (Atom(1, why),) for p in pieces)),), why)
        return pieces
    if len(term) == 1 and isinstance(term[0], Cat):
        return _cut_parts(list(term[0].parts), bounds, why)
    lead, inner = term[0], size(term[1:])
    if all(bound % inner == 0 for bound in bounds):
        heads = cut((lead,), [bound // inner for bound in at], why)
        return [(*head, *term[1:]) for head in heads]
    fix(term, why)
    return [new(n, why) for n in sizes]


def _cut_parts(parts: list[Term], bounds: list[int], why: str) -> list[Term]:
    out: list[Term] = []
    for low, high in it.pairwise(bounds):
        need, piece = high - low, []
        while need:
            if size(parts[0]) > need:
                parts[:1] = cut(parts[0], [need], why)
            need -= size(parts[0])
            piece.append(parts.pop(0))
        out.append(piece[0] if len(piece) == 1 else (Cat(tuple(piece)),))
    return out


def reshape(terms: Sequence[Term], shape: Sequence[int], why: str) -> list[Term]:
    """The dimensions of an array after a reshape: split and merged where sizes say so."""
    left = [part for term in terms for part in resolved(term)]
    out: list[Term] = []
    for position, n in enumerate(shape):
        need, term = n, []
        while need > 1:
            if not left:
                return [*out, *(new(m, why) for m in shape[position:])]
            part, rest = left[0], _size(left[0])
            if need % rest == 0:
                term.append(left.pop(0))
                need //= rest
                continue
            split = _divided(part, need, why) if rest % need == 0 else None
            if split is None:
                # Neither divides the other: all that is left keeps its size.
                fix((*left, *term), why)
                return [*out, *(new(m, why) for m in shape[position:])]
            left[:1] = split
        out.append(tuple(term))
    return out
