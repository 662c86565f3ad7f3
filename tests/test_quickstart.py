"""The front door: what a newcomer meets. The whole of it is in the slow test."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import quickstart

ROOT = Path(__file__).resolve().parent.parent


def start(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "quickstart.py", "--env", "none", "--gpu", "cpu", *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd="/", timeout=900)


def test_an_old_python_is_refused_naming_the_one_needed(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(sys, "argv", ["quickstart.py"])
    with pytest.raises(quickstart.Failure, match="Python 3.10 or newer is needed"):
        quickstart.main()


def test_it_parses_on_pythons_that_are_too_old_to_run_it():
    """Otherwise they answer with a syntax error and not with the message."""
    for path in (ROOT / "quickstart.py", ROOT / "common" / "options.py"):  # and what it imports
        ast.parse(path.read_text(), feature_version=(3, 7))


def test_a_stage_that_fails_ends_it_in_one_line(tmp_path):
    (tmp_path / "out" / "mano").mkdir(parents=True)
    (tmp_path / "out" / "mano" / "MANO_RIGHT.pkl").write_bytes(b"somebody's own")
    done = start("--output", tmp_path / "out")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: stage 'hand' failed (exit code 2)")
    assert not list((tmp_path / "out" / "done").iterdir())


def test_an_output_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = start("--output", tmp_path / "file" / "out")
    assert done.returncode == 2 and done.stderr.startswith("error: cannot make folder") and done.stderr.count("\n") == 1


def test_a_finished_stage_is_not_run_again_and_a_changed_one_is(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(quickstart, "run", lambda command, what, advice="", log=None: ran.append(command))
    monkeypatch.setattr(quickstart.Quickstart, "run_demo", lambda self, where: None)
    monkeypatch.setattr(quickstart.Quickstart, "report", lambda self: None)
    monkeypatch.setattr(quickstart.Quickstart, "report_before", lambda self: None)

    def again(*options: str) -> list[str]:
        ran.clear()
        monkeypatch.setattr(sys, "argv", ["quickstart.py", "--gpu", "cpu", "--output", str(tmp_path), *options])
        steps = quickstart.Quickstart(sys.executable, quickstart.parse_args())
        for *_, product in steps.stages:
            product.parent.mkdir(parents=True, exist_ok=True)
            product.touch()
        steps.run()
        return [Path(command[1]).name for command in ran]

    scripts = again()
    assert scripts[:3] == ["make_standin_hand.py", "make_toy_data.py", "make_checkpoint.py"]
    assert scripts.count("train.py") == 1 and scripts.count("test.py") == 6
    assert scripts[-2:] == ["make_toy_clip.py", "demo.py"]
    assert "--overwrite" in next(command for command in ran if command[1] == "main/train.py")
    assert again() == []
    assert capsys.readouterr().out.count("skipped") == 6
    assert again("--epochs", "9") == ["train.py", "test.py", "test.py", "test.py", "make_toy_clip.py", "demo.py"]
    (tmp_path / "done" / "train.json").unlink()  # as if interrupted: checkpoints are there
    again("--epochs", "9")
    assert "--continue" in ran[0]


@pytest.mark.parametrize(
    ("number", "to_group"), [(signal.SIGTERM, False), (signal.SIGHUP, False), (signal.SIGTERM, True)]
)
def test_a_signal_ends_it_with_one_line_and_takes_its_child_along(number, to_group):
    """The child gets time to save a checkpoint, so it is told and waited for. `timeout` signals it, then its group."""
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = "import quickstart, sys; quickstart.main = lambda: quickstart.run([sys.executable, '-c', sys.argv[1]], '')"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}; quickstart.start()", child],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    ident = int(process.stdout.readline())
    process.send_signal(number)
    if to_group:
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number and errors == "stopped; the same command resumes\n"
    with pytest.raises(ProcessLookupError):
        os.kill(ident, 0)


def test_the_untrained_network_has_one_line_per_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "--gpu", "cpu", "--output", str(tmp_path)])
    steps = quickstart.Quickstart(sys.executable, quickstart.parse_args())
    (tmp_path / "before" / "result").mkdir(parents=True)
    metrics = {"bbox IoU": 0.04, "MRRPE": None, "MPVPE for all hand sequences": 149.91, "MPVPE for single hand": 1.0}
    for name in quickstart.TEST_SETS:
        (tmp_path / "before" / "result" / f"{name}_0.json").write_text(json.dumps({"metrics": metrics}))
    steps.report_before()
    assert capsys.readouterr().out.splitlines() == [
        f"  {name}: bbox IoU 0.0, MPVPE 149.9" for name in quickstart.TEST_SETS
    ]


def test_pip_is_one_line_on_the_screen_and_a_log_in_a_file(tmp_path, monkeypatch, capfd):
    """A failed installation names the log."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(
        "#!/bin/sh\necho pip talks; case $* in *--version*) exit 0; esac; exit 1\n"
    )
    (tmp_path / "bin" / "python").chmod(0o755)
    with pytest.raises(quickstart.Failure, match="see .*install.log; is there a network"):
        quickstart.make_environment(str(tmp_path), ROOT / "requirements.txt")
    output = capfd.readouterr()
    assert output.out.count("\n") == 1 and "install.log): 0:00" in output.out and not output.err
    assert (tmp_path / "install.log").read_text() == "pip talks\n"


@pytest.mark.slow
def test_the_whole_and_once_more(tmp_path):
    options = ("--output", tmp_path / "out", "--samples", 32, "--epochs", 1)
    done = start(*options)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    for path in ("demo/sheet.jpg", "demo/two/overlay.mp4", "after/result/HIC_0_samples.jpg", "log/losses.jsonl"):
        assert (tmp_path / "out" / path).stat().st_size > 1000
    assert len(list((tmp_path / "out" / "demo" / "renders").glob("*.html"))) >= 12
    table = [line for line in done.stdout.splitlines() if " -> " in line]
    results = json.loads((tmp_path / "out" / "after" / "result" / "HIC_0.json").read_text())["metrics"]
    assert sum("HIC " in line for line in table) == len(results) >= 4
    losses = (tmp_path / "out" / "log" / "losses.jsonl").read_bytes()
    assert start(*options).returncode == 0
    assert (tmp_path / "out" / "log" / "losses.jsonl").read_bytes() == losses
