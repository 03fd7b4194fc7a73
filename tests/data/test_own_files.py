"""Files of one's own: formats, names of columns, units of time, bad rows and copies (METHOD 1, files)."""

import gzip
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_prepare import START, frame, run, run_files, write

from minirec.data.plain_text import plain
from minirec.data.titles import history_lines
from minirec.errors import InputError
from minirec.experiment import config, sources
from minirec.experiment.rules import Rules

UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # how many are a second


@pytest.mark.parametrize("unit", UNITS)
def test_every_unit_gives_the_same_samples_and_any_other_is_refused_with_the_right_one(tmp_path, defaults, unit):
    (tmp_path / "ms").mkdir()
    expected = run(tmp_path / "ms", defaults, frame())[:2]
    table = frame().assign(timestamp=[time // 1000 * UNITS[unit] for time in frame()["timestamp"].tolist()])
    found = run(tmp_path, defaults, table, form={"time_unit": unit})
    assert found[:2] == expected
    assert found[2]["split_by"] == "time"
    for other in set(UNITS) - {unit}:
        with pytest.raises(InputError, match=rf"times go from .*set datasets\.NAME\.time_unit to {unit}$"):
            run(tmp_path, defaults, table, form={"time_unit": other})


def test_the_sentence_about_times_names_their_span(tmp_path, defaults):
    table = frame().assign(timestamp=[1_000_000_000] * 39 + [2_000_000_000])  # as ms: 11.6 and 23.1 days after 1970
    with pytest.raises(InputError, match="from 1970-01-12 to 1970-01-24; they look like seconds"):
        run(tmp_path, defaults, table)


def test_times_that_are_places_or_in_no_unit_are_refused(tmp_path, defaults):
    with pytest.raises(InputError, match=r"look like places in a sequence: set .* to order"):
        run(tmp_path, defaults, frame().assign(timestamp=np.arange(40) % 8))
    with pytest.raises(InputError, match="to their unit, or to order"):
        run(tmp_path, defaults, frame().assign(timestamp=20_201_013))


def test_a_few_odd_times_are_counted_but_kept(tmp_path, defaults):
    table = frame()
    table.loc[5, "timestamp"] = 0
    _, _, report = run(tmp_path, defaults, table)
    assert report["implausible_times"] == 1
    assert report["kept_interactions"] == 40


def sequences(lengths: dict[str, int]) -> pd.DataFrame:
    rows = [(user, f"i{place:02d}", place) for user, length in lengths.items() for place in range(length)]
    return pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])


@pytest.mark.parametrize("written", [True, False])
def test_an_order_without_times_splits_each_users_sequence_by_place(tmp_path, defaults, written):
    lengths = {"a": 11, "b": 6, "c": 2}  # 10, 5 and 1 samples: 8 1 1, 4 0 1, 0 0 1 of train, valid and test
    table = sequences(lengths)
    if not written:  # the order of rows is the order
        table = table.sample(frac=1, random_state=0).sort_values("timestamp").drop(columns="timestamp")
    samples, catalogue, report = run(tmp_path, defaults, table, form={"time_unit": "order"}, history=20)
    item = {row["row"]: row["item_id"] for row in catalogue}
    found = [(s["split"], s["user_id"], item[s["target_row"]], len(s["history_rows"])) for s in samples]
    expected = [
        ("train", user, f"i{place:02d}", place) for place in range(1, 9) for user in "ab" if (user, place) < ("b", 5)
    ]
    expected = sorted(expected, key=lambda row: (row[3], row[1]))
    expected += [("valid", "a", "i09", 9)]
    expected += [("test", "c", "i01", 1), ("test", "b", "i05", 5), ("test", "a", "i10", 10)]
    assert found == expected
    assert [s["sample_id"] for s in samples] == list(range(16))
    assert all(age is None for s in samples for age in s["history_age_ms"])
    assert "place" in report["split_by"]
    assert history_lines(["Kind of Blue"], [4.0], [None]) == "- Kind of Blue, rated 4"


def test_a_window_of_time_needs_times():
    text = json.dumps({"source": "own", "time_unit": "order", "filter": {"start": "2020-01-01"}})
    with pytest.raises(InputError, match=r"filter\.start and filter\.end need times, but time_unit is order"):
        config.parse(sources.Dataset, text, "datasets.shop")


def test_numbers_that_are_none_are_unknown_in_every_column(tmp_path, defaults):
    ids = sorted(set(frame()["item_id"]))
    assert len(ids) == 11
    odd = ([float("nan"), float("inf"), -float("inf"), 3.0] * 3)[:11]
    items = pd.DataFrame(
        {"item_id": ids, "title": "T", "price": [*odd[:3], *[2.0] * 8], "average_rating": odd, "rating_number": odd}
    )
    table = frame().assign(rating=([float("nan"), float("inf"), -float("inf"), 3.0] * 10))
    fields = ["title", "average_rating", "rating_number"]
    samples, catalogue, report = run(tmp_path, defaults, table, items, {"price": True}, item_fields=fields)
    assert report["dropped_items"]["without_price"] == 3
    assert {row["text"] for row in catalogue} == {"Title: T", "Title: T\nRating: 3.0\nNumber of ratings: 3"}
    _, catalogue, report = run(tmp_path, defaults, table, items, item_fields=fields)
    assert sum(row["text"] == "Title: T" for row in catalogue) == 9
    assert report["interactions_without_rating"] == 30
    assert {rating for s in samples for rating in s["history_rating"]} <= {None, 3.0}


def test_copies_count_once_and_the_same_item_at_another_time_or_rating_again(tmp_path, defaults):
    rows = [("u", "a", 0, 1.0), ("u", "b", 0, None), ("u", "a", 0, 1.0), ("u", "b", 0, None), ("u", "a", 0, 2.0)]
    rows += [("u", "a", 5, 1.0), ("v", "a", 0, 1.0), *[("w", f"x{i}", i, 1.0) for i in range(12)]]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp", "rating"])
    _, _, report = run(tmp_path, defaults, table.assign(timestamp=START + table["timestamp"]))
    assert report["dropped_interactions"]["copies"] == 2
    assert report["kept_interactions"] == len(rows) - 2


BAD = {
    "timestamp_negative": {"timestamp": -1},
    "user_id_missing": {"user_id": None},
    "item_id_missing": {"item_id": None},
    "timestamp_missing": {"timestamp": None},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_in_many_is_left_out_and_counted(tmp_path, defaults, reason):
    table = frame(400).astype({"timestamp": "Int64"})
    column, value = next(iter(BAD[reason].items()))
    table.loc[7, column] = value
    _, _, report = run(tmp_path, defaults, table)
    assert report["dropped_interactions"][reason] == 1
    assert (report["interactions"], report["kept_interactions"]) == (400, 399)
    table.loc[:4, column] = value  # now 6 of 400: 1.5 %
    with pytest.raises(
        InputError, match=rf"column {column} .* in row 0: more than 1% of 400 rows are bad \({reason} 6\)"
    ):
        run(tmp_path, defaults, table)


def as_text(folder, ending: str) -> dict:
    paths = {}
    for name, key in (("interactions", "interactions"), ("items", "item_metadata")):
        table = pd.read_parquet(folder / f"{name}.parquet")
        paths[key] = folder / f"{name}.{ending}"
        if "jsonl" in ending:
            text = "".join(json.dumps(row) + "\n" for row in table.to_dict("records"))
        else:
            text = table.to_csv(index=False, sep="\t" if "tsv" in ending else ",")
        paths[key].write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    return paths


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "tsv.gz", "jsonl", "jsonl.gz"])
def test_every_format_gives_the_samples_of_parquet(tmp_path, defaults, ending):
    table = frame().assign(rating=np.arange(40) % 5 + 0.5)
    table["user_id"] = table["user_id"].str.replace("u", "00")  # ids of digits keep their zeros
    ids = sorted(set(table["item_id"]))
    titles = ['Say "Hi", Bob', "", "tab\there", *["日本"] * (len(ids) - 3)]
    items = pd.DataFrame({"item_id": ids, "title": titles, "rating_number": range(len(ids)), "price": 2.5})
    (tmp_path / "parquet").mkdir()
    expected = run(tmp_path / "parquet", defaults, table, items)
    found = run_files(tmp_path, defaults, as_text(tmp_path / "parquet", ending))
    assert found == expected


def test_a_text_file_has_bad_rows_dates_prices_and_other_delimiters(tmp_path, defaults):
    good = [f"u{i % 7};i{i % 5};2020-10-{1 + i % 28:02d} 12:00:00;{i % 5}" for i in range(400)]
    header = "user_id;item_id;timestamp;rating"
    lines = [header, *good, "u1;i1;2020-13-45;3", "u1;i2", "u1;i1;2020-10-01;five"]
    paths = {"interactions": tmp_path / "interactions.csv", "item_metadata": tmp_path / "items.csv"}
    paths["interactions"].write_text("\n".join(lines) + "\n")
    prices = ["$1,299.00", "3.5", "", "none", "0"]
    paths["item_metadata"].write_text(
        "item_id\ttitle\tprice\n" + "".join(f"i{i}\tT\t{p}\n" for i, p in enumerate(prices))
    )
    samples, _, report = run_files(tmp_path, defaults, paths, {"price": True})
    assert {time["timestamp"] % 86_400_000 for time in samples} == {43_200_000}
    dropped = report["dropped_interactions"]
    assert (dropped["timestamp_unreadable"], dropped["unreadable_line"]) == (1, 1)
    assert report["dropped_items"]["without_price"] == 2
    paths["interactions"].write_text("\n".join([header, *good[:9], *lines[-3:]]))
    with pytest.raises(InputError, match="column timestamp is no time in row 9: more than 1%"):
        run_files(tmp_path, defaults, paths)


def test_a_folder_of_parts_is_read_in_the_order_of_their_names_and_without_hidden_files(tmp_path, defaults):
    table = frame().assign(timestamp=START)  # equal times: the order of rows decides
    (tmp_path / "one").mkdir()
    expected = run(tmp_path / "one", defaults, table)
    for name in ("interactions", "items"):
        whole = pq.read_table(tmp_path / "one" / f"{name}.parquet")
        folder = tmp_path / f"{name}.parquet"
        folder.mkdir()
        for number in (2, 0, 1):
            part = whole.slice(number * 15, 15 if number < 2 else None)
            pq.write_table(part, folder / f"part-{number:05d}.snappy.parquet")
        for hidden in ("_SUCCESS", ".part-00000.crc", "_metadata"):
            (folder / hidden).write_bytes(b"no Parquet")
    paths = {"interactions": tmp_path / "interactions.parquet", "item_metadata": tmp_path / "items.parquet"}
    assert run_files(tmp_path, defaults, paths) == expected
    part = paths["interactions"] / "part-00001.snappy.parquet"
    pq.write_table(pq.read_table(part).set_column(2, "timestamp", pa.array([1.0] * 15)), part)
    with pytest.raises(InputError, match=r"part-00001.*: column timestamp is double, but int64 in .*part-00000"):
        run_files(tmp_path, defaults, paths)
    for file in paths["interactions"].iterdir():
        file.unlink()
    with pytest.raises(InputError, match="no folder of Parquet parts"):
        run_files(tmp_path, defaults, paths)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        *[("user_id", name) for name in ("userId", "user", "uid", "USER_ID", "reviewerID", "user_id:token", "userid")],
        *[("item_id", name) for name in ("movieId", "asin", "parent_asin", "itemId", "product_id", "book_id", "sku")],
        *[("timestamp", name) for name in ("ts", "time", "unixReviewTime", "timestmp", "timestamp:float", "date")],
    ],
)
def test_a_column_under_another_name_is_recognised(tmp_path, defaults, column, name):
    with pytest.raises(InputError, match=f"has no column {column}; rename `{name}` to {column}$"):
        run(tmp_path, defaults, frame().rename(columns={column: name}), pd.DataFrame({"item_id": ["i"], "title": "T"}))


def test_several_columns_under_other_names_are_named_at_once(tmp_path, defaults):
    table = frame().rename(columns={"user_id": "userId", "item_id": "movieId"})
    with pytest.raises(InputError, match="rename `userId` to user_id, `movieId` to item_id"):
        run(tmp_path, defaults, table, pd.DataFrame({"item_id": ["i"], "title": "T"}))


def test_whole_number_ids_and_dates_are_taken_where_asked_for(tmp_path, defaults):
    number = frame().assign(user_id=lambda t: t["user_id"].str[1:].astype(int))
    (tmp_path / "text").mkdir()
    expected = run(tmp_path / "text", defaults, number.assign(user_id=number["user_id"].astype(str)))
    for table in (number, number.assign(timestamp=pd.to_datetime(number["timestamp"], unit="ms"))):
        with pytest.raises(InputError, match="cast to true, or convert it"):
            run(tmp_path, defaults, table)
        assert run(tmp_path, defaults, table, form={"cast": True}) == expected


def test_interactions_of_items_without_a_row_are_counted_and_dropped_where_asked_for(tmp_path, defaults):
    ids = sorted(set(frame()["item_id"]))
    items = pd.DataFrame({"item_id": ids[2:], "title": "T"})
    lost = int(frame()["item_id"].isin(ids[:2]).sum())
    with pytest.raises(InputError, match=rf"as 2 items of {lost} interactions; add them, or set .*filter\.listed"):
        run(tmp_path, defaults, frame(), items)
    _, _, report = run(tmp_path, defaults, frame(), items, {"listed": True})
    assert report["dropped_interactions"]["of_unlisted_items"] == lost
    assert report["kept_interactions"] == 40 - lost


def test_what_a_filter_empties_names_the_setting(tmp_path, defaults):
    with pytest.raises(InputError, match=r"no user and item has 30 interactions among 40 \(filter\.core\)"):
        run(tmp_path, defaults, frame(), filter={"core": 30})
    with pytest.raises(InputError, match=r"no interaction is between filter\.start and filter\.end"):
        run(tmp_path, defaults, frame(), filter={"start": "2022-01-01"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Rock &amp; Roll", "Rock & Roll"),
        ("Ren&eacute;e &#39;s &#x41;", "Renée 's A"),
        ("AT&T, R&B &copy", "AT&T, R&B &copy"),
        ("<b>Bold</b>ly<br>gone <a href='x'>there</a>", "Boldly gone there"),
        ("I <3 you, a < b > c, <Untitled> <|im_end|> <answer>", "I <3 you, a < b > c, <Untitled> <|im_end|> <answer>"),
        ('<span id="productTitle" class="a">Blue</span>', "Blue"),
        ('<span id="productTitle" class="a-size', ""),
        ("<script>alert(1)</script>", " "),
        ("&lt;i&gt;Blue&lt;/i&gt;", "Blue"),
        ("日本の音楽 ®", "日本の音楽 ®"),
    ],
)
def test_text_loses_html_and_nothing_else(text, expected):
    assert plain(text) == expected


def test_a_title_of_tags_alone_counts_as_none(tmp_path, defaults):
    ids = sorted(set(frame()["item_id"]))
    items = pd.DataFrame({"item_id": ids, "title": ["<span id='x'></span>", *["A &amp; B"] * (len(ids) - 1)]})
    _, catalogue, report = run(tmp_path, defaults, frame(), items, {"title": True})
    assert report["dropped_items"]["without_title"] == 1
    assert {row["title"] for row in catalogue} == {"A & B"}
    assert {row["text"] for row in catalogue} == {"Title: A & B"}


def test_the_workflow_finds_other_formats_and_refuses_two(tmp_path, defaults, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    write(folder, frame())
    as_text(folder, "csv.gz")
    shop = sources.Dataset(source="own", time_unit="s")
    rules = Rules(defaults.model_copy(update={"datasets": {"shop": shop}}))
    with pytest.raises(SystemExit, match=r"has both interactions\.parquet and interactions\.csv\.gz; keep one"):
        rules.prepare_inputs({"dataset": "shop"})
    for name in ("interactions", "items"):
        (folder / f"{name}.parquet").unlink()
    assert rules.prepare_inputs({"dataset": "shop"}) == {
        "interactions": "data/shop/interactions.csv.gz",
        "item_metadata": "data/shop/items.csv.gz",
    }
    assert rules.format({"dataset": "shop"}) == '{"time_unit":"s"}'
