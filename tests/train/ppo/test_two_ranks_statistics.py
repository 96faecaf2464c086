"""Two real processes over gloo whiten and weigh as one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from proxlm.rl.advantages import whiten
from proxlm.rl.losses import token_weights

VALUES = torch.arange(9.0).square() - 7
MASK = torch.tensor([True, True, False, True, True, True, False, True, True])
OFFSETS = torch.tensor([0, 4, 5, 9])
# Row 0 on rank 0; rows 1 and 2 on rank 1.
PARTS = ((slice(0, 4), torch.tensor([0, 4])), (slice(4, 9), torch.tensor([0, 1, 5])))
AGGREGATIONS = ("token", "sequence", "fixed")


def over_ranks(total: Tensor) -> Tensor:
    total = total.clone()
    dist.all_reduce(total)
    return total


def one_rank(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    part, offsets = PARTS[rank]
    found = {"whitened": whiten(VALUES[part], MASK[part], reduce=over_ranks)}
    for name in AGGREGATIONS:
        found[name] = token_weights(MASK[part], offsets, name, 8, over_ranks)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.checklist(8)
@pytest.mark.checklist(18)
def test_two_ranks_are_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(one_rank, args=(port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.allclose(torch.cat([p["whitened"] for p in parts]), whiten(VALUES, MASK), atol=1e-6)
    for name in AGGREGATIONS:
        both = torch.cat([p[name] for p in parts])
        assert torch.allclose(both, token_weights(MASK, OFFSETS, name, 8))
