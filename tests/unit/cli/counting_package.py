"""A package that continues the alphabet: after a letter comes the next one, after z comes a.

Its graph looks up the token's successor and passes the cache on; the tokenizer has one token per
byte after <s> (0) and </s> (1).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from ctx_export.core.manifest import CacheInfo
from tests.unit.runtime.fakes import manifest
from tests.unit.runtime.test_text import byte_tokenizer, package

VOCAB = 258
_GRAPH = """
<ir_version: 10, opset_import: ["" : 23]>
count (int64[B,S] input_ids, int64[B] seen, int64[B] new, int64[B,R] logit_rows,
       float[B,1,C,1] past_key, float[B,1,C,1] past_value)
  => (float[B,R,258] logits, float[B,1,C,1] present_key, float[B,1,C,1] present_value)
  <int64[1] last = {2}>
{
  rows = Unsqueeze(logit_rows, last)
  chosen = GatherND <batch_dims = 1> (input_ids, rows)
  logits = Gather(successors, chosen)
  present_key = Identity(past_key)
  present_value = Identity(past_value)
}
"""
_NAMES = {
    "past_key": "past_key_values.0.key",
    "past_value": "past_key_values.0.value",
    "present_key": "present.0.key",
    "present_value": "present.0.value",
}


def write(directory: Path, *, capacity: int = 30, eos: str = "") -> Path:
    """The package; `eos` is the letter that ends a text."""
    package(directory, byte_tokenizer())
    letters = byte_tokenizer().encode("abcdefghijklmnopqrstuvwxyz").ids
    successors = np.zeros((VOCAB, VOCAB), np.float32)
    successors[letters, letters[1:] + letters[:1]] = 9
    model = onnx.parser.parse_model(_GRAPH)
    model.graph.initializer.append(onnx.numpy_helper.from_array(successors, "successors"))
    for value in (*model.graph.input, *model.graph.output):
        value.name = _NAMES.get(value.name, value.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [_NAMES.get(name, name) for name in names]
    onnx.save(model, directory / "model.onnx")
    cache = CacheInfo(policy="full", sinks=0, window=0, capacity=capacity, keys="rotated")
    made = manifest(cache=cache, max_chunk=8, vocab=VOCAB)
    ids = byte_tokenizer().encode(eos).ids
    stated = {**made.model, "bos_token_id": None, "eos_token_ids": ids}
    replace(made, model=stated).save(directory)
    return directory
