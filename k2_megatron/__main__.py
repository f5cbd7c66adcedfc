# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m k2_megatron` is the command `k2-megatron`."""

import sys

from k2_megatron.cli import main

if __name__ == "__main__":
    sys.exit(main())
