"""Codes of a block to weights, in LLVM's vector types: a run of 16 or 32 weights of one scale at a time."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from zerograd.noise.vectors import FLOAT, INT, data_of, load_vector, splat, store_vector

_BYTE = ir.IntType(8)
FEW, MANY = 16, 32


def _run(lanes: int, bits: int, offset: int, more: int = 0, minimum: bool = False) -> Any:
    """An intrinsic for w[to + j] <- scale (code - offset) [+ shift], 0 <= j < lanes.

    bits: of a code that byte `low` + j holds, from bit `from_low` on; 8 for signed bytes. more: further bits above them, that byte
    `high` + j holds from bit `from_high` on; -1 for one bit, which is bit j of the 32 at `high`, less `from_high`. minimum: whether
    `shift` is added.
    """
    floats, ints, bytes_ = (ir.VectorType(kind, lanes) for kind in (FLOAT, INT, _BYTE))

    @intrinsic  # type: ignore[untyped-decorator]
    def run(
        typing_context: Any,
        raw: Any,
        low: Any,
        from_low: Any,
        high: Any,
        from_high: Any,
        scale: Any,
        shift: Any,
        w: Any,
        to: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            stored, made = (data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 7))

            def loaded(at: Any, signed: bool = False) -> Any:
                extend = builder.sext if signed else builder.zext
                return extend(load_vector(builder, bytes_, builder.gep(stored, [at]), 1), ints)

            def constant(value: int) -> Any:
                return ir.Constant(ints, [value] * lanes)

            def some(codes: Any, place: Any, count: int) -> Any:
                down = builder.lshr(codes, splat(builder, ints, builder.trunc(place, INT)))
                return builder.and_(down, constant((1 << count) - 1))

            codes = loaded(arguments[1], bits == 8)
            if bits < 8:
                codes = some(codes, arguments[2], bits)
            if more > 0:
                upper = some(loaded(arguments[3]), arguments[4], more)
                codes = builder.or_(codes, builder.shl(upper, constant(bits)))
            if more < 0:
                pointer = builder.bitcast(builder.gep(stored, [arguments[3]]), INT.as_pointer())
                word = builder.load(pointer)
                word.align = 1
                each = builder.add(splat(builder, ints, builder.trunc(arguments[4], INT)), ir.Constant(ints, list(range(lanes))))
                upper = builder.and_(builder.lshr(splat(builder, ints, word), each), constant(1))
                codes = builder.or_(codes, builder.shl(upper, constant(bits)))
            if offset:
                codes = builder.sub(codes, constant(offset))
            values = builder.fmul(builder.sitofp(codes, floats), splat(builder, floats, arguments[5]))
            if minimum:
                values = builder.fadd(values, splat(builder, floats, arguments[6]))
            store_vector(builder, values, builder.gep(made, [arguments[8]]))
            return context.get_dummy_value()

        i64, f32 = types.int64, types.float32
        return types.void(raw, i64, i64, i64, i64, f32, f32, w, i64), generate

    return run


run_q4_0 = _run(FEW, 4, 8)
run_q4_1 = _run(FEW, 4, 0, minimum=True)
run_q5_0 = _run(FEW, 4, 16, -1)
run_q5_1 = _run(FEW, 4, 0, -1, minimum=True)
run_q8_0 = _run(MANY, 8, 0)
run_q2_k = _run(FEW, 2, 0, minimum=True)
run_q3_k = _run(FEW, 2, 4, 1)
run_q4_k = _run(MANY, 4, 0, minimum=True)
run_q5_k = _run(MANY, 4, 0, 1, minimum=True)
run_q6_k = _run(FEW, 4, 32, 2)


def _write(rounded: bool) -> Any:
    """An intrinsic for out[place + j] <- w[at + j] factor, 0 <= j < 32, rounded to the nearest bfloat16 where `rounded`.

    w: float32. out: float32, or uint16 for the bits of bfloat16. Ties go to even, and a NaN stays one.
    """
    floats, ints, halves = (ir.VectorType(kind, MANY) for kind in (FLOAT, INT, ir.IntType(16)))

    def constant(value: int) -> Any:
        return ir.Constant(ints, [value] * MANY)

    @intrinsic  # type: ignore[untyped-decorator]
    def write(typing_context: Any, w: Any, at: Any, factor: Any, out: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            held, made = (data_of(context, builder, signature.args[i], arguments[i]) for i in (0, 3))
            values = load_vector(builder, floats, builder.gep(held, [arguments[1]]))
            values = builder.fmul(values, splat(builder, floats, arguments[2]))
            pointer = builder.gep(made, [arguments[4]])
            if rounded:
                bits = builder.bitcast(values, ints)
                odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
                near = builder.and_(builder.add(builder.add(bits, constant(0x7FFF)), odd), constant(0xFFFF0000))
                bits = builder.select(builder.fcmp_unordered("uno", values, values), constant(0x7FC00000), near)
                if signature.args[3].dtype == types.uint16:
                    halved = builder.trunc(builder.lshr(bits, constant(16)), halves)
                    store_vector(builder, halved, pointer, 2)
                    return context.get_dummy_value()
                values = builder.bitcast(bits, floats)
            store_vector(builder, values, pointer)
            return context.get_dummy_value()

        return types.void(w, types.int64, types.float32, out, types.int64), generate

    return write


write_exact, write_rounded = _write(False), _write(True)
