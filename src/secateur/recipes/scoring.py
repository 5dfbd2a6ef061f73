"""The Scoring Net by the words of a recipe: trained on the network at hand, or taken from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.protocols import Batches, Criterion, Loss
from secateur.criteria.scoring import Allocate, NetSettings, Objective, ScorerSettings, ScorerStage, ScoringNet
from secateur.criteria.scoring.fit import Record
from secateur.criteria.scoring_net import OnTrained, scoring_net
from secateur.io.files import write_text
from secateur.io.scorer import load_scorer, save_scorer
from secateur.recipes.schema import Recipe

PARTS: dict[str, type] = {"net": NetSettings, "objective": Objective, "stage": ScorerStage, "settings": ScorerSettings}


def learned(
    model: nn.Module,
    axes: Axes,
    batches: Batches | None,
    loss: Loss | None,
    args: Mapping[str, Any],
    *,
    allocate: Allocate,
    share: tuple[str, float],
    seed: int,
    on_trained: OnTrained | None = None,
) -> Criterion:
    """The criterion "scoring_net" of a recipe.

    `args`: ``file`` names a trained net, which scores without training, and is followed as far as the data bear out; with
    ``weigh = false`` altogether. Otherwise any field of `NetSettings`, `ScorerStage`,
    `Objective` and `ScorerSettings`, and ``stages``, a list of tables, for several stages. `share` is (count, share) of the
    budget; `on_trained` is told a net that was trained. Raises `SecateurError` for other words, and where data are needed and
    there are none.
    """
    net, settings = net_or_settings(args, share[1], seed)
    file = isinstance(net, ScoringNet)
    chosen = share[1] if file and args.get("weigh", True) else None
    if isinstance(net, ScoringNet) and batches is None and not net.settings.gradients:
        return net.criterion(model, axes)
    if batches is None or loss is None:
        asked, do = "criterion 'scoring_net'", "give data, or args = { file = ... }"
        if file:
            asked, do = "a Scoring Net that reads gradients", "give data, as --data does"
        raise SecateurError(asked, "no data to run on", do)
    how: dict[str, Any] = {"allocate": allocate, "budget": share[0], "share": chosen, "on_trained": on_trained}
    return scoring_net(model, batches, loss, axes=axes, net=net, settings=settings, **how)


def net_or_settings(args: Mapping[str, Any], share: float, seed: int) -> tuple[ScoringNet | NetSettings, ScorerSettings]:
    """What `args` of a recipe ask for: the net of a file, or what one is built and trained by.

    Raises `SecateurError` for a file that is none, and for words that are none.
    """
    words = dict(args)
    if "file" not in words:
        return settings_of(words, share, seed)
    file = words.pop("file")
    if not isinstance(weigh := words.pop("weigh", True), bool):
        raise SecateurError(f"prune.args: weigh = {weigh!r}", "neither true nor false", "give true or false")
    if words:
        raise SecateurError(f"prune.args = {dict(args)!r}", "settings of training beside a file", "give one or the other")
    if not isinstance(file, str) or not file:
        raise SecateurError(f"prune.args: file = {file!r}"[:80], "no path", 'give one as text, or "pretrained"')
    return load_scorer(file), ScorerSettings(seed=seed)


def scorer_kept(folder: Path, recipe: Recipe, prefix: str = "") -> OnTrained:
    """What writes scoring_net.safetensors, of the last round that trained one, and scorer.jsonl, the epochs of all rounds.

    `prefix` goes before both names.
    """
    rounds: list[list[Record]] = []

    def keep(net: ScoringNet, records: list[Record]) -> None:
        rounds.append(records)
        lines = [json.dumps({"round": number, **record}) for number, known in enumerate(rounds, 1) for record in known]
        write_text(folder / f"{prefix}scorer.jsonl", "".join(line + "\n" for line in lines))
        told = {"trained on": recipe.model.build, "data": recipe.data.name, "round": str(len(rounds))}
        save_scorer(folder / f"{prefix}scoring_net.safetensors", net, metadata=told)

    return keep


def settings_of(words: Mapping[str, Any], share: float, seed: int) -> tuple[NetSettings, ScorerSettings]:
    """Settings from one flat table. Raises `SecateurError` for a word that none of them has."""
    words = dict(words)
    _refuse_unknown("prune.args", words, tuple(PARTS.values()), "file", "stages")
    stages = words.pop("stages", None)
    net = NetSettings(**_of(NetSettings, words))
    common = _stage(words)
    rest = _of(ScorerSettings, words)
    if stages is not None and (
        not isinstance(stages, list) or not stages or not all(isinstance(stage, Mapping) for stage in stages)
    ):
        raise SecateurError("prune.args: 'stages'", f"{stages!r}"[:80], "give a list of tables, one at least")
    for stage in stages or ():
        _refuse_unknown("prune.args.stages", stage, (ScorerStage, Objective))
    made = tuple(_stage({**words, **stage}) for stage in stages) if stages is not None else (common,)
    return net, ScorerSettings(**{"keeps": (share,), "seed": seed, **rest, "stages": made})


def _refuse_unknown(asked: str, words: Mapping[str, Any], kinds: Sequence[type], *more: str) -> None:
    """Raise `SecateurError` for a word that is no field of `kinds`."""
    known = sorted({f.name for kind in kinds for f in fields(kind)} - {"objective"} | set(more))
    for word in sorted(set(words) - set(known)):
        do = "give losses as weights, as task = 0 and kl = 1" if word == "loss" else nearest(word, known)
        raise SecateurError(f"{asked}: {word!r}", "no such setting", do)


def _stage(words: Mapping[str, Any]) -> ScorerStage:
    return ScorerStage(**_of(ScorerStage, words), objective=Objective(**_of(Objective, words)))


def _of(kind: type, words: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: words[f.name] for f in fields(kind) if f.name in words}
