"""How long jobs will take, from logs written by hand."""

import json

import pytest

from minirec.planning import estimates
from minirec.planning.estimates import GUESSED, GUESSED_STARTUP, MEASURED, SIMILAR, Estimate, Estimates
from minirec.planning.jobs import Job

RATE = 1e9  # operations a second that a guess assumes
ROLLOUT, TRAIN = Job("rollout", signal_set="gemma", seed="0"), Job("train", model="gemma")


@pytest.fixture
def logs(tmp_path):
    """A function that writes the log of a job, and returns the estimates from all logs so far."""

    def write(rule, place, seconds, startup, flop, reason="done", **notes) -> Estimates:
        file = tmp_path / place / "logs" / f"{rule}.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        end = {"event": "end", "reason": reason, "seconds": seconds, "startup_seconds": startup, "flop": flop}
        file.write_text(json.dumps({"event": "start"}) + "\n" + json.dumps(end | notes) + "\n")
        found = Estimates.from_logs(tmp_path, "float32")
        found.rate = lambda: RATE
        return found

    return write


def selector(name: str) -> dict:
    return {"wildcards": {"results": "results", "dataset": "shop", "signal_set": name, "seed": "0"}}


def test_the_work_is_scaled_and_the_startup_is_not(logs):
    known = logs("rollout", "shop", seconds=30, startup=10, flop=2e9, **selector("gemma"))
    assert known.of(ROLLOUT, 2e9) == Estimate(30, MEASURED)
    assert known.of(ROLLOUT, 32e9) == Estimate(10 + 16 * 20, MEASURED)  # another data set with 16 times the work
    assert known.of(Job("rollout", signal_set="gemma@variant", seed="7"), 1e9) == Estimate(20, MEASURED)


def test_several_jobs_give_one_rate(logs):
    logs("rollout", "a", seconds=30, startup=10, flop=2e9, **selector("gemma"))
    known = logs("rollout", "b", seconds=50, startup=20, flop=3e9, **selector("gemma"))
    assert known.of(ROLLOUT, 10e9) == Estimate(15 + 10 * (20 + 30) / 5, MEASURED)


def test_the_same_rule_and_model_come_before_the_stage_and_that_before_the_model(logs):
    known = logs("embed_base", "a", seconds=2, startup=0, flop=1e9, wildcards={"model": "gemma"})
    assert known.of(TRAIN, 1e9) == Estimate(2, SIMILAR)
    assert known.of(Job("train", model="qwen"), 1e9).basis == GUESSED
    known = logs("train_proxy", "b", seconds=3, startup=0, flop=1e9, **selector("qwen"))
    assert known.of(TRAIN, 1e9) == Estimate(3, SIMILAR)
    known = logs("train", "c", seconds=5, startup=0, flop=1e9, wildcards={"model": "gemma"})
    assert known.of(TRAIN, 1e9) == Estimate(5, MEASURED)


def test_nothing_is_taken_from_a_job_that_failed_went_on_with_another_or_does_not_know_its_work(logs):
    logs("rollout", "a", seconds=30, startup=0, flop=1e9, reason="terminated", **selector("gemma"))
    logs("rollout", "b", seconds=30, startup=0, flop=1e9, resumed=True, **selector("gemma"))
    known = logs("rollout", "c", seconds=30, startup=0, flop=0, **selector("gemma"))
    assert known.of(ROLLOUT, 4e9) == Estimate(GUESSED_STARTUP + 4, GUESSED)


def test_a_job_of_unknown_work_is_not_given_the_time_of_another(logs):
    known = logs("rollout", "a", seconds=30, startup=0, flop=1e9, **selector("gemma"))
    assert known.of(ROLLOUT, 0) is None
    assert known.of(Job("prepare"), 0) is None


def test_a_short_job_takes_the_mean_of_its_rule_or_else_a_startup(logs):
    known = logs("summarise", "a", seconds=3, startup=1, flop=0)
    assert known.of(Job("summarise"), 0) == Estimate(3, MEASURED)
    assert logs("summarise", "b", seconds=5, startup=1, flop=0).of(Job("summarise"), 0) == Estimate(4, MEASURED)
    assert known.of(Job("curriculum"), 0) == Estimate(GUESSED_STARTUP, GUESSED)


def test_a_log_of_an_older_version_without_startup_and_work_is_read(tmp_path):
    file = tmp_path / "logs" / "select.log"
    file.parent.mkdir()
    file.write_text(json.dumps({"event": "end", "reason": "done", "seconds": 7}) + "\n")
    assert Estimates.from_logs(tmp_path, "float32").of(Job("select"), 0) == Estimate(7, MEASURED)


def test_the_speed_of_this_machine_is_measured_once():
    rate = estimates.matrix_rate("float32")
    assert 1e8 < rate < 1e17
    assert estimates.matrix_rate("float32") == rate
