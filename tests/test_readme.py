"""What the README shows is what it does."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ctrkit.cli import _parser

ROOT = Path(__file__).parents[1]
README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_gauc_alone_prints_what_its_comments_say_and_imports_no_torch() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", section("Judge any model's scores"), flags=re.DOTALL)
    expected = re.findall(r"print\(.*\) +# (.+)", code)
    code += "\nimport sys; print([name for name in ('torch', 'sklearn', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*expected, "[]"]


SHOWN = [
    (page.name, command.strip())
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if page.name not in ("log.md", "plan.md")
    for line in page.read_text(encoding="utf-8").splitlines()
    if re.match(r" *ctrkit [a-z]", line)
    for command in line.split("&&")
]
"""Page and command."""


@pytest.mark.parametrize(("page", "command"), SHOWN)
def test_a_command_that_the_documentation_shows_is_one(page: str, command: str) -> None:
    words = shlex.split(re.sub(r"\[.*?\]", "", command), comments=True)
    assert words[0] == "ctrkit"
    _parser().parse_args(words[1:])  # exits if it is none


def test_the_documentation_shows_commands() -> None:
    shown = {shlex.split(command)[1] for _, command in SHOWN}
    assert shown >= {"init", "run", "score", "bench", "compare", "serve", "slim", "train"}
