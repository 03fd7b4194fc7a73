"""How good a recommender is: ranking, metrics, baselines and comparisons."""
