"""What the policy reads about an item and the vector it makes of it, against one plain pass a text."""

import pytest
import torch

from minirec.model.items import ItemEncoder
from minirec.model.policy import Policy

TEXTS = ["Title: Red", "Title: Abbey Road\nRating: 4.5", "Title: Kind of Blue"]


@pytest.fixture
def policy(tiny_model, defaults):
    """A function: the tiny policy with some settings changed."""
    return lambda **changes: Policy.load(tiny_model, defaults.policy.model_copy(update=changes))


def ids(policy, text):
    return policy.item_prompts.prefix + policy.item_prompts.encode(text)


@pytest.mark.parametrize(("system", "start"), [(None, ""), ("Be brief.", "<|im_start|>system\nBe brief.<|im_end|>\n")])
def test_an_item_prompt_asks_for_attributes_shows_the_text_and_opens_the_turn_with_the_marker(policy, system, start):
    read = policy(system=system, marker="<answer>")
    for text in TEXTS:
        assert read.tokenizer.decode(ids(read, text)) == (
            f"{start}<|im_start|>user\nName the key attributes of this item.\n{text}<|im_end|>\n"
            "<|im_start|>assistant\n<answer>"
        )


def test_a_long_text_is_cut_and_the_marker_stays(policy):
    read = policy(max_item_tokens=4, marker="<answer>")
    text = "Title: Abbey Road"
    four = read.tokenizer.decode(read.tokenizer(text)["input_ids"][:4])
    assert len(four) < len(text)
    assert ids(read, text) == ids(read, four)


@pytest.mark.parametrize("rows", [None, [1, 0]])
@pytest.mark.parametrize("pooling", ["last", "mean", "context"])
@torch.no_grad()
def test_a_vector_is_the_state_at_the_marker_or_the_mean_over_what_follows_the_instruction(policy, pooling, rows):
    read = policy(pooling=pooling)
    found = ItemEncoder(read, TEXTS).embed(rows)
    first = -1 if pooling == "last" else len(read.item_prompts.prefix)
    expected = []
    for row in rows or range(len(TEXTS)):
        states = read.decoder(input_ids=torch.tensor([ids(read, TEXTS[row])])).last_hidden_state[0]
        expected.append(states[first:].mean(0))
    assert torch.allclose(found, torch.stack(expected), atol=1e-5)
