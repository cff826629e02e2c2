"""The demo's held-out text as tokens."""

from __future__ import annotations

import numpy as np

from ctx_export import demo
from ctx_export.evaluation.scoring import Ints


def heldout_tokens() -> tuple[int, Ints]:
    """BOS, and the held-out text tokenised once, [N], without a BOS of its own."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(demo.path() / "tokenizer.json"))
    ids = tokenizer.encode(demo.heldout_text(), add_special_tokens=False).ids
    return bos_token(), np.array(ids, np.int64)


def bos_token() -> int:
    """The demo's BOS token."""
    import json

    config = json.loads((demo.path() / "config.json").read_text(encoding="utf-8"))
    return int(config["bos_token_id"])
