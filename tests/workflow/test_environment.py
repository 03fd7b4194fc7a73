"""One set of versions everywhere, and make targets that say what they do."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, snakemake


def canonical(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(lines) -> dict[str, str]:
    """Version by name of lines `name==version`; any other line fails."""
    pairs = [re.fullmatch(r"([A-Za-z0-9_.-]+)==([A-Za-z0-9_.+!]+)", line).groups() for line in lines]
    found = {canonical(name): version for name, version in pairs}
    assert len(found) == len(pairs)
    return found


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return versions(line for line in lines if line and not line.startswith("#"))


def dependencies(name: str) -> list:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["dependencies"]


@pytest.fixture(scope="module")
def lock() -> dict[str, str]:
    return locked("requirements.lock")


@pytest.fixture(scope="module")
def conda() -> list:
    return dependencies("environment.yml")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.mark.parametrize("beside", ["", "-vllm"])
def test_the_conda_environment_has_the_versions_of_the_lock(beside):
    (pip,) = [part["pip"] for part in dependencies(f"environment{beside}.yml") if isinstance(part, dict)]
    assert versions(pip) == locked(f"requirements{beside}.lock")
    script = ROOT / f"environment{beside}.post-deploy.sh"  # where Snakemake looks for it
    assert 'pip install --no-deps --editable "$PWD"' in script.read_text(encoding="utf-8")


def test_torch_is_the_version_whose_cpu_build_pip_takes(lock):
    assert lock["torch"] == "2.13.0"


@pytest.mark.parametrize(
    ("file", "extras"),
    [
        ("requirements.lock", ["train", "report", "workflow", "slurm", "docs", "dev"]),
        ("requirements-vllm.lock", ["train", "report", "workflow", "vllm"]),  # slurm wants another numpy than vLLM
        ("requirements-vllm-cpu.lock", ["train", "report", "workflow", "dev"]),
    ],
)
def test_the_lock_satisfies_every_range_of_the_package(project, file, extras):
    from packaging.requirements import Requirement

    lock = locked(file)
    assert {"train", "report", "workflow", "slurm", "docs", "dev", "vllm"} == set(project["optional-dependencies"])
    given = [*project["dependencies"], *[line for name in extras for line in project["optional-dependencies"][name]]]
    for requirement in map(Requirement, given):
        if requirement.name == project["name"]:
            continue
        name = canonical(requirement.name)
        assert name in lock, f"{name} is not in {file}"
        assert requirement.specifier.contains(lock[name]), f"{requirement} but {lock[name]}"


def test_conda_has_a_python_that_the_package_accepts(conda, project):
    from packaging.specifiers import SpecifierSet

    (python,) = [part for part in conda if isinstance(part, str) and part.startswith("python ")]
    assert SpecifierSet(project["requires-python"]).contains(python.split("=")[1] + ".0")


RULES = {
    rule: parent
    for file in (ROOT / "workflow" / "rules").glob("*.smk")
    for parent, rule in re.findall(r"^ *use rule (\w+) as (\w+) with:", file.read_text(encoding="utf-8"), re.MULTILINE)
}


def test_every_rule_has_the_environment_of_the_rule_that_all_come_from():
    """Each inherits from `stage`, at most through another, and names no environment of its own."""
    from minirec.experiment.rules import Rules

    texts = {file: file.read_text(encoding="utf-8") for file in (ROOT / "workflow").rglob("*.smk")}
    written = [rule for text in texts.values() for rule in re.findall(r"^ *rule (\w+):", text, re.MULTILINE)]
    assert written == ["stage"]
    assert len(RULES) > 15
    assert {RULES.get(parent, parent) for parent in RULES.values()} == {"stage"}
    assert [name for text in texts.values() for name in re.findall(r"conda:\s+(.*)", text)] == ["ask.environment"]
    vllm = {"sampling": {"engine": "vllm"}}
    named = [({}, "environment.yml"), (vllm, "environment-vllm.yml")]
    named += [({"variants": {"fast": {"method": "random"} | vllm}}, "environment-vllm.yml")]
    for given, name in named:
        environment = Rules.of(given, str(ROOT / "config" / "config.yaml")).environment
        assert (ROOT / "workflow" / "rules" / environment).resolve() == ROOT / name


# Stands for conda, which no registry of Python packages has: it makes an environment of the packages that are here,
# without this one, and activates it. All else is Snakemake's doing and environment.post-deploy.sh's.
CONDA = """
import importlib.util, json, pathlib, sys, sysconfig, venv
top = pathlib.Path(__file__).resolve().parent
match sys.argv[1:]:
    case ["--version"]:
        print("conda 25.1.0")
    case ["info", "--json"]:
        print(json.dumps({"conda_prefix": str(top), "platform": "linux-64"}))
    case ["clean", *_]:
        pass
    case ["config", *_]:
        print(json.dumps({"get": {"channel_priority": "strict"}}))
    case ["env", "create", *words]:
        with (top / "created").open("a") as created:
            print(words[words.index("--file") + 1], words[words.index("--prefix") + 1], file=created)
        prefix = pathlib.Path(words[words.index("--prefix") + 1])
        venv.create(prefix, with_pip=importlib.util.find_spec("pip") is None)
        (packages,) = prefix.glob("lib/python*/site-packages")
        (packages / "here.pth").write_text(f"import sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r})")
    case other:
        sys.exit(f"not expected: {other}")
"""


@pytest.mark.slow
def test_every_rule_runs_in_an_environment_made_by_conda_with_the_package_of_its_folder(tmp_path):
    from test_workflow import CONFIG, pretending

    folder, tools = tmp_path / "project", tmp_path / "tools"
    report = """
def _report(stage):
    from pathlib import Path

    with Path("ran").open("a", encoding="utf-8") as ran:
        print(stage, sys.prefix, sys.modules["minirec"].__file__, file=ran)
"""
    pretending(folder, "_pretend(stage, given); _report(stage)", report)
    for name in ("environment.post-deploy.sh", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    given = yaml.safe_load(CONFIG) | {"rollout": {"shards": 2}, "select": {"shards": 2}}
    given["variants"] = {"by_heads": {"method": "learnable", "proxy": {"kind": "heads", "head": "shared"}}}
    given["compare"] = {"models": ["tiny"], "methods": ["minirec", "random"], "budgets": [8], "seeds": [0]}
    (folder / "toy.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    (tools / "bin").mkdir(parents=True)
    (tools / "conda.py").write_text(CONDA, encoding="utf-8")
    (tools / "bin" / "conda").write_text(f'#!/bin/sh\nexec {sys.executable} {tools}/conda.py "$@"\n', encoding="utf-8")
    (tools / "bin" / "conda").chmod(0o755)
    (tools / "bin" / "activate").write_text('export PATH="$1/bin:$PATH"\n', encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{tools}/bin:{os.environ['PATH']}", "PIP_NO_BUILD_ISOLATION": "0"}  # 0 turns it off
    environment |= {"CUDA_VISIBLE_DEVICES": ""}  # no job imports torch to count the GPUs
    targets = ["results/toy/metrics.json", "results/toy/comparison.parquet", "data/cds/interactions.parquet"]
    targets += [f"results/toy/selections/tiny/{name}-8/seed0/selection.parquet" for name in ("by_heads", "dealrec")]
    words = ["--cores", "2", "--use-conda", "--configfile", "toy.yaml", "--", *targets]
    done = snakemake(folder, *words, environment=environment)
    assert done.returncode == 0, done.stdout
    assert set(re.findall(r"^(?:local)?rule (\w+):$", done.stdout, re.MULTILINE)) == RULES.keys()
    ((file, prefix),) = [line.split() for line in (tools / "created").read_text(encoding="utf-8").splitlines()]
    assert Path(file).read_bytes() == (ROOT / "environment.yml").read_bytes()
    ran = [line.split() for line in (folder / "ran").read_text(encoding="utf-8").splitlines()]
    assert len(ran) > len(RULES)
    assert {(where, package) for _, where, package in ran} == {
        (prefix, str(folder / "src" / "minirec" / "__init__.py"))
    }


@pytest.fixture(scope="module")
def targets() -> list[str]:
    """What the Makefile declares as targets for people."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()


def make(*words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-C", str(ROOT), "--no-print-directory", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_help_lists_every_target_with_a_line_of_its_own(targets):
    listed = [re.fullmatch(r"make (\S+) +(\S.*)", line).groups() for line in make("help").splitlines()]
    assert [name for name, _ in listed] == targets
    assert {"setup", "quickstart", "test", "check", "bench", "report", "clean"} <= set(targets)
    assert all(len(meaning.split()) > 1 for _, meaning in listed)


def test_make_alone_is_help():
    assert make() == make("help")


@pytest.mark.parametrize("target", ["quickstart", "test", "check", "bench", "report"])
def test_a_target_builds_the_environment_where_it_is_out_of_date(target):
    commands = make("--dry-run", "--what-if=requirements.lock", target)
    assert "-m venv .venv" in commands
    assert commands.index("-m venv .venv") < commands.index("requirements.lock") < commands.index("--editable .")


def test_make_installs_torch_exactly_and_first():
    commands = make("--dry-run", "--what-if=requirements.lock", "setup")
    assert commands.index("grep '^torch=='") < commands.index("--requirement requirements.lock")


def report(*words: str) -> subprocess.CompletedProcess[str]:
    """`make report` with the environment taken for built."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "-C", str(ROOT), "--no-print-directory", "--old-file=.venv/.installed", "report", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_report_of_a_run_that_is_not_there_is_refused_in_one_sentence():
    done = report("DATASET=nothing")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "results/nothing/metrics.json is not there; run the workflow first, e.g. with: make quickstart"
    )
    assert not (ROOT / "results" / "nothing").exists()


def test_the_report_has_the_configuration_that_the_results_were_made_with(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"results: {tmp_path}\n", encoding="utf-8")
    words = ("--dry-run", f"CONFIG={config}", "DATASET=toy")
    assert f"minirec report {tmp_path}/toy --configfile {config}" in report(*words).stdout
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.yaml").touch()  # which `minirec report` finds itself
    assert f"minirec report {tmp_path}/toy\n" in report(*words).stdout


def test_clean_never_names_data_or_models():
    for line in make("--dry-run", "clean").splitlines():
        assert not re.search(r"\bdata\b", line), line


def readme_commands() -> list[str]:
    """Every line of the README's blocks, without prompt and remark."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ").split(" #")[0].strip() for block in blocks for line in block.splitlines()]


def test_continuous_integration_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [
        line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith(("#", "set ", "cd "))
    ]
    assert commands == ["make test"]
    assert "make test" in readme_commands()


def test_the_page_of_licences_lists_the_packages_of_the_lock(lock):
    text = (ROOT / "docs" / "LICENCES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| (\S+) \| (\S.*) \|$", text, re.MULTILINE)
    listed = {canonical(name): version for name, version, _ in rows if name not in ("package", "---")}
    assert listed == lock
    assert "not installed" not in text
