"""The inner loops that a compiler does not vectorise by itself, written in LLVM's vector types.

Each is an intrinsic for Numba's kernels. A vector of sixteen or more elements becomes whatever registers the machine has; no
operation is fused or reordered, so the numbers are those of the scalar loops.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

CALLS = 16
"""Stage-two calls that are made at a time."""

_INT, _LONG, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_COLUMNS = 64


@intrinsic
def bits(typing_context: Any, value: Any) -> Any:
    """The bit pattern of a float32 as a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INT)

    return types.uint32(types.float32), generate


@intrinsic
def from_bits(typing_context: Any, value: Any) -> Any:
    """The float32 with the bit pattern of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.uint32), generate


@intrinsic
def sixteen_calls(typing_context: Any, first: Any, row: Any, key: Any, out: Any, by_word: Any) -> Any:
    """Stage-two calls `first` to `first + 15` of a row, under the stream key[0 .. 3].

    first, row: int64. key: uint64 (4,). out: uint32 (64,). Word w of call q lands at out[4 q + w], or with by_word at
    out[16 w + q].
    """
    in_words = by_word.literal_value if isinstance(by_word, types.BooleanLiteral) else None
    if in_words is None:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_LONG, CALLS)

        def constant(value: int) -> Any:
            return ir.Constant(lanes, [value] * CALLS)

        low, shift = constant(_LOW), constant(32)
        keys = _data(context, builder, signature.args[2], arguments[2])
        k0, k1, k2, k3 = (builder.and_(builder.load(builder.gep(keys, [_LONG(i)])), _LONG(_LOW)) for i in range(4))
        c0 = builder.add(_splat(builder, lanes, arguments[0]), ir.Constant(lanes, list(range(CALLS))))
        c0 = builder.and_(c0, low)
        c1 = builder.and_(_splat(builder, lanes, arguments[1]), low)
        c2, c3 = _splat(builder, lanes, k2), _splat(builder, lanes, k3)
        for _ in range(10):
            p0, p1 = builder.mul(c0, constant(_M0)), builder.mul(c2, constant(_M1))
            c0 = builder.xor(builder.xor(builder.lshr(p1, shift), c1), _splat(builder, lanes, k0))
            c2 = builder.xor(builder.xor(builder.lshr(p0, shift), c3), _splat(builder, lanes, k1))
            c1, c3 = builder.and_(p1, low), builder.and_(p0, low)
            k0 = builder.and_(builder.add(k0, _LONG(_W0)), _LONG(_LOW))
            k1 = builder.and_(builder.add(k1, _LONG(_W1)), _LONG(_LOW))
        words = [builder.trunc(c, ir.VectorType(_INT, CALLS)) for c in (c0, c1, c2, c3)]
        pairs = [_joined(builder, words[i], words[i + 1], list(range(2 * CALLS))) for i in (0, 2)]
        order = list(range(4 * CALLS)) if in_words else [CALLS * w + q for q in range(CALLS) for w in range(4)]
        _store(builder, _joined(builder, pairs[0], pairs[1], order), _data(context, builder, signature.args[3], arguments[3]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, key, out, by_word), generate


@intrinsic
def signs(typing_context: Any, word: Any, out: Any, at: Any) -> Any:
    """out[at .. at + 32] <- 1 where the word's bit is 0, -1 where it is 1, low bit first. word: uint32. out: float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_FLOAT, 32)
        mask = builder.bitcast(arguments[0], ir.VectorType(ir.IntType(1), 32))
        chosen = builder.select(mask, ir.Constant(lanes, [-1.0] * 32), ir.Constant(lanes, [1.0] * 32))
        _store(builder, chosen, builder.gep(_data(context, builder, signature.args[1], arguments[1]), [arguments[2]]))
        return context.get_dummy_value()

    return types.void(types.uint32, out, types.int64), generate


@intrinsic
def subtract_products(typing_context: Any, value: Any, at: Any, left: Any, right: Any, first: Any, stride: Any) -> Any:
    """value[at .. at + 64] -= left[q] * right[first + q * stride .. + 64] for every q in order, the value in registers.

    value, left, right: float32, of one dimension. at, first, stride: int64. Each product is rounded before it is subtracted.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(_FLOAT, _COLUMNS)
        kinds = signature.args
        held = builder.gep(_data(context, builder, kinds[0], arguments[0]), [arguments[1]])
        factors = make_array(kinds[2])(context, builder, arguments[2])
        products = _data(context, builder, kinds[3], arguments[3])
        count = builder.extract_value(factors.shape, 0)
        running = cgutils.alloca_once(builder, lanes)
        builder.store(_load(builder, lanes, held), running, align=4)
        with cgutils.for_range(builder, count, intp=_LONG) as loop:
            one = _splat(builder, lanes, builder.load(builder.gep(factors.data, [loop.index])))
            place = builder.add(arguments[4], builder.mul(loop.index, arguments[5]))
            product = builder.fmul(one, _load(builder, lanes, builder.gep(products, [place])))
            builder.store(builder.fsub(builder.load(running, align=4), product), running, align=4)
        _store(builder, builder.load(running, align=4), held)
        return context.get_dummy_value()

    return types.void(value, types.int64, left, right, types.int64, types.int64), generate


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return make_array(kind)(context, builder, array).data


def _splat(builder: Any, lanes: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, _INT(0))
    return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(_INT, lanes.count), None))


def _joined(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT, len(order)), order))


def _load(builder: Any, lanes: Any, pointer: Any) -> Any:
    return builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=4)


def _store(builder: Any, vector: Any, pointer: Any) -> None:
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=4)
