"""The seam between everything that samples and whatever generates the tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import Tensor

from proxlm.data.turn_end import TurnEnd
from proxlm.engine.request import Request, RequestOutput


class Engine(Protocol):
    """Generates texts, many at once, with weights that are replaced from time to time.

    `NativeEngine` (native.py) does this in the trainer's own process. Another one, such as vLLM in a server of its
    own, would be a module beside native.py with these methods, and has to keep these promises:

    * Token ids in, token ids out. A prompt is never tokenised again, and a response is exactly the tokens sampled,
      EOS or the tokens of a stop text included. Texts are made from token ids outside the engine.
    * `RequestOutput.logprobs` are those of the sampled tokens in the distribution they were sampled from, after
      temperature and filters (vLLM: processed log-probs), for every token of the response.
    * `RequestOutput.mask` holds the sets that the filters left, where the request keeps them: those of sampling, not
      computed again. An engine that does not have them returns None, and a rollout that needs them is refused.
    * `version` names the weights that every token of a running request was sampled with. `load_weights` therefore
      refuses to run while requests are unfinished, and afterwards nothing computed with older weights is used: no
          key or
      value in a cache, no prefix of a finished request, no prepared copy.
    * What is sampled depends on the request and the weights alone. An engine that cannot use the counters of
      `SampleSeed` as the native one does may derive a seed of its own from them; its runs are then repeatable with
      that engine only.
    * A `CachedPrefix` is an offer. An engine with a prefix cache of its own returns None and ignores
      `Request.prefix`.
    """

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer (transformers)."""

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens, prompt and response; None: no limit. Of an encoder–decoder, of each side."""

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the prompt, so that a response is a text by itself."""

    @property
    def turn_end(self) -> TurnEnd:
        """The tokens that end a turn of the model, so that every request ends with them."""

    @property
    def version(self) -> int:
        """Which weights are loaded: the number that `load_weights` was last called with, 0 before."""

    def __len__(self) -> int:
        """How many requests are unfinished."""

    def submit(self, requests: Iterable[Request]) -> None:
        """Queue requests, in this order, behind those that wait. Allowed at any time."""

    def step(self) -> list[RequestOutput]:
        """Generate one token of each running request (an engine may generate several).

        Returns:
            The requests that finished with it. Empty if nothing is unfinished.
        """

    def load_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Use other weights from now on.

        Args:
            weights: names, as in the network's `named_parameters`, and tensors; those left out stay as they are.
            version: number of these weights.

        Raises:
            RuntimeError: requests are unfinished.
            ModelError: a name or a shape that the model does not have.
        """

    def reset(self) -> None:
        """Drop unfinished requests and free the memory that only generating needs (KV cache, prepared weights)."""

    def close(self) -> None:
        """Free everything the engine holds. It is not used again."""
