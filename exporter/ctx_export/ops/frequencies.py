"""Function body of RotaryFrequencies: frequencies as a function of the rope length."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.ops.builder import DOUBLE, FLOAT, BodyBuilder
from ctx_export.ops.spec import DOMAIN, ROTARY_FREQUENCIES


def rotary_frequencies() -> ir.Function:
    """The portable body; `ops.spec` has the shapes and rows, `scaling._length_table` the formula.

    float64 inside, one rounding to float32 at the end.
    """
    spec = ROTARY_FREQUENCIES
    body = BodyBuilder(spec.inputs)
    one = body.constant(1.0, float)
    tables = _joined(body, body.inputs["tables"])  # [4,F]
    scalars = _joined(body, body.inputs["scalars"])  # [7]
    short, long, ramp, exponent = (_entry(body, tables, row) for row in range(4))
    threshold, slope, offset, short_multiplier, long_multiplier, gain, gain_all = (
        _entry(body, scalars, row) for row in range(7)
    )

    length = body.cast(body.inputs["rope_length"], DOUBLE)  # [B]
    is_long = body.op("Greater", length, threshold)
    growth = body.op("Max", body.op("Add", body.op("Mul", slope, length), offset), one)

    column = body.op("Unsqueeze", growth, body.constant([1]))
    is_long_column = body.op("Unsqueeze", is_long, body.constant([1]))
    stretched = body.op("Add", body.op("Sub", one, ramp), body.op("Div", ramp, column))
    frequencies = body.op("Mul", body.op("Where", is_long_column, long, short), stretched)
    inv_freq = body.op("Mul", frequencies, body.op("Pow", column, exponent))

    log = body.op("Log", growth)
    multiplier = body.op("Where", is_long, long_multiplier, short_multiplier)
    multiplier = body.op("Mul", multiplier, _line(body, one, gain, log))
    multiplier = body.op("Div", multiplier, _line(body, one, gain_all, log))
    outputs = [body.cast(inv_freq, FLOAT), body.cast(multiplier, FLOAT)]
    return body.function(spec.name, DOMAIN, outputs, spec.attributes)


def _joined(body: BodyBuilder, pairs: ir.Value) -> ir.Value:
    """float64 numbers from their float32 high and low parts along axis 1."""
    wide = body.cast(pairs, DOUBLE)
    high, low = (body.op("Gather", wide, body.constant(part), axis=1) for part in (0, 1))
    return body.op("Add", high, low)


def _entry(body: BodyBuilder, values: ir.Value, row: int) -> ir.Value:
    return body.op("Gather", values, body.constant(row), axis=0)


def _line(body: BodyBuilder, one: ir.Value, gain: ir.Value, log: ir.Value) -> ir.Value:
    """1 + gain·log."""
    return body.op("Add", one, body.op("Mul", gain, log))
