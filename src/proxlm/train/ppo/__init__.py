"""PPO: the loop, and each part of a step."""
