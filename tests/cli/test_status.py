"""The structured lines of a job's log, and what status makes of logs and a dry run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from minirec import progress
from minirec.cli import main, status
from minirec.errors import InputError
from minirec.planning import planned_jobs
from minirec.planning.estimates import GUESSED, MEASURED, Estimate
from minirec.planning.jobs import Job, PlannedWork

SNAKEFILE = """
rule all:
    input: "shop/metrics.json"

rule score:
    output: "shop/scores.parquet"
    log: "shop/logs/score.log"
    shell: "touch {output}"

rule train:
    input: "shop/scores.parquet"
    output: "shop/metrics.json"
    log: "shop/runs/seed0/logs/train.log"
    shell: "touch {output}"
"""
END = {"event": "end", "stage": "train", "cpu_seconds": 1.0, "peak_mib": 1.0}


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]


def curriculum(folder: Path) -> list[str]:
    words = ["curriculum", "--selection", "none.parquet", "--out", "out.parquet", "--group-size", "2", "--seed", "0"]
    words[2], words[4] = str(folder / words[2]), str(folder / words[4])
    return [*words, "--log", str(folder / "curriculum.log"), "--wildcards", "dataset=a=b", "seed=0"]


def test_a_log_begins_and_ends_with_a_structured_line(tmp_path, monkeypatch):
    def stage(**given):
        with progress.progress("rollout", 10, "samples") as bar:
            time.sleep(0.05)
            bar.add(10)

    monkeypatch.setattr("minirec.stages.curriculum.run", stage)
    assert main.main(curriculum(tmp_path)) == 0
    start, end = lines(tmp_path / "curriculum.log")
    job = {"stage": "curriculum", "wildcards": {"dataset": "a=b", "seed": "0"}}
    job |= {"made_by": None, "outputs": ["out.parquet"]}  # no digest: the job is nobody's rule
    assert start == {"event": "start", **job, "host": socket.gethostname(), "pid": os.getpid()}
    assert end.items() >= {"event": "end", **job, "reason": "done"}.items()
    assert 0.05 <= end["seconds"] < 60
    assert 10 < end["peak_mib"] < 100_000
    assert 20 < end["per_second"]["rollout samples"] <= 200
    assert (tmp_path / "curriculum.log").read_text(encoding="utf-8").splitlines()[-1] == json.dumps(end)


def test_the_reason_of_a_wrong_input_and_of_a_defect_is_in_the_last_line(tmp_path, monkeypatch):
    assert main.main(curriculum(tmp_path)) == 1
    assert "none.parquet does not exist" in lines(tmp_path / "curriculum.log")[-1]["reason"]
    monkeypatch.setattr("minirec.stages.curriculum.run", lambda **given: 1 / 0)
    assert main.main(curriculum(tmp_path)) == 70
    assert lines(tmp_path / "curriculum.log")[-1]["reason"].startswith("defect: ZeroDivisionError")
    assert [line["event"] for line in lines(tmp_path / "curriculum.log")] == ["start", "end"] * 2  # one each attempt
    monkeypatch.setattr("minirec.stages.curriculum.run", lambda **given: None)
    for attempts in (3, 1):  # after a success a new log begins
        assert main.main(curriculum(tmp_path)) == 0
        assert len(lines(tmp_path / "curriculum.log")) == 2 * attempts


def test_a_wildcard_without_a_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main.main([*curriculum(tmp_path)[:-1], "=0"])
    assert "'=0' is not NAME=VALUE" in capsys.readouterr().err


def test_a_job_by_hand_has_no_wildcards(tmp_path):
    assert main.main(curriculum(tmp_path)[:-3]) == 1
    assert [line["wildcards"] for line in lines(tmp_path / "curriculum.log")] == [{}, {}]


def test_a_terminated_job_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("minirec.stages.curriculum.run", lambda **given: os.kill(os.getpid(), signal.SIGTERM))
    assert main.main(curriculum(tmp_path)) == 128 + signal.SIGTERM
    assert lines(tmp_path / "curriculum.log")[-1]["reason"] == "terminated"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "curriculum.log").mkdir()
    assert main.main(curriculum(tmp_path)) == 1
    assert "curriculum.log cannot be written (Is a directory)" in capsys.readouterr().err


def test_a_job_touches_its_log_until_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "BEAT_SECONDS", 0.01)
    log = tmp_path / "job.log"
    job = progress.Job("train", log, {})
    os.utime(log, (0, 0))
    deadline = time.monotonic() + 10
    while log.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.stat().st_mtime > 0
    log.unlink()  # what cannot be touched disturbs nobody
    time.sleep(0.05)
    job.end("done")
    time.sleep(0.05)
    os.utime(log, (0, 0))
    time.sleep(0.1)
    assert log.stat().st_mtime == 0


def test_a_dry_run_gives_the_rule_the_log_and_the_reason_of_every_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Snakefile").write_text(SNAKEFILE)
    score, train = planned_jobs.planned_jobs()  # `all` has no log: it does nothing
    assert (score.rule, train.rule) == ("score", "train")
    assert score.log == Path("shop/logs/score.log")
    assert train.log == Path("shop/runs/seed0/logs/train.log")
    assert score.reason == "Missing output files: shop/scores.parquet"
    assert [job.rule for job in planned_jobs.planned_jobs("--", "shop/scores.parquet")] == ["score"]
    assert not Path("shop").exists()
    with pytest.raises(InputError, match=r"the workflow cannot be planned \(.*no-such-file"):
        planned_jobs.planned_jobs("--", "no-such-file")


@pytest.fixture
def job(tmp_path):
    """A function that makes a job with the lines of its log."""

    def make(rule, number, reason="Missing output files: x", log=()):
        file = tmp_path / "shop" / str(number) / "logs" / f"{rule}.log"
        if log:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
        return planned_jobs.Planned(rule, file, reason)

    return make


def start(pid: int, host: str | None = None) -> dict:
    return {"event": "start", "stage": "train", "host": host or socket.gethostname(), "pid": pid}


def test_every_state_is_told_apart(tmp_path, job):
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "minirec"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    wrong = END | {"reason": "error: x is wrong", "seconds": 1000}
    done = job("train", 0, log=[start(ended.pid), END | {"reason": "done", "seconds": 10}])
    others = [
        job("train", 1, log=[start(running.pid)]),
        job("train", 2, log=[start(ended.pid)]),
        job("train", 3, log=[start(ended.pid), wrong]),
        job("train", 4, "Params have changed", log=[start(ended.pid), END | {"reason": "done", "seconds": 20}]),
        job("train", 5),
        job("train", 6, log=[start(ended.pid, "another")]),
        job("train", 7, log=[start(os.getppid())]),  # a number that another process has by now
    ]
    old = time.time() - 10 * status.SILENCE
    try:
        found = status.states([done, *others], others, lambda job: Estimate(15, MEASURED))
        os.utime(others[5].log, (old, old))
        later = status.states([done, *others], others, lambda job: None)
    finally:
        running.kill()
        running.wait()
    states = [state.state for state in found]
    assert states[:7] == ["done", "running", "failed", "failed", "stale", "planned", "running"]
    assert later[6].state == "failed"
    assert (found[2].why, found[3].why, found[4].why) == ("killed", "error: x is wrong", "Params have changed")
    assert [state.seconds for state in found[:7]] == [10, 15, 15, 15, 15, 15, 15]


def test_the_sum_of_what_is_left_says_what_is_guessed_and_what_is_unknown(job):
    known = {"score": Estimate(7.5, MEASURED), "select": Estimate(6, GUESSED), "train": None}
    rest = [job(rule, 0) for rule in known]
    found = status.states(rest, rest, lambda one: known[one.rule])
    assert [state.seconds for state in found] == [7.5, 6, None]
    said = status.text(Path("results/shop"), found)
    assert "left: 3 jobs, about 14 s one after the other\n" in said
    assert "guessed, as no such job has run yet: select\n" in said
    assert "unknown yet: train\n" in said


def test_a_job_of_another_data_set_is_scaled_by_the_work(judged, tmp_path, monkeypatch, defaults):
    monkeypatch.chdir(tmp_path)
    top, log = Path("results/shop"), Path("results/toys/signals/gemma/seed0/logs/rollout.log")
    for folder in (top, log.parent, Path("data/models")):
        folder.mkdir(parents=True)
    Path("data/models/gemma").symlink_to(judged["model"])
    for name in ("samples", "catalogue"):
        (top / f"{name}.parquet").symlink_to(judged[name])
    wildcards = {"results": "results", "dataset": "shop", "signal_set": "gemma", "seed": "0"}
    one = planned_jobs.Planned("rollout", top / "signals/gemma/seed0/logs/rollout.log", "", wildcards)
    flop = PlannedWork(defaults, top).work(Job.of("rollout", wildcards)).flop
    end = END | {"reason": "done", "seconds": 44.5, "startup_seconds": 1.0, "flop": flop / 16, "wildcards": wildcards}
    log.write_text(json.dumps(end) + "\n")
    assert status.expected_by(defaults, top)(one) == Estimate(1 + 16 * 43.5, MEASURED)


def test_a_shard_of_a_selection_is_estimated_as_a_selection(tmp_path, defaults):
    log = tmp_path / "toys" / "logs" / "select.log"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps(END | {"reason": "done", "seconds": 3.0}) + "\n")
    one = planned_jobs.Planned("select_shard", tmp_path / "shop/shards/0/logs/select.log", "", {"method": "minirec"})
    settings = defaults.model_copy(update={"results": str(tmp_path)})
    assert status.expected_by(settings, tmp_path / "shop")(one) == Estimate(3.0, MEASURED)


def test_a_folder_that_is_no_data_set_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert main.main(["status", "results/cdss"]) == 1
    assert "results/cdss is not results/DATASET with DATASET among cds" in capsys.readouterr().err


def test_without_a_configfile_the_status_is_of_the_configuration_that_made_the_results(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(status, "planned_jobs", lambda *arguments: asked.append(arguments) or [])
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    target, mine = ("--", "results/cds/metrics.json"), "config/quickstart.yaml"
    assert main.main(["status", "results/cds"]) == 0
    made_by = Path("results/cds/config.yaml")
    made_by.parent.mkdir(parents=True)
    made_by.write_text("main: {method: random}")
    assert main.main(["status", "results/cds"]) == 0
    assert main.main(["status", "results/cds", "--configfile", mine]) == 0
    files = [(), ("--configfile", str(made_by)), ("--configfile", mine)]
    assert asked[0::2] == [("--forceall", *flags, *target) for flags in files]
    assert asked[1::2] == [(*flags, *target) for flags in files]
