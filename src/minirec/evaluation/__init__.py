"""How good a recommender is: ranks, metrics with confidence intervals, baselines and comparisons (METHOD 5)."""

from minirec.evaluation.metrics import hit as hit
from minirec.evaluation.metrics import ndcg as ndcg
