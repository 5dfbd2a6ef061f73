"""A trained Scoring Net as one file: safetensors, its settings as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from secateur.core.errors import SecateurError
from secateur.core.strict import parse
from secateur.criteria.scoring import ScoringNet
from secateur.criteria.scoring.settings import net_from_json, net_to_json
from secateur.io import artefact
from secateur.io.files import shown

KEY = "scoring_net"
PRETRAINED = Path(__file__).with_name("scoring_net.safetensors")
"""The net that comes with the package: trained on a family of small networks by bench/scoring_meta.py."""


def save_scorer(path: str | os.PathLike[str], net: ScoringNet, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write `net` to `path`, whole or not at all; `metadata` is text of your own for the header."""
    if not isinstance(net, ScoringNet):
        do = "give a ScoringNet; secateur.save writes other models"
        raise SecateurError(f"saving the Scoring Net {shown(path)}", f"a {type(net).__name__}", do)
    artefact.save(path, net, metadata={**(metadata or {}), KEY: json.dumps(net_to_json(net.settings), sort_keys=True)})


def load_scorer(path: str | os.PathLike[str]) -> ScoringNet:
    """The Scoring Net at `path`, or the one that comes with the package for "pretrained", ready to score.

    No code of the file is run. Raises `SecateurError` where the file is damaged, holds something else, or weights that are not
    finite.
    """
    path = PRETRAINED if path == "pretrained" else path
    asked = f"loading the Scoring Net {shown(path)}"
    metadata = artefact.read_metadata(path)
    if KEY not in metadata:
        raise SecateurError(asked, "a saved model that is no Scoring Net", "give a file that save_scorer wrote")
    settings = net_from_json(parse(metadata[KEY], asked), asked)
    net = artefact.load(path, into=ScoringNet(settings)).float().eval()
    for name, value in net.state_dict().items():
        if not bool(value.isfinite().all()):
            raise SecateurError(asked, f"{name!r} with numbers that are not finite", "train and save it again")
    assert isinstance(net, ScoringNet)
    return net
