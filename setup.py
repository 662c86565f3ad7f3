"""Build one package `interwild` of the folders of this checkout: `pip install .`, or from its git address.

Only what differs between a checkout and a package is rewritten in the copies: import lines get the package's name,
lines that edit `sys.path` go, and texts name the package's commands.
"""

import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

FOLDERS = ("common", "data", "main", "demo", "tool")
COMMANDS = runpy.run_path("interwild/__init__.py")["COMMANDS"]
NAMES = {module: f"interwild-{name}" for name, module in COMMANDS.items()}


def rewrite(text: str, folder: str) -> str:
    """A file's text as it stands in the package; `folder`: where the file is, e.g. "demo"."""

    def command(match: re.Match) -> str:
        path = match[2] if "/" in match[2] else f"{folder}/{match[2]}"
        module = path.replace("/", ".")
        return f"{match[1]}-m interwild.{module}" if match[1] else NAMES.get(module, f"python -m interwild.{module}")

    ours = "|".join(FOLDERS)
    text = re.sub(r"^sys\.path\.insert\(0, str\(Path\(__file__\).*\n|^import _checkout.*\n", "", text, flags=re.M)
    text = re.sub(rf"^(\s*(?:from|import) )(?=(?:{ours})(?:\.| import ))", r"\1interwild.", text, flags=re.M)
    return re.sub(r"(?:python3? |(torchrun (?:\S+ )*?))((?:\w+/)*\w+)\.py\b", command, text)


class Build(build_py):
    def run(self) -> None:
        super().run()
        package = Path(self.build_lib, "interwild")
        for file in [*package.rglob("*.py"), *package.rglob("*.pyi")]:
            folder = file.parent.relative_to(package).as_posix()
            file.write_text(rewrite(file.read_text("utf-8"), folder), "utf-8")


class Editable(editable_wheel):
    def run(self) -> None:
        raise SystemExit("a checkout is run as it is: python demo/demo.py; `pip install .` installs a copy")


packages = [name for folder in FOLDERS for name in find_packages(include=[folder, f"{folder}.*"])]
setup(
    packages=["interwild", *(f"interwild.{name}" for name in packages)],
    package_dir={f"interwild.{name}": name.replace(".", "/") for name in packages},
    package_data={"interwild.demo": ["page/*"]},
    cmdclass={"build_py": Build, "editable_wheel": Editable},
)
