"""Inner loops that the compiler does not vectorise by itself, in LLVM's vector types.

Each is an intrinsic for Numba's kernels. LLVM maps a vector of sixteen or more elements to the machine's registers. No
operation is fused or reordered, so the numbers equal those of scalar loops.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

CALLS = 16
"""Stage-two calls per vector."""

INT, LONG, FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_COLUMNS = 64


@intrinsic
def bits(typing_context: Any, value: Any) -> Any:
    """The bit pattern of a float32 as a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], INT)

    return types.uint32(types.float32), generate


@intrinsic
def from_bits(typing_context: Any, value: Any) -> Any:
    """The float32 with the bit pattern of a uint32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], FLOAT)

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
        lanes = ir.VectorType(LONG, CALLS)

        def constant(value: int) -> Any:
            return ir.Constant(lanes, [value] * CALLS)

        low, shift = constant(_LOW), constant(32)
        keys = data_of(context, builder, signature.args[2], arguments[2])
        k0, k1, k2, k3 = (builder.and_(builder.load(builder.gep(keys, [LONG(i)])), LONG(_LOW)) for i in range(4))
        c0 = builder.add(splat(builder, lanes, arguments[0]), ir.Constant(lanes, list(range(CALLS))))
        c0 = builder.and_(c0, low)
        c1 = builder.and_(splat(builder, lanes, arguments[1]), low)
        c2, c3 = splat(builder, lanes, k2), splat(builder, lanes, k3)
        for _ in range(10):
            p0, p1 = builder.mul(c0, constant(_M0)), builder.mul(c2, constant(_M1))
            c0 = builder.xor(builder.xor(builder.lshr(p1, shift), c1), splat(builder, lanes, k0))
            c2 = builder.xor(builder.xor(builder.lshr(p0, shift), c3), splat(builder, lanes, k1))
            c1, c3 = builder.and_(p1, low), builder.and_(p0, low)
            k0 = builder.and_(builder.add(k0, LONG(_W0)), LONG(_LOW))
            k1 = builder.and_(builder.add(k1, LONG(_W1)), LONG(_LOW))
        words = [builder.trunc(c, ir.VectorType(INT, CALLS)) for c in (c0, c1, c2, c3)]
        pairs = [_joined(builder, words[i], words[i + 1], list(range(2 * CALLS))) for i in (0, 2)]
        order = list(range(4 * CALLS)) if in_words else [CALLS * w + q for q in range(CALLS) for w in range(4)]
        made = _joined(builder, pairs[0], pairs[1], order)
        store_vector(builder, made, data_of(context, builder, signature.args[3], arguments[3]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, key, out, by_word), generate


@intrinsic
def signs(typing_context: Any, word: Any, out: Any, at: Any) -> Any:
    """out[at .. at + 32] <- 1 where the word's bit is 0, -1 where it is 1, low bit first. word: uint32. out: float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(FLOAT, 32)
        mask = builder.bitcast(arguments[0], ir.VectorType(ir.IntType(1), 32))
        chosen = builder.select(mask, ir.Constant(lanes, [-1.0] * 32), ir.Constant(lanes, [1.0] * 32))
        store_vector(builder, chosen, builder.gep(data_of(context, builder, signature.args[1], arguments[1]), [arguments[2]]))
        return context.get_dummy_value()

    return types.void(types.uint32, out, types.int64), generate


@intrinsic
def sums_of_bytes(typing_context: Any, words: Any, table: Any, out: Any, at: Any) -> Any:
    """out[at .. at + 64] <- table[the sum of the word's four bytes] for each of words[0 .. 64].

    words: uint32. table: float32 (1,021). out: float32, of one dimension. at: int64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = 16
        lanes, mask = ir.VectorType(INT, count), ir.VectorType(ir.IntType(1), count)
        values, pointers = ir.VectorType(FLOAT, count), ir.VectorType(ir.PointerType(FLOAT), count)
        given, entries, made = (data_of(context, builder, signature.args[i], arguments[i]) for i in range(3))
        kind = ir.FunctionType(values, [pointers, INT, mask, values])
        gather = builder.module.declare_intrinsic(f"llvm.masked.gather.v{count}f32.v{count}p0f32", fnty=kind)
        halves = ir.Constant(lanes, [0x00FF00FF] * count)
        for first in range(0, CALLS * 4, count):
            word = load_vector(builder, lanes, builder.gep(given, [LONG(first)]))
            shifted = builder.lshr(word, ir.Constant(lanes, [8] * count))
            pairs = builder.add(builder.and_(word, halves), builder.and_(shifted, halves))
            total = builder.add(pairs, builder.lshr(pairs, ir.Constant(lanes, [16] * count)))
            places = _Places(builder, pointers, entries, builder.and_(total, ir.Constant(lanes, [0xFFFF] * count)))
            found = builder.call(gather, [places, INT(4), ir.Constant(mask, [1] * count), ir.Constant(values, ir.Undefined)])
            store_vector(builder, found, builder.gep(made, [builder.add(arguments[3], LONG(first))]))
        return context.get_dummy_value()

    return types.void(words, table, out, types.int64), generate


class _Places(ir.Instruction):
    """The addresses of the entries at a vector of indices: a getelementptr that llvmlite's builder cannot make."""

    def __init__(self, builder: Any, kind: Any, entries: Any, indices: Any) -> None:
        super().__init__(builder.block, kind, "getelementptr", [entries, indices])
        builder._insert(self)

    def descr(self, buf: Any) -> None:
        entries, indices = self.operands
        of = f"{entries.type.pointee}, {entries.type} {entries.get_reference()}"
        buf.append(f"getelementptr {of}, {indices.type} {indices.get_reference()}\n")


@intrinsic
def subtract_products(typing_context: Any, value: Any, at: Any, left: Any, right: Any, first: Any, stride: Any) -> Any:
    """value[at .. at + 64] -= left[q] * right[first + q * stride .. + 64] for every q in order, the value in registers.

    value, left, right: float32, of one dimension. at, first, stride: int64. Each product is rounded before it is
    subtracted.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = ir.VectorType(FLOAT, _COLUMNS)
        kinds = signature.args
        held = builder.gep(data_of(context, builder, kinds[0], arguments[0]), [arguments[1]])
        factors = make_array(kinds[2])(context, builder, arguments[2])
        products = data_of(context, builder, kinds[3], arguments[3])
        count = builder.extract_value(factors.shape, 0)
        running = cgutils.alloca_once(builder, lanes)
        builder.store(load_vector(builder, lanes, held), running, align=4)
        with cgutils.for_range(builder, count, intp=LONG) as loop:
            one = splat(builder, lanes, builder.load(builder.gep(factors.data, [loop.index])))
            place = builder.add(arguments[4], builder.mul(loop.index, arguments[5]))
            product = builder.fmul(one, load_vector(builder, lanes, builder.gep(products, [place])))
            builder.store(builder.fsub(builder.load(running, align=4), product), running, align=4)
        store_vector(builder, builder.load(running, align=4), held)
        return context.get_dummy_value()

    return types.void(value, types.int64, left, right, types.int64, types.int64), generate


def data_of(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return make_array(kind)(context, builder, array).data


def splat(builder: Any, lanes: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, INT(0))
    return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(INT, lanes.count), None))


def _joined(builder: Any, one: Any, other: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT, len(order)), order))


def load_vector(builder: Any, lanes: Any, pointer: Any, align: int = 4) -> Any:
    return builder.load(builder.bitcast(pointer, lanes.as_pointer()), align=align)


def store_vector(builder: Any, vector: Any, pointer: Any, align: int = 4) -> None:
    builder.store(vector, builder.bitcast(pointer, vector.type.as_pointer()), align=align)
