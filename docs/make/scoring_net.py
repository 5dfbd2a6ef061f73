"""Write docs/results/scoring_net.md from the files of its runs.

python docs/make/scoring_net.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from secateur.report import words
from secateur.report.tickets import WORDS, mean_and_error

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results" / "scoring_net.md"
RESULTS = ROOT / "bench" / "results"
DIGITS = RESULTS / "scoring_net_digits.json"
TICKETS = RESULTS / "tickets_digits" / "tickets.json"
STAGES = RESULTS / "scoring_net_stages.json"
META = RESULTS / "scoring_net_meta.json"
CIFAR = RESULTS / "scoring_net_cifar.json"
AT_INIT = RESULTS / "at_init_digits.json"


def percent(values: Sequence[float]) -> str:
    """Mean and standard error, in per cent."""
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f} ± {100 * error:.1f}" if len(values) > 1 else f"{100 * mean:.1f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *rows]]


def under(path: Path, known: Mapping[str, Any], seeds: int, part: str = "") -> str:
    """What made a table, which is `part` of its file where parts were run apart."""
    command = known.get("commands", {}).get(part, known["command"])
    name, machine, torch = path.relative_to(ROOT), known["hardware"], known["versions"]["torch"]
    thread = f"{machine['threads']} thread of {machine['cpu']}"
    return f"[{name}](../../{name}): `{command}`, torch {torch}, {thread}, {words.plural(seeds, 'seed')}."


def of_seeds(found: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """The runs a table is made of, and what is to be said: seed 0 is the network that settings were tried out on."""
    others = [run for seed, run in found.items() if seed != "0"]
    if others:
        return others, ["Settings of the Scoring Net were tried out on the network of seed 0, which is left out of the means."]
    return list(found.values()), [
        "**Settings of the Scoring Net were tried out on this very network (seed 0) and these test images; runs of other",
        "seeds are still to come.**",
    ]


def criteria(known: Mapping[str, Any]) -> list[str]:
    """Accuracy by criterion and share, and what learned ones cost."""
    seeds, told = of_seeds(known["criteria"])
    shares, names = list(seeds[0]["rows"]["l1"]), list(seeds[0]["rows"])
    lines = [
        "## Against hand-made criteria",
        f"A residual network on the embedded digits; dense test accuracy {percent([s['dense'] for s in seeds])} %. Each column",
        "is a share of the MACs that stays; test accuracy (%), mean and standard error over seeds. The Scoring Net is trained",
        "anew at each share, on training images.",
        *told,
    ]
    for key, when in (("cut", "before fine-tuning (batch norms re-estimated)"), ("tuned", "after three epochs of fine-tuning")):
        rows = []
        for name in names:
            found = [[s["rows"][name][share][key] for s in seeds if share in s["rows"].get(name, {})] for share in shares]
            rows.append([name, *(percent(values) if values else "-" for values in found)])
        lines += ["", f"### Accuracy {when}", *table(["criterion", *(f"{100 * float(s):.0f} %" for s in shares)], rows)]
    return [*lines, "", under(DIGITS, known, len(seeds), "criteria"), "", *costs(seeds)]


def costs(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Forward passes and time of learning against evolving, at the share of 0.3."""
    rows = []
    for name in seeds[0]["costs"]:
        found = [s["costs"][name]["0.3"] for s in seeds if name in s["costs"]]
        loss = mean_and_error([s["rows"][name]["0.3"]["judged"] for s in seeds if name in s["rows"]])[0]
        spent = mean_and_error([cost["cpu_s"] for cost in found])[0]
        reached = [cost.get("reached") for cost in found]
        near = "-" if "reached" not in found[0] else f"{sum(r is not None for r in reached)} of {len(reached)} runs"
        rows.append([name, str(found[0]["forwards"]), str(found[0]["backwards"]), f"{spent:.1f}", f"{loss:.3f}", near])
    head = ["", "forward passes", "backward passes", "CPU seconds", "loss of the cut network", "reached the net's loss"]
    return [
        "### Learning against evolving",
        "At 30 % of the MACs; a pass is one batch of 64 through the network. The loss is that on the four training batches",
        "that every candidate of an evolution is judged on. LeGR evolves one affine map of norms per layer, without tuning its",
        'candidates; "evolution of the net" mutates the weights of a Scoring Net in place of training them.',
        "",
        *table(head, rows),
    ]


def effort(known: Mapping[str, Any]) -> list[str]:
    """Passes and time until the net and each rival reach the loss of the other."""
    seeds, told = of_seeds(known["effort"])
    rows = [_reached("scoring net", "its own end", [s["net"] for s in seeds], len(seeds))]
    for name in seeds[0]["rivals"]:
        found = [s["rivals"][name] for s in seeds]
        rows.append(_reached(name, "the net's end", found, sum(f["reached"] for f in found)))
        rows.append(
            _reached(
                "scoring net",
                f"the lowest loss of {name}",
                [f["net"] for f in found],
                sum(f["net"]["loss"] <= f["loss"] for f in found),
            )
        )
    head = ["", "until", "passes, forward and backward", "CPU seconds", "loss then", "reached in"]
    return [
        "### To equal loss",
        "A rival stops where it reaches the loss the net ends with, at the latest after",
        f"{seeds[0]['limit']:,} trials of four passes.",
        "The net is judged once an epoch; that is counted. Means over seeds.",
        *told,
        "",
        *table(head, rows),
        "",
        under(DIGITS, known, len(seeds), "effort"),
    ]


def _reached(who: str, goal: str, found: list[Any], runs: int) -> list[str]:
    """A row of `effort`: means of what `found` took, and in how many runs the goal was met."""
    passes, seconds, loss = (mean_and_error([f[name] for f in found])[0] for name in ("passes", "cpu_s", "loss"))
    there = "every run" if runs == len(found) else f"{runs} of {words.plural(len(found), 'run')}"
    return [who, goal, f"{passes:.0f}", f"{seconds:.1f}", f"{loss:.3f}", there]


def at_init(known: Mapping[str, Any]) -> list[str]:
    """Accuracies after training what criteria of untrained networks left."""
    most = max(len(s["rows"]) for s in known["at_init"].values())
    seeds = [s for s in known["at_init"].values() if len(s["rows"]) == most]  # those that every criterion has run on
    shares = list(next(iter(seeds[0]["rows"].values())))
    rows = [[name, *(percent([s["rows"][name][share] for s in seeds]) for share in shares)] for name in seeds[0]["rows"]]
    return [
        "## Before training",
        "A residual network on the digits is cut as it is initialised, then trained from the weights it has left,",
        f"{known['epochs']} epochs; the dense one reaches {percent([s['dense'] for s in seeds])} % likewise. Each column is a",
        "share of the MACs that goes. The Scoring Net is trained in mode `init`: on the loss after one step of training.",
        "SynFlow passes the same flow through every axis, so as it is it leaves all axes about equally wide, as the paper",
        "leaves all layers about equally many weights. Where early layers have most MACs, little is then left of late ones;",
        "its scores over what a unit costs in MACs do not have that trouble. Both in rounds, as in the paper.",
        "",
        *table(["criterion", *(f"{100 * (1 - float(share)):.0f} %" for share in shares)], rows),
        "",
        under(AT_INIT, known, len(seeds)),
    ]


def transfer(known: Mapping[str, Any]) -> list[str]:
    """A net on networks it was not trained on."""
    seeds, told = of_seeds(known["transfer"])
    lines = [
        "## Transfer",
        "Trained on one residual network at 50, 30 and 20 % of the MACs, then asked once about others of another depth, width",
        "or kind, with other weights; test accuracy (%) at 30 % of the MACs. Channels of residual streams stay. A weighed one",
        "is followed as far as the other network's training batches bear out, at worst not at all, which is L1",
        "(`scoring.weighed`). The net of the package has seen many networks of these kinds, trained on the same digits without",
        "augmentation; it reads activations of the other network as well.",
        *told,
    ]
    for network in [key for key in seeds[0] if key != "seconds"]:
        names = list(seeds[0][network]["rows"])
        rows = [
            [name, *(percent([s[network]["rows"][name][key] for s in seeds]) for key in ("cut", "tuned"))] for name in names
        ]
        lines += ["", f"### {network[:1].upper()}{network[1:]}, dense {percent([s[network]['dense'] for s in seeds])} %"]
        lines += table(["criterion", "before fine-tuning", "after"], rows)
    return [*lines, "", under(DIGITS, known, len(seeds), "transfer")]


def tickets(known: Mapping[str, Any]) -> list[str]:
    """Accuracies of all reinitialisations."""
    found = known["found"]
    kinds = [kind for kind in ("structured", "unstructured") if kind in found]
    rows = [[WORDS.get(name, name), *(percent(found[kind][name]) for kind in kinds)] for name in found[kinds[0]]]
    keep, epochs = known["settings"]["keep"], known["settings"]["fit"]["epochs"]
    return [
        "## Lottery tickets",
        "What a pruned network's weights are before it is trained again.",
        f"{100 * keep:.0f} % of the units of every layer (structured) or",
        f"of the weights (unstructured) stay; {epochs} epochs. The dense network reaches {percent(found['dense'])} %.",
        "",
        *table(["initial weights", *kinds], rows),
        "",
        "![one dot per seed](../../bench/results/tickets_digits/tickets.svg)",
        "",
        under(TICKETS, known, len(found["dense"])),
    ]


def stages(known: Mapping[str, Any]) -> list[str]:
    """The 2 x 2 grid of losses and optimizers, of the scorer and of the pruned network."""
    seeds = list(known["grid"].values())
    rows = []
    for name in seeds[0]["rows"]:
        found = [s["rows"][name] for s in seeds]
        near = mean_and_error([row["epochs_to_half_a_point"] for row in found])[0]
        rows.append([name, *(percent([row[key] for row in found]) for key in ("cut", "final")), f"{near:.1f}"])
    head = ["scorer / pruned network", "accuracy after the cut", "final accuracy", "epochs to within half a point"]
    return ["## Losses and optimizers by stage", *known["words"], "", *table(head, rows), "", under(STAGES, known, len(seeds))]


def cifar(known: Mapping[str, Any]) -> list[str]:
    """Pretrained networks on CIFAR-10 without retraining."""
    lines = [
        "## CIFAR-10, pretrained, without retraining",
        *known["words"],
        "A weighed net is followed as far as these training images bear out (`scoring.weighed`).",
    ]
    for network, found in known["networks"].items():
        dense = found["dense"]
        rows = [[name, f"{100 * value:.2f}", f"{100 * (value - dense):+.2f}"] for name, value in found["rows"].items()]
        trained = f", trained here for {words.plural(found['epochs'], 'epoch')}" if found.get("epochs") else ""
        head = f"### {found.get('said', network)}{trained}, dense {100 * dense:.2f} %, spread {found['spread']:.2f}"
        lines += ["", head, *table(["criterion", "accuracy", "difference"], rows)]
        if found.get("command", known["command"]) != known["command"]:
            lines += ["", f"Rows of the package's net by `{found['command']}`."]
        if not any("package" in name for name in found["rows"]):
            lines += ["", "The net of the package has not been asked here since it was trained anew."]
    return [*lines, "", under(CIFAR, known, 1)]


SIZES = {"deeper resnet": "resnet of two blocks"}
ASKED = ("scoring net", "scoring net, weighed")


def family(known: Mapping[str, Any]) -> list[str]:
    """The net of the package on networks it has not seen."""
    lines = [
        "## The net that comes with the package",
        f"Trained on {words.plural(len(known['family']), 'small network')} at once (residual, plain, transformers,",
        'perceptrons; digits and two tables), then asked once about others: `load_scorer("pretrained")`. Test accuracy (%)',
        "without retraining, batch norms re-estimated; mean and standard error over seeds. The family has networks of these",
        "kinds, of other widths. The Scoring Net is untouched: it reads weights, and activations of 20 training batches, no",
        "labels. Weighed: against L1 on training batches, without training, as recipes do (`scoring.weighed`). Without data it",
        "is L1. The larger networks below are a harder test.",
        "",
        "What is learned corrects a criterion of activations, `flows.columns`, as far as networks of the family that were held",
        "out say; 0 is that criterion as it is (`criteria.flows`). The bound whose least gain over any kind is highest is",
        f"taken, here {known['bound']:g}. Points to L1 on these networks, by the bound of the correction:",
        "",
        *bounds(known["tried"]),
        "",
    ]
    unseen = known["unseen"]
    shares = [key for key in unseen[0] if key not in ("network", "dense")]
    rows = []
    for kind in dict.fromkeys(row["network"] for row in unseen):
        own = [row for row in unseen if row["network"] == kind]
        for share in shares:
            found = [percent([row[share][name] for row in own]) for name in ("random", "l1", *ASKED)]
            rows.append([SIZES.get(kind, kind), percent([row["dense"] for row in own]), f"{100 * float(share):.0f} %", *found])
    lines += table(["network", "dense", "MACs left", "random", "L1", "Scoring Net", "weighed"], rows)
    lines += ["", "Gain over L1 in points, both shares, mean and standard error over seeds:", ""]
    gains = [[SIZES.get(kind, kind), *(gain(unseen, kind, name, shares) for name in ASKED)] for kind in known["gain_over_l1"]]
    lines += table(["network", "Scoring Net", "weighed"], gains)
    seeds = sum(row["network"] == unseen[0]["network"] for row in unseen)
    return [*lines, "", under(META, known, seeds)]


def bounds(tried: Sequence[Mapping[str, Any]]) -> list[str]:
    """What nets of each bound gain over L1 on the networks of the family that were held out."""
    kinds = list(tried[0]["by_kind"])
    rows = [[t["bound"], t["gain_on_held_out"], *(t["by_kind"][kind] for kind in kinds)] for t in tried]
    told = [[f"{bound:g}", *(f"{100 * value:+.1f}" for value in values)] for bound, *values in rows]
    return table(["bound", "all", *(kind.rstrip(",") for kind in kinds)], told)


def gain(unseen: Sequence[Mapping[str, Any]], kind: str, name: str, shares: Sequence[str]) -> str:
    """Points of `name` over L1 on the networks of a kind, each the mean over shares."""
    own = [row for row in unseen if row["network"] == kind]
    mean, error = mean_and_error([sum(row[s][name] - row[s]["l1"] for s in shares) / len(shares) for row in own])
    return f"{100 * mean:+.1f} ± {100 * error:.1f}"


PARTS = (
    (DIGITS, "criteria", criteria),
    (DIGITS, "effort", effort),
    (AT_INIT, "at_init", at_init),
    (DIGITS, "transfer", transfer),
    (META, "unseen", family),
    (CIFAR, "networks", cifar),
    (STAGES, "grid", stages),
    (TICKETS, "found", tickets),
)


def runs() -> dict[Path, Any]:
    """What the run files hold, by path; those that are there."""
    return {path: json.loads(path.read_text()) for path in (DIGITS, AT_INIT, META, CIFAR, STAGES, TICKETS) if path.exists()}


def page(read: Mapping[Path, Any]) -> str:
    """The page, from whatever runs there are."""
    lines = [
        "# Results of the Scoring Net",
        "",
        "Generated by `python docs/make/scoring_net.py`; no number is typed in by hand.",
    ]
    for path, key, part in PARTS:
        known = read.get(path, {})
        if known.get(key):
            lines += ["", *part(known)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(runs()))
