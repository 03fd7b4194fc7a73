"""minirec pick: from the rollouts of another library to prompts that its trainer takes."""

import json
import re

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import load_from_disk

from minirec.cli import main
from minirec.selection.curriculum import curriculum_order
from minirec.selection.greedy import greedy
from minirec.selection.pick import pick

N, G = 40, 4
REWARDS = np.random.default_rng(0).integers(0, 2, (N, G)).astype(float) * np.linspace(0, 1, N)[:, None]


@pytest.fixture
def wide(tmp_path):
    """Prompts with lists of rewards."""
    path = tmp_path / "wide.jsonl"
    with path.open("w") as stream:
        for number, rewards in enumerate(REWARDS.tolist()):
            row = {"id": f"q{number}", "prompt": [{"role": "user", "content": f"word{number}"}], "rewards": rewards}
            stream.write(json.dumps(row | {"answer": number}) + "\n")
    return path


def run(path, *words, out="picks.jsonl", budget=10, code=0):
    """Run the command; returns the file that it writes."""
    out = path.parent / out
    assert main.main(["pick", str(path), "--budget", str(budget), "--out", str(out), *words]) == code
    return out


def rows(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_picks_are_those_of_the_library_in_the_order_of_the_curriculum(wide):
    found = rows(run(wide, "--group-size", "4"))
    expected = pick(REWARDS, 10)
    assert {row["answer"] for row in found} == set(expected.tolist())  # all means differ, so nothing is drawn
    assert [row["answer"] for row in found] == curriculum_order(expected, REWARDS.mean(1)[expected], 4, 0).tolist()
    assert [row["minirec"]["position"] for row in found] == list(range(10))
    assert [row["minirec"]["group"] for row in found] == [0] * 5 + [1] * 5
    for row in found:
        assert row["minirec"]["mean_reward"] == pytest.approx(REWARDS[row["answer"]].mean())
        assert row["minirec"]["reward_std"] == pytest.approx(REWARDS[row["answer"]].std(ddof=1))
        assert row["prompt"] == [{"role": "user", "content": f"word{row['answer']}"}]
        assert "rewards" not in row


def test_every_file_and_order_holds_the_same_prompts(wide):
    by_json = [row["id"] for row in rows(run(wide))]
    table = pq.read_table(run(wide, out="picks.parquet"))
    assert table["id"].to_pylist() == by_json
    assert run(wide, "--id", "id", out="picks.txt").read_text().split() == by_json
    as_picked = [row["answer"] for row in rows(run(wide, "--order", "picks"))]
    assert as_picked == pick(REWARDS, 10).tolist()


def test_prompts_that_are_as_good_are_drawn_by_the_seed_and_not_by_their_place(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"prompt": [f"q{n}" for n in range(200)], "rewards": [[0.0, 1.0]] * 199 + [[0.0, 0.0]]}).to_parquet(
        path
    )
    chosen = [[int(row["prompt"][1:]) for row in rows(run(path, "--seed", seed, "--order", "picks"))] for seed in "001"]
    assert chosen[0] == chosen[1] != chosen[2]
    assert max(chosen[0]) > 50


def test_a_control_of_as_many_is_written_beside_and_the_screen_says_how_they_differ(wide, capsys):
    out = run(wide, "--control", "random")
    control = rows(out.with_name("picks.control.jsonl"))
    assert len({row["id"] for row in control}) == 10
    means = [row["minirec"]["mean_reward"] for row in control]
    assert means == sorted(means, reverse=True)  # from easy to hard, as the picks
    said = capsys.readouterr().out
    both = len({row["id"] for row in control} & {row["id"] for row in rows(out)})
    assert f"as many by random, mean reward {np.mean([r['minirec']['mean_reward'] for r in control]):.3f}" in said
    assert f"{both} are in both" in said
    assert "40 prompts with 4 completions each" in said
    assert f"never rewarded{(REWARDS.max(1) == 0).sum():>20}" in said


def test_rewards_of_another_scale_are_mapped_and_said(tmp_path, capsys):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"prompt": list("abc"), "rewards": [[-2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]]}).to_parquet(path)
    (only,) = rows(run(path, budget=1))
    assert (only["prompt"], only["minirec"]["mean_reward"]) == ("b", 0.5)
    assert "rewards lie in -2 to 2 and are mapped to 0 to 1" in capsys.readouterr().out


def test_a_positive_reward_is_a_hit_also_where_rewards_are_mapped(tmp_path, capsys):
    path, rewards = tmp_path / "a.parquet", [[-1.0, 0.0], [0.0, 0.0], [1.0, -1.0]]
    pd.DataFrame({"prompt": list("abc"), "rewards": rewards}).to_parquet(path)
    (only,) = rows(run(path, "--method", "hit", budget=1))
    assert only["prompt"] == "abc"[pick(np.array(rewards), 1, method="hit")[0]] == "c"
    assert f"never rewarded{2:>20}" in capsys.readouterr().out


def test_diversity_spreads_the_picks_over_the_words_of_the_prompts(tmp_path):
    path = tmp_path / "a.parquet"
    texts = [f"{topic} {topic} story {n}" for topic in ("apples", "bridges", "comets", "deserts") for n in range(10)]
    pd.DataFrame({"prompt": texts, "rewards": [[0.0, 1.0]] * 39 + [[0.0, 0.0]]}).to_parquet(path)
    found = rows(run(path, "--diversity", "tfidf", budget=4))
    assert {row["prompt"].split()[0] for row in found} == {"apples", "bridges", "comets", "deserts"}


def test_a_setting_of_the_method_is_a_flag(wide):
    by_mu = {row["answer"] for row in rows(run(wide, "--mu", "0.2"))}
    assert by_mu != {row["answer"] for row in rows(run(wide))}
    assert run(wide, "--top-p", "0.5", code=1).name  # of another method


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        ([], {"budget": 41}, "the budget is 41, but there are 40 prompts"),
        ([], {"out": "picks.csv"}, "must end in .jsonl, .parquet or, with --id, .txt"),
        (["--on", "id"], {}, "--on says how rows of --dataset are found; name the data set, too"),
        (["--dataset", "x.jsonl"], {}, "x.jsonl does not exist"),
        (["--dataset", "x.jsonl", "--id", "id"], {"out": "a.txt"}, "--dataset gives rows, but"),
        (["--layout", "verl"], {}, "verl reads Parquet, but --out is"),
        (["--layout", "verl"], {"out": "a.parquet"}, "verl chooses the reward by data_source"),
        (["--id", "name"], {"out": "picks.txt"}, "--id is name, which is no column of the prompts"),
        (["--mu", "7"], {}, "mu"),
        (["--method", "diversity"], {}, "the method diversity needs embeddings, which rollouts do not have; add --div"),
        (
            ["--control", "kmeans"],
            {},
            "the method kmeans needs embeddings, which rollouts do not have; add --diversity",
        ),
        (["--group-size", "0"], {}, "--group-size is 0; it must be at least 1"),
        (["--report", "a.pdf"], {}, "--report is a.pdf; it must end in .html"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_nothing_is_written(wide, capsys, words, options, message):
    out = run(wide, *words, **options, code=1)
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["wide.jsonl"]


def test_rewards_that_are_all_alike_are_refused(tmp_path, capsys):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"prompt": list("abc"), "rewards": [[1.0, 1.0]] * 3}).to_parquet(path)
    run(path, budget=1, code=1)
    said = capsys.readouterr().err
    assert "all 6 rewards in rewards are 1, so there is nothing to choose by; name another with --reward" in said


@pytest.mark.slow
def test_the_logs_of_a_real_run_of_trl_are_recognised_and_trl_trains_on_the_picks_in_their_order(tiny_model, tmp_path):
    from datasets import load_dataset
    from trl import GRPOConfig, GRPOTrainer

    def reward_length(completions, **_):
        return [len(text) % 3 / 2 for text in completions]

    def train(data, folder, **more):
        settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 4, "use_cpu": True}
        settings |= {"report_to": [], "save_strategy": "no", "log_completions": True, "logging_steps": 1, "bf16": False}
        args = GRPOConfig(str(folder), **settings, **more)
        trainer = GRPOTrainer(str(tiny_model), reward_funcs=reward_length, args=args, train_dataset=data)
        trainer.train()
        return sorted((folder / "completions").glob("*.parquet"))

    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"prompt": f"number {n}", "answer": n}) + "\n" for n in range(12)))
    data = load_dataset("json", data_files=str(questions), split="train")
    logs = train(data, tmp_path / "first", num_train_epochs=2)
    assert len(logs) == 12
    out = run(logs[0].parent, "--dataset", str(questions), out="picks", budget=6)
    picks = load_from_disk(str(out))
    trained = train(picks, tmp_path / "second", shuffle_dataset=False, num_train_epochs=1)
    seen = [prompt for log in trained for prompt in pd.read_parquet(log)["prompt"][::2]]
    assert seen == picks["prompt"][:] == [f"number {answer}" for answer in picks["answer"]]


def test_the_page_shows_the_picks_in_the_order_of_the_file(wide, capsys):
    report = wide.parent / "picks.html"
    found = rows(run(wide, "--report", str(report), "--control", "random"))
    page = report.read_text(encoding="utf-8")
    assert re.findall(r'class="t">.*?(word\d+)', page) == [row["prompt"][0]["content"] for row in found]
    assert f"{report}: the same as a page" in capsys.readouterr().out


def test_diversity_by_an_encoder_passes_over_a_copy_and_another_word_is_no_encoder(tiny_model, tmp_path, capsys):
    path = tmp_path / "a.parquet"
    said = [("user", "Kind of Blue"), ("system", "Kind of Blue"), ("tool", "Kind of Blue"), ("user", "Abbey Road")]
    chats = [[{"role": role, "content": text}] for role, text in said]
    pd.DataFrame({"prompt": chats, "rewards": [[0.0, 1.0], [0.0, 0.9], [0.0, 0.8], [0.0, 0.1]]}).to_parquet(path)
    for seed in "0123":
        found = rows(run(path, "--diversity", str(tiny_model), "--method", "diversity", "--seed", seed, budget=2))
        assert {row["prompt"][0]["content"] for row in found} == {"Kind of Blue", "Abbey Road"}
    run(path, "--diversity", "bert", budget=2, code=1)
    assert "--diversity is bert, but must be none, tfidf or the folder of a sentence encoder" in capsys.readouterr().err


def test_with_vectors_and_gradients_the_paper_s_method_picks_as_it_does_from_its_signals(wide, capsys):
    generator = np.random.default_rng(1)
    vectors, gradients = generator.normal(size=(N, 3)), generator.normal(size=(N, 5))
    np.save(wide.parent / "z.npy", vectors)
    np.savez(wide.parent / "g.npz", g=gradients[::-1], id=[f"q{number}" for number in range(N)][::-1])
    files = ["--embeddings", str(wide.parent / "z.npy"), "--gradients", str(wide.parent / "g.npz"), "--id", "id"]
    mean = REWARDS.mean(1)
    bell = np.exp(-((mean - 0.3) ** 2) / (2 * mean.std() ** 2))
    centre = gradients.mean(0) / np.linalg.norm(gradients.mean(0))
    cosine = gradients @ centre / np.linalg.norm(gradients, axis=1)
    value = sum((one - one.min()) / np.ptp(one) for one in (bell, cosine))
    found = rows(run(wide, "--method", "minirec", "--order", "picks", "--mu", "0.3", *files))
    assert [row["answer"] for row in found] == greedy(vectors, value, 10).tolist()
    longest = rows(run(wide, "--method", "grand", *files))
    assert {row["answer"] for row in longest} == {*np.argsort(-np.linalg.norm(gradients, axis=1))[:10].tolist()}
    run(wide, "--method", "minirec", *files[2:], code=1)
    assert "the method minirec needs embeddings, which rollouts do not have; add --div" in capsys.readouterr().err
    run(wide, "--diversity", "tfidf", *files[:2], code=1)
    assert "--embeddings and --diversity both give vectors" in capsys.readouterr().err


def test_picks_and_control_are_rows_of_the_data_set_in_the_order_of_the_curriculum_also_in_the_columns_of_verl(
    wide, capsys
):
    data = wide.parent / "train.jsonl"
    originals = [{"question": f"word{number}", "key": f"q{number}", "answer": -number} for number in range(N)]
    data.write_text("".join(json.dumps(row) + "\n" for row in reversed(originals)))
    expected = rows(run(wide, "--control", "random"))
    data.write_text(data.read_text().replace('"key"', '"id"'))
    joined = ["--control", "random", "--dataset", str(data), "--on", "id"]
    found = rows(run(wide, *joined, out="joined.jsonl"))
    assert [row["answer"] for row in found] == [-row["answer"] for row in expected]
    assert [row["minirec"] for row in found] == [row["minirec"] for row in expected]
    assert f"the picks are rows of {data}, found by id" in capsys.readouterr().out
    words = [*joined, "--layout", "verl", "--data-source", "words"]
    table = pq.read_table(run(wide, *words, out="verl.parquet")).to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in table] == [-row["answer"] for row in expected]
    assert table[0]["prompt"] == [{"role": "user", "content": f"word{expected[0]['answer']}"}]
    assert table[0]["extra_info"]["index"] == expected[0]["answer"]
    control = pq.read_table(wide.parent / "verl.control.parquet").to_pylist()
    picked_at_random = rows(wide.parent / "picks.control.jsonl")
    assert [row["id"] for row in control] == [row["id"] for row in picked_at_random]
    folder = run(wide, *joined, out="folder")
    assert load_from_disk(str(folder))["id"][:] == [row["id"] for row in expected]
    assert load_from_disk(f"{folder}-control")["id"][:] == [row["id"] for row in picked_at_random]


def test_picks_of_picks_have_one_column_of_minirec(wide):
    again = wide.parent / "again.jsonl"
    first = rows(run(wide))
    again.write_text("".join(json.dumps(row | {"rewards": REWARDS[row["answer"]].tolist()}) + "\n" for row in first))
    found = rows(run(again, out="second.jsonl", budget=5))
    assert [row["minirec"]["position"] for row in found] == list(range(5))
    assert run(again, out="second.parquet", budget=5).is_file()
