"""The phases of a run. Each reads what earlier ones wrote, writes its own files, and can be done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core import codec
from secateur.core.axes import Axes
from secateur.core.errors import SecateurError, nearest
from secateur.core.plan import Plan
from secateur.core.protocols import Hook
from secateur.graph import trace
from secateur.io import artefact
from secateur.io.files import read_json, read_text, write_json, write_text
from secateur.measure import compare, facts, peak_memory
from secateur.recipes import folder as files
from secateur.recipes.choose import choose
from secateur.recipes.lowering import lowered
from secateur.recipes.parts import Parts, first_input, fitting, limited, with_weights
from secateur.recipes.progress import Progress
from secateur.recipes.reconstruct import repair_of
from secateur.recipes.schema import Fit, Recipe
from secateur.recipes.scoring import net_or_settings, scorer_kept
from secateur.recipes.searching import searched
from secateur.recipes.sparsing import sparse_hook
from secateur.recipes.staged import tune_in_stages
from secateur.recipes.tune import Watch, tune

DENSE, CUT, REPAIRED, TUNED = "dense", "after the cut", "after repair", "after fine-tuning"
LOWERED = "after low-rank training"
SPARSE = "after sparsification"


@dataclass(frozen=True, eq=False)
class Job:
    """A run at work: its folder, recipe, parts, and whom it tells how far it is."""

    folder: Path
    recipe: Recipe
    parts: Parts
    progress: Progress
    data: str | None

    def file(self, name: str) -> Path:
        """A file only an unfinished run needs."""
        (self.folder / "work").mkdir(exist_ok=True)
        return self.folder / "work" / name


def dense(job: Job) -> None:
    """Build the model, load its weights, train it if the recipe says so; write dense.safetensors and its facts."""
    model = job.parts.model()
    if job.recipe.model.weights:
        model = with_weights(model, job.recipe.model.weights, job.data)
    _require_layers(job.recipe, model)
    model.to(job.parts.device)
    if job.recipe.train.epochs:
        fit(job, model, job.recipe.train, "train")
    path = job.folder / "dense.safetensors"
    artefact.save(path, model)
    record(job, DENSE, model, path)


def _require_layers(recipe: Recipe, model: nn.Module) -> None:
    """Raise `SecateurError` now for a layer whose features a later phase is to match, and which the network does not have."""
    named = [layer for stage in recipe.stage for layer in stage.layers]
    if recipe.prune.criterion == "scoring_net":
        settings = net_or_settings(recipe.prune.args, 1.0, recipe.seed)[1]
        named += [layer for stage in settings.stages for layer in stage.objective.layers]
    known = [name for name, _ in model.named_modules()]
    for layer in named:
        if layer not in known:
            raise SecateurError(f"features of layer {layer!r}", "no such layer", nearest(layer, known[1:]))


def prune(job: Job) -> None:
    """Trace, score and allocate, search, or choose ranks, on the dense model; write plan.json and axes.json."""
    model = dense_model(job)
    if job.recipe.lowrank.method != "none":
        axes, plan = trace(model, job.parts.example), _lowered(job, model)
    elif job.recipe.search.method == "none":
        axes, plan = _chosen(job, model)
    else:
        axes, plan, source = searched(model, job.recipe, job.parts, folder=job.folder, progress=job.progress)
        if source is not model:
            artefact.save(job.file("recovered.safetensors"), source)
    write_json(job.folder / "axes.json", axes_json(axes))
    write_text(job.folder / "plan.json", codec.dumps(plan))


def _lowered(job: Job, model: nn.Module) -> Plan:
    """The plan of products; what was trained for it is kept, and judged before it is cut."""

    def train(model: nn.Module, hooks: Sequence[Hook]) -> None:
        teacher = dense_model(job) if job.recipe.lowtrain.teacher else None
        fit(job, model, job.recipe.lowtrain, "lowtrain", teacher=teacher, hooks=hooks)

    plan, source = lowered(model, job.recipe, job.parts, train, job.file("chosen.json"))
    if job.recipe.lowtrain.epochs:
        path = job.file("recovered.safetensors")
        artefact.save(path, source)
        record(job, LOWERED, source, path)
    return plan


def _chosen(job: Job, model: nn.Module) -> tuple[Axes, Plan]:
    """Axes and plan by scores and an allocator."""
    batches = limited(job.parts.plain, job.recipe.prune.batches, job.parts.device)
    return choose(
        model,
        job.parts.example,
        job.recipe.prune,
        batches=batches,
        loss=job.parts.loss,
        seed=job.recipe.seed,
        progress=job.progress,
        on_trained=scorer_kept(job.folder, job.recipe),
    )


def cut(job: Job) -> None:
    """Apply the plan to the dense model, or to what a search has trained meanwhile."""
    plan = plan_of(job)
    model = plan.apply(source_model(job))
    path = job.file("cut.safetensors")
    artefact.save(path, model, plan)
    record(job, CUT, model, path)


def repair(job: Job) -> None:
    """Repair the cut model on training batches."""
    model = small_model(job, "cut.safetensors")
    if job.recipe.repair.name != "none":
        section = job.recipe.repair
        batches, usual = fitting(job.parts, section.name, section.batches)
        repair_of(section, plan_of(job), usual)(source_model(job), model, batches)
    path = job.file("repaired.safetensors")
    artefact.save(path, model, plan_of(job))
    if job.recipe.repair.name != "none":
        record(job, REPAIRED, model, path)


def finetune(job: Job) -> None:
    """Train the repaired model, sparse where the recipe says so; write small.safetensors and the facts of the best epoch.

    Sparse training ends in another plan: the cut and the masks. Its best epoch would be one of fewer zeros, and is not kept.
    """
    model = small_model(job, "repaired.safetensors")
    plan, settings = artefact.read_plan(job.file("repaired.safetensors")), job.recipe.finetune
    hook = sparse_hook(model, job.recipe, job.parts)
    best, hooks = None if hook else job.file("best.safetensors"), [hook] if hook else []
    if job.recipe.stage:
        _stages(job, model, best, hooks)
    elif settings.epochs:
        teacher = dense_model(job) if settings.teacher else None
        fit(job, model, settings, "finetune", best=best, teacher=teacher, hooks=hooks)
    if hook:
        plan = plan.then(hook.plan())
        write_text(job.folder / "plan.json", codec.dumps(plan))
    path = job.folder / "small.safetensors"
    artefact.save(path, model, plan)
    if settings.epochs or hook or job.recipe.stage:
        record(job, TUNED if settings.epochs or job.recipe.stage else SPARSE, model, path)
        _record_best(job)


def measure(job: Job) -> None:
    """Time dense and small in interleaved rounds, and take the peak memory of both; all cut stages share the small one's."""
    models = {DENSE: dense_model(job), "small": small_model(job, job.folder / "small.safetensors")}
    section = job.recipe.measure
    example = first_input(job.parts.test, section.batch)
    known = read_json(job.folder / "facts.json")
    times: Mapping[str, float] = {}
    if section.latency:
        job.progress("measure", 0, 1, "latency")
        times = compare(models, example, repeats=section.repeats, warmup=section.warmup)
    peaks = {name: peak_memory(model, example) for name, model in models.items()}
    for stage in known["stages"]:
        name = DENSE if stage["stage"] in (DENSE, LOWERED) else "small"
        stage |= {"latency_ms": times[name]} if name in times else {}
        stage |= {"peak_memory": peaks[name]}
    write_json(job.folder / "facts.json", known)
    job.progress("measure", 1, 1, "")


PHASES: dict[str, Callable[[Job], None]] = {
    "dense": dense,
    "prune": prune,
    "cut": cut,
    "repair": repair,
    "finetune": finetune,
    "measure": measure,
}


def fit(
    job: Job,
    model: nn.Module,
    settings: Fit,
    phase: str,
    *,
    best: Path | None = None,
    teacher: nn.Module | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Train `model` for the epochs of `settings`, going on from the checkpoint where there is one; history.jsonl follows."""

    def on_records(records: list[dict[str, Any]]) -> None:
        files.write_history(job.folder, phase, records)

    checkpoint = job.file(f"{phase}.checkpoint")
    watch = Watch(phase, job.recipe.seed, checkpoint, job.progress, on_records, best)
    tune(job.parts, model, settings, watch, teacher=teacher, hooks=hooks)


def _stages(job: Job, model: nn.Module, best: Path | None, hooks: Sequence[Hook]) -> None:
    """Train `model` in the recipe's stages; each is a phase of history.jsonl under its name."""
    tune_in_stages(
        job.parts,
        model,
        job.recipe.stage,
        teacher=dense_model(job),
        seed=job.recipe.seed,
        checkpoint=job.file("stage.checkpoint"),
        best=best,
        progress=job.progress,
        hooks=hooks,
        write=lambda name, records: files.write_history(job.folder, name, records),
    )


def record(job: Job, stage: str, model: nn.Module, path: Path) -> None:
    """Write what is counted and judged of `model` into facts.json, in place of an earlier try at the same stage."""
    known_path = job.folder / "facts.json"
    fresh: dict[str, Any] = {"stages": [], "metric": job.recipe.metric.name}
    known = read_json(known_path) if known_path.exists() else fresh
    job.progress("test", 0, 1, stage)
    judged = job.parts.judge(model, job.parts.test)
    counted = facts(model, job.parts.example).to_json() | {"bytes": path.stat().st_size}
    entry: dict[str, Any] = {"stage": stage} | counted | {key: judged[key] for key in ("accuracy", "loss") if key in judged}
    known["stages"] = [row for row in known["stages"] if row["stage"] != stage] + [entry]
    write_json(known_path, known | {"accuracy_on": job.parts.accuracy_on})
    job.progress("test", 1, 1, stage)


def _record_best(job: Job) -> None:
    """Add the test accuracy of the epoch that was best on the holdout; without a holdout there is no such epoch."""
    path = job.file("best.safetensors")
    if not path.exists():
        return
    chosen = artefact.read_metadata(path)
    # saved without its plan, at every better epoch: the cut model itself is what it is loaded into
    judged = job.parts.judge(artefact.load(path, into=small_model(job, "repaired.safetensors")), job.parts.test)
    known = read_json(job.folder / "facts.json")
    known["best"] = {"epoch": int(chosen["epoch"])} | {key: judged[key] for key in ("accuracy", "loss") if key in judged}
    write_json(job.folder / "facts.json", known)


def dense_model(job: Job) -> nn.Module:
    """The dense model as the phase "dense" left it."""
    return artefact.load(job.folder / "dense.safetensors", into=job.parts.model()).to(job.parts.device)


def source_model(job: Job) -> nn.Module:
    """What the plan is applied to: the dense model, or what a search with recovery made of it."""
    path = job.file("recovered.safetensors")
    return artefact.load(path, into=job.parts.model()).to(job.parts.device) if path.exists() else dense_model(job)


def small_model(job: Job, name: str | Path) -> nn.Module:
    """A cut model that a phase left."""
    path = name if isinstance(name, Path) else job.file(name)
    return artefact.load(path, into=job.parts.model()).to(job.parts.device)


def plan_of(job: Job) -> Plan:
    """The plan as written."""
    return codec.loads(read_text(job.folder / "plan.json", "plan"))


def axes_json(axes: Axes) -> dict[str, Any]:
    """What axes.json holds: every axis with its reason where it is fixed, and the share of parameters that can be cut."""
    rows = [{"name": a.name, "kind": a.kind, "units": a.units, "fixed": a.fixed, "exact": a.exact} for a in axes]
    return {"axes": rows, "free_share": axes.free_share(), "notes": list(axes.notes)}
