"""A step of the trainer against a plain loop: one text at a time, no cache, no micro-batch, nothing kept or shared."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity
from training_runs import gradients, run
from transformers import AutoTokenizer

from minirec.experiment import sections
from minirec.experiment.schedule import evaluated_steps
from minirec.model import generate
from minirec.model.completions import with_marker
from minirec.training import callbacks, rewards
from minirec.training.item_table import ItemTable
from minirec.training.trainer import RecommenderTrainer

ALL_AT_ONCE = {"batch_prompts": 11, "micro_batch_prompts": 3, "epochs": 2, "evaluation_steps": 0}
BETA = 0.5  # rank and probability weigh alike


def states(policy, start, text):
    """The last layer's states [t, d] of a text's tokens after a start, read on their own."""
    found = policy.decoder(input_ids=torch.tensor([start + text])).last_hidden_state[0]
    return found[len(start) :], found[len(start) - 1 : -1]  # of each token; of the one before it


def item_vector(trainer, row):
    prompts = trainer.policy.item_prompts
    return trainer.head.item(states(trainer.policy, prompts.prefix, trainer.items.encoder.bodies[row])[0].mean(0))


def clipped(log_p, old, a):
    """-min(rho A, clip(rho, .8, 1.28) A), and whether the clip decides."""
    rho = (log_p - old).exp()
    return -torch.min(rho * a, rho.clip(0.8, 1.28) * a), (rho.clip(0.8, 1.28) * a < rho * a).sum().item()


def plain_loss(trainer, inputs, written, rows, settings, first):
    """METHOD 3, sample by sample; also what the history notes, and how many items of the batch the histories mask.

    first: an empty dictionary at the first update on some completions, which keeps there what later updates need;
    it also counts the probability ratios beyond the clip.
    """
    policy, samples = trainer.policy, trainer.samples.take(inputs)
    table = [item_vector(trainer, row) for row in range(len(trainer.items))]
    sampled = sum(len(tokens) for group in written.tokens for tokens in group)
    token_loss, item_loss, item_nll, masked = torch.zeros(()), torch.zeros(()), 0.0, 0
    noted = {"reward": 0.0, "reward_std": 0.0}
    noted["forced_share"] = sum(map(sum, written.forced)) / sum(map(len, written.forced))
    first["clipped"] = 0
    for i, body in enumerate(samples.bodies):
        target, history = int(samples.target[i]), {int(row) for row in samples.history[i] if row >= 0}
        allowed = [row for row in range(len(table)) if row == target or row not in history]
        rewards, log_ps, users = [], [], []
        for tokens, forced in zip(written.tokens[i], written.forced[i], strict=True):
            start = policy.user_prompts.prefix + policy.user_prompts.encode(body)
            after, before = states(policy, start, with_marker(policy, tokens) if forced else tokens)
            user = trainer.head.user(after.mean(0))
            score = {row: cosine_similarity(user, table[row], dim=0).item() / policy.settings.tau for row in allowed}
            rank = sorted(allowed, key=lambda row: (-score[row], row)).index(target) + 1
            pi = math.exp(score[target]) / sum(math.exp(s) for s in score.values())
            rewards.append((1 - BETA) * (1 / math.log2(1 + rank) if rank <= 1000 else 0) + BETA * pi)
            log_p = policy.logits(before[: len(tokens)]).log_softmax(-1)
            log_ps.append(log_p[range(len(tokens)), tokens])
            users.append(user)
        mean = sum(rewards) / len(rewards)
        spread = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
        noted["reward"] += mean / len(samples)
        noted["reward_std"] += spread / len(samples)
        advantage = [0.0 if max(rewards) == min(rewards) else (r - mean) / (spread + 1e-8) for r in rewards]
        advantage = first.setdefault(("advantage", i), advantage)
        for g, (a, log_p) in enumerate(zip(advantage, log_ps, strict=True)):
            lost, beyond = clipped(log_p, first.setdefault(("log_p", i, g), log_p.detach()), a)
            token_loss = token_loss + lost.sum() / sampled
            first["clipped"] += beyond
        candidates = [row for row in rows if row == target or row not in history]
        masked += len(rows) - len(candidates)
        best = sorted(range(len(rewards)), key=lambda g: (-advantage[g], g))[: settings["relabel_topk"]]
        for g in best:
            scores = torch.stack([cosine_similarity(users[g], table[row], dim=0) for row in candidates])
            log_pi = (scores / policy.settings.tau).log_softmax(0)[candidates.index(target)]
            a = 1.0 if settings["item_advantage"] == "one" else advantage[g]
            lost, beyond = clipped(log_pi, first.setdefault(("log_pi", i, g), log_pi.detach()), a)
            item_loss = item_loss + lost / len(samples) / len(best)
            item_nll -= log_pi.item() / len(samples) / len(best)
            first["clipped"] += beyond
    noted = dict(first.setdefault("noted", noted))
    parts = {"token": token_loss, "item": item_loss}
    noted |= {f"{name}_loss": part.item() if name in settings["losses"] else 0.0 for name, part in parts.items()}
    noted |= {"item_nll": item_nll} if "item" in settings["losses"] else {}
    return sum(parts[name] for name in settings["losses"]), noted, masked


def scored(monkeypatch):
    """What the trainer wrote and judged last."""
    kept, write, embed = {}, RecommenderTrainer._write_completions, ItemTable.refresh_batch

    def writes(self, *given):
        kept["written"] = write(self, *given)
        return kept["written"]

    def embeds(self, rows, learned):
        kept["rows"] = rows.tolist()
        return embed(self, rows, learned)

    monkeypatch.setattr(RecommenderTrainer, "_write_completions", writes)
    monkeypatch.setattr(ItemTable, "refresh_batch", embeds)
    return kept


def of_unequal_lengths(monkeypatch, tokenizer, marker):
    """Every second sample's first completion ends its turn, every third one's second writes the marker itself."""
    draws, sample, marker_ids = (
        generate.sampling_uniforms,
        generate.sample_tokens,
        torch.tensor(tokenizer.encode(marker)),
    )

    def uniforms(seed, samples, *given):
        drawn = draws(seed, samples, *given)
        for i, number in enumerate(samples):  # a negative number is a token
            if number % 2 == 0:
                drawn[i, 0, 2] = -tokenizer.eos_token_id
            if number % 3 == 0:
                drawn[i, 1, 1 : 1 + len(marker_ids)] = -marker_ids
        return drawn

    def scripted(logits, drawn, *given):
        return torch.where(drawn < 0, -drawn.long(), sample(logits, drawn.clamp(min=0), *given))

    monkeypatch.setattr(generate, "sampling_uniforms", uniforms)
    monkeypatch.setattr(generate, "sample_tokens", scripted)


@pytest.mark.parametrize("head", ["none", "shared", "separate"])
@pytest.mark.parametrize(
    ("losses", "relabel_topk", "item_advantage"),
    [(["token", "item"], 1, "group"), (["token"], 1, "group"), (["item"], 2, "one"), (["item"], 2, "group")],
)
def test_a_step_has_the_loss_and_gradients_of_a_plain_loop(
    project, tiny_model, defaults, tmp_path, monkeypatch, losses, relabel_topk, item_advantage, head
):
    settings = {"losses": losses, "relabel_topk": relabel_topk, "item_advantage": item_advantage}
    kept, seen, ends, whole = scored(monkeypatch), [], set(), RecommenderTrainer.training_step

    def step(self, model, inputs, *rest):
        loss = whole(self, model, inputs, *rest)
        if self.state.global_step in (1, 2):  # the incomplete last batch of an epoch, and a whole one after it
            found, written = gradients(self), kept["written"]
            self.policy.model.zero_grad()
            expected, noted, masked = plain_loss(self, inputs, written, kept["rows"], settings, {})
            expected.backward()
            targets = self.samples.take(inputs).target.tolist()
            seen.append((found, gradients(self), loss.item(), expected.item(), noted, masked, targets))
            rows = zip(written.tokens, written.forced, strict=True)
            ends.update((len(tokens), forced) for row in rows for tokens, forced in zip(*row, strict=True))
        return loss

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    of_unequal_lengths(monkeypatch, AutoTokenizer.from_pretrained(tiny_model), defaults.policy.marker)
    changes = {"batch_prompts": 8, "item_refresh_steps": 1, "head": head, "head_learning_rate": 0.05}
    changes |= {"of_sampling": {"completions": 4, "max_new_tokens": 8}, "beta": BETA, "learning_rate": 0.01}
    _, history = run(project, tiny_model, defaults, tmp_path, **(ALL_AT_ONCE | changes | settings))
    assert all((value is None) == ("item" not in losses) for value in history["item_nll"])
    last, whole_batch = (targets for *_, targets in seen)
    assert (len(last), len(whole_batch)) == (3, 8)
    assert len(set(whole_batch)) < 8  # a target that two samples share
    assert ends >= {(3, True), (4, False), (8, True)}  # the turn, the marker, the limit
    for number, (found, plain, loss, plain_loss_, noted, masked, _) in enumerate(seen, start=1):
        assert masked > 0
        assert loss == pytest.approx(plain_loss_, rel=1e-4, abs=1e-5)
        assert {name: history[name][number] for name in noted} == pytest.approx(noted, rel=1e-4, abs=1e-5)
        assert {name for name, gradient in plain.items() if gradient.any()} == {n for n, g in found.items() if g.any()}
        for name, gradient in plain.items():
            assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("losses", [["token"], ["item"]])
def test_a_second_update_on_the_same_completions_has_the_loss_and_gradients_of_a_plain_loop(
    project, tiny_model, defaults, tmp_path, monkeypatch, losses
):
    settings = {"losses": losses, "relabel_topk": 2, "item_advantage": "group"}
    kept, seen, first, whole = scored(monkeypatch), [], {}, RecommenderTrainer.training_step

    def step(self, model, inputs, *rest):
        loss = whole(self, model, inputs, *rest)
        found = gradients(self)
        if self.state.global_step % 2 == 0:
            first.clear()
        self.policy.model.zero_grad()
        expected, noted, _ = plain_loss(self, inputs, kept["written"], kept["rows"], settings, first)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-5)
        for name, gradient in gradients(self).items():
            assert (found[name] - gradient).norm() <= 1e-3 * gradient.norm(), name
            self.policy.model.get_parameter(name).grad = found[name]
        seen.append((noted, first["clipped"]))
        return loss

    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    changes = {"batch_prompts": 8, "item_refresh_steps": 1, "updates_per_rollout": 2, "extra_negatives": 7}
    changes |= {"of_sampling": {"completions": 4, "max_new_tokens": 8}, "beta": BETA, "learning_rate": 0.01}
    _, history = run(project, tiny_model, defaults, tmp_path, **(ALL_AT_ONCE | changes | settings))
    assert [len(ids) for ids in history["sample_ids"]] == [8, 8, 3, 3] * 2
    assert history["sample_ids"][:4:2] == history["sample_ids"][1:4:2]
    for number, (noted, beyond) in enumerate(seen):
        assert {name: history[name][number] for name in noted} == pytest.approx(noted, rel=1e-4, abs=1e-5)
        assert number % 2 == 1 or beyond == 0  # at a first update every ratio is 1
    assert seen[1][1] > 0


def test_the_item_table_is_renewed_at_a_refresh_and_between_two_for_the_items_of_the_batch(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    kept, seen, whole = scored(monkeypatch), [], rewards.score_completions
    trainers = []

    def step(self, *given):
        trainers[:] = [self]
        return trained(self, *given)

    def judged(hidden, items, *rest):
        with torch.no_grad():
            now = torch.stack([item_vector(trainers[0], row) for row in range(len(items))])
        fresh = ((items - now).norm(dim=1) < 1e-4 * now.norm(dim=1)).nonzero().flatten().tolist()
        seen.append((trainers[0].state.global_step, set(fresh), set(kept["rows"])))
        return whole(hidden, items, *rest)

    trained = RecommenderTrainer.training_step
    monkeypatch.setattr(RecommenderTrainer, "training_step", step)
    monkeypatch.setattr(rewards, "score_completions", judged)
    changes = {"item_refresh_steps": 2, "evaluation_steps": 0, "learning_rate": 0.01, "head_learning_rate": 0.05}
    run(project, tiny_model, defaults, tmp_path, **changes)
    everything = set(range(30))
    assert [number for number, *_ in seen] == list(range(6))
    for number, fresh, rows in seen:
        assert fresh == (everything if number % 2 == 0 else rows), number


def written_in(project, tiny_model, defaults, folder, monkeypatch, sampling, **changes):
    """The completions of every step [steps][n][G], by a policy that does not move."""
    found, whole = [], RecommenderTrainer._write_completions

    def write(*arguments):
        written = whole(*arguments)
        found.append(written.tokens)
        return written

    with monkeypatch.context() as patched:
        patched.setattr(RecommenderTrainer, "_write_completions", write)
        still = {"learning_rate": 1e-12, "head": "none"}
        run(project, tiny_model, defaults, folder, of_sampling=sampling, **(ALL_AT_ONCE | still | changes))
    return found


def test_every_epoch_writes_other_completions(project, tiny_model, defaults, tmp_path, monkeypatch):
    first, second = written_in(project, tiny_model, defaults, tmp_path, monkeypatch, {"temperature": 2.0})
    assert sum(a == b for a, b in zip(first, second, strict=True)) < len(first) / 2


def test_completions_are_sampled_at_the_temperature_among_the_likeliest_tokens(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    def distinct(name, **sampling):
        """Prompts whose completions differ."""
        rows, *_ = written_in(project, tiny_model, defaults, tmp_path / name, monkeypatch, sampling, epochs=1)
        return sum(any(tokens != row[0] for tokens in row) for row in rows)

    assert distinct("greedy", top_k=1, temperature=2.0) == 0
    assert distinct("cold", top_k=0, temperature=1e-4) == 0
    assert distinct("warm", top_k=0, temperature=2.0) == 11


def test_tokens_that_another_engine_sampled_are_weighted_by_its_probabilities(
    project, tiny_model, defaults, tmp_path, monkeypatch
):
    """The engine gives every token half the policy's probability in even prompts, so that it counts twice there."""
    write, whole = RecommenderTrainer._write_completions, RecommenderTrainer._compute_loss
    even, expected, found = {}, [], []

    def writes(self, prompts, sample_id):
        written = write(self, prompts, sample_id)
        log_p, real, _ = generate.teacher_forced(self.policy, prompts, written)
        log_p = log_p.detach() - math.log(2) * torch.tensor(sample_id % 2 == 0)[:, None, None]
        written.log_p = [[log_p[i, g][real[i, g]].tolist() for g in range(2)] for i in range(len(prompts))]
        even.update({tuple(p): number % 2 == 0 for p, number in zip(prompts, sample_id, strict=True)})
        return written

    def loss(self, model, inputs):
        weight = torch.tensor([2.0 if even[tuple(prompt)] else 1.0 for prompt in inputs.prompts])
        lengths = torch.tensor([[len(tokens) for tokens in row] for row in inputs.completions.tokens])
        expected.append(-(weight[:, None] * lengths * inputs.advantage).sum().item() * inputs.token_share)
        found.append(whole(self, model, inputs))
        return found[-1]

    monkeypatch.setattr(RecommenderTrainer, "_write_completions", writes)
    monkeypatch.setattr(RecommenderTrainer, "_compute_loss", loss)
    of_unequal_lengths(monkeypatch, AutoTokenizer.from_pretrained(tiny_model), defaults.policy.marker)
    sampling = {"completions": 2, "max_new_tokens": 8}
    run(project, tiny_model, defaults, tmp_path, of_sampling=sampling, **(ALL_AT_ONCE | {"losses": ["token"]}))
    assert [value.item() for value in found] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert max(map(abs, expected)) > 0.01


@pytest.mark.parametrize(
    ("scheduler", "expected"),  # of the peak, in 6 steps
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("constant_with_warmup", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3]),
        ("cosine", [1 / 3, 2 / 3, 1, 1, 3 / 4, 1 / 4]),
    ],
)
def test_the_rate_rises_to_its_peak_in_equal_parts_and_no_step_has_the_rate_0(
    project, tiny_model, defaults, tmp_path, scheduler, expected
):
    changes = {"scheduler": scheduler, "warmup_steps": 3, "learning_rate": 1e-3}
    _, history = run(project, tiny_model, defaults, tmp_path, **changes)
    assert [rate / 1e-3 for rate in history["learning_rate"]] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["warmup_steps", "max_grad_norm", "learning_rate"])
def test_the_trainer_gets_the_setting(defaults, tmp_path, name):
    changed = defaults.train.model_copy(update={name: 7})
    assert getattr(callbacks.grpo_arguments(changed, 4, 0, tmp_path, validated=True), name) == 7


@pytest.mark.parametrize("settings", [sections.Train, sections.Proxy])
@pytest.mark.parametrize(
    ("samples", "expected"),  # 48 a step, 10 epochs, a warm-up of 32 steps
    [
        (64, [20]),
        (256, [32, 36, 40, 44, 48, 52, 56, 60]),
        (512, [32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 110]),
        (1024, [32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 220]),
        (10_748, [167, 334, 501, 668, 835, 1002, 1169, 1336, 1503, 1670, 1837, 2004, 2171, 2240]),
    ],
)
def test_the_papers_budgets_are_evaluated_as_often_as_in_the_published_code(settings, samples, expected):
    assert evaluated_steps(settings(), samples) == expected


def test_evaluations_do_not_come_between_two_updates_on_the_same_completions():
    train = sections.Train(evaluation_steps=4, updates_per_rollout=3, warmup_steps=8, batch_prompts=10, epochs=2)
    assert evaluated_steps(train, 25) == [12, 18]  # 2 x 3 x 3 steps, every 6th from the 8th on


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_completions_with_the_same_tokens_have_the_same_reward(
    project, tiny_model, defaults, tmp_path, monkeypatch, dtype
):
    draws, whole, seen = generate.sampling_uniforms, rewards.score_completions, []

    def alike(seed, samples, completions, count, epoch=0):
        return draws(seed, samples, 1, count, epoch).expand(-1, completions, -1).contiguous()

    def judged(*given):
        seen.append(whole(*given))
        return seen[-1]

    monkeypatch.setattr(generate, "sampling_uniforms", alike)
    monkeypatch.setattr(rewards, "score_completions", judged)
    more = {"completions": 4, "max_new_tokens": 8}
    run(project, tiny_model, defaults, tmp_path, of_policy={"dtype": dtype}, of_sampling=more, epochs=1)
    assert len(seen) == 3
    assert all((found["reward"] == found["reward"][:, :1]).all() for found in seen)
    assert not any(found["advantage"].any() for found in seen)
