import errno
import stat
from pathlib import Path

import pytest

from unimm.errors import OutputError, UserError
from unimm.files import atomic_directory, atomic_write, check_writable


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"a.txt"}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == {"a.txt"}


def test_a_written_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "ours") as file:
        file.write(b"x")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(
        (tmp_path / "usual").stat().st_mode
    )


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_write(tmp_path / "a.txt"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match="the disk is full"):
        write()
    assert names(tmp_path) == set()


def test_a_directory_takes_the_place_of_the_old_one_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for generation in ("first", "second"):
        with atomic_directory(path) as partial:
            (partial / generation).touch()
        assert names(path) == {generation}
    assert names(tmp_path) == {"model"}


def test_a_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_directory(path) as partial:
        (partial / "first").touch()

    def write_half() -> None:
        with atomic_directory(path) as partial:
            (partial / "second").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert names(path) == {"first"}
    assert names(tmp_path) == {"model"}


def test_an_error_deep_inside_a_directory_names_the_directory(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "model") as partial, atomic_write(partial / "no" / "file"):
            pass

    with pytest.raises(OutputError, match="no/file"):
        write()
    assert names(tmp_path) == set()


def test_a_writable_path_is_checked_without_writing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a.png")
    assert names(tmp_path) == set()


def test_paths_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="there is no folder"):
        check_writable(tmp_path / "absent" / "a.png")
    with pytest.raises(UserError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="cannot write"):
        check_writable(tmp_path / "file" / "a.png")
    with pytest.raises(UserError, match="cannot write"):
        check_writable(Path("/proc/a.png"))
