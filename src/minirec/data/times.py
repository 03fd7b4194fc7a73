"""Times of interactions: their unit, and whether they can be meant so (METHOD 1, files)."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np

from minirec.errors import InputError

NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
NEARLY_ALL = 0.95
EARLIEST = 631_152_000_000  # ms: 1990
MAX_SECONDS = 2**63 // 1000 - 1
MAX_PLACE = 1_000_000  # no user has more interactions


def milliseconds(times: np.ndarray, unit: str) -> np.ndarray:
    """Times [n] in this unit as milliseconds since 1970, rounded down; seconds beyond int64 as its last ones.

    >>> milliseconds(np.array([1_600_000_000_999_999]), "us")
    array([1600000000999])
    """
    if unit == "s":
        return times.clip(-MAX_SECONDS, MAX_SECONDS) * 1000
    return times // {"ms": 1, "us": 1000, "ns": 1_000_000}[unit]


def implausible(times: np.ndarray, unit: str) -> np.ndarray:
    """Mask [n] of the times before 1990 or after next year, if they are in this unit."""
    latest = milliseconds_of(date(datetime.now(UTC).year + 2, 1, 1))
    found = milliseconds(times, unit)
    return (found < EARLIEST) | (found >= latest)


def require_plausible(times: np.ndarray, unit: str, path: Path) -> int:
    """How many times [n] are implausible; raises InputError, with the likely unit, if nearly all are."""
    odd = int(implausible(times, unit).sum())
    if odd < NEARLY_ALL * len(times):
        return odd
    first, last = (np.datetime64(int(milliseconds(end, unit)), "ms") for end in (times.min(), times.max()))
    raise InputError(
        f"{path}: read as {NAMES[unit]} since 1970 (datasets.NAME.time_unit: {unit}), the times go from "
        f"{first.astype('datetime64[D]')} to {last.astype('datetime64[D]')}; {_likely(times)}"
    )


def _likely(times: np.ndarray) -> str:
    """What to set the unit to, as the end of a sentence; judged by the median."""
    middle = np.sort(times)[[len(times) // 2]]
    for unit, name in NAMES.items():
        if not implausible(middle, unit).any():
            return f"they look like {name}: set datasets.NAME.time_unit to {unit}"
    if times.max() <= MAX_PLACE:
        return "they look like places in a sequence: set datasets.NAME.time_unit to order"
    return "set datasets.NAME.time_unit to their unit, or to order where only their order is known"


def milliseconds_of(day: date) -> int:
    """Start of a day in UTC, in milliseconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
