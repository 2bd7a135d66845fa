"""What a server is told when it starts."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ctrkit.errors import UserError

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
MAX_WORKERS = 64


@dataclass(frozen=True)
class Settings:
    """Every switch of the server, with its default."""

    models_dir: Path
    """Holds `NAME/VERSION/` bundles; VERSION is a whole number without leading zeros."""
    models: tuple[str, ...] = ()
    """Models to serve, each required for readiness; empty for every folder of `models_dir`."""
    host: str = "127.0.0.1"
    port: int = 8000
    """Of HTTP; 0 for any free one, which the first line of the log tells."""
    grpc_port: int | None = None
    """Of gRPC; None for no gRPC, 0 for any free one."""
    workers: int = 0
    """Processes; 0 for one a usable core."""
    pin: bool = True
    """Bind each worker to a core of its own, if there are as many."""
    queue: int = 64
    """Requests that wait in one worker; one more is answered 503."""
    deadline_ms: float = 1000.0
    """Of a request that names none, from its arrival to the start of its answer."""
    precision: Literal["exact", "int8"] = "exact"
    """Of the graphs; a version without int8 is refused by a server of int8."""
    max_body: int = 16 * 2**20
    """Bytes of a request."""
    max_arriving: int = 256 * 2**20
    """Bytes of requests that have not arrived whole, in one worker; the next is answered 503."""
    max_ads: int = 10_000
    """Ads of a request."""
    max_connections: int = 1000
    """Open connections of one worker."""
    request_timeout_s: float = 10.0
    """A request that has not arrived whole by then is answered 408."""
    idle_timeout_s: float = 75.0
    """A connection without a request is closed by then."""
    poll_s: float = 1.0
    """Between two looks for new versions; 0 for none: management calls load them."""
    latency_ads: int = 400
    """Ads a request of the latency gate."""
    max_latency_ratio: float = 2.0
    """A new version may take this many times the serving one's median; 0 for no gate."""
    latency_budget_ms: float = 0.0
    """A new version's median may take this long; 0 for no budget."""
    check_timeout_s: float = 300.0
    """A new version whose checks take longer is refused."""
    drain_delay_s: float = 3.0
    """After SIGTERM: not ready, but still serving, until load balancers have noticed."""
    grace_s: float = 10.0
    """After that: requests that were accepted have this long to be answered."""
    token: str | None = None
    """Management calls must carry it; None refuses them all."""

    def check(self) -> None:
        """Raise UserError for a value that cannot be."""
        from ctrkit.bundle import MANIFEST  # pydantic comes with it, which --help can do without

        if not self.models_dir.is_dir():
            raise UserError(f"{self.models_dir}: no such folder; put bundles into MODELS_DIR/NAME/VERSION/")
        if (self.models_dir / MANIFEST).exists():
            raise UserError(f"{self.models_dir}: is a bundle; put it into MODELS_DIR/NAME/VERSION/ and give MODELS_DIR")
        for name in self.models:
            if not MODEL_NAME.fullmatch(name):
                raise UserError(f"model name {name!r}: letters, digits, '_', '.', '-' only, a letter or digit first")
        try:
            ipaddress.ip_address(self.host)
        except ValueError as error:
            raise UserError(f"host {self.host!r} is no IP address; 0.0.0.0 or :: for every network") from error
        bounds = {
            "port": (self.port, 0, 65535), "grpc_port": (self.grpc_port or 0, 0, 65535),
            "workers": (self.workers, 0, MAX_WORKERS), "queue": (self.queue, 1, 10**6),
            "deadline_ms": (self.deadline_ms, 0.1, 3.6e6), "max_body": (self.max_body, 1024, 2**31),
            "max_arriving": (self.max_arriving, self.max_body, 2**40),
            "max_ads": (self.max_ads, 1, 10**6), "max_connections": (self.max_connections, 1, 10**6),
            "request_timeout": (self.request_timeout_s, 0.1, 3600), "idle_timeout": (self.idle_timeout_s, 0.1, 86400),
            "poll": (self.poll_s, 0, 86400), "latency_ads": (self.latency_ads, 1, 10**6),
            "max_latency_ratio": (self.max_latency_ratio, 0, 1e6),
            "latency_budget_ms": (self.latency_budget_ms, 0, 3.6e6),
            "check_timeout": (self.check_timeout_s, 1, 86400), "drain_delay": (self.drain_delay_s, 0, 3600),
            "grace": (self.grace_s, 0, 3600),
        }  # fmt: skip
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: give {low:,} to {high:,}")
        if self.token is not None and len(self.token) < 16:
            raise UserError("the token has fewer than 16 characters; give a longer one")

    @property
    def cores(self) -> list[int]:
        """Cores that this process may use."""
        return sorted(os.sched_getaffinity(0))

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        return self.workers or min(len(self.cores), MAX_WORKERS)
