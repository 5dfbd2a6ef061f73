"""`apply_` on a model in training: optimizers go on as if the gone units had never been, and nothing that was set is lost."""

import copy
import itertools

import pytest
import torch
from torch import nn, optim

from networks import ZOO
from secateur import SecateurError, trace
from secateur.testing import awake, random_plan

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, 1e-2),
    "momentum": lambda p: optim.SGD(p, 1e-2, momentum=0.9, nesterov=True, foreach=False),
    "momentum, foreach": lambda p: optim.SGD(p, 1e-2, momentum=0.9, foreach=True),
    "momentum, fused": lambda p: optim.SGD(p, 1e-2, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, 1e-2, amsgrad=True, foreach=False),
    "adamw, foreach": lambda p: optim.AdamW(p, 1e-2, foreach=True),
    "adamw, fused": lambda p: optim.AdamW(p, 1e-2, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, 1e-2, momentum=0.9, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, 1e-2),
    "adafactor": lambda p: optim.Adafactor(p, 1e-2),
}


def network(name="residual"):
    make, example = ZOO[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return awake(make()), example()


def step(model, x, optimizer):
    optimizer.zero_grad()
    loss = model(x).float().square().mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on(name):
    """The state of every surviving entry is what it was, and the next steps run."""
    model, x = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    for _ in range(3):
        step(model, x, optimizer)
    before = {n: dict(optimizer.state[p]) for n, p in model.named_parameters()}
    axes = trace(model, x)
    plan = random_plan(axes)
    cut = {}  # what each state tensor should become, by cutting it like the weight itself
    for key in {k for held in before.values() for k in held}:
        twin = copy.deepcopy(model)
        fits = [n for n, p in model.named_parameters() if getattr(before[n].get(key), "shape", None) == p.shape and p.dim()]
        with torch.no_grad():
            for n in fits:
                twin.get_parameter(n).copy_(before[n][key])
        small = plan.apply(twin)
        cut |= {(n, key): small.get_parameter(n).detach() for n in fits}
    assert plan.apply_(model, optimizer=optimizer) is model
    for n, p in model.named_parameters():
        for key, value in optimizer.state[p].items():
            if (n, key) in cut:
                assert torch.equal(value, cut[n, key]), (n, key)
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in model.parameters()]
    losses = [step(model, x, optimizer) for _ in range(3)]
    assert all(torch.isfinite(torch.tensor(losses)))


def test_the_next_step_is_that_of_the_silenced_network():
    """One step of SGD with momentum on the cut model equals the same step on a network whose dropped units are silent."""
    model, x = network("plain")
    model.eval()
    optimizer = OPTIMIZERS["momentum"](model.parameters())
    axes = trace(model, x)
    plan = random_plan(axes)
    silent = plan.preview(model)
    twin = copy.deepcopy(model)
    other = OPTIMIZERS["momentum"](twin.parameters())
    optimizer.zero_grad()
    silent(x).square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    plan.apply_(twin, optimizer=other)
    twin(x).square().mean().backward()
    carrier = copy.deepcopy(model)
    with torch.no_grad():
        for n, p in carrier.named_parameters():
            p.copy_(grads[n])
    for n, p in plan.apply(carrier).named_parameters():
        assert torch.allclose(p, twin.get_parameter(n).grad, atol=1e-6), n


def test_groups_modes_and_frozen_parameters_stay():
    model, x = network()
    for p in model.stem.parameters():
        p.requires_grad_(False)
    model.a.eval()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1 and p.requires_grad], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() == 1 and p.requires_grad], "lr": 0.5},
    ]
    optimizer = optim.AdamW(groups, 1e-3)
    step(model, x, optimizer)
    sizes = [len(g["params"]) for g in optimizer.param_groups]
    random_plan(trace(model, x)).apply_(model, optimizer=optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == sizes
    assert [(g["weight_decay"], g["lr"]) for g in optimizer.param_groups] == [(0.1, 1e-3), (0.01, 0.5)]
    assert all(p.dim() > 1 for p in optimizer.param_groups[0]["params"])
    assert not any(p.requires_grad for p in model.stem.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert model.training
    assert not model.a.training
    step(model, x, optimizer)


def test_a_scheduler_and_gradients_that_were_there():
    """A scheduler keeps turning; gradients of the old shape are not left behind."""
    model, x = network()
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    step(model, x, optimizer)
    scheduler.step()
    random_plan(trace(model, x)).apply_(model, optimizer=optimizer)
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    optimizer.step()
    step(model, x, optimizer)
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("name", ["residual", "vision transformer", "grouped query attention", "lstm"])
def test_bf16(name):
    model, x = network(name)
    model = model.to(torch.bfloat16)
    x = x.to(torch.bfloat16) if x.is_floating_point() else x
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    step(model, x, optimizer)
    random_plan(trace(model, x)).apply_(model, optimizer=optimizer)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(s["exp_avg"].dtype == torch.bfloat16 for s in optimizer.state.values())
    assert torch.isfinite(torch.tensor(step(model, x, optimizer)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["residual", "vision transformer", "grouped query attention", "lstm"])
def test_on_a_cuda_device(name, dtype):
    model, x = network(name)
    model, x = model.to("cuda", dtype), x.to("cuda", dtype) if x.is_floating_point() else x.to("cuda")
    optimizer = optim.AdamW(model.parameters(), 1e-3, fused=True)
    step(model, x, optimizer)
    plan = random_plan(trace(model, x))
    with torch.no_grad():
        masked = plan.preview(model.eval())(x)
        plan.apply_(model, optimizer=optimizer)
        cut = model(x)
    assert torch.allclose(masked, cut, atol=1e-4 if dtype is torch.float32 else 0.1)
    assert {(t.device.type, t.dtype) for t in model.parameters()} == {("cuda", dtype)}
    assert all(s["exp_avg"].is_cuda for s in optimizer.state.values())
    assert torch.isfinite(torch.tensor(step(model.train(), x, optimizer)))


def test_averaged_models_are_cut_by_the_same_plan():
    """An exponential moving average is a second model: the plan that cut the first cuts the average inside it."""
    model, x = network()
    average = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = optim.SGD(model.parameters(), 0.1)
    step(model, x, optimizer)
    average.update_parameters(model)
    plan = random_plan(trace(model, x))
    plan.apply_(model, optimizer=optimizer)
    plan.apply_(average.module)
    for _ in range(2):
        step(model, x, optimizer)
        average.update_parameters(model)
    assert all(a.shape == b.shape for a, b in zip(average.module.parameters(), model.parameters(), strict=True))
    assert torch.isfinite(average(x)).all()


def test_wrapped_models_say_what_to_unwrap():
    model, x = network()
    plan = random_plan(trace(model, x))
    wrapped = optim.swa_utils.AveragedModel(model)
    for wrapper in (wrapped, nn.DataParallel(model)):
        with pytest.raises(SecateurError, match=r"\.module"):
            plan.apply_(wrapper)


def test_an_optimizer_of_another_model_is_refused():
    model, x = network()
    other, _ = network()
    plan = random_plan(trace(model, x))
    with pytest.raises(SecateurError, match="optimizer"):
        plan.apply_(model, optimizer=optim.SGD(other.parameters(), 0.1))
    assert plan.apply_(model) is model


def test_hooks_stay():
    model, x = network()
    calls = []
    plan = random_plan(trace(model, x))
    model.a.register_forward_hook(lambda *_: calls.append("forward"))
    plan.apply_(model)
    model(x)
    assert calls == ["forward"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["residual", "vision transformer"])
def test_under_compile(name):
    model, x = network(name)
    torch._dynamo.reset()
    fast = torch.compile(model)
    optimizer = optim.AdamW(model.parameters(), 1e-3)
    step(fast, x, optimizer)
    axes = trace(model, x)
    for seed in range(2):
        plan = random_plan(axes, seed=seed, least=0.5)
        plan.apply_(model, optimizer=optimizer)
        assert torch.allclose(fast(x), model(x), atol=1e-5)
        step(fast, x, optimizer)
        axes = trace(model, x)


@pytest.mark.slow
def test_distributed(tmp_path):
    """A wrapper holds on to the parameters it was given: cut the module, then wrap it again."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model, x = network()
        wrapped = nn.parallel.DistributedDataParallel(model)
        optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
        step(wrapped, x, optimizer)
        plan = random_plan(trace(model, x))
        with pytest.raises(SecateurError, match=r"\.module"):
            plan.apply_(wrapped, optimizer=optimizer)
        plan.apply_(wrapped.module, optimizer=optimizer)
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert all(torch.isfinite(torch.tensor([step(wrapped, x, optimizer) for _ in range(2)])))
    finally:
        dist.destroy_process_group()


def test_loss_curve_equals_training_the_copy():
    """In place with a carried optimizer, and a copy with a fresh plain one, agree where the optimizer has no state."""
    model, x = network()
    plan = random_plan(trace(model, x))
    twin = plan.apply(model)
    optimizer = optim.SGD(model.parameters(), 0.05)
    plan.apply_(model, optimizer=optimizer)
    other = optim.SGD(twin.parameters(), 0.05)
    for _ in itertools.repeat(None, 4):
        assert step(model, x, optimizer) == pytest.approx(step(twin, x, other), abs=1e-7)
    assert torch.allclose(model.stem.weight, twin.stem.weight, atol=1e-7)
