"""A tiny random model and tokenizer, made once a session; which slice of the long suites runs now."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # before torch: a thread that waits leaves its core to the other processes

import numpy as np
import pyarrow as pa
import pytest
import snakemake_server
import torch
import yaml

from minirec.experiment import config
from minirec.experiment.sections import Passes
from minirec.storage import artefact, files, tables
from minirec.storage.artefact import Provenance

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
PASSES = Passes(batch_tokens=512)
LONG = {"workflow", "training", "model"}  # folders whose files take longest
SLICES = 10  # of the tests of faults; `make test` runs one of them


def slice_number() -> int:
    """MINIREC_SLICE, else a number made from the commit, else 0: it decides which faults and which inputs are tried."""
    if given := os.environ.get("MINIREC_SLICE"):
        return int(given)
    commit = ""
    with suppress(OSError):  # no git
        words = ["git", "rev-parse", "--short=6", "HEAD"]
        commit = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return int(commit or "0", 16)


SLICE = slice_number()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put the long files first, so that no worker waits for another at the end; give the slice's faults their mark.

    The tests of faults that belong to this slice have the mark `slice`, with which they run in every `make test`.
    """
    items.sort(key=lambda item: not LONG & {*item.path.parts})
    faults = [item for item in items if item.get_closest_marker("faults")]
    for item in faults[SLICE % SLICES :: SLICES]:
        item.add_marker("slice")


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"slice {SLICE} of faults and fuzz; the same again: MINIREC_SLICE={SLICE}")


def snakemake(folder: Path, *words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run snakemake in a folder, with the code of this tree where no environment is given; all it says is in stdout."""
    environment = environment or os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return snakemake_server.snakemake(folder, list(words), dict(environment))


def made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder made by the first worker of pytest-xdist that asks for it and shared by all: copy it to change it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with files.exclusive_lock(folder, wait=True):
        if not folder.exists():
            part = folder.with_name(f"{name}.part")  # where it stays if it fails; the next worker starts again
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Before all fixtures: the bits of a sum depend on the number of threads, so what a module shares has the same."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with a random Llama of 2 layers, its BPE tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = [f"{a} {b}" for a in ("Blue", "Kind of", "Abbey", "Red") for b in ("Train", "Blue", "Road", "Clay")]
    special = ["<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*words, "<answer> days ago rated"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        eos_token_id=fast.eos_token_id,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gemmas(tiny_model, tmp_path_factory) -> dict[str, Path]:
    """Folders with a random Gemma-2: a window shorter than any prompt limits every layer, or every other one."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    parent = tmp_path_factory.mktemp("gemmas")
    shape = json.loads((tiny_model / "config.json").read_text())
    same = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "eos_token_id",
    )
    for name, layers in (
        ("sliding", ["sliding_attention"] * 2),
        ("mixed", ["sliding_attention", "full_attention"] * 2),
    ):
        shutil.copytree(tiny_model, parent / name)
        torch.manual_seed(0)
        gemma = Gemma2Config(
            **{key: shape[key] for key in same},
            num_hidden_layers=len(layers),
            layer_types=layers,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=12,
            attn_logit_softcapping=2.0,
            initializer_range=0.2,
        )
        Gemma2ForCausalLM(gemma).save_pretrained(parent / name)
    return {name: parent / name for name in ("sliding", "mixed")}


@pytest.fixture(scope="session")
def defaults() -> config.Config:
    """config.yaml with a small policy in float32."""
    raw = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    raw["policy"] |= {"dtype": "float32", "max_item_tokens": 32, "tau": 0.5}
    raw["sampling"] |= {"max_new_tokens": 6, "completions": 3}
    return config.validate(raw)


def _write_catalogue(file: Path) -> None:
    """Write a catalogue of 30 items."""
    words = ["Blue", "Train", "Kind", "Abbey", "Road", "Red", "Clay"]
    titles = [f"{words[i % 7]} {words[i // 7]} {i}" for i in range(30)]
    catalogue = {
        "row": pa.array(range(30), pa.int32()),
        "item_id": [f"i{i:02d}" for i in range(30)],
        "title": titles,
        "text": [f"Title: {t}" for t in titles],
        "popularity": pa.array([1] * 30, pa.int64()),
    }
    tables.write("catalogue", pa.table(catalogue), file, Provenance("prepare"))


@pytest.fixture(scope="session")
def judged(tmp_path_factory, tiny_model, defaults) -> dict[str, Path]:
    """What a rollout reads: 22 training samples of 30, a catalogue, its vectors and an adapter that is no zero."""
    from minirec.model.policy import Policy
    from minirec.stages import embed

    folder = tmp_path_factory.mktemp("judged")
    files = {name: folder / f"{name}.parquet" for name in ("samples", "catalogue")}
    _write_catalogue(files["catalogue"])
    generator = np.random.default_rng(0)
    rows = []
    for i in range(30):
        items = generator.choice(30, 5, replace=False).tolist()
        history = items[1 : 2 + i % 4]
        facts = {"sample_id": 3 * i, "split": "train" if i < 22 else "test", "user_id": f"u{i}", "target_row": items[0]}
        facts |= {"history_rows": history, "history_rating": [4.0] * len(history), "timestamp": 10**12 + i}
        rows.append(facts | {"history_age_ms": list(range(1000, 1000 + len(history)))})
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, files["samples"], Provenance("prepare"))
    torch.manual_seed(1)
    proxy = Policy.load(tiny_model, defaults.policy)
    proxy.add_adapter(seed=0)
    for name, weight in proxy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    proxy.model.save_pretrained(folder / "adapter")
    artefact.write_manifest(folder / "adapter", Provenance("train"))
    files |= {"whitening": folder / "whitening.safetensors", "item_table": folder / "items.safetensors"}
    embed.run(
        policy=defaults.policy,
        embed=defaults.embed,
        passes=PASSES,
        samples=files["samples"],
        catalogue=files["catalogue"],
        model=tiny_model,
        whitening=files["whitening"],
        frozen_states=folder / "frozen_states.safetensors",
        item_table=files["item_table"],
    )
    return files | {"model": tiny_model, "adapter": folder / "adapter"}


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model, defaults) -> dict[str, Path]:
    """What train reads: 34 samples, a catalogue, a curriculum, and what embed makes of them."""
    from training_runs import policy

    from minirec.stages import embed

    folder = tmp_path_factory.mktemp("project")
    _write_catalogue(folder / "catalogue.parquet")
    generator = np.random.default_rng(0)
    rows = []
    for i in range(34):
        items = generator.choice(30, 4, replace=False).tolist()
        split = "train" if i < 22 else "valid" if i < 28 else "test"
        rows.append(
            {
                "sample_id": i,
                "split": split,
                "user_id": f"u{i}",
                "target_row": items[3],
                "history_rows": items[:3],
                "history_rating": [4.0, None, 5.0],
                "history_age_ms": [3000, 2000, 1000],
                "timestamp": 10**12 + i,
            }
        )
    table = pa.Table.from_pylist(rows, tables.TABLES["samples"].schema())
    tables.write("samples", table, folder / "samples.parquet", Provenance("prepare"))
    order = [3, 1, 4, 15, 9, 2, 6, 5, 12, 8, 7]
    curriculum = {
        "position": pa.array(range(len(order)), pa.int32()),
        "sample_id": pa.array(order, pa.int64()),
        "group": pa.array([0] * len(order), pa.int32()),
        "mean_reward": pa.nulls(len(order), pa.float64()),
    }
    tables.write("curriculum", pa.table(curriculum), folder / "curriculum.parquet", Provenance("curriculum"))
    files = {name: folder / f"{name}.parquet" for name in ("samples", "catalogue", "curriculum")}
    files |= {name: folder / f"{name}.safetensors" for name in ("whitening", "frozen_states")}
    files["item_table"] = folder / "items.safetensors"
    embed.run(
        policy=policy(defaults),
        embed=defaults.embed.model_copy(update={"keep_frozen_states": True}),
        passes=PASSES,
        samples=files["samples"],
        catalogue=files["catalogue"],
        model=tiny_model,
        whitening=files["whitening"],
        frozen_states=files["frozen_states"],
        item_table=files["item_table"],
    )
    return files
