"""The laws a plan obeys, for our tests and for yours: `laws(build, example)` raises at the first that does not hold.

A law is a function of (build, example, axes, plan): `build()` returns a fresh model of one architecture with values that
depend on nothing but the global seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.axes import Axes
from secateur.core.codec import dumps, loads
from secateur.core.errors import SecateurError
from secateur.core.plan import Plan
from secateur.core.running import call, flat
from secateur.graph import trace
from secateur.io import load, save
from secateur.measure import facts
from secateur.surgery import duplicate, fingerprint, shapes_after, tensors

Build = Callable[[], nn.Module]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


class LawBroken(AssertionError):
    """A law does not hold; the message names the law, the model and the numbers."""


def awake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give norms, biases, running statistics and weights near zero values that show mistakes (0 and 1 hide them)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        return torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() <= 1:
                parameter.copy_(0.3 + 0.9 * draw(parameter) if name.endswith("weight") else draw(parameter) - 0.5)
            elif parameter.numel() and parameter.abs().max() < 1e-3:  # a head or a table of biases that starts at zero
                inner = parameter.numel() // parameter.shape[0]
                parameter.copy_((draw(parameter) - 0.5) * (12 / inner) ** 0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(draw(buffer) - 0.5)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + draw(buffer))
    return model


def random_plan(axes: Axes, *, seed: int = 0, least: float = 0.2) -> Plan:
    """A plan that keeps a random subset, of random size, of every free axis."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for axis in axes.free:
        share = least + (1 - least) * torch.rand((), generator=generator).item()
        count = max(min(axis.fewest, axis.units), round(share * axis.units))
        kept[axis.name] = sorted(torch.randperm(axis.units, generator=generator)[:count].tolist())
    return axes.plan(kept)


def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    """Every tensor in the model's output, without gradient."""
    with torch.no_grad():
        return [t for t in flat(call(model, example)) if isinstance(t, Tensor)]


def distance(model: nn.Module, other: nn.Module, example: Any) -> float:
    """Largest difference of outputs, relative to the largest output; infinite where shapes differ."""
    worst = 0.0
    for one, two in zip(outputs(model, example), outputs(other, example), strict=True):
        if one.shape != two.shape:
            return float("inf")
        if one.is_floating_point() and one.numel():
            scale = max(one.abs().max().item(), 1e-6)
            worst = max(worst, (one - two).abs().max().item() / scale)
    return worst


def _same(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(tensors(model), tensors(other), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def _demand(holds: bool, law: str, found: object = "") -> None:
    if not holds:
        raise LawBroken(f"law {law}: {found}")


def empty_plan_changes_nothing(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 1."""
    model = build().eval()
    _demand(_same(model, Plan(axes.fingerprint).apply(model)), "1, the empty plan changes nothing")


def plans_compose(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Laws 2 and 3: a.then(b) equals b after a; `then` is associative."""
    model = build().eval()
    plans = [plan]
    small = plan.apply(model)
    for seed in (101, 102):
        plans.append(random_plan(trace(small, example), seed=seed, least=0.6))
        small = plans[-1].apply(small)
    a, b, c = plans
    together = a.then(b).then(c)
    _demand(_same(together.apply(model), small), "2, a.then(b) is b after a")
    _demand(together == a.then(b.then(c)), "3, then is associative", "\n".join(together.diff(a.then(b.then(c)))))
    _demand(shapes_after(together) == fingerprint(small), "2, shapes after a composed plan")


def preview_equals_apply(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 4, the one that certifies the dependency analysis."""
    model = build().eval()
    error = distance(plan.preview(model).eval(), plan.apply(model), example)
    dtype = next((t.dtype for _, t in tensors(model) if t.is_floating_point()), torch.float32)
    _demand(error <= TOLERANCE.get(dtype, 1e-2), "4, masked equals cut", f"relative error {error:.2e}\n{plan}")


def json_round_trip(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 5, and 8: `diff` is empty if and only if plans are equal."""
    again = loads(dumps(plan))
    _demand(again == plan and not plan.diff(again), "5, JSON round trip", plan.diff(again))
    other = random_plan(axes, seed=977)
    _demand((other == plan) == (not plan.diff(other)), "8, diff is empty iff equal")


def file_round_trip(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 6: a fresh model and the file give the same outputs."""
    small = plan.apply(build().eval())
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "small.safetensors", small, plan)
        again = load(Path(folder) / "small.safetensors", into=build()).eval()
    _demand(distance(small, again, example) == 0, "6, fresh model and file give the same outputs")


def input_is_untouched(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 7."""
    model = build().eval()
    before = duplicate(model)
    plan.apply(model)
    plan.preview(model)
    trace(model, example)
    _demand(_same(before, model) and not model.training, "7, the input model is unchanged")


def wrong_model_is_refused(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 9."""
    if not plan:
        return
    small = plan.apply(build())
    try:
        plan.apply(small)
    except SecateurError as error:
        _demand(any(name in str(error) for name in axes.fingerprint), "9, a wrong model is refused by name", error)
        return
    _demand(False, "9, a wrong model is refused")


def counts_are_exact(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 10: predicted counts equal those measured after the cut."""
    kept = {name: after for name, (_, after) in plan.widths().items()}
    measured = facts(plan.apply(build().eval()), *(example if isinstance(example, tuple) else (example,)))
    for what in ("params", "macs"):
        predicted = axes.count(what, kept)
        _demand(predicted == getattr(measured, what), f"10, predicted {what}", f"{predicted} != {getattr(measured, what)}")


def optimizer_fits(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 11: momentum and moments fit after a plan, and equal the cut of what they were."""
    model = build()
    for optimizer in (torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9), torch.optim.AdamW(model.parameters(), 1e-3)):
        work = duplicate(model)
        optimizer = type(optimizer)(
            work.parameters(), **{k: v for k, v in optimizer.defaults.items() if k in ("lr", "momentum")}
        )
        _step(work, example, optimizer)
        plan.apply_(work, optimizer=optimizer)
        live = {id(p) for p in work.parameters()}
        held = [p for group in optimizer.param_groups for p in group["params"]]
        _demand(live == {id(p) for p in held}, "11, the optimizer holds the live parameters")
        for parameter in held:
            for value in optimizer.state[parameter].values():
                fits = not isinstance(value, Tensor) or value.dim() == 0 or value.shape == parameter.shape
                _demand(fits, "11, optimizer state fits")
        _step(work, example, optimizer)


def _step(model: nn.Module, example: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    out = [t for t in flat(call(model.train(), example)) if isinstance(t, Tensor) and t.requires_grad]
    torch.stack([(t.float() ** 2).mean() for t in out]).sum().backward()
    optimizer.step()


def down_to_one(build: Build, example: Any, axes: Axes, plan: Plan) -> None:
    """Law 13: every free axis can go down to one unit, or to the fewest it needs, and the model still runs and trains."""
    last = {axis.name: range(max(axis.units - axis.fewest, 0), axis.units) for axis in axes.free}
    model = axes.plan(last).apply(build().eval())
    whole = outputs(build().eval(), example)
    out = [t for t in flat(call(model, example)) if isinstance(t, Tensor)]
    _demand([t.shape for t in out] == [t.shape for t in whole], "13, one unit of each axis: shapes of the output")
    loss = sum((t.float() ** 2).mean() for t in out if t.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()


LAWS: tuple[Callable[[Build, Any, Axes, Plan], None], ...] = (
    empty_plan_changes_nothing,
    preview_equals_apply,
    plans_compose,
    json_round_trip,
    file_round_trip,
    input_is_untouched,
    wrong_model_is_refused,
    counts_are_exact,
    optimizer_fits,
    down_to_one,
)
"""Law 12 (a search replays from its history) belongs to `secateur.search`."""


def laws(build: Build, example: Any, *, seed: int = 0, only: tuple[Callable[..., None], ...] = LAWS) -> Axes:
    """Hold every law against the architecture of `build`; returns its axes. Raises `LawBroken`."""
    axes = trace(build(), example)
    plan = random_plan(axes, seed=seed)
    for law in only:
        law(build, example, axes, plan)
    return axes
