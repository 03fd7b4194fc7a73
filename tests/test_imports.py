"""Imports point down, heavy libraries stay out of what must start at once, and nothing can execute data."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from minirec.cli.main import TYPED
from minirec.experiment.commands import STAGES
from minirec.storage.code_digest import imports

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "minirec"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "trl", "peft")


def identity(file: Path) -> str:
    return f"{file.parent.name}.{file.stem}"


def room_of(file: Path) -> str:
    """The folder directly below the package; the package itself for its own files."""
    return file.relative_to(PACKAGE.parent).parts[1] if file.parent != PACKAGE else "minirec"


def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def absolute(file: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in it."""
    found = set()
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute or a name."""
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def loaded(code: str) -> set[str]:
    """The heavy libraries that are loaded after some code ran in a fresh Python."""
    code += f"\nimport sys; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


ROOMS = {  # room: what it may import besides itself
    "selection": "",
    "storage": "",
    "experiment": "selection storage",
    "data": "experiment selection storage",
    "model": "data experiment selection storage",
    "training": "model data experiment selection storage",
    "evaluation": "model data experiment selection storage",
    "planning": "data experiment selection storage",
    "report": "evaluation model data experiment selection storage",
    "stages": "report training evaluation model data experiment selection storage",
    "cli": "stages report planning training evaluation model data experiment selection storage",
}


def test_the_ways_to_import_a_module_of_ours_are_all_seen(tmp_path):
    for name in "abcdefg":
        (tmp_path / "room").mkdir(exist_ok=True)
        (tmp_path / "room" / f"{name}.py").touch()
    lines = ["import minirec.room.a", "from minirec.room import b, nothing", "from minirec.room.c import x"]
    lines += ["def f():", "    from minirec.room import d as g", "import numpy.h", "from os import e"]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert imports(tmp_path / "m.py", tmp_path) == {"room.a", "room.b", "room.c", "room.d"}


def test_every_stage_is_a_module_with_run():
    assert sorted(STAGES) == sorted(file.stem for file in (PACKAGE / "stages").glob("[!_]*.py"))
    for command in (*TYPED, *STAGES):
        room = "cli" if command in TYPED else "stages"
        names = {node.name for node in tree(PACKAGE / room / f"{command}.py").body if isinstance(node, ast.FunctionDef)}
        assert "run" in names, command


def test_every_folder_is_a_room():
    assert {room_of(file) for file in MODULES} == {*ROOMS, "minirec"}


@pytest.mark.parametrize("file", MODULES, ids=identity)
def test_imports_point_down(file):
    room = room_of(file)
    rooms = {name.split(".")[0] for name in imports(file) if "." in name}
    if room == "minirec":
        assert rooms <= ({"cli"} if file.stem == "__main__" else set())
    else:
        own = set() if room == "stages" else {room}
        assert rooms <= {*ROOMS[room].split(), *own}


def test_the_probe_sees_a_heavy_library():
    assert "torch" in loaded("import torch")


@pytest.mark.parametrize(
    "code",
    [
        "import minirec",
        "import minirec.experiment.rules, minirec.storage.code_digest",
        "import minirec.stages.prepare, minirec.storage.tables, minirec.storage.tensors",
        "import minirec.stages.fetch",
        "import minirec.stages.select, minirec.stages.curriculum, minirec.stages.score",
        "import minirec.cli.recommend, minirec.cli.export",
        "import minirec.cli.show, minirec.cli.plan, minirec.cli.status",
        "import minirec.stages.summarise, minirec.stages.compare",
        "import minirec.evaluation, minirec.stages.measure, minirec.stages.baselines",
        "from minirec.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: print()",
        "from minirec.cli.main import main\ntry: main(['train', '--help'])\nexcept SystemExit: print()",
    ],
)
def test_what_needs_no_tensors_loads_no_torch(code):
    assert loaded(code) == set()


def test_no_file_is_a_catch_all():
    for file in MODULES:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(file.stem.strip("_").split("_")), file


@pytest.mark.parametrize("file", MODULES, ids=identity)
def test_nothing_that_is_loaded_can_execute_code(file):
    assert absolute(file) & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} == set()
    for call in [node for node in ast.walk(tree(file)) if isinstance(node, ast.Call)]:
        name = dotted(call.func)
        assert name not in {"eval", "exec", "torch.load", "torch.save", "torch.hub.load", "yaml.load", "os.system"}
        for keyword in call.keywords:
            value = keyword.value.value if isinstance(keyword.value, ast.Constant) else keyword.value
            assert not (keyword.arg == "trust_remote_code" and value is not False), ast.unparse(call)
            assert not (keyword.arg == "allow_pickle" and value is not False), ast.unparse(call)
            assert not (keyword.arg == "shell" and value is not False), ast.unparse(call)
        if name.endswith(".from_pretrained") and name.startswith("Auto"):
            assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, ast.unparse(call)
