"""Run the Python blocks of README.md in order and write what the marked ones print below them.

    python docs/refresh.py
"""

from __future__ import annotations

import io
import os
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?P<marked><!-- output: [^>]*-->\n(?:```text\n.*?```\n)?)?", re.S)


def main() -> None:
    """Rewrite README.md in place."""
    scope: dict[str, object] = {"__name__": "readme"}

    def run(match: re.Match[str]) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            exec(compile(match["code"], str(README), "exec"), scope)
        if not match["marked"]:
            return match[0]
        marker = match["marked"].splitlines()[0]
        lines = "\n".join(line.rstrip() for line in printed.getvalue().rstrip().splitlines())
        return f"```python\n{match['code']}```\n{marker}\n```text\n{lines}\n```\n"

    text = README.read_text()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        filled = BLOCK.sub(run, text)
    README.write_text(filled)


if __name__ == "__main__":
    main()
