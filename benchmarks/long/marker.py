"""How SmolLM2's completions end, what that does to the users' states, and the ranking before RL (docs/results.md).

    snakemake --cores 1 --configfile config/quickstart.yaml -- data/models/smollm results/movielens/samples.parquet
    python benchmarks/long/marker.py --tokens 8 64

The base model with the settings of config/quickstart.yaml on the valid samples. Prints a line for each number of
tokens: of the sampled completions, the share whose marker was forced and the share that ended their turn; of these, the
cosine of the state with the end-of-turn token kept before the marker, to the state without it; the cosine between two
users; NDCG@10 after greedy completions, and after empty ones.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from minirec.data import splits
from minirec.evaluation import metrics, ranking
from minirec.experiment import config
from minirec.model import generate
from minirec.model.engines.builtin import Builtin
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening

MODEL, FILES = (
    Path("data/models/smollm"),
    [Path("results/movielens", f"{name}.parquet") for name in ("samples", "catalogue")],
)


def state(policy: Policy, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The state [d] at the marker after these tokens."""
    ids = [*policy.user_prompts.prefix, *prompt, *tokens, *policy.marker_ids]
    return policy.decoder(input_ids=torch.tensor([ids], device=policy.device)).last_hidden_state[0, -1].float()


def endings(policy: Policy, bodies: list[str], sampling: config.sections.Sampling, limit: int) -> list[float]:
    """Share forced, share ended by the turn, cosine moved by the end-of-turn token, cosine between users."""
    forced, ended, moved, users = [], [], [], []
    prompts = policy.user_bodies(bodies)
    for rows in policy.length_batches(prompts, limit):
        chosen, uniforms = [prompts[row] for row in rows], generate.sampling_uniforms(0, rows, 1, limit)
        written = generate.generate(policy, chosen, [limit], uniforms, sampling.temperature, sampling.top_k)
        for prompt, (tokens,), (missing,) in zip(chosen, written.tokens, written.forced, strict=True):
            forced.append(missing)
            ended.append(tokens[-1] in policy.eos_ids)
            if ended[-1]:
                kept, without = state(policy, prompt, tokens), state(policy, prompt, tokens[:-1])
                moved.append(float(cosine_similarity(kept, without, dim=0)))
        users += normalize(written.hidden[:, 0], dim=1)
    apart = [float(a @ b) for a, b in pairwise(users)]
    return [float(np.mean(values)) if values else float("nan") for values in (forced, ended, moved, apart)]


def before_rl(policy: Policy, settings: config.Config, limit: int) -> list[float]:
    """NDCG@10 on valid after greedy completions, and after empty ones."""
    s = settings.policy
    valid, train = (splits.load(*FILES, split, s.prompt_history) for split in ("valid", "train"))
    items = ItemEncoder(policy, splits.catalogue_texts(FILES[1])).embed().cpu()
    users = generate.user_states(policy, train.bodies, settings.embed.whiten_prompts)
    whitening = Whitening.fit(users.numpy(), items.numpy(), s.whiten_dim or policy.width, s.whiten_power)
    ranked = ranking.rank(Builtin(policy), whitening, whitening.item(items), valid, limit, 10, "valid")
    return [float(metrics.ndcg(rank, 10).mean()) for rank in (ranked.rank, ranked.rank_without_reasoning)]


@torch.no_grad()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 64], help="sampling.max_new_tokens")
    settings = config.load("config/config.yaml", "config/quickstart.yaml")
    policy = Policy.load(MODEL, settings.policy)
    last = Policy(policy.model, policy.tokenizer, settings.policy.model_copy(update={"pooling": "last"}))
    bodies = splits.load(*FILES, "valid", settings.policy.prompt_history).bodies
    print("tokens forced ended moved apart ndcg@10 without_reasoning")
    for limit in parser.parse_args().tokens:
        figures = endings(last, bodies, settings.sampling, limit) + before_rl(policy, settings, limit)
        print(limit, *(f"{value:.4f}" for value in figures))


if __name__ == "__main__":
    main()
