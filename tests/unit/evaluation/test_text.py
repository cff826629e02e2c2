import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ctx_export import demo
from ctx_export.core.errors import UserError
from ctx_export.evaluation.text import (
    Codec,
    check_lengths,
    common_codec,
    describe,
    read_text,
)
from tests.unit.evaluation.fakes import Letters, letters


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_an_empty_text_is_refused(tmp_path, content):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"t\.txt is empty: name a file"):
        read_text(path)


def test_text_that_is_not_utf_8_and_a_missing_file_are_refused(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"not UTF-8 \(byte 3\)"):
        read_text(path)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_text(tmp_path / "none")


def demo_codec(vocab: int = 2048) -> Codec:
    return Codec.of(demo.path(), 1, vocab)


def test_the_demos_texts_begin_with_bos_and_have_it_nowhere_else():
    codec = demo_codec()
    ids = codec.ids("import os\nprint(os.name)")
    assert codec.beginning == (1,) and 1 not in ids
    assert codec.begun(ids)[0] == 1 and codec.begun(ids)[1:].tolist() == ids.tolist()


def test_a_tokenizer_that_puts_bos_in_front_itself_gives_one(tmp_path):
    """As Llama's: the template is in tokenizer.json."""
    shutil.copytree(demo.path(), tmp_path / "c", ignore=shutil.ignore_patterns("*.py", "held*"))
    path = tmp_path / "c" / "tokenizer.json"
    raw = json.loads(path.read_text())
    token = {"id": "<s>", "ids": [1], "tokens": ["<s>"]}
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": token},
    }
    path.write_text(json.dumps(raw))
    for bos in (None, 1):
        codec = Codec.of(tmp_path / "c", bos, 2048)
        assert codec.beginning == (1,)
        assert codec.ids("some text").tolist() == demo_codec().ids("some text").tolist()


def test_tokenizers_that_differ_late_in_a_text_are_not_compared(monkeypatch):
    class Late(Letters):
        def plain(self, text: str) -> list[int]:
            return super().plain(text.replace("z", "yy"))

    own, late = letters(), replace(letters(), codec=Late(), where="late")
    monkeypatch.setattr(Codec, "of_package", lambda package: late if package.name == "b" else own)
    packages = (Path("a"), Path("b"))
    assert common_codec(packages, "a" * 9000) is own
    with pytest.raises(UserError, match="letters and late have different tokenizers"):
        common_codec(packages, "a" * 9000 + "z")


def test_a_tokenizer_with_more_tokens_than_the_vocabulary_does_not_fit():
    with pytest.raises(UserError, match=r"does not fit its model: .* vocabulary has 100"):
        demo_codec(100).ids("hello world")


def test_a_length_over_a_maximum_is_refused_by_name():
    check_lengths([100, 200], [("a", 200), ("b", None)])
    with pytest.raises(UserError, match="length 201 is over the 200 tokens that a was made for"):
        check_lengths([100, 201], [("b", None), ("a", 200)])


def test_a_text_is_described_by_name_digest_and_tokens(tmp_path):
    # sha256 of "abc", FIPS 180-2's example.
    found = describe(tmp_path / "x.txt", "abc", demo_codec().ids("abc"))
    assert found["name"] == "x.txt" and found["tokens"] >= 1
    assert found["sha256"].startswith("ba7816bf8f01cfea414140de5dae2223")
