"""Two real processes over gloo take the supervised steps of one process, for each objective."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from helpers import SilentLog
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from proxlm.checkpoint import with_prefix
from proxlm.config import (
    DistillSettings,
    DPOSettings,
    EnsembleSettings,
    LoraSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimiserSettings,
    RunSettings,
    SFTConfig,
    SupervisedSettings,
)
from proxlm.config.distributed import DistributedSettings
from proxlm.data.supervised import SFTExample
from proxlm.distributed.ranks import ONE_PROCESS, Ranks, TorchRanks, made_on_all
from proxlm.errors import RunError
from proxlm.jobs.distill import DistillLoop
from proxlm.models.adapters import add_lora
from proxlm.models.classifier import Classifier, classifier_of_language_model
from proxlm.models.forward import token_outputs
from proxlm.models.sharded import is_sharded, whole
from proxlm.train.common.passes import passes
from proxlm.train.supervised import objective as objectives
from proxlm.train.supervised.batches import Mixture
from proxlm.train.supervised.criteria import Comparisons
from proxlm.train.supervised.distill_objective import DistillObjective
from proxlm.train.supervised.dpo_objective import DPOObjective
from proxlm.train.supervised.dropout import Dropout
from proxlm.train.supervised.ensemble_objective import EnsembleObjective
from proxlm.train.supervised.examples import Examples
from proxlm.train.supervised.labelled_texts import LabelledTexts
from proxlm.train.supervised.loop import SupervisedLoop
from proxlm.train.supervised.objective import LanguageModelObjective
from proxlm.train.supervised.reward_objective import RewardObjective
from proxlm.train.supervised.teacher_reading import Teacher
from small_models import tiny_model

pytestmark = pytest.mark.timeout(900)  # two processes that wait for one another are slow on a busy machine
LENGTHS = [3, 14, 2, 5, 21, 4, 9, 2, 6, 3, 11, 2]


def examples(count: int = 12, mixed: bool = False) -> Examples:
    """Prompts with responses of very different lengths; of some not every token counts."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for i, length in enumerate(LENGTHS[:count]):
        tokens = torch.randint(5, 300, (2 + i % 3 + length,), generator=generator).tolist()
        prompt, response = tokens[: 2 + i % 3], tokens[2 + i % 3 :]
        rows.append(SFTExample(tuple(prompt), tuple(response), tuple(k % 4 != 1 for k in range(length))))
    if mixed:
        return Examples.from_sources([rows[:5], rows[5:]], several=True)
    return Examples.from_rows(rows)


def comparisons() -> LabelledTexts:
    generator = torch.Generator().manual_seed(4)
    rows = [torch.randint(5, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    return LabelledTexts.of(
        [((rows[i], rows[i + 1]), (0.1 * i,), ()) for i in range(0, len(rows), 2)], group=2
    )


def language_model(
    tokenizer: Any,
    ranks: Ranks,
    type: str = "llama",
    lora: int = 0,
    mixed: bool = False,
    dropout: float = 0.0,
    **model: Any,
) -> Any:
    made = tiny_model(tokenizer, type, **model)
    if lora:
        made = add_lora(made, LoraSettings(rank=lora), 0)
    sources = ["a", "b"] if mixed else []
    data = examples(mixed=mixed)
    return LanguageModelObjective(
        made, data, data, validation_sources=sources, dropout=Dropout([made.network], dropout)
    )


def classifier(tokenizer: Any, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    model = tiny_model(tokenizer, seed=seed)
    return classifier_of_language_model(model, ModelSettings(device="cpu"), 1, per_token=False)


def reward(tokenizer: Any, ranks: Ranks) -> Any:
    data, settings = comparisons(), ObjectiveSettings()
    return RewardObjective(classifier(tokenizer), data, data, Comparisons(settings))


def ensemble(tokenizer: Any, ranks: Ranks) -> Any:
    data, criterion = comparisons(), Comparisons(ObjectiveSettings())
    members, settings = [classifier(tokenizer, seed) for seed in (0, 1)], EnsembleSettings(size=2)
    return EnsembleObjective(members, data, data, criterion, settings, 0, 60)


def dpo(tokenizer: Any, ranks: Ranks) -> Any:
    data, none = examples(), torch.zeros(6)
    return DPOObjective(tiny_model(tokenizer), data, data, (none, none), DPOSettings(), 60, ranks)


def distill(tokenizer: Any, ranks: Ranks, **settings: Any) -> Any:
    student, teacher = tiny_model(tokenizer, seed=1), tiny_model(tokenizer, seed=2)
    made, data = DistillSettings(**{"eval_samples": 2} | settings), examples()
    reader = Teacher(teacher, len(student.network.get_output_embeddings().weight))
    return DistillObjective(student, reader, data, data, made, 6, 0)


CASES: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "language model": (language_model, {}, {}),
    "a row a step": (language_model, {}, {"batch_tokens": 1}),
    "a mixture": (language_model, {"mixed": True}, {}),
    "adapters": (language_model, {"lora": 2}, {}),
    "encoder-decoder": (language_model, {"type": "t5"}, {}),
    "uniform average": (language_model, {}, {"average": "uniform", "average_last": 2}),
    "moving average": (language_model, {}, {"average": "ema", "ema_decay": 0.5}),
    "dropout": (language_model, {"dropout": 0.2}, {}),
    "patience": (language_model, {}, {"patience": 1}),
    "reward": (reward, {}, {}),
    "ensemble": (ensemble, {}, {"average": "ema", "ema_decay": 0.5}),
    "dpo": (dpo, {}, {}),
    "distill": (distill, {"mode": "logits"}, {}),
    "distill, own samples": (distill, {"mode": "on_policy", "student_share": 0.6}, {}),
}


# Where weights are sharded, too.
SHARDED = {
    **{
        name: CASES[name]
        for name in (
            "language model",
            "a row a step",
            "adapters",
            "encoder-decoder",
            "moving average",
            "dropout",
            "reward",
            "ensemble",
            "dpo",
        )
    },
    # Steps so large that the average is better than the weights, and is saved.
    "uniform average": (language_model, {}, {"average": "uniform", "average_last": 2, "lr": 0.1}),
    "checkpointing": (language_model, {"activation_checkpointing": True}, {}),
    "the top block": (language_model, {"train_layers": 1}, {}),
    "frozen weights": (language_model, {"freeze": ["*.mlp.*"]}, {}),
    "distill": (distill, {"mode": "logits", "eval_samples": 0}, {}),
}
# That are not the same to 1e-6.
PRECISIONS: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    name: (language_model, {"precision": name}, {}) for name in ("float32", "bfloat16")
}


def loop_of(
    tokenizer: Any,
    name: str,
    ranks: Ranks,
    folder: Path,
    train: dict[str, Any] | None = None,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    **optim: Any,
) -> SupervisedLoop:
    make, given, own = (SHARDED | PRECISIONS if strategy == "fsdp" else CASES)[name]
    torch.manual_seed(0)
    made = make(tokenizer, ranks, **given)
    settings = {"steps": 3, "batch_tokens": 50, "micro_batch_tokens": 40, "validate_every": 1, **own}
    optim = {"lr": settings.pop("lr", 1e-3), "eps": 1e-3, **optim}
    config = SFTConfig(
        train=SupervisedSettings(**settings | (train or {})),
        optim=OptimiserSettings(**optim),
        distributed=DistributedSettings(strategy=strategy),
        run=RunSettings(save_every=0, log_samples=2 if strategy == "fsdp" else 0, max_skipped_updates=0),
    )
    mixture = Mixture(("a", "b"), made.training.sources, (0.7, 0.3)) if given.get("mixed") else None
    loop = DistillLoop if name.startswith("distill") else SupervisedLoop
    return loop(made, config, folder / name, mixture, ranks)


def taken(made: SupervisedLoop) -> dict[str, Any]:
    """What the steps of a run have left."""
    made.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    start = {name: whole(p.detach()).clone() for name, p in made.objective.trainable()}
    while not made.finished():
        rows.append(made.step(SilentLog()))  # type: ignore[arg-type]
    parameters = {name: whole(p.detach()).clone() for name, p in made.objective.trainable()}
    return {
        "parameters": parameters,
        "moved": max(float((p - start[name]).abs().max()) for name, p in parameters.items()),
        "rows": rows,
        "state": asdict(made.state),
        "tokens": made.budget.tokens,
    }


def plain(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    return {name: taken(loop_of(tokenizer, name, ranks, folder)) for name in CASES}


def sharded(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The same with sharded weights; the model of the last validation, which rank 0 has saved."""
    found = {}
    for name in SHARDED:
        made = loop_of(tokenizer, name, ranks, folder, strategy="fsdp")
        found[name] = taken(made) | {"shares": [is_sharded(p) for _, p in made.objective.trainable()]}
        found[name]["kept"] = kept(made) if name in ("language model", "checkpointing") else 0
        files = sorted((made.folder / "policy").rglob("*.safetensors"))
        found[name]["saved"] = {
            f"{file.parent.name}.{key}": t for file in files for key, t in load_file(file).items()
        }
    return found


def kept(made: SupervisedLoop) -> int:
    """How many tensors a pass keeps for its backward pass."""
    held = list[torch.Tensor]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_outputs(made.objective.model, made.objective.training.batch([0])[0])
    return len(held)


class Gathered(TorchDispatchMode):
    """Counts the bytes that are gathered from all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "allgather" in str(func):
            self.bytes += args[0].nbytes
        return func(*args, **(kwargs or {}))


def resumed(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Sharded steps with an average, of which the last are another loop's that goes on from the first one's."""
    first = loop_of(tokenizer, "moving average", ranks, folder / "first", strategy="fsdp")
    first.folder.mkdir(parents=True)
    first.step(SilentLog())  # type: ignore[arg-type]
    tensors = ranks.broadcast(first.whole_tensors)
    made = loop_of(tokenizer, "moving average", ranks, folder / "second", strategy="fsdp")
    if ranks.rank == 0:
        made.restore(made.folder, first.state, with_prefix(tensors, "extra."))
        with torch.no_grad():
            made.take_tensors(tensors)
        made.state = first.state
    ranks.broadcast(made.synchronise)
    return taken(made)


def bfloat16(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Three sharded steps."""
    return taken(loop_of(tokenizer, "bfloat16", ranks, folder, strategy="fsdp"))


def one_pass(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The gradient of one pass of each rank, of other texts, sharded and of whole weights; and what is gathered."""
    found: dict[str, Any] = {}
    if ranks.size == 1:
        return found
    for name in PRECISIONS:
        made = loop_of(tokenizer, name, ranks, folder, strategy="fsdp")
        texts = [made.objective.training.batch([row])[0] for row in (1, 4)]
        with Gathered() as gathered:
            loss = token_outputs(made.objective.model, texts[ranks.rank]).logprobs.sum()
        loss.backward()
        learning = dict(made.objective.trainable())
        ranks.sum_in_place(p.grad for p in learning.values())
        unsharded = tiny_model(tokenizer, precision=name)
        unsharded.own_kernels = False
        wanted = [torch.zeros_like(p) for _, p in unsharded.trainable()]
        for text in texts:
            token_outputs(unsharded, text).logprobs.sum().backward()
            for total, (_, p) in zip(wanted, unsharded.trainable(), strict=True):
                total += p.grad
                p.grad = None
        found[name] = {
            "gathered": gathered.bytes,
            "precisions": {p.grad.dtype for p in learning.values()},
            "equal": {n: torch.equal(whole(learning[n].grad), wanted[i]) for i, n in enumerate(learning)},
        }
    return found


def out_of_memory(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The last rank's memory fails once in training, and once in validation."""
    real, calls = objectives.token_outputs, []

    def fails(*given: Any) -> Any:
        calls.append(given)
        if len(calls) in (2, 9) and ranks.rank == ranks.size - 1:
            raise torch.OutOfMemoryError("full")
        return real(*given)

    objectives.token_outputs = fails
    try:
        return taken(loop_of(tokenizer, "language model", ranks, folder))
    finally:
        objectives.token_outputs = real


def not_finite(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The loss of one row, on one rank, is not a number in the first step."""
    made = loop_of(tokenizer, "language model", ranks, folder)
    weight = made.objective.model.network.get_input_embeddings().weight
    kept = weight.detach().clone()
    token = int(made.objective.training.batch(made.batches.next())[0].tokens[0])
    made.batches = loop_of(tokenizer, "language model", ranks, folder).batches
    with torch.no_grad():
        weight[token] = float("nan")
    made.folder.mkdir(parents=True, exist_ok=True)
    first = made.step(SilentLog())  # type: ignore[arg-type]
    with torch.no_grad():
        weight.copy_(kept)
    found = taken(made)
    return {**found, "first": first}


def out_of_time(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The clocks of the ranks differ by a minute a step; rank 0's counts."""
    made = loop_of(
        tokenizer, "language model", ranks, folder, {"steps": 30, "minutes": 1.0}, schedule="linear"
    )
    from proxlm.train.supervised import loop as module

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 10.0 if ranks.rank == 0 else 70.0
            return self.now

    real, module.time = module.time, Clock()  # type: ignore[assignment]
    try:
        return taken(made)
    finally:
        module.time = real


def fails_on_one(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What all ranks make, where only rank 0 fails, and where all do."""
    found = {}
    for name, failing in (("first", [0]), ("all", [0, 1])):

        def make(failing: list[int] = failing) -> int:
            if ranks.rank in failing:
                raise RunError(f"on rank {ranks.rank}")
            return ranks.rank

        try:
            made_on_all(ranks, make)
        except RunError as error:
            found[name] = str(error)
    return found | {"made": made_on_all(ranks, lambda: ranks.rank)}


def other_rows(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The last rank's file has another first row, of as many tokens."""
    made = loop_of(tokenizer, "language model", ranks, folder)
    if ranks.rank == ranks.size - 1 > 0:
        made.objective.training.tokens[:5] = torch.arange(40, 45)
    try:
        ranks.broadcast(made.synchronise) if ranks.rank == 0 else made.follow()
    except RunError as error:
        return {"error": str(error)}
    return {}


WORK: list[Callable[[Any, Ranks, Path], dict[str, Any]]] = [
    plain,
    sharded,
    resumed,
    bfloat16,
    one_pass,
    out_of_memory,
    not_finite,
    out_of_time,
    fails_on_one,
    other_rows,
]


def all_work(tokenizer: Any, ranks: Ranks, folder: Path) -> dict[str, Any]:
    return {work.__name__: work(tokenizer, ranks, folder / work.__name__) for work in WORK}


def on_rank(rank: int, port: int, folder: str, tokenizer: Any) -> None:
    warnings.filterwarnings("error", message="FSDP2-wrapped")  # its advice is followed
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    found = all_work(tokenizer, TorchRanks(), Path(folder) / str(rank))
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """What one process finds, and what each of two ranks does."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(on_rank, args=(port, str(folder), tokenizer), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return all_work(tokenizer, ONE_PROCESS, folder / "one"), ranks


MEASURED = ("time/", "tokens_per_second", "memory")


def rounding(run: dict[str, Any]) -> float:
    """How far weights may be apart: more where steps are large."""
    return max(1e-6, 1e-5 * run["moved"])


def same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """The same weights, metrics and state, up to rounding; times are those of the run."""
    for name, p in one["parameters"].items():
        assert float((two["parameters"][name] - p).abs().max()) <= rounding(one), name
    for row, wanted in zip(two["rows"], one["rows"], strict=True):
        assert row.keys() == wanted.keys()
        for name, value in wanted.items():
            if not name.startswith(MEASURED):
                assert row[name] == pytest.approx(value, rel=2e-6, abs=2e-6, nan_ok=True), name
    for name, value in one["state"].items():
        if name != "seconds":
            assert two["state"][name] == pytest.approx(value, rel=2e-6, nan_ok=True), name
    assert two["tokens"] == one["tokens"]


def alike(ranks: list[dict[str, Any]]) -> None:
    """The ranks have the same weights and state, bit for bit."""
    first, second = ranks
    assert all(torch.equal(p, second["parameters"][name]) for name, p in first["parameters"].items())
    assert str(first["state"]) == str(second["state"])


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_take_the_steps_of_one_process(found, name: str) -> None:
    whole_run, ranks = found
    assert whole_run["plain"][name]["moved"] > 1e-4
    for rank in ranks:
        same(whole_run["plain"][name], rank["plain"][name])
    alike([rank["plain"][name] for rank in ranks])


@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_take_the_steps_of_one_process(found, name: str) -> None:
    whole_run, ranks = found
    for rank in ranks:
        same(whole_run["sharded"][name], rank["sharded"][name])
        assert sum(rank["sharded"][name]["shares"]) >= len(rank["sharded"][name]["shares"]) / 2
    saved, wanted = ranks[0]["sharded"][name]["saved"], whole_run["sharded"][name]["saved"]
    assert saved.keys() == wanted.keys()
    assert len(saved) > 3
    for key, tensor in wanted.items():
        assert float((saved[key] - tensor).abs().max()) <= rounding(whole_run["sharded"][name]), key


def test_an_average_of_sharded_weights_is_saved(found) -> None:
    assert found[1][0]["sharded"]["uniform average"]["state"]["best_average"] == 1


def test_an_average_of_sharded_weights_goes_on_after_a_resume(found) -> None:
    """A checkpoint has the optimiser's state as well, so the last two steps are those of the undisturbed run."""
    whole_run, ranks = found
    wanted = whole_run["sharded"]["moving average"]
    for run in (whole_run, *ranks):
        same({**wanted, "rows": wanted["rows"][1:]}, run["resumed"])
        assert [row["average/validation_loss"] for row in run["resumed"]["rows"]]


def test_checkpointing_keeps_less_where_weights_are_sharded(found) -> None:
    for rank in found[1]:
        assert rank["sharded"]["checkpointing"]["kept"] < rank["sharded"]["language model"]["kept"] / 3


def test_a_sharded_pass_in_bf16_rounds_as_a_whole_one_and_gathers_half(found) -> None:
    for rank in found[1]:
        low, full = (rank["one_pass"][name] for name in ("bfloat16", "float32"))
        assert low["gathered"] == full["gathered"] / 2 > 0
        assert low["precisions"] == {torch.float32}
        assert all(low["equal"].values())


def test_two_sharded_ranks_in_bf16_are_as_near_to_one_process_as_bf16_is_to_float32(found) -> None:
    def apart(one: dict[str, Any], two: dict[str, Any]) -> float:
        """The distance of all weights."""
        differences = [p - two["parameters"][name] for name, p in one["parameters"].items()]
        return float(torch.stack([d.square().sum() for d in differences]).sum().sqrt())

    (low, full), (of_rank, full_of_rank) = (
        (run["bfloat16"], run["sharded"]["language model"]) for run in (found[0], found[1][0])
    )
    lost = apart(low, full)
    assert apart(of_rank, low) < lost
    assert lost / 3 < apart(of_rank, full_of_rank) < 3 * lost
    assert apart(full_of_rank, full) < lost / 100


def test_out_of_memory_on_one_rank_makes_all_passes_smaller(found) -> None:
    whole_run, ranks = found
    for rank in ranks:
        assert rank["out_of_memory"]["tokens"] < 40
        assert rank["out_of_memory"]["state"]["lowered_budget"] == rank["out_of_memory"]["tokens"]
        for name, p in whole_run["plain"]["language model"]["parameters"].items():
            assert float((rank["out_of_memory"]["parameters"][name] - p).abs().max()) <= 1e-6, name
    alike([rank["out_of_memory"] for rank in ranks])


def test_an_update_that_is_not_finite_is_skipped_on_all_ranks(found) -> None:
    whole_run, ranks = found
    for rank in ranks:
        assert rank["not_finite"]["first"]["grad_norm_not_finite"] == 1.0
        same(whole_run["not_finite"], rank["not_finite"])
    alike([rank["not_finite"] for rank in ranks])


def test_rank_0_decides_when_the_time_is_over(found) -> None:
    whole_run, ranks = found
    assert whole_run["out_of_time"]["state"]["step"] == 6
    for rank in ranks:
        assert rank["out_of_time"]["state"]["seconds"] == whole_run["out_of_time"]["state"]["seconds"] == 60.0
        same(whole_run["out_of_time"], rank["out_of_time"])
    alike([rank["out_of_time"] for rank in ranks])


def test_an_error_of_rank_0_is_that_of_all(found) -> None:
    for number, rank in enumerate(found[1]):
        assert rank["fails_on_one"] == {"first": "on rank 0", "all": "on rank 0", "made": number}


def test_ranks_that_have_read_other_rows_are_refused(found) -> None:
    assert found[0]["other_rows"] == {}
    assert all("rank 1 has read other rows" in rank["other_rows"]["error"] for rank in found[1])


class Rank:
    """A rank that only says which one it is: enough for passes."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_passes_share_rows_by_their_tokens_and_are_equally_many(size: int) -> None:
    lengths = torch.tensor([30, 5, 5, 5, 5, 5, 2])
    by_rank = [passes(lengths, 12, Rank(rank, size)) for rank in range(size)]  # type: ignore[arg-type]
    assert len({len(own) for own in by_rank}) == 1
    rows = [row for own in by_rank for part in own if part.weight for row in part.rows.tolist()]
    assert sorted(rows) == list(range(7))
    tokens = sorted(sum(int(lengths[part.rows].sum()) for part in own if part.weight) for own in by_rank)
    assert tokens == {1: [57], 2: [27, 30], 3: [12, 15, 30], 8: [0, 2, 5, 5, 5, 5, 5, 30]}[size]
