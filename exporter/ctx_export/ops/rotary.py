"""Function body of ScaledRotaryEmbedding, and the same rotation inside the attention."""

from __future__ import annotations

import onnx_ir as ir

from ctx_export.ops.builder import DOUBLE, FLOAT, BodyBuilder
from ctx_export.ops.spec import DOMAIN, SCALED_ROTARY_EMBEDDING

_FINE = 64  # fine angles of a run of positions


def scaled_rotary_embedding() -> ir.Function:
    """The portable body: float64 angles, float32 rotation, the input's own type in and out."""
    spec = SCALED_ROTARY_EMBEDDING
    body = BodyBuilder(spec.inputs)
    x, *where = (body.inputs[name] for name in spec.inputs)
    y = turned(body, x, rotary_table(body, *where))
    return body.function(spec.name, DOMAIN, [body.op("CastLike", y, x)], spec.attributes)


def rotary_table(
    body: BodyBuilder, positions: ir.Value, inv_freq: ir.Value, multiplier: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """cos and sin [B,S,F] at `positions` [B,S], as float32.

    Angles are position × inv_freq in float64, below 1e-6 rad of error to position 2^33; the
    cosines are rounded to float32 only after the multiplier.
    """
    rows = body.op("Unsqueeze", body.cast(positions, DOUBLE), body.constant([2]))
    table = body.op("Unsqueeze", body.cast(inv_freq, DOUBLE), body.constant([1]))
    scale = body.op("Unsqueeze", body.cast(multiplier, DOUBLE), body.constant([1, 2]))
    angle = body.op("Mul", rows, table)
    cos = body.cast(body.op("Mul", body.op("Cos", angle), scale), FLOAT)
    sin = body.cast(body.op("Mul", body.op("Sin", angle), scale), FLOAT)
    return cos, sin


def rotary_run(
    body: BodyBuilder,
    run: tuple[ir.Value, ir.Value, ir.Value],
    inv_freq: ir.Value,
    multiplier: ir.Value,
) -> tuple[ir.Value, ir.Value]:
    """cos and sin [1|B,N,F] at positions start, start + step, …, as float32; `run` is start, step
    and N, scalars.

    The N angles are sums of ⌈N / 64⌉ coarse and 64 fine ones, and only those are turned into
    cosines, in float64; the sums of angles are products in float32, 3e-7 from exact.
    """
    start, step, count = run
    zero, one, size = body.constant(0), body.constant(1), body.constant(_FINE)
    coarse = body.op("Div", body.op("Add", count, body.constant(_FINE - 1)), size)
    coarse = body.op("Mul", body.op("Range", zero, coarse, one), body.op("Mul", step, size))
    fine = body.op("Mul", body.op("Range", zero, size, one), step)
    unit = body.constant([1.0], float)
    outer, inner = (
        [
            body.op("Unsqueeze", part, body.constant([axis]))
            for part in rotary_table(
                body, body.op("Unsqueeze", positions, body.constant([0])), inv_freq, scale
            )
        ]
        for positions, scale, axis in (
            (body.op("Add", coarse, start), multiplier, 2),
            (fine, unit, 1),
        )
    )
    cos = body.op("Sub", body.op("Mul", outer[0], inner[0]), body.op("Mul", outer[1], inner[1]))
    sin = body.op("Add", body.op("Mul", outer[1], inner[0]), body.op("Mul", outer[0], inner[1]))
    flat = body.op("Concat", body.constant([0, -1]), body.op("Shape", cos, start=3), axis=0)
    end, axis = body.op("Unsqueeze", count, body.constant([0])), body.constant([1])
    first, second = (
        body.op("Slice", body.op("Reshape", part, flat), body.constant([0]), end, axis)
        for part in (cos, sin)
    )
    return first, second


def turned(body: BodyBuilder, x: ir.Value, table: tuple[ir.Value, ir.Value]) -> ir.Value:
    """`x` [B,H,S,D] rotated by a table of its rows, as float32."""
    node = ir.node("RotaryEmbedding", [body.cast(x, FLOAT), *table])
    for standard, ours in (("rotary_embedding_dim", "rotary_dim"), ("interleaved", "interleaved")):
        node.attributes.add(ir.RefAttr(standard, ours, ir.AttributeType.INT))
    return body.append(node)
