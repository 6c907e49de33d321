"""The slots of a search on the queue that all workers share: each arm has a strategy and as many slots as every other.

A slot is queued when a worker wants work and none waits: its candidate is what the arm's strategy proposes from the slots that are done.
Two workers that do so at the same moment queue two trials of one key, of which the first counts (trials.py), so the budget is exact.
A network that another slot has evaluated is not trained again: the slot takes over its result, and counts.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from efficientnet_jax.queue import trials
from efficientnet_jax.search.space import Candidate, Space, candidate_hash
from efficientnet_jax.search.strategies import Seen, Strategy

Record = dict[str, Any]


class Slots:
    """A trials.Queue whose points are proposed as they are wanted; study.trained.work takes it for one.

    queue: of all workers. arms: {name: strategy}, each with `count` slots. cost: of a candidate before it is evaluated, or None where that
    is not known. changed: called with all records when slots were finished, here or elsewhere. ahead: whether claims tell what is next.
    """

    def __init__(
        self, queue: trials.Queue, space: Space, arms: Mapping[str, Strategy], count: int, cost: Callable[[Candidate], float] | None,
        changed: Callable[[list[Record]], None] = lambda records: None, ahead: bool = False,
    ):  # fmt: skip
        self._queue, self._space, self._arms, self._count, self._cost = queue, space, arms, count, cost
        self._changed, self._ahead = changed, ahead
        self._began, self._at_start = time.monotonic(), None
        self._known: dict[tuple[str, int], Record] = {}  # by key and trial: a failed slot may be tried again
        self._claim: trials.Claim | None = None

    def claim(self) -> trials.Claim | None:
        """The next slot to evaluate, or None where all are done, run elsewhere or wait for results."""
        points = self._look()
        self._claim = self._queue.claim()
        while self._claim is None and self._propose(points):
            self._claim = self._queue.claim()
            points = self._queue.points()
        if self._claim is not None and self._ahead:
            proposed = self._next(self._queue.points())
            self._claim.point['next'] = proposed and self._space.tokens(proposed[2])
        return self._claim

    def reap(self) -> list[str]:
        """Frees what workers that are gone had claimed; returns the keys."""
        return self._queue.reap()

    def finished(self) -> bool:
        """Whether every slot of every arm is complete or failed."""
        points = self._look()
        return len(points) == self._count * len(self._arms) and all(point['state'] in ('complete', 'failed') for point in points.values())

    def twin(self, key: str) -> dict[str, Any]:
        """{'result': what another slot with the same network has, or None, 'wait': whether another worker is about to have one}."""
        points = self._queue.points()
        mine = points[key]
        others = [(name, p) for name, p in points.items() if name != key and p['point']['hash'] == mine['point']['hash']]
        for name, point in others:
            if point['state'] == 'complete':
                kept = _result(point)
                return {'result': kept | {'reward': point['values'][0], 'reused': kept.get('reused') or name}, 'wait': False}
        wait = any(point['state'] == 'running' and point['number'] < mine['number'] for _, point in others)
        if wait:
            self._queue.reap()
        return {'result': None, 'wait': wait}

    def go_on(self, rung: int, reward: float, factor: int) -> bool:
        """Notes the reward that the claimed slot has at a rung; whether it is of the best of `factor` that its arm had there."""
        rungs = self._claim.trial.user_attrs.get('rungs', [])[:rung] + [reward]
        self._claim.trial.set_user_attr('rungs', rungs)
        arm = self._claim.point['arm']
        there = {}
        for key, point in self._queue.points().items():
            had = _result(point).get('rungs') or point['attributes'].get('rungs') or []
            if point['point']['arm'] == arm and key != self._claim.key and len(had) > rung:
                there[point['point']['hash']] = had[rung]
        better = sum(other > reward for other in there.values())
        return better < max(1, math.ceil((len(there) + 1) / factor))

    def rungs(self) -> list[float]:
        """Rewards of the claimed slot at its rungs so far."""
        return self._claim.trial.user_attrs.get('rungs', [])

    def records(self, points: dict[str, dict[str, Any]] | None = None) -> list[Record]:
        """What is known of every slot that is done, in the order of slots."""
        points = self._queue.points() if points is None else points
        done = {(key, p['number']): p for key, p in points.items() if p['state'] in ('complete', 'failed')}
        self._known |= {name: self._record(point) for name, point in done.items() if name not in self._known}
        return sorted((self._known[name] for name in done), key=lambda record: (record['slot'], record['arm']))

    def _record(self, point: dict[str, Any]) -> Record:
        """A line of trials.jsonl. A failed slot has accuracy and reward 0."""
        at, kept = point['point'], _result(point)
        candidate = self._space.from_tokens(at['tokens'])
        failed = kept.get('failed') if point['state'] == 'complete' else point['why'] or 'unknown'
        cost = kept.get('cost')
        if cost is None and self._cost is not None:
            cost = self._cost(candidate)
        return {
            'arm': at['arm'],
            'slot': at['slot'],
            'hash': at['hash'],
            'candidate': candidate,
            'accuracy': kept['accuracy'] if point['state'] == 'complete' else 0.0,
            'cost': cost,
            'reward': point['values'][0] if point['state'] == 'complete' else 0.0,
            'seconds': kept.get('seconds'),
            'reused': kept.get('reused'),
            'stopped_at': kept.get('stopped_at'),
            'failed': failed,
        }

    def _next(self, points) -> tuple[str, int, Candidate] | None:
        """(arm, slot, candidate) of the next slot to queue: of the arm that is behind, unless it waits for results."""
        seen: dict[str, dict[int, Seen]] = {arm: {} for arm in self._arms}
        for one in self.records(points):
            cost = math.inf if one['cost'] is None else one['cost']
            seen[one['arm']][one['slot']] = Seen(one['candidate'], one['reward'], one['accuracy'], cost)
        busy = {point['point']['hash'] for point in points.values() if point['state'] in ('waiting', 'running')}
        slots = {arm: next(slot for slot in range(self._count + 1) if key_of(arm, slot) not in points) for arm in self._arms}
        for arm, slot in sorted(slots.items(), key=lambda item: item[1]):
            candidate = self._arms[arm].propose(slot, seen[arm]) if slot < self._count else None
            if candidate is not None and candidate_hash(candidate) not in busy:
                return arm, slot, candidate
        return None

    def _propose(self, points) -> bool:
        proposed = self._next(points)
        if proposed is None:
            return False
        arm, slot, candidate = proposed
        point = {'arm': arm, 'slot': slot, 'hash': candidate_hash(candidate), 'tokens': self._space.tokens(candidate)}
        self._queue.add({key_of(arm, slot): point})
        return True

    def _look(self) -> dict[str, dict[str, Any]]:
        """All points; a line for each slot that was finished since the last look."""
        points = self._queue.points()
        before = set(self._known)
        records = self.records(points)
        if self._at_start is None:
            self._at_start = len(records)
            if records:
                say(f'{len(records)} of {self._count * len(self._arms)} slots are done already.')
            self._changed(records)
        elif len(records) > len(before):
            for name in sorted(set(self._known) - before):
                say(self._line(self._known[name], records))
            self._changed(records)
        return points

    def _line(self, one: Record, records: list[Record]) -> str:
        total = self._count * len(self._arms)
        left = (time.monotonic() - self._began) / max(1, len(records) - self._at_start) * (total - len(records))
        arms = {arm: [r['reward'] for r in records if r['arm'] == arm] for arm in self._arms}
        best = ', '.join(f'{arm} {max(rewards):.4f}' for arm, rewards in arms.items() if rewards)
        how = f'as {one["reused"]}' if one['reused'] else f'stopped at step {one["stopped_at"]}' if one['stopped_at'] else ''
        how = f'failed: {one["failed"]}' if one['failed'] else how
        cost = 'unknown' if one['cost'] is None else f'{one["cost"]:.4g}'
        return (
            f'{len(records)}/{total}  {one["arm"]} {one["slot"]}  reward {one["reward"]:.4f}  accuracy {one["accuracy"]:.2%}  cost {cost}  '
            f'{f"{how}  " if how else ""}best: {best}  {left / 60:.0f} min left'
        )


def _result(point: dict[str, Any]) -> dict[str, Any]:
    """What run.evaluate kept of a completed slot, in one attribute: each is a write that waits for the disk."""
    return point['attributes'].get('result', {})


def key_of(arm: str, slot: int) -> str:
    """The queue's key of a slot; keys sort by slot."""
    return f'{arm}_{slot:05d}'


def say(text: str) -> None:
    """A line for the terminal, beside what the mode prints as its result."""
    print(text, file=sys.stderr, flush=True)
