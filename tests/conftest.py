"""What all tests share: one thread (small tensors lose by more), and the seed of the random networks, printed."""

import os

import torch

SEED = int(os.environ.get("SECATEUR_SEED", "20261122"))
"""Of the random networks; a failure names the seed of its case, and SECATEUR_SEED=... runs it again."""

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """Printed by the main process, quiet runs and runs by workers included."""
    terminalreporter.write_line(f"random networks: SECATEUR_SEED={SEED}")
