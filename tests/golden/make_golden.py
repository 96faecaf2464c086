"""Makes the golden numbers: runs the peers' own statements on seeded arrays and stores what comes out.

    python tests/golden/make_golden.py --cleanrl REPO --lm-human-preferences REPO --trl

REPO is a git directory (bare or not) of vwxyzjn/cleanrl or openai/lm-human-preferences, read at HEAD; TRL is the
installed package. Needs numpy; torch for CleanRL; tensorflow-cpu for lm-human-preferences; trl. No peer's code is
here: statements are cut out of its source by the names they assign and executed on float64 arrays. docs/peers.md
says how to set this up and what the numbers show.
"""

from __future__ import annotations

import argparse
from types import SimpleNamespace
from typing import Any

import numpy as np
from peer_code import Names, define, draw, head, plain, policy_arrays, read_at_head, run_between, store


def make_cleanrl(repo: str) -> None:
    import torch

    path = "cleanrl/ppo.py"
    source = read_at_head(repo, path)
    cases = []
    settings = [(0, 0.99, 0.95, 0.2, True), (1, 1.0, 1.0, 0.1, False), (2, 0.9, 0.5, 0.3, True)]
    for seed, gamma, lam, clip, normalise in settings:
        rng = np.random.default_rng(seed)
        steps, envs = 9, 4
        inputs: dict[str, Any] = policy_arrays(rng, (steps, envs))
        inputs |= {"rewards": draw(rng, (steps, envs)), "next_value": draw(rng, (1, envs))}
        inputs |= {
            "dones": (rng.random((steps, envs)) < 0.25) * 1.0,
            "next_done": np.array([0.0, 1.0, 0.0, 1.0]),
        }
        t = {name: torch.tensor(value, dtype=torch.float64) for name, value in inputs.items()}
        args = SimpleNamespace(
            gamma=gamma, gae_lambda=lam, num_steps=steps, clip_coef=clip, norm_adv=normalise
        )
        args.clip_vloss, args.ent_coef, args.vf_coef = True, 0.01, 0.5
        names: Names = {"torch": torch, "np": np, "args": args, "device": "cpu", "clipfracs": [], **t}
        run_between(source, "", "advantages", "returns", names)
        names |= {f"b_{name}": names[name].reshape(-1) for name in ("values", "advantages", "returns")}
        new_logprob, new_value = (
            t[name].reshape(-1).requires_grad_() for name in ("new_logprobs", "new_values")
        )
        names |= {"newlogprob": new_logprob, "newvalue": new_value, "mb_inds": torch.arange(steps * envs)}
        names |= {"b_logprobs": t["old_logprobs"].reshape(-1), "entropy": torch.zeros(steps * envs)}
        run_between(source, "", "logratio", "loss", names)
        run_between(source, "", "y_pred", "explained_var", names)
        outputs = {n: names[n] for n in ("advantages", "returns", "mb_advantages", "pg_loss", "v_loss")}
        outputs |= {n: names[n] for n in ("approx_kl", "explained_var")} | {"clipfrac": names["clipfracs"][0]}
        outputs["pg_gradient"] = torch.autograd.grad(names["pg_loss"], new_logprob)[0]
        outputs["v_gradient"] = torch.autograd.grad(names["v_loss"], new_value)[0]
        given = {"gamma": gamma, "lam": lam, "clip": clip, "norm_adv": normalise}
        cases.append({"seed": seed, "settings": given, "inputs": inputs, "outputs": outputs})
    how = "statements of the main block, executed with torch in float64: GAE, one minibatch's losses, explained_var"
    provenance = {"repository": "vwxyzjn/cleanrl", "file": path, "commit": head(repo), "how": how}
    store("cleanrl", provenance, {"cases": [{k: plain(v) for k, v in c.items()} for c in cases]})


def run_openai(
    trainer: str, core: str, tf: Any, inputs: Names, gamma: float, lam: float, white: bool
) -> Names:
    """Rewards, then everything in PPOTrainer.loss, for one rectangular batch."""
    ppo = SimpleNamespace(
        whiten_rewards=white, gamma=gamma, lam=lam, cliprange=0.2, cliprange_value=0.2, vf_coef=0.1
    )
    me = SimpleNamespace(kl_ctl=SimpleNamespace(value=0.15))
    rewards, _, _ = define(trainer, "compute_rewards", {"self": me})(
        inputs["scores"], inputs["old_logprobs"], inputs["ref_logprobs"]
    )
    t = {name: tf.constant(value, tf.float64) for name, value in inputs.items()}
    task = SimpleNamespace(response_length=inputs["values"].shape[1])
    outputs = {"values": t["new_values"], "logprobs": t["new_logprobs"], "entropies": t["values"]}
    names: Names = {"tf": tf, "values": t["values"], "old_logprob": t["old_logprobs"]}
    names |= {"rewards": tf.constant(rewards), "rollouts": {"queries": None, "responses": None}}
    names["self"] = SimpleNamespace(
        hparams=SimpleNamespace(ppo=ppo, task=task),
        policy=SimpleNamespace(analyze_responses_op=lambda queries, responses: outputs),
    )
    names["utils"] = SimpleNamespace(whiten=define(core, "whiten", {"tf": tf}))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([t["new_values"], t["new_logprobs"]])
        run_between(trainer, "loss", "rewards", "approxkl", names)
    kept = {n: names[n] for n in ("returns", "advantages", "pg_loss", "vf_loss", "pg_clipfrac", "approxkl")}
    kept |= {"rewards": rewards, "rewards_used": names["rewards"]}
    kept["pg_gradient"] = tape.gradient(names["pg_loss"], t["new_logprobs"])
    kept["vf_gradient"] = tape.gradient(names["vf_loss"], t["new_values"])
    return kept


def make_openai(repo: str) -> None:
    import tensorflow

    tf = tensorflow.compat.v1
    tf.GradientTape = tensorflow.GradientTape
    files = ["lm_human_preferences/train_policy.py", "lm_human_preferences/utils/core.py"]
    trainer, core = (read_at_head(repo, path) for path in files)
    cases = []
    for seed, gamma, lam, white in [(0, 1.0, 0.95, True), (1, 0.97, 0.9, False), (2, 1.0, 1.0, True)]:
        rng = np.random.default_rng(10 + seed)
        shape = (8, 6)
        inputs = policy_arrays(rng, shape)
        inputs |= {"ref_logprobs": inputs["old_logprobs"] + draw(rng, shape, 0.4), "scores": draw(rng, (8,))}
        outputs = run_openai(trainer, core, tf, inputs, gamma, lam, white)
        given = {"gamma": gamma, "lam": lam, "whiten_rewards": white, "kl_coef": 0.15}
        cases.append({"seed": 10 + seed, "settings": given, "inputs": inputs, "outputs": outputs})
    whiten = define(core, "whiten", {"tf": tf})
    x = draw(np.random.default_rng(20), (5, 7), 3.0, 2.0)
    whitened = {"x": x, "shifted": whiten(tf.constant(x)), "kept": whiten(tf.constant(x), shift_mean=False)}
    path = []
    controller = define(trainer, "AdaptiveKLController", {"np": np})(
        0.1, SimpleNamespace(target=6.0, horizon=10000)
    )
    for kl, responses in [(12.0, 512), (6.3, 512), (5.1, 64), (0.2, 512), (6.0, 256), (40.0, 1024)]:
        controller.update(kl, responses)
        path.append([kl, responses, controller.value])
    how = (
        f"compute_rewards, PPOTrainer.loss, whiten and AdaptiveKLController executed in float64 with the compat.v1 "
        f"interface of tensorflow {tensorflow.__version__}, eager, gradients by GradientTape"
    )
    provenance = {
        "repository": "openai/lm-human-preferences",
        "files": files,
        "commit": head(repo),
        "how": how,
    }
    content = {"cases": [plain(c) for c in cases], "whiten": whitened}
    content["kl_controller"] = {"start": 0.1, "target": 6.0, "horizon": 10000, "path": path}
    store("lm_human_preferences", provenance, content)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cleanrl", metavar="REPO", help="git directory of vwxyzjn/cleanrl")
    parser.add_argument(
        "--lm-human-preferences", metavar="REPO", help="git directory of openai/lm-human-preferences"
    )
    parser.add_argument("--trl", action="store_true", help="the installed trl")
    chosen = parser.parse_args()
    if chosen.cleanrl:
        make_cleanrl(chosen.cleanrl)
    if chosen.lm_human_preferences:
        make_openai(chosen.lm_human_preferences)
    if chosen.trl:
        from golden_trl import make_trl

        make_trl()


if __name__ == "__main__":
    main()
