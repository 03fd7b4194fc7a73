"""Imports point down, heavy libraries stay out of what must start at once, and nothing can execute data."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from minirec.provenance import imports
from minirec.stages import STAGES

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "minirec"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("torch", "transformers", "trl", "peft")


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


def test_the_ways_to_import_a_module_of_ours_are_all_seen(tmp_path):
    lines = ["import minirec.a", "from minirec import b", "from minirec.c import x", "from . import d"]
    lines += ["from .e import y", "def f():", "    from minirec import g", "import numpy.h", "from os import i"]
    (tmp_path / "m.py").write_text("\n".join(lines))
    assert imports(tmp_path / "m.py") == {"a", "b", "c", "d", "e", "g"}


def test_every_stage_is_a_module_with_run():
    for stage in STAGES:
        names = {node.name for node in tree(PACKAGE / f"{stage}.py").body if isinstance(node, ast.FunctionDef)}
        assert "run" in names, stage


@pytest.mark.parametrize("file", [file for file in MODULES if file.stem != "__main__"], ids=lambda file: file.stem)
def test_no_module_imports_a_stage(file):
    assert imports(file) & set(STAGES) == set()


def test_schemas_and_config_import_nothing_above_them():
    assert imports(PACKAGE / "schemas.py") <= {"artefact", "errors"}
    assert imports(PACKAGE / "artefact.py") <= {"errors", "__version__"}
    assert imports(PACKAGE / "config.py") <= {"errors", "validation"}
    assert imports(PACKAGE / "validation.py") <= {"errors"}


def test_the_probe_sees_a_heavy_library():
    assert "torch" in loaded("import torch")


@pytest.mark.parametrize(
    "code",
    [
        "import minirec",
        "import minirec.experiment, minirec.provenance",
        "import minirec.prepare, minirec.schemas, minirec.tensors",
        "import minirec.fetch",
        "import minirec.select, minirec.curriculum, minirec.score",
        "import minirec.show, minirec.plan, minirec.summarise, minirec.references",
        "from minirec.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: print()",
        "from minirec.__main__ import main\ntry: main(['train', '--help'])\nexcept SystemExit: print()",
    ],
)
def test_what_needs_no_tensors_loads_no_torch(code):
    assert loaded(code) == set()


def test_no_file_is_a_catch_all():
    for file in MODULES:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(file.stem.strip("_").split("_")), file


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.stem)
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
