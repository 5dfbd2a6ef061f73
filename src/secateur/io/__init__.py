"""Files in and out: saved models, plans, weights of others, and the user's own Python objects."""

from secateur.io.artefact import load, read_metadata, read_plan, save, write_plan
from secateur.io.files import atomic, read_bytes, read_json, read_text, write_json, write_text
from secateur.io.objects import build, call, resolve
from secateur.io.scorer import load_scorer, save_scorer
from secateur.io.weights import load_weights

__all__ = [
    "atomic",
    "build",
    "call",
    "load",
    "load_scorer",
    "load_weights",
    "read_bytes",
    "read_json",
    "read_metadata",
    "read_plan",
    "read_text",
    "resolve",
    "save",
    "save_scorer",
    "write_json",
    "write_plan",
    "write_text",
]
