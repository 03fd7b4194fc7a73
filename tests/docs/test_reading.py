"""The code of docs/reading.md runs on the files that minirec writes, and gives the numbers that it says."""

import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from made_by_hand import BASE, PICKED, project  # noqa: F401  a fixture

from minirec.storage import tensors
from minirec.storage.artefact import Provenance

THERE = {"smollm@heads": "gemma", "/smollm/learnable-160/": f"/gemma/minirec-{PICKED}/", "base/smollm": "base/gemma"}


def test_the_code_of_the_page_runs_on_results_and_agrees_with_their_metrics(project):
    project([np.maximum(BASE - 8, 1)])
    vectors = {"sample_id": np.arange(12), "embedding": np.ones((12, 3), np.float32)}
    tensors.write(vectors, Path("results/movielens/signals/gemma/seed0/embeddings.safetensors"), Provenance("gradient"))
    text = (ROOT / "docs" / "reading.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for name, here in THERE.items():
        assert name in code
        code = code.replace(name, here)
    seen = {}
    exec(compile(code, "docs/reading.md", "exec"), seen)
    assert seen["ndcg"] == pytest.approx(seen["metrics"]["ndcg@10"]["mean"])
    assert seen["picks"]["sample_id"].tolist() == [1, 3, 5, 7]
    assert seen["picks"]["target"].tolist() == ["0"] * PICKED  # row 0 of the catalogue
    assert seen["popular"]["picks"].tolist() == [PICKED]
    assert seen["vectors"]["embedding"].shape == (12, 3)
    assert (
        Path("samples.csv")
        .read_text(encoding="utf-8")
        .startswith("sample_id,split,user_id,target_row,timestamp\n0,train")
    )
