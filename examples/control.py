"""The same PPO on a Gymnasium environment: balance a pole. Needs proxlm[control].

    python examples/control.py [STEPS]

About a minute for 100,000 steps; CartPole's highest return is 500.
"""

import sys

import proxlm

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
config = proxlm.ControlConfig(
    environment=proxlm.GymSettings(steps=steps, count=8),
    ppo=proxlm.ControlPPOSettings(horizon=128, epochs=4, minibatches=4),
    run=proxlm.RunSettings(threads=1),
)
run = proxlm.ControlTrainer("CartPole-v1", config).train()
returns = [value for value in run.metrics["episode_return"] if value is not None]
print(f"mean return: {returns[0]:.0f} at first, {returns[-1]:.0f} in the end")
print("policy:", run.model)
