"""What all tests share: one thread (small tensors lose by more), the seed of the random networks, printed, and the command."""

import os

import pytest
import torch

SEED = int(os.environ.get("SECATEUR_SEED", "20261122"))
"""Of the random networks; a failure names the seed of its case, and SECATEUR_SEED=... runs it again."""

torch.set_num_threads(1)
os.environ.setdefault(
    "SECATEUR_ENGINE_OTHERS", "off"
)  # exporting networks to other runtimes takes seconds; its own tests do it


def pytest_terminal_summary(terminalreporter):
    """Printed by the main process, quiet runs and runs by workers included."""
    terminalreporter.write_line(f"random networks: SECATEUR_SEED={SEED}")


@pytest.fixture(autouse=True)
def _seeded():
    """What a test draws does not hang on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """One thread in the test whatever ran before it, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def call(capsys):
    """(exit code, standard output, standard error) of one command."""
    from secateur.cli.main import main

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        printed = capsys.readouterr()
        return int(left.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def few_kernels(monkeypatch):
    """Fewer kernels tried, one run each, none remembered: these tests ask what comes out, not how fast."""
    from secateur.runtime import tune

    monkeypatch.setattr(tune, "TILES", dict.fromkeys(tune.TILES, (2, 3)))
    monkeypatch.setattr(tune, "WIDE", dict.fromkeys(tune.WIDE, (1,)))
    monkeypatch.setattr(tune, "HALF_TILES", dict.fromkeys(tune.HALF_TILES, (1, 2)))
    monkeypatch.setattr(tune, "HALF_WIDE", dict.fromkeys(tune.HALF_WIDE, (1,)))
    monkeypatch.setenv("SECATEUR_ENGINE_REMEMBER", "off")
    monkeypatch.setattr(tune._Remembered, "known", {})


@pytest.fixture
def one_int8_kernel(monkeypatch):
    """One int8 kernel tried, none remembered, batches whole, and int8 taken whatever is faster."""
    from secateur.runtime import plan, tune

    monkeypatch.setattr(tune, "BYTE_TILES", dict.fromkeys(tune.BYTE_TILES, (1,)))
    monkeypatch.setattr(tune, "BYTE_WIDE", dict.fromkeys(tune.BYTE_WIDE, (1,)))
    monkeypatch.setattr(tune, "TILES", dict.fromkeys(tune.TILES, (2,)))
    monkeypatch.setenv("SECATEUR_ENGINE_REMEMBER", "off")
    monkeypatch.setattr(tune._Remembered, "known", {})
    monkeypatch.setattr(plan, "forms_of", lambda size: (size,))
    monkeypatch.setattr(plan, "_better_dense", lambda *_: {})
    monkeypatch.setattr(plan, "dense_floor", lambda *_: 1e18)
    monkeypatch.setattr(plan, "_ways", lambda graph, values, inputs, threads: [(1, len(inputs[0]), threads)])
