"""What a policy's folder may hold, how long its texts may be, and which of its layers get adapters."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

from minirec.data import models
from minirec.errors import InputError
from minirec.experiment.sources import Model
from minirec.model import compatibility, generate
from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model, to be spoilt."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def declare(folder, **values):
    """Change the model's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def spoilt(weight, value):
    """A function: change one number of a weight."""

    def change(folder):
        weights = load_file(folder / "model.safetensors")
        weights[weight].view(-1)[-1] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda f: declare(f, quantization_config={"quant_method": "gptq"}), "quantised weights; take the model with"),
        (lambda f: declare(f, is_encoder_decoder=True), "encoder-decoder model; take a causal language model"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "its weights twice"),
    ],
)
def test_a_folder_that_is_no_plain_model_is_refused_when_it_is_fetched_and_when_it_is_loaded(
    folder, defaults, tmp_path, change, complaint
):
    change(folder)
    with pytest.raises(InputError, match=complaint):
        Policy.load(folder, defaults.policy)
    with pytest.raises(InputError, match=complaint):
        models.fetch(Model(source="folder", path=str(folder)), None, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("weight", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_finite_is_named(folder, defaults, weight, value):
    spoilt(weight, value)(folder)
    with pytest.raises(InputError, match=f"the weight {weight} with NaN or infinity"):
        Policy.load(folder, defaults.policy)


def test_an_adapter_beside_a_model_is_left_out_when_it_is_fetched_and_refused_when_it_is_loaded(
    folder, judged, defaults, tmp_path
):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(judged["adapter"] / name, folder)
    models.fetch(Model(source="folder", path=str(folder)), None, tmp_path / "fetched")
    assert not list((tmp_path / "fetched").glob("adapter*"))
    with pytest.raises(InputError, match=r"adapter_config\.json of an adapter beside the model"):
        Policy.load(folder, defaults.policy)


@pytest.mark.parametrize("rope", [{}, {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}])
def test_a_text_longer_than_the_context_is_refused_and_one_of_its_length_is_read(folder, defaults, rope):
    plain = Policy.load(folder, defaults.policy)
    prompts = plain.user_bodies(["x"])
    length = len(plain.user_prompts.prefix) + len(prompts[0]) + 6 + len(plain.marker_ids)
    declare(folder, max_position_embeddings=length, **({"rope_parameters": rope} if rope else {}))
    policy = Policy.load(folder, defaults.policy.model_copy(update={"max_item_tokens": length}))
    assert generate.generate(policy, prompts, [6]).hidden.isfinite().all()
    for write in (
        lambda: generate.generate(policy, prompts, [7]),
        lambda: generate.from_tokens(policy, prompts, [[[5] * 7]], 7),
        lambda: ItemEncoder(policy, ["x y z " * length]),
    ):
        with pytest.raises(InputError, match=rf"a text has \d+ tokens, but the model's context is {length}; lower"):
            write()


def adapted(policy):
    """Names of the layers that have an adapter, without the numbers of their blocks."""
    return {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in policy.model.named_parameters() if "lora_A" in name
    }


@pytest.mark.parametrize("layers", [None, 1])
def test_all_linear_means_every_linear_layer_but_the_head(folder, defaults, layers):
    policy = Policy.load(
        folder, defaults.policy.model_copy(update={"lora_targets": ["all-linear"], "lora_layers": layers})
    )
    policy.add_adapter(0)
    assert adapted(policy) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_model_with_fewer_layers_than_shall_get_adapters_gets_them_in_all(folder, defaults):
    names = []
    for layers in (None, 500):
        policy = Policy.load(folder, defaults.policy.model_copy(update={"lora_layers": layers}))
        policy.add_adapter(0)
        names.append([name for name, _ in policy.model.named_parameters() if "lora_A" in name])
    assert names[0] == names[1]
    assert policy.frozen_layers == 0


def test_a_projection_means_the_fused_layer_that_holds_it(folder, defaults):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    Phi3ForCausalLM(Phi3Config(**shape, vocab_size=vocabulary, pad_token_id=0, eos_token_id=1)).save_pretrained(folder)
    policy = Policy.load(folder, defaults.policy)
    policy.add_adapter(0)
    assert adapted(policy) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}


def test_a_target_that_is_nowhere_is_refused_with_the_names_there_are(folder, defaults):
    policy = Policy.load(folder, defaults.policy.model_copy(update={"lora_targets": ["c_attn"]}))
    with pytest.raises(
        InputError, match=r"no such layer; take some of down_proj, gate_proj, k_proj, .*, or all-linear"
    ):
        policy.add_adapter(0)


@pytest.mark.parametrize("factor", [54, 2])
def test_a_type_in_which_the_cpu_multiplies_slowly_is_named_with_what_to_set(
    tiny_model, defaults, monkeypatch, caplog, factor
):
    monkeypatch.setattr(compatibility, "_seconds", lambda given: factor if given == torch.bfloat16 else 1.0)
    with caplog.at_level("INFO", "minirec"):
        Policy.load(tiny_model, defaults.policy.model_copy(update={"dtype": "bfloat16"}))
    said = f"multiplies matrices in bfloat16 {factor} times as slowly as in float32; set policy.dtype to float32"
    assert (said in caplog.text) == (factor > 3)


@pytest.mark.parametrize(("dtype", "device"), [("float32", "cpu"), ("bfloat16", "cuda")])
def test_float32_and_a_gpu_are_not_measured(monkeypatch, dtype, device):
    monkeypatch.setattr(compatibility, "_seconds", lambda given: 1 / 0)
    compatibility.warn_if_slow(dtype, torch.device(device))
