"""The built-in engine, against which every other one is tested (METHOD 3)."""

from __future__ import annotations

from collections.abc import Sequence

from minirec.model import distributed, generate
from minirec.model.completions import Completions
from minirec.model.engines.engine import Engine


class Builtin(Engine):
    """The built-in engine, `generate.generate`: its decoding steps also give the states."""

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        limits: Sequence[int],
        sample_ids: Sequence[int] | None = None,
        epoch: int = 0,
        for_training: bool = False,
    ) -> Completions:
        """Write G completions of each prompt, see `Engine.write`; they have no `log_p`, as the policy sampled them."""
        policy, s, uniforms = self.policy, self.sampling, None
        if sample_ids is not None:
            uniforms = generate.sampling_uniforms(self.seed, sample_ids, len(limits), max(limits), epoch)
        order, parts = [], [Completions.none(policy, len(limits))]
        for rows in distributed.same_number(self.batches(prompts, limits)):
            if rows is None:  # other processes share the layers and need them
                generate.stand_in(policy, limits)
                continue
            written = generate.generate(
                policy,
                [prompts[row] for row in rows],
                limits,
                None if uniforms is None else uniforms[rows].to(policy.device),
                s.temperature,
                s.top_k,
                keep_frozen_states=for_training,
            )
            order += rows
            parts.append(written)
        return Completions.in_order(parts, order)
