import json
import random
import socket
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED

from minirec.data.interactions import Interactions
from minirec.data.samples import core, months_before, window
from minirec.errors import InputError
from minirec.experiment.sections import Queries
from minirec.experiment.sources import Filter
from minirec.stages import prepare

START = 1_600_000_000_000  # ms: in September 2020


def settings(defaults, **changes):
    return defaults.prepare.model_copy(update={"history": 3, **changes})


def write(folder: Path, interactions: pd.DataFrame, items: pd.DataFrame | None = None) -> dict[str, Path]:
    if items is None:
        ids = sorted(set(interactions["item_id"].dropna().astype(str)))
        items = pd.DataFrame({"item_id": ids, "title": [f"Title of {i}" for i in ids]})
    paths = {"interactions": folder / "interactions.parquet", "item_metadata": folder / "items.parquet"}
    interactions.to_parquet(paths["interactions"], index=False)
    items.to_parquet(paths["item_metadata"], index=False)
    return paths


def outputs(folder: Path) -> dict[str, Path]:
    files = {"samples": "samples.parquet", "catalogue": "catalogue.parquet", "dropped": "prepare.json"}
    return {name: folder / file for name, file in files.items()}


def run(folder: Path, defaults, interactions, items=None, filter=None, form=None, **changes):
    return run_files(folder, defaults, write(folder, interactions, items), filter, form, **changes)


def run_files(folder: Path, defaults, paths, filter=None, form=None, **changes):
    rules, meaning = json.dumps(filter or {}, default=str), json.dumps(form or {})
    prepare.run(
        prepare=settings(defaults, **changes),
        queries=Queries(),
        **paths,
        filter=rules,
        format=meaning,
        **outputs(folder / "out"),
    )
    read = {name: pq.read_table(folder / "out" / f"{name}.parquet").to_pylist() for name in ("samples", "catalogue")}
    report = json.loads((folder / "out" / "prepare.json").read_text())
    del report["provenance"]
    return read["samples"], read["catalogue"], report


def by_hand(interactions, history):
    """METHOD 1 in plain loops: interactions are (user, item, time, rating) in file order; copies count once."""
    users = {}
    for position, (user, item, time, rating) in enumerate(dict.fromkeys(interactions)):
        users.setdefault(user, []).append((time, position, item, rating))
    samples = []
    for user, own in users.items():
        own.sort()
        for j in range(1, len(own)):
            earlier = own[max(0, j - history) : j]
            time, _, item, _ = own[j]
            if item not in [e[2] for e in earlier]:
                samples.append((time, user, item, [(e[2], time - e[0], e[3]) for e in earlier]))
    samples.sort(key=lambda sample: sample[:3])
    return samples


def test_samples_equal_plain_loops_on_random_data_with_many_ties(tmp_path, defaults):
    generator = random.Random(0)
    for case in range(8):
        interactions = [
            (
                f"u{generator.randint(0, 6)}",
                f"i{generator.randint(0, 9)}",
                START + generator.randint(0, 5) * 1000,
                float(generator.randint(1, 5)),
            )
            for _ in range(80)
        ]
        table = pd.DataFrame(interactions, columns=["user_id", "item_id", "timestamp", "rating"])
        (tmp_path / str(case)).mkdir()
        samples, catalogue, report = run(tmp_path / str(case), defaults, table)
        expected = by_hand(interactions, 3)
        name = {row["row"]: row["item_id"] for row in catalogue}
        assert [s["sample_id"] for s in samples] == list(range(len(expected)))
        for sample, (time, user, item, history) in zip(samples, expected, strict=True):
            assert (sample["timestamp"], sample["user_id"], name[sample["target_row"]]) == (time, user, item)
            rows = zip(sample["history_rows"], sample["history_age_ms"], sample["history_rating"], strict=True)
            assert [(name[row], age, rating) for row, age, rating in rows] == history
        n = len(expected)
        edges = [8 * n // 10, 9 * n // 10]
        splits = ["train"] * edges[0] + ["valid"] * (edges[1] - edges[0]) + ["test"] * (n - edges[1])
        assert [s["split"] for s in samples] == splits
        assert report["interactions"] == 80
        assert report["dropped_interactions"]["copies"] == 80 - len(set(interactions))


def frame(n=40, users=5, items=12):
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user_id": [f"u{u}" for u in generator.integers(0, users, n)],
            "item_id": [f"i{i:02d}" for i in generator.integers(0, items, n)],
            "timestamp": START + np.arange(n) * 1000,
        }
    )


def test_the_same_input_gives_the_same_bytes(tmp_path, defaults):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, defaults, frame())
    for name in ("samples.parquet", "catalogue.parquet", "prepare.json"):
        assert (tmp_path / "a/out" / name).read_bytes() == (tmp_path / "b/out" / name).read_bytes()


def test_what_a_killed_run_spilled_is_removed(tmp_path, defaults):
    left = tmp_path / "out" / f".spill.{socket.gethostname()}.{2**31 - 1}.part"  # no process has this number
    left.mkdir(parents=True)
    (left / "block").touch()
    run(tmp_path, defaults, frame())
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "samples.parquet",
        "catalogue.parquet",
        "prepare.json",
    }


def test_a_draw_keeps_ids_and_only_what_is_drawn_counts_as_popular(tmp_path, defaults):
    for name in ("all", "some"):
        (tmp_path / name).mkdir()
    everything, _, _ = run(tmp_path / "all", defaults, frame())
    some, catalogue, _ = run(tmp_path / "some", defaults, frame(), max_train=4, max_test=2)
    assert Counter(s["split"] for s in some) == {
        "train": 4,
        "valid": len([s for s in everything if s["split"] == "valid"]),
        "test": 2,
    }
    known = {s["sample_id"]: s for s in everything}
    assert all(known[s["sample_id"]] == s for s in some)
    used = {
        (s["user_id"], s["timestamp"] - age, row)
        for s in some
        if s["split"] == "train"
        for row, age in zip([*s["history_rows"], s["target_row"]], [*s["history_age_ms"], 0], strict=True)
    }
    popular = Counter(row for _, _, row in used)
    assert [popular[row["row"]] for row in catalogue] == [row["popularity"] for row in catalogue]


def test_the_core_is_iterated_to_a_fixed_point():
    # i2 has one buyer; without it u1 has one item; without u1 the item i1 has one buyer left, and so on: nothing stays
    user, item = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 0])
    interactions = Interactions(user, item, np.arange(5), np.zeros(5))
    assert not core(interactions, 2).any()
    square = Interactions(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2]), np.arange(5), np.zeros(5))
    assert core(square, 2).tolist() == [True, True, True, True, False]


def test_the_window_starts_earlier_while_too_few_items_remain():
    days = np.array(["2022-01-15", "2022-05-01", "2022-08-01", "2022-11-01"], dtype="datetime64[ms]")
    time = days.astype(np.int64)
    interactions = Interactions(np.zeros(4, int), np.arange(4), time, np.zeros(4))
    rules = Filter(start=date(2022, 10, 1), end=date(2023, 10, 1), min_items=3)
    mask, start, _ = window(interactions, rules)
    assert mask.tolist() == [False, True, True, True]
    assert start == date(2022, 4, 1)
    mask, start, _ = window(interactions, rules.model_copy(update={"min_items": 9}))
    assert mask.all()
    assert start == date(2022, 1, 1)


def test_months_are_counted_back_from_the_end_of_a_month():
    assert months_before(date(2022, 5, 31), 3) == date(2022, 2, 28)
    assert months_before(date(2022, 1, 1), 3) == date(2021, 10, 1)
    assert months_before(date(2024, 3, 31), 1) == date(2024, 2, 29)
    assert months_before(date(2022, 1, 31), 10**6) == date(1, 1, 31)


def test_every_dropped_row_is_counted_by_its_reason(tmp_path, defaults):
    table = frame()
    ids = sorted(set(table["item_id"]))
    items = pd.DataFrame(
        {
            "item_id": [*ids, "unbought"],
            "title": ["", "one two three four", *["ok"] * (len(ids) - 1)],
            "price": [1.0, 1.0, np.nan, *[2.0] * (len(ids) - 2)],
        }
    )
    rules = {"title": True, "max_title_words": 3, "price": True}
    _, catalogue, report = run(tmp_path, defaults, table, items, rules)
    reasons = {"without_title": 1, "long_title": 1, "without_price": 1, "without_interactions": 1}
    assert report["dropped_items"] == reasons
    assert report["dropped_interactions"]["of_dropped_items"] == table["item_id"].isin(ids[:3]).sum()
    assert len(catalogue) == len(ids) - 3


def test_the_item_text_says_what_is_known_on_lines_of_its_own(tmp_path, defaults):
    table = frame(items=2)
    items = pd.DataFrame(
        {
            "item_id": ["i00", "i01"],
            "title": ["A\nB\x00 C", "D"],
            "average_rating": [4.5, None],
            "rating_number": [7, None],
            "description": ["word " * 200, " "],
        }
    )
    paths_items = items.astype({"rating_number": "Int64"})
    _, catalogue, _ = run(tmp_path, defaults, table, paths_items, history=1)
    first = catalogue[0]["text"].split("\n")
    assert first[:3] == ["Title: A B C", "Rating: 4.5", "Number of ratings: 7"]
    assert first[3] == "Description: " + " ".join(["word"] * 100)
    assert catalogue[1]["text"] == "Title: D"


WRONG = {
    "no column user_id": lambda t: t.drop(columns="user_id"),
    "column item_id has a null in row 3": lambda t: t.assign(item_id=t["item_id"].where(t.index != 3)),
    "column timestamp is negative in row 2": lambda t: t.assign(timestamp=t["timestamp"].where(t.index != 2, -1)),
    "column timestamp is double, not whole numbers": lambda t: t.assign(timestamp=t["timestamp"] + 0.5),
    "is empty": lambda t: t.head(0),
    "nothing to predict": lambda t: t.drop_duplicates("user_id"),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_interactions_stop_with_one_sentence_and_leave_nothing_behind(tmp_path, defaults, sentence):
    table = WRONG[sentence](frame())
    items = pd.DataFrame({"item_id": sorted(set(frame()["item_id"])), "title": "t"})
    with pytest.raises(InputError, match=sentence) as error:
        run(tmp_path, defaults, table, items)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert not any((tmp_path / "out").glob("*"))


def test_wrong_items_stop_with_one_sentence(tmp_path, defaults):
    ids = sorted(set(frame()["item_id"]))
    with pytest.raises(InputError, match=f"item {ids[0]} in row .* has no row in"):
        run(tmp_path, defaults, frame(), pd.DataFrame({"item_id": ids[1:], "title": "t"}))
    with pytest.raises(InputError, match=f"item_id {ids[0]} occurs twice"):
        run(tmp_path, defaults, frame(), pd.DataFrame({"item_id": [*ids, ids[0]], "title": "t"}))


def test_damaged_files_stop_with_one_sentence(tmp_path, defaults):
    paths = write(tmp_path, frame())
    broken = {"truncated": paths["item_metadata"].read_bytes()[:-20], "empty": b"", "text": b"user_id,item_id\n"}
    for content in broken.values():
        paths["item_metadata"].write_bytes(content)
        with pytest.raises(InputError, match="is not a readable Parquet file"):
            prepare.run(
                prepare=settings(defaults), queries=Queries(), **paths, filter="{}", **outputs(tmp_path / "out")
            )


def test_titles_that_are_not_utf_8_stop_with_one_sentence(tmp_path, defaults):
    paths = write(tmp_path, frame())
    ids = sorted(set(frame()["item_id"]))
    raw = pa.array([b"caf\xe9"] * len(ids), pa.binary())
    title = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    pq.write_table(pa.table({"item_id": ids, "title": title}), paths["item_metadata"])
    with pytest.raises(InputError, match="UTF-8"):
        prepare.run(prepare=settings(defaults), queries=Queries(), **paths, filter="{}", **outputs(tmp_path / "out"))


@pytest.mark.parametrize("name", ["amazon_cds_2018", "amazon_toys_2014", "amazon2023_sample"])
def test_real_data_passes_and_every_interaction_is_accounted_for(tmp_path, defaults, name):
    folder = SHARED / "datasets" / name
    if not folder.is_dir():
        pytest.skip("the real data sets are not on this machine")
    prepare.run(
        prepare=defaults.prepare,
        queries=Queries(),
        interactions=folder / "interactions.parquet",
        item_metadata=folder / "items.parquet",
        filter="{}",
        **outputs(tmp_path),
    )
    report = json.loads((tmp_path / "prepare.json").read_text())
    assert report["interactions"] == pq.read_metadata(folder / "interactions.parquet").num_rows
    counted = report["interactions"] - report["dropped_interactions"]["copies"]
    assert report["samples"] == counted - report["users"] - report["dropped_samples"]["target_in_history"]
