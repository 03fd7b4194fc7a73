"""K-means: a sample near each of as many centres as there are picks."""

from __future__ import annotations

import numpy as np

from minirec.selection.methods.registry import method
from minirec.selection.signals import Signals


@method(needs=("embeddings",))
def kmeans(signals: Signals, budget: int, generator: np.random.Generator) -> np.ndarray:
    """The sample nearest to each centre of a K-means with as many clusters as the budget, on unit vectors."""
    from sklearn.cluster import MiniBatchKMeans  # takes a second to import
    from sklearn.preprocessing import normalize

    unit = normalize(signals.embeddings)
    seed = int(generator.integers(2**31))
    clusters = MiniBatchKMeans(budget, random_state=seed, n_init=1, batch_size=max(1024, 3 * budget)).fit(unit)
    distance = np.linalg.norm(unit - clusters.cluster_centers_[clusters.labels_], axis=1)
    order = np.lexsort((distance, clusters.labels_))
    _, first = np.unique(clusters.labels_[order], return_index=True)
    nearest = order[first]
    rest = np.setdiff1d(order, nearest, assume_unique=True)  # where a cluster is empty, the outermost samples follow
    return np.concatenate([nearest, rest[np.argsort(-distance[rest], kind="stable")]])[:budget]
