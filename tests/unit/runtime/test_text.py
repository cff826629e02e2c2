"""Prompts and streamed text. Oracle: the tokenizer's decoding of the whole list, at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from ctx_export.core.errors import UserError
from ctx_export.runtime.text import TextCodec, TextStream

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer() -> Tokenizer:
    """One token per byte, after <s> (0) and </s> (1)."""
    vocab = {"<s>": 0, "</s>": 1, **{c: i + 2 for i, c in enumerate(ALPHABET)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return tokenizer


def package(directory: Path, tokenizer: Tokenizer, **config: object) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    if config:
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize(
    "text", ["plain", "naïve façade", "数字 and 𝄞", "🏳️‍🌈!", "a\ufffdb", "  spaces  "]
)
def test_streamed_pieces_add_up_and_are_whole_characters(tmp_path: Path, text: str) -> None:
    codec = TextCodec.load(package(tmp_path, byte_tokenizer()), None)
    stream = TextStream(codec)
    pieces = [stream.push(token) for token in codec.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


def test_what_is_no_character_comes_out_at_the_end(tmp_path: Path) -> None:
    codec = TextCodec.load(package(tmp_path, byte_tokenizer()), None)
    stream = TextStream(codec)
    half = codec.encode("é")[:1]
    assert stream.push(half[0]) == ""
    assert stream.flush() == "\ufffd"


def test_a_space_that_a_decoder_strips_at_the_start_is_kept_inside() -> None:
    """Metaspace decoders drop the first token's space; pieces decoded alone would lose all."""
    tokenizer = Tokenizer(models.WordLevel({"▁one": 0, "▁two": 1, "?": 2}, unk_token="?"))
    tokenizer.decoder = decoders.Metaspace()
    stream = TextStream(TextCodec(tokenizer, None))
    assert [stream.push(0), stream.push(1), stream.push(1)] == ["one", " two", " two"]


def test_bos_goes_first_where_the_model_has_one(tmp_path: Path) -> None:
    config = {"bos_token": "<s>"}
    codec = TextCodec.load(package(tmp_path, byte_tokenizer(), **config), 0)
    assert codec.encode("a")[0] == 0 and len(codec.encode("a")) == 2
    assert codec.encode("<s>a") == codec.encode("a")
    assert codec.decode(codec.encode("a")) == "a"


def test_bos_of_the_tokenizer_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    codec = TextCodec.load(package(tmp_path, tokenizer, bos_token="<s>"), 0)
    assert codec.encode("a").count(0) == 1


@pytest.mark.parametrize("config", [{"add_bos_token": False, "bos_token": "<s>"}, {"x": 1}])
def test_no_bos_where_the_configuration_wants_none(
    tmp_path: Path, config: dict[str, object]
) -> None:
    codec = TextCodec.load(package(tmp_path, byte_tokenizer(), **config), 0)
    assert 0 not in codec.encode("a")


def test_a_package_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        TextCodec.load(tmp_path, 0)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        TextCodec.load(tmp_path, 0)
