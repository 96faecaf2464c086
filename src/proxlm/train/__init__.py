"""Training loops: PPO, and the supervised loop that pretraining and fine-tuning share."""
