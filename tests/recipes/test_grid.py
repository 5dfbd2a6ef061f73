"""A grid of runs from one recipe: what its cells are, what is read off them, and that they are ordinary runs."""

import json

import pytest

import small_run
from secateur.cli.main import main
from secateur.core.errors import SecateurError
from secateur.io import read_json
from secateur.recipes import grid, read, run

TABLE = """
[grid]
seeds = 2

[grid.scorer."CE, SGD".prune]
args = { kl = 0, optimizer = "sgd", epochs = 1, limit = 3 }

[grid.scorer."CE + KL, Adam".prune]
args = { optimizer = "adam", epochs = 1, limit = 3 }

[grid.network."CE, SGD"]
stage = [{ name = "tune", epochs = 2, lr = 0.05 }]

[grid.network."CE + KL, Adam"]
stage = [{ name = "tune", epochs = 2, loss = "kl", optimizer = "adam", lr = 0.002, weight_decay = 0.0 }]
"""


def write(folder, table=TABLE):
    path = small_run.write(folder)
    before = path.read_text().partition("[finetune]")[0].replace("epochs = 3", "epochs = 1")
    before = before.replace("[prune]", '[prune]\ncriterion = "scoring_net"\nnormalise = "none"\nfloor = 0.0')
    path.write_text(before + "[measure]\nlatency = false\n" + table)
    return path


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """A recipe of two by two cells, carried out for two seeds, and what the command printed as JSON."""
    place = tmp_path_factory.mktemp("grid")
    path = write(place)
    with pytest.raises(SystemExit) as left:
        main(["grid", str(path), "-o", str(place / "out"), "--quiet"])
    assert left.value.code == 0
    return path, place / "out"


def test_every_combination_is_a_cell_and_says_what_the_brief_asks(carried):
    _path, out = carried
    table = read_json(out / "grid.json")
    names = ["CE, SGD", "CE + KL, Adam"]
    assert list(table["cells"]) == [f"{one} / {two}" for one in names for two in names]
    for rows in table["cells"].values():
        assert list(rows) == ["3", "4"], "the recipe's seed and the next"
        for row in rows.values():
            assert len(row["curve"]) == 2
            assert 0 < row["final"] <= 1
            assert row["epochs_to_half_a_point"] in (1, 2)
    cells = list(table["cells"].values())
    for seed in ("3", "4"):
        assert len({rows[seed]["dense"] for rows in cells}) == 1, "one dense model for all"
        assert cells[0][seed]["cut"] == cells[1][seed]["cut"], "the same scorer, another training"
    assert {"command", "versions", "hardware", "recipes"} <= table.keys()


def test_a_cell_is_the_run_its_recipe_describes(carried, tmp_path):
    """The last cell, which took the first one's dense model, against a run of its own from the beginning."""
    path, out = carried
    found = read_json(out / "grid.json")
    cells = grid.read(path).cells
    facts = run(cells["CE + KL, Adam", "CE + KL, Adam"], tmp_path / "run")
    row = found["cells"]["CE + KL, Adam / CE + KL, Adam"]["3"]
    by_name = {stage["stage"]: stage["accuracy"] for stage in facts["stages"]}
    assert (row["dense"], row["cut"], row["final"]) == tuple(
        by_name[name] for name in ("dense", "after repair", "after fine-tuning")
    )
    history = [json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text().splitlines()]
    assert row["curve"] == [record["holdout_accuracy"] for record in history if record["phase"] == "tune"]


def test_the_same_command_again_trains_nothing(carried, monkeypatch):
    path, out = carried
    before = read_json(out / "grid.json")["cells"]
    monkeypatch.setattr("secateur.recipes.phases.fit", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("secateur.recipes.phases.tune_in_stages", lambda *_, **__: pytest.fail("trained again"))
    assert grid.carry_out(grid.read(path), out) == before


CLOSE = ([0.0, 12 / 200, 13 / 200], 2)
"""One image of 200 is half a point, though 13 / 200 - 0.005 is more than 12 / 200 in binary."""
FALLING = ([0.5, 0.88, 0.9, 0.95, 0.9], 3)


@pytest.mark.parametrize(
    ("curve", "epoch"),
    [([0.9], 1), ([0.1, 0.5, 0.9], 3), ([0.9, 0.896, 0.9], 1), ([0.5, 0.895, 0.9], 2), ([0.95, 0.8, 0.9], 1), CLOSE, FALLING],
)
def test_epochs_to_within_half_a_point(curve, epoch):
    assert grid.reached(curve) == epoch


def test_pieces_are_merged_table_in_table():
    table = {"prune": {"args": {"kl": 1, "epochs": 5}, "floor": 0.1}, "seed": 1}
    over = {"prune": {"args": {"kl": 0}}, "stage": [1]}
    assert grid.merged(table, over) == {
        "prune": {"args": {"kl": 0, "epochs": 5}, "floor": 0.1},
        "seed": 1,
        "stage": [1],
    }
    assert table["prune"]["args"]["kl"] == 1


CELLS = """
[grid]
seeds = 2

[grid.dense.short]
train = { epochs = 1, lr = 0.1 }

[grid.dense.long]
train = { epochs = 2, lr = 0.1 }

[grid.network.slow]
finetune = { epochs = 1, lr = 0.01 }

[grid.network.fast]
finetune = { epochs = 1, lr = 0.1 }
"""


def test_cells_share_a_dense_model_where_they_begin_alike_and_only_there(tmp_path, monkeypatch):
    asked = []

    def ran(recipe, place, **_):
        asked.append((recipe.seed, recipe.train.epochs, recipe.model.weights, place.relative_to(tmp_path).as_posix()))

    monkeypatch.setattr(grid, "run", ran)
    monkeypatch.setattr(grid, "row", lambda place: place)
    found = grid.carry_out(grid.read(write(tmp_path, CELLS)), tmp_path)
    dense = {number: str(tmp_path / f"{{}}/cell-{number}/dense.safetensors") for number in (1, 3)}
    assert asked == [
        (seed, epochs, dense[first].format(f"seed-{seed}") if first else None, f"seed-{seed}/cell-{cell}")
        for seed in (3, 4)
        for cell, (epochs, first) in enumerate([(1, 0), (0, 1), (2, 0), (0, 3)], 1)
    ]
    assert list(found) == ["short / slow", "short / fast", "long / slow", "long / fast"]
    assert found["long / slow"] == {"3": tmp_path / "seed-3/cell-3", "4": tmp_path / "seed-4/cell-3"}


def test_paths_of_a_cell_are_seen_from_the_recipe_and_from_nowhere_else(tmp_path, monkeypatch):
    path = write(tmp_path, CELLS)
    monkeypatch.chdir(tmp_path.parent)
    assert {cell.data.name for cell in grid.read(path).cells.values()} == {f"{tmp_path / 'data.py'}:small"}


WRONG = {
    r"no table \[grid\]": "",
    "grid.seeds.*whole number": "[grid]\nseeds = 0\n[grid.a.b]\nseed = 1",
    "no side of it": "[grid]\nseeds = 1",
    r"\[grid.a\].*no tables": "[grid]\na = 3",
    "cell 'one': key 'sed' in the recipe.*did you mean 'seed'": "[grid.a.one]\nsed = 1",
    "cell 'one': found no epoch after the cut": "[grid.a.one]\nseed = 1",
    "cell 'one': found no holdout": "[grid.a.one]\nfinetune = { epochs = 1 }\ndata = { holdout = 0 }",
    "cell 'one': prune.args: 'epocs'.*did you mean 'epochs'": (
        '[grid.a.one]\nfinetune = { epochs = 1 }\nprune = { criterion = "scoring_net", args = { epocs = 1 } }'
    ),
    r"\[grid.empty\].*no tables": "[grid.empty]",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_grids_are_one_sentence(words, tmp_path):
    with pytest.raises(SecateurError, match=words):
        grid.carry_out(grid.read(write(tmp_path, WRONG[words])), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_grid_is_not_one_run(tmp_path):
    with pytest.raises(SecateurError, match="carry it out with `secateur grid`"):
        read(write(tmp_path))
