"""Tokens that a tokenizer puts around every text do not get into the middle of a prompt."""

from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from minirec.model import prompts


def test_a_tokenizer_that_begins_every_text_with_a_token_of_its_own_adds_none_to_a_prompt(tiny_model):
    plain, adding = (AutoTokenizer.from_pretrained(tiny_model) for _ in range(2))
    start = adding.convert_tokens_to_ids("<|im_start|>")
    adding.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    assert adding("Blue")["input_ids"] == [start, *plain("Blue")["input_ids"]]
    for make, more in ((prompts.user_prompts, []), (prompts.item_prompts, [9])):
        expected, found = (make(tokenizer, "<answer>", None, *more) for tokenizer in (plain, adding))
        assert found.prefix == expected.prefix
        assert found.encode("Blue Train") == expected.encode("Blue Train")
