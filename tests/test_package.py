"""The installed package: built, installed and used beside a project that has folders of the same names."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

import interwild

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("common", "data", "main", "demo", "tool")


@dataclass
class Installation:
    """A virtual environment with the package, and a project of a user beside it, which is the current folder."""

    bin: Path
    package: Path
    project: Path
    env: dict[str, str]

    def run(self, command: str, *args: object, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [self.bin / command, *map(str, args)], cwd=self.project, env=self.env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def content(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in self.package.parent.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def installed(
    tmp_path_factory: pytest.TempPathFactory, mano_folder: Path, small_snapshot: Path
) -> Iterator[Installation]:
    pytest.importorskip("pip", reason="some tools make environments without pip")
    folder = tmp_path_factory.mktemp("package")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split("\n"):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = [*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder, folder / "source"]
    subprocess.run(wheel, check=True)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    bin_folder = environment / ("Scripts" if os.name == "nt" else "bin")
    install = [*pip, "--python", bin_folder / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*install, next(folder.glob("*.whl"))], check=True)

    home, project = folder / "home", folder / "project"
    shutil.copytree(mano_folder, home / "mano")
    shutil.copy(small_snapshot, home / "snapshot_6.pth")
    for name in FOLDERS:
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"{name.upper()} = 'of the project'\n")
    (project / "images").mkdir()
    photo = np.random.default_rng(0).integers(0, 255, (160, 120, 3), np.uint8)
    assert cv2.imwrite(str(project / "images" / "photo.png"), photo)
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONHOME", "INTERWILD_HOME")}
    # The project's folders come first, the dependencies from the environment of the tests.
    env["PYTHONPATH"] = os.pathsep.join([str(project), sysconfig.get_paths()["purelib"]])
    env["INTERWILD_HOME"] = str(home)
    package = next((environment).rglob("interwild/__init__.py")).parent
    yield Installation(bin_folder, package, project, env)


def test_demo_of_the_package(installed: Installation) -> None:
    """It reads from $INTERWILD_HOME, writes into the current folder, and leaves the installation as it was."""
    before = installed.content()
    installed.run("interwild-demo", "--gpu", "cpu", "--html")
    written = {path.relative_to(installed.project).as_posix() for path in installed.project.rglob("photo*")}
    assert {"results/photo.json", "meshes/photo.glb", "renders/photo.html", "boxes/photo.json"} <= written
    assert installed.content() == before


def test_import_beside_folders_of_the_same_names(installed: Installation) -> None:
    code = (
        "import sys; before = list(sys.path); import common, data, main\n"
        "import interwild; assert 'torch' not in sys.modules\n"
        "from interwild import HandPredictor\n"
        "assert not [path for path in sys.path if path not in before and 'interwild' in path]\n"  # torchvision adds
        "assert common.COMMON == data.DATA == main.MAIN == 'of the project'\n"
        "print(interwild.__version__, HandPredictor.__module__)"
    )
    done = installed.run("python", "-c", code)
    assert done.stdout.split() == [interwild.__version__, "interwild.demo.predictor"]
    metadata = "from importlib.metadata import version; print(version('interwild'))"
    assert installed.run("python", "-c", metadata).stdout.strip() == interwild.__version__


def test_no_import_line_is_left(installed: Installation) -> None:
    assert (installed.package / "py.typed").exists()
    for path in [*installed.package.rglob("*.py"), *installed.package.rglob("*.pyi")]:
        assert not re.findall(rf"^\s*(?:from|import) (?:{'|'.join(FOLDERS)})[. ].*", path.read_text(), re.M), path
        assert not re.findall(r"sys\.path\.insert|import _checkout|python \S+\.py\b", path.read_text()), path


@pytest.mark.parametrize(
    "name", ["demo", "web", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train", "test", "export"))]
)
def test_commands_name_what_exists_in_an_installation(installed: Installation, name: str) -> None:
    text = installed.run(f"interwild-{name}", "--help").stdout
    assert f"usage: interwild-{name}" in text
    assert not re.findall(r"python \S+\.py|tool/\w+\.py|human_model_files", text)


@pytest.mark.slow
def test_messages_name_commands_of_the_package(installed: Installation, tmp_path: Path) -> None:
    empty = Installation(
        installed.bin, installed.package, installed.project, {**installed.env, "INTERWILD_HOME": str(tmp_path)}
    )
    error = empty.run("interwild-demo", "--gpu", "cpu", code=2).stderr
    assert "interwild-standin" in error and str(tmp_path / "mano") in error
    empty.run("interwild-standin")
    error = empty.run("interwild-demo", "--gpu", "cpu", code=2).stderr
    assert str(tmp_path / "snapshot_6.pth") in error and "python -m interwild.tool.make_checkpoint" in error
    found = empty.run("interwild-doctor", "--data", installed.project).stdout
    assert "python -m interwild.tool.make_checkpoint" in found and "tool/" not in found


def test_scripts_of_the_project_file() -> None:
    """Each command has its line in pyproject.toml, and requirements.txt the same bounds."""
    text = (ROOT / "pyproject.toml").read_text()
    assert set(re.findall(r"^interwild-(\w+) = ", text, re.M)) == set(interwild.COMMANDS)
    bounds = set(re.findall(r'"([a-z][\w-]*>=[\d.]+)"', text)) - {"setuptools>=77", "torch>=2.7"}  # 2.7 only for onnx
    required = {line.split()[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if ">=" in line}
    assert required - {"psutil>=5.9"} == {bound for bound in bounds if not bound.startswith("onnx")}
