"""The command line: help names everything, wrong input ends in one line, damage in a model is named."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from minirec import __version__
from minirec.cli import main
from minirec.experiment import commands
from minirec.experiment.commands import STAGES, command, flag, scalar
from minirec.storage import artefact, tables
from minirec.storage.artefact import Provenance

ITEMS = 12


def minirec(*words, code: int | None = None) -> int:
    """Run a command in this process; a parser's exit counts as its status."""
    try:
        found = main.main([str(word) for word in words])
    except SystemExit as end:
        found = end.code
    assert code is None or found == code
    return found


def complaint(capsys) -> str:
    """The one line that an InputError leaves on stderr."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error:" in line]
    assert out == ""
    assert len(lines) == 1
    assert err.splitlines()[-1] == lines[0]
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_help_that_names_each_setting_its_default_and_each_file(stage, capsys):
    minirec(stage, "--help", code=0)
    text = " ".join(capsys.readouterr().out.split())
    words = set(text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    assert {flag(one.name) for one in command(stage).flags} <= words
    for _, name, field in command(stage).settings():
        assert flag(name) in words
        default = scalar(field.get_default(call_default_factory=True))
        assert f"{field.description} (default: {default})" in text


def test_help_groups_what_people_type_and_what_the_workflow_runs(capsys):
    minirec("--help", code=0)
    typed, stages = " ".join(capsys.readouterr().out.split()).split("stages, which the workflow runs")
    for name, sentence in main.TYPED.items():
        assert f"{name} {sentence}" in typed
    for stage in STAGES:
        assert f"{stage} {command(stage).sentence}" in stages


@pytest.mark.parametrize("name", main.TYPED)
def test_every_command_that_people_type_has_help_with_an_example(name, capsys):
    minirec(name, "--help", code=0)
    assert f"example: minirec {name} " in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    minirec("--version", code=0)
    assert capsys.readouterr().out.split() == ["minirec", __version__]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["selekt"], "there is no command selekt; did you mean select?"),
        (["quux"], "quux"),
        ([], "COMMAND"),
        (["show", "x.json", "--row", "3"], "unrecognized arguments: --row"),
        (["curriculum", "--selection", "a", "--group-size", "1"], "--out"),
        (["curriculum", "--selection", "a", "--out", "b", "--sed", "1"], "--sed"),
        (["select", "--seed", "one"], "invalid int value: 'one'"),
    ],
)
def test_an_unknown_or_missing_option_is_named(words, reason, capsys):
    minirec(*words, code=2)
    assert reason in capsys.readouterr().err


def curriculum(tmp_path, **flags) -> list:
    words = ["curriculum", "--selection", tmp_path / "selection.parquet", "--out", tmp_path / "curriculum.parquet"]
    for name, value in ({"group_size": "2", "seed": "0"} | flags).items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


def write_selection(tmp_path) -> None:
    columns = {"position": pa.array([0, 1], pa.int32()), "sample_id": [5, 3]}
    columns |= {
        n: pa.nulls(2, pa.float64())
        for n in ("value", "mean_reward", "learnability", "representativeness", "diversity")
    }
    tables.write("selection", pa.table(columns), tmp_path / "selection.parquet", Provenance("select"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({}, "selection.parquet does not exist; run the stage that makes it"),
        ({"group_size": "0"}, "curriculum.group_size is 0, but input should be greater than or equal to 1"),
        ({"group_size": "many"}, "curriculum.group_size is 'many', but"),
        ({"group_size": "true"}, "curriculum.group_size is True, but"),
        ({"group_size": "{"}, "--group-size is '{', which is not YAML"),
        ({"seed": ".nan"}, "curriculum.seed is nan, but"),
    ],
)
def test_wrong_input_ends_in_one_line_and_status_1(tmp_path, capsys, flags, sentence):
    minirec(*curriculum(tmp_path, **flags), code=1)
    line = complaint(capsys)
    assert "curriculum error: " in line
    assert sentence in line
    assert not (tmp_path / "curriculum.parquet").exists()


def test_a_defect_ends_with_a_traceback_and_status_70(tmp_path, capsys, monkeypatch):
    write_selection(tmp_path)
    monkeypatch.setattr("minirec.stages.curriculum.run", lambda **given: 1 / 0)
    minirec(*curriculum(tmp_path), code=70)
    err = capsys.readouterr().err
    assert "ZeroDivisionError" in err
    assert "defect of minirec" in err


def test_the_log_goes_to_a_file_and_to_stderr(tmp_path, capsys):
    log = tmp_path / "logs" / "deep" / "curriculum.log"
    minirec(*curriculum(tmp_path, log=log), code=1)
    assert "does not exist" in log.read_text(encoding="utf-8")
    assert "does not exist" in capsys.readouterr().err
    write_selection(tmp_path)
    minirec(*curriculum(tmp_path, log=log), code=0)
    kept = log.read_text(encoding="utf-8").splitlines()
    assert [line.startswith('{"event": ') for line in kept] == [True] * 4  # of the first attempt, what it took stays
    assert "does not exist" not in kept[-1]


def test_a_command_from_outside_returns_its_status_and_says_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "minirec", *map(str, curriculum(tmp_path))], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_module_that_no_extra_brings_is_a_defect_with_traceback_and_status_70(tmp_path, capsys, monkeypatch):
    def missing(**_):
        raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

    monkeypatch.setattr("minirec.cli.show.run", missing)
    minirec("show", tmp_path, code=70)
    said = capsys.readouterr().err
    assert "defect of minirec" in said
    assert "No module named 'nowhere'" in said


def test_a_pipe_that_closes_early_is_no_defect(tmp_path):
    (tmp_path / "big.json").write_text(json.dumps({f"key{i}": i for i in range(50_000)}))
    command = f"{shlex.quote(sys.executable)} -m minirec show {shlex.quote(str(tmp_path / 'big.json'))} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(tmp_path / "big.json")]
    assert done.stderr == ""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A catalogue and samples, some of each split."""
    folder = tmp_path_factory.mktemp("data")
    titles = [f"Blue Road {i}" for i in range(ITEMS)]
    catalogue = {
        "row": pa.array(range(ITEMS), pa.int32()),
        "item_id": titles,
        "title": titles,
        "text": titles,
        "popularity": pa.array([1] * ITEMS, pa.int64()),
    }
    tables.write("catalogue", pa.table(catalogue), folder / "catalogue.parquet", Provenance("prepare"))
    rows = [
        {
            "sample_id": i,
            "split": ("train", "train", "valid", "test")[i % 4],
            "user_id": f"u{i}",
            "target_row": i,
            "history_rows": [(i + 1) % ITEMS, (i + 2) % ITEMS],
            "history_rating": [None, 4.0],
            "history_age_ms": [2000, 1000],
            "timestamp": 10**12 + i,
        }
        for i in range(ITEMS)
    ]
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, folder / "samples.parquet", Provenance("prepare"))
    return folder


@pytest.fixture
def model(tmp_path, tiny_model) -> Path:
    """A copy of the tiny model to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def embed(defaults, data, model, out, **policy) -> list:
    given = defaults.model_copy(update={"policy": defaults.policy.model_copy(update=policy)})
    paths = {"samples": data / "samples.parquet", "catalogue": data / "catalogue.parquet", "model": model}
    paths |= {"whitening": out / "whitening.safetensors", "frozen_states": out / "frozen_states.safetensors"}
    paths["item-table"] = out / "items.safetensors"
    return [
        "embed",
        *shlex.split(" ".join(commands.flags(given, "embed"))),
        *[w for n, p in paths.items() for w in (commands.flag(n), p)],
    ]


def test_embed_runs_from_the_command_line_and_repeats_its_bytes(tmp_path, defaults, data, tiny_model):
    for name in ("a", "b"):
        minirec(*embed(defaults, data, tiny_model, tmp_path / name, pooling="mean", whiten_dim=4), code=0)
    for file in ("items", "whitening", "frozen_states"):
        a, b = ((tmp_path / name / f"{file}.safetensors").read_bytes() for name in ("a", "b"))
        assert a == b


def cut(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])


def without_template(model: Path) -> None:
    (model / "chat_template.jinja").unlink(missing_ok=True)
    file = model / "tokenizer_config.json"
    given = json.loads(file.read_text())
    given.pop("chat_template", None)
    file.write_text(json.dumps(given))


DAMAGE = {
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json"),
    "no folder": (shutil.rmtree, "has no config.json"),
    "no chat template": (without_template, "has no chat template"),
    "truncated weights": (lambda model: cut(model / "model.safetensors", 0.5), "cannot be loaded"),
    "empty weights": (lambda model: cut(model / "model.safetensors", 0), "cannot be loaded"),
    "truncated config": (lambda model: cut(model / "config.json", 0.5), "not readable JSON"),
    "empty config": (lambda model: (model / "config.json").write_text("{}"), "cannot be loaded"),
    "truncated tokenizer": (lambda model: cut(model / "tokenizer.json", 0.5), "cannot be loaded"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_model_that_cannot_be_used_is_named_and_nothing_is_written(tmp_path, defaults, data, model, capsys, damage):
    harm, sentence = DAMAGE[damage]
    harm(model)
    minirec(*embed(defaults, data, model, tmp_path / "out"), code=1)
    line = complaint(capsys)
    assert str(model) in line
    assert sentence in line
    assert not (tmp_path / "out").exists()


def test_weights_that_lack_a_tensor_are_refused(tmp_path, defaults, data, model, capsys):
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    minirec(*embed(defaults, data, model, tmp_path / "out"), code=1)
    assert "has no weights for model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_is_damaged_is_named(tmp_path, defaults, data, tiny_model, capsys):
    from minirec.model.policy import Policy

    policy = Policy.load(tiny_model, defaults.policy)
    policy.add_adapter(seed=0)
    policy.model.save_pretrained(tmp_path / "adapter")
    artefact.write_manifest(tmp_path / "adapter", Provenance("train"))
    words = embed(defaults, data, tiny_model, tmp_path)
    minirec(*words, code=0)
    capsys.readouterr()
    cut(tmp_path / "adapter" / "adapter_model.safetensors", 0.5)
    minirec(*words, "--adapter", tmp_path / "adapter", code=1)
    assert f"{tmp_path / 'adapter' / 'adapter_model.safetensors'} is damaged" in complaint(capsys)
