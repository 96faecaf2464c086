"""Names that other libraries and papers have for settings, so that a hint can name ours."""

from __future__ import annotations

# By the last part of a key.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "gae_lambda": ("ppo.lam",),
    "lambda": ("ppo.lam",),
    "gae_lam": ("ppo.lam",),
    "beta": ("ppo.kl_coef",),
    "init_kl_coef": ("ppo.kl_coef",),
    "kl_beta": ("ppo.kl_coef",),
    "clip_range": ("ppo.clip_low", "ppo.clip_high"),
    "cliprange": ("ppo.clip_low", "ppo.clip_high"),
    "clip_eps": ("ppo.clip_low", "ppo.clip_high"),
    "epsilon": ("ppo.clip_low", "ppo.clip_high"),
    "cliprange_value": ("ppo.clip_value",),
    "vf_coef": ("ppo.value_coef",),
    "ent_coef": ("ppo.entropy_coef",),
    "mini_batch_size": ("ppo.minibatches",),
    "num_mini_batches": ("ppo.minibatches",),
    "ppo_epochs": ("ppo.epochs",),
    "num_ppo_epochs": ("ppo.epochs",),
    "num_train_epochs": ("ppo.steps", "train.steps"),
    "num_generations": ("ppo.samples_per_prompt",),
    "group_size": ("ppo.samples_per_prompt",),
    "prefetch": ("ppo.max_staleness",),
    "rollout_ahead": ("ppo.max_staleness",),
    "max_head_offpolicyness": ("ppo.max_staleness",),
    "staleness_threshold": ("ppo.max_staleness",),
    "max_steps": ("ppo.steps", "train.steps", "environment.steps"),
    "learning_rate": ("optim.policy.lr", "optim.lr"),
    "lr_scheduler_type": ("optim.policy.schedule", "optim.schedule"),
    "warmup_steps": ("optim.policy.warmup", "optim.warmup"),
    "r": ("model.lora.rank",),
    "lora_r": ("model.lora.rank",),
    "lora_alpha": ("model.lora.alpha",),
    "target_modules": ("model.lora.targets",),
    "output_dir": ("run.folder",),
    "max_new_token": ("rollout.max_new_tokens",),
    "max_completion_length": ("rollout.max_new_tokens",),
    "response_length": ("rollout.max_new_tokens",),
    "bad_words_ids": ("rollout.bad_words", "rollout.logit_bias"),
    "sequence_bias": ("rollout.logit_bias",),
    "save_steps": ("run.save_every",),
    "save_total_limit": ("run.keep",),
    "eval_steps": ("evaluation.every", "train.validate_every"),
    "model_name_or_path": ("model.policy",),
    "per_device_train_batch_size": ("ppo.batch_size", "train.batch_tokens"),
    "resid_pdrop": ("train.dropout",),
    "hidden_dropout": ("train.dropout",),
    "dropout_rate": ("train.dropout",),
    "dtype": ("model.precision",),
    "torch_dtype": ("model.precision",),
    "report_to": ("run.tensorboard", "run.wandb"),
}

# By the last part of a key, what PPO has not, and why.
NOT_IN_PPO = dict.fromkeys(
    ("dropout", *(name for name, ours in OTHER_NAMES.items() if ours == ("train.dropout",))),
    "PPO has no dropout: its ratio compares the log-probs of two passes, which random masks would set apart by"
    " themselves",
)
