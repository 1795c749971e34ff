import sys
from pathlib import Path

import pytest

from unimm.cli.applications import import_application
from unimm.errors import MissingExtraError, UnimmError, UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def make(root: Path, name: str, code: str) -> None:
    folder = root / name
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "cli.py").write_text(code)


def test_a_checkouts_application_is_found_by_its_folders_name(root: Path) -> None:
    make(root, "checkout_app", "app = 'here'")
    assert import_application("checkout_app", beside=root) == "here"


def test_a_wheels_application_is_found_by_its_renamed_folder(root: Path) -> None:
    make(root, "unimm_wheel_app", "app = 'renamed'")
    assert import_application("wheel_app", beside=root) == "renamed"


def test_a_missing_application_is_the_users_mistake(root: Path) -> None:
    with pytest.raises(UserError, match="no part called absent"):
        import_application("absent", beside=root)


def test_a_missing_extra_comes_with_the_command_that_installs_it(root: Path) -> None:
    make(root, "needy_app", "import a_package_that_is_not_there.part")
    with pytest.raises(MissingExtraError) as caught:
        import_application("needy_app", beside=root)
    assert str(caught.value) == (
        "a_package_that_is_not_there is not installed; "
        "install it with: pip install 'unimm[needy_app]'"
    )


def test_a_missing_module_of_our_own_is_a_bug(root: Path) -> None:
    make(root, "broken_app", "import unimm.no_such_module")
    with pytest.raises(ModuleNotFoundError):
        import_application("broken_app", beside=root)


def test_another_package_of_the_same_name_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ours", "theirs"):
        (tmp_path / name).mkdir()
        make(tmp_path / name, "shadowed_app", f"app = {name!r}")
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    with pytest.raises(UnimmError, match="hides unimm's own"):
        import_application("shadowed_app", beside=tmp_path / "ours")
    assert "theirs" in str(sys.modules["shadowed_app"].__file__)
