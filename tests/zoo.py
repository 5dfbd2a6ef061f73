"""The zoo: whole architectures of other libraries, one row each in `zoo.toml`, and what is held against every row.

`bench/zoo.py` runs all rows and writes `docs/zoo.md`; `tests/test_zoo.py` runs the rows marked `fast`.
"""

import time
import tomllib
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.core.errors import SecateurError
from secateur.graph.record import flat
from secateur.surgery import fingerprint
from secateur.testing import (
    awake,
    counts_are_exact,
    distance,
    down_to_one,
    file_round_trip,
    input_is_untouched,
    random_plan,
)

TABLE = Path(__file__).with_name("zoo.toml")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
BORDER = (
    "it is a dimension of the model's input",
    "it is a dimension of the model's output",
    "kernel",
    "the forward writes how many",
)


@dataclass(frozen=True)
class Entry:
    """One architecture: where it comes from, how small an input it takes, and what may be expected of it."""

    name: str
    source: str
    input: tuple[int, ...] = (2, 3, 64, 64)
    options: dict = field(default_factory=dict)
    least: float = 0.85
    reasons: tuple[str, ...] = ()
    family: str = ""
    refused: str = ""
    fast: bool = False
    single: bool = False


def entries():
    """Rows of the table in order."""
    with TABLE.open("rb") as file:
        table = tomllib.load(file)
    for source, rows in table.items():
        for name, row in rows.items():
            row = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
            if "size" in row:
                size = row.pop("size")
                row["input"] = (2, 3, size, size)
            yield Entry(name, source, **row)


class DetectionParts(nn.Module):
    """What a detection model computes before boxes are chosen by value: backbone, pyramid and heads, under their own names."""

    def __init__(self, model):
        super().__init__()
        for name, child in model.named_children():
            if name not in ("transform", "anchor_generator"):
                self.add_module(name, child)

    def forward(self, x):
        features = self.backbone(x)
        levels = list(features.values())
        if hasattr(self, "head"):
            return self.head(levels)
        boxes = self.rpn.head(levels)
        regions = F.adaptive_avg_pool2d(levels[0], 7)  # stands in for RoIAlign, which reads values of boxes
        found = self.roi_heads.box_predictor(self.roi_heads.box_head(regions))
        if self.roi_heads.mask_predictor is not None:
            found = (*found, self.roi_heads.mask_predictor(self.roi_heads.mask_head(regions)))
        if self.roi_heads.keypoint_predictor is not None:
            found = (*found, self.roi_heads.keypoint_predictor(self.roi_heads.keypoint_head(regions)))
        return boxes, found


def build(entry):
    """A fresh model with values that show mistakes."""
    torch.manual_seed(0)
    if entry.source == "timm":
        from secateur.io.vision import torchvision

        torchvision()  # where its operators do not fit, timm cannot import it either
        import timm

        return awake(timm.create_model(entry.name, **entry.options).eval())
    from secateur.io.vision import torchvision

    options = {"weights": None, **entry.options}
    if entry.source == "detection":
        return awake(DetectionParts(torchvision().models.get_model(entry.name, weights_backbone=None, **options)).eval())
    if entry.source == "segmentation":
        options["weights_backbone"] = None
    return awake(torchvision().models.get_model(entry.name, **options).eval())


def example(entry):
    """An input of the size in the table."""
    return torch.randn(entry.input, generator=torch.Generator().manual_seed(1))


def free_share(axes, model):
    """Share of the entries of all matrices and kernels that some free axis can cut."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    free = {slot.tensor for axis in axes.free for slot in axis.slots}
    return sum(n for name, n in sizes.items() if name in free) / max(sum(sizes.values()), 1)


def blame(axes, model):
    """Reason to the share of matrix and kernel entries that stand still on some side because of it."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    moving = {(slot.tensor, slot.dim) for axis in axes.free for slot in axis.slots}
    cost = Counter()
    for axis in axes:
        if axis.fixed and not axis.fixed.startswith(BORDER):
            still = {slot.tensor for slot in axis.slots if (slot.tensor, slot.dim) not in moving}
            cost[axis.fixed] += sum(sizes.get(name, 0) for name in still)
    total = max(sum(sizes.values()), 1)
    return {reason: round(n / total, 4) for reason, n in cost.most_common(12) if n / total > 0.0005}


def half(axes, model):
    """Every axis at half its units, the heaviest."""
    return secateur.allocate.uniform(axes, secateur.score(axes, secateur.criteria.l2(model)), keep=0.5)


def law_four(model, plans, x):
    """Largest relative difference of the masked and the cut model, in float64 where the forward allows it."""
    try:
        model, x = model.double(), x.double()
        with torch.no_grad():
            model(x)
    except Exception:  # a forward that casts to float32 somewhere
        model, x = model.float(), x.float()
    return max(distance(plan.preview(model).eval(), plan.apply(model), x) for plan in plans), x.dtype


def trains(small, x):
    """Forward and backward in training mode; every parameter of the forward gets a finite gradient."""
    out = [t for t in flat(small.train()(x)) if isinstance(t, torch.Tensor) and t.requires_grad]
    sum((t.float() ** 2).mean() for t in out).backward()
    grads = [p.grad for p in small.parameters() if p.grad is not None]
    if not grads or not all(torch.isfinite(g).all() for g in grads):
        raise AssertionError("no finite gradient")
    small.zero_grad()
    small.eval()


def check(entry, *, export=True, compiled=False):
    """Facts of one row; raises where a law does not hold, `SecateurError` where secateur refuses the model."""
    warnings.simplefilter("ignore")
    model, x = build(entry), example(entry)
    start = time.perf_counter()
    axes = secateur.trace(model, x)
    first = time.perf_counter() - start
    if first < 5:
        start = time.perf_counter()
        axes = secateur.trace(model, x)
    facts = {"seconds": time.perf_counter() - start, "params": sum(p.numel() for p in model.parameters())}
    facts |= {"share": free_share(axes, model), "axes": len(axes), "free": len(axes.free)}
    facts |= {"reasons": blame(axes, model), "notes": list(axes.notes)}
    if not axes.free:
        raise SecateurError(f"a trace of {entry.name}", "no axis that can be cut", "see the reasons")
    plans = [random_plan(axes), half(axes, model)]
    small = plans[0].apply(model)
    facts["left"] = sum(p.numel() for p in plans[1].apply(model).parameters()) / facts["params"]
    trains(small, x)
    again = secateur.trace(small, x)
    if {a.name for a in again.free} - {a.name for a in axes.free} or fingerprint(small) != dict(again.fingerprint):
        facts["retrace"] = sorted({a.name for a in again.free} - {a.name for a in axes.free})[:3]
    for law in (file_round_trip, input_is_untouched, counts_are_exact, down_to_one):
        law(lambda: build(entry), x, axes, plans[0])
    if export:
        torch.export.export(small, (x,), strict=False)
    if compiled:
        torch._dynamo.reset()
        facts["compiled"] = distance(small, torch.compile(small), x)
    facts["error"], dtype = law_four(model, plans, x)
    facts["dtype"] = str(dtype).removeprefix("torch.")
    if not facts["error"] <= TOLERANCE[dtype]:
        raise AssertionError(f"law 4, masked equals cut: relative error {facts['error']:.2e} in {dtype}; {facts}")
    return facts


def unexpected(entry, facts):
    """What the row did not foresee, or an empty string."""
    if facts["share"] < entry.least:
        return f"free share {facts['share']:.3f} below the expected {entry.least}: {facts['reasons']}"
    return ""
