"""What every benchmark prints: a table for people, and last one line of JSON with the machine it ran on."""

import json
from pathlib import Path

import pytest

from benchmarks import report
from ctrkit_serving.bench.machine import environment


def test_the_last_line_and_the_file_hold_the_result_and_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report.emit({"ratio": 2.5}, tmp_path / "new" / "out.json")
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["ratio"] == 2.5
    assert last["environment"].keys() == {"date", "commit", *environment(), "libraries"}
    assert last["environment"]["libraries"]["numpy"]
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == last


def test_a_value_that_json_has_no_word_for_is_refused_and_no_file_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        report.emit({"ratio": float("nan")}, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_table_is_markdown_with_aligned_columns(capsys: pytest.CaptureFixture[str]) -> None:
    text = report.table(("way", "rows/s"), [("ctrkit", "1,000"), ("x", 2)])
    assert text.splitlines() == [
        "| way    | rows/s |",
        "| ------ | ------ |",
        "| ctrkit | 1,000  |",
        "| x      | 2      |",
    ]
    assert capsys.readouterr().out == text + "\n"
