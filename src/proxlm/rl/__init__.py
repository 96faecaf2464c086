"""The mathematics of PPO: pure functions on tensors and floats.

Shapes: B sequences; R response tokens of all sequences, one after another; offsets [B + 1] with row b at
`flat[offsets[b] : offsets[b + 1]]`. "Masked" means: only tokens the policy chose (`action_mask`). Logarithms
are natural, so KL and entropy are in nats.
"""
