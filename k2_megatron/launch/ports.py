# SPDX-FileCopyrightText: 2026 The k2_megatron authors
# SPDX-License-Identifier: Apache-2.0
"""A TCP port for ranks that meet on this machine. The standard library is all it imports."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

_GIVEN: set[int] = set()
_LOCK = threading.Lock()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that this process has not been given before.

    Some systems give the last free one again at once. Nothing holds the port: until somebody
    listens on it another process may.
    """
    with _LOCK, ExitStack() as refused:
        while True:
            found = refused.enter_context(socket.socket())
            found.bind(("127.0.0.1", 0))
            port: int = found.getsockname()[1]
            if port not in _GIVEN:
                _GIVEN.add(port)
                return port
