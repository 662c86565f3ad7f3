"""The one exception for failures a user can cause, and the one place that turns it into a line and an exit code."""

import os
import reprlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

FAILED, STOPPED = 2, 130  # exit codes
# What asks a process to end, beside Ctrl-C; Windows has no SIGHUP.
END_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
MAX_PIXELS = 1 << 28  # larger images are refused: decoded, they take 3/4 GB in each thread or loader worker
# How libraries report that memory has run out, where they do not raise MemoryError.
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "failed to allocate", "bad_alloc"),
    *("can't start new thread", "failed to map segment"),
)
NO_MEMORY = (
    "out of memory; use a smaller batch size (in training also --accumulate 2 or --amp bf16), smaller images, fewer "
    "--workers or another device"
)
WORKER_KILLED = "a loader worker was killed, perhaps for lack of memory; use fewer --workers"


class UserError(Exception):
    """A failure the user can fix. Its text is one line that says what is wrong and what to do."""


@contextmanager
def error_context(subject: object, *kinds: type[Exception], advice: str = "") -> Iterator[None]:
    """Name the file or the sample that an error is about; everywhere else errors pass.

    Args:
        subject: what the message starts with, e.g. "cannot read photo.jpg".
        kinds: exceptions of the library called inside that a user can cause, beside `OSError` and `UserError`.
        advice: what to do, after the reason.

    Raises:
        UserError: "{subject}: {reason}; {advice}", for one of these exceptions.
    """
    expected: tuple[type[Exception], ...] = (UserError, OSError, *kinds)
    try:
        yield
    except expected as error:
        if is_out_of_memory(error):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
        raise UserError(f"{subject}: {reason}{'; ' if advice else ''}{advice}") from error


def brief(value: object) -> str:
    """A value of a file, for a message."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"a huge {type(value).__name__}"


def some(names: Sequence[str], most: int) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def one_line(text: str) -> str:
    """Escape what is not printable: file names may hold line breaks and terminal codes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and leave the process.

    Exit code: what `main` returns (None is 0); 2 with one line on stderr for a `UserError`, out of memory and what the
    system refuses; 130 after Ctrl-C; 143 after SIGTERM, 129 after SIGHUP, where `main` does not handle them; 141 if
    the reader of the output has gone.
    """
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PIXELS))  # OpenCV reads it when it is loaded
    _prepare_output()
    for number in END_SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _leave)
    code = _run(main)
    for number in END_SIGNALS:  # while the interpreter ends, a repeated signal is the same request
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def _run(main: Callable[[], int | None]) -> int:
    try:
        code = main() or 0
        if sys.stdout is not None:
            sys.stdout.flush()  # at interpreter exit a failure could no longer be reported
        return code
    except KeyboardInterrupt:
        return _fail("stopped", STOPPED, "")
    except BrokenPipeError:  # e.g. `... | head`
        _drop_output()
        return 128 + 13
    except Exception as error:
        text = explain_failure(error)
        if text is None:
            raise
        if isinstance(error, OSError) and not error.filename:
            _drop_output()  # it may be stdout that cannot be written, e.g. to a full disk
        return _fail(text)


def explain_failure(error: BaseException) -> str | None:
    """The line for an exception that the user or the machine caused; None if it may be a bug."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return NO_MEMORY
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    # PyTorch raises this wherever the program just is when a worker dies.
    return WORKER_KILLED if isinstance(error, RuntimeError) and "DataLoader worker" in str(error) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whichever library, says that memory has run out."""
    text = str(error)[:100_000].lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def _fail(text: str, code: int = FAILED, prefix: str = "error: ") -> int:
    with suppress(OSError, ValueError):  # the terminal has gone
        print(f"{prefix}{one_line(text)}", file=sys.stderr, flush=True)
    return code


def _leave(number: int, frame: object) -> None:
    """End as after an error, so that half-written files are removed."""
    for other in END_SIGNALS:
        signal.signal(other, signal.SIG_DFL)  # a second signal ends the process at once
    raise SystemExit(128 + number)


def _prepare_output() -> None:
    """What a terminal cannot show is printed as an escape; output that the caller closed goes nowhere."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            with suppress(OSError):  # else the next file that is opened, perhaps a checkpoint, gets the number ...
                while os.open(os.devnull, os.O_RDWR) < descriptor:  # ... and what libraries print
                    pass
            setattr(sys, name, open(os.devnull, "w"))
        with suppress(AttributeError):  # a test's stand-in
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """Discard the unwritten output, which Python would write at exit."""
    with suppress(OSError, ValueError, AttributeError):  # there is no such file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
