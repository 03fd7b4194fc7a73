"""The workflow inside another one: a foreign Snakefile takes its rules and asks for their files."""

import re

from conftest import ROOT, snakemake

SNAKEFILE = """
configfile: "settings.yaml"


module minirec:
    snakefile: "{root}/workflow/Snakefile"
    config: config


use rule * from minirec as minirec_*


rule mine:
    input:
        "out/movielens/selections/none/random-50/seed3/selection.parquet",
    output:
        "mine.txt",
    shell:
        "cp {{input}} {{output}}"
"""
SETTINGS = """
results: out
datasets: {movielens: {source: movielens}}
models: {small: {source: tiny, dataset: movielens, hidden_size: 32, layers: 1, vocabulary: 500}}
main: {model: small, selector: small, method: random, budget: 50, seeds: [3]}
compare: {models: [], selectors: [], methods: [], budgets: [], seeds: []}
"""


def test_a_foreign_workflow_plans_the_rules_that_its_own_rule_waits_for(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(root=ROOT))
    (tmp_path / "settings.yaml").write_text(SETTINGS)
    done = snakemake(tmp_path, "--cores", "1", "-n", "-p", "mine.txt")
    assert done.returncode == 0, done.stdout
    planned = set(re.findall(r"^(\w+) +1$", done.stdout, re.MULTILINE)) - {"total"}
    assert planned == {"minirec_fetch_data", "minirec_prepare", "minirec_select", "mine"}
    assert "--method random" in done.stdout
    assert "--seed 3" in done.stdout


def test_a_wrong_setting_of_a_foreign_workflow_is_one_sentence(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(root=ROOT))
    (tmp_path / "settings.yaml").write_text(SETTINGS.replace("budget: 50", "budgte: 50"))
    done = snakemake(tmp_path, "--cores", "1", "-n", "mine.txt")
    assert done.returncode != 0
    assert "minirec: configuration error: main.budgte" in done.stdout
