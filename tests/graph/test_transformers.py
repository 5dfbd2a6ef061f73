"""Twenty families of the library transformers under the laws; skipped where it is not installed."""

import warnings

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("transformers")

from families import FAMILIES, PICKED, build, example
from secateur.graph import trace
from secateur.surgery import fingerprint
from secateur.testing import (
    awake,
    counts_are_exact,
    distance,
    down_to_one,
    file_round_trip,
    input_is_untouched,
    preview_equals_apply,
    random_plan,
)
from zoo import free_share, half

LAWS = (preview_equals_apply, file_round_trip, input_is_untouched, counts_are_exact, down_to_one)
EXPORTED = ("bert", "llama", "vit", "segformer")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def quiet():
    """Deprecations inside another library are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trains(small, inputs):
    """Forward and backward in training mode: every parameter that takes part has a finite gradient."""
    out = [t for t in small.train()(**inputs).to_tuple() if isinstance(t, torch.Tensor) and t.requires_grad]
    sum((t.float() ** 2).mean() for t in out).backward()
    grads = [p.grad for p in small.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)
    small.zero_grad()
    return small.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_laws(family):
    def fresh():
        return awake(build(family))

    model, inputs = fresh().eval(), example(family)
    axes = trace(model, inputs)
    assert free_share(axes, model) >= FAMILIES[family][4]
    assert not axes.notes
    plans = [random_plan(axes), half(axes, model)]
    for plan in plans:
        for law in LAWS if plan is plans[0] else (preview_equals_apply, counts_are_exact):
            law(fresh, inputs, axes, plan)
    small = trains(plans[0].apply(model), inputs)
    again = trace(small, inputs)
    assert dict(again.fingerprint) == fingerprint(small)
    assert {axis.name for axis in again.free} <= {axis.name for axis in axes.free}
    preview_equals_apply(lambda: small, inputs, again, random_plan(again, seed=1))


@pytest.mark.parametrize("family", PICKED)
def test_only_what_is_used_keeps_its_shape(family):
    """Hidden states among the outputs hold the width; `output` lets it go, and what remains is cut exactly."""
    names, least = PICKED[family]
    model, inputs = awake(build(family)).eval(), example(family)
    axes = trace(model, inputs, output=lambda out: [out[name] for name in names])
    assert free_share(axes, model) >= least
    plan = random_plan(axes)
    masked, cut = plan.preview(model).eval(), plan.apply(model)
    with torch.no_grad():
        for name in names:
            one, two = masked(**inputs)[name], cut(**inputs)[name]
            assert (one - two).abs().max() <= 1e-5 * one.abs().max()
    axes = trace(awake(build(family, only=True)).eval(), inputs)
    preview_equals_apply(lambda: awake(build(family, only=True)), inputs, axes, random_plan(axes, seed=1))


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "t5"])
def test_attention_written_out(family):
    """The same models with attention as matrix products and a softmax."""
    model, inputs = awake(build(family, attn_implementation="eager")).eval(), example(family)
    axes = trace(model, inputs)
    assert {"channel", "head", "head_dim"} <= {axis.kind for axis in axes.free}
    preview_equals_apply(lambda: model, inputs, axes, random_plan(axes))


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_padding_and_labels(family):
    """What a cut model returns for padded batches, and its loss, are those of the masked one."""
    model, inputs = awake(build(family)).eval(), example(family)
    axes = trace(model, inputs)
    plan = random_plan(axes)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    labels = torch.tensor([0, 1]) if family == "bert" else inputs["input_ids"]
    inputs = {**inputs, "attention_mask": mask, "labels": labels}
    assert distance(plan.preview(model).eval(), plan.apply(model), inputs) < 1e-5


def test_whole_groups_of_query_heads():
    """A key-value head goes with all queries that read it; a query goes from every group."""
    axes = trace(build("llama"), example("llama"))
    heads = [axis for axis in axes.free if axis.kind == "head" and ".layers.0." in axis.name]
    assert [axis.units for axis in heads] == [2, 2]
    tensors = [{slot.tensor.split(".")[-2] for slot in axis.slots if slot.dim >= 0} for axis in heads]
    assert tensors == [{"q_proj", "k_proj", "v_proj", "o_proj"}, {"q_proj", "o_proj"}]
    plan = axes.plan({heads[0].name: [1], heads[1].name: [0]})
    attention = plan.apply(build("llama")).model.layers[0].self_attn
    assert (attention.q_proj.out_features, attention.k_proj.out_features) == (6, 6)


def test_tied_embeddings_stay_tied():
    model = build("gpt2")
    axes = trace(model, example("gpt2"))
    small = half(axes, model).apply(model)
    assert small.lm_head.weight is small.transformer.wte.weight
    assert small.transformer.wte.weight.shape == (64, 12)
    block = small.transformer.h[0]
    assert (block.mlp.c_fc.nf, block.mlp.c_proj.nf, block.attn.c_proj.nf) == (48, 12, 12)


def test_generation_runs():
    """A cut language model generates with its cache, and the same words without it."""
    model = awake(build("llama")).eval()
    axes = trace(model, example("llama"))
    small = half(axes, model).apply(model)
    start = example("llama")["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(small.generate(start, **options), small.generate(start, use_cache=False, **options))


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_exports_and_compiles(family):
    model, inputs = awake(build(family)).eval(), example(family)
    small = half(trace(model, inputs), model).apply(model)
    with torch.no_grad():
        want = small(**inputs).logits
        program = torch.export.export(small, (), inputs, strict=False)
        assert torch.allclose(program.module()(**inputs).logits, want, atol=1e-5)
        torch._dynamo.reset()
        assert torch.allclose(torch.compile(small)(**inputs).logits, want, atol=1e-5)


def test_loss_of_a_cut_model_falls():
    model, inputs = build("vit"), example("vit")
    small = half(trace(model, inputs), model).apply(model).train()
    optimizer, target = torch.optim.AdamW(small.parameters(), 3e-3), torch.tensor([0, 1])
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(small(**inputs).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
