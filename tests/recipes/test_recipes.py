"""The text of recipes: what a TOML file may say, its defaults, what is refused, and the recipes of this repository."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import small_run
from scripts import ROOT
from secateur import SecateurError
from secateur.recipes import grid, schema, toml
from secateur.recipes.parts import build_model
from secateur.recipes.tune import settings_of
from secateur.train import FitSettings

MINIMAL: dict[str, Any] = {"model": {"build": "zoo:digits_resnet"}}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_default_is_written_out_and_read_back():
    value = schema.from_dict(MINIMAL)
    table = tomllib.loads(schema.text(value))
    assert schema.from_dict(table) == value
    for section in ("data", "train", "prune", "repair", "finetune", "measure"):
        written = {key for key, default in asdict(value)[section].items() if default is not None}
        assert set(table[section]) == written


def test_fit_has_the_names_of_the_training_loop():
    ours = {field.name for field in fields(schema.Fit)} - {"teacher", "temperature"}
    assert ours == {field.name for field in fields(FitSettings)} - {"seed"}
    assert settings_of(schema.Fit(epochs=3, lr=0.2), 5) == FitSettings(epochs=3, lr=0.2, seed=5)


def test_a_recipe_trains_by_the_defaults_of_the_loop():
    own = {field.name: field.default for field in fields(schema.Fit)}
    for field in fields(FitSettings):
        if field.name not in ("epochs", "seed"):  # a section that is not written trains for no epoch; the recipe has the seed
            assert own[field.name] == field.default, field.name


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("prune", "flor", 0.1, "did you mean 'floor'"),
        ("prune", "criterion", "tailor", "did you mean 'taylor'"),
        ("prune", "keep", {"macs": 2}, "a share above 0 and at most 1"),
        ("prune", "keep", {"macs": float("nan")}, "a share above 0 and at most 1"),
        ("prune", "keep", {"mcas": 0.5}, "did you mean 'macs'"),
        ("prune", "keep", {}, "what remains"),
        ("prune", "keep", 0.5, "what remains"),
        ("prune", "floor", 1.0, "from 0 up to, not including, 1"),
        ("prune", "ignore", "head", "a list of texts"),
        ("prune", "rounds", 0, "a whole number of at least 1"),
        ("finetune", "epochs", True, "a whole number of at least 0"),
        ("finetune", "epochs", "3", "a whole number of at least 0"),
        ("finetune", "lr", float("inf"), "a number above 0"),
        ("finetune", "schedule", "cosin", "did you mean 'cosine'"),
        ("data", "normalise", "imagnet", "did you mean 'imagenet'"),
        ("measure", "latency", "yes", "true or false"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(section, key, value, says):
    with pytest.raises(SecateurError, match=says) as told:
        schema.from_dict(MINIMAL | {section: {key: value}})
    assert section in str(told.value)
    assert key in str(told.value)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({}, r"add \[model\]"),
        ({"model": {}}, "no 'build'"),
        ({"model": 3}, "int instead of a table"),
        (MINIMAL | {"prun": {}}, "did you mean 'prune'"),
        (MINIMAL | {"device": "gpu"}, '"auto", "cpu", "cuda" or "mps"'),
    ],
)
def test_a_wrong_recipe_is_told(table, says):
    with pytest.raises(SecateurError, match=says):
        schema.from_dict(table)


def test_without_pydantic_keys_are_checked_and_values_trusted():
    """The recipe has to be read on a machine that has torch and little else."""
    code = """
import sys
sys.modules["pydantic"] = None
from secateur.recipes import schema
from secateur.core.errors import SecateurError
value = schema.from_dict({"model": {"build": "x"}, "prune": {"keep": {"macs": 0.4}, "ignore": ["a"]}})
assert value == schema.Recipe(schema.Model("x"), prune=schema.Prune(keep={"macs": 0.4}, ignore=("a",))), value
try:
    schema.from_dict({"model": {"build": "x"}, "prune": {"kep": 1}})
except SecateurError as error:
    assert "did you mean 'keep'" in str(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


names = st.text(min_size=1, max_size=8)
plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(max_size=12)
values = st.recursive(
    plain.filter(lambda v: v is not None), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)


@given(st.dictionaries(names, plain | values | st.dictionaries(names, values, max_size=3), max_size=4))
def test_toml_is_read_back_by_the_standard_library(table):
    table = {key: value for key, value in table.items() if value is not None}
    assert tomllib.loads(toml.dumps(table)) == table


def test_paths_beside_the_recipe_become_absolute(tmp_path):
    recipe = small_run.write(tmp_path)
    assert schema.read(recipe).data.name == f"{recipe.parent / 'data.py'}:small"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_this_repository_are_valid(path):
    several = "\n[grid" in path.read_text()
    for value in grid.read(path).cells.values() if several else [schema.read(path)]:
        assert build_model(value.model.build, value.model.args)
        trained = [settings_of(section, value.seed).epochs for section in (value.lowtrain, value.finetune)]
        told = path.read_text().splitlines()[0]
        assert any([*trained, *(stage.epochs for stage in value.stage)]) == ("without a step of training" not in told)
