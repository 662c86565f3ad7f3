#!/usr/bin/env python3
"""See the whole system run, without any licensed file: one command on a machine with Python, pip and git.

    python3 quickstart.py               # environment, generated hand and data, training, test, demo
    python3 quickstart.py --tests       # environment, lint, all tests
    python3 quickstart.py --gpu cpu     # on the CPU, even if there is a GPU

The first run installs requirements.txt into .venv (about 6 GB with PyTorch's CUDA libraries). Then it generates a hand
model and images of such hands in the official formats, trains a small network on them, tests it before and after on
images it has not seen, and runs the demo on a video, on some of these images and on your photos in demo/images.
Everything is written below output/quickstart. Finished stages are skipped; an interrupted run resumes. --fresh starts
over.

This network knows generated hands only. For real photos get the published checkpoint and MANO: see README.md.
Exit code: 0; 2 with one line on stderr if something fails; 130 after Ctrl-C, 143 after SIGTERM, 129 after
SIGHUP.
"""

from __future__ import annotations  # an older Python must get as far as its message

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.options import IMAGE_SUFFIXES, Parser, count

ROOT = Path(__file__).resolve().parent
OLDEST = (3, 10)
# Training images per dataset and epochs: two CPU cores need about ten minutes.
SAMPLES, EPOCHS, TEST_SAMPLES, DEMO_SAMPLES = 1000, 7, 64, 6
VARIETY = 0.25  # poses and views that a small network can learn in this time
STOP_SIGNALS = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
TEST_SETS = ("InterHand26M", "HIC", "MSCOCO")


class Failure(Exception):
    """One line for the user."""


def main() -> None:
    args = parse_args()
    if sys.version_info < OLDEST:
        needed, this = ".".join(map(str, OLDEST)), sys.version.split()[0]
        raise Failure(f"Python {needed} or newer is needed, and this is {this}: python{needed} {__file__}")
    if args.tests:
        python = make_environment(args.env, ROOT / "requirements-dev.txt")
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # the two processes of the tests share the cores
        for command in ("ruff check .", "ruff format --check .", "pytest -n 2 --dist loadfile"):
            run([python, "-m", *command.split()], command)
        print("lint and tests passed")
        return
    started = time.monotonic()
    Quickstart(make_environment(args.env, ROOT / "requirements.txt"), args).run()
    print(f"finished in {clock(time.monotonic() - started)}")


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--tests", action="store_true", help="run lint and tests instead")
    parser.add_argument("--gpu", help="a GPU's number, or cpu (default: 0, or the CPU without one)")
    parser.add_argument("--fresh", action="store_true", help="start over, but keep the environment")
    parser.add_argument("--samples", type=count, default=SAMPLES, help="training images per set (default: %(default)s)")
    parser.add_argument("--epochs", type=count, default=EPOCHS, help="epochs of training (default: %(default)s)")
    output = ROOT / "output" / "quickstart"
    parser.add_argument("--output", type=Path, default=output, help="folder to write into (default: output/quickstart)")
    parser.add_argument(
        "--env", default=str(ROOT / ".venv"), help="folder of the environment; none: this Python (default: .venv)"
    )
    return parser.parse_args()


def make_environment(folder: str, requirements: Path) -> str:
    """The Python of an environment with these requirements, which is made or completed first if necessary."""
    if folder == "none":
        return sys.executable
    home = Path(folder).resolve()
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    texts = [path.read_bytes() for path in sorted(ROOT.glob("requirements*.txt"))]
    mark = home / f"{requirements.stem}-{hashlib.sha256(b''.join(texts)).hexdigest()[:12]}.installed"
    if mark.is_file() and python.is_file():
        return str(python)
    pip, log, started = [str(python), "-m", "pip"], home / "install.log", time.monotonic()
    print(f"[environment] installing {requirements.name} into {home} (log: {log.name}): ", end="", flush=True)
    try:
        if not python.is_file():
            # Debian's Python lacks the part that puts pip into an environment; its own pip can serve it from outside.
            inside = subprocess.run([sys.executable, "-c", "import ensurepip"], capture_output=True).returncode == 0
            run([sys.executable, "-m", "venv", *([] if inside else ["--without-pip"]), str(home)], "making .venv")
        if subprocess.run([*pip, "--version"], capture_output=True).returncode:
            pip = [sys.executable, "-m", "pip", "--python", str(python)]
        run([*pip, "install", "--disable-pip-version-check", "-r", str(requirements)], "installing the requirements",
            f"see {log}; is there a network connection, and room for 6 GB?", log)  # fmt: skip
    finally:
        print(clock(time.monotonic() - started), flush=True)
    mark.touch()
    return str(python)


def run(command: list[object], what: str, advice: str = "see the errors above", log: Path | None = None) -> None:
    """Run a command in the project's folder, its output on the screen or in a file.

    Raises:
        Failure: it did not end well.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, when the command has ended.
    """
    output = open(log, "w") if log else None
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, env=environment(), stdout=output, stderr=output)
    stopped = code = None
    while code is None:
        try:
            code = process.wait()
        except KeyboardInterrupt as interrupt:  # the program may have a checkpoint to save
            stopped = interrupt
            if stopped.args:  # SIGTERM or SIGHUP; Ctrl-C reaches the program without help
                process.terminate()
    if stopped:
        raise stopped
    if code:
        raise Failure(f"{what} failed (exit code {code}): {advice}")


def environment() -> dict[str, str]:
    """Environment variables of the commands, without those that belong to another Python."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


class Quickstart:
    """The stages after the environment; each leaves a mark when it is finished, and is skipped while that holds."""

    def __init__(self, python: str, args: argparse.Namespace) -> None:
        self.python, self.out = python, args.output.resolve()
        if args.fresh:
            shutil.rmtree(self.out, ignore_errors=True)
        try:
            (self.out / "done").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"cannot make folder {self.out}: {error.strerror}; choose another --output") from None
        self.gpu = args.gpu or self.find_gpu()
        mano = ["--mano", self.out / "mano"]
        data = ["--data", self.out / "data", *mano]
        network = ["--preset", "small", "--init", "random"]
        self.last = args.epochs - 1
        begin, trained = self.out / "start.pth", self.out / "model_dump" / f"snapshot_{self.last}.pth"

        def test(checkpoint: Path, folder: str) -> list[list[object]]:
            return [
                ["main/test.py", "--gpu", self.gpu, "--checkpoint", checkpoint, "--testset", name,
                 "--interhand_test_subset", "all", "--output", self.out / folder, *data]
                + (["--visualize", "8"] if folder == "after" else [])
                for name in TEST_SETS
            ]  # fmt: skip

        train = ["main/train.py", "--gpu", self.gpu, *network, "--trainset_3d", "InterHand26M", "--output", self.out]
        train += ["--end_epoch", args.epochs, "--lr_dec_epoch", round(0.85 * args.epochs)]
        train += ["--visualize_every", 200, "--validate_every", 100]
        # Less augmentation than for photos: in a few minutes the network sees no image often.
        train += ["--augmentation", "rot=15", "scale=0.1", *data]
        toy = ["tool/make_toy_data.py", "--out", self.out / "data", "--sets", "InterHand26M,MSCOCO,HIC", "--scale", 0.5]
        toy += ["--variety", VARIETY, "--train", args.samples, "--test", TEST_SAMPLES, *mano]
        start = ["tool/make_checkpoint.py", *network, "--heads", "start", "--out", begin, "--overwrite"]
        demo = ["demo/demo.py", "--gpu", self.gpu, "--checkpoint", trained, "--output", self.out / "demo", *mano]
        two = self.out / "clips/two"  # two people, who move for two seconds
        clip = ["tool/make_toy_clip.py", "--output", self.out / "clips", "--clips", "two", "--seconds", 2, *mano]
        # Name, share of the total time, commands, and a file that must exist afterwards.
        self.stages = [
            ("hand", 1, [["tool/make_standin_hand.py", "--out", self.out / "mano"]], self.out / "mano/MANO_LEFT.pkl"),
            ("data", 14, [toy], self.out / "data/HIC/data/HIC.json"),
            ("test before", 4, [start, *test(begin, "before")], self.out / "before/result/MSCOCO_0.json"),
            ("train", 70, [train], trained),
            ("test after", 6, test(trained, "after"), self.out / f"after/result/MSCOCO_{self.last}.json"),
            ("video", 6, [clip, [*demo, "--compare", "--input", two / "two.mp4", "--boxes", two / "boxes.json"]],
             self.out / "demo/two/overlay.mp4"),
        ]  # fmt: skip
        self.demo = [*demo, "--html", "--sheet", "--hand", "auto"]

    def find_gpu(self) -> str:
        """0 if PyTorch can use a GPU, else cpu."""
        code = "import torch; print('0' if torch.cuda.is_available() else 'cpu')"
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment()
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise Failure(f"PyTorch does not start in {self.python}: {reason}; remove .venv and try again")
        return done.stdout.strip()

    def run(self) -> None:
        """All stages, then what to look at."""
        print(f"[quickstart] on {'the CPU' if self.gpu == 'cpu' else 'GPU ' + self.gpu}; output: {self.out}")
        begun, total = time.monotonic(), sum(share for _, share, _, _ in self.stages) + 5
        behind = fresh = 0  # shares of the stages so far, and of those that ran now
        for number, (name, share, commands, product) in enumerate(self.stages, 1):
            mark = self.out / "done" / (name.replace(" ", "_") + ".json")
            asked = json.dumps([[str(part) for part in command] for command in commands])
            where = f"[{number}/{len(self.stages) + 1} {name}]"
            if mark.is_file() and mark.read_text() == asked and product.is_file():
                print(f"{where} finished before, skipped")
            else:
                elapsed = time.monotonic() - begun
                left = f", about {clock(elapsed / fresh * (total - behind))} left" if fresh > 4 else ""
                print(f"{where} {clock(elapsed)} elapsed{left}", flush=True)
                mark.unlink(missing_ok=True)
                before = name == "test before"
                log = self.out / "before.log" if before else None  # one line per dataset is enough
                advice = f"see {log}" if before else "see the errors above"
                for command in commands:
                    run([self.python, *self.resumable(command, asked)], f"stage '{name}'", advice, log)
                if before:
                    self.report_before()
                mark.write_text(asked)
                fresh += share
            behind += share
        self.run_demo(f"[{len(self.stages) + 1}/{len(self.stages) + 1} demo]")
        self.report()

    def resumable(self, command: list[object], asked: str) -> list[object]:
        """A training resumes where it was interrupted if its command is the same; otherwise it starts over."""
        if command[0] != "main/train.py":
            return command
        mark = self.out / "done" / "train_begun.json"
        same = mark.is_file() and mark.read_text() == asked and any((self.out / "model_dump").glob("*.pth"))
        mark.write_text(asked)
        return [*command, "--continue" if same else "--overwrite"]

    def run_demo(self, where: str) -> None:
        """On images that were not trained on, and on the user's photos."""
        chosen = []
        for name, pattern in (("MSCOCO", "images/val2017/*"), ("InterHand26M", "images/test/**/*.jpg")):
            files = sorted(path for path in (self.out / "data" / name).glob(pattern) if path.is_file())
            chosen += files[:: max(1, len(files) // DEMO_SAMPLES)][:DEMO_SAMPLES]
        photos = [path for path in (ROOT / "demo" / "images").glob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
        mine = f" and {len(photos)} photos of demo/images" if photos else "; put photos into demo/images for more"
        print(f"{where} {len(chosen)} held-out images{mine}", flush=True)
        run([self.python, *self.demo, "--input", *chosen, *([ROOT / "demo" / "images"] if photos else [])], "the demo")

    def report_before(self) -> None:
        """One line per dataset: the results of the untrained network over all hands."""
        for name in TEST_SETS:
            metrics = json.loads((self.out / f"before/result/{name}_0.json").read_text())["metrics"]
            short = {label.replace(" for all hand sequences", ""): value for label, value in metrics.items()}
            shown = [
                f"{label} {value:.1f}" for label, value in short.items() if value is not None and " for " not in label
            ]
            print(f"  {name}: {', '.join(shown)}", flush=True)

    def report(self) -> None:
        """Results before and after, and where the images are."""
        print("\nheld-out generated images, before and after training (mm; IoU in percent)\n")
        for name in TEST_SETS:
            files = self.out / f"before/result/{name}_0.json", self.out / f"after/result/{name}_{self.last}.json"
            before, after = (json.loads(file.read_text())["metrics"] for file in files)
            for label in after:
                old, new = ("-" if v is None else f"{v:.1f}" for v in (before.get(label), after[label]))
                print(f"  {name:13}{label:38}{old:>9} -> {new}")
        print("\ngenerated video of two people, before and after smoothing\n")
        people = json.loads((self.out / "demo/two/summary.json").read_text())["people"]
        for unit in ("mm", "px"):
            old, new = (
                f"{sum(one['jitter'][f'{when}_{unit}_per_frame2'] or 0 for one in people) / len(people):.2f}"
                for when in ("before", "after")
            )
            print(f"  {'two':13}{f'jitter of the joints, {unit} per frame^2':38}{old:>9} -> {new}")
        print(f"""
images and a video, in {self.out}:
  demo/sheet.jpg             contact sheet: photo, boxes, skeletons, meshes, the meshes from another side
  demo/two/overlay.mp4       a video of two people: the hands frame by frame, and smoothed, side by side
  demo/renders/*.html        the meshes in a browser, to rotate
  after/result/*.jpg, *.png  test samples, the worst, histograms of the errors
  vis/*.jpg                  samples during training
  log/curve.png              the training's loss, and the errors on samples that are held out of it
  log/                       losses of each step; tensorboard --logdir {self.out / "log"}
""")


def clock(seconds: float) -> str:
    """Seconds -> m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def stop(number: int, _: object) -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C, once: `timeout` sends the same request again."""
    for repeated in STOP_SIGNALS:
        signal.signal(repeated, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def start() -> None:
    """Run `main` and leave the process."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stop)
    try:
        main()
    except (Failure, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stopped:
        print("stopped; the same command resumes", file=sys.stderr)
        sys.exit(128 + (stopped.args or (signal.SIGINT,))[0])


if __name__ == "__main__":
    start()
