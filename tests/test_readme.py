"""What the README shows is what it does."""

import re
import subprocess
import sys
from pathlib import Path

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
