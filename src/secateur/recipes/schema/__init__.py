"""The recipe: the sections it has, the values they take, and recipes from TOML and back."""

from secateur.recipes.schema.kinds import Criterion
from secateur.recipes.schema.lowrank import LowRank
from secateur.recipes.schema.recipe import Data, Measure, Metric, Model, Prune, Recipe, Repair
from secateur.recipes.schema.search import Search
from secateur.recipes.schema.sparse import Sparsity
from secateur.recipes.schema.table import beside, differing, from_dict, plain, read, same, text
from secateur.recipes.schema.training import Fit, Stage, trained

__all__ = [
    "Criterion",
    "Data",
    "Fit",
    "LowRank",
    "Measure",
    "Metric",
    "Model",
    "Prune",
    "Recipe",
    "Repair",
    "Search",
    "Sparsity",
    "Stage",
    "beside",
    "differing",
    "from_dict",
    "plain",
    "read",
    "same",
    "text",
    "trained",
]
