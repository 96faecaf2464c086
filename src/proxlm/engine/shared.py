"""An engine that is all ranks': each samples its share of the requests, with its own engine on the same weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from proxlm.data.turn_end import TurnEnd
from proxlm.distributed.ranks import Ranks
from proxlm.engine.generate import Generate
from proxlm.engine.kv_cache import CachedPrefix
from proxlm.engine.protocol import Engine
from proxlm.engine.request import Request, RequestOutput
from proxlm.types import Rollout

# Of each running request, between two messages of what is finished. A conversation waits for its next turn so long.
_TOKENS = 8


def with_engine(sampler: Generate, shared: Engine) -> Generate:
    """The same sampler on this engine, whatever it is called with."""

    def sample(engine: Engine, *given: Any, **named: Any) -> Rollout:
        del engine  # this rank's own
        return sampler(shared, *given, **named)

    return sample


class Share:
    """What one rank samples of a shared rollout.

    Args:
        ranks: Who shares.
        engine: This rank's, on the policy.
    """

    def __init__(self, ranks: Ranks, engine: Engine) -> None:
        self.engine, self._ranks = engine, ranks
        self._prefixes: dict[int, CachedPrefix] = {}
        self._begun = False

    def sample(
        self, version: int, given: Sequence[list[Request]], continued: set[int]
    ) -> list[RequestOutput]:
        """Sample some tokens of this rank's requests, as all ranks do at once.

        Args:
            version: Of the weights.
            given: New requests of each rank.
            continued: The finished requests whose prefix a later one may still continue.

        Returns:
            On rank 0: what all ranks have finished, without prefixes, which stay where they are.
        """
        parts = self._ranks.gather(lambda: self._sampled(version, given[self._ranks.rank], continued))
        return [output for part in parts for output in part]

    def reset(self) -> None:
        """The rollout is over."""
        self.engine.reset()
        self._prefixes, self._begun = {}, False

    def _sampled(self, version: int, requests: list[Request], continued: set[int]) -> list[RequestOutput]:
        if not self._begun:
            self.engine.load_weights((), version)
            self._begun = True
        self._prefixes = {id: prefix for id, prefix in self._prefixes.items() if id in continued}
        if requests:
            self.engine.submit([replace(r, prefix=self._prefixes.pop(r.id, None)) for r in requests])
        outputs: list[RequestOutput] = []
        for _ in range(_TOKENS):
            if len(self.engine):
                outputs += self.engine.step()
        self._prefixes |= {o.id: o.prefix for o in outputs if o.prefix is not None}
        return [replace(output, prefix=None) for output in outputs]


class SharedEngine:
    """Rank 0's view of all ranks' engines, while the others serve; see `protocol.Engine` for the methods.

    A response depends on its request and the weights alone, so it is the one that a single process samples, up to the
    last bits that depend on which rows share a batch. All requests of a prompt are one rank's: its repeats, which are
    read once, and the turns of its conversations, which continue each other.

    Args:
        ranks: Who shares.
        share: Rank 0's.
    """

    encoder_decoder: bool

    def __init__(self, ranks: Ranks, share: Share) -> None:
        self._ranks, self._share = ranks, share
        self.encoder_decoder = share.engine.encoder_decoder
        self._forget()

    def _forget(self) -> None:
        self._given: list[list[Request]] = [[] for _ in range(self._ranks.size)]
        self._unfinished: dict[int, Request] = {}
        self._rank_of: dict[int, int] = {}
        # How much each rank has been given: requests and tokens to read. How long responses become is not known.
        self._work = [(0, 0)] * self._ranks.size
        # What stands here for the prefixes on other ranks: one that nobody holds any more is forgotten there, too.
        self._prefixes: WeakValueDictionary[int, CachedPrefix] = WeakValueDictionary()

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self._share.engine.tokenizer

    @property
    def context(self) -> int | None:
        """The model's."""
        return self._share.engine.context

    @property
    def turn_end(self) -> TurnEnd:
        """The model's."""
        return self._share.engine.turn_end

    @property
    def version(self) -> int:
        """Rank 0's."""
        return self._share.engine.version

    def __len__(self) -> int:
        return len(self._unfinished)

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, each for a rank: that of its prompt, or the one that has been given least."""
        for request in requests:
            least = min(range(self._ranks.size), key=lambda rank: self._work[rank])
            rank = self._rank_of.setdefault(request.params.seed.prompt_id, least)
            count, read = self._work[rank]
            self._work[rank] = count + 1, read + len(request.prompt)
            self._given[rank].append(request)
            self._unfinished[request.id] = request

    def step(self) -> list[RequestOutput]:
        """Some tokens of each running request."""
        if not self._unfinished:
            return []
        continued = set(self._prefixes)
        given = [[replace(request, prefix=None) for request in part] for part in self._given]
        self._given = [[] for _ in given]
        self._ranks.call("sample", self.version, given, continued)
        return [self._finished(output) for output in self._share.sample(self.version, given, continued)]

    def _finished(self, output: RequestOutput) -> RequestOutput:
        if not self._unfinished.pop(output.id).keep_prefix:
            return output
        prefix = self._prefixes[output.id] = CachedPrefix(torch.empty(0), torch.empty(0))
        return replace(output, prefix=prefix)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Of rank 0; the others' are the same tensors' copies, and get the version with the next requests."""
        self._share.engine.load_weights(weights, version)

    def reset(self) -> None:
        """Drop unfinished requests and what the ranks have cached."""
        self._ranks.call("reset_share")
        self._share.reset()
        self._forget()

    def close(self) -> None:
        """The same."""
        self.reset()
