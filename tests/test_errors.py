"""The one place where errors get the name of what they are about, and where scripts end."""

import json
import os
import subprocess
import sys

import pytest

from common.errors import UserError, error_context
from common.options import ROOT


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            FileNotFoundError(2, "No such file or directory"),
            "cannot read a.json: No such file or directory; put it there",
        ),
        (
            json.JSONDecodeError("Expecting value", "", 0),
            "cannot read a.json: Expecting value: line 1 column 1 (char 0)",
        ),
        (UserError("it is empty"), "cannot read a.json: it is empty; put it there"),
        (ValueError(), "cannot read a.json: ValueError; put it there"),
    ],
)
def test_an_error_gets_its_subject_and_advice(error: Exception, message: str) -> None:
    with pytest.raises(UserError) as raised, error_context("cannot read a.json", ValueError, advice="put it there"):
        raise error
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("error", [KeyError("a bug"), MemoryError(), OSError(12, "Cannot allocate memory")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, error_context("cannot read a.json", ValueError):
        raise error
    assert raised.value is error


SCRIPT = """
import sys
from common.errors import UserError, run_main

def main():
    with open(sys.argv[1], "w", errors="replace") as file:
        print("h\\xe4nd\\udcff\\U0001f590")
        print("h\\xe4nd\\udcff\\U0001f590", file=sys.stderr)
        file.write(f"{file.fileno()} done")
    raise UserError("h\\xe4nd\\udcff\\U0001f590")

run_main(main)
"""


@pytest.mark.parametrize(
    ("encoding", "closed"),
    [
        ("ascii", ()),
        ("latin-1", ()),
        ("cp932", ()),
        *(("utf-8", closed) for closed in [(), (1,), (2,), (1, 2), (0, 1, 2)]),
    ],
)
def test_what_a_terminal_cannot_show_and_closed_output(tmp_path, encoding, closed):
    """The work is done and the exit code right; no file gets the number of a closed stream."""

    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "a"],
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        preexec_fn=close,
    )
    assert done.returncode == 2, done.stderr
    number, state = (tmp_path / "a").read_text().split()
    assert int(number) > 2 and state == "done"
    assert (b"error: h" in done.stderr) == (2 not in closed) and b"Traceback" not in done.stderr
    assert (b"nd\\udcff" in done.stdout) == (1 not in closed)
