"""Messages between supervisor and workers: JSON, one a packet of a local socket."""

import json
import socket
from typing import Any

MAX_MESSAGE = 128 * 1024


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends, which block neither to read nor to write."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
    return ends


def send(end: socket.socket, message: dict[str, Any]) -> bool:
    """Send a message; False if the other side is gone or does not read."""
    try:
        end.send(json.dumps(message).encode())
    except OSError:
        return False
    return True


def receive(end: socket.socket) -> dict[str, Any] | None:
    """The next message; None if the other side is gone.

    Raises:
        BlockingIOError: there is none.
    """
    try:
        packet = end.recv(MAX_MESSAGE)
    except ConnectionError:
        return None
    return json.loads(packet) if packet else None
