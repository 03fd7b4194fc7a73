"""Sizes of the paper's two models, as their config.json says them: for measurements with random weights."""

from typing import Any

SHAPES: dict[str, dict[str, Any]] = {  # keywords of transformers' AutoConfig.for_model
    "Gemma-2-2B": {
        "model_type": "gemma2",
        "num_hidden_layers": 26,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 256_000,
    },
    "Qwen2.5-3B": {
        "model_type": "qwen2",
        "num_hidden_layers": 36,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
        "tie_word_embeddings": True,
    },
}
