"""A built wheel works outside the checkout and puts no general names into site-packages."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RENAMED = {
    "metaquery": "metaquery",
    "unimm": "unimm",
    "training": "unimm_training",
    "eval": "unimm_eval",
    "serving": "unimm_serving",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target"]
    subprocess.run([sys.executable, *install, str(folder), str(wheel)], check=True)
    return folder


def run(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python on the installed wheel; -S keeps the checkout's editable install out."""
    path = os.pathsep.join([str(site), sysconfig.get_path("purelib")])
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_site_packages_gains_only_names_of_ours(site: Path) -> None:
    packages = {path.name for path in site.iterdir() if path.suffix != ".dist-info"}
    assert packages - {"bin", "__pycache__"} == set(RENAMED.values())


def test_every_tracked_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", *RENAMED], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()
    expected = {
        str(Path(RENAMED[Path(path).parts[0]], *Path(path).parts[1:]))
        for path in listed
        if (ROOT / path).is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    assert expected - packed == set()


def test_the_command_line_runs_from_the_wheel(site: Path, tmp_path: Path) -> None:
    where = run(site, "-c", "import unimm; print(unimm.__file__)", cwd=tmp_path)
    assert Path(where.stdout.strip()).is_relative_to(site)
    done = run(site, "-m", "unimm", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_applications_run_from_the_wheel(site: Path, tmp_path: Path, command: str) -> None:
    done = run(site, "-m", "unimm", command, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"unimm {command}" in done.stdout


def test_a_picture_is_drawn_from_the_wheel(site: Path, tmp_path: Path) -> None:
    draw = ["generate", "a picture of a red circle", "--steps", "2", "--out", "circle.png"]
    done = run(site, "-m", "unimm", *draw, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "circle.png").is_file()
