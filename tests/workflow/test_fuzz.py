"""Damaged and hostile inputs for every reader: what comes out is a value or one InputError, never anything else.

`make fuzz` tries more than 100,000 of them; `make test` a few of each kind, others at every commit (MINIREC_SLICE). The
number tried is printed at the end.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import shutil
import signal
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, SLICE
from datasets import Dataset
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minirec.data import amazon, download, models, movielens, titles
from minirec.data.logged.originals import Originals
from minirec.data.logged.rollouts import RolloutLog
from minirec.data.logged.vectors import vectors
from minirec.errors import InputError
from minirec.experiment import commands, config, sources
from minirec.experiment.sections import Prepare, Queries
from minirec.model import policy, prompts, sentence_encoder
from minirec.stages import prepare
from minirec.storage import artefact, tables, tensors
from minirec.storage.artefact import Provenance

FULL = os.environ.get("MINIREC_FUZZ") == "full"
PATIENCE_SECONDS = 120  # longer is a hang
MADE = Provenance("fuzz", {"mu": 0.5})
TRIED: Counter[str] = Counter()
REFUSED: Counter[str] = Counter()


def inputs(full: int, fast: int):
    """A test of that many inputs, `full` in `make fuzz`, else `fast`, those of the slice; without a time limit."""
    more = {"database": None, "deadline": None, "phases": [Phase.explicit, Phase.generate, Phase.shrink]}
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    limits = settings(max_examples=full if FULL else fast, suppress_health_check=checks, **more)
    return limits if FULL else lambda test: seed(SLICE)(limits(test))


@contextmanager
def reading(kind: str):
    """Count one input; let an InputError of one sentence pass, end a hang."""

    def hang(*_):
        raise TimeoutError(f"no answer within {PATIENCE_SECONDS} s")

    TRIED[kind] += 1
    former = signal.signal(signal.SIGALRM, hang)
    signal.alarm(PATIENCE_SECONDS)
    try:
        yield
    except InputError as error:
        REFUSED[kind] += 1
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one line: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="module", autouse=True)
def _report(request):
    yield
    lines = [f"{kind}: {count:,} inputs, {REFUSED[kind]:,} refused" for kind, count in sorted(TRIED.items())]
    lines.append(f"in all {TRIED.total():,} inputs, none ended in anything but a value or one sentence")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        request.config.get_terminal_writer().write("\n" + "\n".join(lines) + "\n")


@st.composite
def damage(draw, content: bytes) -> bytes:
    """A file with a few bytes changed, removed, repeated or inserted, or cut short."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        match draw(st.integers(0, 6)):
            case 0 if changed:
                changed[place] ^= 1 << draw(st.integers(0, 7))
            case 1 if changed:
                changed[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x7B, 0x2C, 0x0A]))
            case 2:
                changed[place : place + draw(st.integers(1, 64))] = b""
            case 3:
                changed[place:place] = draw(st.binary(min_size=1, max_size=16))
            case 4:
                changed[place:place] = changed[place : place + draw(st.integers(1, 200))]
            case 5:
                length = draw(st.integers(1, 64))
                changed[place : place + length] = bytes(min(length, len(changed) - place))
            case _:
                changed = changed[:place]
    return bytes(changed)


def a_table(folder: Path) -> Path:
    columns = {name: np.linspace(0, 1, 20) for name in ("mean_reward", "reward_std", "learnability")}
    columns |= {name: np.linspace(0, 1, 20) for name in ("representativeness", "gradient_norm", "error_norm")}
    table = pa.table({"sample_id": np.arange(20), **columns, "hits": np.zeros(20, np.int32)})
    tables.write("scores", table, folder / "scores.parquet", MADE)
    return folder / "scores.parquet"


def a_table_of_a_user(folder: Path) -> Path:
    table = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "日本", ""], "price": [1.5, None, 3.0]})
    pq.write_table(table, folder / "items.parquet", compression="snappy")
    return folder / "items.parquet"


def some_tensors(folder: Path) -> Path:
    tensors.write({"g": np.ones((4, 3), np.float32), "sample_id": np.arange(4)}, folder / "g.safetensors", MADE)
    return folder / "g.safetensors"


def a_json(folder: Path) -> Path:
    artefact.write_json({"metrics": {"ndcg@10": {"mean": 0.5}}}, folder / "metrics.json", MADE)
    return folder / "metrics.json"


def zipped(folder: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return folder / "a.zip"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize(
    ("kind", "make", "read"),
    [
        ("safetensors", some_tensors, tensors.read),
        ("JSON artefact", a_json, artefact.read_json),
        ("Parquet table", a_table, lambda path: tables.read("scores", path)),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_damaged_artefact_is_refused(folder, kind, make, read):
    path = make(folder)
    content = path.read_bytes()

    @inputs(25_000, 150)
    @given(damage(content))
    def check(changed):
        path.write_bytes(changed)
        before = REFUSED[kind]
        with reading(kind):
            read(path)
        assert changed == content or REFUSED[kind] == before + 1

    check()


def test_a_damaged_table_of_a_user_is_a_table_or_refused(folder):
    path = a_table_of_a_user(folder)

    @inputs(15_000, 100)
    @given(damage(path.read_bytes()))
    def check(changed):
        path.write_bytes(changed)
        with reading("Parquet of a user"):
            assert set(tables.read("items", path).column_names) == set(tables.TABLES["items"].columns)

    check()


@inputs(3_000, 20)
@given(st.data())
def test_a_table_of_any_types_is_a_table_or_refused(folder, data):
    values = {
        pa.string(): st.text(max_size=8),
        pa.int64(): st.integers(-(2**63), 2**63 - 1),
        pa.int32(): st.integers(-(2**31), 2**31 - 1),
        pa.float64(): st.floats(),
        pa.bool_(): st.booleans(),
        pa.binary(): st.binary(max_size=8),
        pa.null(): st.none(),
        pa.list_(pa.int64()): st.lists(st.integers(0, 9), max_size=3),
        pa.timestamp("us"): st.integers(0, 2**40),
        pa.decimal128(12, 2): st.decimals(-1000, 1000, places=2),
    }
    name = data.draw(st.sampled_from(sorted(tables.TABLES)))
    rows, columns = data.draw(st.integers(0, 3)), {}
    for column in tables.TABLES[name].columns:
        kind = data.draw(st.sampled_from(list(values)))
        cells = st.lists(st.none() | values[kind], min_size=rows, max_size=rows)
        columns[column] = pa.array(data.draw(cells), kind)
    path = folder / "any.parquet"
    table = pa.table(columns)
    with artefact.writing_with_digest(path, MADE) as (partial, record), pq.ParquetWriter(partial, table.schema) as out:
        out.add_key_value_metadata({tables.METADATA_KEY: record})
        out.write_table(table)
    with reading("Parquet of any types"):
        assert tables.read(name, path).schema.equals(tables.TABLES[name].schema())


CSV = b"user_id,parent_asin,rating,timestamp\nU1,B1,5.0,1640000000000\nU1,B2,3.0,1640000001000\nU2,B9,,1650000000000\n"
JSONL = "".join(
    json.dumps(row) + "\n"
    for row in (
        {"parent_asin": "B2", "title": "Blöcke", "price": "12.99", "categories": ["Toys"], "details": {"a": {"b": 1}}},
        {"parent_asin": "B1", "title": None, "description": ["one"], "average_rating": 4.5, "rating_number": 3},
    )
).encode()


@pytest.mark.parametrize("name", ["interactions", "items"])
@pytest.mark.parametrize("packed", [False, True], ids=["text", "gzip"])
def test_damaged_files_of_amazon_are_tables_or_refused(folder, name, packed):
    content = CSV if name == "interactions" else JSONL
    good = {"interactions": folder / "i.csv.gz", "items": folder / "m.jsonl.gz"}

    @inputs(600, 4)
    @given(damage(gzip.compress(content, mtime=0) if packed else content))
    def check(changed):
        good["interactions"].write_bytes(gzip.compress(CSV))
        good["items"].write_bytes(gzip.compress(JSONL))
        good[name].write_bytes(changed if packed else gzip.compress(changed))
        with reading(f"Amazon {name}"):
            amazon.convert(good["interactions"], good["items"], folder, "500MB", MADE)
            tables.read("items", folder / "items.parquet")
            tables.read("interactions", folder / "interactions.parquet")

    check()
    assert not list(folder.glob(".*"))


def test_a_damaged_archive_gives_its_member_or_is_refused(folder):
    path = zipped(folder, {"data/good": "some text, some text, some text", "other": "x"})
    target = folder / "unpacked" / "file"

    @inputs(15_000, 100)
    @given(damage(path.read_bytes()))
    def check(changed):
        path.write_bytes(changed)
        target.unlink(missing_ok=True)
        with reading("archive"):
            download.extract(path, "data/good", target)
        assert [file.name for file in target.parent.iterdir()] in ([], ["file"])

    target.parent.mkdir()
    check()


ROLLOUTS = [{"prompt": f"q{row // 2}", "reward": row % 3 / 2, "step": row % 2, "answer": [row]} for row in range(8)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_damaged_rollouts_of_others_are_prompts_with_rewards_or_refused(folder, ending):
    path = folder / f"rollouts.{ending}"
    table = pd.DataFrame(ROLLOUTS)
    if ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path) if ending == "csv" else table.to_parquet(path)

    @inputs(2_000, 15)
    @given(damage(path.read_bytes()))
    def check(changed):
        path.write_bytes(changed)
        with reading(f"rollouts in {ending}"), duckdb.connect() as engine:
            log = RolloutLog(engine, [path], which="last")
            assert np.isfinite(log.rewards.flatten()).all()
            assert log.rows(np.arange(len(log))[::-1]).num_rows == len(log.texts()) == len(log)

    check()


FILMS = "10|Délice (1995)|01-Jan-1995||http://x|" + "|".join("01" * 9 + "0") + "\n"
RATINGS = "1\t10\t5\t881250949\n2\t10\t3\t881250950\n"


def with_rollouts_and_damage(log, file, what, read):
    """Damage a file in many ways, and read it each time beside undamaged rollouts."""
    content = file.read_bytes()
    with duckdb.connect() as engine:
        rollouts = RolloutLog(engine, [log])

        @inputs(2_000, 15)
        @given(damage(content))
        def check(changed):
            file.unlink()  # a new file each time, as the old one may be mapped
            file.write_bytes(changed)
            with reading(what):
                read(rollouts)

        check()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_a_damaged_data_set_gives_the_rows_of_the_picks_or_is_refused(folder, kind):
    log, path = folder / "logged.jsonl", folder / f"originals.{kind}"
    pd.DataFrame(ROLLOUTS).to_json(log, orient="records", lines=True)
    table = pd.DataFrame([{"prompt": f"q{row}", "level": row, "words": ["a"] * row} for row in range(4)])
    damaged = path
    if kind == "jsonl":
        table.to_json(path, orient="records", lines=True)
    elif kind == "parquet":
        table.to_parquet(path)
    else:
        path = folder / "saved"
        Dataset.from_pandas(table).save_to_disk(str(path))
        (damaged,) = path.glob("*.arrow")

    def read(rollouts):
        found, _ = Originals(rollouts, path, None).rows(np.array([2, 0]))
        assert found.num_rows == 2

    with_rollouts_and_damage(log, damaged, f"originals in {kind}", read)


@pytest.mark.parametrize("ending", ["npy", "npz", "safetensors", "parquet"])
def test_damaged_vectors_of_prompts_are_finite_vectors_or_refused(folder, ending):
    log, path = folder / "log.jsonl", folder / f"vectors.{ending}"
    pd.DataFrame(ROLLOUTS).to_json(log, orient="records", lines=True)
    matrix, keys = np.linspace(0, 1, 12).reshape(4, 3), [f"q{row}" for row in range(4)]
    if ending == "npy":
        np.save(path, matrix)
    elif ending == "npz":
        np.savez(path, z=matrix, prompt=keys)
    elif ending == "parquet":
        pq.write_table(pa.table({"prompt": keys, "z": matrix.tolist()}), path)
    else:
        save_file({"z": matrix}, path)

    def read(rollouts):
        found = vectors(rollouts, path)
        assert found.shape[0] == 4
        assert np.isfinite(found).all()

    with_rollouts_and_damage(log, path, f"vectors in {ending}", read)


@pytest.mark.parametrize("which", ["u.data", "u.item", "ml-100k.inter", "ml-100k.item"])
def test_damaged_files_of_movielens_are_tables_or_refused(folder, which, monkeypatch):
    texts = {
        "u.data": RATINGS.encode(),
        "u.item": FILMS.encode("latin-1"),
        "ml-100k.inter": b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + RATINGS.encode(),
        "ml-100k.item": "item_id:token\ttitle\tyear\tclass\n10\tDélice\t1995\tComedy Sci-Fi\n".encode(),
    }
    wheel = which.startswith("ml-100k.")
    given_source = {"wheel": "recbole==1.2.1"} if wheel else {"url": "http://127.0.0.1:1/ml.zip"}
    source = sources.Dataset(source="movielens", **given_source)
    monkeypatch.setattr(movielens, "wheel_member", lambda _, member, sha: folder / Path(member).name)

    def fetched(url, *_):
        (folder / "ml.zip.md5").write_text("0" * 32)
        return folder / ("ml.zip.md5" if url.endswith("md5") else "a.zip")

    monkeypatch.setattr(movielens, "download", fetched)

    @inputs(1_500, 10)
    @given(damage(texts[which]))
    def check(changed):
        now = texts | {which: changed}
        for name, text in now.items():
            (folder / name).write_bytes(text)
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            for name in ("u.data", "u.item"):
                archive.writestr(f"ml-100k/{name}", now[name])
        with reading("MovieLens"):
            movielens.fetch(source, folder, MADE)

    check()


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["; touch x", "$(id)", "`id`", "../..", "a b", "a\nb", "-rf", "'", '"', "\x00", "é", "🎷", "*", "all"]
    )
)
ANYTHING = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)
RAW = yaml.safe_load((ROOT / "config" / "config.yaml").read_text(encoding="utf-8"))


def paths(value, before=()):
    """The keys down to every setting."""
    yield before
    if isinstance(value, dict):
        for key, part in value.items():
            yield from paths(part, (*before, key))


@inputs(15_000, 150)
@given(st.sampled_from([path for path in paths(RAW) if path]), ANYTHING)
@example(("policy", "lora_targets"), ["\x85", "-\u2028🎷"])
@example(("policy", "system"), "\ud800")
@example(("policy", "system"), "2020-13-45")
@example(("policy", "system"), "1" * 5000)
@example(("policy", "system"), "[" * 5000)
@example(("compare",), {"\n": None})
def test_any_value_of_any_setting_is_refused_or_reaches_the_stage_unharmed(path, value):
    changed = json.loads(json.dumps(RAW, default=str))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with reading("configuration value"):
        given_config = config.validate(changed)
        for stage in commands.STAGES:
            arrives_unharmed(given_config, stage)


def arrives_unharmed(given_config: config.Config, stage: str) -> None:
    words = shlex.split(" ".join(commands.flags(given_config, stage)))
    values = dict(zip(words[::2], words[1::2], strict=True))
    names = {commands.flag(name): name for _, name, _ in commands.command(stage).settings()}
    sections = commands.parse(stage, {names[flag]: value for flag, value in values.items()}, {})
    for section in sections.keys() & config.Config.model_fields.keys():
        assert sections[section] == getattr(given_config, section)


@inputs(1_200, 8)
@given(damage((ROOT / "config" / "quickstart.yaml").read_bytes()))
def test_a_damaged_configuration_file_is_a_configuration_or_refused(folder, changed):
    (folder / "over.yaml").write_bytes(changed)
    with reading("configuration file"):
        config.load(ROOT / "config" / "config.yaml", folder / "over.yaml")


TITLES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(
        [
            "<answer>",
            "<ans",
            "wer>",
            "<|im_end|>",
            "<|im_start|>",
            "<b>",
            "\x00",
            "\u202e",
            "مرحبا",
            "🎷",
            "\r\n",
        ]
    ),
    max_size=6,
).map("".join)


@inputs(8_000, 80)
@given(TITLES)
def test_no_title_puts_a_special_token_or_the_marker_into_a_prompt(tiny_model, title):
    from transformers import AutoTokenizer

    tokenizer = _once(AutoTokenizer.from_pretrained, tiny_model)
    made = prompts.user_prompts(tokenizer, "<answer>", None)
    with reading("title"):
        line = titles.history_lines([title], [3.0], [86_400_000])
        body = made.encode(line)[: -len(made.suffix)]
        assert not set(body) & set(tokenizer.all_special_ids)
        assert "<answer>" not in tokenizer.decode(body)
        assert line.count("\n") == 0


_ONCE: dict = {}


def _once(make, *arguments):
    if make not in _ONCE:
        _ONCE[make] = make(*arguments)
    return _ONCE[make]


DAYS = st.sampled_from([{}, {"start": "1970-01-01", "end": "9999-12-31"}, {"end": "2030-01-01", "min_items": 3}])
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u2", "", "é 🎷", "a\nb"]),
        st.sampled_from(["i1", "i2", "i3", "-", "i\t4"]),
        st.integers(16 * 10**11, 16 * 10**11 + 5) | st.sampled_from([-5, 2**62, 10**13]),
        st.none() | st.floats(width=32),
    ),
    max_size=30,
)


@inputs(600, 5)
@given(EVENTS, st.integers(0, 3), st.integers(1, 3), DAYS)
def test_any_interactions_are_prepared_or_refused(folder, events, core, history, days):
    columns = zip(*events, strict=True) if events else [[], [], [], []]
    kinds = (pa.string(), pa.string(), pa.int64(), pa.float32())
    arrays = [pa.array(list(column), kind) for column, kind in zip(columns, kinds, strict=True)]
    pq.write_table(pa.table(arrays, ["user_id", "item_id", "timestamp", "rating"]), folder / "events.parquet")
    titles_of_items = {
        "item_id": ["i1", "i2", "i3", "-", "i\t4"],
        "title": ["One", "<answer>", "", "a\x00b", "x" * 5000],
    }
    pq.write_table(pa.table(titles_of_items), folder / "events-items.parquet")
    out = folder / "prepared"
    files = {"interactions": folder / "events.parquet", "item_metadata": folder / "events-items.parquet"}
    files |= {name: out / f"{name}.parquet" for name in ("samples", "catalogue")} | {"dropped": out / "prepare.json"}
    with reading("interactions"):
        settings = {"prepare": Prepare(history=history), "queries": Queries(memory="500MB")}
        prepare.run(**settings, filter=json.dumps({"core": core} | days), **files)
        samples = tables.read("samples", files["samples"])
        catalogue = tables.read("catalogue", files["catalogue"])
        assert max(samples["target_row"].to_pylist()) < catalogue.num_rows
        assert all(1 <= len(row) <= history for row in samples["history_rows"].to_pylist())
        assert not any(re.search(r"[\x00-\x08\x0b-\x1f]", text) for text in catalogue["text"].to_pylist())


def a_gguf(path: Path) -> None:
    """A llama of one layer with a byte-level tokenizer."""
    import gguf

    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(64)
    out.add_embedding_length(8)
    out.add_block_count(1)
    out.add_feed_forward_length(16)
    out.add_head_count(2)
    out.add_head_count_kv(1)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(1e4)
    out.add_vocab_size(260)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([*"abcd", *(chr(300 + i) for i in range(252)), "<|im_start|>", "<|im_end|>", "ab", "cd"])
    out.add_token_types([1] * 256 + [3, 3, 1, 1])
    out.add_token_merges(["a b", "c d"])
    out.add_bos_token_id(256)
    out.add_eos_token_id(257)
    shapes = {"token_embd": (260, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {"blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8)}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", np.full(shape, 0.5, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def test_a_damaged_gguf_is_a_model_or_refused(folder):
    path = folder / "gguf" / "x.gguf"
    path.parent.mkdir()
    a_gguf(path)
    models.convert(path, folder / "converted")
    content = path.read_bytes()

    @inputs(400, 5)
    @given(damage(content[:7000]))
    def check(head):
        path.write_bytes(head + content[7000:])
        with reading("GGUF"):
            models.convert(path, folder / "converted")

    check()


def test_a_damaged_model_of_a_user_is_a_policy_or_refused(folder, tiny_model, defaults):
    model = folder / "model"
    shutil.copytree(tiny_model, model, ignore=shutil.ignore_patterns(artefact.FOLDER_RECORD))
    path = model / "model.safetensors"
    content = path.read_bytes()

    @inputs(600, 5)
    @given(damage(content[:4000]))
    def check(head):
        path.write_bytes(head + content[4000:])
        with reading("safetensors of a model"):
            policy.Policy.load(model, defaults.policy)
        with reading("safetensors of an encoder"):
            sentence_encoder.encode(model, ["Blue Train"])

    check()


def test_the_fuzzer_itself_sees_another_error_and_an_empty_sentence():
    with pytest.raises(ZeroDivisionError), reading("itself"):
        raise ZeroDivisionError
    with pytest.raises(AssertionError), reading("itself"):
        raise InputError("")
    with reading("itself"):
        raise InputError("one line")
    del TRIED["itself"], REFUSED["itself"]


def test_a_bomb_is_not_unpacked(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50 << 20))
    packed = buffer.getvalue()
    assert len(packed) < 1 << 20
    (folder / "bomb.zip").write_bytes(packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download, "MAX_MEMBER_BYTES", 10 << 20)
        with pytest.raises(InputError, match="claims 52428800 bytes, which is too many"):
            download.extract(folder / "bomb.zip", "bomb", folder / "unpacked-bomb")
    liar = bytearray(packed)
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = packed.index(mark) + offset
        liar[at : at + 4] = (1000).to_bytes(4, "little")
    (folder / "bomb.zip").write_bytes(liar)
    with pytest.raises(InputError):
        download.extract(folder / "bomb.zip", "bomb", folder / "unpacked-bomb")
    assert not (folder / "unpacked-bomb").exists()
