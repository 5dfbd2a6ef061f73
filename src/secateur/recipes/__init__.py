"""Whole runs: one paper or one job is one function, or one TOML file, that composes the rest."""
