"""A server's infer call as bytes, and what the server says of its models."""

import http.client
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from ctrkit.errors import UserError

_TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}


@dataclass(frozen=True)
class Server:
    """A model that a server has."""

    host: str
    port: int
    model: str

    @classmethod
    def parse(cls, url: str, model: str) -> "Server":
        """Of `http://host:port` or `host:port`; raises UserError for anything else."""
        try:
            parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = port = None
        if not host or port is None or parts.scheme != "http" or parts.path not in ("", "/"):
            raise UserError(f"--server {url}: give http://HOST:PORT")
        return cls(host, port, model)

    @property
    def place(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    def request(
        self, inputs: Mapping[str, npt.NDArray[Any]], *, timeout_ms: float | None = None, fingerprint: str | None = None
    ) -> bytes:
        """All bytes of an infer call with binary tensors.

        Args:
            inputs: as `Scorer.encode` gives them.
            timeout_ms: the deadline that the call names.
            fingerprint: of the encoding that made the inputs; the server refuses them if its own is another.
        """
        specs = [
            {
                "name": name,
                "datatype": _TYPES[array.dtype.name],
                "shape": list(array.shape),
                "parameters": {"binary_data_size": array.nbytes},
            }
            for name, array in inputs.items()
        ]
        parameters: dict[str, Any] = {"binary_data_output": True}
        if fingerprint is not None:
            parameters["encoding_fingerprint"] = fingerprint
        head = json.dumps({"inputs": specs, "parameters": parameters}).encode()
        body = head + b"".join(array.tobytes() for array in inputs.values())
        lines = [
            f"POST /v2/models/{self.model}/infer HTTP/1.1",
            f"Host: {self.host}:{self.port}",
            f"Content-Length: {len(body)}",
            f"Inference-Header-Content-Length: {len(head)}",
            *([] if timeout_ms is None else [f"Timeout-Ms: {timeout_ms:g}"]),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def scores(self, request: bytes, ads: int) -> npt.NDArray[np.float32]:
        """The answer to one such call, of so many ads.

        Raises:
            UserError: the server is not there, refuses it, or answers something else.
        """
        head, _, body = request.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
        client = http.client.HTTPConnection(self.host, self.port, timeout=10)
        try:
            client.request("POST", f"/v2/models/{self.model}/infer", body, headers)
            answer = client.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"--server {self.host}:{self.port}: {str(error).strip() or repr(error)}") from error
        finally:
            client.close()
        if answer.status != 200:
            raise UserError(f"--server: {self.model} answers {answer.status}: {content.decode(errors='replace')[:300]}")
        length = answer.headers["Inference-Header-Content-Length"] or ""
        binary = content[int(length) :] if length.isdecimal() else b""
        if len(binary) != 4 * ads:
            raise UserError(f"--server: {self.model} answers no {ads} scores in binary; is it a server of ctrkit?")
        return np.frombuffer(binary, np.float32)
