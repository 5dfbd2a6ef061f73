"""Run the Python blocks of README.md in order and write what the marked ones print below them; fill tables of run folders.

python docs/make/readme.py
"""

from __future__ import annotations

import io
import json
import os
import re
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?P<marked><!-- output: [^>]*-->\n(?:```text\n.*?```\n)?)?", re.S)
TABLE = re.compile(r"<!-- table: (?P<path>\S+) -->\n(?:```text\n.*?```\n)?", re.S)


def table(match: re.Match[str]) -> str:
    """The headline table of the run folder a marker names."""
    from rich.console import Console

    from secateur.report.table import headline, to_rich

    console = Console(width=100, file=io.StringIO(), color_system=None)
    with console.capture() as text:
        console.print(to_rich(headline(json.loads((README.parent / match["path"] / "facts.json").read_text()))))
    lines = "\n".join(line.rstrip() for line in text.get().rstrip().splitlines())
    return f"<!-- table: {match['path']} -->\n```text\n{lines}\n```\n"


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
    README.write_text(TABLE.sub(table, filled))


if __name__ == "__main__":
    main()
