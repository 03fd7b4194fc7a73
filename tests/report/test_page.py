"""The report page: what it says, that it needs no network, and that no title becomes code."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_by_hand import BASE, PICKED, TRAINED, project, write_policy  # noqa: F401  a fixture

from minirec.cli import report
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.paths import selection_logs
from minirec.report import page, picks
from minirec.storage import artefact, tables, tensors
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
    shown = picks.samples(settings, TOP, run, picks.signals_of(settings, run, TOP), limit=3)
    assert shown["position"].to_list() == [0, 1, 2, -1, -1, -1]
    assert shown["sample_id"].to_list()[:3] == [1, 3, 5]
    assert shown["sample_id"].to_list()[3:] == [11, 10, 9]  # signals rise with the sample's id
    assert shown["target"].eq("0").all()  # row 0 of the catalogue
    train = tables.read("samples", TOP / "samples.parquet").to_pandas().set_index("sample_id")["history_rows"]
    assert shown["history"].to_list() == [[str(row) for row in train[i][-3:]] for i in shown["sample_id"]]
    assert shown["rewards"].map(len).eq(1).all()
    assert shown["learnability"].to_list() == pytest.approx(np.linspace(0, 1, TRAINED)[shown["sample_id"]].tolist())
    text = page.html(settings, TOP)
    assert len(re.findall('data-kind="picked', text)) == text.count('data-kind="other"') == PICKED
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


def test_points_of_the_map_name_their_targets_and_lead_to_the_rows_of_the_table(project):
    text = finished(project)
    (drawn,) = re.findall(r'<svg[^>]*aria-label="Map of the embeddings.*?</svg>', text, re.S)
    tips = dict(re.findall(r'<a xlink:href="#(sample-[0-9]+)"[^>]*><title>(.*?)</title>', drawn))
    picked = {f"sample-{sample}": f"pick {place}: 0" for place, sample in enumerate([1, 3, 5, 7], 1)}
    others = {f"sample-{sample}": "not picked: 0" for sample in (11, 10, 9, 8)}
    assert tips == picked | others
    assert all(f'<tr id="{place}"' in text for place in tips)


def test_the_nearest_pick_and_the_diversity_of_who_was_left_out_are_those_of_a_plain_loop():
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    distance, nearest = picks.nearest_picks(vectors, np.array([4, 2]))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, vector in enumerate(unit):
        away = [1 - float(vector @ pick) for pick in unit[[4, 2]]]
        assert nearest[row] == away.index(min(away))
        assert distance[row] == pytest.approx(min(away), abs=1e-6)
    assert distance[[4, 2]].tolist() == [0, 0]
    assert picks.nearest_picks(vectors[[0, 3, 0]], np.array([1, 0, 2]))[1][0] == 1  # of two as near, the first
    assert picks.nearest_picks(np.eye(3) * [[0], [1], [1]], np.array([0]))[0].tolist() == [0, 1, 1]  # picked, of zeros


def test_a_sample_that_was_left_out_names_the_pick_that_it_resembles(project):
    settings = project([BASE])
    vectors = np.eye(TRAINED, 6, dtype=np.float32) + np.eye(TRAINED, 6, -6, dtype=np.float32)  # 7 is a copy of 1, ...
    made = {"sample_id": np.arange(TRAINED), "embedding": vectors}
    tensors.write(made, TOP / "signals/gemma/seed0/embeddings.safetensors", Provenance("gradient"))
    run = page.main_runs(settings)[0]
    shown = picks.samples(settings, TOP, run, picks.signals_of(settings, run, TOP), limit=4).set_index("sample_id")
    assert shown["nearest"][[11, 9]].tolist() == [2, 1]  # 11 is a copy of 5, the third pick, and 9 of 3, the second
    assert shown["diversity"][[11, 9, 10, 8]].tolist() == [0, 0, 1, 1]
    assert shown["why"][11] == "Most like pick 3 (0)."
    assert shown["why"][1].startswith("The proxy never ranks the target among the first 1,000, but representativeness")
    assert shown["why"][3] == ""


@pytest.mark.parametrize(("centre", "pick"), [(False, 0), (True, 1)])
def test_the_pick_that_a_sample_resembles_is_that_of_the_vectors_which_the_selection_compared(project, centre, pick):
    settings = project([BASE])
    settings = settings.model_copy(update={"select": settings.select.model_copy(update={"centre": centre})})
    vectors = np.tile([3 / 9, -5 / 9], (TRAINED, 1))
    vectors[11], vectors[[1, 3]] = [2, 1], [[4, 2], [3, 2]]  # the mean is (1, 0); from there [1, 1], [[3, 2], [2, 2]]
    made = {"sample_id": np.arange(TRAINED), "embedding": vectors.astype(np.float32)}
    tensors.write(made, TOP / "signals/gemma/seed0/embeddings.safetensors", Provenance("gradient"))
    run = page.main_runs(settings)[0]
    shown = picks.samples(settings, TOP, run, picks.signals_of(settings, run, TOP), limit=4).set_index("sample_id")
    assert (shown["nearest"][11], shown["diversity"][11]) == (pick, 0)


def test_a_closer_look_has_prompts_and_completions_and_a_pick_without_a_hit(project):
    text = finished(project)
    cards = re.findall(r'<div class="example">(.*?)</div>', text, re.S)
    titles = [re.search(r"<h4>(.*?)</h4>", card)[1] for card in cards]
    assert titles == [f"Pick {n}: 0" for n in (1, 2, 3, 4)] + ["Not picked: 0"] * 4
    assert "- just now: 1" in cards[0]
    assert "reward 1.000, rank 1</li>" in cards[0]
    assert "what the proxy earned, here without a completion" in text
    assert "The proxy never ranks the target" in cards[0]


def test_a_browser_is_told_to_load_nothing_and_to_run_the_script_of_the_page_alone(project):
    text = finished(project)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert f'<meta http-equiv="Content-Security-Policy" content="{policy}">' in text


def test_text_and_lines_are_seen_on_the_page_in_light_and_dark():
    sheet = (Path(page.__file__).parent / "templates" / "page.css").read_text(encoding="utf-8")
    light, dark = (dict(re.findall(r"--(\w+): #(\w+);", part)) for part in sheet.split("prefers-color-scheme")[:2])
    for theme in (light, dark):
        for name in ("ink", "soft", "link", "line1"):  # words are written in these
            assert min(contrast(theme[name], theme[ground]) for ground in ("paper", "card")) >= 4.5, name
        for name in ("all", *(f"line{number}" for number in range(6))):
            assert contrast(theme[name], theme["paper"]) >= 3, name


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        digits = "".join(c * 2 for c in colour) if len(colour) == 3 else colour
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_a_method_that_reads_rewards_alone_shows_them_and_no_scores(project):
    text = page.html(project([BASE], method="learnable"), TOP)
    assert "Rewards of 12 samples" in text
    assert ">mean reward</th>" in text
    assert ">learnability</th>" not in text
    assert ">value</th>" in text
    assert ">diversity</th>" in text


def test_the_others_of_a_page_are_those_that_the_method_valued_most(project):
    settings = project([BASE], method="learnable")
    file = TOP / "signals/gemma/seed0/rollouts.parquet"
    table = tables.read("rollouts", file).to_pandas()
    table["reward"] = np.linspace(0, 1, TRAINED, dtype=np.float32)  # the picks are 1, 3, 5, 7
    made = pa.Table.from_pandas(table, tables.TABLES["rollouts"].schema(), preserve_index=False)
    tables.write("rollouts", made, file, Provenance("rollout"))
    run = page.main_runs(settings)[0]
    shown = picks.samples(settings, TOP, run, picks.signals_of(settings, run, TOP), limit=4)
    others = shown[shown["position"] < 0]
    assert others["sample_id"].tolist() == [6, 4, 8, 2]  # mean rewards 6/11, 4/11, 8/11 and 2/11: nearest to .5
    assert others["value"].is_monotonic_decreasing


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
    with pytest.raises(
        InputError,
        match="is of gemma/gemma/minirec-4, but the configuration's main experiment is gemma/none/random-256",
    ):
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
    for rank, method in ((BASE, "a"), (np.maximum(BASE - 8, 1), "b")):
        write_policy(TOP / f"runs/gemma/none/{method}-4/seed0", rank)
    test = {"mean": -0.1, "low": -0.2, "high": 0.05, "p": 0.01, "p_holm": 0.02, "significant": True}
    tests = {"main": "gemma/none/a-4", "paired_tests": {"gemma/none/b-4": test}, "signals": "own"}
    tests |= {"minus_random": {"gemma/none/a-4": test | {"mean": 0.3}}, "minus_full": {}}
    artefact.write_json(tests, TOP / "comparison.json", Provenance("compare"))
    table = pa.Table.from_pylist(rows, tables.TABLES["comparison"].schema())
    tables.write("comparison", table, TOP / "comparison.parquet", Provenance("compare"))
    text = page.html(settings, TOP)
    found = re.search(r"<table><caption>All configurations.*?</table>", text, re.S)[0]
    assert "Main is gemma/none/a-4" in found
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)[-3:] for row in re.findall(r"<tr>(.*?)</tr>", found, re.S)[1:]
    ]
    assert rows[0] == ["+0.3000 [-0.2000, +0.0500], p = 0.02", "", ""]  # minus random, minus full, main minus this
    assert rows[1] == ["", "", "-0.1000 [-0.2000, +0.0500], p = 0.02"]
    quality = np.where(BASE <= 10, 1 / np.log2(1 + BASE), 0).mean()
    mean, low, high = re.search(r"<td class=\"n\">(0\.\d+) \[(0\.\d+), (0\.\d+)\]", found).groups()
    assert (mean, float(low) < quality < float(high)) == ("0.2000", True)  # the mean as the table has it
    assert re.findall(r'<th scope="row">(.*?)</th>', found) == ["a", "b"]
    assert found.count('<td class="n">5</td><td class="n">12</td>') == 2


def test_quality_against_cost_has_the_method_and_its_control_where_the_grid_was_not_run(project):
    settings = project([np.maximum(BASE - 8, 1)], control=[BASE])
    for selector, method in (("gemma", "minirec"), ("none", "random")):
        for pattern in selection_logs(settings, selector, method):
            log = TOP / pattern.format(seed=0, budget=PICKED).replace("**/", "")
            if not log.is_file():  # that of the rollouts is there
                log.parent.mkdir(parents=True, exist_ok=True)
                end = {"event": "end", "reason": "done", "seconds": 2, "cpu_seconds": 1.0, "peak_mib": 1.0}
                log.write_text(json.dumps(end))
    text = page.html(settings, TOP)
    assert "Other methods and budgets were not compared" in text
    found = re.search(r"<table><caption>The main experiment and its control.*?</table>", text, re.S)[0]
    rows = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in re.findall(r"<tr>(.*?)</tr>", found, re.S)[1:]
    ]
    assert [row[:5] for row in rows] == [["minirec", "4", "gemma", "gemma", "1"], ["random", "4", "gemma", "none", "1"]]
    assert [row[6:8] for row in rows] == [["4", "32"], ["6", "10"]]  # 2 s a step; rollouts 12.5 s, other jobs 2 s
    assert (rows[0][8], rows[1][8][:3]) == ("", "+0.")
    for label in ("NDCG@10 on test against seconds", "Reward of the policy"):  # the control has a line in both
        (drawn,) = re.findall(rf'<svg[^>]*aria-label="{label}.*?</svg>', text, re.S)
        assert {"minirec", "random"} <= set(re.findall(r"<text[^>]*>(.*?)</text>", drawn))


def test_a_cost_whose_logs_are_not_there_is_unknown(project):
    text = finished(project, control=[BASE])
    found = re.search(r"<table><caption>The main experiment and its control.*?</table>", text, re.S)[0]
    assert found.count('<td class="n">unknown</td>') == 2


@pytest.mark.parametrize("name", ["metrics.json", "history.parquet"])
def test_a_control_whose_run_was_not_copied_is_left_out_of_costs_and_learning_curves(project, name):
    settings = project([np.maximum(BASE - 8, 1)], control=[BASE])
    (TOP / f"runs/gemma/none/random-{PICKED}/seed0/{name}").unlink()
    text = page.html(settings, TOP)
    assert "The main experiment and its control" not in text
    assert "as many samples picked by random" in text


CHECK = """<script>
const seen = () => rows.filter(row => !row.hidden).length;
const faded = () => document.querySelectorAll("svg a.off").length;
words.value = 'nothing like this'; form.dispatchEvent(new Event('input'));
const none = [seen(), faded()];
words.value = ''; form.elements.which.value = 'picked'; form.dispatchEvent(new Event('input'));
const picked = [seen(), faded()];
document.querySelector('#samples th:nth-child(4) button').click();
const order = [...table.tBodies[0].rows].map(row => row.id.slice(7));
document.title = [none, picked, order, document.querySelector('#samples th:nth-child(4)').ariaSort].join(' ');
</script></body>"""
FRAMES = """<script>onload = () => document.title = [...document.querySelectorAll("iframe")].map(frame => {
  const inside = frame.contentDocument, wide = inside.documentElement.scrollWidth <= frame.contentWindow.innerWidth;
  const paper = frame.contentWindow.getComputedStyle(inside.body).backgroundColor;
  return [inside.getElementById("count").textContent, inside.title, wide, paper].join("|");
}).join(";");</script>"""


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "paper"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 26)")])
def test_a_browser_shows_the_page_on_phone_and_desktop_without_errors_and_searches_filters_and_sorts_it(
    project, tmp_path, theme, paper
):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    text = finished(project, control=[BASE])
    tried = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", text.replace("</body>", CHECK))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    (tmp_path / "tried.html").write_text(tried, encoding="utf-8")
    sizes = ((390, 844), (1280, 800))  # a window is at least 500 pixels wide, a frame need not be
    frames = [
        f'<iframe src="{name}.html" width="{width}" height="{height}" style="border: 0"></iframe>'
        for name in ("page", "tried")
        for width, height in sizes
    ]
    (tmp_path / "frames.html").write_text("".join(frames) + FRAMES, encoding="utf-8")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += ["--hide-scrollbars", "--allow-file-access-from-files", "--dump-dom"]
    words += [f"--blink-settings=preferredColorScheme={int(theme == 'light')}"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "frames.html").as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in done.stderr
    found = [one.split("|") for one in re.search(r"<title>(.*?)</title>", done.stdout)[1].split(";")]
    samples, order = 2 * PICKED, "1,3,5,7,8,9,10,11"  # the mean reward rises with the sample's id
    shown = [f"{samples} of {samples} samples", "minirec: movielens", "true", paper]  # its script has run
    sought = f"0,{4 * PICKED} {PICKED},{samples} {order} ascending"  # each sample is in two pictures
    assert found == 2 * [shown] + 2 * [[f"{PICKED} of {samples} samples", sought, "true", paper]]
