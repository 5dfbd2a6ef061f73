"""What all tests share: one thread (small tensors lose by more), the seed of the random networks, printed, and the command."""

import os

import pytest
import torch

SEED = int(os.environ.get("SECATEUR_SEED", "20261122"))
"""Of the random networks; a failure names the seed of its case, and SECATEUR_SEED=... runs it again."""

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Printed by the main process, quiet runs and runs by workers included."""
    terminalreporter.write_line(f"random networks: SECATEUR_SEED={SEED}")


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
