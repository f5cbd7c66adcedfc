# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m k2_megatron` is the command `k2-megatron`."""

import sys

from k2_megatron.launch.ending import RankEnding


def run() -> int:
    """Run the command; returns the exit code of this process."""
    ending = RankEnding()  # before the imports of the command register theirs
    from k2_megatron.cli import main

    try:
        code = main()
    except Exception:
        ending.with_code(1)
        raise
    ending.with_code(code)
    return code


if __name__ == "__main__":
    sys.exit(run())
