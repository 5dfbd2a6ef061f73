"""Every criterion of the schema by its name, from a recipe and from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from secateur import criteria
from secateur.cli.main import main
from secateur.core.errors import SecateurError
from secateur.recipes import schema, zoo
from secateur.recipes.choose import DATA_DRIVEN, choose

NAMES = get_args(schema.Criterion)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(4, 1, 8, 8, generator=draw), torch.randint(10, (4,), generator=draw))]


def test_every_criterion_has_a_name() -> None:
    assert set(NAMES) == set(criteria.__all__) - {"score", "isomorphic", "per_cost"}


@pytest.mark.parametrize("isomorphic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_it(name: str, isomorphic: bool) -> None:
    torch.manual_seed(0)
    model = zoo.digits_resnet(widths=(4, 6, 8)).eval()
    prune = schema.Prune(keep={"macs": 0.6}, criterion=name, isomorphic=isomorphic)  # type: ignore[arg-type]
    axes, plan = choose(model, torch.zeros(1, 1, 8, 8), prune, batches=batches(), loss=F.cross_entropy)
    widths = {axis: after for axis, (_, after) in plan.widths().items()}
    assert axes.count("macs", widths) <= 0.6 * axes.count("macs")
    if name in DATA_DRIVEN:
        with pytest.raises(SecateurError, match="no data to run on"):
            choose(model, torch.zeros(1, 1, 8, 8), prune)


def test_isomorphic_axes_lose_alike() -> None:
    """The inner axes of three blocks of one kind, the last with weights a hundred times as large."""
    torch.manual_seed(0)
    model = zoo.digits_resnet(blocks=2, widths=(8, 8, 8))
    prune = schema.Prune(keep={"params": 0.5}, criterion="l2", isomorphic=True)
    _, plan = choose(model, torch.zeros(1, 1, 8, 8), prune)
    _, plain = choose(model, torch.zeros(1, 1, 8, 8), schema.Prune(keep={"params": 0.5}, criterion="l2", normalise="none"))
    assert plan != plain


@pytest.mark.parametrize("name", ["rfp", "thinet", "cap", "group_fisher"])
def test_the_command_line_takes_it(name: str, tmp_path: Path) -> None:
    command = ["plan", "zoo:digits_resnet", "--keep", "macs=0.5", "--criterion", name, "-o", str(tmp_path / "plan.json")]
    with pytest.raises(SystemExit) as left:
        main([*command, "--data", "digits", "--set", "batches=1"])
    assert left.value.code in (0, None)
    assert (tmp_path / "plan.json").exists()
