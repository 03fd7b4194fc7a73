"""recommend: what a trained run recommends to a user whose history is typed, or to many users in a file."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minirec.cli.show import align
from minirec.data import user_histories
from minirec.errors import InputError
from minirec.experiment.sections import Passes
from minirec.progress import log, progress
from minirec.storage.files import atomic_write

COLUMNS = pa.schema(
    [
        ("user_id", pa.string()),
        ("titles", pa.list_(pa.string())),
        ("item_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("reasoning", pa.string()),
        ("unknown", pa.list_(pa.string())),
    ]
)


def run(
    *,
    folder: Path,
    history: str | None = None,
    users: Path | None = None,
    out: Path | None = None,
    top: int = 10,
    reasoning: bool = True,
    json: bool = False,
    batch_tokens: int = Passes().batch_tokens,
) -> None:
    """Print or write recommendations; raises InputError if nothing of a history is in the catalogue."""
    if (history is None) == (users is None) or (users is None) != (out is None):
        raise InputError('name a history, --history "title; title", or a file of users, --users FILE --out FILE')
    if top < 1:
        raise InputError(f"--top is {top}; it must be at least 1")
    from minirec.evaluation.recommender import Recommender, TrainedRun  # loads torch, which takes seconds

    recommender = Recommender(TrainedRun.opened(folder), batch_tokens)
    if top > len(recommender.titles):
        raise InputError(f"--top is {top}, but the catalogue has {len(recommender.titles)} items; lower it")
    if history is not None:
        typed(recommender, history, top, reasoning, json)
    elif users is not None and out is not None:
        of_file(recommender, users, out, top, reasoning)


def typed(recommender: Any, history: str, top: int, reasoning: bool, json: bool) -> None:
    """Print the recommendations for a typed history, oldest title first, with semicolons between the titles."""
    found = recommender.lookup.listed(history)
    for title, row in found:
        if row is None:
            close = recommender.lookup.suggestions(title)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            log.warning("the catalogue has no %s%s", title, hint)
    rows = [row for _, row in found if row is not None]
    if not rows:
        raise InputError("nothing of this history is in the catalogue; minirec show CATALOGUE lists titles")
    one = recommender.recommend([rows], top, reasoning)[0]
    names = [recommender.titles[row] for row in one.rows]
    if json:
        answer = {"history": [recommender.titles[row] for row in rows], "reasoning": one.reasoning}
        answer["recommended"] = [
            {"title": name, "item_id": recommender.item_ids[row], "score": round(score, 4)}
            for name, row, score in zip(names, one.rows, one.scores, strict=True)
        ]
        sys.stdout.write(json_format.dumps(answer, indent=2, ensure_ascii=False) + "\n")
        return
    lines = [["", "score", "title"]]
    lines += [[str(n), f"{s:.3f}", name] for n, (s, name) in enumerate(zip(one.scores, names, strict=True), 1)]
    after = f"after {'; '.join(recommender.titles[row] for row in rows)}\n"
    text = f"reasoning: {one.reasoning}\n" if one.reasoning else ""
    sys.stdout.write(after + align(lines) + text + "the score is the cosine of user and item, -1 to 1\n")


def of_file(recommender: Any, users: Path, out: Path, top: int, reasoning: bool) -> None:
    """Write the recommendations for the users of a Parquet file, a row each, in its order."""
    if out.resolve() == users.resolve() or out.is_dir():
        what = "a folder" if out.is_dir() else "the file of the users itself"
        raise InputError(f"--out is {out}, {what}; name another")
    total, without = sum(map(len, user_histories.parts(users))), 0  # which checks them before the model is loaded
    with (
        atomic_write(out) as partial,
        pq.ParquetWriter(partial, COLUMNS) as writer,
        progress("recommend", total, "users") as bar,
    ):
        for part in user_histories.parts(users):
            found = [[recommender.lookup.row(title) for title in user.history] for user in part]
            known = [
                [one for one in zip(rows, user.ratings, user.ages, strict=True) if one[0] is not None]
                for user, rows in zip(part, found, strict=True)
            ]
            some = [place for place, items in enumerate(known) if items]
            histories, ratings, ages = ([[one[side] for one in known[place]] for place in some] for side in range(3))
            answers = recommender.recommend(histories, top, reasoning, ratings, ages)
            given = dict(zip(some, answers, strict=True))
            rows = []
            for place, user in enumerate(part):
                one = given.get(place)
                best = one.rows if one else []
                missing = [t for t, row in zip(user.history, found[place], strict=True) if row is None]
                rows.append(
                    {
                        "user_id": user.user_id,
                        "titles": [recommender.titles[row] for row in best],
                        "item_ids": [recommender.item_ids[row] for row in best],
                        "scores": one.scores if one else [],
                        "reasoning": one.reasoning if one else "",
                        "unknown": missing,
                    }
                )
            writer.write_table(pa.Table.from_pylist(rows, COLUMNS))
            without += len(rows) - len(some)
            bar.add(len(rows))
    if without:
        log.warning(
            "%d of %d users have no item of the catalogue in their history; their lists are empty", without, total
        )
