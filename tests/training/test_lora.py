"""Derivatives by the LoRA weights, against a full Hessian and a plain forward pass."""

import json

import numpy as np
import pytest
import torch
from conftest import PASSES
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from minirec.data import splits
from minirec.errors import InputError
from minirec.experiment import config
from minirec.experiment.sections import Generation
from minirec.model.completions import has_marker, with_marker
from minirec.model.policy import Policy
from minirec.model.whitening import Whitening
from minirec.stages import gradient, rollout
from minirec.storage import tables, tensors
from minirec.training import derivatives, lora_derivatives

TAU = 0.5


def exact_norm(self, x):
    """Llama's, which is otherwise computed in float32 whatever its input."""
    return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.fixture(params=["last", "mean", "context"])
def policy(request, tiny_model, defaults, monkeypatch):
    """A policy in float64 with few trained weights, none of which is zero."""
    monkeypatch.setattr(LlamaRMSNorm, "forward", exact_norm)
    changes = {"pooling": request.param, "tau": TAU, "lora_r": 1, "lora_targets": ["q_proj", "down_proj"]}
    loaded = Policy.load(tiny_model, defaults.policy.model_copy(update=changes | {"lora_layers": 1}))
    loaded.add_adapter(seed=0)
    loaded.model.double()
    torch.manual_seed(3)
    for name, weight in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    loaded.model.eval()
    return loaded


PROMPT = "- 3 days: Kind of Blue, rated 5"
TEXTS = ([5, 9, 17], [30], [41, 8])
ADVANTAGE = torch.tensor([1.0, -0.4, 0.7]).double()


def plain_loss(policy, items, target, masked):
    """METHOD 4.4 with a forward pass of its own for every completion, differentiable in every way."""
    prefix = policy.user_prompts.prefix
    prompt = policy.user_prompts.encode(PROMPT)
    total = 0
    for text, advantage in zip(TEXTS, ADVANTAGE, strict=True):
        full = text if has_marker(policy, text) else with_marker(policy, text)
        ids = torch.tensor([[*prefix, *prompt, *full]])
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            states = policy.decoder(input_ids=ids).last_hidden_state[0]
        pooled = {
            "last": states[-1],
            "mean": states[-len(full) :].mean(0),
            "context": states[len(prefix) :].mean(0),
        }[policy.settings.pooling]
        cosine = torch.nn.functional.normalize(pooled, dim=0) @ torch.nn.functional.normalize(items, dim=1).T
        out = torch.zeros(len(items), dtype=torch.bool)
        out[masked] = True
        out[target] = False
        log_pi = (cosine / TAU).masked_fill(out, -torch.inf).log_softmax(0)[target]
        total = total - advantage * (log_pi - log_pi.detach()).exp() / len(TEXTS)
    return total


def test_g_and_hv_equal_the_full_hessian_of_a_plain_forward_pass(policy):
    items = torch.randn(12, policy.width, generator=torch.Generator().manual_seed(0)).double()
    loss = lora_derivatives.ItemLoss(policy, items, Whitening.identity())
    weights = {name: p.detach() for name, p in loss.named_parameters() if "lora_" in name}
    reading = lora_derivatives.PackedSample(policy, policy.user_prompts.encode(PROMPT), TEXTS)
    given = (torch.tensor(4), torch.tensor([1, 7, 4, -1]), torch.arange(12), ADVANTAGE)
    g, hv = lora_derivatives.gradient_and_hvp(loss, weights, reading, *given)
    trained = {f"policy_model.{name}": p for name, p in policy.model.named_parameters() if "lora_" in name}
    for weight in trained.values():
        weight.requires_grad_(True)
    first = torch.autograd.grad(plain_loss(policy, items, 4, [1, 7]), list(trained.values()), create_graph=True)
    flat = torch.cat([part.flatten() for part in first])
    hessian = torch.stack(
        [
            torch.cat([p.flatten() for p in torch.autograd.grad(value, list(trained.values()), retain_graph=True)])
            for value in flat
        ]
    )
    assert len(flat) == 32 + 32 + 64 + 32
    assert torch.allclose(torch.cat([part.flatten() for part in g.values()]), flat, rtol=1e-9, atol=1e-12)
    product = torch.cat([part.flatten() for part in hv.values()])
    assert product.norm() > 1e-3
    assert (product - hessian @ flat.detach()).norm() <= 1e-9 * product.norm()


def test_the_sparse_projection_is_linear_seeded_and_keeps_cosines():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 60_000, generator=generator).double()
    b = 0.6 * a + 0.8 * b
    project = lora_derivatives.Projection(60_000, 4_096, seed=1)

    def sketch(x, use=project):
        return use({"w": x[:50_000].view(100, 500), "x": x[50_000:]})

    assert torch.allclose(sketch(2 * a - b), 2 * sketch(a) - sketch(b))
    assert torch.equal(sketch(a), sketch(a, lora_derivatives.Projection(60_000, 4_096, seed=1)))
    assert not torch.equal(sketch(a), sketch(a, lora_derivatives.Projection(60_000, 4_096, seed=2)))
    assert torch.cosine_similarity(sketch(a), sketch(b), dim=0) == pytest.approx(0.6, abs=4 / 4_096**0.5)
    assert sketch(a).norm() == pytest.approx(a.norm(), rel=4 / 4_096**0.5)


@pytest.fixture(scope="module")
def tried(judged, defaults, tmp_path_factory):
    """A rollout by the adapter, and the settings behind it."""
    folder = tmp_path_factory.mktemp("tried")
    given = config.validate(
        config.overlay(json.loads(defaults.model_dump_json()), {"gradient": {"space": "lora", "dimensions": 64}})
    )
    files = {"rollouts": folder / "rollouts.parquet", "hidden": folder / "hidden.safetensors"}
    sections = {name: getattr(given, name) for name in ("policy", "sampling", "reward", "rollout")}
    rollout.run(**sections, passes=PASSES, generation=Generation(), **judged, **files)
    return given, files


def run(judged, given, files, folder, **changes):
    out = {"gradients": folder / "gradients.safetensors", "embeddings": folder / "embeddings.safetensors"}
    paths = {**judged, **files, **out} | changes.pop("paths", {})
    gradient.run(policy=given.policy, gradient=given.gradient.model_copy(update=changes), passes=PASSES, **paths)
    return [tensors.read(file) for file in out.values()]


def test_a_reading_pools_the_states_that_the_rollout_kept(judged, defaults, tried):
    given, files = tried
    policy = Policy.load(judged["model"], given.policy, judged["adapter"])
    split = splits.load(judged["samples"], judged["catalogue"], "train", given.policy.prompt_history)
    tokens = tables.read("rollouts", files["rollouts"])["tokens"].to_pylist()
    kept = tensors.read(files["hidden"])["hidden"]
    for i, prompt in enumerate(policy.user_bodies(split.bodies)):
        found = lora_derivatives.PackedSample(policy, prompt, tokens[3 * i : 3 * i + 3]).pooled()
        assert np.allclose(found.detach().numpy(), kept[i], atol=1e-4)


@pytest.mark.parametrize("name", ["eager", "sliding", "mixed"])
def test_a_reading_sees_what_a_plain_pass_of_each_completion_sees(tiny_model, tiny_gemmas, defaults, name):
    settings = defaults.policy.model_copy(update={"pooling": "last", "lora_layers": 1})
    policy = Policy.load(tiny_gemmas.get(name, tiny_model), settings)
    policy.model.set_attn_implementation("eager")
    prompt = policy.user_prompts.encode(PROMPT)
    found = lora_derivatives.PackedSample(policy, prompt, TEXTS).pooled()
    for state, text in zip(found, TEXTS, strict=True):
        ids = torch.tensor([[*policy.user_prompts.prefix, *prompt, *text, *policy.marker_ids]])
        assert torch.allclose(state, policy.decoder(input_ids=ids).last_hidden_state[0, -1], atol=1e-5)


@pytest.mark.parametrize("candidates", [None, 12])
def test_the_stage_writes_projected_derivatives_of_every_sample(judged, tried, tmp_path, candidates):
    given, files = tried
    found, embedded = run(judged, given, files, tmp_path, advantage="group", candidates=candidates)
    states = tensors.read(files["hidden"])
    assert found["sample_id"].tolist() == states["sample_id"].tolist()
    assert found["gradient"].shape == found["hvp"].shape == (22, 64)
    assert np.allclose(embedded["embedding"], states["hidden"].mean(1), atol=1e-5)
    policy = Policy.load(judged["model"], given.policy, judged["adapter"])
    items = torch.from_numpy(tensors.read(judged["item_table"])["items"])
    split = splits.load(judged["samples"], judged["catalogue"], "train", given.policy.prompt_history)
    table = tables.read("rollouts", files["rollouts"])
    drawn = derivatives.sampled_candidates(split.sample_id, 30, candidates, given.gradient.seed)
    trained = [p.requires_grad_() for name, p in sorted(policy.model.named_parameters()) if "lora_" in name]
    project = lora_derivatives.Projection(sum(p.numel() for p in trained), 64, given.gradient.seed)
    for i in (0, 9, 21):
        rows = table.slice(3 * i, 3).to_pylist()
        reading = lora_derivatives.PackedSample(
            policy, policy.user_prompts.encode(split.bodies[i]), [row["tokens"] for row in rows]
        )
        scores = torch.nn.functional.normalize(reading.pooled(), dim=1) @ torch.nn.functional.normalize(items, dim=1).T
        out = torch.zeros(30, dtype=torch.bool)
        if drawn is not None:
            out[:] = True
            out[drawn[i]] = False
        out[split.history[i][split.history[i] >= 0]] = True
        out[split.target[i]] = False
        log_p = (scores / given.policy.tau).masked_fill(out, -torch.inf).log_softmax(1)
        log_pi = log_p[:, split.target[i]]
        error = log_p.detach().exp()
        error[:, split.target[i]] -= 1
        assert found["error_norm"][i] == pytest.approx(error.norm(dim=1).mean().item(), rel=1e-3)
        loss = -(torch.tensor([row["advantage"] for row in rows]) * (log_pi - log_pi.detach()).exp()).mean()
        expected = project(dict(enumerate(torch.autograd.grad(loss, trained))))
        assert np.allclose(found["gradient"][i], expected.numpy(), rtol=1e-3, atol=1e-5)


def test_space_lora_needs_the_policy(judged, tried, tmp_path):
    given, files = tried
    with pytest.raises(InputError, match="needs --catalogue, --model and --adapter"):
        run(judged, given, files, tmp_path, paths={"adapter": None})
