"""Pictures of a search, readable in black and white: reward over slots, and accuracy against cost with the front."""

from __future__ import annotations

import itertools
from typing import Any

from efficientnet_jax.reporting.pictures import LINES, logarithmic, new_figure, save
from efficientnet_jax.search.objective import COSTS, Objective

MARKERS = ('o', 'x')


def draw(records: list[dict[str, Any]], front: list[dict[str, Any]], objective: Objective, scored_on: str, path: str) -> None:
    """Writes the picture to `path`, in the format of its suffix. scored_on: where the accuracies come from."""
    from matplotlib.ticker import MaxNLocator

    figure, (reward, accuracy) = new_figure(2)
    known = [one for one in records if not one['failed']]
    for arm, marker, line in zip(dict.fromkeys(one['arm'] for one in known), MARKERS, LINES, strict=False):
        of = [one for one in known if one['arm'] == arm]
        slots = [one['slot'] for one in of]
        best = list(itertools.accumulate((one['reward'] for one in of), max))
        reward.plot(slots, [one['reward'] for one in of], marker, color='0.6', markersize=3, markerfacecolor='none')
        reward.step(slots, best, line, where='post', color='black', linewidth=1, label=f'{arm}, best so far')
        full = [one for one in of if one['stopped_at'] is None]
        points = [one['cost'] for one in full], [100 * one['accuracy'] for one in full]
        accuracy.plot(*points, marker, color='0.5', markersize=4, markerfacecolor='none', label=arm)
    accuracy.step(
        [one['cost'] for one in front],
        [100 * one['accuracy'] for one in front],
        '-',
        where='post',
        color='black',
        linewidth=1,
        label='front',
    )
    accuracy.axvline(objective.target, color='0.7', linestyle=':', linewidth=1, label='target')
    reward.set(xlabel='slot', ylabel=f'reward ({objective.reward})')
    accuracy.set(xlabel=COSTS[objective.cost], ylabel=f'accuracy, %, {scored_on}')
    logarithmic(accuracy, 'x')
    reward.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in (reward, accuracy):
        axis.legend(frameon=False, fontsize=7)
    save(figure, path)
