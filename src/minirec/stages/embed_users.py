"""embed_users: read the prompts of all training samples with the base model, for heads of any seed (METHOD 4.2)."""

from __future__ import annotations

from pathlib import Path

from minirec.data import splits
from minirec.experiment import sections
from minirec.model.generate import user_states
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.storage import tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output


def run(
    *,
    policy: sections.Policy,
    passes: sections.Passes,
    samples: Path,
    catalogue: Path,
    whitening: Path,
    model: Path,
    users: Output,
) -> None:
    """Write users.safetensors: `sample_id` [n] and `embedding` [n, k], whitened states after empty completions."""
    pool = splits.load(samples, catalogue, "train", policy.prompt_history)
    loaded = Policy.load(model, policy, batch_tokens=passes.batch_tokens)
    states = user_states(loaded, pool.bodies, whitening=Whitening.read(whitening))
    inputs = {"samples": samples, "catalogue": catalogue, "whitening": whitening, "model": model}
    provenance = Provenance("embed_users", policy.model_dump(), inputs)
    tensors.write({"sample_id": pool.sample_id, "embedding": states.numpy()}, users, provenance)
