"""What a policy makes of its model's last states, and what it is asked to write."""

import pytest
import torch

from minirec.model.policy import Policy

TEXT = "- 3 days: Blue Train, rated 5"


@pytest.fixture(params=[None, 2.0])
def policy(request, tiny_model, tiny_gemmas, defaults, tmp_path) -> Policy:
    """A Llama, and a Gemma that squashes its logits, which are many times larger than its cap."""
    loaded = Policy.load(tiny_gemmas["mixed"] if request.param else tiny_model, defaults.policy)
    if request.param:
        loaded.model.config.final_logit_softcapping = request.param
        loaded.model.get_output_embeddings().weight.data *= 20
    return loaded


@torch.no_grad()
def test_the_logits_of_a_state_are_those_of_the_model_itself(policy):
    ids = torch.tensor([policy.user_prompts.prefix + policy.user_prompts.encode(TEXT)])
    expected = policy.model(input_ids=ids).logits
    found = policy.logits(policy.decoder(input_ids=ids).last_hidden_state)
    assert torch.allclose(found, expected.float(), atol=1e-5)
    cap = (
        policy.model.config.final_logit_softcapping if hasattr(policy.model.config, "final_logit_softcapping") else None
    )
    assert cap is None or 0.9 * cap < found.abs().max() <= cap  # the cap does something


def test_a_user_prompt_says_what_the_lines_are_and_asks_for_reasons_and_what_comes_next(policy):
    made = policy.user_prompts
    asked = policy.tokenizer.decode(made.prefix + made.encode(TEXT))
    before, after = asked.split(TEXT)
    for words in ("oldest first", "time before now where known, title, rating", "Reason", "likes", "comes next"):
        assert words in before, words
    assert after.startswith("<|im_end|>")
    assert after.rstrip().endswith("<|im_start|>assistant")
