"""What is installed is the whole program: wheel and sdist, and the demo from a wheel in an environment of its own."""

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "__pycache__", "tests", "benchmarks", "*-out")


def built(kind: str, source: Path, out: Path) -> Path:
    """A `wheel` or an `sdist` of a source tree, without the network."""
    out.mkdir(exist_ok=True)
    program = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", program, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from an unpacked sdist, as an index does it."""
    home = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, home / "tree", ignore=LEFT_OUT)
    with tarfile.open(built("sdist", home / "tree", home / "sdist")) as archive:
        if hasattr(tarfile, "data_filter"):  # from Python 3.11.4 on
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(home / "unpacked")
    (unpacked,) = (home / "unpacked").iterdir()
    return built("wheel", unpacked, home / "wheel")


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = ROOT / "src" / "tracenas"
    wanted = {
        f"tracenas/{p.relative_to(package).as_posix()}"
        for p in package.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    names = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= names, sorted(wanted - names)
    assert not [n for n in names if n.startswith("tests") or "__pycache__" in n]


@pytest.mark.slow
def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment by a path file, which does not activate its editable tracenas."""
    home = tmp_path / "env"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (site,) = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import tracenas; print(tracenas.__file__)"
    place = subprocess.run([python, "-c", where], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert place.startswith(str(site))
    out = tmp_path / "demo"
    done = subprocess.run(
        [home / "bin" / "tracenas", "demo", "--out", out], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "report.html").is_file() and (out / "pruned" / "model.safetensors").is_file()


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "tracenas", "--version"], capture_output=True, text=True, check=True)
    assert "tracenas" in done.stdout and done.stdout.split()[-1][0].isdigit()
