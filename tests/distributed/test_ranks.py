"""What ranks promise, in one process and in a real process group of one; two are in train/ppo/test_two_ranks.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed

from proxlm.distributed.launch import joined_ranks
from proxlm.distributed.ranks import ONE_PROCESS, Ranks, TorchRanks
from proxlm.errors import RunError


@pytest.fixture(params=["one process", "torch"])
def ranks(request: pytest.FixtureRequest) -> Iterator[Ranks]:
    if request.param == "one process":
        yield ONE_PROCESS
        return
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield TorchRanks()
    torch.distributed.destroy_process_group()


def test_a_single_rank_gets_what_it_gave(ranks: Ranks) -> None:
    assert (ranks.rank, ranks.size) == (0, 1)
    x = torch.tensor([1.5, float("nan"), -2.0])
    for found in (ranks.sum(x), ranks.max(x)):
        assert torch.equal(found.nan_to_num(7.0), x.nan_to_num(7.0))
    kept = x.clone()
    ranks.sum_in_place([x])
    assert torch.equal(x.nan_to_num(7.0), kept.nan_to_num(7.0))
    assert ranks.broadcast(lambda: {"kl": 0.5}) == {"kl": 0.5}


def test_an_error_in_what_rank_0_makes_is_raised(ranks: Ranks) -> None:
    with pytest.raises(ValueError, match="no reward"):
        ranks.broadcast(lambda: (_ for _ in ()).throw(ValueError("no reward")))


def test_one_process_copies_nothing() -> None:
    x = torch.zeros(3)
    assert ONE_PROCESS.sum(x) is x
    assert ONE_PROCESS.max(x) is x


def test_a_rank_that_never_joins_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs as it starts, so it has given no sign at all."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # the agent's
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    addresses = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    for name, value in ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"} | addresses).items():
        monkeypatch.setenv(name, value)
    named = r"rank 0 of 2: waited 0.05 minutes .* rank 1 gives no sign of life \(last phase: the start"
    with pytest.raises(RunError, match=named), joined_ranks(0.05):
        pass
