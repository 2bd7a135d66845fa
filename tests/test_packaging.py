"""What a wheel holds: the two packages, the demo's recipe, the licence; no test, no benchmark."""

import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built without the network, from this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    built = subprocess.run(
        [*command, "-w", str(target)], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )
    assert built.returncode == 0, built.stderr
    (path,) = target.glob("*.whl")
    return zipfile.ZipFile(path)


def test_top_level_names(wheel: zipfile.ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"ctrkit", "ctrkit_serving"}


def test_every_module_is_inside(wheel: zipfile.ZipFile) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ctrkit").rglob("*.py")}
    modules |= {str(path.relative_to(ROOT / "serving")) for path in (ROOT / "serving" / "ctrkit_serving").rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == modules


def test_the_demo_is_inside(wheel: zipfile.ZipFile) -> None:
    assert wheel.read("ctrkit/demo.toml") == (ROOT / "pipelines" / "demo.toml").read_bytes()


def test_the_licence_is_inside(wheel: zipfile.ZipFile) -> None:
    (path,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    assert wheel.read(path) == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in wheel.read(path)
    (metadata,) = (wheel.read(name) for name in wheel.namelist() if name.endswith("/METADATA"))
    assert message_from_bytes(metadata)["License-Expression"] == "Apache-2.0"


def test_the_base_needs_no_torch(wheel: zipfile.ZipFile) -> None:
    (metadata,) = (wheel.read(name) for name in wheel.namelist() if name.endswith("/METADATA"))
    needs = message_from_bytes(metadata).get_all("Requires-Dist") or []
    base = [need for need in needs if "extra ==" not in need]
    assert sorted(need.split(">")[0] for need in base) == ["numpy", "pydantic"]
    assert not [need for need in needs if need.startswith("torch>") or need.startswith("torchrec")]
    serve = [need for need in needs if "extra == 'serve'" in need]
    assert [need.split(">")[0] for need in serve] == ["onnxruntime"]


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (entry,) = (wheel.read(name) for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert entry.decode().split() == ["[console_scripts]", "ctrkit", "=", "ctrkit.cli:main"]


def test_the_demo_runs_from_a_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "installed")
    ended = subprocess.run(
        [sys.executable, "-m", "ctrkit.cli", "demo", "--set", "train.epocs=1"],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"ctrkit: {tmp_path / 'installed' / 'ctrkit' / 'demo.toml'}: the recipe has 1 problem"
    )
