"""A bundle as a model of a Triton repository: its graph for Triton's ONNX Runtime backend, on CPU.

    python -m ctrkit_serving.triton BUNDLE REPOSITORY --name ctr --version 1

writes REPOSITORY/ctr/1/model.onnx and REPOSITORY/ctr/config.pbtxt. Triton takes the encoded inputs of the graph, so
its callers encode raw values themselves (`Scorer.encode`).
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from ctrkit.atomic import atomic_directory, atomic_file
from ctrkit.bundle import MODEL, WEIGHTS, Bundle
from ctrkit.errors import UserError
from ctrkit_serving.server.settings import MODEL_NAME

_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}


def write_triton_model(bundle: Path, repository: Path, *, name: str, version: int, instances: int = 2) -> Path:
    """Add a version of a model to a Triton model repository; the version's folder is there whole or not at all.

    Args:
        bundle: it is verified first.
        repository: of Triton; made if it is not there.
        name: of the model.
        version: whole number above zero.
        instances: sessions that Triton runs side by side, one thread each.

    Returns:
        The version's folder.

    Raises:
        UserError: the bundle is broken, or name or version cannot be Triton's.
    """
    if not MODEL_NAME.fullmatch(name) or version < 1:
        raise UserError(f"model {name!r}, version {version}: a plain name and a whole number above zero")
    verified = Bundle.load(bundle)
    place = repository / name / str(version)
    with atomic_directory(place) as partial:
        for file_name in (MODEL, WEIGHTS):
            if file_name in verified.manifest.files:
                shutil.copyfile(verified.directory / file_name, partial / file_name)
    with atomic_file(repository / name / "config.pbtxt") as file:
        file.write(config(verified, name, instances).encode())
    return place


def config(bundle: Bundle, name: str, instances: int) -> str:
    """Text of `config.pbtxt`. No batching: the ads of a request are the batch."""
    graph = bundle.manifest.graph
    inputs = ",\n".join(
        f'  {{ name: "{input_}" data_type: {_TYPES[spec.dtype]} dims: [ {", ".join(map(str, spec.shape))} ] }}'
        for input_, spec in graph.inputs.items()
    )
    return f"""name: "{name}"
backend: "onnxruntime"
default_model_filename: "{MODEL}"
max_batch_size: 0
input [
{inputs}
]
output [
  {{ name: "{graph.output}" data_type: TYPE_FP32 dims: [ -1 ] }}
]
version_policy {{ latest {{ num_versions: 2 }} }}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
parameters {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }}
parameters {{ key: "inter_op_thread_count" value: {{ string_value: "1" }} }}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--instances", type=int, default=2, help="sessions side by side (default: 2)")
    options = parser.parse_args(arguments)
    try:
        place = write_triton_model(
            options.bundle, options.repository, name=options.name, version=options.version, instances=options.instances
        )
    except UserError as error:
        raise SystemExit(f"ctrkit: {error}") from error
    print(place)


if __name__ == "__main__":
    main()
