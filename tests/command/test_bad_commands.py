"""Bad input through the command line: exit 2, one clear sentence, nothing lost or half-written, no code run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bad_files import check, folder, made
from secateur.cli.main import main
from secateur.core.errors import SecateurError
from secateur.io import read_json

__all__ = ["folder", "made"]

INPUT = ("--input", "1,3,4,4")
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no such command": ("No such command", ("inspcet", "net.py:build")),
    "no such option": ("No such option", ("inspect", "net.py:build", "--inptu", "1")),
    "no argument": ("Missing argument", ("inspect",)),
    "a misspelt function": ("did you mean 'build'", ("inspect", "net.py:biuld", *INPUT)),
    "a file that leaves": ("SystemExit", ("inspect", "leaves.py:x", *INPUT)),
    "a builder that fails": ("RuntimeError at net.py line", ("inspect", "net.py:fails", *INPUT)),
    "no model": ("of type int in place of a model", ("inspect", "net.py:number", *INPUT)),
    "no input": ("give --input", ("inspect", "net.py:build")),
    "an input of letters": ("found no shape", ("inspect", "net.py:build", "--input", "1,3,x")),
    "an input too large": ("give a smaller shape", ("inspect", "net.py:build", "--input", "999999999,999999999,9")),
    "an input the model refuses": ("[[1, 4, 4, 4]]", ("inspect", "net.py:build", "--input", "1,4,4,4")),
    "an impossible budget": ("0.1250 is the least", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.0001")),
    "more than all": ("at most 1", ("plan", "net.py:build", *INPUT, "--keep", "macs=2")),
    "a share that is NaN": ("at most 1", ("plan", "net.py:build", *INPUT, "--keep", "macs=nan")),
    "a share of something else": ("did you mean 'macs'", ("plan", "net.py:build", *INPUT, "--keep", "mcas=0.5")),
    "an unknown criterion": ("known: apoz", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--criterion", "l3")),
    "an unknown setting": ("did you mean 'floor'", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--set", "flor=0.1")),
    "a plan into a missing folder": (
        "no such folder",
        ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "-o", "a/b.json"),
    ),
    "a plan below a file": (
        "a file where a folder",
        ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "-o", "net.py/b.json"),
    ),
    "a plan over a pipe": ("a device or pipe", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "-o", "pipe")),
    "a pickle bomb": ("could run code", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--weights", "bomb.pt")),
    "NaN weights": ("NaN in 'conv.weight'", ("plan", "net.py:build", *INPUT, "--keep", "macs=0.5", "--weights", "nan.pt")),
    "a NaN network": ("nan for unit 0", ("plan", "net.py:nan", *INPUT, "--keep", "macs=0.5")),
    "NaN data": (
        "a loss of nan",
        ("plan", "net.py:build", "--keep", "macs=0.5", "--data", "net.py:sick_data", "--criterion", "taylor"),
    ),
    "labels no output has": (
        "out of bounds",
        ("plan", "net.py:build", "--keep", "macs=0.5", "--data", "net.py:wide_labels", "--criterion", "taylor"),
    ),
    "no batches": ("found nothing", ("plan", "net.py:build", "--keep", "macs=0.5", "--data", "net.py:empty_data")),
    "data that is none": ("found int", ("plan", "net.py:build", "--keep", "macs=0.5", "--data", "net.py:scalar_data")),
    "a missing data folder": (
        "no such folder",
        ("plan", "net.py:build", "--keep", "macs=0.5", "--data", "cifar10", "--folder", "nowhere"),
    ),
    "a missing plan": ("no such file", ("apply", "missing.json", "net.py:build", "-o", "x")),
    "a newer plan": ("newer than the 1", ("apply", "newer.json", "net.py:build", "-o", "x")),
    "a plan of a hundred billion units": ("of 8", ("apply", "huge.json", "net.py:build", "-o", "x")),
    "a deep plan": ("nested too deep", ("apply", "deep.json", "net.py:build", "-o", "x")),
    "a forged attribute": ("depth", ("apply", "attribute.json", "net.py:build", "-o", "x")),
    "a plan of another network": ("conv.weight", ("apply", "plan.json", "net.py:other", "-o", "x")),
    "half a checkpoint": ("damaged or truncated", ("apply", "plan.json", "net.py:build", "--weights", "half.pt", "-o", "x")),
    "a model over a folder": ("a folder of that name", ("apply", "plan.json", "net.py:build", "-o", ".")),
    "a model over a pipe": ("a device or pipe", ("apply", "plan.json", "net.py:build", "-o", "pipe")),
    "a diff with a damaged file": ("checksum", ("diff", "plan.json", "flipped plan.safetensors")),
    "a diff with half a file": ("checksum", ("diff", "plan.json", "cut in body.safetensors")),
    "showing nothing": ("no such file", ("show", "missing")),
    "showing a bomb": ("no safetensors file", ("show", "bomb.pt")),
    "showing an oversized header": ("found", ("show", "oversized.safetensors")),
    "a report of no run": ("", ("report", "missing")),
    "a report of a file": ("", ("report", "plan.json")),
    "measuring a damaged model": ("checksum", ("measure", "net.py:build", *INPUT, "--weights", "flipped body.safetensors")),
    "measuring a forged model": ("in a dim of 3", ("measure", "net.py:build", *INPUT, "--weights", "forged plan.safetensors")),
    "no rounds": ("nothing to time", ("measure", "net.py:build", *INPUT, "--repeats", "0")),
    "a missing recipe": ("no such file", ("run", "missing.toml")),
    "a recipe that is no text": ("no UTF-8", ("run", "weights.pt", "-o", "new")),
    "a recipe that is no TOML": ("no valid TOML", ("run", "wrong toml.toml", "-o", "new")),
    "a wrong section": ("did you mean 'prune'", ("run", "wrong key.toml", "-o", "new")),
    "a wrong key": ("did you mean 'criterion'", ("run", "wrong name.toml", "-o", "new")),
    "a wrong value": ("at most 1", ("run", "wrong value.toml", "-o", "new")),
    "a wrong type": ("whole number", ("run", "wrong type.toml", "-o", "new")),
    "a rate that is NaN": ("a number above 0", ("run", "no rate.toml", "-o", "new")),
    "a run over a file": ("net.py", ("run", "recipe.toml", "-o", "net.py")),
    "a run below a file": ("net.py", ("run", "recipe.toml", "-o", "net.py/run")),
    "a run among other files": ("", ("run", "recipe.toml", "-o", "full")),
}
RUNS = {
    "number model": "in place of a model",
    "bomb": "could run code",
    "missing weights": "no such file",
    "no data": "",
    "scalar data": "found int",
    "impossible": "least",
    "nan model": "nan",
    "sick data": "",
    "wide labels": "out of bounds",
    "infinite rate": "",
}


def command(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command prints as its error; it has to leave with 2."""
    with pytest.raises(SystemExit) as left:
        main(words)
    printed = capsys.readouterr()
    assert left.value.code == 2, printed
    assert printed.out == ""
    return printed.err.strip()


@pytest.mark.parametrize("case", COMMANDS)
def test_through_the_command_line(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    says, words = COMMANDS[case]
    check(command(words, capsys), says)


@pytest.mark.parametrize("case", RUNS)
def test_a_run_that_cannot_be(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder of the run may hold what was finished; nothing half-written, and it is refused again the same way."""
    for _ in range(2):
        check(command(("run", f"{case}.toml", "-o", "new", "-q"), capsys), RUNS[case])
    for path in Path("new").rglob("*"):
        assert path.suffix != ".part"
        assert path.name not in ("small.safetensors", "report.html")
        if path.suffix == ".json":
            read_json(path)
    shutil.rmtree("new")


@pytest.mark.parametrize(("name", "text"), [("channel.json", "[]"), ("tickets.json", "{}")])
def test_what_no_demo_wrote_is_named_and_left_alone(name: str, text: str, tmp_path: Path) -> None:
    from secateur.cli import demo

    (tmp_path / "channel.json").write_text('{"stages": [{"stage": "dense"}]}')
    (tmp_path / name).write_text(text)
    call = demo.channel_rows if name == "channel.json" else demo.ticket_picture
    with pytest.raises(SecateurError, match="not what the demo writes"):
        call(tmp_path, 0, 1)
    assert (tmp_path / name).read_text() == text
