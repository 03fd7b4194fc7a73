"""Vectors of a sentence encoder are means over the tokens of a text, whatever else is in its batch."""

import shutil

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from minirec.errors import InputError
from minirec.model import sentence_encoder

TEXTS = ["Blue Train", "Kind of Blue, and all that follows from it", "", "Abbey Road " * 300, "Red"]


@pytest.fixture(scope="module")
def tiny_bert(tiny_model, tmp_path_factory):
    """A random BERT of one layer that reads 64 tokens, without the pooler's weights, and the tokenizer of tests."""
    folder = tmp_path_factory.mktemp("bert")
    shutil.copytree(tiny_model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors", "config*"))
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=400, max_position_embeddings=64, initializer_range=0.5, **shape)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("which", ["tiny_model", "tiny_bert"])
def test_a_vector_is_the_mean_of_the_last_states_of_the_text_read_alone(request, which):
    folder = request.getfixturevalue(which)
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    vectors = sentence_encoder.encode(folder, TEXTS)
    limit = 64 if which == "tiny_bert" else 512
    for text, vector in zip(TEXTS, vectors, strict=True):
        tokens = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"].long()
        if tokens.shape[1]:
            with torch.inference_mode():
                expected = model(tokens).last_hidden_state[0].mean(0).numpy()
            assert vector == pytest.approx(expected, abs=1e-4)
        else:
            assert not vector.any()


def test_the_same_texts_give_the_same_bytes(tiny_bert):
    assert sentence_encoder.encode(tiny_bert, TEXTS).tobytes() == sentence_encoder.encode(tiny_bert, TEXTS).tobytes()


def test_weights_that_could_execute_code_or_are_damaged_are_refused(tiny_bert, tmp_path):
    copy = tmp_path / "bert"
    shutil.copytree(tiny_bert, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be loaded"):
        sentence_encoder.encode(copy, TEXTS)
    weights.rename(copy / "pytorch_model.bin")
    with pytest.raises(InputError, match="no weights in safetensors; other formats can execute code"):
        sentence_encoder.encode(copy, TEXTS)
    with pytest.raises(InputError, match=r"has no config\.json; name the folder of a sentence encoder"):
        sentence_encoder.encode(tmp_path, TEXTS)


def test_vectors_that_are_no_numbers_are_refused(tiny_bert, tmp_path):
    copy = tmp_path / "bert"
    shutil.copytree(tiny_bert, copy)
    model = AutoModel.from_pretrained(copy)
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] = np.nan
    model.save_pretrained(copy)
    with pytest.raises(InputError, match="gives vectors with NaN"):
        sentence_encoder.encode(copy, TEXTS)
