"""Every setting of every stage, declared once: type, default, bounds and a sentence.

A stage has a section of its own name; `policy`, `sampling` and `reward` are shared: what a model is, how it writes, and
what it is paid for. A stage's `run` says by its parameters which sections it reads; they become its flags.
`config/config.yaml` shows the same defaults (a test compares).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from minirec.selection.methods import registry

Seed = Annotated[int, Field(ge=0, lt=2**31)]  # numpy takes 32 bits, and each process adds its number
HeadKind = Literal["none", "shared", "separate"]
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ITEM_FIELDS: list[Any] = ["title", "average_rating", "rating_number", "description"]


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where they would count as 1 and 0, and text with surrogate code points."""
        parts = value if isinstance(value, list) else [value]
        if any("\ud800" <= character <= "\udfff" for part in parts if isinstance(part, str) for character in part):
            raise PydanticCustomError("text", "input should be text without surrogate code points")
        switch = cls.model_fields[info.field_name or ""].annotation is bool
        if not switch and any(isinstance(part, bool) for part in parts):
            raise PydanticCustomError("switch", "input should not be true or false")
        return value


class Resources(Section):
    """Flags that change memory and speed, not results: resources of a rule, set in the profile of the workflow."""


class Passes(Resources):
    """Of every stage that runs the language model."""

    batch_tokens: int = Field(16_384, ge=1, description="padded tokens of one forward pass; less needs less memory")


class Engine(Resources):
    """Of the program that writes completions."""

    vllm_memory: float = Field(0.6, gt=0, lt=1, description="vllm: its share of the GPU's memory")


class Backward(Resources):
    """Of a training step."""

    micro_batch_prompts: int = Field(4, ge=1, description="prompts of one backward pass; less needs less memory")
    shard_layers: bool = Field(
        False, description="several processes: each keeps a part of the frozen layers; slower, for large models"
    )


class Processes(Resources):
    """How many processes share every step of training."""

    processes: int = Field(1, ge=1, description="processes of a node, one a GPU")
    nodes: int = Field(1, ge=1, description="nodes of a Slurm job")


class Queries(Resources):
    """Of the query engine."""

    memory: Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(MB|GB)$")] = Field(
        "1GB", description="memory of the query engine; larger data spills to disk"
    )


class Policy(Section):
    """The dual-head recommender (METHOD 2)."""

    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="of the base model; adapters are float32")
    lora_r: int = Field(4, ge=1, description="rank of the adapters")
    lora_alpha: int = Field(128, ge=1, description="scale of the adapters")
    lora_targets: list[str] = Field(LORA_TARGETS, min_length=1, description="projections that get an adapter")
    lora_layers: int | None = Field(None, ge=1, description="only the top n layers get adapters; null: all")
    marker: str = Field("<answer>", min_length=1, max_length=64, description="text that ends the reasoning")
    pooling: Literal["last", "mean", "context"] = Field(
        "last", description="state at the marker, mean over the completion, or mean over history and completion"
    )
    whiten_dim: int | None = Field(None, ge=2, description="dimensions of the PCA that whitens both sides; null: none")
    whiten_power: float = Field(1.0, ge=0, le=1, description="1: to unit variance; 0: variances stay; or between")
    tau: float = Field(0.02, gt=0, description="temperature of the item softmax")
    prompt_history: int = Field(5, ge=1, description="history items in the prompt")
    max_item_tokens: int = Field(256, ge=8, description="item texts are cut to this many tokens")
    system: str | None = Field(None, description="system message; null: the chat template's own")


class Sampling(Section):
    """How a policy writes completions (METHOD 3)."""

    completions: int = Field(4, ge=1, description="completions a prompt, G")
    temperature: float = Field(1.5, gt=0, description="sampling temperature")
    top_k: int = Field(200, ge=0, description="sample among the k likeliest tokens; 0: all")
    max_new_tokens: int = Field(256, ge=0, description="longest reasoning in tokens; 0: none")


class Reward(Section):
    """What a completion is paid (METHOD 3)."""

    beta: float = Field(0.05, ge=0, le=1, description="weight of pi(y|u) beside NDCG")
    cutoff: int = Field(1000, ge=1, description="ranks beyond it earn nothing")


class Prepare(Section):
    """Interactions to samples (METHOD 1)."""

    history: int = Field(20, ge=1, description="earlier items kept with a sample")
    train_share: float = Field(0.8, gt=0, lt=1, description="first share of the samples by time")
    valid_share: float = Field(0.1, gt=0, lt=1, description="share after it; the rest is test")
    max_train: int | None = Field(None, ge=1, description="seeded draw of the training samples; null: all")
    max_valid: int | None = Field(None, ge=1, description="the same for valid")
    max_test: int | None = Field(None, ge=1, description="the same for test")
    item_fields: list[Literal["title", "average_rating", "rating_number", "categories", "store", "description"]] = (
        Field(ITEM_FIELDS, min_length=1, description="what the item prompt says, in this order")
    )
    description_words: int = Field(100, ge=0, description="words kept of a description")
    seed: Seed = Field(0, description="of the draws")

    @model_validator(mode="after")
    def _room_for_test(self) -> Prepare:
        if self.train_share + self.valid_share >= 1:
            raise ValueError("train_share + valid_share must leave a share for test")
        return self


class Embed(Section):
    """Item table and whitening (METHOD 2)."""

    keep_frozen_states: bool = Field(False, description="keep the items' states after the frozen layers on disk")
    whiten_prompts: int | None = Field(None, ge=2, description="training prompts that fit the user side; null: all")


class Rollout(Section):
    """The proxy tries every training sample (METHOD 4.2)."""

    engine: Literal["builtin", "vllm"] = Field("builtin", description="what writes; vllm must be installed")
    seed: Seed = Field(0, description="of the random stream; each (sample, completion) has its own")
    shards: int = Field(1, ge=1, description="jobs that share the work; the result does not depend on it")


class Gradient(Section):
    """Gradient and Hessian-vector product of the item loss (METHOD 4.4)."""

    space: Literal["hidden", "lora"] = Field("hidden", description="by the hidden state, or by the LoRA weights")
    dimensions: int = Field(1024, ge=1, description="lora: dimensions of the random projection")
    advantage: Literal["one", "group"] = Field("one", description="A: 1, or the rollout's advantage")
    candidates: int | None = Field(None, ge=1, description="restrict pi to the target and n sampled items; null: all")
    seed: Seed = Field(0, description="of the sampled candidates and of the projection")


class Score(Section):
    """Learnability and representativeness (METHOD 4.3, 4.4)."""

    mu: float = Field(0.5, ge=0, le=1, description="mean reward of the most learnable sample")
    sigma: float | None = Field(
        None, gt=0, description="width of the Gaussian; null: standard deviation of the mean rewards"
    )
    direction: Literal["hvp", "grad", "lookahead"] = Field("hvp", description="compared with its mean over samples")
    eta: float = Field(1.0, gt=0, description="step of lookahead")


class _Select(Section):
    """Which training samples are kept (METHOD 4.6)."""

    shards: int = Field(
        1, ge=1, description="jobs of a first round, whose picks a second chooses from; 1: one exact round"
    )


_METHOD_SETTINGS: dict[str, Any] = {
    name: (kind, Field(default, description=f"setting of {' and '.join(users)}"))
    for name, (kind, default, users) in registry.settings().items()
}
Select: type[_Select] = create_model("Select", __base__=_Select, __doc__=_Select.__doc__, **_METHOD_SETTINGS)


class Curriculum(Section):
    """Easy to hard within shuffled groups (METHOD 4.7)."""

    group_size: int = Field(64, ge=1, description="samples a group")
    seed: Seed = Field(42, description="of the shuffle")


class Train(Section):
    """GRPO with the item loss (METHOD 3)."""

    learning_rate: float = Field(1e-5, gt=0, description="AdamW's peak rate")
    head: HeadKind = Field("none", description="trained after the whitening: none, one for both sides, or for each")
    head_learning_rate: float = Field(1e-3, gt=0, description="peak rate of the head")
    scheduler: Literal["constant_with_warmup", "constant", "linear", "cosine"] = Field(
        "constant_with_warmup", description="of the rate"
    )
    warmup_steps: int = Field(32, ge=0, description="steps of linear warm-up")
    max_grad_norm: float = Field(1.0, gt=0, description="clipping of the global gradient norm")
    batch_prompts: int = Field(48, ge=1, description="prompts an optimiser step")
    epochs: int = Field(10, ge=1, description="passes over the curriculum")
    evaluations_per_epoch: int = Field(4, ge=0, description="evaluations on valid an epoch; 0: none")
    patience: int = Field(5, ge=1, description="valid evaluations without a better NDCG@10 before training stops")
    losses: list[Literal["token", "item"]] = Field(["token", "item"], min_length=1, description="parts of the loss")
    relabel_topk: int = Field(1, ge=1, description="best completions of a prompt that get the item loss")
    item_advantage: Literal["group", "one"] = Field(
        "group", description="A of the item loss: the completion's in its group, or 1"
    )
    extra_negatives: int = Field(0, ge=0, description="sampled items beside the batch's targets in the item loss")
    item_refresh_steps: int = Field(32, ge=1, description="steps between full recomputations of the item table")
    epsilon_low: float = Field(0.2, gt=0, lt=1, description="lower clip")
    epsilon_high: float = Field(0.28, gt=0, description="upper clip")


class Proxy(Train):
    """The selector's own training, on random samples: the settings of `train` with values of their own (METHOD 4.1)."""

    size: int = Field(256, ge=2, description="random training samples")
    seed: Seed = Field(0, description="of the draw and of the training")


class Measure(Section):
    """Metrics on the test samples, their intervals and paired tests (METHOD 5)."""

    cutoffs: list[Annotated[int, Field(ge=1)]] = Field([5, 10, 20, 50], min_length=1, description="k of HR and NDCG")
    bootstrap: int = Field(1000, ge=100, description="resamples of the confidence interval")
    confidence: float = Field(0.95, gt=0, lt=1, description="of the interval; p below 1 - confidence is significant")
    seed: Seed = Field(0, description="of the bootstrap and the permutation test")

    @field_validator("cutoffs")
    @classmethod
    def _with_ten(cls, cutoffs: list[int]) -> list[int]:
        if 10 not in cutoffs:
            raise ValueError("the summary shows NDCG@10 and HR@10; add 10")
        return cutoffs


def teaches_nothing(sampling: Sampling, train: Train) -> str | None:
    """Why no loss would have a gradient, as a sentence; None where one may have."""
    alike = sampling.max_new_tokens == 0 and sampling.completions > 1
    if alike and ("item" not in train.losses or train.item_advantage == "group"):
        return (
            "sampling.max_new_tokens is 0, so all completions of a prompt are alike and their advantages 0; "
            "train with reasoning, or with the item loss and train.item_advantage one"
        )
    return None
