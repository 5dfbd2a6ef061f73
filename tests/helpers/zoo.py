"""The zoo: whole architectures of other libraries, one row each in `zoo.toml`, and what is held against every row.

`bench/zoo.py` runs all rows and writes `docs/zoo.md`; `tests/graph/test_zoo.py` runs the rows marked `fast`. The rows of the
library transformers are those of `families.py`.
"""

import copy
import time
import tomllib
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import families
import secateur
from secateur.core.errors import SecateurError
from secateur.core.running import call, flat
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
LARGE = 100_000_000
"""Parameters above which law 4 runs in float32, for the sake of memory and time."""
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
    for name, row in families.FAMILIES.items():
        few = row[-1] < 0.85
        yield Entry(name, "transformers", least=row[-1], reasons=("hidden states are outputs",) if few else ())
        if few:
            yield Entry(f"{name}, picked outputs", "transformers", options={"only": True}, least=families.PICKED[name][1])


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
    if entry.source == "transformers":
        return awake(families.build(entry.name.partition(",")[0], **entry.options).eval())
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
    if entry.source == "transformers":
        return families.example(entry.name.partition(",")[0])
    return torch.randn(entry.input, generator=torch.Generator().manual_seed(1))


def free_share(axes, model):
    """Share of the entries of all matrices and kernels that some free axis can cut."""
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    free = {slot.tensor for axis in axes.free for slot in axis.slots}
    return sum(n for name, n in sizes.items() if name in free) / max(sum(sizes.values()), 1)


def blame(axes, model):
    """Reason to the share of matrix and kernel entries that stand still on some side because of it.

    That inputs, outputs and kernels stay is left out where most of the model is free.
    """
    plain = free_share(axes, model) > 0.85
    sizes = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    moving = {(slot.tensor, slot.dim) for axis in axes.free for slot in axis.slots}
    still: dict[str, set[str]] = {}
    for axis in axes:
        if axis.fixed and not (plain and axis.fixed.startswith(BORDER)):
            tensors = {slot.tensor for slot in axis.slots if (slot.tensor, slot.dim) not in moving}
            still.setdefault(axis.fixed, set()).update(tensors)
    total = max(sum(sizes.values()), 1)
    cost = Counter({reason: sum(sizes.get(name, 0) for name in names) for reason, names in still.items()})
    return {reason: round(n / total, 4) for reason, n in cost.most_common(12) if n / total > 0.0005}


def half(axes, model):
    """Every axis at half its units, the heaviest."""
    return secateur.allocate.uniform(axes, secateur.score(axes, secateur.criteria.l2(model)), keep=0.5)


def law_four(model, plans, x):
    """Largest relative difference of the masked and the cut model, and the precision, float64 where it can be."""
    dtype = torch.float64 if sum(p.numel() for p in model.parameters()) <= LARGE else torch.float32
    try:
        model, x = (model.double(), doubled(x)) if dtype is torch.float64 else (model, x)
        with torch.no_grad(), Casts() as casts:
            call(model, x)
        dtype = torch.float32 if casts.seen else dtype
    except Exception:  # a forward that mixes in float32
        model, x, dtype = model.float(), floated(x), torch.float32
    return max(distance(plan.preview(model).eval(), plan.apply(model), x) for plan in plans), dtype


class Casts(TorchDispatchMode):
    """Notes whether a forward in float64 calculates with less somewhere."""

    seen = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype in (torch.float32, torch.bfloat16, torch.float16) and out.numel() > 1:
            self.seen = self.seen or any(isinstance(a, torch.Tensor) and a.dtype == torch.float64 for a in args)
        return out


def doubled(x):
    """The example in float64; whole numbers stay."""
    return tree_map_only(torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, x)


def floated(x):
    """The example in float32; whole numbers stay."""
    return tree_map_only(torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, x)


def trains(small, x):
    """Forward and backward in training mode; every parameter of the forward gets a finite gradient."""
    out = [t for t in flat(call(small.train(), x)) if isinstance(t, torch.Tensor) and t.requires_grad]
    sum((t.float() ** 2).mean() for t in out).backward()
    grads = [p.grad for p in small.parameters() if p.grad is not None]
    if not grads or not all(torch.isfinite(g).all() for g in grads):
        raise AssertionError("no finite gradient")
    small.zero_grad()
    small.eval()


def check(entry):
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
    facts["effect"] = distance(model, small, x)
    if facts["effect"] < 1e-6:
        raise AssertionError("the cut changes nothing: the output does not depend on what is cut, so law 4 says nothing")
    facts["left"] = sum(p.numel() for p in plans[1].apply(model).parameters()) / facts["params"]
    trains(small, x)
    again = secateur.trace(small, x)
    if fingerprint(small) != dict(again.fingerprint):
        raise AssertionError("the cut model's second trace is of another model")
    facts["retrace"] = sorted({a.name for a in again.free} - {a.name for a in axes.free})[:3]
    spare = [copy.deepcopy(model)]
    file_round_trip(lambda: spare.pop() if spare else build(entry), x, axes, plans[0])
    for law in (input_is_untouched, counts_are_exact, down_to_one):
        law(lambda: copy.deepcopy(model), x, axes, plans[0])
    facts["error"], dtype = law_four(model, plans, x)
    facts["dtype"] = str(dtype).removeprefix("torch.")
    if not facts["error"] <= TOLERANCE[dtype]:
        raise AssertionError(f"law 4, masked equals cut: relative error {facts['error']:.2e} in {dtype}; {facts}")
    return facts


def deploy(entry):
    """Whether the cut model exports and compiles: "yes", or why not, and whether the whole model does."""
    warnings.simplefilter("ignore")
    model, x = build(entry), example(entry)
    small = half(secateur.trace(model, x), model).apply(model)
    args, kwargs = ((), x) if isinstance(x, dict) else ((x,), {})

    def export(net):
        program = torch.export.export(net, args, kwargs, strict=False)
        return distance(net, program.module(), x)

    def compiled(net):
        torch._dynamo.reset()
        return distance(net, torch.compile(net, backend="aot_eager"), x)

    facts = {}
    for name, do in (("export", export), ("compile", compiled)):
        try:
            with torch.no_grad():
                error = do(small)
            facts[name] = "yes" if error <= 1e-4 else f"differs by {error:.0e}"
        except Exception as problem:
            facts[name] = f"{type(problem).__name__}: {problem}"[:300]
            try:
                do(model)
            except Exception:
                facts[name] = f"nor does the whole model ({type(problem).__name__})"
    return facts


def unexpected(entry, facts):
    """What the row did not foresee, or an empty string."""
    if facts["share"] < entry.least:
        return f"free share {facts['share']:.3f} below the expected {entry.least}: {facts['reasons']}"
    return ""
