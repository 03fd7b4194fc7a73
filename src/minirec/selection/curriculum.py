"""The curriculum: the order of training, from easy to hard within random groups (METHOD 4.7)."""

from __future__ import annotations

import random

import numpy as np


def groups(count: int, group_size: int) -> np.ndarray:
    """Number of the group [count] at each position in training: groups of about `group_size`, the last takes the rest.

    >>> groups(7, group_size=3).tolist()
    [0, 0, 0, 1, 1, 1, 1]
    """
    number = max(1, count // group_size)
    return np.minimum(np.arange(count) // max(1, count // number), number - 1)


def curriculum_order(sample_id: np.ndarray, mean_reward: np.ndarray, group_size: int, seed: int) -> np.ndarray:
    """Sample ids [k] in training order: shuffled, cut into groups, each sorted from easy to hard (METHOD 4.7).

    mean_reward [k]: of the samples sample_id [k], in any order; the highest is the easiest.

    >>> curriculum_order(np.array([7, 8, 9]), np.array([0.1, 0.9, 0.5]), group_size=64, seed=0).tolist()
    [8, 9, 7]
    """
    reward_of = dict(zip(np.asarray(sample_id).tolist(), np.asarray(mean_reward).tolist(), strict=True))
    ids = sorted(reward_of)
    random.Random(seed).shuffle(ids)
    group = groups(len(ids), group_size)
    place = sorted(range(len(ids)), key=lambda i: (group[i], -reward_of[ids[i]]))
    return np.array([ids[i] for i in place], dtype=np.int64)
