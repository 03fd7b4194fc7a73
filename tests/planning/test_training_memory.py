"""The memory that plan expects of a training step, against real layers and at the paper's sizes."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from minirec.experiment import sections
from minirec.model import logits
from minirec.planning import training_memory
from minirec.planning.paper_models import SHAPES
from minirec.planning.training_memory import Tokens
from minirec.planning.workload import LanguageModel, Sizes, shape_of

WIDE = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 100}
FAMILIES = {"qwen2": {"intermediate_size": 2560}, "gemma2": {"intermediate_size": 2048}, "llama": {}}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], sections.Policy().lora_targets], ids=["two", "all"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_keeps_the_bytes_that_the_formula_says_within_15_percent(family, dtype, targets):
    config = AutoConfig.for_model(family, **WIDE | FAMILIES[family], num_hidden_layers=1)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model = get_peft_model(model, LoraConfig(r=2, target_modules=targets))
    decoder, tokens, kept = model.get_base_model().get_decoder(), 64, {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def keep(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    states = torch.randn(1, tokens, 512, dtype=getattr(torch, dtype), requires_grad=True)
    positions = torch.arange(tokens)[None]
    around = decoder.rotary_emb(states, positions)
    seen = torch.ones(1, 1, tokens, tokens, dtype=torch.bool).tril()
    mask = seen if config._attn_implementation == "sdpa" else torch.zeros(seen.shape, dtype=states.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder.layers[0](states, attention_mask=mask, position_ids=positions, position_embeddings=around)
    expected = training_memory.layer_bytes(shape_of(config, dtype), dtype, targets, keys=tokens)
    assert expected == pytest.approx(sum(kept.values()) / tokens, rel=0.15)


@pytest.mark.parametrize("name", SHAPES)
def test_the_papers_models_train_in_less_than_60_gb_with_the_defaults(name):
    shape = shape_of(AutoConfig.for_model(**SHAPES[name]), "bfloat16")
    model = LanguageModel(Sizes(10_748, 1_000, 1_000, 10_000, 300, 200), shape, sections.Policy(), False)
    train, sampling = sections.Train(), sections.Sampling()
    step = training_memory.tokens(model, train, sampling, passes=4096, micro_batch=4)
    assert step == Tokens(items=4096, reading=4 * 1324, written=4 * 1024, row=1324, frozen=0)
    parts = training_memory.parts(model, shape, train, step)
    assert parts["weights"] == 2 * shape.parameters
    assert parts["states that enter the layers, prompts"] == 2 * shape.width * shape.layers * 4 * 1324
    assert 2 * shape.parameters < sum(parts.values()) < 60e9


def test_the_formula_knows_how_many_logits_are_computed_at_once():
    assert training_memory.LOGITS_AT_ONCE == logits.LOGITS_AT_ONCE


def test_the_frozen_states_of_a_steps_prompts_are_kept_and_only_trained_layers_keep_others():
    shape = shape_of(AutoConfig.for_model("llama", **WIDE, num_hidden_layers=4), "bfloat16")
    train, sampling = sections.Train(batch_prompts=3), sections.Sampling(completions=2, max_new_tokens=5)
    found = []
    for layers in (None, 1):
        model = LanguageModel(Sizes(9, 1, 1, 7, 10, 5), shape, sections.Policy(lora_layers=layers), False)
        step = training_memory.tokens(model, train, sampling, passes=100, micro_batch=4)
        assert step == Tokens(min(100, 5 * (3 + train.extra_negatives)), 3 * 20, 3 * 10, 20, 3 * 20 if layers else 0)
        found.append(training_memory.parts(model, shape, train, step))
    whole, top = found
    assert top["frozen states of the step"] == 2 * 512 * 3 * 20
    assert whole["frozen states of the step"] == 0
    assert whole["states that enter the layers, prompts"] == 4 * top["states that enter the layers, prompts"]
