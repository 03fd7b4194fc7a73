"""why: print why a sample was picked or passed over, and what would have to change."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minirec.cli.show import align, short

LINE = 88  # most characters of a title or completion
TITLES = 5  # last titles of a history that are shown
COMPLETIONS = 8
RANGES = 3  # more ranges of a number say nothing
LABELS = {  # numbers of a sample
    "mean_reward": "mean reward",
    "reward_std": "standard deviation of the rewards",
    "gradient_norm": "gradient length",
    "error_norm": "error length",
}


def run(*, folder: Path, sample: int | None = None, json: bool = False) -> None:
    """Print why a sample was picked or not; without a sample, some ids to ask for. Raises InputError."""
    from minirec.report.why import Explanation  # takes seconds to import

    explanation = Explanation(folder)
    answer: Any = explanation.examples() if sample is None else explanation.explain(sample)
    if json:
        text = json_format.dumps(answer, indent=2, ensure_ascii=False) + "\n"
    else:
        text = listed(answer, folder) if sample is None else screen(answer)
    sys.stdout.write(text)


def listed(examples: list[dict[str, Any]], folder: Path) -> str:
    """Some samples with their ids, so that one can be asked for."""
    lines = [["sample", "", "last of the history", "target"]]
    for one in examples:
        place = f"pick {one['pick']}" if one["pick"] else "not picked"
        lines.append([str(one["sample_id"]), place, short(one["history"][-1], "", 40), short(one["target"], "", 40)])
    return f"{align(lines, '')}\nask for one: minirec why {folder} {examples[-1]['sample_id']}\n"


def screen(about: dict[str, Any]) -> str:
    """All about a sample, on one screen."""
    method, pick = about["method"], about["pick"]
    place = f"is pick {pick:,} of {about['budget']:,}" if pick else f"is not among the {about['budget']:,} picks"
    history = about["history"]
    label = f"history, last {TITLES} of {len(history)}" if len(history) > TITLES else "history"
    names = [label, *[""] * (len(history[-TITLES:]) - 1), "target"]
    titles = [short(title, "", LINE) for title in (*history[-TITLES:], about["target"])]
    text = f"sample {about['sample_id']} {place} by {method}\n{align(zip(names, titles, strict=True))}"
    if about["completions"]:
        rows = [["", "reward", "rank", "completion"]]
        for number, one in enumerate(about["completions"][:COMPLETIONS], 1):
            rows.append([str(number), f"{one['reward']:.3f}", f"{one['rank']:,}", short(one["text"].strip(), "", LINE)])
        text += f"\n{align(rows)}"
    if about.get("left_by_its_shard"):
        return text + "\nIt is not among the picks of its shard, so the last round did not see it.\n"
    if about["signals"]:
        text += f"\n{align(_numbers(about))}"
    if near := about.get("nearest"):
        text += f"  nearest{' earlier' if pick else ''}: {_named(near)}, distance {near['distance']:.3f}\n"
    if about["places"]:
        text += f"\nplace by each method, of {about['samples']:,} samples\n{align(_places(about['places']))}"
        if any(one["drawn"] for one in about["places"]):
            text += "  * the seed decides, too\n"
    return f"{text}\nwhat decides, all else equal\n" + "".join(f"  {one}\n" for one in sentences(about))


def _numbers(about: dict[str, Any]) -> Iterator[list[str]]:
    yield ["", "sample", "median of the picks", "median of all"]
    for name, values in about["signals"].items():
        shown = [_number(values[of]) for of in ("sample", "picks", "all")]
        yield [LABELS.get(name, name), *shown]
    for name in ("diversity", "value"):
        if about.get(name) is not None:
            when = "at its turn" if about["pick"] else "after the last pick"
            yield [f"{name} {when}", _number(about[name]), "", ""]


def _places(places: list[dict[str, Any]]) -> Iterator[list[str]]:
    """Two methods a line."""
    cells = []
    for one in places:
        place = f"{one['place']:,}" if one["place"] else f"not in the first {one['of']:,}"
        cells.append([one["method"], place + ("*" if one["drawn"] else "")])
    half = (len(cells) + 1) // 2
    for left, right in zip(cells[:half], [*cells[half:], ["", ""]], strict=False):
        yield [*left, *right]


def _number(value: float) -> str:
    """Three decimals, or two digits of a smaller number; a whole number as such."""
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.2g}"


def _named(pick: dict[str, Any]) -> str:
    return f"pick {pick['pick']:,} (sample {pick['sample_id']}, {short(pick['target'], '', 40)})"


def sentences(about: dict[str, Any]) -> Iterator[str]:
    """What would have to change for the sample to be picked, or to be picked no more."""
    change, method, pick = about["change"], about["method"], about["pick"]
    if change.get("chance"):
        yield f"{method} draws; no number of this sample alone decides, and another seed may decide otherwise."
        return
    if "vectors" in change:
        yield f"{method} compares the embeddings of all samples; no number of this sample alone decides."
        return
    if "value" in change:
        yield from _of_greedy(change, pick)
    own = next((one for one in about["places"] if one["method"] == method), None)
    if not pick and own and own["drawn"]:
        yield "The seed draws among samples that are as good; another seed may draw it. With this seed:"
    elif not pick and own and own["place"]:
        yield f"With a budget of {own['place']:,} it would be picked."
    ranges = change["ranges"]
    if not ranges:
        yield "No single one of its numbers changes that."
    for name, spans in ranges.items():
        label = LABELS.get(name, name)
        if not spans:
            yield f"No {label} would be enough."
        elif len(spans) > RANGES:
            yield f"Its {label} matters, but in no simple range: the draws depend on it."
        else:
            listed = " or ".join(f"{_number(low)} to {_number(high)}" for low, high in spans)
            yield f"It {'is' if pick else 'would be'} picked with {label} {listed}."


def _of_greedy(change: dict[str, Any], pick: int | None) -> Iterator[str]:
    value, least = change["value"], _number(change["least_value"])
    if pick:
        yield f"Its value before diversity is {_number(value)}; it is picked with any above {least}."
        return
    place = f"at turn {change['turn']:,} in place of {_named(change['winner'])}"
    yield f"Its value before diversity is {_number(value)}; above {least} it would be picked, {place}."
    near = change.get("closest")
    if near and value > change["last_value"]:
        last = f"the last pick has only {_number(change['last_value'])}"
        yield f"Its value is large enough ({last}), but it is too close to {_named(near['to'])}."
    if near and near["needed"] <= 2:
        distance = f"{near['distance']:.3f}; above {near['needed']:.3f} it would be picked"
        yield f"At turn {near['turn']:,} its distance to {_named(near['to'])} is {distance}."
