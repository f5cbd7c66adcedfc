# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""The corpus and configuration of the command line's tests, for runs with faults."""

from tests.cli.conftest import own_place, place

__all__ = ["own_place", "place"]
