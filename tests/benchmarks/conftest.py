"""The fake device lies with the runtime's tests, which may not be collected when these are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "runtime"))
