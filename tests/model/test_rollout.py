"""Rollouts as files: the same bytes from one job, from shards, and from a job that was killed on the way."""

import json
import re
import shlex
import shutil
import signal
import time
from pathlib import Path

import pytest
import stage_forks

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import commands, config
from minirec.experiment.sections import Generation, Passes
from minirec.model import compatibility, generate
from minirec.stages import gather, rollout
from minirec.storage import tables, tensors

SMALL = Passes(batch_tokens=60)  # batches of one or two prompts


def settings(defaults, **changes):
    return config.validate(config.overlay(json.loads(defaults.model_dump_json()), {"rollout": changes}))


def run(judged, given, folder, shard=None, vllm_memory=0.6, seed=0):
    """Run the stage; returns the bytes of its two files."""
    out = {"rollouts": folder / "rollouts.parquet", "hidden": folder / "hidden.safetensors"}
    sections = {name: getattr(given, name) for name in ("policy", "sampling", "reward", "rollout")}
    generation = Generation(vllm_memory=vllm_memory)
    rollout.run(**sections, passes=SMALL, generation=generation, **judged, seed=seed, shard=shard, **out)
    assert sorted(path.name for path in folder.iterdir()) == ["hidden.safetensors", "rollouts.parquet"]
    return [path.read_bytes() for path in out.values()]


@pytest.fixture(scope="module")
def whole(judged, defaults, tmp_path_factory):
    return run(judged, settings(defaults), tmp_path_factory.mktemp("whole"))


def test_a_completion_is_noted_as_forced_where_its_text_lacks_the_marker(judged, defaults, tmp_path):
    given = settings(defaults)
    marked = given.policy.model_copy(update={"marker": "a"})  # a random model writes it now and then
    run(judged, given.model_copy(update={"policy": marked}), tmp_path)
    found = tables.read("rollouts", tmp_path / "rollouts.parquet").to_pylist()
    assert [row["forced"] for row in found] == ["a" not in row["text"] for row in found]
    assert {row["forced"] for row in found} == {True, False}


@pytest.fixture
def calls(monkeypatch):
    """Sizes of the batches that are really written; `calls.limit` is how many may be, then the job dies."""

    class Calls(list):
        limit = 10**6

    seen, write = Calls(), generate.generate

    def counted(policy, prompts, *rest, **named):
        if len(seen) == seen.limit:
            raise KeyboardInterrupt
        seen.append(len(prompts))
        return write(policy, prompts, *rest, **named)

    monkeypatch.setattr(generate, "generate", counted)
    monkeypatch.setattr(compatibility, "require_supported", lambda *_: None)  # which writes as well
    return seen


def rows(folder):
    """A rollout without the record of its settings."""
    table = tables.read("rollouts", folder / "rollouts.parquet")
    states = tensors.read(folder / "hidden.safetensors")
    return table.to_pylist(), states["sample_id"].tolist(), states["hidden"].tobytes()


@pytest.mark.parametrize(("window", "count"), [(splits.WINDOW, 3), (5, 3), (1, 3), (1, 2)])
def test_shards_joined_are_what_one_job_writes(judged, defaults, tmp_path, monkeypatch, window, count):
    monkeypatch.setattr(splits, "WINDOW", window)
    (tmp_path / "one").mkdir()
    one = run(judged, settings(defaults), tmp_path / "one", vllm_memory=0.9)
    shards = []
    for shard in range(count):  # of whole windows in the last case, else of batches
        shards.append(tmp_path / str(shard))
        shards[-1].mkdir()
        run(judged, settings(defaults, shards=count), shards[-1], shard)
        owned = [row["sample_id"] for row in rows(shards[-1])[0]]
        assert 0 < len(set(owned)) < 22
    files = {"rollouts": tmp_path / "rollouts.parquet", "hidden": tmp_path / "hidden.safetensors"}
    gather.run(shards_folder=tmp_path, shards=count, **files)
    assert rows(tmp_path) == rows(tmp_path / "one")
    assert [path.read_bytes() for path in files.values()] == one


def test_a_shard_with_nothing_to_do_writes_empty_files_that_gather_takes(judged, defaults, tmp_path):
    shards = [tmp_path / str(shard) for shard in range(40)]
    for number, shard in zip((0, 39, 1), shards[:3], strict=True):
        shard.mkdir()
        run(judged, settings(defaults, shards=40), shard, number)
    assert rows(shards[1])[0] == []
    files = {"rollouts": tmp_path / "rollouts.parquet", "hidden": tmp_path / "hidden.safetensors"}
    gather.run(shards_folder=tmp_path, shards=3, **files)
    assert len(rows(tmp_path)[1]) == len(rows(shards[0])[1]) + len(rows(shards[2])[1])


def test_shards_that_hold_different_samples_are_refused(judged, defaults, tmp_path):
    shards = [tmp_path / str(shard) for shard in range(2)]
    for number, shard in enumerate(shards):
        shard.mkdir()
        run(judged, settings(defaults, shards=2), shard, number)
    shutil.copy(shards[0] / "hidden.safetensors", shards[1])
    with pytest.raises(
        InputError, match=r"1/rollouts\.parquet and hidden\.safetensors beside it hold different samples"
    ):
        gather.run(
            shards_folder=tmp_path,
            shards=2,
            rollouts=tmp_path / "rollouts.parquet",
            hidden=tmp_path / "hidden.safetensors",
        )


def test_a_stopped_job_goes_on_where_it_was_to_the_same_bytes(judged, defaults, tmp_path, whole, calls):
    calls.limit = 7
    with pytest.raises(KeyboardInterrupt):
        run(judged, settings(defaults), tmp_path)
    assert not (tmp_path / "rollouts.parquet").exists()
    calls.limit = 10**6
    assert run(judged, settings(defaults), tmp_path) == whole
    assert sum(calls) == 22  # nothing twice
    assert len(calls) > 10


@pytest.mark.parametrize("damage", ["rollouts", "states"])
def test_a_damaged_part_is_made_again(judged, defaults, tmp_path, whole, calls, damage):
    calls.limit = 7
    with pytest.raises(KeyboardInterrupt):
        run(judged, settings(defaults), tmp_path)
    part = sorted((tmp_path / "rollouts.unfinished").rglob("*.parquet"))[2]
    part = part if damage == "rollouts" else part.with_suffix(".safetensors")
    part.write_bytes(part.read_bytes()[:-9])
    calls.limit = 10**6
    assert run(judged, settings(defaults), tmp_path) == whole
    assert sum(calls) == 22 + calls[2]


def test_parts_of_other_settings_are_not_used(judged, defaults, tmp_path, whole, calls):
    calls.limit = 7
    with pytest.raises(KeyboardInterrupt):
        run(judged, settings(defaults), tmp_path, seed=5)
    calls.limit = 10**6
    before = sum(calls)
    assert run(judged, settings(defaults), tmp_path) == whole
    assert sum(calls) - before == 22


def start(judged, given, folder):
    """The stage in a process of its own."""
    out = {"rollouts": folder / "rollouts.parquet", "hidden": folder / "hidden.safetensors"}
    words = ["rollout", *shlex.split(" ".join(commands.flags(given, "rollout")))]
    words += ["--batch-tokens", str(SMALL.batch_tokens)]
    for name, path in {**judged, **out}.items():
        words += [commands.flag(name), str(path)]
    return stage_forks.start(words, Path.cwd())


def test_of_two_processes_one_is_sent_away_and_the_other_ends_as_alone(judged, defaults, tmp_path, whole):
    processes = [start(judged, settings(defaults), tmp_path) for _ in range(2)]
    ends = sorted(process.end() for process in processes)
    assert [code for code, _ in ends] == [0, 1], ends
    assert re.search(r"another process is making .*rollouts\.unfinished; wait for it or end it", ends[1][1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hidden.safetensors", "rollouts.parquet"]
    assert [(tmp_path / name).read_bytes() for name in ("rollouts.parquet", "hidden.safetensors")] == whole


def test_a_killed_process_goes_on_where_it_was_to_the_same_bytes(judged, defaults, tmp_path, whole, calls):
    given = settings(defaults)
    running = start(judged, given, tmp_path)
    folder = tmp_path / "rollouts.unfinished"
    while len(list(folder.rglob("0*.parquet"))) < 2 and running.process.is_alive():
        time.sleep(0.002)
    running.process.kill()
    assert running.end()[0] == -signal.SIGKILL
    assert 2 <= len(list(folder.rglob("0*.parquet"))) < 14
    assert run(judged, given, tmp_path) == whole
    assert 0 < sum(calls) < 22


def test_a_job_that_goes_on_with_other_batches_ends_as_one_that_had_them_from_the_start(
    judged, defaults, tmp_path, monkeypatch, calls
):
    monkeypatch.setattr(f"{__name__}.SMALL", Passes(batch_tokens=120))
    (tmp_path / "undisturbed").mkdir()
    undisturbed = run(judged, settings(defaults), tmp_path / "undisturbed")
    monkeypatch.setattr(f"{__name__}.SMALL", Passes(batch_tokens=60))
    calls.clear()
    calls.limit = 3
    with pytest.raises(KeyboardInterrupt):
        run(judged, settings(defaults), tmp_path)
    calls.limit = 10**6
    monkeypatch.setattr(f"{__name__}.SMALL", Passes(batch_tokens=120))
    rollout_files = tmp_path / "again"
    (tmp_path / "rollouts.unfinished").rename(rollout_files.with_name("kept"))
    rollout_files.mkdir()
    (tmp_path / "kept").rename(rollout_files / "rollouts.unfinished")
    assert run(judged, settings(defaults), rollout_files) == undisturbed


def test_shards_with_other_batches_are_not_joined(judged, defaults, tmp_path, monkeypatch):
    shards = [tmp_path / name for name in ("0", "1")]
    for number, shard in enumerate(shards):
        shard.mkdir()
        monkeypatch.setattr(f"{__name__}.SMALL", Passes(batch_tokens=60 * (number + 1)))
        run(judged, settings(defaults, shards=2), shard, number)
    with pytest.raises(InputError, match=r"0/rollouts\.parquet and .*1/rollouts\.parquet were made differently"):
        gather.run(
            shards_folder=tmp_path,
            shards=2,
            rollouts=tmp_path / "rollouts.parquet",
            hidden=tmp_path / "hidden.safetensors",
        )
