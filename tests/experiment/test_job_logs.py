"""What jobs took, read from their logs."""

import json
from pathlib import Path

import pytest

from minirec.experiment.job_logs import by_rule, cost, costs, events
from minirec.progress import start_log

START = {"event": "start", "stage": "train", "pid": 1}
END = {"event": "end", "stage": "train", "reason": "done", "seconds": 2.0, "cpu_seconds": 3.5, "peak_mib": 40.0}


@pytest.fixture
def write(tmp_path):
    """A function that writes a job's log, below the results of a data set."""

    def log(name: str, *lines: dict | str) -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return file

    return log


def test_the_cost_of_a_job_is_in_the_last_line_of_its_log(write):
    log = write("logs/train.log", START, "12:00:00 train      step 1 of 2", END)
    assert cost(log) == {"seconds": 2.0, "cpu_seconds": 3.5, "max_rss_mib": 40.0}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [START],  # it was killed, or still runs
        [START, "12:00:00 train      step 1 of 2"],
        [START, END | {"reason": "terminated"}],
        [START, END | {"reason": "error: x is wrong"}],
        [START, END, START],  # it runs again, into the same log
        [START, json.dumps(END)[:-9]],  # killed within the last line
    ],
)
def test_a_job_that_was_killed_failed_or_still_runs_has_no_cost(write, tmp_path, lines):
    log = write("logs/train.log", *lines)
    assert cost(log) is None
    assert costs(tmp_path, [log, tmp_path / "logs" / "evaluate.log"]) == {}


def test_a_job_that_went_on_where_others_had_stopped_has_cost_what_all_of_them_took(write):
    resumed = END | {"resumed": True}
    stopped = resumed | {"reason": "terminated", "seconds": 30.0, "peak_mib": 70.0}
    log = write("logs/train.log", START, END | {"reason": "terminated"}, START, stopped, START, resumed)
    assert cost(log) == {"seconds": 2.0 + 30.0 + 2.0, "cpu_seconds": 3 * 3.5, "max_rss_mib": 70.0}
    anew = write("logs/train.log", START, stopped, START, END)  # its settings had changed
    assert cost(anew) == {"seconds": 2.0, "cpu_seconds": 3.5, "max_rss_mib": 40.0}
    killed = write("logs/train.log", START, stopped | {"resumed": False}, START, START, resumed)
    assert cost(killed)["seconds"] == 32.0  # how long the second attempt ran is not known


def test_a_new_attempt_keeps_the_events_of_those_that_did_not_succeed(write):
    stopped = START | {"event": "end", "reason": "terminated"}
    log = write("logs/train.log", START, "12:00:00 train      step 1 of 2", stopped, START)
    start_log("train", log)
    assert [json.loads(line) for line in log.read_text().splitlines()] == [START, stopped, START]
    log = write("logs/train.log", START, stopped, START, END)
    start_log("train", log)
    assert log.read_text() == ""


def test_the_start_of_a_killed_job_is_known_and_a_damaged_line_is_passed_over(write):
    assert events(write("logs/train.log", '{"event": ', START)) == (START, None)


def test_costs_have_the_order_of_the_rules_and_then_of_the_names(write, tmp_path):
    names = ["runs/b/logs/measure.log", "runs/b/logs/train.log", "logs/own_rule.log", "runs/a/logs/train.log"]
    names += ["signals/x/logs/rollout.log", "logs/prepare.log"]
    logs = [write(name, START, END | {"seconds": float(place)}) for place, name in enumerate(names)]
    found = costs(tmp_path, logs)
    assert list(found) == [names[place] for place in (5, 4, 3, 1, 0, 2)]
    assert by_rule(found) == {"prepare": 5, "rollout": 4, "train": 1 + 3, "measure": 0, "own_rule": 2}
    assert by_rule(found, "cpu_seconds")["train"] == 2 * 3.5
