"""What every source file keeps to."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
APPLICATIONS = ("training", "eval", "serving")
PACKAGES = ("metaquery", "unimm", *APPLICATIONS)
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def identify(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_a_file_fits_in_the_head(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_FILE_LINES, f"{identify(path)} has {lines} lines; split it"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_a_function_does_one_job(path: Path) -> None:
    for function in functions(parse(path)):
        body = [statement for statement in function.body if not _is_docstring(statement)]
        lines = function.end_lineno - body[0].lineno + 1 if body and function.end_lineno else 0
        assert lines <= MAX_FUNCTION_LINES, f"{function.name} has {lines} lines; split it"


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parse(path)), f"{identify(path)} has no docstring"


@pytest.mark.parametrize("application", APPLICATIONS)
def test_applications_refer_to_themselves_by_relative_imports(application: str) -> None:
    # A wheel renames them, so an absolute import would break there.
    for path in (ROOT / application).rglob("*.py"):
        modules = {module.partition(".")[0] for module in imported_modules(parse(path))}
        assert not modules & set(APPLICATIONS), identify(path)


def test_nothing_but_packages_is_imported_from_the_checkout() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
