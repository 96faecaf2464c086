"""Evaluation without training: two models on the same prompts, and what they generate.

    python examples/evaluation.py [MODEL MODEL ...]

The first model is the reference: KL and perplexity are measured against it.
"""

import sys

import proxlm

TEXTS = ["the cat sat on the mat and the dog ran to the sea", "a bird in the sun sang to the moon"] * 40


def ends(completions):
    """1 for a response that ended by itself."""
    return [float(done.finish != "length") for done in completions]


models = sys.argv[1:]
if not models:
    new = proxlm.NewModelSettings(vocabulary=300, hidden=32, layers=2, heads=2, context=64)
    pretraining = proxlm.PretrainConfig(
        new=new,
        train=proxlm.SupervisedSettings(steps=60, batch_tokens=512, block=32, validate_every=30),
        run=proxlm.RunSettings(report=False, save_every=0),
    )
    trained = proxlm.PretrainTrainer(TEXTS, pretraining).train().model
    random_weights = proxlm.load_model(trained)
    for p in random_weights.network.parameters():
        p.data.normal_(std=0.02)
    models = [trained, random_weights]

prompts = ["the cat", "a bird", "the dog", "the sun", "a", "the moon", "to the", "in the"]
sampling = proxlm.RolloutSettings(max_new_tokens=16, temperature=0.7)
results = proxlm.evaluate(models, prompts, ends, proxlm.EvaluateConfig(rollout=sampling))
for result in results:
    shown = {name: round(estimate.mean, 3) for name, estimate in result.metrics.items()}
    print(result.name, shown)

for done in proxlm.generate(models[0], prompts[:2], sampling, seed=1):
    print(f"{done.prompt!r} → {done.text!r} ({done.finish})")
