"""gradient: compute each sample's gradient, Hessian-vector product, error and embedding (METHOD 4.4 to 4.6)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minirec.errors import InputError
from minirec.experiment import sections
from minirec.model.whitening import WHITENING, Whitening
from minirec.progress import progress
from minirec.storage import tensors
from minirec.storage.artefact import Provenance
from minirec.storage.files import Output
from minirec.training.chunks import chunks
from minirec.training.derivatives import HiddenStateDerivatives

if TYPE_CHECKING:
    from minirec.training.lora_derivatives import LoraDerivatives


def run(
    *,
    policy: sections.Policy,
    gradient: sections.Gradient,
    passes: sections.Passes,
    samples: Path,
    item_table: Path,
    rollouts: Path,
    hidden: Path,
    adapter: Path | None = None,
    whitening: Path | None = None,
    catalogue: Path | None = None,
    model: Path | None = None,
    gradients: Output,
    embeddings: Output,
) -> None:
    """Write g and Hg, by the hidden state or by the adapter's weights, error norm and embedding z of every sample."""
    shape = tensors.shapes(hidden, "sample_id", "hidden")["hidden"]
    table = torch.from_numpy(tensors.read(item_table, "items")["items"])
    table = table.to("cuda" if torch.cuda.is_available() else "cpu")
    inputs = {"samples": samples, "items": item_table, "rollouts": rollouts, "hidden": hidden}
    if whitening or adapter:
        inputs["whitening"] = whitening or Path(str(adapter), WHITENING)
    derivatives: HiddenStateDerivatives | LoraDerivatives
    derivatives = HiddenStateDerivatives(table, Whitening.read(whitening, adapter), policy.tau, gradient, shape)
    if gradient.space == "lora":
        if catalogue is None or model is None or adapter is None:
            raise InputError("gradient --space lora needs --catalogue, --model and --adapter")
        from minirec.model.policy import Policy  # here, as it loads transformers, which takes seconds
        from minirec.training.lora_derivatives import LoraDerivatives

        inputs |= {"catalogue": catalogue, "model": model, "adapter": adapter}
        loaded = Policy.load(model, policy, adapter, passes.batch_tokens)
        derivatives = LoraDerivatives(loaded, derivatives, samples, catalogue)
    n = shape[0]
    of_sample: dict[str, tuple[int, ...]]
    of_sample = {"gradient": (n, derivatives.width), "hvp": (n, derivatives.width), "error_norm": (n,)}
    provenance = Provenance("gradient", {"tau": policy.tau} | gradient.model_dump(), inputs)
    with (
        tensors.writer(of_sample, gradients, provenance) as append,
        tensors.writer({"embedding": (n, table.shape[1])}, embeddings, provenance) as append_embedding,
        progress("gradient", n, "samples") as bar,
    ):
        texts = gradient.space == "lora"
        for chunk in chunks(samples, rollouts, hidden, n, derivatives.chunk, gradient.advantage, texts):
            if (last := max(int(chunk.target.max()), int(chunk.history.max()))) >= len(table):
                raise InputError(
                    f"{samples} refers to row {last}, beyond the {len(table)} of {item_table}; run embed again"
                )
            g, hv, error, z = derivatives(chunk)
            append(sample_id=chunk.sample_id, gradient=g.numpy(), hvp=hv.numpy(), error_norm=error.numpy())
            append_embedding(sample_id=chunk.sample_id, embedding=z.numpy())
            bar.add(len(chunk))
