# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Which optional packages are here: the only module that asks."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from k2_megatron.errors import MissingPackageError

EXTRAS = {
    "transformer_engine": "gpu",
    "tokenizers": "tokenizers",
    "tiktoken": "tokenizers",
}


@cache
def available(package: str) -> bool:
    """Whether a package can be imported; it is not imported by asking."""
    return importlib.util.find_spec(package) is not None


def require(package: str, purpose: str) -> ModuleType:
    """Import an optional package.

    Raises:
        MissingPackageError: it is absent; the text names the extra that installs it.
    """
    if not available(package):
        extra = EXTRAS[package]
        raise MissingPackageError(
            f"{purpose} needs the package {package!r}, which is not installed; "
            f"install it with: pip install 'k2-megatron[{extra}]'"
        )
    return importlib.import_module(package)
