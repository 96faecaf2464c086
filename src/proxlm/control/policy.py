"""A learned policy by itself: saved, loaded, and shown as a GIF."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from proxlm.config import ControlConfig, NetworkSettings
from proxlm.control.network import Agent, segments_for
from proxlm.control.normalise import Scale, VectorStatistics, scale_for
from proxlm.control.spaces import Spaces, spaces_of
from proxlm.control.trajectories import scale_observations
from proxlm.errors import ConfigError, RunError
from proxlm.files import check_regular, read_regular
from proxlm.runlog.outputs import title_of
from proxlm.seeds import Purpose, derive_seed
from proxlm.text import reason_of

MAX_FRAMES = 1000


def save_policy(folder: Path, agent: Agent, observations: VectorStatistics, config: ControlConfig) -> None:
    """Write policy.safetensors (weights; shift and factor of observations) and policy.json (environment, network)."""
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {name: p.detach() for name, p in agent.named_parameters()}
    scale = scale_for(config.environment, observations)
    if scale is not None:
        tensors |= {"scale.shift": scale.shift, "scale.factor": scale.factor}
    save_file(tensors, folder / "policy.safetensors")
    about = {
        "environment": config.environment.id,
        "clip": config.environment.clip,
        "model": asdict(config.model),
    }
    (folder / "policy.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def load_policy(folder: Path, spaces: Spaces) -> tuple[Agent, Scale | None]:
    """The agent and the scale of its observations, as `save_policy` wrote them. Raises RunError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        about = json.loads(read_regular(folder / "policy.json", 2**20))
        check_regular(folder / "policy.safetensors")
        tensors = load_file(folder / "policy.safetensors")
        shift, factor = tensors.pop("scale.shift", None), tensors.pop("scale.factor", None)
        agent = Agent(spaces, NetworkSettings(**about["model"]), seed=0)
        agent.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{folder}: not a policy for this environment: {reason_of(error)}") from error
    return agent, None if shift is None or factor is None else Scale(shift, factor, about["clip"])


@torch.no_grad()
def play(
    agent: Agent,
    scale: Scale | None,
    environment: Any,
    spaces: Spaces,
    seed: int,
    max_steps: int = MAX_FRAMES,
    on_step: Callable[[], None] | None = None,
) -> float:
    """Play one episode of the likeliest actions.

    Args:
        agent: The policy.
        scale: Of its observations.
        environment: A Gymnasium environment.
        spaces: Its spaces.
        seed: Of the episode.
        max_steps: Steps after which it is ended.
        on_step: Called before each step.

    Returns:
        The sum of its rewards.
    """
    observation, _ = environment.reset(seed=derive_seed(seed, Purpose.PLAY) >> 32)
    total, offsets = 0.0, torch.arange(2)
    segments = segments_for(offsets, agent.initial_state(1) if agent.units else None)
    for _ in range(max_steps):
        if on_step is not None:
            on_step()
        x = scale_observations(torch.from_numpy(spaces.flat_observation(observation)).unsqueeze(0), scale)
        choice, state = agent.act(x, segments)
        segments = segments_for(offsets, state)
        observation, reward, terminated, truncated, _ = environment.step(
            spaces.to_environment(choice.mode().numpy())[0]
        )
        total += float(reward)
        if terminated or truncated:
            break
    return total


def gif_problem(make: Callable[[], Any]) -> str | None:
    """Why no GIF can be made, or None: pictures need Pillow and whatever the environment draws with."""
    try:
        import PIL.Image  # noqa: F401

        environment = make()
        environment.reset(seed=0)
        frame = environment.render()
        environment.close()
    except ImportError as error:
        return f"{error}; pip install proxlm[control]"
    except ConfigError as error:
        return str(error)
    except Exception as error:  # an environment draws with whatever it likes
        return f"{type(error).__name__}: {error}; pip install proxlm[control] if a package is missing"
    return None if getattr(frame, "ndim", 0) == 3 else "the environment draws no picture (rgb_array)"


def write_gif(path: Path, agent: Agent, scale: Scale | None, environment: Any, name: str, seed: int) -> float:
    """Play one episode of an environment that draws, and write it as a GIF.

    Args:
        path: The file to write.
        agent: The policy.
        scale: Of its observations.
        environment: A Gymnasium environment with render_mode "rgb_array".
        name: Its name, for messages.
        seed: Of the episode.

    Returns:
        The sum of the episode's rewards.
    """
    from PIL import Image

    frames: list[Any] = []

    def draw() -> None:
        picture = Image.fromarray(environment.render())
        picture.thumbnail((300, 300))
        frames.append(picture.quantize(32))

    total = play(agent, scale, environment, spaces_of(environment, name), seed, on_step=draw)
    rate = float(environment.metadata.get("render_fps") or 30)
    # A GIF counts in hundredths of a second, and viewers slow down frames shorter than two of them.
    every = max(1, round(rate / 25))
    path.parent.mkdir(parents=True, exist_ok=True)
    frames[0].save(
        path,
        save_all=True,
        append_images=frames[every::every],
        duration=round(1000 * every / rate),
        loop=0,
        comment=title_of("control").encode(),
    )
    return total
