"""Evaluation, losses and distillation against NumPy, and the networks of the own zoo against what was published of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scripts import DATA
from secateur import data
from secateur.core.errors import SecateurError
from secateur.recipes import zoo
from secateur.train import FitSettings, cross_entropy, distillation, evaluate, fit, taught
from small_training import batches, net, weights

absent = pytest.mark.skipif(not (DATA / "cifar10").is_dir(), reason="no data folder: set SECATEUR_DATA")

pytestmark = pytest.mark.usefixtures("one_thread")


def test_evaluation_equals_numpy_and_changes_nothing() -> None:
    model, given = net().train(), batches().plain()
    model[1].eval()
    before = weights(model)
    found = evaluate(model, given)
    reference = net().eval()
    output = np.concatenate([reference(x).detach().double().numpy() for x, _ in given])
    labels = given.y.numpy()
    shifted = output - output.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(50), labels]
    assert found["accuracy"] == pytest.approx((output.argmax(1) == labels).mean())
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert torch.equal(weights(model), before)
    assert model.training
    assert not model[1].training


def test_evaluation_of_a_regression_has_no_accuracy_and_nan_is_an_error() -> None:
    model, pairs = nn.Linear(3, 1), [(torch.ones(4, 3), torch.zeros(4, 1))]
    found = evaluate(model, pairs, loss=F.mse_loss)
    assert list(found) == ["loss"]
    assert found["loss"] == pytest.approx(float(model(torch.ones(1, 3)).detach().square()), rel=1e-5)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(SecateurError, match="not numbers"):
        evaluate(model, pairs, loss=F.mse_loss)
    history = fit(nn.Linear(3, 1), pairs, FitSettings(epochs=1), loss=F.mse_loss, evaluate=lambda model: 0.5)
    assert "train_accuracy" not in history[0]
    assert history[0]["holdout_accuracy"] == 0.5


def test_cross_entropy_smooths() -> None:
    output, target = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
    chances = np.exp([2.0, 0.0]) / np.exp([2.0, 0.0]).sum()
    assert float(cross_entropy(0.2)(output, target)) == pytest.approx(-(0.9 * np.log(chances[0]) + 0.1 * np.log(chances[1])))


def test_distillation_equals_the_equation() -> None:
    dice = np.random.default_rng(0)
    student, teacher, labels = dice.normal(size=(5, 4)), dice.normal(size=(5, 4)), dice.integers(0, 4, 5)

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    p, q, alpha, temperature = softmax(teacher / 3), softmax(student / 3), 0.7, 3.0
    wanted = alpha * temperature**2 * (p * np.log(p / q)).sum(1).mean()
    wanted += (1 - alpha) * -np.log(softmax(student)[np.arange(5), labels]).mean()
    target = (torch.tensor(labels), torch.tensor(teacher))
    assert float(distillation(alpha, temperature)(torch.tensor(student), target)) == pytest.approx(wanted)
    with pytest.raises(SecateurError, match="alpha"):
        distillation(1.5)


def test_a_student_is_taught_by_what_the_teacher_says_in_evaluation_mode() -> None:
    teacher, given = net(1, dropout=0.5), batches()
    lesson = taught(given, teacher)
    (x, (y, answer)), (x2, y2) = next(lesson.epoch(3)), next(given.epoch(3))
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    assert torch.equal(answer, teacher.eval()(x))
    assert not answer.requires_grad
    assert len(lesson) == 4
    history = fit(net(), lesson, FitSettings(epochs=1, lr=0.01), loss=distillation())
    assert 0 <= history[0]["train_accuracy"] <= 1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("cifar_resnet20_a", 269_722), ("cifar_resnet56_a", 853_018), ("vgg16_bn_cifar", 14_991_946)],
)
def test_zoo_networks_have_the_published_sizes(name: str, parameters: int) -> None:
    model = zoo.build(name).eval()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_zoo_names() -> None:
    assert zoo.build("digits_resnet", blocks=2)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(SecateurError, match="did you mean 'cifar_resnet56_a'"):
        zoo.build("cifar_resnet56a")
    for wrong in ({"depth": 21}, {"option": "c"}):
        with pytest.raises(SecateurError, match="no such"):
            zoo.cifar_resnet(**wrong)  # type: ignore[arg-type]


@pytest.mark.data
@absent
@pytest.mark.parametrize(
    ("name", "how", "accuracy"),
    [
        ("resnet20_a", "imagenet", 0.9173),
        ("resnet20_b", "half", 0.9171),
        ("resnet56_a", "imagenet", 0.9339),
    ],
)
@pytest.mark.parametrize("images", [1000, pytest.param(10000, marks=pytest.mark.slow)])
def test_published_weights_reach_their_published_accuracy(name: str, how: str, accuracy: float, images: int) -> None:
    """On all test images to the digit, on the first of them within the error of so few."""
    from safetensors.torch import load_file

    model = zoo.build(f"cifar_{name}")
    model.load_state_dict(load_file(DATA / "weights" / f"cifar10_{name}.safetensors"))
    test = data.loaders(data.cifar10(DATA).normalised(how), data.BatchSettings(holdout=0)).test
    within = 1e-4 if images == 10000 else 2 * (accuracy * (1 - accuracy) / images) ** 0.5
    assert evaluate(model, test.first(images))["accuracy"] == pytest.approx(accuracy, abs=within)
