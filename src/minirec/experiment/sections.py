"""Every setting of every stage, declared once: type, default, bounds and a sentence.

Most stages have a section of their name. `policy` (the model), `sampling` (how it writes) and `reward` (what it earns)
are shared. A stage reads the sections that are parameters of its `run`, and their settings become its flags.
`config/config.yaml` shows the same defaults (a test compares).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, create_model, field_validator, model_validator

from minirec.experiment.section import Section
from minirec.experiment.validation import spelled
from minirec.selection.methods import registry

Seed = Annotated[int, Field(ge=0, lt=2**31)]  # numpy takes 32 bits, and each process adds its rank
HeadKind = Literal["none", "shared", "separate"]
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ITEM_FIELDS: list[Any] = ["title", "average_rating", "rating_number", "description"]


class Resources(Section):
    """Settings that change memory and speed, not results; the workflow's profile sets them as resources of a rule."""


class Passes(Resources):
    """Resources of the stages that run the language model."""

    batch_tokens: int = Field(4096, ge=1, description="tokens of a forward pass with padding; fewer need less memory")


class Generation(Resources):
    """Resources of the program that writes completions."""

    generation_tokens: int | None = Field(
        None, ge=1, description="tokens of prompts and completions written side by side; null: batch_tokens"
    )
    vllm_memory: float = Field(0.6, gt=0, lt=1, description="engine vllm: share of the GPU's memory it may use")


class Backward(Resources):
    """Resources of a training step."""

    micro_batch_prompts: int = Field(4, ge=1, description="prompts of one backward pass; fewer need less memory")
    shard_layers: bool = Field(
        False, description="with several processes, each keeps a part of the frozen layers; slower, for large models"
    )


class Processes(Resources):
    """How many processes share the work of every training step."""

    processes: int = Field(1, ge=1, description="processes on a node, one per GPU")
    nodes: int = Field(1, ge=1, description="nodes of a Slurm job")


class Queries(Resources):
    """Resources of DuckDB, which filters the data."""

    memory: Annotated[str, spelled(r"\d+(\.\d+)?(MB|GB)", "a number and MB or GB, like 1.5GB")] = Field(
        "1GB", description="memory of DuckDB; larger data spills to disk"
    )


class Policy(Section):
    """The recommender: a language model that embeds users and items (METHOD 2)."""

    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the base model; adapters are float32")
    lora_r: int = Field(4, ge=1, description="rank r of the LoRA adapters")
    lora_alpha: int = Field(128, ge=1, description="LoRA alpha: adapters are scaled by alpha / r")
    lora_targets: list[str] = Field(
        LORA_TARGETS, min_length=1, description="linear layers that get an adapter; all-linear: all"
    )
    lora_layers: int | None = Field(
        None, ge=1, description="only the top n layers get adapters, all of a model that has fewer; null: all"
    )
    marker: str = Field("<answer>", min_length=1, max_length=64, description="text that ends the reasoning")
    pooling: Literal["last", "mean", "context"] = Field(
        "last", description="hidden state at the marker, or mean over completion, or over history and completion"
    )
    whiten_dim: int | None = Field(None, ge=2, description="dimensions of the whitening PCA; null: no whitening")
    whiten_power: float = Field(1.0, ge=0, le=1, description="whitening: 1 gives unit variance, 0 keeps the variances")
    tau: float = Field(0.02, gt=0, description="temperature of the softmax over items")
    prompt_history: int = Field(5, ge=1, description="latest items of the history that the prompt lists")
    max_item_tokens: int = Field(256, ge=8, description="item texts are truncated to this many tokens")
    system: str | None = Field(None, description="system message; null: the chat template's own")

    @field_validator("lora_targets", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        """Take one name without brackets, as in `lora_targets: all-linear`."""
        return [value] if isinstance(value, str) else value


class Sampling(Section):
    """How a policy writes completions (METHOD 3)."""

    engine: Literal["builtin", "transformers", "vllm"] = Field(
        "builtin", description="writes the completions; vllm must be installed"
    )
    completions: int = Field(4, ge=1, description="completions per prompt, G")
    temperature: float = Field(1.5, gt=0, description="sampling temperature")
    top_k: int = Field(200, ge=0, description="sample among the k likeliest tokens; 0: all")
    max_new_tokens: int = Field(256, ge=0, description="longest reasoning, in tokens; 0: no reasoning")


class Reward(Section):
    """What a completion earns (METHOD 3)."""

    beta: float = Field(0.05, ge=0, le=1, description="weight of the target's probability pi; NDCG has 1 - beta")
    cutoff: int = Field(1000, ge=1, description="a target ranked beyond this has NDCG 0 and is no hit")


class Prepare(Section):
    """How interactions become samples (METHOD 1)."""

    history: int = Field(20, ge=1, description="most items in a sample's history")
    train_share: float = Field(0.8, gt=0, lt=1, description="share of the samples that is train, the earliest")
    valid_share: float = Field(0.1, gt=0, lt=1, description="share of the samples after those; the rest is test")
    max_train: int | None = Field(None, ge=1, description="keep at most this many random training samples; null: all")
    max_valid: int | None = Field(None, ge=1, description="keep at most this many random valid samples; null: all")
    max_test: int | None = Field(None, ge=1, description="keep at most this many random test samples; null: all")
    item_fields: list[Literal["title", "average_rating", "rating_number", "categories", "store", "description"]] = (
        Field(ITEM_FIELDS, min_length=1, description="what the item prompt says of an item, in this order")
    )
    description_words: int = Field(100, ge=0, description="first words of a description that are kept")
    seed: Seed = Field(0, description="seed of the random samples kept")

    @model_validator(mode="after")
    def _room_for_test(self) -> Prepare:
        if self.train_share + self.valid_share >= 1:
            raise ValueError("train_share + valid_share must leave a share for test")
        return self


class SASRec(Section):
    """The sequential recommender among the baselines (METHOD 5)."""

    width: int = Field(64, ge=1, description="size of an item's vector")
    layers: int = Field(2, ge=1, description="layers of the transformer")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of the activations set to 0 in training")
    learning_rate: float = Field(3e-3, gt=0, description="learning rate of AdamW")
    batch_samples: int = Field(128, ge=1, description="samples per optimiser step")
    epochs: int = Field(100, ge=1, description="most passes over the training samples")
    patience: int = Field(
        5, ge=1, description="epochs in a row without a better NDCG@10 on valid before training stops"
    )
    seed: Seed = Field(0, description="seed of the weights, the order and the dropout")


class Embed(Section):
    """How the item table and the whitening are computed (METHOD 2)."""

    keep_frozen_states: bool = Field(False, description="store items after the frozen layers: faster training")
    whiten_prompts: int | None = Field(None, ge=2, description="training prompts to fit the whitening to; null: all")


class Rollout(Section):
    """How the proxy writes completions for every training sample (METHOD 4.2)."""

    shards: int = Field(1, ge=1, description="number of jobs that share the work; it does not change the result")

    @model_validator(mode="before")
    @classmethod
    def _no_engine(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "engine" in raw:
            raise ValueError("engine is not a setting (did you mean sampling.engine?); it counts in training, too")
        return raw


class Crossfit(Section):
    """How heads reward the training samples without completions, with `proxy.kind: heads` (METHOD 4.2)."""

    folds: int = Field(2, ge=2, description="parts of the training samples; each is rewarded by a head of the others")
    head_epochs: int = Field(2, ge=1, description="passes of a head over its training samples")


class Gradient(Section):
    """Gradient and Hessian-vector product of the item loss (METHOD 4.4)."""

    space: Literal["hidden", "lora"] = Field("hidden", description="derivatives by hidden state or LoRA weights")
    dimensions: int = Field(1024, ge=1, description="space lora: dimensions of the random projection")
    advantage: Literal["one", "group"] = Field("one", description="advantage A in the item loss: 1, or the rollout's")
    candidates: int | None = Field(None, ge=1, description="softmax over the target and n random items; null: all")
    seed: Seed = Field(0, description="seed of the random candidates and of the projection")


class Score(Section):
    """How learnability and representativeness are computed (METHOD 4.3, 4.4)."""

    mu: registry.Mu = Field(
        0.5, description="mean reward of the most learnable sample; mean: that of all samples; q75: their 75 % quantile"
    )
    sigma: Annotated[float, Field(gt=0)] | Literal["iqr"] | None = Field(
        None, description="width of the Gaussian; null: standard deviation of the mean rewards; iqr: by their quartiles"
    )
    direction: Literal["hvp", "grad", "lookahead"] = Field(
        "hvp", description="compared with its mean: Hg, g, g - eta Hg"
    )
    eta: float = Field(1.0, gt=0, description="step size eta of lookahead")


class _Select(Section):
    """Which training samples are kept (METHOD 4.6)."""

    shards: int = Field(
        1, ge=1, description="jobs that pick from a part each, then one picks from their picks; 1: one exact job"
    )


_METHOD_SETTINGS: dict[str, Any] = {
    name: (kind, Field(default, description=f"setting of {' and '.join(users)}"))
    for name, (kind, default, users) in registry.settings().items()
}
Select: type[_Select] = create_model("Select", __base__=_Select, __doc__=_Select.__doc__, **_METHOD_SETTINGS)


class Influence(Section):
    """How much a training sample lowers the loss of SASRec (METHOD 4.6, dealrec)."""

    damping: float = Field(0.01, gt=0, description="added to the diagonal of the Hessian before it is inverted")


class Curriculum(Section):
    """The order of training: easy to hard within random groups (METHOD 4.7)."""

    group_size: int = Field(64, ge=1, description="samples per group")
    seed: Seed = Field(42, description="seed of the shuffle")


class Train(Section):
    """Training by GRPO with the item loss (METHOD 3)."""

    learning_rate: float = Field(1e-5, gt=0, description="peak learning rate of AdamW for the adapter")
    head: HeadKind = Field("none", description="trained map after whitening: none, one, or one each for users, items")
    head_learning_rate: float = Field(1e-3, gt=0, description="peak learning rate of the head")
    scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine"] = Field(
        "constant_with_warmup", description="of the learning rate"
    )
    warmup_steps: int = Field(
        32, ge=0, description="first steps, in which the learning rate rises linearly to its peak"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="gradients with a larger global norm are scaled down to it")
    batch_prompts: int = Field(48, ge=1, description="prompts per optimiser step")
    epochs: int = Field(10, ge=1, description="passes over the curriculum")
    updates_per_rollout: int = Field(1, ge=1, description="optimiser steps on the same completions")
    evaluation_steps: int | None = Field(
        None, ge=0, description="steps between evaluations on valid; null: training samples // 64; 0: none"
    )
    max_valid: int | None = Field(512, ge=1, description="evaluate on at most so many random valid samples; null: all")
    patience: int = Field(5, ge=1, description="evaluations in a row without a better NDCG@10 before training stops")
    losses: list[Literal["token", "item"]] = Field(["token", "item"], min_length=1, description="losses to add up")
    relabel_topk: int = Field(1, ge=1, description="best completions of a prompt that get the item loss")
    item_advantage: Literal["group", "one"] = Field(
        "group", description="advantage in the item loss: the completion's in its group, or 1"
    )
    extra_negatives: int = Field(0, ge=0, description="random items besides the batch's targets in the item loss")
    item_refresh_steps: int = Field(32, ge=1, description="steps after which the whole item table is recomputed")
    epsilon_low: float = Field(0.2, gt=0, lt=1, description="the probability ratio is clipped below at 1 - this")
    epsilon_high: float = Field(0.28, gt=0, description="the probability ratio is clipped above at 1 + this")


class Proxy(Train):
    """How the proxy is trained on random samples: settings as in `train`, with values of their own (METHOD 4.1)."""

    kind: Literal["policy", "heads"] = Field(
        "policy",
        description="a policy that writes completions; heads: for methods that read no gradients, cross-fitted heads "
        "on frozen states, which are far cheaper",
    )
    size: int = Field(256, ge=2, description="kind policy: number of random training samples")
    seeds: Literal["own", "shared"] = Field(
        "own", description="every run has signals of its own seed, or all share those of proxy.seed"
    )
    seed: Seed = Field(0, description="seeds shared: seed of the proxy and its rollouts")


class Measure(Section):
    """Metrics on the test samples, their intervals and paired tests (METHOD 5)."""

    cutoffs: list[Annotated[int, Field(ge=1)]] = Field(
        [5, 10, 20, 50], min_length=1, description="k of HR@k and NDCG@k"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples of the confidence interval")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the interval; p below 1 - confidence is significant")
    seed: Seed = Field(0, description="seed of the bootstrap and the permutation test")

    @field_validator("cutoffs")
    @classmethod
    def _with_ten(cls, cutoffs: list[int]) -> list[int]:
        if 10 not in cutoffs:
            raise ValueError("the summary shows NDCG@10 and HR@10; add 10")
        return cutoffs


def teaches_nothing(sampling: Sampling, train: Train) -> str | None:
    """One sentence on why these settings would give no loss a gradient; None if a loss can have one."""
    if sampling.max_new_tokens:
        return None
    section = "proxy" if isinstance(train, Proxy) else "train"
    if "item" not in train.losses:
        return (
            "sampling.max_new_tokens is 0, so there is no token for the token loss; "
            f"train with reasoning, or with the item loss in {section}.losses"
        )
    if sampling.completions > 1 and train.item_advantage == "group":
        return (
            "sampling.max_new_tokens is 0, so all completions of a prompt are alike and their advantages 0; "
            f"train with reasoning, or with {section}.item_advantage one"
        )
    return None
