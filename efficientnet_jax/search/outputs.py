"""What a search leaves in WORKDIR/search/: trials.jsonl, front.csv and front.json, search.png and .svg, winner.py.

Workers that share a workdir write the same files; each is written whole under a name of the process's own and then renamed.
"""

from __future__ import annotations

import json
import os
import shlex
import textwrap
from typing import Any

from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.runs import storage
from efficientnet_jax.runs.recipe import RUNTIME_KNOBS, flatten
from efficientnet_jax.search import plots
from efficientnet_jax.search.objective import pareto_front
from efficientnet_jax.search.settings import Setting

Record = dict[str, Any]
SHARES = ('accuracy', 'proxy', 'full', 'lowest', 'highest', 'seed_deviation')
FRONT = ('hash', 'arm', 'slot', 'cost', 'accuracy', 'reward')


def write_trials(folder: str, records: list[Record]) -> None:
    """One line a slot."""
    os.makedirs(folder, exist_ok=True)
    storage.write_text(os.path.join(folder, 'trials.jsonl'), ''.join(json.dumps(one) + '\n' for one in records))


def write(folder: str, config, found: Setting, records: list[Record]) -> dict[str, Any]:
    """All files as of these records; the facts for result.json."""
    write_trials(folder, records)
    best = best_ones(records)
    front = pareto_front(best, lambda one: one['cost'], lambda one: one['accuracy'])
    rows = [{name: one[name] for name in FRONT} for one in front]
    storage.write_text(os.path.join(folder, 'front.csv'), storage.csv_text(rows))
    storage.write_text(
        os.path.join(folder, 'front.json'),
        json.dumps([row | {'candidate': one['candidate']} for row, one in zip(rows, front, strict=True)]),
    )
    facts = {'arms': {arm: _arm(records, arm) for arm in dict.fromkeys(one['arm'] for one in records)}, 'front': len(front)}
    if best:
        write_winner(folder, config, found, best[0], f'of {slots(len(records))}', scored_on(config))
        facts['winner'] = {name: best[0][name] for name in FRONT}
        for suffix in ('png', 'svg'):
            plots.draw(records, front, found.objective, scored_on(config), f'{folder}/search.{suffix}')
    return facts


def scored_on(config) -> str:
    """Where accuracies of candidates come from, in words."""
    return 'made up by the oracle' if config.search.evaluation == 'oracle' else held_out(config)


def held_out(config) -> str:
    """The images on which whatever was trained is scored, in words."""
    return f'on {config.search.eval_split} of {config.dataset}'


def best_ones(records: list[Record]) -> list[Record]:
    """Every network that was trained to the end once, by falling reward."""
    unique = {}
    for one in records:
        if not one['failed'] and one['stopped_at'] is None:
            unique.setdefault(one['hash'], one)
    return sorted(unique.values(), key=lambda one: (-one['reward'], one['cost']))


def _arm(records: list[Record], arm: str) -> dict[str, Any]:
    of = [one for one in records if one['arm'] == arm]
    best = max(of, key=lambda one: one['reward'])
    return {
        'slots': len(of),
        'reused': sum(one['reused'] is not None for one in of),
        'stopped': sum(one['stopped_at'] is not None for one in of),
        'failed': sum(bool(one['failed']) for one in of),
        'seconds': round(sum(one['seconds'] or 0 for one in of if not one['reused']), 1),
        'best': {name: best[name] for name in FRONT},
    }


def slots(count: int) -> str:
    """'1 slot', '2 slots'."""
    return f'{count} slot' if count == 1 else f'{count} slots'


def write_winner(folder: str, config, found: Setting, one: Record, how: str, where: str) -> None:
    """An ordinary config, which main.py trains and --mode=study scales. how: it was found; where: its accuracy comes from."""
    from configs import default

    plain, here = flatten(as_dict(default.get_config())), flatten(as_dict(config))
    here['stages'] = found.space.rows(one['candidate'])
    differ = {k: v for k, v in here.items() if v != plain.get(k) and (k == 'stages' or k.split('.')[0] not in RUNTIME_KNOBS or k in _KEPT)}
    differ = {k: tuple(v) if isinstance(v, list) else v for k, v in differ.items()}
    knobs, path = config.search, shlex.quote(f'--config={folder}/winner.py')
    arms = f'{knobs.strategy} and random, {slots(knobs.trials)} each' if knobs.strategy != 'random' else f'random, {slots(knobs.trials)}'
    card = (
        f'Best {how} of a search in space {knobs.space}: {arms}, seed {config.seed}; '
        f'found by {one["arm"]}. Candidate {one["hash"]}: {knobs.cost} {one["cost"]:.6g}, accuracy {one["accuracy"]:.2%} {where}, '
        f'reward {one["reward"]:.4f} ({knobs.reward}, target {knobs.target:.6g}, w {knobs.w:g}).'
    )
    lines = [f'    config.{name} = {_literal(value)}' for name, value in sorted(differ.items())]
    text = '\n'.join(
        [
            *textwrap.wrap(f'"""{card}', 130),
            '',
            f'    python main.py {path} --workdir=runs/winner',
            f'    python main.py {path} --mode=study --config.study.kind=plan --workdir=runs/scaled',
            '"""',
            '',
            'from configs import default',
            '',
            '',
            'def get_config():',
            '    config = default.get_config()',
            *lines,
            '    return config',
        ]
    )
    os.makedirs(folder, exist_ok=True)
    storage.write_text(os.path.join(folder, 'winner.py'), text + '\n')


# Knobs that do not decide a result but are set for a data set.
_KEPT = ('data_dir', 'eval_batch_size', 'eval_every_epochs', 'checkpoint_every_epochs', 'log_every_steps')


def _literal(value: Any) -> str:
    """Python for a value; the rows of stages one a line."""
    if isinstance(value, tuple) and value and isinstance(value[0], tuple):
        return '(\n' + ''.join(f'        {row!r},\n' for row in value) + '    )'
    return repr(value)


def status_text(config, points: dict[str, dict[str, Any]], records: list[Record]) -> str:
    """Counts of each arm, and the best so far."""
    lines = []
    for arm in dict.fromkeys((config.search.strategy, 'random')):
        states = [point['state'] for point in points.values() if point['point']['arm'] == arm]
        counts = ', '.join(f'{states.count(state)} {state}' for state in ('complete', 'running', 'waiting', 'failed'))
        lines.append(f'{arm}: {counts} of {config.search.trials}')
        done = [one for one in records if one['arm'] == arm]
        if done:
            best = max(done, key=lambda one: one['reward'])
            cost = 'unknown' if best['cost'] is None else f'{best["cost"]:.4g}'
            lines.append(
                f'  best: {best["hash"]}, reward {best["reward"]:.4f}, accuracy {best["accuracy"]:.2%}, {config.search.cost} {cost}'
            )
    return '\n'.join(lines)


def table(headings: tuple[str, ...], rows: list[dict[str, Any]]) -> str:
    """Markdown."""

    def cell(name, value):
        if value is None:
            return ''
        if name in SHARES:
            return f'{value:.2%}'
        return f'{value:.4g}' if isinstance(value, float) or name in ('cost', 'whole_cost') else str(value)

    lines = [headings, ['---'] * len(headings), *([cell(name, row[name]) for name in headings] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def write_table(folder: str, name: str, text: str, content: dict[str, Any]) -> dict[str, Any]:
    """NAME.md, NAME.csv and NAME.json; the content without its rows, for result.json."""
    os.makedirs(folder, exist_ok=True)
    storage.write_text(os.path.join(folder, f'{name}.md'), text)
    storage.write_text(os.path.join(folder, f'{name}.csv'), storage.csv_text(content['rows']))
    storage.write_text(os.path.join(folder, f'{name}.json'), json.dumps(content, indent=2))
    return {key: value for key, value in content.items() if key != 'rows'}
