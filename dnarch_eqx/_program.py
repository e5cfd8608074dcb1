# A function of a module, traced once: its operations in their order, calls opened up, with the
# dimensions of all values as terms. What operations say of dimensions is in `_rules.py`.

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import Literal
from jaxtyping import Array, PyTree

from ._stateful import paths
from ._terms import fix, new, Term, unify
from ._where import Where, where as find


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program.

    - `dims`: its dimensions.
    - `array`: if it is one of the module's, moved at most: its path, and for each dimension
        the ones of that array that it consists of.
    - `marks`: whether it is one of booleans.
    - `constant`: if it is known to be one number everywhere: which.
    - `itemsize`: the bytes of one element.
    """

    dims: list[Term]
    array: tuple[str, tuple[tuple[int, ...], ...]] | None = None
    constant: Any = None
    marks: bool = False
    itemsize: int = 4


@dataclasses.dataclass(eq=False)
class Op:
    """An operation. `blocks` are those of loops and branches."""

    name: str
    params: Mapping[str, Any]
    ins: list[Value]
    outs: list[Value]
    where: Where
    blocks: "tuple[Block, ...]" = ()


@dataclasses.dataclass(eq=False)
class Block:
    """Operations in a row, from arguments to results."""

    ins: list[Value]
    ops: list[Op]
    outs: list[Value]


@dataclasses.dataclass(eq=False)
class Program:
    """What was traced.

    - `arrays`: path to value, of the arrays of the module.
    - `block`: all of it.
    """

    arrays: dict[str, Value]
    block: Block

    def ops(self) -> Iterator[Op]:
        """All operations, those within others too."""
        return _ops(self.block)


def _ops(block: Block) -> Iterator[Op]:
    for op in block.ops:
        yield op
        for inner in op.blocks:
            yield from _ops(inner)


# From an operation, and what walks through inner programs, to the dimensions of its results.
Rule = Callable[["Walk", Op, list[tuple[int, ...]]], list[list[Term]]]


def trace(
    call: Callable[..., PyTree],
    model: PyTree,
    inputs: tuple[PyTree, ...],
    rules: Callable[[str], Rule | None],
    follow: Callable[[Op], None],
) -> Program:
    """Traces `call(model, *inputs)`. Sizes of inputs and outputs are fixed, but those of an
    `eqx.nn.State`, whose arrays are the module's.
    """
    closed, leaves, labels, returned = _jaxpr(call, model, inputs)
    arrays, ins = {}, []
    for label, x in zip(labels, leaves):
        # Integers may be indices; which positions are active is not fixed.
        if label is not None and (jnp.issubdtype(x.dtype, jnp.inexact) or x.dtype == bool):
            at = tuple((i,) for i in range(len(x.shape)))
            value = Value([new(n) for n in x.shape], (label, at))
            value.marks = x.dtype == bool
            arrays[label] = value
        else:
            why = "an input" if label is None else "an array of integers of the module"
            value = Value([new(n, why) for n in x.shape])
        value.itemsize = _itemsize(x)
        ins.append(value)
    walk = Walk(rules, follow, [])
    outs = walk.run(closed.jaxpr, _constants(closed.consts), ins, Where("", ""), ())
    for label, value in zip(returned, outs):
        if label in arrays:
            same([value], [arrays[label]], f"the state at {label!r}")
            continue
        for term in value.dims:
            fix(term, "an output")
    return Program(arrays, Block(ins, walk.ops, outs))


def outline(
    call: Callable[..., PyTree], model: PyTree, inputs: tuple[PyTree, ...]
) -> list[str]:
    """The names of the operations, as in `Program.ops`."""

    def names(jaxpr: Any) -> Iterator[str]:
        for eqn in jaxpr.eqns:
            called = _called(eqn)
            if called is None:
                yield eqn.primitive.name
            inner = _inner(eqn) if called is None else [called]
            for one in inner:
                yield from names(getattr(one, "jaxpr", one))

    return list(names(_jaxpr(call, model, inputs)[0].jaxpr))


def _jaxpr(
    call: Callable[..., PyTree], model: PyTree, inputs: tuple[PyTree, ...]
) -> tuple[Any, list[Any], list[str | None], list[str | None]]:
    """The program, the arrays that go in, and of these and of its results the paths in the
    model.
    """
    dynamic, static = eqx.partition((model, inputs), _is_traced)
    leaves, treedef = jtu.tree_flatten(dynamic)
    labels: list[str | None] = []
    labels += [jtu.keystr(path) for path, _ in jtu.tree_leaves_with_path(dynamic[0])]
    labels += paths(model, dynamic[1])
    returned: list[str | None] = []

    def flat(*arrays: Array) -> list[Array]:
        model, inputs = eqx.combine(treedef.unflatten(arrays), static)
        outputs = eqx.filter(call(model, *inputs), eqx.is_array)
        returned[:] = paths(model, outputs)
        return jtu.tree_leaves(outputs)

    return jax.make_jaxpr(flat)(*leaves), leaves, labels, returned


@dataclasses.dataclass(eq=False)
class Walk:
    """Goes through a traced program, operation by operation."""

    rules: Callable[[str], Rule | None]
    follow: Callable[[Op], None]
    ops: list[Op]
    # Of calls around: where they are, and the names of the functions.
    around: tuple[Where, tuple[str, ...]] = (Where("", ""), ())

    def run(
        self,
        jaxpr: Any,
        constants: Sequence[Value],
        ins: Sequence[Value],
        around: Where,
        calls: tuple[str, ...],
    ) -> list[Value]:
        """The results of a program in place: its operations are part of this one."""
        env: dict[Any, Value] = {}
        env.update(zip(jaxpr.constvars, constants))
        env.update(zip(jaxpr.invars, ins))

        def read(x: Any) -> Value:
            if isinstance(x, Literal):
                scalar = np.ndim(x.val) == 0
                dims = [new(n, "a constant") for n in np.shape(x.val)]
                return Value(dims, None, x.val if scalar else None)
            return env[x]

        for eqn in jaxpr.eqns:
            where = find(eqn, around, calls)
            outs = self._eqn(eqn, [read(x) for x in eqn.invars], where, calls)
            env.update(zip(eqn.outvars, outs))
        return [read(x) for x in jaxpr.outvars]

    def block(self, closed: Any, ins: Sequence[Value], op: Op) -> Block:
        """The body of a loop or a branch, with operations of its own."""
        inner = Walk(self.rules, self.follow, [], self.around)
        around, calls = op.where, self.around[1]
        jaxpr, consts = getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())
        outs = inner.run(jaxpr, _constants(consts), ins, around, calls)
        return Block(list(ins), inner.ops, outs)

    def _eqn(
        self, eqn: Any, ins: list[Value], where: Where, calls: tuple[str, ...]
    ) -> list[Value]:
        name, shapes = eqn.primitive.name, [_shape(var) for var in eqn.outvars]
        if (inner := _called(eqn)) is not None:
            calls = (*calls, str(eqn.params.get("name", "")))
            jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            return self.run(jaxpr, _constants(consts), ins, where, calls)
        op = Op(name, eqn.params, ins, [], where)
        rule = self.rules(name)
        self.around = (where, calls)
        dims = None if rule is None else rule(self, op, shapes)
        if dims is None:
            dims = unknown(op, shapes)
        op.outs = [Value(d, itemsize=_itemsize(v.aval)) for d, v in zip(dims, eqn.outvars)]
        self.follow(op)
        self.ops.append(op)
        return op.outs


def _itemsize(x: Any) -> int:
    return int(getattr(x.dtype, "itemsize", 4)) if hasattr(x, "dtype") else 4


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def unknown(op: Op, shapes: list[tuple[int, ...]]) -> list[list[Term]]:
    """All that an operation touches is fixed: nothing is known of it."""
    why = f"`{op.name}`, of which nothing is known, {op.where}"
    for value in op.ins:
        for term in value.dims:
            fix(term, why)
    return [[new(n, why) for n in shape] for shape in shapes]


def _called(eqn: Any) -> Any:
    """The program that an operation does nothing but call."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return None
    for key in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        jaxpr = getattr(inner, "jaxpr", inner)
        if hasattr(jaxpr, "eqns") and len(jaxpr.invars) == len(eqn.invars):
            return inner
    return None


def _inner(eqn: Any) -> list[Any]:
    """The programs of a loop or branch."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        return [params["jaxpr"]]
    if eqn.primitive.name == "while":
        return [params["cond_jaxpr"], params["body_jaxpr"]]
    return list(params["branches"]) if eqn.primitive.name == "cond" else []


def _constants(consts: Sequence[Any]) -> list[Value]:
    why = "a constant"
    return [Value([new(n, why) for n in np.shape(x)]) for x in consts]


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def same(values: Sequence[Value], others: Sequence[Value], why: str) -> None:
    """As those that a loop hands from one turn to the next."""
    for a, b in zip(values, others):
        for x, y in zip(a.dims, b.dims):
            unify(x, y, why)


def why(op: Op) -> str:
    """Why an operation fixes what it touches."""
    return f"`{op.name}`, {op.where}"
