"""README's table of families against what the tests measured and what they test."""

from __future__ import annotations

import pytest

from tests.support.decoders import DECODERS
from tests.support.measuring import METHODS, TOLERANCE
from tests.support.peer_files import UNFAITHFUL, peer_files
from tests.support.recording import CHECKPOINT, Support
from tools.docs.family_table import README, measured, table, updated

ERRORS = measured()["errors"]


def test_the_readme_holds_what_was_measured():
    text = README.read_text(encoding="utf-8")
    assert text == updated(text, measured()), "run python -m tools.docs.family_table --write"


def test_every_family_tested_is_a_row_with_its_text():
    assert measured()["apart"] == {name: decoder.apart for name, decoder in DECODERS.items()}
    assert [*ERRORS] == [*DECODERS]
    assert all(CHECKPOINT in sources for sources in ERRORS.values())


def test_every_file_of_a_peer_was_measured():
    for name, file in peer_files().items():
        if name not in UNFAITHFUL and file.precision != "fp16":
            assert file.writer in ERRORS[file.family], name


def test_every_method_was_measured_and_nothing_exceeds_the_tolerance():
    for family, sources in ERRORS.items():
        for source, errors in sources.items():
            assert [*errors] == [*METHODS], (family, source)
            assert all(0 < error <= TOLERANCE for error in errors.values()), (family, source)


def test_a_measurement_that_is_not_in_the_readme_would_be_noticed():
    changed = measured()
    changed["errors"]["llama"][CHECKPOINT]["yarn"] = 9.9e-5
    text = README.read_text(encoding="utf-8")
    assert updated(text, changed) != text
    assert "9.9e-05" in table(changed)


def test_what_is_recorded_joins_what_was(tmp_path):
    path = tmp_path / "support.json"
    for source, error in ((CHECKPOINT, 1.23e-6), ("optimum-past", 2e-6)):
        support = Support({"llama": "text"})
        support.record("llama", source, "yarn", error)
        support.write(path)
    with pytest.raises(KeyError, match="nobody has no text"):
        support.record("nobody", CHECKPOINT, "yarn", 0.0)
    assert '"checkpoint": {\n    "yarn": 1.2e-06\n   }' in path.read_text()
    assert '"optimum-past"' in path.read_text()
