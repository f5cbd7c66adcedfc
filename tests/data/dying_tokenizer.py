# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A tokenizer for one test, in a file of its own so that worker processes import little."""

import os

from k2_megatron.data.tokenizer import ByteTokenizer


class DyingTokenizer(ByteTokenizer):
    """Ends its process, as the kernel does when memory runs out."""

    def encode(self, text: str) -> list[int]:
        os._exit(9)
