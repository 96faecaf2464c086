"""PPO on Gymnasium's environments, with the mathematics of proxlm.rl.

A step of an environment is what a token is to a language model, an episode what a response is. Shapes: T steps of
each environment per PPO step; N environments; D numbers of an observation; A logits (discrete) or numbers of an
action (continuous); R = N · T steps, environment after environment; B segments of episodes, with segment b at
`flat[offsets[b] : offsets[b + 1]]`.
"""
