"""The package: what is installed without extras works without the libraries of the extras, and the wheel is whole."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REWARDS = np.random.default_rng(0).integers(0, 2, (50, 4)).tolist()
ROLLOUTS = "".join(f'{{"prompt": "q{number}", "rewards": {row}}}\n' for number, row in enumerate(REWARDS))
ONLY = """
import sys


class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Missing())
"""


def names(requirements):
    """Names of distributions, as registries compare them."""
    return {re.split(r"[<>=!\[]", one)[0].lower().replace("_", "-") for one in requirements}


OPTIONAL = set().union(*map(names, PROJECT["optional-dependencies"].values())) - {"minirec"}


@pytest.fixture
def minirec(tmp_path):
    """Runs Python where no library of an extra can be imported."""
    missing = {
        module
        for module, found in packages_distributions().items()
        if names(found) & OPTIONAL and not names(found) & names(PROJECT["dependencies"])
    }
    assert {"torch", "transformers", "pandas", "matplotlib", "jinja2", "snakemake"} <= missing
    (tmp_path / "sitecustomize.py").write_text(ONLY.format(missing=missing))

    def run(*words):
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT / 'src'}"}
        command = [sys.executable, *map(str, words)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_rollouts_become_picks_without_the_libraries_of_the_extras(minirec, tmp_path):
    (tmp_path / "rollouts.jsonl").write_text(ROLLOUTS)
    words = ["pick", "rollouts.jsonl", "--budget", "10", "--control", "random", "--diversity", "tfidf"]
    done = minirec("-m", "minirec", *words, "--out", "picks.jsonl")
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "picks.jsonl").read_text().splitlines()) == 10
    assert len((tmp_path / "picks.control.jsonl").read_text().splitlines()) == 10


@pytest.mark.parametrize("words", [["--help"], ["pick", "--help"], ["select", "--help"], ["--version"]])
def test_help_needs_no_extra(minirec, words):
    done = minirec("-m", "minirec", *words)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "library", "extra"),
    [
        (["recommend", "results/x/runs/a/b/c-1/seed0", "--history", "x"], "torch", "train"),
        (["report", "results/x"], "pandas", "report"),
        (["why", "results/x/runs/a/b/c-1/seed0"], "pandas", "report"),
        (["status", "results/movielens"], "snakemake", "workflow"),
    ],
)
def test_a_command_whose_extra_is_missing_names_it(minirec, tmp_path, words, library, extra):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    done = minirec("-m", "minirec", *words)
    assert done.returncode == 1
    assert f'{words[0]} needs {library}; pip install "minirec[{extra}]"' in done.stderr


def test_importing_the_selection_loads_none_of_the_heavy_libraries(minirec):
    code = "import minirec, minirec.selection, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = minirec("-c", code)
    assert done.returncode == 0, done.stderr
    assert "numpy" in done.stdout.split()
    assert not {"sklearn", "scipy", "pydantic", "pyarrow", "duckdb", "pandas", "torch"} & set(done.stdout.split())


def test_the_functions_of_the_library_are_there_by_name():
    import minirec

    for name in minirec.__all__:
        assert callable(getattr(minirec, name))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the sdist."""
    folder = tmp_path_factory.mktemp("built")
    copy = folder / "copy"  # a build leaves files beside the sources
    shutil.copytree(ROOT / "src" / "minirec", copy / "src" / "minirec", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    words = [sys.executable, "-c", "from setuptools.build_meta import build_sdist; build_sdist('..')"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=copy)
    assert done.returncode == 0, done.stderr
    (sdist,) = folder.glob("minirec-*.tar.gz")
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", str(sdist)]
    done = subprocess.run([*words, "-w", str(folder)], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("minirec-*.whl")
    return wheel


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("minirec/")}
    tracked = subprocess.run(["git", "ls-files", "src/minirec"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert packed == {name.removeprefix("src/") for name in tracked.stdout.split()}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a fresh virtual environment: it holds the wheel, what pip fetched for it, and nothing else."""
    place = tmp_path_factory.mktemp("clean")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program, *words):
        command = [place / "venv" / "bin" / program, *map(str, words)]
        return subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)

    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    lock, install = ROOT / "requirements.lock", ("-m", "pip", "install", "--quiet", "--no-compile", "--timeout", "15")
    (numpy,) = re.findall(r"^numpy==.*$", lock.read_text(encoding="utf-8"), re.MULTILINE)
    if (done := run("python", *install, "--retries", "0", numpy)).returncode:
        pytest.skip(f"no package index is within reach of pip: {done.stderr.splitlines()[-1]}")
    done = run("python", *install, "--constraint", lock, wheel)
    assert done.returncode == 0, done.stderr
    yield run
    shutil.rmtree(place)  # half a gigabyte


@pytest.mark.slow
def test_the_installed_wheel_brings_no_library_of_an_extra(installed):
    there = names(installed("python", "-m", "pip", "list", "--format", "freeze").stdout.split())
    assert there >= names(PROJECT["dependencies"]) | {"minirec"}
    assert there & OPTIONAL == set()


@pytest.mark.slow
def test_the_installed_functions_of_the_selection_load_no_heavy_library(installed):
    listed = "curriculum_order, greedy, hit, learnability, ndcg, pick, representativeness"
    code = f"from time import perf_counter; start = perf_counter(); from minirec import {listed}; import sys; "
    for _ in range(2):  # the first import also compiles
        done = installed("python", "-c", code + "print(perf_counter() - start, *sys.modules)")
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    sys.stdout.write(f"the import took {float(seconds):.2f} s\n")
    assert not {"torch", "transformers", "pandas", "sklearn", "pyarrow", "pydantic"} & set(modules)


@pytest.mark.slow
def test_the_installed_command_picks(installed, tmp_path):
    (tmp_path / "rollouts.jsonl").write_text(ROLLOUTS)
    picks = tmp_path / "picks.jsonl"
    done = installed("minirec", "pick", tmp_path / "rollouts.jsonl", "--budget", "10", "--out", picks)
    assert done.returncode == 0, done.stderr
    assert len(picks.read_text().splitlines()) == 10


@pytest.mark.slow
def test_an_installed_command_that_needs_more_says_what_to_install(installed):
    done = installed("minirec", "recommend", "results/x/runs/a/b/c-1/seed0", "--history", "x")
    assert done.returncode == 1
    assert 'recommend needs torch; pip install "minirec[train]"' in done.stderr
