# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""Ports for ranks that meet on one machine."""

from __future__ import annotations

import socket

from k2_megatron.launch.ports import free_port


def test_no_port_is_given_twice_and_all_are_free():
    """A system may give the last free one again: two runs that start together would share it."""
    given = [free_port() for _ in range(1000)]
    assert len(set(given)) == len(given)
    with socket.create_server(("127.0.0.1", given[-1])):
        pass
