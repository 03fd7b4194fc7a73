"""Which families of models work: random and tiny ones, against plain passes; docs/models.md shows this list."""

from pathlib import Path

import pytest
import torch
import transformers as T
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from minirec.errors import InputError
from minirec.model import generate
from minirec.model.completions import with_marker
from minirec.model.items import FrozenItemStates, ItemEncoder
from minirec.model.policy import Policy

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "bos_token_id": None}
OLD = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512}
GPT = {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 512}
HEAD = {"head_dim": 8, "query_pre_attn_scalar": 8}
SCALED = {"embedding_multiplier": 6.0, "logits_scaling": 8.0, "residual_multiplier": 0.5}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
WORKS = {  # configuration, and lora_targets where those of the default have other names
    "llama": (T.LlamaConfig, SHAPE, None),
    "mistral": (T.MistralConfig, SHAPE | {"sliding_window": 16}, None),
    "qwen2": (T.Qwen2Config, SHAPE, None),
    "qwen3": (T.Qwen3Config, SHAPE | {"head_dim": 8}, None),
    "gemma": (T.GemmaConfig, SHAPE | {"head_dim": 8}, None),
    "gemma2": (T.Gemma2Config, SHAPE | HEAD | {"final_logit_softcapping": 1.5, "sliding_window": 16}, None),
    "gemma3_text": (T.Gemma3TextConfig, SHAPE | HEAD | {"sliding_window": 16}, None),
    "phi": (T.PhiConfig, SHAPE, ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]),
    "phi3": (T.Phi3Config, SHAPE | {"pad_token_id": 0}, None),
    "granite": (T.GraniteConfig, SHAPE | SCALED, None),
    "granitemoe": (T.GraniteMoeConfig, SHAPE | SCALED | {"num_local_experts": 4}, ["q_proj", "o_proj"]),
    "cohere": (T.CohereConfig, SHAPE | {"logit_scale": 0.0625}, None),
    "cohere2": (T.Cohere2Config, SHAPE | {"logit_scale": 0.0625, "sliding_window": 16}, None),
    "hyperclovax": (T.HyperCLOVAXConfig, SHAPE | SCALED, None),
    "olmo2": (T.Olmo2Config, SHAPE, None),
    "stablelm": (T.StableLmConfig, SHAPE, None),
    "smollm3": (T.SmolLM3Config, SHAPE | {"pad_token_id": 0}, None),
    "glm4": (T.Glm4Config, SHAPE | {"head_dim": 8, "pad_token_id": 0}, None),
    "starcoder2": (T.Starcoder2Config, SHAPE, ["q_proj", "o_proj", "c_fc", "c_proj"]),
    "mixtral": (T.MixtralConfig, SHAPE | {"num_local_experts": 4}, ["q_proj", "o_proj"]),
    "qwen2_moe": (T.Qwen2MoeConfig, SHAPE | EXPERTS | {"shared_expert_intermediate_size": 16}, None),
    "qwen3_moe": (T.Qwen3MoeConfig, SHAPE | EXPERTS | {"head_dim": 8}, ["q_proj", "o_proj"]),
    "gpt_oss": (T.GptOssConfig, SHAPE | {"head_dim": 8, "num_local_experts": 4}, ["q_proj", "o_proj"]),
    "gpt_neox": (T.GPTNeoXConfig, OLD | {"intermediate_size": 64}, ["query_key_value", "dense"]),
    "gpt2": (T.GPT2Config, GPT, ["c_attn", "c_fc", "c_proj"]),
    "gptj": (T.GPTJConfig, GPT | {"rotary_dim": 4}, ["q_proj", "fc_in"]),
    "codegen": (T.CodeGenConfig, GPT | {"rotary_dim": 4}, ["q_proj", "fc_in"]),
    "opt": (T.OPTConfig, OLD | {"ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 0}, ["q_proj", "fc1"]),
    "falcon": (T.FalconConfig, OLD | {"alibi": False}, ["q_proj", "dense"]),
}
REFUSED = {  # configuration, and why
    "falcon (alibi)": (T.FalconConfig, OLD | {"alibi": True}, "cannot read completions side by side"),
    "opt (projected)": (
        T.OPTConfig,
        OLD | {"ffn_dim": 64, "word_embed_proj_dim": 16, "pad_token_id": 0},
        "cannot read completions side by side",
    ),
    "bloom": (T.BloomConfig, {"hidden_size": 32, "n_layer": 4, "n_head": 4}, "cannot read completions side by side"),
    "mpt": (T.MptConfig, {"d_model": 32, "n_layers": 4, "n_heads": 4}, "differ from those of a plain pass"),
    "gpt_neo": (
        T.GPTNeoConfig,
        {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]]},
        "have window_size, a limit of unknown meaning",
    ),
    "mamba": (T.MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2}, "cannot be masked"),
    "rwkv": (T.RwkvConfig, {"hidden_size": 32, "num_hidden_layers": 2}, "cannot read completions side by side"),
    "jamba": (T.JambaConfig, SHAPE | {"num_experts": 2, "pad_token_id": 0}, "cannot be masked"),
    "llama4_text": (
        T.Llama4TextConfig,
        SHAPE | {"head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 64, "pad_token_id": 0},
        "cannot be masked",
    ),
}
BODIES = ["- 3 days: Blue Train, rated 5", "x"]


@pytest.fixture
def made(tiny_model, tmp_path):
    """A function: the folder of a random model of a configuration, with the tiny tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    def folder(kind, shape) -> Path:
        torch.manual_seed(0)
        config = kind(**{"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id} | shape)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return tmp_path

    return folder


def plain(policy, ids):
    """States [t, d] and log-probabilities [t, vocabulary] by the whole model, which reads one text."""
    out = policy.model(input_ids=torch.tensor([ids]), use_cache=False)
    states = policy.decoder(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
    return states, out.logits[0].float().log_softmax(-1)


def near(found, expected):
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def adapted(folder, defaults, targets, layers):
    """A policy whose top layers have an adapter that is no zero."""
    changes = {"lora_layers": layers} | ({"lora_targets": targets} if targets else {})
    policy = Policy.load(folder, defaults.policy.model_copy(update=changes))
    policy.add_adapter(0)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return policy


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", WORKS)
@torch.no_grad()
def test_vectors_and_log_probabilities_are_those_of_plain_passes(name, layers, made, defaults):
    kind, shape, targets = WORKS[name]
    policy = adapted(made(kind, shape), defaults, targets, layers)
    prompts = policy.user_bodies(BODIES)
    draws = generate.sampling_uniforms(3, [0, 1], 3, 6)
    written = generate.generate(policy, prompts, [6] * 3, draws, 1.5, keep_frozen_states=True)
    log_p, _, hidden = generate.teacher_forced(policy, prompts, written)
    for i, prompt in enumerate(prompts):
        start = policy.user_prompts.prefix + prompt
        for g, tokens in enumerate(written.tokens[i]):
            read = with_marker(policy, tokens) if written.forced[i][g] else tokens
            states, expected = plain(policy, start + read)
            near(written.hidden[i, g], states[-1])
            near(hidden[i, g], states[-1])
            near(log_p[i, g, : len(tokens)], expected[range(len(start) - 1, len(start) - 1 + len(tokens)), tokens])
    items = ItemEncoder(policy, ["Title: Blue Train", "x"])
    expected = torch.stack([plain(policy, policy.item_prompts.prefix + body)[0][-1] for body in items.bodies])
    near(items.embed(), expected)
    frozen = items.make_frozen_states()
    assert isinstance(frozen, FrozenItemStates) == bool(policy.frozen_layers)
    near(items.embed(), expected)


@pytest.mark.parametrize("layers", [None, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_read_side_by_side_is_refused_in_a_sentence(name, layers, made, defaults):
    kind, shape, reason = REFUSED[name]
    folder = made(kind, shape)
    with pytest.raises(InputError, match=reason) as raised:
        Policy.load(folder, defaults.policy.model_copy(update={"lora_layers": layers}))
    assert "\n" not in str(raised.value)


def test_the_page_of_models_lists_every_family_tried():
    rows = [line.split("|")[1:4] for line in (ROOT / "docs/models.md").read_text().splitlines() if line.startswith("|")]
    listed = [(name.strip(), state.strip(), why.strip()) for name, state, why in rows[2:]]
    works = [(name, "works", ", ".join(targets or ["default"])) for name, (_, _, targets) in WORKS.items()]
    assert listed == works + [(name, "refused", reason) for name, (_, _, reason) in REFUSED.items()]
