"""Games of the package textarena, as `environment.use = "textarena:TicTacToe-v0"`."""

from __future__ import annotations

import copy
import random
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from proxlm.environments.protocol import Answer, Task
from proxlm.environments.user_function import user_function
from proxlm.errors import ConfigError, RunError, UserError
from proxlm.text import reason_of, suggestion

# The games draw from Python's one generator, so one conversation at a time has it.
_GENERATOR = threading.Lock()
_BRACKETS = re.compile(r"\[[^\[\]\n]{1,40}\]")
# What a random opponent tries, one kind after another, if the game lists no moves.
_TRIED = (
    [f"[{n}]" for n in range(21)],
    [f"[{a} {b}]" for a in range(8) for b in range(8)],
    [f"[{letter}{n}]" for letter in "ABCDEFGHIJ" for n in range(10)],
)


class TextArena:
    """A game for one player, or for two against an opponent; what it pays at its end is the reward.

    A move that the game refuses is answered as the game says; by default the second one in a row loses. A reply
    without brackets gets them where the game's own wrapper would add them.

    Args:
        game: its name in textarena, TicTacToe-v0 for instance.
        opponent: "random" makes legal moves at random; or path/to/file.py:function, from all that the opponent has
            been told, a text, to its reply.
        player: which one of two the policy is, 0 or 1; 0 moves first.
        options: arguments of the game's own.

    Raises:
        ConfigError: the package is not installed, or has no such game for one or two players that works here.
    """

    def __init__(self, game: str, opponent: str = "random", player: int = 0, **options: Any) -> None:
        if player not in (0, 1):
            raise ValueError(f"player = {player}: must be 0 or 1")
        self.name, self.player = game, player
        self.told: list[tuple[Any, str]] = []  # the opponent: each message with its kind
        self.opponent: Callable[[str], str] | None = None
        if opponent != "random":
            self.opponent = user_function("opponent", opponent)
        self.game = _made(game, options)
        self.numbers = random.Random(0).getstate()
        with self._own_numbers():
            try:
                self.players = self._begin(0)
            except Exception as error:  # word lists and files that are missing
                raise _unusable(game, error) from error

    def _begin(self, seed: int) -> int:
        """Reset the game for one player or for two; returns how many there are."""
        from textarena import SinglePlayerState

        refused = ""
        for players in (1, 2):
            try:
                self.game.reset(num_players=players, seed=seed)
            except (AssertionError, ValueError) as error:  # both are used to say how many may play
                refused = reason_of(error)
                continue
            if players == 2 or isinstance(self.game.state, SinglePlayerState):
                return players
        raise ValueError(f"only games for one or two players are played: {refused}")

    @contextmanager
    def _own_numbers(self) -> Iterator[None]:
        """Python's generator continues this conversation's numbers, whatever other conversations draw."""
        with _GENERATOR:
            others = random.getstate()
            random.setstate(self.numbers)
            try:
                yield
            finally:
                self.numbers = random.getstate()
                random.setstate(others)

    def reset(self, task: Task) -> str:
        self.numbers = random.Random(task.seed).getstate()
        with self._own_numbers():
            self._begin(task.seed % 2**32)
            random.seed(task.chance)
            self._let_opponent_move()
            if self.game.state.done:
                raise RunError(f"textarena:{self.name}: the game ended before the policy's first turn")
            return self._news()

    def step(self, reply: str) -> Answer:
        with self._own_numbers():
            self.game.step(reply.strip())
            self._let_opponent_move()
            state = self.game.state
            if not state.done:
                return self._news(), 0.0, False
            reward = state.rewards.get(self._me) if isinstance(state.rewards, dict) else None
            if not isinstance(
                reward, int | float
            ):  # some games have mistakes in what they pay for illegal moves
                raise RunError(f"textarena:{self.name}: the game ended without a number as reward")
            return self._news(), float(reward), True

    @property
    def _me(self) -> int:
        return self.player if self.players == 2 else 0

    def _said(self) -> list[tuple[Any, str]]:
        """What the player to move has been told since its last turn but for its own moves, each with its kind."""
        from textarena import GAME_ID, ObservationType

        player = self.game.state.current_player_id
        _, seen = self.game.get_observation()
        return [
            (kind, text.strip("\n") if sender == GAME_ID else f"[Player {sender}] {text}")
            for sender, text, kind in seen
            if not (sender == player and kind == ObservationType.PLAYER_ACTION)
        ]

    def _news(self) -> str:
        return _joined(self._said())

    def _let_opponent_move(self) -> None:
        state = self.game.state
        while not state.done and state.current_player_id != self._me:
            self.told += self._said()
            self.game.step(self.opponent(_joined(self.told)) if self.opponent else self._random_move())

    def _random_move(self) -> str:
        """A move that the game does not refuse: one that it has listed, the newest list first, or one that is tried.

        Its rules come last, since what they show is examples.
        """
        from textarena import ObservationType

        rules = [text for kind, text in self.told if kind == ObservationType.PROMPT]
        others = (ObservationType.PROMPT, ObservationType.PLAYER_ACTION)
        news = [text for kind, text in reversed(self.told) if kind not in others]
        for moves in (*map(_BRACKETS.findall, news), *_TRIED, *map(_BRACKETS.findall, rules)):
            shuffled = sorted(set(moves))
            random.shuffle(shuffled)
            for move in shuffled:
                if self._is_legal(move):
                    return move
        raise UserError(f"textarena:{self.name}: no legal move was found; set environment.args.opponent")

    def _is_legal(self, move: str) -> bool:
        drawn = random.getstate()
        trial = copy.deepcopy(self.game)
        player = trial.state.current_player_id
        try:
            trial.step(move)
        except Exception:  # a move that it cannot even read
            return False
        finally:
            random.setstate(drawn)
        refused = trial.state.game_info[player]["invalid_move"]
        return not refused and not getattr(trial.state, "error_count", 0)


def _joined(messages: list[tuple[Any, str]]) -> str:
    return "\n".join(text for _, text in messages)


def _made(name: str, options: dict[str, Any]) -> Any:
    """The game without the wrappers that repeat what was said before, but with the one that adds brackets."""
    try:
        import textarena
        from textarena.envs.registration import ENV_REGISTRY
        from textarena.wrappers import ActionFormattingWrapper
    except ImportError as error:
        raise ConfigError(
            f'textarena:{name}: needs the package textarena: pip install "proxlm[games]"'
        ) from error
    if name not in ENV_REGISTRY:
        games = [known for known in ENV_REGISTRY if not known.endswith(("-raw", "-train"))]
        raise ConfigError(
            f"textarena:{name}: no such game; {suggestion(name, games, f'there are {len(games)}')}"
        )
    try:
        game = textarena.make(name, **options)
    except TypeError:
        raise  # an argument that it does not have
    except Exception as error:  # word lists or keys that are missing, syntax of newer Pythons
        raise _unusable(name, error) from error
    brackets = game.is_wrapped_with(ActionFormattingWrapper) if isinstance(game, textarena.Wrapper) else False
    while isinstance(game, textarena.Wrapper):
        game = game.env
    return ActionFormattingWrapper(game) if brackets else game


def _unusable(name: str, error: Exception) -> ConfigError:
    return ConfigError(f"textarena:{name}: the game does not work here: {reason_of(error)}")
