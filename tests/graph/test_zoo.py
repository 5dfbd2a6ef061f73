"""The rows of `zoo.toml` that are marked fast; `make zoo` runs all of them."""

import pytest
import torch

import zoo
from secateur.core.errors import SecateurError

ROWS = list(zoo.entries())
FAST = [row for row in ROWS if row.fast]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("row", FAST, ids=lambda row: row.name)
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_another_library(row):
    try:
        zoo.build(row)
    except (SecateurError, ModuleNotFoundError) as error:
        pytest.skip(str(error))
    facts = zoo.check(row)
    assert not zoo.unexpected(row, facts)


def test_rows_are_named_once():
    names = [(row.source, row.name) for row in ROWS]
    assert len(set(names)) == len(names)


def test_every_low_share_has_a_reason():
    assert [row.name for row in ROWS if row.least < 0.85 and not row.reasons] == []
