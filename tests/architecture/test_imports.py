"""Import contracts, and what an import costs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_imports_point_one_way() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import importlinter.cli as c; c.lint_imports_command()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize("module", ["unimm", "unimm.cli"])
def test_the_command_line_starts_without_heavy_libraries(module: str) -> None:
    heavy = run_python(
        f"import sys, {module}\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL') if name in sys.modules])"
    )
    assert heavy.strip() == "[]"


def test_every_public_name_can_be_imported() -> None:
    run_python("import unimm\nfor name in unimm.__all__: getattr(unimm, name)")
    run_python("import metaquery\nfor name in metaquery.__all__: getattr(metaquery, name)")
