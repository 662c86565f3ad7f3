"""README.md and docs/ tell the truth: commands, code, links, names, messages and tables are those of the project."""

import argparse
import ast
import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import torch
from msgspec.structs import replace
from torch.utils.data import default_collate

import data as data_package
from common import metrics
from common.criterion import InterWildLoss
from common.errors import UserError
from common.metrics import Estimate, Evaluator
from common.nets.mano import TwoHandMano
from common.options import Parser
from common.targets import build_images, build_targets, complete_truth
from common.types import SIDES, ManoParams
from common.utils.augment import Augmentation
from common.utils.frames import Frames
from common.utils.joints import JOINTS
from data import layouts, reading
from data.dataset import SampleKey
from main.config import Config
from main.model import InterWild
from main.options import FIELDS, read_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Words in capitals that stand for a value, and which one; all others (DIR, FILE, YOUR_PHOTO.jpg) do for a path.
NUMBERS = {"N": "1", "SEED": "1"}
CODE = ("common", "data", "demo", "docs", "main", "tool")


class Block(NamedTuple):
    """A fenced piece of a page."""

    page: Path
    language: str
    text: str


class Command(NamedTuple):
    """One command of a bash block, and the folder of the project in which it is given."""

    page: Path
    folder: Path
    words: list[str]

    @property
    def script(self) -> Path | None:
        """The Python file it runs, if it runs one."""
        files = [word for word in self.words if word.endswith(".py")]
        starters = {"python", "python3", "torchrun"} & set(self.words)
        return self.folder / files[0] if files and starters and "-m" not in self.words else None

    @property
    def arguments(self) -> list[str]:
        """Of the script; words in capitals replaced."""
        place = next(index for index, word in enumerate(self.words) if word.endswith(".py"))
        return [NUMBERS.get(word, word) for word in self.words[place + 1 :]]

    def __str__(self) -> str:
        return f"{self.page.name}: {' '.join(self.words)}"


def blocks(page: Path, language: str = "") -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(page, name, text) for name, text in found if language in ("", name)]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def commands() -> Iterator[Command]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            folder = ROOT
            for line in block.text.replace("\\\n", " ").splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
                lexer.whitespace_split, words = True, []
                for word in [*lexer, ";"]:
                    if set(word) - set(";&|"):
                        words.append(word)
                        continue
                    if words[:1] == ["cd"]:
                        folder = (folder / words[1]).resolve()
                    elif words:
                        yield Command(page, folder, words)
                    words = []


COMMANDS = list(commands())
SCRIPTS = [command for command in COMMANDS if command.script]


def import_script(path: Path) -> ModuleType:
    """The module of the script's `main` and `parse_args`, which a thin command imports."""
    script = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return sys.modules[script.main.__module__]


def load_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- Commands ----


def test_pages_have_commands():
    """Else what follows would test nothing."""
    assert len(PAGES) >= 6 and len(SCRIPTS) > 20
    assert {command.page.name for command in SCRIPTS} >= {"README.md", "reproducing.md", "adding-a-dataset.md"}


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_scripts_take_the_options(command, monkeypatch, capsys):
    """The script is there, and its own parser accepts what the page says."""
    assert command.script.is_file(), command
    module = import_script(command.script)
    monkeypatch.setattr(sys, "argv", [str(command.script), *command.arguments])
    try:
        module.parse_args()
    except SystemExit as stop:
        # --help among the options ends well
        assert not stop.code, f"{command}\n{capsys.readouterr().err}"
    if "torchrun" in command.words:
        from torch.distributed.run import get_args_parser

        get_args_parser().parse_args(command.words[command.words.index("torchrun") + 1 :])


def test_config_values_in_commands_are_valid():
    """The options of main/config.py are texts to the parser; their values are checked here."""
    for command in SCRIPTS:
        if command.script.name in ("train.py", "test.py"):
            module = import_script(command.script)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", [str(command.script), *command.arguments])
                read_config(module.parse_args())


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, without anything that was made or downloaded."""
    copy = tmp_path_factory.mktemp("copy") / "project"

    def leave_out(folder: str, names: list[str]) -> set[str]:
        wanted = {".py", ".md", ".txt", ".toml"}
        inside = Path(folder).relative_to(ROOT).parts
        made = {"tests", "output", "__pycache__"} | ({"images", "annotations", "data", "cache"} if inside else set())
        return {
            name
            for name in names
            if name.startswith(".")
            or (name in made if (Path(folder) / name).is_dir() else Path(name).suffix not in wanted)
        }

    shutil.copytree(ROOT, copy, ignore=leave_out)
    return copy


# One process for many scripts, each run as a program: most of the time of a short one is the import of PyTorch.
RUN_ALL = """
import json, os, runpy, sys
codes = []
for folder, script, arguments in json.loads(sys.argv[1]):
    os.chdir(folder)
    sys.argv[1:] = arguments
    sys.path.insert(0, os.path.dirname(script))  # beside those that earlier scripts have added
    try:
        runpy.run_path(script, run_name="__main__")
        codes.append(0)
    except SystemExit as stop:
        codes.append(stop.code or 0)
print(json.dumps(codes))
"""


def run_all(project: Path, steps: list[tuple[Path, Path, list[str]]]) -> tuple[list[int], str, str]:
    """Scripts of the copy, one after the other: folder, script, arguments. Exit codes, what was printed, and errors."""
    listed = json.dumps([(str(folder), str(script), arguments) for folder, script, arguments in steps])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, listed], cwd=project, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    printed, _, codes = done.stdout.strip().rpartition("\n")
    return json.loads(codes), printed, done.stderr


def find(*start: str) -> Command:
    """The command of the README that begins so; it must be there."""
    found = [c for c in SCRIPTS if c.page.name == "README.md" and [c.words[0], *c.words[1 : len(start)]] == [*start]]
    assert found, f"README.md has no command {' '.join(start)}"
    return found[0]


def test_first_steps_work_as_written(project):
    """From nothing to a demo without licensed files; then the pages' Python, and the doctor. Only the network is
    smaller than written, and the untrained one for the Python, too. The demo's files hold what docs/formats.md says."""
    program, lesson = project / "program.py", project / "lesson.py"
    for file, text in (
        (program, next(block.text for block in blocks(ROOT / "README.md", "python"))),
        (lesson, "\n".join(block.text for block in blocks(ROOT / "docs" / "python.md", "python"))),
    ):
        assert "demo/snapshot_6.pth" in text
        file.write_text(text.replace("demo/snapshot_6.pth", "demo/untrained.pth"))
    demo = find("python", "demo/demo.py")
    photo = next(word for word in demo.words if word.endswith(".jpg"))
    image = np.random.default_rng(0).integers(0, 255, (120, 90, 3), np.uint8)
    for name in (photo, "photo.jpg"):
        assert cv2.imwrite(str(project / name), image)

    def step(command: Command, *more: str) -> tuple[Path, Path, list[str]]:
        folder, script = (project / path.relative_to(ROOT) for path in (command.folder, command.script))
        return folder, script, [*command.arguments, *more]

    codes, printed, errors = run_all(
        project,
        [
            step(find("python", "tool/make_standin_hand.py")),
            step(find("python", "tool/make_checkpoint.py"), "--preset", "small"),
            step(demo),
            (project, program, []),
            (project, lesson, []),
            step(find("python", "tool/doctor.py")),
        ],
    )
    assert codes == [0] * 6, f"{codes}\n{printed}\n{errors}"
    assert "1 of 1 photos done" in printed and "(21, 3)" in printed
    assert "missing.jpg" in printed and "min_confidence must be" in printed
    saved = {file.stem for file in (project / "results" / "results").iterdir()}
    assert saved == {"photo", "photo_0", "photo_1", "photo_2", "photo_person1", "photo_person2"}

    keys = set(spans(ROOT / "docs" / "formats.md"))
    written = [json.loads(next((project / "demo" / kind).glob("*.json")).read_text()) for kind in ("boxes", "params")]
    result = json.loads(next((project / "demo" / "results").glob("*.json")).read_text())
    hand_keys = {f"hands.{{right,left}}.{key}" for hand in result.pop("hands").values() for key in hand}
    undocumented = {*written[0]["right"], *written[1], *result, *hand_keys} - keys
    assert not undocumented, f"docs/formats.md does not name {sorted(undocumented)}"


GROUPED = ("main/train", "main/test", "demo/demo", "tool/doctor", "tool/export", "demo/web")
PLAIN = ("look", "parity", "benchmark", "measure_store", "make_toy_data", "make_toy_clip", "make_standin_hand")


@pytest.mark.parametrize(
    "script", (*GROUPED, "quickstart", "tool/make_checkpoint", *(f"tool/{name}" for name in PLAIN))
)
def test_help_explains_each_option_in_the_same_order_everywhere(script, monkeypatch, capsys):
    """Groups in one order; each option is explained, and one that has a default or choices names them."""
    parsers: list[Parser] = []
    parse = Parser.parse_known_args
    monkeypatch.setattr(Parser, "parse_known_args", lambda self, *args: parsers.append(self) or parse(self, *args))
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        import_script(ROOT / f"{script}.py").parse_args()
    titles = re.findall(r"^(\w[\w ./]*):$", capsys.readouterr().out.split("\noptions:\n")[1], re.MULTILINE)
    order = [*"files processing results people videos cameras server".split(), "values of main/config.py"]
    assert titles[:2] == (order[:2] if script in GROUPED else []) and titles == sorted(titles, key=order.index)
    for action in parsers[0]._actions:
        assert action.help and not action.help.startswith("(default"), action.dest
        stated = action.default not in (None, False, [], argparse.SUPPRESS) and not action.required
        assert not stated or "default" in action.help, action.dest
    if script == "main/test":
        shown = {action.dest for action in parsers[0]._actions if action.help != argparse.SUPPRESS}
        assert not shown & {"config_lr", "config_end_epoch", "config_train_batch_size", "config_augmentation", "preset"}


def test_options_in_the_text_exist():
    """`--option` in a sentence or a table is an option of one of the scripts."""
    text = "\n".join(path.read_text() for folder in CODE for path in (ROOT / folder).rglob("*.py"))
    text += "".join(path.read_text() for path in ROOT.glob("*.py"))
    known = {f"--{name}".replace("-", "_") for name in [*re.findall(r'"--([\w-]+)"', text), *FIELDS]}
    foreign = {"__help", "__signal", "__max_restarts"}  # with _ for -; of argparse, Slurm and torchrun
    for page in PAGES:
        named = {option for span in spans(page) for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
                 if "torchrun" not in span}  # fmt: skip
        named = {option.replace("-", "_") for option in named}
        assert not named - known - foreign, f"{page.name} names {sorted(named - known - foreign)}"


# ---- Links, names, messages, tables ----


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """Of the form folder/file.py; data files are not part of the project."""
    for path in re.findall(r"(?<![\w/.-])[a-zA-Z_]\w*/[\w/.-]+\.(?:py|md)\b", prose(page)):
        assert "GloveBox" in path or (ROOT / path).is_file(), f"{page.name} names {path}"


def source_texts() -> list[str]:
    """All texts in the code, NUL where a value goes."""
    texts = []
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                    texts.append("".join(parts))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    return texts


def test_messages_in_the_troubleshooting_table_occur():
    """The fixed parts of each quoted message stand in the code."""
    section = (ROOT / "README.md").read_text().split("## When something fails")[1].split("\n## ")[0]
    rows = [row.split("|")[1] for row in section.splitlines() if row.startswith("|")]
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) >= 8
    texts = source_texts()
    for message in quoted:
        for part in message.split("..."):
            part = part.strip(" :;,.")
            pattern = re.compile(re.sub(r"\d+", r"(?:\\d+|\\x00)", re.escape(part)))
            assert any(pattern.search(text) for text in texts), f"no message says {part!r} (of {message!r})"


def test_tables_of_joints_and_frames_are_those_of_the_code():
    text = (ROOT / "docs" / "conventions.md").read_text()
    joints = {int(index): name for index, name in re.findall(r"\| (\d+) \| `(\w+)` (?=\|)", text)}
    assert joints == dict(enumerate(JOINTS))
    frames = Frames()
    sizes = {name: (int(h), int(w)) for name, h, w in re.findall(r"^\| `(\w+)` \| (\d+) x (\d+)", text, re.MULTILINE)}
    assert len(sizes) == 6 and all(getattr(frames, name) == size for name, size in sizes.items())


def test_every_config_value_is_explained():
    named = set(spans(ROOT / "docs" / "formats.md"))
    assert not set(FIELDS) - named


def test_losses_and_checkpoint_keys_are_documented(small_snapshot):
    """What a step's line and a checkpoint hold."""
    named = set(spans(ROOT / "docs" / "formats.md"))
    content = torch.load(small_snapshot, weights_only=True)
    parts = {key.split(".")[1] for key in content["network"]}
    assert not ({*content} | parts) - named
    source = (ROOT / "common" / "criterion.py").read_text() + (ROOT / "main" / "train.py").read_text()
    terms = {"rel_trans", "mano_pose", "mano_shape", "joint_cam", "mano_mesh_cam", "joint_img", "mano_joint_img"}
    assert terms <= named and all(f'"{term}"' in source for term in terms)


def test_python_blocks_can_be_read():
    for page in PAGES:
        for block in blocks(page, "python"):
            text = block.text
            ast.parse("{" + text + "}" if text.lstrip().startswith('"') and text.startswith(" ") else dedent(text))
        for block in blocks(page, "json"):
            json.loads(block.text)


def dedent(text: str) -> str:
    return re.sub(r"^    ", "", text, flags=re.MULTILINE) if text.startswith("    ") else text


# ---- The dataset of docs/adding-a-dataset.md ----

IMAGES = 4
FOCAL, PRINCPT, SIZE = (600.0, 610.0), (159.5, 119.5), (240, 320)


def write_gloves(root: Path, mano: TwoHandMano, joint_names: tuple[str, ...]) -> None:
    """A tiny GloveBox folder: posed hands before a camera, the last image without a left hand."""
    generator = torch.Generator().manual_seed(0)
    params = ManoParams(
        torch.randn(IMAGES, 2, 3, generator=generator),
        0.2 * torch.randn(IMAGES, 2, 15, 3, generator=generator),
        torch.randn(IMAGES, 2, 10, generator=generator),
    )
    _, joints = mano(params)
    transl = torch.tensor([[-0.08, 0.0, 0.7], [0.08, 0.0, 0.75]]) - joints[:, :, 0]
    joints_mm = 1000 * (joints + transl[:, :, None])
    order = [JOINTS.index(name) for name in joint_names]
    (root / "images").mkdir(parents=True)
    content = []
    for row in range(IMAGES):
        name = f"{row + 1:06d}.png"
        noise = np.random.default_rng(row).integers(0, 255, (*SIZE, 3), np.uint8)
        assert cv2.imwrite(str(root / "images" / name), noise)
        image = {"id": row + 1, "file": name, "width": SIZE[1], "height": SIZE[0]}
        image |= {"focal": FOCAL, "princpt": PRINCPT}
        for hand, side in enumerate(SIDES):
            pose = torch.cat((params.global_orient[row, hand], params.hand_pose[row, hand].flatten()))
            fit = {
                "pose": pose.tolist(),
                "shape": params.betas[row, hand].tolist(),
                "trans": transl[row, hand].tolist(),
            }
            image[side] = {"joints": joints_mm[row, hand, order].tolist(), "fit": fit}
        content.append(image)
    content[-1]["left"] = None
    for split in ("train", "test"):
        (root / f"annotations_{split}.json").write_text(json.dumps(content))


@pytest.fixture
def gloves(tmp_path: Path, mano: TwoHandMano, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """main/build.py as the page wants it, with the page's source in place and a GloveBox folder in tmp_path/sets."""
    source, entry, import_line, branch, protocol = (
        block.text for block in blocks(ROOT / "docs" / "adding-a-dataset.md", "python")
    )
    package = tmp_path / "data" / "GloveBox"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "GloveBox.py").write_text(source)
    monkeypatch.setattr(data_package, "__path__", [*data_package.__path__, str(tmp_path / "data")])

    entries = tmp_path / "entries.py"
    imports = "from common.metrics import EvalProtocol\nfrom data.layouts import DatasetInfo\n"
    entries.write_text(f"{imports}INFO = {{\n{entry}}}\nPROTOCOL = {{\n{protocol}}}\n")
    made = load_file(entries)
    known = MappingProxyType({**layouts.DATASETS, **made.INFO})
    for module in (layouts, reading):
        monkeypatch.setattr(module, "DATASETS", known)
    monkeypatch.setitem(metrics.PROTOCOLS, "GloveBox", made.PROTOCOL["GloveBox"])

    text = (ROOT / "main" / "build.py").read_text()
    last_line = '    raise UserError(f"there is no dataset'
    first_import = "from data.HIC.HIC import HIC\n"
    assert text.count(last_line) == text.count(first_import) == 1
    changed = tmp_path / "changed_build.py"
    changed.write_text(text.replace(first_import, first_import + import_line).replace(last_line, branch + last_line))
    module = load_file(changed)
    names = importlib.import_module("data.GloveBox.GloveBox").GLOVEBOX_JOINTS
    write_gloves(tmp_path / "sets" / "GloveBox", mano, names)
    yield module
    for name in [name for name in sys.modules if name.startswith("data.GloveBox")]:
        del sys.modules[name]


CONFIG = replace(Config(), trainset_3d=("GloveBox",), trainset_2d=(), testset="GloveBox")


def test_the_data_set_of_the_page_trains(gloves, tmp_path, mano: TwoHandMano, small_model: InterWild):
    """Under an augmentation with everything, the MANO fits' joints lie on the annotated ones, in the image and in 3D;
    so order, units and camera are right. The losses are finite."""
    mixed = gloves.open_training(CONFIG, tmp_path / "sets", seed=0)
    everything = Augmentation(0.9, 25.0, (1.1, 0.9, 1.0), flip=True)
    batch = default_collate([mixed.parts[0].sample(index, everything) for index in range(IMAGES)])
    targets = build_targets(batch, mano, CONFIG.frames)
    assert targets.mano_valid.sum() == targets.boxes_valid.sum() == 2 * IMAGES - 1
    both = targets.joints_valid.bool() & targets.mano_valid[..., None].bool()
    assert both.sum() == 21 * (2 * IMAGES - 1)
    torch.testing.assert_close(targets.joints_crop[both], targets.mano_joints_crop[both], atol=0.05, rtol=0)
    fitted_rel = mano.regress_joints(targets.vertices_rel)
    torch.testing.assert_close(targets.joints_rel[both], fitted_rel[both], atol=1e-4, rtol=0)
    key = SampleKey(0, 1, epoch=0, position=1)
    sample = default_collate([mixed[key]])
    losses = InterWildLoss(CONFIG.frames)(small_model(build_images(sample)), build_targets(sample, mano, CONFIG.frames))
    assert all(value.isfinite() for value in losses.values()) and losses["joint_cam"] > 0


def test_the_data_set_of_the_page_is_tested(gloves, tmp_path, mano: TwoHandMano):
    """A perfect estimate has no error; all results of its protocol are there."""
    dataset = gloves.open_dataset("GloveBox", "test", CONFIG, tmp_path / "sets")
    batch = default_collate([dataset[index] for index in range(IMAGES)])
    truth = complete_truth(batch, mano)
    joints = mano.regress_joints(truth.vertices_cam)
    wrists = joints[:, :, :1]
    estimate = Estimate(
        truth.boxes_image, truth.vertices_cam - wrists, joints - wrists, truth.rel_transl, truth.boxes_valid
    )
    evaluator = Evaluator(metrics.PROTOCOLS["GloveBox"], mano)
    evaluator.update(range(IMAGES), estimate, truth)
    figures = evaluator.compute()
    assert figures.pop("bbox IoU") == pytest.approx(100, abs=1e-2)
    assert {"MRRPE", "MPVPE for single hand sequences", "MPJPE for all hand sequences"} <= set(figures)
    assert max(figures.values()) < 0.01  # mm


def test_the_data_set_of_the_page_names_what_is_wrong(gloves, tmp_path):
    """A broken annotation is reported when it is read; a missing file is named, with the place to get it."""
    file = tmp_path / "sets" / "GloveBox" / "annotations_train.json"
    content = json.loads(file.read_text())
    content[1]["right"]["joints"][3] = [1, 2]
    file.write_text(json.dumps(content))
    source = gloves.open_source("GloveBox", "train", CONFIG, tmp_path / "sets")
    assert [source.id(index) for index in range(len(source))] == [1, 2, 3, 4]
    source.annotation(0)
    with pytest.raises(UserError, match=r"entry 1.*joints"):
        source.annotation(1)
    file.unlink()
    with pytest.raises(UserError, match="annotations_train.json is missing; get annotations"):
        gloves.open_source("GloveBox", "train", CONFIG, tmp_path / "sets")
