"""What each reinitialisation preserves, on structured and unstructured tickets."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import handmade
from secateur import allocate, criteria, score
from secateur.cli.main import application
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan, mask
from secateur.io import load, read_plan
from secateur.recipes import zoo
from secateur.recipes.tickets import GridSettings, grid
from secateur.recipes.tickets import unstructured as largest
from secateur.report.tickets import picture
from secateur.testing import awake
from secateur.train import FitSettings, evaluate, fit
from secateur.train.tickets import VARIANTS, ZerosStay, kept_entries, ticket

WEIGHTS = ("one.weight", "two.weight", "three.weight", "head.weight")


def structured(model):
    axes = handmade.axes(model)
    return allocate.uniform(axes, score(axes, criteria.l2(model)), 0.5)


def unstructured(model):
    draw = torch.Generator().manual_seed(5)
    masks = {name: torch.rand(model.get_parameter(name).shape, generator=draw) < 0.4 for name in WEIGHTS}
    return mask({name: tuple(value.shape) for name, value in model.state_dict().items()}, masks)


PLANS = {"structured": structured, "unstructured": unstructured, "whole": lambda model: Plan(handmade.axes(model).fingerprint)}


def survivors(model, plan, name):
    """The entries of a weight that survive, as a flat array, by the plan's own surgery."""
    if not plan:
        return model.get_parameter(name).detach().numpy().ravel()
    marked = deepcopy(model)
    with torch.no_grad():
        weight = marked.get_parameter(name)
        weight.copy_(torch.arange(1.0, weight.numel() + 1).reshape_as(weight))
    places = plan.apply(marked).get_parameter(name).detach().numpy().ravel()
    places = places[places > 0].astype(int) - 1
    return model.get_parameter(name).detach().numpy().ravel()[places]


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_each_variant_preserves(kind, variant):
    initial, fresh = handmade.small(1), handmade.small(2)
    before = deepcopy(initial.state_dict())
    plan = PLANS[kind](initial)
    small = ticket(initial, fresh, plan, variant, seed=3)
    assert all(torch.equal(value, before[key]) for key, value in initial.state_dict().items())
    cut = plan.apply(initial)
    for name in WEIGHTS:
        old, drawn = survivors(initial, plan, name), survivors(fresh, plan, name)
        whole = initial.get_parameter(name).detach().numpy().ravel()
        new = small.get_parameter(name).detach().numpy().ravel()
        support = cut.get_parameter(name).detach().numpy().ravel() != 0
        assert new.shape == support.shape
        assert (new[~support] == 0).all()
        new = new[support]
        holds = {
            "rewind": (new == old).all(),
            "random": (new == drawn).all(),
            "sign": (np.sign(new) == np.sign(old)).all() and (np.abs(new) == np.abs(drawn)).all(),
            "distribution": (np.sort(new) == np.sort(old)).all() and (new != old).any(),
            "absolute": (np.abs(new) == np.abs(old)).all() and (new != old).any(),
            "normal": abs(new.std() / old.std() - 1) < 0.6 and (new != old).all(),
            "sign_distribution": (np.sort(np.abs(new)) == np.sort(np.abs(old))).all() and (np.sign(new) == np.sign(old)).all(),
            "shuffled": np.isin(new, whole).all() and (new != old).any(),
            "sign_shuffled": np.isin(np.abs(new), np.abs(whole)).all() and (np.sign(new) == np.sign(old)).all(),
            "sign_constant": np.allclose(new, np.sign(old) * whole.std()),
            "random_constant": np.allclose(np.sort(new), np.sort(np.sign(old) * whole.std())) and (new != old).any(),
        }
        assert holds[variant], name
    for norm in (small.norm, small.last):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()
    assert torch.equal(small.one.bias, cut.one.bias)


def test_variants_differ_by_seed_and_repeat_by_it():
    initial, fresh = handmade.small(1), handmade.small(2)
    plan = structured(initial)
    for variant in ("distribution", "absolute", "normal", "shuffled", "random_constant"):
        one, two, other = (ticket(initial, fresh, plan, variant, seed=seed).head.weight for seed in (0, 0, 1))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)


def test_kept_entries_are_what_the_surgery_keeps():
    model = handmade.small()
    plan = structured(model)
    for name, kept in kept_entries(plan, model).items():
        if name in WEIGHTS:
            values = model.get_parameter(name).detach()[kept].numpy()
            assert (values == plan.apply(model).get_parameter(name).detach().numpy().ravel()).all()
    with pytest.raises(SecateurError, match="2 steps"):
        kept_entries(plan.then(unstructured(plan.apply(model))), model)


def test_zeros_of_a_ticket_stay_while_it_learns():
    torch.manual_seed(0)
    model = awake(zoo.digits_resnet(widths=(4, 4, 4)))
    masks = {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters() if p.dim() > 1}
    plan = mask({name: tuple(value.shape) for name, value in model.state_dict().items()}, masks)
    small = ticket(model, zoo.digits_resnet(widths=(4, 4, 4)), plan)
    start = small.conv1.weight.clone()
    batches = [(torch.randn(8, 1, 8, 8), torch.randint(10, (8,))) for _ in range(3)]
    fit(small, batches, FitSettings(epochs=2, lr=0.1), hooks=[ZerosStay(small, plan)])
    for name, kept in masks.items():
        assert (small.get_parameter(name)[~kept] == 0).all()
    assert not torch.equal(small.conv1.weight, start)


def test_unknown_words_and_other_networks_are_refused():
    model = handmade.small()
    with pytest.raises(SecateurError, match=r"'rewinds'.*did you mean 'rewind'"):
        ticket(model, model, structured(model), "rewinds")
    with pytest.raises(SecateurError, match="a plan applied to this model"):
        ticket(model, handmade.small(a=4), structured(model))
    with pytest.raises(SecateurError, match="a plan applied to this model"):
        ticket(nn.Linear(2, 2), model, structured(model))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.InstanceNorm1d, nn.LayerNorm, lambda n: nn.GroupNorm(2, n), nn.RMSNorm])
def test_norms_of_a_ticket_begin_anew(norm):
    layer = norm(4, affine=True) if norm is nn.InstanceNorm1d else norm(4)
    model = nn.Sequential(nn.Linear(3, 4), layer, nn.Linear(4, 2))
    for value in layer.parameters():
        value.data.fill_(7.0)
    model[2].bias.data.fill_(7.0)
    plan = largest(model, 0.5)
    made = ticket(model, deepcopy(model), plan)
    assert (made[1].weight == 1).all()
    assert getattr(made[1], "bias", None) is None or (made[1].bias == 0).all()
    assert (made[2].bias == 7).all(), "biases of layers are as they were"


@pytest.mark.parametrize(
    "words",
    [["zoo:nothing"], ["--data", "nothing"], ["zoo:cifar_resnet20"], ["--lr", "1e9", "--epochs", "1"], ["torch.nn:ReLU"]],
)
def test_what_cannot_be_had_leaves_no_folder(words, tmp_path):
    run = CliRunner().invoke(application(), ["tickets", *words, "-o", str(tmp_path / "out")])
    assert isinstance(run.exception, SecateurError)
    assert not (tmp_path / "out").exists()


def check_kept(place, found):
    """From the files alone: the tickets of the grid, with the accuracies it has written."""
    build = lambda: zoo.digits_resnet(widths=(4, 4, 4))  # noqa: E731
    kept = {name: load(place / f"{name}.safetensors", into=build()) for name in ("initial", "fresh", "late", "dense")}
    draw = torch.Generator().manual_seed(0)
    made = [(torch.randn(16, 1, 8, 8, generator=draw), torch.randint(10, (16,), generator=draw)) for _ in range(2)]
    how = FitSettings(epochs=1, lr=0.1, seed=1)
    dense = deepcopy(kept["initial"])
    fit(dense, made, how)
    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), kept["dense"].parameters(), strict=True))
    for kind in ("structured", "unstructured"):
        plan = read_plan(place / f"{kind}.json")
        for variant, source in (("rewind", "initial"), ("late rewind", "late")):
            small = ticket(kept[source], kept["fresh"], plan, "rewind", seed=1)
            fit(small, made, how, hooks=[ZerosStay(small, plan)] if kind == "unstructured" else [])
            assert evaluate(small, made[:1])["accuracy"] == found[kind][variant][1]


def test_the_grid_trains_every_ticket_and_draws_it(tmp_path):
    words = [
        "tickets",
        "-o",
        str(tmp_path / "out"),
        "--seeds",
        "2",
        "--epochs",
        "1",
        "--variant",
        "rewind",
        "--variant",
        "late rewind",
    ]
    (tmp_path / "net.py").write_text(
        "from secateur.recipes import zoo\n"
        "def build():\n    return zoo.digits_resnet(widths=(4, 4, 4))\n"
        "def data():\n    import torch\n    draw = torch.Generator().manual_seed(0)\n"
        "    made = [(torch.randn(16, 1, 8, 8, generator=draw), torch.randint(10, (16,), generator=draw)) for _ in range(2)]\n"
        "    return made, made[:1]\n"
    )
    place = str(tmp_path / "net.py")
    run = CliRunner().invoke(application(), [*words, f"{place}:build", "--data", f"{place}:data", "--keep", "0.5"])
    assert run.exit_code == 0, run.output
    table = json.loads((tmp_path / "out" / "tickets.json").read_text())
    assert table["settings"]["keep"] == 0.5
    for kind in ("structured", "unstructured"):
        assert {name: len(values) for name, values in table["found"][kind].items()} == {"rewind": 2, "late rewind": 2}
        assert "±" in run.output
    check_kept(tmp_path / "out" / "seed-1", table["found"])
    short = ["-o", str(tmp_path / "bare"), "--seeds", "1", "--epochs", "1", "--variant", "rewind", "--kind", "structured"]
    bare = ["tickets", f"{place}:build", "--data", f"{place}:data", *short, "--no-weights"]
    again = CliRunner().invoke(application(), bare)
    assert again.exit_code == 0, again.output
    assert {path.name for path in (tmp_path / "bare").iterdir()} == {".lock", "tickets.json", "tickets.svg"}
    drawn = (tmp_path / "out" / "tickets.svg").read_text()
    assert drawn == picture(table["found"])
    for text in ("structured", "initial weights", "weights of a later epoch"):
        assert text in drawn


def test_the_grid_repeats_and_refuses_what_it_cannot_run():
    draw = torch.Generator().manual_seed(0)
    made = [(torch.randn(16, 1, 8, 8, generator=draw), torch.randint(10, (16,), generator=draw)) for _ in range(2)]
    settings = GridSettings(variants=("sign",), seeds=(3,), keep=0.5, fit=FitSettings(epochs=1))
    build = lambda: zoo.digits_resnet(widths=(4, 4, 4))  # noqa: E731
    one, two = (grid(build, lambda seed: (made, made), made[0][0][:1], settings) for _ in range(2))
    assert one == two
    assert GridSettings(variants=("sign", "sign"), kinds=("structured",) * 2) == GridSettings(("sign",), ("structured",))
    wrong = ({"variants": ("sing",)}, {"kinds": ("flat",)}, {"keep": 1.0}, {"seeds": ()}, {"late": 9})
    for words in wrong:
        with pytest.raises(SecateurError):
            GridSettings(**words)


@pytest.mark.parametrize(
    ("model", "kind", "says"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), "structured", "no axis that can be cut"),
        (nn.ReLU(), "unstructured", "no parameter of two dims"),
        (nn.BatchNorm1d(4), "unstructured", "no parameter of two dims"),
    ],
)
def test_where_nothing_can_go_that_is_said_before_anything_is_trained(model, kind, says):
    with pytest.raises(SecateurError, match=says):
        grid(lambda: model, lambda seed: 1 / 0, torch.zeros(1, 4), GridSettings(kinds=(kind,)))


def test_unstructured_plans_keep_the_largest_weights_of_every_tensor():
    model = handmade.small()
    plan = largest(model, 0.25)
    for one in plan.steps[0].supports:
        weight = model.get_parameter(one.tensor).detach().abs()
        kept = torch.from_numpy(one.mask())
        assert one.count == round(0.25 * weight.numel())
        assert weight[kept].min() >= weight[~kept].max()
    assert {one.tensor for one in plan.steps[0].supports} == set(WEIGHTS)
