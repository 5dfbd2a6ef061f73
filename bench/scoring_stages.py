"""The 2 x 2 grid of stages: losses {CE, CE + distillation} and optimizers {SGD, Adam}, of the scorer and of the pruned network.

python bench/scoring_stages.py [--seeds 3]

On the embedded digits at 20 % of the MACs. Writes bench/results/scoring_net_stages.json after every seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from common import command
from secateur import allocate, repair, score, trace
from secateur.criteria.scoring import Objective, ScorerSettings, ScorerStage, ScoringNet, Task, fit_
from secateur.data import BatchSettings, digits, loaders
from secateur.io import read_json, write_json
from secateur.measure import machine
from secateur.recipes import zoo
from secateur.train import FitSettings, Stage, evaluate, fit, fit_stages

OUT = Path(__file__).parent / "results" / "scoring_net_stages.json"
SHARE = 0.2
EPOCHS = 5
SCORER = {
    "CE, SGD": (Objective(kl=0.0), "sgd", 1e-2),
    "CE, Adam": (Objective(kl=0.0), "adam", 3e-3),
    "CE + KL, SGD": (Objective(), "sgd", 1e-2),
    "CE + KL, Adam": (Objective(), "adam", 3e-3),
}
NETWORK = {
    "CE, SGD": ("cross_entropy", "sgd", 0.05, 5e-4),
    "CE, Adam": ("cross_entropy", "adam", 2e-3, 0.0),
    "CE + KL, SGD": ("kl", "sgd", 0.05, 5e-4),
    "CE + KL, Adam": ("kl", "adam", 2e-3, 0.0),
}


def ranked(axes: Any, scores: Any, share: float) -> Any:
    """Scores as they are, across the network."""
    return allocate.budget(axes, scores, {"macs": share}, normalise="none", floor=0.05)


def one(seed: int) -> dict[str, Any]:
    """All sixteen cells on one dense network."""
    data = loaders(digits(), BatchSettings(batch=64, holdout=0, seed=seed))
    plain = list(data.train.plain())
    torch.manual_seed(seed)
    model = zoo.digits_resnet(1, (8, 16, 32))
    fit(model, data.train, FitSettings(epochs=6, lr=0.1, seed=seed))
    axes = trace(model.eval(), torch.zeros(1, 1, 8, 8))
    rows = {}
    for name, (objective, optimizer, lr) in SCORER.items():
        torch.manual_seed(seed)
        net = ScoringNet()
        stage = ScorerStage(objective=objective, optimizer=optimizer, lr=lr, epochs=10)  # type: ignore[arg-type]
        fit_(
            net, [Task(model, axes, plain, F.cross_entropy, ranked)], ScorerSettings(stages=(stage,), keeps=(SHARE,), seed=seed)
        )
        plan = ranked(axes, score(axes, net.criterion(model, axes)), SHARE)
        cut = plan.apply(model)
        repair.batchnorm(model, cut, plain)
        after = evaluate(cut, data.test)["accuracy"]
        for how, (loss, kind, rate, decay) in NETWORK.items():
            small = plan.apply(model)
            repair.batchnorm(model, small, plain)
            tuned = FitSettings(epochs=EPOCHS, optimizer=kind, lr=rate, weight_decay=decay, seed=seed)
            stages = [Stage("tune", tuned, loss)]
            judge = lambda network: evaluate(network, data.test)["accuracy"]  # noqa: E731
            curve = [r["holdout_accuracy"] for r in fit_stages(small, data.train, stages, teacher=model, evaluate=judge)]
            near = next(n for n, value in enumerate(curve, 1) if value >= curve[-1] - 0.005)
            rows[f"{name} / {how}"] = {"cut": after, "final": curve[-1], "epochs_to_half_a_point": near, "curve": curve}
    return {"dense": evaluate(model, data.test)["accuracy"], "rows": rows}


def main() -> None:
    """Seed after seed; what is known is left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = read_json(OUT) if OUT.exists() else {"grid": {}}
    for seed in range(asked.seeds):
        if str(seed) in known["grid"]:
            continue
        begun = time.perf_counter()
        known["grid"][str(seed)] = one(seed) | {"seconds": round(time.perf_counter() - begun, 1)}
        known |= {
            "command": command("scoring_stages.py"),
            "versions": machine.versions(),
            "hardware": machine.hardware(torch.device("cpu"), 1),
            "words": [
                f"Digits, {100 * SHARE:.0f} % of the MACs, {EPOCHS} epochs after the cut. A row names loss and optimizer of",
                "the scorer, then those of the pruned network, whose teacher is the dense one. Curves are test accuracy;",
                "nothing is chosen by them.",
            ],
        }
        write_json(OUT, json.loads(json.dumps(known)))
        print(seed, known["grid"][str(seed)]["seconds"], flush=True)


if __name__ == "__main__":
    main()
