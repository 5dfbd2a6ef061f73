"""Every code block of the documents runs, and the outputs shown are those of the run that wrote them."""

import os
import re
import shlex
import tomllib

import pytest

from scripts import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.S | re.M)
NOT_HERE = ("make ", "pip ", "secateur demo", "secateur run", "secateur grid")
"""Set-up and whole runs have tests of their own."""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    """Python is executed, commands exit with 0, and TOML is a recipe, or part of one; files of one block serve the next."""
    from typer.testing import CliRunner

    from secateur.cli.main import application
    from secateur.recipes import schema

    monkeypatch.chdir(tmp_path)
    scope: dict = {"__name__": page.stem}
    for language, code in BLOCK.findall(page.read_text()):
        assert language in ("python", "console", "toml", "text"), f"a block of {language} runs nowhere"
        if language == "python":
            exec(compile(code, str(page), "exec"), scope)
        if language == "toml":
            schema.from_dict({"model": {"build": "zoo:digits_resnet"}, **tomllib.loads(code)})
        for line in code.splitlines() if language == "console" else ():
            words = shlex.split(line, comments=True)
            if words and not line.startswith(NOT_HERE):
                assert words[0] == "secateur", line
                found = CliRunner().invoke(application(), words[1:])
                assert found.exit_code == 0, (line, found.output)
    capsys.readouterr()


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target


def test_no_machine_path_in_the_documents():
    for page in PAGES:
        assert str(ROOT.parent) + os.sep not in page.read_text(), page.name
