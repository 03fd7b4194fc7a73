"""minirec: which few training samples are worth the RL budget of an LLM recommender?"""

__version__ = "0.1.0"
