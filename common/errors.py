"""The one exception for failures a user can cause, and the one place that turns it into a line and an exit code."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A failure the user can mend. Its text is one line which says what is wrong and what to do."""


def run_main(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and leave the process.

    Exit code: what `main` returns (None is 0); 2 with one line on stderr for a `UserError`; 130 after Ctrl-C.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)
