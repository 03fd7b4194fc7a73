"""SASRec: what it learns, and that it sees neither the future nor the targets of valid and test."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn.functional import cross_entropy

from minirec.data.splits import Split
from minirec.evaluation import sasrec
from minirec.evaluation.sequences import Sequences, training_sequences
from minirec.experiment.sections import SASRec as Settings
from minirec.storage import tables

ITEMS = 12


def split(history, target) -> Split:
    """Samples with histories of any length."""
    width = max(map(len, history))
    padded = np.array([row + [-1] * (width - len(row)) for row in history])
    return Split(np.arange(len(target)), np.array(target), padded, [""] * len(target))


def by_pairs(count: int) -> tuple[Sequences, Split]:
    """Samples whose target follows from the item before the last: only attention to it can tell."""
    generator = np.random.default_rng(0)
    history = generator.integers(0, ITEMS, (count, 3))
    target = (history[:, 1] + 5) % ITEMS
    items = np.concatenate([history, target[:, None]], 1)
    own = np.zeros((count, 3), dtype=bool)
    own[:, -1] = True
    valid = generator.integers(0, ITEMS, (50, 3))
    return Sequences(items, own), split(valid.tolist(), ((valid[:, 1] + 5) % ITEMS).tolist())


def scored(model, history: list[int]) -> np.ndarray:
    return model.scores(np.array([history]))[0]


@pytest.fixture(scope="module")
def fitted():
    sequences, valid = by_pairs(600)
    return sasrec.fit(sequences, valid, ITEMS, Settings(width=32, dropout=0.0, patience=20))


def test_it_learns_what_follows_an_item_that_is_not_the_last(fitted):
    generator = np.random.default_rng(1)
    for history in generator.integers(0, ITEMS, (20, 3)).tolist():
        assert scored(fitted, history).argmax() == (history[1] + 5) % ITEMS


def test_a_state_depends_on_no_later_item_and_on_no_padding(fitted):
    fitted.eval()
    whole = fitted.states(torch.tensor([[4, 7, 2]]))
    other = fitted.states(torch.tensor([[4, 7, 9]]))
    assert torch.allclose(whole[:, :2], other[:, :2], atol=1e-6)
    assert not torch.allclose(whole[:, 2], other[:, 2], atol=1e-2)
    assert np.allclose(scored(fitted, [4, 7, -1]), scored(fitted, [4, 7]), atol=1e-5)


def test_of_a_longer_history_than_in_training_the_latest_items_count(fitted):
    assert np.allclose(scored(fitted, [1, 1, 4, 7, 2]), scored(fitted, [4, 7, 2]), atol=1e-5)
    found = sasrec.latest(np.array([[1, 2, 3, 4], [5, 6, -1, -1], [7, 8, 9, -1]]), 2)
    assert found.tolist() == [[3, 4], [5, 6], [8, 9]]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    sequences, valid = by_pairs(40)
    settings = Settings(width=8, epochs=2)
    first, again = (sasrec.fit(sequences, valid, ITEMS, settings).scores(valid.history) for _ in range(2))
    other = sasrec.fit(sequences, valid, ITEMS, settings.model_copy(update={"seed": 1})).scores(valid.history)
    assert first.tobytes() == again.tobytes()
    assert not np.allclose(first, other)


@pytest.mark.parametrize("scores", [1, 5 * 3 * ITEMS, 2**24])
def test_a_step_follows_the_mean_loss_of_the_own_steps_whatever_fits_into_memory(monkeypatch, scores):
    monkeypatch.setattr(sasrec, "SCORES", scores)
    sequences, _ = by_pairs(12)
    sequences.own[::2, 0] = True  # some samples own two steps
    torch.manual_seed(0)
    model = sasrec.SASRec(ITEMS, 3, Settings(width=8, dropout=0.0))
    losses = []
    for row, own in zip(sequences.items, sequences.own, strict=True):
        for end in np.flatnonzero(own):
            history = torch.from_numpy(row[None, : end + 1])
            losses.append(cross_entropy(model(history) @ model.item.weight.T, torch.tensor(row[end + 1 : end + 2])))
    expected = torch.autograd.grad(torch.stack(losses).mean(), list(model.parameters()), allow_unused=True)
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.grad.clone() for p in model.parameters()]))
    sasrec._step(model, sequences, np.arange(12), optimizer)
    for found, of_loops in zip(seen[0], expected, strict=True):
        assert torch.allclose(found, of_loops, atol=1e-6)


def test_the_weights_of_the_best_epoch_are_kept(monkeypatch):
    quality = iter([0.1, 0.5, 0.5, 0.2, 0.9])
    weights = []

    def valid_ndcg(model, valid):
        weights.append(model.item.weight.detach().clone())
        return next(quality)

    monkeypatch.setattr(sasrec, "_valid_ndcg", valid_ndcg)
    sequences, valid = by_pairs(40)
    model = sasrec.fit(sequences, valid, ITEMS, Settings(width=8, patience=2))
    assert len(weights) == 4  # two epochs without a better one; the fifth is never seen
    assert torch.equal(model.item.weight, weights[1])


def table(rows) -> pa.Table:
    """Samples (split, user, history, target, places of the history's items and of the target)."""
    columns = [
        {
            "sample_id": number,
            "split": split,
            "user_id": user,
            "target_row": target,
            "history_rows": history,
            "history_rating": [None] * len(history),
            "history_age_ms": [places[-1] - place for place in places[:-1]],
            "timestamp": places[-1],
        }
        for number, (split, user, history, target, places) in enumerate(rows)
    ]
    return pa.Table.from_pylist(columns, tables.TABLES["samples"].schema())


def test_a_step_belongs_to_the_sample_with_the_longest_history_before_it():
    rows = [
        ("train", "u", [3], 5, [1, 2]),
        ("train", "u", [3, 5], 6, [1, 2, 3]),
        ("train", "u", [5, 6], 7, [2, 3, 4]),  # 5 -> 6 has more before it in the sample above
        ("train", "v", [3], 5, [1, 2]),  # another user
        ("train", "w", [1, 2], 4, [1, 2, 3]),  # nobody else has 1 -> 2
        ("test", "u", [6, 7], 8, [3, 4, 5]),
    ]
    found = training_sequences(table(rows))
    assert found.items.tolist() == [[3, 5, -1], [3, 5, 6], [5, 6, 7], [3, 5, -1], [1, 2, 4]]
    assert found.own.tolist() == [[True, False], [False, True], [False, True], [True, False], [True, True]]
    assert found.target.tolist() == [5, 6, 7, 5, 4]
    assert sorted(zip(*(part.tolist() for part in found.steps), strict=True)) == [
        *[(1, 2), (2, 4), (3, 5), (3, 5), (5, 6), (6, 7)]
    ]
