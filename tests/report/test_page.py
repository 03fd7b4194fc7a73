"""The report page: what it says, that it needs no network, and that no title becomes code."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_by_hand import BASE, PICKED, TRAINED, project  # noqa: F401  a fixture

from minirec.cli import report
from minirec.errors import InputError
from minirec.experiment import config
from minirec.report import page, picks
from minirec.storage import tables, tensors
from minirec.storage.artefact import Provenance

TOP = Path("results/movielens")
HOSTILE = '<script>alert("1")</script> & "quotes"'


def finished(project, **given) -> str:
    """The report of an experiment made by hand, with its embeddings."""
    settings = project([np.maximum(BASE - 8, 1)], **given)
    vectors = np.random.default_rng(0).normal(size=(TRAINED, 3)).astype(np.float32)
    made = {"sample_id": np.arange(TRAINED), "embedding": vectors}
    tensors.write(made, TOP / "signals/gemma/seed0/embeddings.safetensors", Provenance("gradient"))
    return page.html(settings, TOP)


def test_the_first_screen_says_whether_the_method_beats_its_control_with_interval_and_p(project):
    text = finished(project, control=[BASE])
    verdicts = re.search(r'<ul class="verdicts">(.*?)</ul>', text, re.S)[1]
    first = re.findall(r"<li>(.*?)</li>", verdicts)[0]
    assert first.startswith("Minirec against as many samples picked by random: significantly better, +0.")
    assert re.search(r"\+0\.\d{4} \[\+0\.\d{4}, \+0\.\d{4}\], p = 0\.0\d* by Holm", first)
    assert text.index("verdicts") < text.index("<figure>") < text.index('id="picks"')


@pytest.mark.parametrize(
    ("mean", "significant", "word"),
    [
        (0.1, True, "significantly better"),
        (-0.1, True, "significantly worse"),
        (0.1, False, "no significant difference"),
    ],
)
def test_a_verdict_says_better_and_worse_only_where_it_is_significant(mean, significant, word):
    test = {"mean": mean, "low": -0.2, "high": 0.2, "p": 0.01, "p_holm": 0.03, "significant": significant}
    summary = {
        "main": {"method": "m"},
        "improvement": test,
        "baselines": {"worst": {"ndcg@10": {"mean": 0.1}}, "the_best": {"ndcg@10": {"mean": 0.2}}},
        "paired_tests": {"the_best": test, "worst": None},
    }
    before, best = page.verdicts(summary)
    assert f"before RL: {word}, {mean:+.4f} [-0.2000, +0.2000], p = 0.03 by Holm." in before
    assert "against the best, the best baseline" in best


def test_picks_and_as_many_others_are_shown_with_titles_rewards_and_signals(project):
    settings = project([BASE])
    run = page.main_runs(settings)[0]
    shown = picks.samples(TOP, run, picks.signals_of(settings, run, TOP), limit=3)
    assert shown["position"].to_list() == [0, 1, 2, -1, -1, -1]
    assert shown["sample_id"].to_list()[:3] == [1, 3, 5]
    assert not set(shown["sample_id"][3:]) & {1, 3, 5, 7}
    assert shown["target"].eq("0").all()  # row 0 of the catalogue
    train = tables.read("samples", TOP / "samples.parquet").to_pandas().set_index("sample_id")["history_rows"]
    assert shown["history"].to_list() == [[str(row) for row in train[i][-3:]] for i in shown["sample_id"]]
    assert shown["rewards"].map(len).eq(1).all()
    assert shown["learnability"].to_list() == pytest.approx(np.linspace(0, 1, TRAINED)[shown["sample_id"]].tolist())
    text = page.html(settings, TOP)
    assert text.count('data-picked="1"') == text.count('data-picked="0"') == PICKED
    assert "1 of the picks shown have no hit" in text  # sample 1 of 1, 3, 5 and 7


def test_a_title_is_text_wherever_it_stands(project):
    settings = project([BASE])
    table = tables.read("catalogue", TOP / "catalogue.parquet")
    column = table.column_names.index("title")
    hostile = table.set_column(column, "title", pa.array([HOSTILE] * table.num_rows))
    tables.write("catalogue", hostile, TOP / "catalogue.parquet", Provenance("prepare"))
    text = page.html(settings, TOP)
    assert "alert" in text
    assert text.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert" in text


def test_the_page_needs_no_network_and_the_same_results_give_the_same_bytes(project):
    text = finished(project)
    assert not re.search(r'(?:src|href)="(?!#)', re.sub(r'xlink:href="#[^"]*"', "", text))
    assert "@import" not in text
    assert "url(http" not in text
    assert finished(project) == text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert text.count('role="img" aria-label="') == text.count("<svg")
    assert len(text) < 5e6


def test_points_of_the_map_have_the_names_of_their_targets(project):
    text = finished(project)
    points = re.search(r'<g id="[^"]*-map-picked">(.*?)</g>\n *</g>', text, re.S)[1]
    assert re.findall(r"<title>(.*?)</title>", points) == ["0"] * PICKED


def test_a_method_that_reads_rewards_alone_shows_them_and_no_scores(project):
    text = page.html(project([BASE], method="learnable"), TOP)
    assert "Rewards of 12 samples" in text
    assert ">mean reward</th>" in text
    assert ">learnability</th>" not in text


@pytest.mark.parametrize("method", ["random", "full"])
def test_a_method_without_signals_has_a_page_without_them(project, method):
    text = page.html(project([BASE], method=method), TOP)
    assert f"The method {method} reads no signals" in text
    assert "completions</th>" not in text


def test_the_command_writes_the_page_or_says_what_is_missing(project, capsys):
    project([BASE])
    file = Path("my.yaml")
    file.write_text(f"main: {{method: minirec, budget: {PICKED}, seeds: [0]}}", encoding="utf-8")
    Path("config").mkdir(exist_ok=True)
    shutil.copy(Path(config.__file__).parents[3] / "config" / "config.yaml", "config/config.yaml")
    report.run(folder=TOP, configfile=[file])
    assert (TOP / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "report.html: " in capsys.readouterr().out
    file.write_text("main: {method: random}", encoding="utf-8")
    with pytest.raises(InputError, match="is of minirec-4, but the configuration's main experiment is random-256"):
        report.run(folder=TOP, configfile=[file])
    with pytest.raises(InputError, match="results/x is not results/DATASET with DATASET among cds"):
        report.run(folder=Path("results/x"), configfile=[file])
    (TOP / "metrics.json").unlink()
    with pytest.raises(InputError, match=r"metrics\.json is not there; run the workflow first"):
        report.run(folder=TOP, configfile=[file])


def test_quality_against_cost_is_there_if_the_grid_was_run(project):
    settings = project([BASE])
    assert "were not compared on this data set" in page.html(settings, TOP)
    names = {
        "model": "gemma",
        "selector": "none",
        "budget": "4",
        "seed": 0,
        "metric": "ndcg@10",
        "low": 0.1,
        "high": 0.3,
    }
    rows = [names | {"method": m, "value": 0.2, "train_seconds": 5.0, "selection_seconds": 7.0} for m in ("a", "b")]
    table = pa.Table.from_pylist(rows, tables.TABLES["comparison"].schema())
    tables.write("comparison", table, TOP / "comparison.parquet", Provenance("compare"))
    text = page.html(settings, TOP)
    found = re.search(r"<table><caption>All configurations.*?</table>", text, re.S)[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', found) == ["a", "b"]
    assert found.count('<td class="n">5</td><td class="n">12</td>') == 2


@pytest.mark.slow
def test_a_browser_shows_the_page_without_errors_and_searches_it(project, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    text = finished(project)
    check = """<script>
    window.onerror = message => document.title = 'error: ' + message;
    words.value = 'nothing like this'; form.dispatchEvent(new Event('input'));
    const none = rows.filter(row => !row.hidden).length;
    words.value = ''; form.elements.which.value = '1'; form.dispatchEvent(new Event('input'));
    const picked = rows.filter(row => !row.hidden).length;
    document.querySelector('th button').click();
    document.title = [none, picked, document.querySelector('th').getAttribute('aria-sort'),
      document.documentElement.scrollWidth <= innerWidth].join(' ');
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", check), encoding="utf-8")
    words = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=500,900",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert re.search(r"<title>(.*?)</title>", done.stdout)[1] == f"0 {PICKED} ascending true"
