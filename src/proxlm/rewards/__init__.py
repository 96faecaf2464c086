"""Rewards of responses: Python functions, built-in rewards, reward models, and weighted sums of them."""

from proxlm.rewards.python_code import PythonParse, python_parse_report
from proxlm.rewards.resolve import RewardFunction, Rewards
from proxlm.rewards.reward import Reward, build_reward

__all__ = ["PythonParse", "Reward", "RewardFunction", "Rewards", "build_reward", "python_parse_report"]
