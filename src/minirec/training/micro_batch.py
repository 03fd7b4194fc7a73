"""A micro-batch: the prompts and completions of one forward and backward pass, kept for all updates on a rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from minirec.data.splits import Split
from minirec.model.completions import Completions
from minirec.training.item_table import BatchItems


@dataclass
class MicroBatch:
    """n prompts with their completions, which one forward and backward pass trains on."""

    prompts: list[list[int]]
    completions: Completions
    samples: Split
    advantage: Tensor | None  # [n, G]; None until the pass has read the completions
    items: BatchItems
    token_share: float  # 1 / sampled tokens of the optimiser batch
    prompt_share: float  # 1 / prompts of the optimiser batch
    old_log_p: Tensor | None = None  # [n, G, T], of the tokens under the policy that sampled them: the first update's
    old_log_pi: Tensor | None = None  # [n * relabel_topk], of the targets, likewise

    def in_parts(self, size: int) -> list[MicroBatch]:
        """Cut it into micro-batches of at most `size` prompts, of similar length, so that little is padded."""
        order = sorted(range(len(self.prompts)), key=lambda row: len(self.prompts[row]))
        return [
            replace(
                self,
                prompts=[self.prompts[row] for row in rows],
                completions=self.completions.take(rows),
                samples=self.samples.take(rows),
                advantage=None if self.advantage is None else self.advantage[rows],
            )
            for rows in (order[start : start + size] for start in range(0, len(order), size))
        ]
