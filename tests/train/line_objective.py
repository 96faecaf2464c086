"""Least squares as an objective of supervised training: no language model, and quick."""

from __future__ import annotations

import torch
from torch import nn

from proxlm.config import OptimiserSettings, RunSettings, SFTConfig, SupervisedSettings
from proxlm.distributed.ranks import ONE_PROCESS
from proxlm.train.supervised.loop import SupervisedLoop


class Line:
    """Least squares: y = 2 x − 1 on twelve rows; the last four are for validation."""

    def __init__(self, rows=8):
        torch.manual_seed(0)
        self.model = nn.Linear(1, 1)
        self.x = torch.linspace(-1, 1, rows + 4).unsqueeze(1)
        self.lengths = torch.ones(rows, dtype=torch.int64)
        self.validation_lengths = torch.ones(4, dtype=torch.int64)
        self.saved = 0

    def loss(self, x):
        return (self.model(x) - (2 * x - 1)).square().mean()

    def trainable(self):
        return list(self.model.named_parameters())

    def begin_step(self, step):
        pass

    def gradient(self, rows, micro_batch_tokens, ranks=ONE_PROCESS):
        loss = self.loss(self.x[rows])
        loss.backward()
        return float(loss.detach()), len(rows)

    @torch.no_grad()
    def validate(self, micro_batch_tokens, ranks=ONE_PROCESS):
        return {"validation_loss": float(self.loss(self.x[-4:])), "slope": float(self.model.weight)}

    def save(self, folder):
        self.saved += 1
        folder.mkdir()
        torch.save(self.model.state_dict(), folder / "line.pt")

    def samples(self, count):
        prompts = ["x = -1", "x = 1"][:count]
        return [{"prompt": prompt, "response": f"{self.model.bias.item():.2f}"} for prompt in prompts]

    def describe(self, rows):
        return [{"row": row, "x": float(self.x[row])} for row in rows]


def line(folder, objective=None, steps=60, patience=0, lr=0.1, optimiser="adamw", train=None, **run):
    settings = SupervisedSettings(
        steps=steps, batch_tokens=4, validate_every=5, patience=patience, **(train or {})
    )
    optim = OptimiserSettings(name=optimiser, lr=lr)
    config = SFTConfig(train=settings, optim=optim, run=RunSettings(save_every=0, **run))
    return SupervisedLoop(objective or Line(), config, folder)
