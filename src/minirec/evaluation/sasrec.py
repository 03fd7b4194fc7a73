"""SASRec (arXiv 1808.09781), a small transformer over the items of a history, without a language model (METHOD 5)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from minirec.data.splits import Split
from minirec.evaluation.metrics import K, ndcg
from minirec.evaluation.sequences import Sequences
from minirec.experiment.sections import SASRec as Settings
from minirec.model import scoring
from minirec.model.scoring import SCORES
from minirec.progress import log, progress

HISTORIES = 1024  # in one forward pass


class SASRec(nn.Module):
    """Attention from every item of a history to the earlier ones; the state at the last one scores the catalogue."""

    def __init__(self, items: int, length: int, settings: Settings) -> None:
        """items: size of the catalogue. length: of a history, of which the model reads the latest items."""
        super().__init__()
        width, dropout = settings.width, settings.dropout
        self.item, self.position = nn.Embedding(items, width), nn.Embedding(length, width)
        for embedding in (self.item, self.position):
            nn.init.normal_(embedding.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(width, 1, width, dropout, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)

    def states(self, history: Tensor) -> Tensor:
        """State [n, w, d] at each item of histories [n, w], catalogue rows padded right with -1; it sees no later item.

        States at the padding mean nothing.
        """
        width = history.shape[1]
        embedded = self.item(history.clamp(min=0)) * self.item.embedding_dim**0.5 + self.position.weight[:width]
        causal = nn.Transformer.generate_square_subsequent_mask(width, device=history.device)
        states: Tensor = self.layers(self.dropout(embedded), mask=causal, is_causal=True)
        return states

    def forward(self, history: Tensor) -> Tensor:
        """State [n, d] at the end of each history [n, w]; its inner products with the item vectors are the scores."""
        last = (history >= 0).sum(1) - 1
        return self.states(history)[torch.arange(len(history)), last]

    @torch.no_grad()
    def last_states(self, history: np.ndarray) -> np.ndarray:
        """As `forward`, of arrays and without dropout; of a history longer than in training, the latest items count."""
        self.eval()
        parts = torch.from_numpy(latest(history, self.position.num_embeddings)).split(HISTORIES)
        found: np.ndarray = torch.cat([self(part) for part in parts]).numpy()
        return found

    def item_vectors(self) -> np.ndarray:
        """Vectors of the items [m, d]."""
        vectors: np.ndarray = self.item.weight.detach().numpy()
        return vectors

    def scores(self, history: np.ndarray) -> np.ndarray:
        """Score [n, m] of every item after each history [n, w]."""
        return self.last_states(history) @ self.item_vectors().T


def latest(history: np.ndarray, count: int) -> np.ndarray:
    """The last `count` items of each history [n, w], catalogue rows padded right with -1.

    >>> latest(np.array([[4, 5, 6], [7, -1, -1]]), 2).tolist()
    [[5, 6], [7, -1]]
    """
    length = (history >= 0).sum(1, keepdims=True)
    slot = np.maximum(length - count, 0) + np.arange(count)
    return np.where(slot < length, np.take_along_axis(history, slot.clip(max=history.shape[1] - 1), 1), -1)


def fit(sequences: Sequences, valid: Split, items: int, settings: Settings) -> SASRec:
    """Train on the steps of the training samples by cross-entropy over the whole catalogue of `items`.

    Training stops after `patience` epochs without a better NDCG@10 on valid; the weights of the best epoch are kept.
    Raises NotFinite if a score is not finite.
    """
    torch.manual_seed(settings.seed)
    model = SASRec(items, sequences.own.shape[1], settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0)
    trained = torch.from_numpy(np.flatnonzero(sequences.own.any(1)))
    best, best_epoch, kept = -1.0, 0, model.state_dict()
    with progress("sasrec", settings.epochs, "epochs") as bar:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            for rows in trained[torch.randperm(len(trained))].split(settings.batch_samples):
                _step(model, sequences, rows.numpy(), optimizer)
            quality = _valid_ndcg(model, valid)
            bar.add(1)
            if quality > best:
                best, best_epoch, kept = quality, epoch, copy.deepcopy(model.state_dict())
            elif epoch - best_epoch >= settings.patience:
                break
    log.info("sasrec: NDCG@10 on valid %.4f after epoch %d of %d", best, best_epoch, epoch)
    model.load_state_dict(kept)
    return model.eval()


def _step(model: SASRec, sequences: Sequences, rows: np.ndarray, optimizer: torch.optim.Optimizer) -> None:
    """One optimiser step on the mean loss of these samples' own steps."""
    optimizer.zero_grad()
    own = torch.from_numpy(sequences.own[rows])
    at_once = max(1, SCORES // (model.item.num_embeddings * own.shape[1]))  # samples
    for part, of_part in zip(torch.from_numpy(sequences.items[rows]).split(at_once), own.split(at_once), strict=True):
        scores = model.states(part[:, :-1])[of_part] @ model.item.weight.T
        loss = cross_entropy(scores, part[:, 1:][of_part], reduction="sum") / own.sum()
        loss.backward()
    optimizer.step()


def _valid_ndcg(model: SASRec, valid: Split) -> float:
    """NDCG@10 on valid, the history masked."""
    model.eval()
    at_once = max(1, SCORES // model.item.num_embeddings)
    ranks = [
        scoring.ranks(torch.from_numpy(model.scores(history)), target, torch.from_numpy(history)).numpy()
        for history, target in zip(
            np.split(valid.history, range(at_once, len(valid), at_once)),
            torch.from_numpy(valid.target).split(at_once),
            strict=True,
        )
    ]
    return float(ndcg(np.concatenate(ranks), K).mean())
