# What loops and branches say of dimensions.

from ._program import Block, Op, Rule, same, Value, Walk, why
from ._terms import new, Term, unify


Shapes = list[tuple[int, ...]]


def _scan(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    consts, carries = op.params["num_consts"], op.params["num_carry"]
    start, over = op.ins[consts : consts + carries], op.ins[consts + carries :]
    length = over[0].dims[0] if over else new(op.params["length"], f"turns of {why(op)}")
    for value in over[1:]:
        unify(length, value.dims[0], why(op))
    slices = [_sliced(value) for value in over]
    block = walk.block(op.params["jaxpr"], [*op.ins[: consts + carries], *slices], op)
    op.blocks = (block,)
    same(start, block.outs[:carries], why(op))
    stacked = [[length, *value.dims] for value in block.outs[carries:]]
    return [*(list(value.dims) for value in start), *stacked]


def _sliced(value: Value) -> Value:
    array = None if value.array is None else (value.array[0], value.array[1][1:])
    return Value(list(value.dims[1:]), array, itemsize=value.itemsize)


def _while(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    first, second = op.params["cond_nconsts"], op.params["body_nconsts"]
    start = op.ins[first + second :]
    condition = walk.block(op.params["cond_jaxpr"], [*op.ins[:first], *start], op)
    body = walk.block(op.params["body_jaxpr"], [*op.ins[first : first + second], *start], op)
    op.blocks = (condition, body)
    same(start, body.outs, why(op))
    return [list(value.dims) for value in start]


def _cond(walk: Walk, op: Op, shapes: Shapes) -> list[list[Term]]:
    op.blocks = tuple(walk.block(b, op.ins[1:], op) for b in op.params["branches"])
    first: Block = op.blocks[0]
    for other in op.blocks[1:]:
        same(first.outs, other.outs, why(op))
    return [list(value.dims) for value in first.outs]


CONTROL: dict[str, Rule] = {"scan": _scan, "while": _while, "cond": _cond}
