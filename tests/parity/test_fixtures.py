"""Our numbers against the official code's, one test a fixture.

``UNIMM_PARITY_DIR`` names another folder of fixtures; the copies beside this file are a choice of
them. A fixture of a kind that no check knows fails: it must not look as if it had been compared.
"""

import os
from pathlib import Path

import pytest

from tests.parity.checks import CHECKS, LATER
from tests.parity.harness import Fixture, kind_of

FOLDER = Path(os.environ.get("UNIMM_PARITY_DIR") or Path(__file__).parent / "fixtures")
PATHS = sorted(FOLDER.rglob("*.safetensors"))


def test_there_is_something_to_compare() -> None:
    assert PATHS, f"no fixtures under {FOLDER}"


def test_every_kind_is_listed_once() -> None:
    assert not set(CHECKS) & set(LATER)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_fixture(path: Path) -> None:
    kind = kind_of(path)
    if reason := LATER.get(kind):
        pytest.skip(reason)
    assert kind in CHECKS, f"no check for {path.name}: add one to tests/parity/checks.py"
    CHECKS[kind](Fixture.load(path))
