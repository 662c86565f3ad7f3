"""Puts the repository on `sys.path`, for scripts that are run as files: the one place for all of tool/."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
