"""What writes the responses of a step of PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from proxlm.config.setting import setting


@dataclass(frozen=True)
class EngineSettings:
    """What writes the responses of a step: this process, or vLLM servers."""

    use: Literal["native", "vllm"] = setting("native", "this process, or the vLLM servers at url")
    url: list[str] = setting(factory=list, help="the servers' addresses, http://host:port", on_resume="free")
    sink: Literal["weights", "adapter"] = setting(
        "weights",
        "what the servers load after an update: all weights, LoRA merged in, or the LoRA adapter alone",
    )
    timeout: float = setting(300.0, "seconds that one request to a server may take", gt=0, on_resume="free")
    retries: int = setting(
        3,
        "how often a response that was not written is asked for again, of another server if there is one",
        ge=0,
        on_resume="free",
    )
    wait: float = setting(
        300.0,
        "seconds to wait for a server when none is left; one that is started again gets the newest weights",
        ge=0,
        on_resume="free",
    )
    tolerance: float = setting(
        0.01,
        "largest difference, in nats, of a server's log-probs from the trainer's on fixed texts after each update;"
        " more ends the run (with a server in bfloat16 some 0.3 are usual)",
        gt=0,
        on_resume="free",
    )
    checksums: bool = setting(
        False,
        "also compare a checksum of every tensor after each update; one that differs, or that a server does not tell"
        " of, ends the run",
        on_resume="free",
    )
    folder: str = setting(
        "",
        "where policies are written for the servers, which must be able to read it; empty: served/ in the run's"
        " folder",
        on_resume="free",
        path="output",
    )
