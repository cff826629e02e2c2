"""Print the demo's held-out text, to measure packages on.

python -m tools.demo.heldout > heldout.txt
"""

from __future__ import annotations

import sys

from ctx_export import demo

if __name__ == "__main__":
    sys.stdout.write(demo.heldout_text())
