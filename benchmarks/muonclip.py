# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""What MuonClip costs on a GPU: Newton-Schulz by shape, then whole steps of the K2 slice.

    python3 benchmarks/muonclip.py

Runs newton_schulz.py and slice.py, which say what they compare.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """One after the other; arguments go to slice.py."""
    for words in (
        ["newton_schulz.py"],
        ["slice.py", "--turns", "2", "--optimizers", "none,adamw,muon", *sys.argv[1:]],
    ):
        script, *rest = words
        subprocess.run([sys.executable, "-W", "ignore", str(HERE / script), *rest], check=True)


if __name__ == "__main__":
    main()
