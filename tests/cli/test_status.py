"""The structured lines of a job's log, and what status makes of logs, benchmarks and a dry run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minirec import progress
from minirec.cli import main, status

DRY_RUN = """Building DAG of jobs...
Job stats:
job      count
score        1

[Mon Nov 23 11:07:36 2026]
rule score:
    input: a, b
    output: results/shop/scores.parquet
    log: results/logs/shop/score/tiny.log
    jobid: 10
    benchmark: results/benchmarks/shop/score/tiny.tsv
    reason: Params have changed since last execution
    wildcards: results=results, dataset=shop, selector=tiny
[Mon Nov 23 11:07:36 2026]
rule train:
    log: results/logs/shop/train/tiny/seed0.log
    benchmark: results/benchmarks/shop/train/tiny/seed0.tsv
    reason: Missing output files: results/shop/adapter
localrule all:
    input: results/shop/metrics.json
"""


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
    assert len(lines(tmp_path / "curriculum.log")) == 2  # a new run begins a new log


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


def test_a_dry_run_is_read_rule_by_rule():
    score, train = status.jobs(DRY_RUN)
    assert (score.rule, train.rule) == ("score", "train")
    assert score.log == Path("results/logs/shop/score/tiny.log")
    assert train.benchmark == Path("results/benchmarks/shop/train/tiny/seed0.tsv")
    assert train.reason == "Missing output files: results/shop/adapter"


@pytest.fixture
def job(tmp_path):
    """A function that makes a job: its benchmark's seconds and the lines of its log."""

    def make(rule, number, reason="Missing output files: x", seconds=None, log=()):
        logs, times = (tmp_path / kind / "shop" / rule / str(number) for kind in ("logs", "benchmarks"))
        for file, content in (
            (logs.with_suffix(".log"), [json.dumps(line) for line in log]),
            (times.with_suffix(".tsv"), ["s\th:m:s", f"{seconds}\t0:00:05"] if seconds is not None else []),
        ):
            if content:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("\n".join(content) + "\n", encoding="utf-8")
        return status.Planned(rule, logs.with_suffix(".log"), times.with_suffix(".tsv"), reason)

    return make


def start(pid: int, host: str | None = None) -> dict:
    return {"event": "start", "stage": "train", "host": host or socket.gethostname(), "pid": pid}


def test_every_state_is_told_apart(tmp_path, job):
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "minirec"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    wrong = {"event": "end", "stage": "train", "reason": "error: x is wrong"}
    done = job("train", 0, seconds=10)
    others = [
        job("train", 1, log=[start(running.pid)]),
        job("train", 2, log=[start(ended.pid)]),
        job("train", 3, log=[start(ended.pid), wrong]),
        job("train", 4, "Params have changed", seconds=20, log=[start(ended.pid), wrong | {"reason": "done"}]),
        job("train", 5),
        job("train", 6, log=[start(ended.pid, "another")]),
        job("train", 7, log=[start(os.getppid())]),  # a number that another process has by now
    ]
    old = time.time() - 10 * status.SILENCE
    try:
        found = status.states([done, *others], others, tmp_path / "benchmarks")
        os.utime(others[5].log, (old, old))
        later = status.states([done, *others], others, tmp_path / "benchmarks")
    finally:
        running.kill()
        running.wait()
    states = [state.state for state in found]
    assert states[:7] == ["done", "running", "failed", "failed", "stale", "planned", "running"]
    assert later[6].state == "failed"
    assert (found[2].why, found[3].why, found[4].why) == ("killed", "error: x is wrong", "Params have changed")
    assert [state.seconds for state in found[:7]] == [10, 15, 15, 15, 15, 15, 15]


def test_the_rest_costs_what_the_same_rule_took_elsewhere_and_unknown_is_said(tmp_path, job):
    elsewhere = tmp_path / "benchmarks" / "other" / "score" / "tiny.tsv"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text("s\th:m:s\n7.5\t0:00:07\n", encoding="utf-8")
    rest = [job("score", 0), job("train", 0)]
    found = status.states(rest, rest, tmp_path / "benchmarks")
    assert [state.seconds for state in found] == [7.5, None]
    said = status.text(Path("results/shop"), found)
    assert "left: 2 jobs, about 8 s one after the other, besides what no job has shown yet: train" in said


def test_a_folder_that_is_no_data_set_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert main.main(["status", "results/cdss"]) == 1
    assert "results/cdss is not results/DATASET with DATASET among cds" in capsys.readouterr().err
