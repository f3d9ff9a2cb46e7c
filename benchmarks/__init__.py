"""How fast and how faithful: every number of the README is printed by a command in this folder."""

import sys
from pathlib import Path

# Python puts a script's own folder first on the path. From this one `import kernels` would then find
# benchmarks/kernels.py instead of the package, so scripts of this folder import `benchmarks` before anything else.
if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
    del sys.path[0]
