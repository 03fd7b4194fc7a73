# What `__init__.py` loads on first use, for type checkers and editors.
from minirec.evaluation import hit as hit
from minirec.evaluation import ndcg as ndcg
from minirec.selection import curriculum_order as curriculum_order
from minirec.selection import greedy as greedy
from minirec.selection import learnability as learnability
from minirec.selection import pick as pick
from minirec.selection import representativeness as representativeness
from minirec.training import gradient_and_hvp as gradient_and_hvp

__version__: str
