"""Every stage of a small real run is killed, starved and given damaged inputs: `make test-faults`, a slice `make test`.

After each fault there is one clear sentence or none at all (a killed process cannot speak), nothing unfinished under a
final name, and the next run ends with the same bytes as an undisturbed one. The faults are counted at the end.

A stage runs in a fork, which starts at once: a random moment falls into its work and not into its imports.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import stage_forks
from conftest import ROOT, snakemake
from test_chain import CONFIG, shop, untimed
from test_workflow import commands

from minirec.cli import main
from minirec.experiment.commands import command, flag
from minirec.progress import log
from minirec.storage import artefact

pytestmark = pytest.mark.faults
METRICS, COMPARISON = "results/shop/metrics.json", "results/shop/comparison.parquet"
JOBS = ("fetch_model", "prepare", "embed_base", "train_proxy", "embed_proxy", "rollout", "gather", "gradient", "score")
JOBS += ("select", "curriculum", "train", "evaluate", "measure", "evaluate_base", "measure_base", "baselines")
JOBS += ("summarise", "compare")
KILLS = 3  # a stage, one after the other
COUNT: Counter[str] = Counter()
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
WORDS = ["--cores", "1", "--configfile", "config/quickstart.yaml", "shop.yaml"]


@dataclass(frozen=True)
class Job:
    """One job of the workflow: its words after `python -m minirec`, in the folder of the run."""

    folder: Path
    words: tuple[str, ...]

    @property
    def stage(self) -> str:
        return self.words[0]

    def value(self, name: str) -> str:
        return self.words[self.words.index(name) + 1]

    def flags(self) -> list[str]:
        """The flags that name what the job writes."""
        written = [flag(parameter.name) for parameter in command(self.stage).flags if parameter.writes]
        if self.stage == "embed" and "--adapter" not in self.words:
            written.append("--frozen-states")
        return [name for name in written if name in self.words]

    def outputs(self) -> list[Path]:
        """Files and folders the job writes."""
        return [self.folder / self.value(name) for name in self.flags()]

    def inputs(self) -> list[Path]:
        """Files the job is given that are artefacts."""
        written = {str(path.relative_to(self.folder)) for path in self.outputs()}
        given = [word for word in self.words[1:] if word not in written and (self.folder / word).exists()]
        paths = [self.folder / word for word in given if word.startswith(("results/", "data/"))]
        files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        kinds = (".parquet", ".safetensors", ".json")
        return [file for file in files if file.suffix in kinds and "logs" not in file.parts]

    def elsewhere(self, top: Path) -> Job:
        """The same job, writing below another folder."""
        if self.stage in ("summarise", "compare"):  # they read what lies beside their outputs
            for path in (self.folder / "results/shop").iterdir():
                if path not in self.outputs() and path.name != "figures":
                    (top / path.name).symlink_to(path)
        words = list(self.words)
        for name in self.flags():
            words[words.index(name) + 1] = str(top / Path(self.value(name)).name)
        return Job(self.folder, tuple(words))

    def start(self) -> stage_forks.Running:
        return stage_forks.start(self.words, self.folder)

    def run(self) -> tuple[int, str]:
        return self.start().end()

    def seconds(self) -> float:
        """How long the job takes when nothing disturbs it; removes what it wrote."""
        remove(self.outputs())
        started = time.monotonic()
        code, said = self.run()
        assert code == 0, said
        remove(self.outputs())
        return time.monotonic() - started


def spawn(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return snakemake(folder, *WORDS, *arguments, environment=ENVIRONMENT)


def contents(paths: list[Path], instead: Mapping[str, str] = MappingProxyType({})) -> dict[Path, bytes]:
    """Bytes of every file under some paths that the workflow made; not what Snakemake adds.

    instead: texts, and what is put in their place.
    """
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    found = {file: file.read_bytes() for file in files if file.is_file() and not file.name.startswith(".snakemake")}
    for old, new in instead.items():
        found = {file: content.replace(old.encode(), new.encode()) for file, content in found.items()}
    return found


def remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def unfinished(job: Job, whole: dict[Path, bytes]) -> list[Path]:
    """Files under a final name that are not what an undisturbed run writes, but for the seconds in them."""
    return [
        file
        for file, content in contents(job.outputs()).items()
        if file not in whole or untimed(file.name, content) != untimed(file.name, whole[file])
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Path]:
    """A folder in which the whole workflow has run; the environment of the jobs, as long as the tests of faults run.

    Its jobs run as forks, in the order of the plan; Snakemake finds their results and runs the last two itself.
    """
    before = dict(os.environ)
    os.environ |= ENVIRONMENT
    folder = tmp_path_factory.mktemp("faults")
    for part in ("workflow", "config"):
        shutil.copytree(ROOT / part, folder / part)
    shutil.copy(ROOT / "environment.yml", folder)
    (folder / "shop.yaml").write_text(CONFIG + "compare: {models: []}\n", encoding="utf-8")
    shop(folder / "data" / "shop")
    stage_forks.import_libraries()  # meanwhile
    planned = spawn(folder, "-n", "-p", "--", METRICS, COMPARISON)
    assert planned.returncode == 0, planned.stdout
    for job in (Job(folder, tuple(shlex.split(line))) for line in commands(planned.stdout)):
        if job.stage not in ("summarise", "compare"):
            code, said = job.run()
            assert code == 0, said
    done = spawn(folder, "--", METRICS, COMPARISON)
    assert done.returncode == 0, done.stdout
    assert sorted(set(re.findall(r"\(Rule: (\w+)\)", done.stdout))) == ["compare", "summarise"]
    done = spawn(folder, "--touch", "--forceall", "--", METRICS, COMPARISON)  # so that it has records of all
    assert done.returncode == 0, done.stdout
    yield folder
    os.environ.clear()
    os.environ |= before


@pytest.fixture(scope="module")
def jobs(project) -> dict[str, Job]:
    """Every job of the workflow by rule; of the two shards the first."""
    planned = spawn(project, "-n", "-p", "-F", "--", METRICS, COMPARISON)
    assert planned.returncode == 0, planned.stdout
    found: dict[str, Job] = {}
    rules = re.findall(r"^rule (\w+):$", planned.stdout, re.MULTILINE)
    for rule, line in zip(rules, commands(planned.stdout), strict=True):
        job = Job(project, tuple(shlex.split(line)))
        if "method=random" not in job.words:  # not the proxy's own selection
            found.setdefault(rule, job)
    assert sorted(found) == sorted(JOBS)
    return found


@pytest.fixture(scope="module")
def whole(project) -> dict[Path, bytes]:
    """What an undisturbed run writes."""
    return contents([project / "results", project / "data"])


@pytest.fixture(autouse=True)
def _put_back(project, whole):
    """After every test, what the undisturbed run wrote, and nothing else."""
    yield
    remove([path for path in contents([project / "results", project / "data"]) if path not in whole])
    for path, content in whole.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture(scope="module", autouse=True)
def _count(request):
    yield
    lines = [f"{fault}: {count}" for fault, count in sorted(COUNT.items())]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        request.config.get_terminal_writer().write("\nfaults survived\n" + "\n".join(lines) + "\n")


def parts_of(job: Job) -> list[Path]:
    return [file for path in job.outputs() for file in path.parent.glob(f".{path.name}*part")]


def ends_as_before(job: Job, whole: dict[Path, bytes]) -> None:
    code, said = job.run()
    assert code == 0, said
    assert unfinished(job, whole) == []
    assert all(path.exists() for path in job.outputs())


@pytest.mark.parametrize("name", JOBS)
def test_a_stage_that_is_killed_and_terminated_ends_with_the_same_bytes(jobs, whole, name):
    job, seeded = jobs[name], random.Random(name)
    usual = job.seconds()
    hits = 0
    for attempt in range(10 * KILLS):
        if hits == KILLS + 1:
            break
        last = hits == KILLS  # the one that is asked politely
        wait = usual * seeded.uniform(0.1, 1)
        left = set(parts_of(job))
        running = job.start()
        started = time.monotonic()
        at_the_write = hits == KILLS - 1 and attempt < 2 * KILLS
        while running.process.is_alive() and (
            left >= set(parts_of(job)) if at_the_write else time.monotonic() - started < wait
        ):
            time.sleep(0.001)
        with suppress(ProcessLookupError):
            os.kill(running.process.pid, signal.SIGTERM if last else signal.SIGKILL)
        code, said = running.end()
        if code == 0:  # it was faster
            remove(job.outputs())
            continue
        hits += 1
        if last:
            assert code in (128 + signal.SIGTERM, -signal.SIGTERM), said
            assert "Traceback" not in said
            mine = [part for part in parts_of(job) if str(running.process.pid) in part.name]
            assert mine == [], "a terminated stage cleans up"
        else:
            assert code == -signal.SIGKILL, said
        COUNT["SIGTERM" if last else "kill -9 of a stage"] += 1
        assert unfinished(job, whole) == []
    assert hits == KILLS + 1
    ends_as_before(job, whole)
    assert parts_of(job) == [], "the next run removes what a killed one left"


def damaged(content: bytes, seeded: random.Random) -> list[tuple[str, bytes]]:
    """A file with a flipped bit in the first and last bytes and at three places between, cut short, and empty."""
    n = len(content)
    places = [seeded.randrange(min(n, 16)), n - 1 - seeded.randrange(min(n, 16)), *(seeded.randrange(n) for _ in "abc")]
    flipped = []
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << seeded.randrange(8)
        flipped.append(("flipped bit", bytes(changed)))
    return [*flipped, ("truncated file", content[: seeded.randrange(n)]), ("empty file", b"")]


@contextmanager
def instead(file: Path, content: bytes):
    """Another content in the place of a file; its times stay."""
    before, state = file.read_bytes(), file.stat()
    file.unlink()
    file.write_bytes(content)
    artefact._sha256.cache_clear()
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        artefact._sha256.cache_clear()


@pytest.mark.parametrize("name", [name for name in JOBS if name != "fetch_model"])
def test_a_damaged_input_is_named_and_nothing_is_computed_from_it(jobs, whole, monkeypatch, capsys, name):
    job = jobs[name]
    monkeypatch.chdir(job.folder)
    inputs = [file for file in job.inputs() if "data/shop" not in str(file)]
    if name == "prepare":
        inputs = []  # a user's files have no digest; see test_fuzz.py and test_prepare.py
    if name in ("summarise", "compare"):
        run = job.folder / "results/shop/runs/tiny/tiny/minirec-20/seed0"
        inputs = [run / "metrics.json"]
    for file in inputs:
        for kind, content in damaged(file.read_bytes(), random.Random(f"{name} {file.name}")):
            remove(job.outputs())
            with instead(file, content):
                code = main.main(list(job.words))
            said = capsys.readouterr().err
            assert "Traceback" not in said, said
            if code == 0:  # a file the stage does not read
                assert unfinished(job, whole) == []
                COUNT[f"{kind} that no result depends on"] += 1
                continue
            assert code == 1, said
            assert str(file.relative_to(job.folder)) in said or str(file.parent.relative_to(job.folder)) in said
            assert "again" in said or "does not exist" in said, said
            assert contents(job.outputs()) == {}
            COUNT[f"{kind} of an input"] += 1
    log.handlers.clear()


def mounted(folder: Path, options: str) -> None:
    """A small disk at a folder; skips where that is not allowed."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A folder for a small disk, unmounted at the end."""
    folder = tmp_path / "disk"
    yield folder
    while subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0:
        pass


def unwrapped(name: str, content: bytes) -> object:
    """What a file says but for its seconds and, of a text, the ends of lines, which depend on the folder's name."""
    return untimed(name, content.replace(b"\n   ", b"") if name.endswith(".txt") else content)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_named_and_leaves_nothing_half_written(jobs, whole, disk, name):
    job = jobs[name]
    free = max(len(content) for content in contents(job.outputs()).values()) // 2 // 4096  # pages: half of a file
    mounted(disk, f"size={4096 * (free + 1)}")
    (disk / "filler").write_bytes(bytes(4096))
    moved = job.elsewhere(disk)
    code, said = moved.run()
    assert code == 1, said
    assert "No space left on device" in said
    assert "free some space and start again" in said
    assert "Traceback" not in said
    for old, new in zip(job.outputs(), moved.outputs(), strict=True):
        assert not new.exists() or (new.is_file() and new.read_bytes() == whole[old])
    assert not list(disk.rglob(".*part"))
    COUNT["full disk"] += 1
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    code, said = moved.run()
    assert code == 0, said
    for old, new in zip(job.outputs(), moved.outputs(), strict=True):
        before, after = (
            {path.relative_to(top.parent): unwrapped(path.name, content) for path, content in found.items()}
            for top, found in ((old, contents([old])), (new, contents([new], {str(disk): "results/shop"})))
        )
        assert after == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a folder read-only")
def test_a_read_only_folder_of_results_is_named_by_every_stage(jobs, project):
    results = str(project / "results")
    before = contents([project / "results", project / "data"])
    if subprocess.run(["mount", "--bind", results, results], capture_output=True, check=False).returncode:
        pytest.skip("a folder cannot be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", results], check=True)
        for name, job in jobs.items():
            if name == "fetch_model":  # writes below data/
                continue
            code, said = job.run()
            assert code == 1, name
            assert "Read-only file system" in said
            assert "Traceback" not in said
            COUNT["read-only results"] += 1
    finally:
        subprocess.run(["umount", results], check=True)
    assert contents([project / "results", project / "data"]) == before


def science(project: Path) -> dict[Path, object]:
    """What the results say, but for the seconds in them."""
    timed = ("logs", "comparison", "figures")
    return {
        file: untimed(file.name, content)
        for file, content in contents([project / "results" / "shop"]).items()
        if not any(word in str(file.relative_to(project)) for word in timed)
    }


def started(project: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A run of the workflow in a session of its own that holds the lock of its folder."""
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", *WORDS, *arguments],
        cwd=project,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    locks = project / ".snakemake" / "locks"
    while process.poll() is None and not (locks.is_dir() and any(locks.iterdir())):
        time.sleep(0.01)
    assert process.poll() is None
    return process


@pytest.mark.parametrize("rule", ["select", "score", "baselines"])
def test_a_killed_workflow_leaves_a_lock_that_is_named_and_goes_on_after_unlock(project, rule):
    before, work = science(project), ("-R", rule, "--", METRICS, COMPARISON)
    process = started(project, *work)
    time.sleep(random.Random(rule).uniform(0, 5))
    os.killpg(process.pid, signal.SIGKILL)  # the jobs, too
    process.wait()
    second = spawn(project, *work)
    assert second.returncode != 0
    assert "--unlock" in second.stdout
    assert spawn(project, "--unlock", "--", METRICS).returncode == 0
    third = spawn(project, *work)
    assert third.returncode == 0, third.stdout
    assert science(project) == before
    COUNT["kill -9 of the workflow, stale lock"] += 1


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_ends_as_alone(project):
    before, work = science(project), ("-R", "curriculum", "--", METRICS, COMPARISON)
    first = started(project, *work)
    second = spawn(project, *work)
    assert second.returncode != 0
    assert "cannot be locked" in second.stdout
    assert first.wait() == 0
    assert science(project) == before
    COUNT["two runs in one folder"] += 1


@pytest.mark.parametrize("name", ["prepare", "score", "select", "gradient", "baselines"])
def test_a_stage_started_twice_at_once_writes_what_one_would(jobs, whole, name):
    job = jobs[name]
    expected = contents(job.outputs())
    remove(job.outputs())
    for running in [job.start(), job.start()]:
        code, said = running.end()
        assert code == 0, said
    assert contents(job.outputs()) == expected
    COUNT["two processes of one stage"] += 1


@pytest.mark.parametrize("name", ["rollout", "train"])
def test_of_a_stage_with_unfinished_work_the_second_process_is_sent_away(jobs, whole, name):
    job = jobs[name]
    remove(job.outputs())
    ends = [running.end() for running in [job.start(), job.start()]]
    assert sorted(code for code, _ in ends) == [0, 1], ends
    assert "another process is making" in max(ends)[1]
    assert unfinished(job, whole) == []
    assert not list(job.outputs()[0].parent.glob(".*.lock"))
    COUNT["two processes of one stage"] += 1


@pytest.mark.parametrize("file", ["rollouts.parquet", "hidden.safetensors"])
def test_a_missing_shard_is_named_and_made_again(project, jobs, file):
    before = science(project)
    shard = project / "results/shop/signals/tiny/seed0/shards/1" / file
    remove([shard, *jobs["gather"].outputs()])
    code, said = jobs["gather"].run()
    assert code == 1
    assert f"shards/1/{file} does not exist; run the stage that makes it" in said
    done = spawn(project, "--", *(str(path.relative_to(project)) for path in jobs["gather"].outputs()))
    assert done.returncode == 0, done.stdout
    assert science(project) == before
    COUNT["missing shard"] += 1


BACK = """
import time
_time, _monotonic_start = time.time, time.monotonic()
time.time = lambda: _time() - (86_400 if time.monotonic() - _monotonic_start > 1 else 0)
"""


@pytest.mark.parametrize("name", ["prepare", "embed_base", "score", "train"])
def test_a_clock_set_back_during_a_stage_changes_no_byte(jobs, whole, tmp_path, monkeypatch, name):
    (tmp_path / "sitecustomize.py").write_text(BACK)
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT / 'src'}")
    job = jobs[name]
    expected = {file: content for file, content in contents(job.outputs()).items() if file.name != "history.parquet"}
    remove(job.outputs())
    command = [sys.executable, "-m", "minirec", *job.words]
    subprocess.run(command, cwd=job.folder, env=ENVIRONMENT, check=True)
    found = contents(job.outputs())
    assert {file: found[file] for file in expected} == expected
    COUNT["clock set back"] += 1


def test_inputs_from_the_future_are_used_and_the_results_are_the_same(project):
    before = science(project)
    tomorrow = time.time() + 86_400
    for name in ("samples.parquet", "catalogue.parquet"):
        os.utime(project / "results/shop" / name, (tomorrow, tomorrow))
    remove([project / "results/shop/baselines.parquet"])
    done = spawn(project, "--", METRICS)
    assert "Traceback" not in done.stdout
    now = time.time()
    for file in (project / "results/shop").rglob("*"):
        os.utime(file, (now, now))
    done = spawn(project, "-R", "baselines", "--", METRICS, COMPARISON)
    assert done.returncode == 0, done.stdout
    assert science(project) == before
    COUNT["clock set back"] += 1
