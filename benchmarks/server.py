"""The server under load: overhead of HTTP, MLServer beside it, saturation, pushes, overload, kills, malformed requests.

36 features of 16, a tower 200-80, 400 ads a request of encoded ids in binary tensors, one worker with one core; the
clients have the others. MLServer serves the plain export of the same network, and the bundle's graph. Latency under
load counts from the time a request was due.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from benchmarks.server_bench import Bench, Result
from benchmarks.server_failures import kill, malformed_requests, overload, pushes, reloads, sigterm
from benchmarks.server_speed import curve, mlserver, overhead


def main() -> None:
    """Run the parts asked for, print and write the result."""
    parser = report.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only this one; can be repeated")
    parser.add_argument("--ads", type=int, default=400, help="ads a request")
    parser.add_argument("--mlserver-python", type=Path, help="Python of an environment with mlserver and onnxruntime")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory), options.ads, quick=options.quick, mlserver=options.mlserver_python)
        found = {}
        for name in options.part or PARTS:
            found[name] = PARTS[name](bench)
            print(name, json.dumps(found[name]), flush=True)
    os.sched_setaffinity(0, cores)
    flat = {key: value for part in found.values() for key, value in part.items() if "speedup" in key or "_ms" in key}
    scalars = {key: value for key, value in flat.items() if isinstance(value, float)}
    report.emit({"benchmark": "server", "quick": options.quick, "ads": options.ads, **scalars, **found}, options.out)


PARTS: dict[str, Callable[[Bench], Result]] = {
    "overhead": overhead, "mlserver": mlserver, "curve": curve, "overload": overload, "pushes": pushes, "kill": kill,
    "sigterm": sigterm, "malformed": malformed_requests, "reloads": reloads,
}  # fmt: skip
if __name__ == "__main__":
    main()
