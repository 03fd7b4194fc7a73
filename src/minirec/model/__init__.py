"""The language model as a recommender: prompts, generation, item vectors, whitening."""
