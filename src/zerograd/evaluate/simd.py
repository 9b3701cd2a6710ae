"""Rows of activations in LLVM's vector types: what the low-rank products and the norms do to each element.

Four rows go together, so that what they share is loaded once; each is computed as it would be alone. Activations are
given by their bits, uint32 for float32 and uint16 for bfloat16; what they meet is float32, and so are the sums, rounded
once.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from zerograd.noise.vectors import FLOAT, INT, LONG, data_of, load_vector, splat, store_vector

COLUMNS = 32
"""Columns that an intrinsic takes at a time; it serves whole multiples of them."""

_LANES, _HALF = ir.VectorType(FLOAT, COLUMNS), ir.IntType(16)


def _dots(rows: int) -> Any:
    @intrinsic
    def dots(typing_context: Any, x: Any, at: Any, stride: Any, b: Any, count: Any, sums: Any) -> Any:
        """sums[i] <- the inner product of x[at + i stride .. + count] and b[0 .. count], for each row i.

        x: uint32 or uint16. b: float32 of one dimension. sums: float32 (rows,) at least. at, stride, count: int64.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given, factor, made = (data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 3, 5))
            running = [cgutils.alloca_once_value(builder, ir.Constant(_LANES, [0.0] * COLUMNS)) for _ in range(rows)]
            with cgutils.for_range_slice(builder, LONG(0), arguments[4], LONG(COLUMNS), intp=LONG) as (k, _):
                shared = load_vector(builder, _LANES, builder.gep(factor, [k]))
                for i, total in enumerate(running):
                    place = builder.add(builder.add(arguments[1], builder.mul(arguments[2], LONG(i))), k)
                    product = builder.fmul(_exact(builder, _LANES, given, place), shared, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for i, total in enumerate(running):
                builder.store(_sum(builder, builder.load(total)), builder.gep(made, [LONG(i)]))
            return context.get_dummy_value()

        return types.void(x, types.int64, types.int64, b, types.int64, sums), generate

    return dots


def _adds(rows: int) -> Any:
    @intrinsic
    def adds(
        typing_context: Any, out: Any, at: Any, base: Any, first: Any, stride: Any, scales: Any, a: Any, shift: Any, count: Any
    ) -> Any:
        """out[at + i stride + k] <- base[first + i stride + k] + scales[i] a[k] + shift[k], for each row i and 0 <= k <
        count.

        out, base: uint32 or uint16, they may be one array. scales, a, shift: float32. at, first, stride, count: int64.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            to, given, factors, left, added = (data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 2, 5, 6, 7))
            scale = [splat(builder, _LANES, builder.load(builder.gep(factors, [LONG(i)]))) for i in range(rows)]
            with cgutils.for_range_slice(builder, LONG(0), arguments[8], LONG(COLUMNS), intp=LONG) as (k, _):
                one, plus = (load_vector(builder, _LANES, builder.gep(values, [k])) for values in (left, added))
                for i in range(rows):
                    row = builder.add(builder.mul(arguments[4], LONG(i)), k)
                    product = builder.fmul(scale[i], one, flags=("contract",))
                    before = _exact(builder, _LANES, given, builder.add(arguments[3], row))
                    total = builder.fadd(builder.fadd(before, product, flags=("contract",)), plus)
                    _round(builder, total, to, builder.add(arguments[1], row))
            return context.get_dummy_value()

        places = (types.int64,) * 2
        return types.void(out, types.int64, base, *places, scales, a, shift, types.int64), generate

    return adds


dots_of_one, dots_of_four = _dots(1), _dots(4)
adds_of_one, adds_of_four = _adds(1), _adds(4)


@intrinsic
def scaled(typing_context: Any, out: Any, x: Any, at: Any, factor: Any, shift: Any, count: Any) -> Any:
    """out[at + k] <- x[at + k] factor[k] + shift[k] for 0 <= k < count, the product rounded first.

    out, x: uint32 or uint16, they may be one array. factor, shift: float32. at, count: int64.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        to, given, factors, added = (data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 1, 3, 4))
        with cgutils.for_range_slice(builder, LONG(0), arguments[5], LONG(COLUMNS), intp=LONG) as (k, _):
            times, plus = (load_vector(builder, _LANES, builder.gep(values, [k])) for values in (factors, added))
            place = builder.add(arguments[2], k)
            _round(builder, builder.fadd(builder.fmul(_exact(builder, _LANES, given, place), times), plus), to, place)
        return context.get_dummy_value()

    return types.void(out, x, types.int64, factor, shift, types.int64), generate


@intrinsic
def get(typing_context: Any, stored: Any, place: Any) -> Any:
    """The float32 value of the bits at a place. stored: uint32 or uint16. place: int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _exact(builder, FLOAT, data_of(context, builder, signature.args[0], arguments[0]), arguments[1])

    return types.float32(stored, types.int64), generate


@intrinsic
def put(typing_context: Any, stored: Any, place: Any, value: Any) -> Any:
    """Put a float32 value at a place, rounded to what is stored there: uint32 or uint16. place: int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _round(builder, arguments[2], data_of(context, builder, signature.args[0], arguments[0]), arguments[1])
        return context.get_dummy_value()

    return types.void(stored, types.int64, types.float32), generate


def _exact(builder: Any, kind: Any, stored: Any, place: Any) -> Any:
    """The float32 values of the bits from a place on. kind: a vector, or float32 for one."""
    pointer = builder.gep(stored, [place])
    if stored.type.pointee.width == 32:
        return load_vector(builder, kind, pointer)
    wide = _like(kind, INT)
    bits = builder.zext(load_vector(builder, _like(kind, _HALF), pointer, 2), wide)
    return builder.bitcast(builder.shl(bits, _constant(wide, 16)), kind)


def _round(builder: Any, values: Any, stored: Any, place: Any) -> None:
    """Put float32 values where bits are stored: as they are, or the nearest bfloat16, ties to even, a NaN still one."""
    pointer = builder.gep(stored, [place])
    if stored.type.pointee.width == 32:
        store_vector(builder, values, pointer)
        return
    wide = _like(values.type, INT)
    bits = builder.bitcast(values, wide)
    odd = builder.and_(builder.lshr(bits, _constant(wide, 16)), _constant(wide, 1))
    up = builder.lshr(builder.add(builder.add(bits, _constant(wide, 0x7FFF)), odd), _constant(wide, 16))
    chosen = builder.select(builder.fcmp_unordered("uno", values, values), _constant(wide, 0x7FC0), up)
    store_vector(builder, builder.trunc(chosen, _like(values.type, _HALF)), pointer, 2)


def _like(kind: Any, element: Any) -> Any:
    return ir.VectorType(element, kind.count) if isinstance(kind, ir.VectorType) else element


def _constant(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count if isinstance(kind, ir.VectorType) else value)


def _sum(builder: Any, lanes: Any) -> Any:
    """The sum of a vector's lanes, its halves added until one is left."""
    count = COLUMNS
    while count > 1:
        count //= 2
        low, high = (ir.Constant(ir.VectorType(INT, count), list(range(first, first + count))) for first in (0, count))
        none = ir.Constant(lanes.type, ir.Undefined)
        lanes = builder.fadd(builder.shuffle_vector(lanes, none, low), builder.shuffle_vector(lanes, none, high))
    return builder.extract_element(lanes, INT(0))
