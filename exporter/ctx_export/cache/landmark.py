"""landmark: every block of tokens is kept, and a query reads the few that match it best."""

from __future__ import annotations

from ctx_export.cache.base import Asked, Reach, ReachPolicy
from ctx_export.core.errors import UserError
from ctx_export.core.rules import Landmark

_SINKS, _BLOCK, _SMALL_BLOCK, _SMALL_SPAN = 4, 64, 8, 2048


def decide(asked: Asked) -> Reach:
    """By default half of the span are chosen blocks and the window is all that is left."""
    given, span = asked.options, asked.span
    token = given.get("landmark_token")
    sinks = given.get("sinks", _SINKS if token is None else 0)
    block = given.get("landmark_block", _BLOCK if span >= _SMALL_SPAN else _SMALL_BLOCK)
    topk = given.get("landmark_topk", max(1, span // (2 * block)))
    if token is not None and block < 2:
        raise UserError(
            f"landmark_block is {block}: with a landmark token a block has at least one token "
            "more; give --landmark-block 2 or more, as the checkpoint was trained"
        )
    # Positions in use: the sinks, topk + 2 blocks and the rest of the window (FORMULAS section 3).
    left = span + 1 - sinks - (topk + 2) * block
    window = given.get("window", left)
    if not 1 <= window <= left:
        told = f"and a window of {window} " if "window" in given else ""
        fix = f"--window {left} or less" if left >= 1 else "a smaller --landmark-topk or block"
        raise UserError(
            f"landmark has {sinks} sinks, {topk} blocks of {block} tokens {told}within {span} "
            f"positions: it needs a window of at least 1 and {topk} + 2 blocks to fit; give {fix},"
            " or a --method and --factor that scale to more"
        )
    rule = Landmark(
        block=block, topk=topk, shared=bool(given.get("landmark_shared", False)), token=token
    )
    return Reach(sinks=sinks, window=window, rule=rule)


POLICY = ReachPolicy(
    name="landmark",
    summary="every block of tokens kept, the few that match a query best are read beside sinks "
    "and window",
    source="Landmark Attention, arXiv 2305.16300",
    options=(
        "sinks",
        "window",
        "landmark_block",
        "landmark_topk",
        "landmark_token",
        "landmark_shared",
    ),
    bounded=False,
    decide=decide,
)
