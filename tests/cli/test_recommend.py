"""minirec recommend and export: the recommender of a trained run for people, files, transformers and trainers."""

import json
import math
import re
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import training_runs
import yaml
from conftest import PASSES

from minirec.cli import main
from minirec.data import splits, user_histories
from minirec.data.title_lookup import TitleLookup
from minirec.evaluation.recommender import Recommender, TrainedRun
from minirec.experiment.sections import Generation
from minirec.report.model_card import card
from minirec.stages import evaluate
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance


def finished(top, project, tiny_model, defaults, **of_policy):
    """The folder of a run that is trained and evaluated, in the results `top` of a data set."""
    folder = top / "runs" / "tiny" / "none" / "full-11" / "seed0"
    selection = top / "selections" / "none" / "full-11" / "seed0"
    selection.mkdir(parents=True)
    for name in ("samples", "catalogue"):
        shutil.copy(project[name], top)
    shutil.copy(project["curriculum"], selection)
    training_runs.run(project, tiny_model, defaults, folder, of_policy=of_policy)
    evaluate.run(
        policy=training_runs.policy(defaults, **of_policy),
        sampling=defaults.sampling.model_copy(update={"max_new_tokens": 3, "completions": 2}),
        passes=PASSES,
        generation=Generation(),
        samples=top / "samples.parquet",
        catalogue=top / "catalogue.parquet",
        model=tiny_model,
        adapter=folder / "adapter",
        ranks=folder / "ranks.parquet",
    )
    interval = {name: {"mean": 0.5, "low": 0.25, "high": 0.75} for name in ("ndcg@10", "hr@10")}
    metrics = {"samples": 6, "metrics": interval, "before": interval, "baselines": {"tfidf_last": interval}}
    artefact.write_json(metrics, folder / "metrics.json", Provenance("measure"))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, project, tiny_model, defaults):
    """A finished run with the pooling `mean`."""
    return finished(tmp_path_factory.mktemp("recommend") / "results" / "shop", project, tiny_model, defaults)


@pytest.fixture(scope="module")
def ranks(run):
    """What evaluate found, by sample."""
    return ranks_of(run)


def ranks_of(run):
    return tables.read("ranks", run / "ranks.parquet").sort_by("sample_id").to_pydict()


def command(*words, code=0):
    assert main.main([str(word) for word in words]) == code


def test_a_test_user_gets_what_evaluate_found_with_and_without_reasoning(run, ranks):
    recommender = Recommender(TrainedRun.opened(run), PASSES.batch_tokens)
    test = splits.load(run.parents[4] / "samples.parquet", run.parents[4] / "catalogue.parquet", "test", 5)
    histories = [[row for row in one.tolist() if row >= 0] for one in test.history]
    for reasoning, column in ((True, "rank"), (False, "rank_without_reasoning")):
        found = recommender.recommend_to(test.bodies, test.history, top=30, reasoning=reasoning)
        places = [one.rows.index(target) + 1 for one, target in zip(found, test.target, strict=True)]
        assert places == ranks[column]
        for one, history in zip(found, histories, strict=True):
            assert sorted([*one.rows, *history]) == list(range(30))
            assert one.scores == sorted(one.scores, reverse=True)
            assert max(map(abs, one.scores)) <= 1.0001
            assert bool(one.reasoning) or not reasoning


def test_a_typed_history_gives_titles_and_says_what_is_not_found(run, capsys):
    command("recommend", run, "--history", "kind  BLUE 2!; Blue Trane 1; i05", "--top", "3", "--json")
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    assert said["history"] == ["Kind Blue 2", "Red Blue 5"]
    assert len({one["title"] for one in said["recommended"]} - set(said["history"])) == 3
    assert "the catalogue has no Blue Trane 1; did you mean " in shown.err


def test_the_screen_has_a_line_an_item_and_no_more_than_there_are(run, capsys):
    command("recommend", run, "--history", "Kind Blue 2", "--top", "30", "--no-reasoning")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "after Kind Blue 2"
    assert lines[1].split() == ["score", "title"]
    assert len([line for line in lines if re.match(r" +\d+ +-?\d\.\d{3} ", line)]) == 29


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--history", "nothing; of this"], "nothing of this history is in the catalogue"),
        (["--history", " ; "], "nothing of this history"),
        ([], 'name a history, --history "title; title"'),
        (["--users", "users.parquet"], "--users FILE --out FILE"),
        (["--history", "Kind Blue 2", "--top", "0"], "--top is 0"),
        (["--history", "Kind Blue 2", "--top", "31"], "--top is 31, but the catalogue has 30 items; lower it"),
        (["--users", "x.parquet", "--out", "./x.parquet"], "the file of the users itself"),
        (["--users", "no.parquet", "--out", "out.parquet"], "no.parquet does not exist; name a Parquet file of users"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(run, capsys, words, said):
    command("recommend", run, *words, code=1)
    assert said in capsys.readouterr().err


def test_item_vectors_are_kept_and_made_again_where_they_are_not_those_of_the_run(run, capsys):
    file, words = run / "items.safetensors", ("recommend", run, "--history", "i02")
    file.unlink(missing_ok=True)
    command(*words)
    first, kept = capsys.readouterr().out, file.read_bytes()
    command(*words)
    again = capsys.readouterr()
    assert again.out == first
    assert "items: 30 items" not in again.err
    items = tensors.read(file)["items"]
    record = tensors.read_provenance(file)
    of_another = Provenance.parse(record | {"inputs": record["inputs"] | {"adapter": "0" * 64}})
    for spoil in (
        lambda: tensors.write({"items": items[::-1]}, file, of_another),
        lambda: file.write_bytes(kept[:-1] + b"x"),
        file.unlink,
    ):
        spoil()
        command(*words)
        made = capsys.readouterr()
        assert made.out == first
        assert "items: 30 items" in made.err
        assert file.read_bytes() == kept


def test_where_nothing_can_be_kept_the_run_recommends_all_the_same(run, capsys, monkeypatch):
    (run / "items.safetensors").unlink(missing_ok=True)

    def full(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(tensors, "write", full)
    command("recommend", run, "--history", "i02", "--top", "3", "--json")
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["recommended"]) == 3
    assert "the item vectors are not kept for next time (the disk is full)" in shown.err


def test_too_little_memory_names_the_flag_to_lower(run, capsys, monkeypatch):
    def full(*_):
        raise MemoryError("cannot allocate")

    monkeypatch.setattr("minirec.model.scoring.best", full)
    command("recommend", run, "--history", "i02", "--batch-tokens", "64", code=1)
    assert "out of memory (cannot allocate); lower --batch-tokens (now 64), and start" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["recommend", "--history", "i02"], ["export", "model", "--out", "exported"]])
def test_passes_of_no_tokens_are_refused(run, capsys, words):
    command(*words, "--batch-tokens", "0", run, code=1)
    assert "batch_tokens is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("part", [1, 1024])
def test_users_of_a_file_get_a_row_each_in_their_order(run, tmp_path, monkeypatch, part):
    monkeypatch.setattr(user_histories, "PART", part)
    users = {"user_id": ["b", "a", "d", "c"], "history": [["i02", "Red Blue 5"], ["gone"], [], ["gone", "i07"]]}
    pq.write_table(pa.table(users), tmp_path / "users.parquet")
    command("recommend", run, "--users", tmp_path / "users.parquet", "--out", tmp_path / "out.parquet", "--top", "4")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found["user_id"].tolist() == ["b", "a", "d", "c"]
    assert [len(items) for items in found["titles"]] == [4, 0, 0, 4]
    assert [items.tolist() for items in found["unknown"]] == [[], ["gone"], [], ["gone"]]
    one = Recommender(TrainedRun.opened(run), PASSES.batch_tokens)
    assert found["titles"][0].tolist() == [one.titles[one.lookup.row(item)] for item in found["item_ids"][0]]
    assert not {"i02", "i05"} & set(found["item_ids"][0])


def test_users_without_ids_have_the_numbers_of_their_rows_in_a_file_of_wide_types(run, tmp_path):
    wide = pa.large_list(pa.large_string())  # as polars writes it
    pq.write_table(pa.table({"history": pa.array([["i02"], ["i03"], ["i02"]], wide)}), tmp_path / "users.parquet")
    command("recommend", run, "--users", tmp_path / "users.parquet", "--out", tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found["user_id"].tolist() == ["0", "1", "2"]
    assert found["item_ids"][0].tolist() == found["item_ids"][2].tolist() != found["item_ids"][1].tolist()


def test_ratings_and_times_of_a_file_stand_in_the_prompt_as_in_evaluate(run, ranks, tmp_path):
    samples = tables.read("samples", run.parents[4] / "samples.parquet").to_pylist()
    users = [
        {
            "user_id": str(sample["sample_id"]),
            "history": ["gone", *(f"i{row:02d}" for row in sample["history_rows"])],
            "history_rating": [1.0, *sample["history_rating"]],
            "history_age_ms": [9000, *sample["history_age_ms"]],
        }
        for sample in samples
        if sample["split"] == "test"
    ]
    found = {}
    for sides in (("history_rating", "history_age_ms"), ("history_rating",), ("history_age_ms",), ()):
        kept = [{name: user[name] for name in ("user_id", "history", *sides)} for user in users]
        pq.write_table(pa.Table.from_pylist(kept), tmp_path / "users.parquet")
        command("recommend", run, "--users", tmp_path / "users.parquet", "--out", tmp_path / "out.parquet")
        found[sides] = pd.read_parquet(tmp_path / "out.parquet")
    both, *others = found.values()
    assert both["user_id"].astype(int).tolist() == ranks["sample_id"]
    assert [[int(item[1:]) for item in items] for items in both["item_ids"]] == ranks["top"]
    for other in others:
        assert [scores.tolist() for scores in other["scores"]] != [scores.tolist() for scores in both["scores"]]


GOOD = {"user_id": "a", "history": ["i01"]}
BAD_USERS = {
    "no history": ([{"user_id": "a"}], "users.parquet has no column history; add it: lists of titles or item ids"),
    "no list": ([{"history": "i01"}], "column history is string; write lists of titles or item ids as text"),
    "numbers": (
        [{"history": [1]}],
        "column history is list<element: int64>; write lists of titles or item ids as text",
    ),
    "odd id": ([GOOD | {"user_id": 1.5}], "column user_id is double; write text or whole numbers"),
    "null id": ([GOOD, GOOD | {"user_id": None}], "users.parquet, row 1: user_id is null; give every user an id"),
    "null": ([GOOD, {"user_id": "b", "history": None}], "row 1: history is null or has a null; list titles"),
    "null item": ([GOOD | {"history": ["i01", None]}], "row 0: history is null or has a null; list titles"),
    "no numbers": (
        [GOOD | {"history_rating": ["5"]}],
        "column history_rating is list<element: string>; write lists of",
    ),
    "no whole": ([GOOD | {"history_age_ms": [0.5]}], "history_age_ms is list<element: double>; write lists of whole"),
    "minus infinity": (
        [GOOD | {"history_rating": [-math.inf]}],
        "row 0: history_rating has -inf; write lists of numbers, null where",
    ),
    "nan": (
        [GOOD | {"history_rating": [math.nan]}],
        "row 0: history_rating has nan; write lists of numbers, null where",
    ),
    "future": (
        [GOOD | {"history_age_ms": [-1]}],
        "row 0: history_age_ms has -1; write lists of whole milliseconds from",
    ),
    "short": ([{"history": ["i01", "i02"], "history_rating": [5]}], "row 0: history_rating has 1 values for 2 items"),
    "twice": ([GOOD, GOOD | {"user_id": "b"}, GOOD], "row 2: user_id a is also that of row 0; write one row a user"),
}


@pytest.mark.parametrize("name", BAD_USERS)
def test_a_file_of_users_that_cannot_be_used_is_one_sentence_before_any_work(run, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr(user_histories, "PART", 1)
    monkeypatch.delattr("minirec.evaluation.recommender.Policy.load")
    rows, sentence = BAD_USERS[name]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "users.parquet")
    command("recommend", run, "--users", tmp_path / "users.parquet", "--out", tmp_path / "out.parquet", code=1)
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]


def test_of_items_with_one_title_the_most_popular_is_found():
    lookup = TitleLookup(["a", "b", "c"], ["Blue", "Blue", "blue!"], [1, 5, 3])
    assert lookup.row("Blue") == 1
    assert lookup.row("BLUE") == 1
    assert lookup.row("c") == 2
    assert lookup.row("red") is None


def test_what_stands_in_brackets_at_the_end_of_a_title_may_be_missing_unless_that_is_another_title():
    titles = ["Fargo (1996)", "Cinderella (1950)", "Cinderella (1997)", "Heat (1995)", "Heat", "(500) Days"]
    lookup = TitleLookup(list("abcdef"), titles, [1, 5, 3, 9, 1, 1])
    typed = [
        "fargo",
        "Fargo (1996)",
        "fargo 1996",
        "cinderella",
        "Cinderella (1997)",
        "heat",
        "days",
        "(500) days",
        "1996",
    ]
    assert [lookup.row(text) for text in typed] == [0, 0, 0, 1, 2, 4, None, 5, None]
    assert lookup.suggestions("cindrella") == ["Cinderella (1950)", "Cinderella (1997)"]


def test_text_without_words_is_no_title_and_white_space_takes_no_time():
    lookup = TitleLookup(["a", "b"], ["(Untitled)", "x" + " " * 1_000_000 + "(1996"], [1, 2])
    assert [lookup.row(text) for text in ("", "   ", "(untitled)", "untitled")] == [None, None, 0, 0]


def test_the_words_of_a_title_may_stand_in_another_order_unless_that_is_another_title():
    lookup = TitleLookup(list("abc"), ["Godfather, The (1972)", "Red Blue", "Blue Red"], [1, 2, 3])
    assert [lookup.row(text) for text in ("The Godfather", "red blue", "Blue, Red", "the father")] == [0, 1, 2, None]


def test_a_title_with_semicolons_is_found_in_a_list_with_semicolons_and_no_two_titles_are_taken_for_one():
    lookup = TitleLookup(list("12345"), ["A; B", "A; B; C (1990)", "B", "Red Blue", "Red"], [1] * 5)
    listed = lookup.listed("a;b;; red; BLUE ;A; b; c 1990; b;")
    assert listed == [("a;b", 0), ("red", 4), ("BLUE", None), ("A; b; c 1990", 1), ("b", 2)]
    assert lookup.listed("a; B; c; red") == [("a; B; c", 1), ("red", 4)]  # without the year
    assert lookup.listed(" ; ") == []


def test_an_item_id_comes_before_a_title_that_reads_like_it():
    lookup = TitleLookup(["300", "b"], ["Blue", "300"], [1, 5])
    assert lookup.row("300") == 0


@pytest.mark.parametrize("pooling", ["mean", "last", "context"])
def test_the_recipe_of_the_model_card_ranks_as_evaluate_does_with_transformers_alone(
    run, project, tiny_model, defaults, tmp_path, monkeypatch, pooling
):
    if pooling != "mean":
        more = {"pooling": pooling, "system": "You help."}
        run = finished(tmp_path / "results" / "shop", project, tiny_model, defaults, **more)
    out = tmp_path / "exported"
    command("export", "model", run, "--out", out)
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "| after RL | 0.5000 [0.2500, 0.7500] | 0.5000 [0.2500, 0.7500] |" in text
    assert "bfloat16" not in text
    recipe = re.search(r"```python\n(.*)```", text, re.DOTALL).group(1)
    assert "minirec" not in recipe
    monkeypatch.chdir(out)
    names = {}
    exec(compile(recipe, "recipe", "exec"), names)  # of this repository
    test = splits.load(run.parents[4] / "samples.parquet", run.parents[4] / "catalogue.parquet", "test", 5)
    for body, target, history, rank in zip(test.bodies, test.target, test.history, ranks_of(run)["rank"], strict=True):
        rows, scores, _ = names["recommend"](body, history[history >= 0].tolist())
        assert rows.index(target) + 1 == rank
        assert len(rows) == len(scores) == 27
    assert np.allclose(names["kept"]["items"].shape, (30, 8))


def test_the_card_warns_of_rounding_and_names_a_base_model_of_the_hub(run):
    hub = {"source": "hub", "id": "google/gemma-2-2b-it", "commit": "299a8560"}
    metrics = artefact.read_json(run / "metrics.json")
    text = card("shop", TrainedRun.opened(run).run, metrics, 30, "bfloat16", hub)
    assert yaml.safe_load(text.split("---\n")[1])["base_model"] == "google/gemma-2-2b-it"
    assert "`tiny` (google/gemma-2-2b-it, commit 299a8560), fine-tuned" in text
    assert "Merging rounded the weights to bfloat16" in text


def test_two_exports_of_a_run_have_the_same_bytes(run, tmp_path):
    for name in "ab":
        command("export", "model", run, "--out", tmp_path / name)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*")]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_export_that_fails_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr("minirec.evaluation.exported.about", lambda *_: 1 / 0)
    command("export", "model", run, "--out", tmp_path / "out", code=70)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_measured_yet_is_not_exported(run, tmp_path, capsys):
    (run / "metrics.json").rename(tmp_path / "metrics.json")
    command("export", "model", run, "--out", tmp_path / "out", code=1)
    (tmp_path / "metrics.json").rename(run / "metrics.json")
    assert "metrics.json does not exist" in capsys.readouterr().err


def test_samples_are_exported_in_training_order_with_the_prompt_that_the_policy_reads(run, tmp_path):
    command("export", "samples", run, "--out", tmp_path / "samples.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["sample_id"] for row in rows] == [3, 1, 4, 15, 9, 2, 6, 5, 12, 8, 7]
    recommender = Recommender(TrainedRun.opened(run), PASSES.batch_tokens)
    policy, top = recommender.policy, run.parents[4]
    chosen = splits.load(top / "samples.parquet", top / "catalogue.parquet", "train", 5, np.array([3]))
    chat = policy.tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)
    assert chat == policy.tokenizer.decode([*policy.user_prompts.prefix, *policy.user_prompts.encode(chosen.bodies[0])])
    assert rows[0]["target"] == recommender.titles[chosen.target[0]]


@pytest.mark.parametrize("name", ["curriculum", "samples"])
def test_samples_that_the_run_was_not_trained_on_are_not_exported(run, tmp_path, capsys, name):
    copied = tmp_path / "results" / "shop"
    shutil.copytree(run.parents[4], copied)
    again = copied / run.relative_to(run.parents[4])
    (file,) = copied.rglob(f"{name}.parquet")
    tables.write(name, tables.read(name, file), file, Provenance(name, {"made": "later"}))
    command("export", "samples", again, "--out", tmp_path / "samples.jsonl", code=1)
    assert f"{file} is not the {name} that {again} was trained with; run train again" in capsys.readouterr().err
    assert not (tmp_path / "samples.jsonl").exists()


def test_an_export_takes_no_folder_in_which_something_is(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    command("export", "model", run, "--out", tmp_path, code=1)
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_whose_base_model_has_changed_since_is_refused(run, tiny_model, capsys):
    note = tiny_model / "note.txt"
    note.touch()
    command("recommend", run, "--history", "i01", code=1)
    note.unlink()
    assert f"{tiny_model} is not the model that {run} was trained from" in capsys.readouterr().err


def test_a_run_that_is_not_usable_is_one_sentence(run, tmp_path, capsys):
    command("recommend", tmp_path, "--history", "x", code=1)
    assert "is no run; name a folder like" in capsys.readouterr().err
    copied = tmp_path / "results" / "shop"
    shutil.copytree(run.parents[4], copied)
    again = copied / run.relative_to(run.parents[4])
    shutil.move(copied / "catalogue.parquet", copied / "other.parquet")
    command("recommend", again, "--history", "x", code=1)
    assert "is not the catalogue that" in capsys.readouterr().err
    shutil.rmtree(again / "adapter")
    command("export", "model", again, "--out", tmp_path / "out", code=1)
    assert "has no adapter yet; minirec status" in capsys.readouterr().err
