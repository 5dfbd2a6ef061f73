"""Evolution: it finds what a brute search finds, ages, repeats, and replays."""

import numpy as np
import pytest
import torch

import handmade
from secateur import allocate, criteria, score
from secateur.core.errors import SecateurError
from secateur.search import EvolutionSettings, drive, evolve, gaussian, legr
from secateur.search.legr import mapped


def budget(axes, scores):
    return allocate.budget(axes, scores, {"macs": 0.5}, normalise="none", floor=0.0)


def test_legr_starts_at_plain_norms_and_learns_to_spare_a_layer():
    model = handmade.small()
    axes = handmade.axes(model)
    norms = {name: values**2 for name, values in score(axes, criteria.l2(model, group=False)).items()}
    seen = []

    def judge(plan):  # best is the plan that keeps as much of axis "one" as the budget allows
        seen.append(plan)
        return float(plan.widths()["one"][0] - plan.widths()["one"][1])

    found = drive(legr(axes, norms, budget, EvolutionSettings(population=8, tournament=4, trials=60)), judge)
    assert seen[0] == budget(axes, norms)
    assert len(seen) == 60
    assert found.loss == min(judge(plan) for plan in list(seen)) < judge(seen[0])
    assert found.plan == budget(axes, mapped(norms, found.genome))
    assert list(found.best) == sorted(found.best, reverse=True)
    again = drive(legr(axes, norms, budget, EvolutionSettings(population=8, tournament=4, trials=60)), judge)
    assert np.array_equal(again.genome, found.genome)


def test_vectors_evolve_towards_a_goal_and_the_old_die():
    axes = handmade.axes(handmade.small())
    goal, genomes = np.array([1.0, -2.0, 3.0]), []

    def plan_of(genome):
        genomes.append(genome)
        return axes.plan({})

    search = evolve(np.zeros(3), gaussian(0.5), plan_of, EvolutionSettings(population=10, tournament=5, trials=300, seed=1))
    found = drive(search, lambda plan: float(((genomes[-1] - goal) ** 2).sum()))
    assert found.loss < 0.1 < ((genomes[0] - goal) ** 2).sum()
    assert np.array_equal(genomes[0], np.zeros(3))
    parents = [min(range(max(0, i - 10), i), key=lambda j: np.abs(genomes[j] - genomes[i]).sum()) for i in range(10, 300)]
    assert all(i - parent <= 10 for i, parent in enumerate(parents, 10))


def test_a_loss_that_is_no_number_is_never_the_best():
    axes = handmade.axes(handmade.small())
    losses = iter([float("nan"), 3.0, float("nan"), 1.0, 2.0, float("nan"), 5.0, 4.0])
    search = evolve(np.zeros(2), gaussian(1.0), lambda genome: axes.plan({}), EvolutionSettings(4, 2, 8))
    found = drive(search, lambda plan: next(losses))
    assert found.loss == 1.0
    assert found.genome.any()
    assert found.best == (np.inf, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0)


def test_a_mutation_touches_a_share():
    draw = np.random.default_rng(0)
    child = gaussian(1.0, share=0.25)(np.zeros(10_000), draw, 0.0)
    assert 0.2 < (child != 0).mean() < 0.3
    assert 0.9 < child[child != 0].std() < 1.1


@pytest.mark.parametrize("wrong", [{"population": 0}, {"trials": 1.5}, {"population": 4, "tournament": 5}])
def test_settings_out_of_range(wrong):
    with pytest.raises(SecateurError):
        EvolutionSettings(**wrong)


def test_scores_are_the_affine_map():
    norms = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    found = mapped(norms, np.array([[2.0, 1.0], [1.0, -1.0]]))
    assert {name: values.tolist() for name, values in found.items()} == {"a": [3.0, 5.0], "b": [2.0]}
