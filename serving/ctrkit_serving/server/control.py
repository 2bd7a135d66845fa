"""Messages between supervisor and workers: JSON, one a packet of a local socket."""

import json
import re
import socket
from typing import Any

from ctrkit_serving.server.protocol import bad

MAX_MESSAGE = 128 * 1024


_VERSION = re.compile(r"[0-9]{1,18}")


def load_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Those of a call to load: `version`, a number or None, and `allow_other_signature`.

    Raises:
        RequestError: they are others, or of another form.
    """
    given, other = parameters.get("version"), parameters.get("allow_other_signature", False)
    plain = given is None or (isinstance(given, int | str) and not isinstance(given, bool))
    unknown = parameters.keys() - {"version", "allow_other_signature"}
    if unknown or not isinstance(other, bool) or not plain or not (given is None or _VERSION.fullmatch(f"{given}")):
        raise bad("parameters are version (a number) and allow_other_signature")
    return {"version": None if given is None else int(given), "allow_other_signature": other}


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
