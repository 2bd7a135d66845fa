import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ctrkit import bundle as bundle_module
from ctrkit.bundle import Bundle, Golden, write_bundle
from ctrkit.encoding import Encoding
from ctrkit.errors import UserError
from ctrkit.graph import serving_graph
from ctrkit.request import Request
from ctrkit.schema import Schema
from ctrkit_serving.scorer import Scorer
from tests.serving.tiny import REQUEST, SCHEMA, Weights, make_bundle, make_encoding, save_graph

FACTS: dict[str, Any] = {"name": "tiny", "versions": {}, "multiplications": 1, "parity_max_abs_diff": 0.0}
GOLDEN = Golden((Request({}, [{}]),), ((0.5,),))


def _model(tmp_path: Path) -> Path:
    """A directory that looks like an exported network, for tests that do not score."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"graph")
    return directory


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir() if not path.name.endswith(".lock")}


def test_survives_the_disk(tmp_path: Path) -> None:
    written = make_bundle(tmp_path / "bundle")
    loaded = Bundle.load(str(tmp_path / "bundle"))
    assert loaded.manifest == written.manifest
    assert loaded.golden == written.golden
    assert loaded.golden.requests == (REQUEST,)
    assert loaded.encoding.fingerprint() == make_encoding().fingerprint()
    manifest = loaded.manifest
    assert manifest.files.keys() == {
        "model.onnx", "model.onnx.data", "golden.json", "encoding/encoding.json",
        "encoding/age.keys.npy", "encoding/item.keys.npy",
    }  # fmt: skip
    assert manifest.files["model.onnx"].bytes == (tmp_path / "bundle" / "model.onnx").stat().st_size
    assert (manifest.metrics, manifest.recipe, manifest.parity_max_abs_diff) == ({"gauc": 0.7}, {"seed": 1}, 1e-7)
    assert manifest.created.utcoffset() is not None
    assert manifest.versions.keys() == {"ctrkit", "onnx"}
    assert _names(tmp_path) == {"bundle", "bundle_graph"}


def test_graph_contract() -> None:
    graph = serving_graph(SCHEMA)
    assert {name: (spec.dtype, spec.shape, spec.side) for name, spec in graph.inputs.items()} == {
        "ids_user": ("int64", (-1, 1), "user"),
        "recent_ids": ("int64", (-1, 3), "user"),
        "recent_length": ("int64", (-1,), "user"),
        "ids_context": ("int64", (-1, 1), "context"),
        "ids_item": ("int64", (-1, 2), "item"),
        "tags_ids": ("int64", (-1, 2), "item"),
        "tags_length": ("int64", (-1,), "item"),
        "dense_item": ("float32", (-1, 2), "item"),
    }
    only_dense = Schema.from_mapping({"x": {"side": "item", "kind": "dense"}}, label="y", group="u")
    assert serving_graph(only_dense).inputs.keys() == {"dense_item"}
    only_ids = Schema.from_mapping({"x": {"side": "context"}}, label="y", group="u")
    assert serving_graph(only_ids).inputs.keys() == {"ids_context"}


def test_replaces_an_old_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", Weights(1))
    make_bundle(tmp_path / "bundle", Weights(2))
    assert Scorer.load(tmp_path / "bundle").score_request(REQUEST) == pytest.approx(
        make_bundle(tmp_path / "other", Weights(2)).golden.scores[0], abs=1e-6
    )
    assert _names(tmp_path) == {"bundle", "bundle_graph", "other", "other_graph"}


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    make_bundle(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    write_bundle(
        tmp_path / "current", model=tmp_path / "v1_graph", encoding=make_encoding(), golden=GOLDEN,
        **{**FACTS, "name": "second"},
    )  # fmt: skip
    assert (tmp_path / "current").is_symlink()
    assert Bundle.load(tmp_path / "v1").manifest.name == "second"


def test_a_failed_write_leaves_the_old_bundle_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = make_bundle(tmp_path / "bundle")

    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bundle_module, "sync", fail)
    with pytest.raises(OSError, match="Input/output"):
        make_bundle(tmp_path / "bundle", Weights(2))
    with pytest.raises(OSError, match="Input/output"):
        make_bundle(tmp_path / "fresh")
    assert Bundle.load(tmp_path / "bundle").manifest == old.manifest
    assert _names(tmp_path) == {"bundle", "bundle_graph", "fresh_graph"}


def test_a_killed_write_leaves_no_bundle(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from ctrkit import bundle\n"
        "from tests.serving.tiny import make_bundle\n"
        "bundle.sync = lambda path: os._exit(9)\n"
        f"make_bundle(pathlib.Path({str(tmp_path)!r}) / 'bundle')\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True)
    assert done.returncode == 9, done.stderr
    with pytest.raises(UserError, match="no bundle"):
        Bundle.load(tmp_path / "bundle")
    make_bundle(tmp_path / "bundle")
    assert _names(tmp_path) == {"bundle", "bundle_graph"}


def test_takes_an_empty_directory_but_no_other(tmp_path: Path) -> None:
    model = _model(tmp_path)
    (tmp_path / "empty").mkdir()
    write_bundle(tmp_path / "empty", model=model, encoding=make_encoding(), golden=GOLDEN, **FACTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for place in ("mine", "file"):
        with pytest.raises(UserError, match=f"{place}: exists and is no bundle"):
            write_bundle(tmp_path / place, model=model, encoding=make_encoding(), golden=GOLDEN, **FACTS)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_refuses_a_model_directory_without_graph_or_with_strangers(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"model\.onnx: no such file"):
        write_bundle(tmp_path / "b", model=tmp_path / "nothing", encoding=make_encoding(), golden=GOLDEN, **FACTS)
    model = _model(tmp_path)
    (model / "weights.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"weights\.bin: a bundle takes its graphs and"):
        write_bundle(tmp_path / "b", model=model, encoding=make_encoding(), golden=GOLDEN, **FACTS)
    assert not (tmp_path / "b").exists()


BAD_GOLDEN: dict[str, tuple[Golden, str]] = {
    "no request": (Golden((), ()), "hold no ad"),
    "no ad": (Golden((Request({}, []),), ((),)), "hold no ad"),
    "a score missing": (Golden((Request({}, [{}, {}]),), ((0.5,),)), "differ in number"),
    "scores missing": (Golden((Request({}, [{}]),), ()), "differ in number"),
    "NaN": (Golden((Request({}, [{}]),), ((float("nan"),),)), "a golden score is not finite"),
    "tolerance": (Golden((Request({}, [{}]),), ((0.5,),), tolerance=float("nan")), "tolerance nan"),
}


@pytest.mark.parametrize("case", BAD_GOLDEN)
def test_refuses_to_write_bad_golden_requests(tmp_path: Path, case: str) -> None:
    golden, message = BAD_GOLDEN[case]
    with pytest.raises(UserError, match=message):
        write_bundle(tmp_path / "b", model=_model(tmp_path), encoding=make_encoding(), golden=golden, **FACTS)


def test_refuses_to_write_a_metric_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the manifest holds a number that is not finite"):
        write_bundle(
            tmp_path / "b", model=_model(tmp_path), encoding=make_encoding(), golden=GOLDEN,
            metrics={"auc": float("nan")}, **FACTS,
        )  # fmt: skip
    assert not (tmp_path / "b").exists()


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda directory: _rewrite(directory / "manifest.json", change)


def _listed(path: str) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["files"].update({path: {"sha256": "0" * 64, "bytes": 0}})


def _relist(directory: Path, path: str) -> None:
    """Put the hash of a changed file into the manifest, as somebody would who means it."""
    entry = bundle_module._entry(directory / path).model_dump()
    _rewrite(directory / "manifest.json", lambda content: content["files"].update({path: entry}))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def _linked(directory: Path) -> None:
    outside = directory.parent / "outside.onnx"
    (directory / "model.onnx").rename(outside)
    (directory / "model.onnx").symlink_to(outside)


def _other_encoding(directory: Path) -> None:
    path = "encoding/encoding.json"
    encoding = Encoding.load(directory / "encoding")
    other = Encoding(encoding.schema, {**encoding.raw_types, "hour": "float"}, encoding.tables, encoding.scalings)
    other.save(directory / "encoding", counts=False)
    for name in ("encoding.json", "item.keys.npy", "age.keys.npy"):
        _relist(directory, f"encoding/{name}")
    assert (directory / path).exists()


def _golden(content: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / "golden.json").write_text(json.dumps(content))
        _relist(directory, "golden.json")

    return change


NO_GOLDEN = {"tolerance": 0.1, "approximate_tolerance": 0.1, "requests": [], "scores": [], "approximate": {}}

BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda d: (d / "manifest.json").unlink(), "no bundle, it has no readable manifest"),
    "manifest cut": (lambda d: os.truncate(d / "manifest.json", 100), r"manifest\.json: not a manifest"),
    "manifest a list": (lambda d: (d / "manifest.json").write_text("[]"), r"manifest\.json: not a manifest"),
    "earlier format": (_manifest(lambda c: c.update(format=1)), "bundle format 1, this ctrkit reads 2"),
    "unknown key": (_manifest(lambda c: c.update(colour="red")), r"manifest\.json: colour"),
    "key missing": (_manifest(lambda c: c.pop("recipe")), r"manifest\.json: recipe"),
    "wrong type": (_manifest(lambda c: c.update(multiplications="many")), r"manifest\.json: multiplications"),
    "local time": (_manifest(lambda c: c.update(created="2026-01-01T00:00:00")), r"manifest\.json: created"),
    "bad hash": (_manifest(lambda c: c["files"]["model.onnx"].update(sha256="zz")), r"files\.model\.onnx\.sha256"),
    "path up": (_manifest(_listed("../model.onnx")), r"'\.\./model\.onnx' leads out of the bundle"),
    "path up within": (_manifest(_listed("encoding/../../x")), "leads out of the bundle"),
    "path absolute": (_manifest(_listed("/etc/passwd")), "'/etc/passwd' leads out of the bundle"),
    "path odd": (_manifest(_listed("./model.onnx")), "leads out of the bundle"),
    "path of another system": (_manifest(_listed("..\\x")), "leads out of the bundle"),
    "file listed only": (_manifest(_listed("weights.bin")), r"weights\.bin: missing"),
    "model unlisted": (_manifest(lambda c: c["files"].pop("model.onnx")), r"model\.onnx: not in the manifest"),
    "no model": (lambda d: (d / "model.onnx").unlink(), r"model\.onnx: missing"),
    "no golden": (lambda d: (d / "golden.json").unlink(), r"golden\.json: missing"),
    "no keys": (lambda d: (d / "encoding" / "age.keys.npy").unlink(), r"age\.keys\.npy: missing"),
    "model cut": (lambda d: os.truncate(d / "model.onnx", 100), r"model\.onnx: 100 bytes, \d+ were written"),
    "model flipped": (lambda d: _flip(d / "model.onnx"), r"model\.onnx: changed after it was written"),
    "keys flipped": (lambda d: _flip(d / "encoding" / "item.keys.npy"), r"item\.keys\.npy: changed after"),
    "golden flipped": (lambda d: _flip(d / "golden.json"), r"golden\.json: changed after"),
    "stranger": (lambda d: (d / "notes.txt").write_text(""), r"notes\.txt: not in the manifest"),
    "stranger below": (lambda d: (d / "encoding" / ".x").write_text(""), r"encoding/\.x: not in the manifest"),
    "link out": (_linked, r"model\.onnx: a bundle holds plain files only"),
    "link to a directory": (lambda d: (d / "more").symlink_to(d.parent), "more: a bundle holds plain files only"),
    "pipe": (lambda d: os.mkfifo(d / "pipe"), "pipe: a bundle holds plain files only"),
    "other schema": (_manifest(lambda c: c.update(schema_fingerprint="0")), "not the schema of the manifest"),
    "other encoding": (_other_encoding, "not the encoding of the manifest"),
    "other graph": (_manifest(lambda c: c["graph"]["inputs"].pop("dense_item")), "graph does not fit the schema"),
    "golden no JSON": (lambda d: _golden("x")(d), r"golden\.json: golden requests of another form"),
    "golden without scores": (_golden(NO_GOLDEN), r"golden\.json: golden requests hold no ad"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_a_broken_bundle(tmp_path: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    directory = make_bundle(tmp_path / "bundle").directory
    spoil(directory)
    with pytest.raises(UserError, match=message):
        Bundle.load(directory)
    with pytest.raises(UserError, match=message):
        Scorer.load(directory)


def test_refuses_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "nothing"):
        with pytest.raises(UserError, match=f"{name}: no bundle"):
            Bundle.load(tmp_path / name)


def test_the_directory_of_a_run_leads_to_its_bundle(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=rf"no bundle, .*; did you mean {tmp_path / 'bundle'}\?"):
        Bundle.load(tmp_path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_bundle(tmp_path / "bundle").directory

    def fail(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(bundle_module, "_entry", fail)
    with pytest.raises(UserError, match=r"bundle/\S+: cannot be read \(Permission denied\)"):
        Bundle.load(directory)


def test_every_byte_of_a_file_counts(tmp_path: Path) -> None:
    directory = make_bundle(tmp_path / "bundle").directory
    rng = np.random.default_rng(0)
    for path in Bundle.load(directory).manifest.files:
        file = directory / path
        whole = file.read_bytes()
        for position in rng.integers(len(whole), size=5):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ 255]) + whole[position + 1 :])
            with pytest.raises(UserError, match="changed after it was written"):
                Bundle.load(directory)
        file.write_bytes(whole)
    Bundle.load(directory)


def test_scorer_refuses_a_graph_of_another_signature(tmp_path: Path) -> None:
    """Hashes that fit a graph that does not: the writer's mistake."""
    model = save_graph(tmp_path / "graph", Weights())
    other = Schema.from_mapping({"age": {"side": "user", "buckets": 3}}, label="click", group="user_id")
    encoding = Encoding(
        other, {"age": "string"}, {"age": make_encoding().tables["tags"]}, {}
    )  # fmt: skip
    golden = Golden((Request({"age": None}, [{}]),), ((0.5,),))
    write_bundle(tmp_path / "bundle", model=model, encoding=encoding, golden=golden, **FACTS)
    with pytest.raises(UserError, match=r"model\.onnx: input 'dense_item': .*but no such input in the manifest"):
        Scorer.load(tmp_path / "bundle")


@pytest.mark.parametrize("content", [b"", b"graph", None])
def test_scorer_refuses_a_graph_that_cannot_be_loaded(tmp_path: Path, content: bytes | None) -> None:
    model = save_graph(tmp_path / "graph", Weights())
    whole = (model / "model.onnx").read_bytes()
    (model / "model.onnx").write_bytes(whole[: len(whole) // 2] if content is None else content)
    write_bundle(tmp_path / "bundle", model=model, encoding=make_encoding(), golden=GOLDEN, **FACTS)
    with pytest.raises(UserError, match=r"model\.onnx: ONNX Runtime cannot load it"):
        Scorer.load(tmp_path / "bundle")
