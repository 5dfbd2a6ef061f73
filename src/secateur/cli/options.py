"""Arguments and options that several commands take, each under one name and with one help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BUILD = "file.py:function, package:function, torchvision:NAME, timm:NAME, zoo:NAME"
DATA = "file.py:function, or the name of a built-in set."

Build = Annotated[str, typer.Argument(metavar="MODEL", help=BUILD)]
Weights = Annotated[Path | None, typer.Option("--weights", help="safetensors, or a state dict saved by torch.save.")]
AnyWeights = Annotated[Path | None, typer.Option(help="Weights, of the dense or of a cut model.")]
Input = Annotated[
    list[str] | None, typer.Option("--input", metavar="SHAPE", help="1,3,224,224 or 1,16:int64; once per argument.")
]
Data = Annotated[str, typer.Option(help=DATA)]
AnyData = Annotated[str | None, typer.Option(help=DATA)]
Folder = Annotated[str | None, typer.Option("--folder", envvar="SECATEUR_DATA", help="Where a built-in set lies.")]
Holdout = Annotated[
    int | None,
    typer.Option(help="Images taken from the training set to judge trials by; a tenth of it, at most 5000, without."),
]
Criterion = Annotated[str, typer.Option(help="The name of a function of secateur.criteria.")]
PlanFile = Annotated[Path, typer.Option("-o", "--output", help="Where the plan goes.")]
Ignore = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave axes whole that match, as in 'head*'.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value, named as in a recipe.")]
Threads = Annotated[int, typer.Option(min=0, help="0 leaves it to torch.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
