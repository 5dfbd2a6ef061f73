"""Whole runs: one paper or one job is one function, or one TOML file, that composes the rest."""

from secateur.recipes.compress import Report, Settings, compress
from secateur.recipes.run import run
from secateur.recipes.schema import Recipe, read

__all__ = ["Recipe", "Report", "Settings", "compress", "read", "run"]
