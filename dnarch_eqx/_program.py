# A function of a module, traced once: its operations in their order, calls opened up, with the
# dimensions of all values as terms. What operations say of dimensions is in `_rules.py`.

import dataclasses
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax.extend.core import Literal
from jaxtyping import PyTree

from ._terms import fix, new, resolved, Term, unify


@dataclasses.dataclass(frozen=True)
class Where:
    """Where in a user's program something is computed.

    - `place`: file, line and function, or "" if no file of the user is known.
    - `layer`: the layer of `eqx.nn` in which it is, or "".
    """

    place: str
    layer: str

    def __str__(self) -> str:
        inside = f"`{self.layer}`" if self.layer else ""
        return ", ".join(filter(None, [inside, self.place])) or "an unknown place"


@dataclasses.dataclass(eq=False)
class Value:
    """An array of the program.

    - `dims`: its dimensions.
    - `array`: if it is one of the module's, moved at most: its path, and for each dimension
        the ones of that array that it consists of.
    - `marks`: whether it is one of booleans.
    - `constant`: if it is known to be one number everywhere: which.
    """

    dims: list[Term]
    array: tuple[str, tuple[tuple[int, ...], ...]] | None = None
    constant: Any = None
    marks: bool = False


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
) -> Program:
    """Traces `call(model, *inputs)`. Sizes of inputs and outputs are fixed."""
    dynamic, static = eqx.partition((model, inputs), _is_traced)
    leaves, treedef = jtu.tree_flatten_with_path(dynamic)

    def flat(*arrays):
        model, inputs = eqx.combine(treedef.unflatten(arrays), static)
        return jtu.tree_leaves(eqx.filter(call(model, *inputs), eqx.is_array))

    closed = jax.make_jaxpr(flat)(*(x for _, x in leaves))
    arrays, ins = {}, []
    for (path, x), var in zip(leaves, closed.jaxpr.invars):
        of_model, shape = path[0].idx == 0, var.aval.shape
        # Integers may be indices; which positions are active is not fixed.
        if of_model and (jnp.issubdtype(x.dtype, jnp.inexact) or x.dtype == bool):
            at = tuple((i,) for i in range(len(shape)))
            value = Value([new(n) for n in shape], (jtu.keystr(path[1:]), at))
            value.marks = x.dtype == bool
            arrays[jtu.keystr(path[1:])] = value
        else:
            why = "an array of integers of the module" if of_model else "an input"
            value = Value([new(n, why) for n in shape])
        ins.append(value)
    walk = Walk(rules, [])
    outs = walk.run(closed.jaxpr, _constants(closed.consts), ins, Where("", ""), ())
    for value in outs:
        for term in value.dims:
            fix(term, "an output")
    return Program(arrays, Block(ins, walk.ops, outs))


@dataclasses.dataclass(eq=False)
class Walk:
    """Goes through a traced program, operation by operation."""

    rules: Callable[[str], Rule | None]
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
            where = _where(eqn, around, calls)
            outs = self._eqn(eqn, [read(x) for x in eqn.invars], where, calls)
            env.update(zip(eqn.outvars, outs))
        return [read(x) for x in jaxpr.outvars]

    def block(self, closed: Any, ins: Sequence[Value], op: Op) -> Block:
        """The body of a loop or a branch, with operations of its own."""
        inner = Walk(self.rules, [], self.around)
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
        op.outs = [Value(d) for d in dims]
        _follow(op)
        self.ops.append(op)
        return op.outs


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


def _constants(consts: Sequence[Any]) -> list[Value]:
    why = "a constant"
    return [Value([new(n, why) for n in np.shape(x)]) for x in consts]


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _follow(op: Op) -> None:
    """Arrays of the module are followed through what only moves them, numbers through all that
    is computed of them alone.
    """
    value, params = op.ins[0] if op.ins else None, op.params
    if value is None or not op.outs:
        return
    if all(x.constant is not None for x in op.ins):
        op.outs[0].constant = _computed(op)
    if value.array is None:
        return
    path, at = value.array
    moved: Any = None
    if op.name in ("convert_element_type", "copy", "copy_p", "stop_gradient", "slice", "mul"):
        scalar = op.name != "mul" or not op.ins[1].dims
        moved = at if scalar else None
    elif op.name == "transpose":
        moved = tuple(at[i] for i in params["permutation"])
    elif op.name == "squeeze":
        moved = tuple(x for i, x in enumerate(at) if i not in params["dimensions"])
    elif op.name == "broadcast_in_dim":
        source = dict(zip(params["broadcast_dimensions"], at))
        moved = tuple(source.get(i, ()) for i in range(len(params["shape"])))
    elif op.name in ("reshape", "split", "dynamic_slice"):
        # By the atoms that dimensions have: those of a module's array lie where they lay.
        moved = None
        if op.name == "reshape":
            moved = _reshaped(value, op.outs[0], at)
    if moved is not None:
        op.outs[0].array = path, moved


_COMPUTED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "and": np.logical_and,
    "broadcast_in_dim": lambda x: x,
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "eq": np.equal,
    "exp": np.exp,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "log": np.log,
    "lt": np.less,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "ne": np.not_equal,
    "neg": np.negative,
    "not": np.logical_not,
    "or": np.logical_or,
    "reshape": lambda x: x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "select_n": lambda which, *cases: cases[int(which)],
    "sqrt": np.sqrt,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
}


def _computed(op: Op) -> Any:
    numbers = [value.constant for value in op.ins]
    if op.name == "integer_pow":
        return numbers[0] ** op.params["y"]
    if op.name == "div":
        whole = all(isinstance(x, int | np.integer) for x in numbers)
        return numbers[0] // numbers[1] if whole and numbers[1] else np.divide(*numbers)
    return _COMPUTED[op.name](*numbers) if op.name in _COMPUTED else None


def _reshaped(
    before: Value, after: Value, at: tuple[tuple[int, ...], ...]
) -> tuple[tuple[int, ...], ...]:
    lies = {part: x for term, x in zip(before.dims, at) for part in resolved(term)}
    return tuple(
        tuple(sorted({i for part in resolved(term) for i in lies.get(part, ())}))
        for term in after.dims
    )


#
# Files and lines.
#


_OURS = str(Path(__file__).parent)
_ROOTS = tuple(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib"))


def _where(eqn: Any, around: Where, calls: tuple[str, ...]) -> Where:
    """The innermost line of the user's. JAX keeps programs that it has traced, with the lines
    of their first call: of such a one the call counts.
    """
    layer = around.layer or _layer(str(eqn.source_info.name_stack))
    frames = [
        f for f in getattr(eqn.source_info.traceback, "frames", ()) if is_users(f.file_name)
    ]
    names = {f.function_name.split(".")[-1] for f in frames}
    if not frames or (calls and calls[-1] not in names and around.place):
        return Where(around.place, layer)
    first = frames[0]
    place = f"{first.file_name}:{first.line_num} ({first.function_name})"
    return Where(place, layer)


def is_users(file: str) -> bool:
    """Whether a file is neither ours nor a library's."""
    if file.startswith(_OURS) or file.startswith("<frozen"):
        return False
    return not any(root and file.startswith(root) for root in _ROOTS)


def _layer(stack: str) -> str:
    """The outermost layer of `eqx.nn` in a stack of names as `vmap(eqx.nn.Linear)/...`."""
    at = stack.find("eqx.nn.")
    if at < 0:
        return ""
    end = next((i for i in range(at, len(stack)) if stack[i] in ")/"), len(stack))
    return stack[at:end]


def same(values: Sequence[Value], others: Sequence[Value], why: str) -> None:
    """As those that a loop hands from one turn to the next."""
    for a, b in zip(values, others):
        for x, y in zip(a.dims, b.dims):
            unify(x, y, why)
