"""Candidates trained in full: the finalists of a search, and what its proxy is worth. All accuracies are of the hold-out."""

from __future__ import annotations

import functools
import os
import statistics
from typing import Any

import jax

from efficientnet_jax.errors import UserError
from efficientnet_jax.runs import hosts
from efficientnet_jax.search import outputs, proxy
from efficientnet_jax.search.rank_correlation import Rank, spearman
from efficientnet_jax.search.settings import Setting, on_process_0, open_queue
from efficientnet_jax.search.space import Candidate, candidate_hash
from efficientnet_jax.study.trained import work
from efficientnet_jax.tpu import aot


def finalists(config, workdir: str, found: Setting, best: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Trains `best` (records; on process 0) with search.seeds seeds each; table, rank correlation with the proxy, and the winner's config."""
    seeds = range(config.seed, config.seed + config.search.seeds)
    if best == []:
        raise UserError('search.action=finalists has no candidate: none was trained to its end; --config.search.action=status tells why.')
    plan = best and {f'{one["hash"]}_s{seed}': _run(found, 'full', one['candidate'], seed) for one in best for seed in seeds}
    results = _train_all(config, workdir, found, '_finalists', plan, None)

    def summary():
        rows = [row for one in best if (row := _finalist(config, one, results, seeds, found)) is not None]
        if not rows:
            raise UserError('None of the finalists could be trained; the log says why. --config.search.retry=True tries again.')
        rank = spearman([row['proxy'] for row in rows], [row['accuracy'] for row in rows])
        winner = max(rows, key=lambda row: row['reward'])
        text = outputs.table(tuple(rows[0]), rows)
        text += f'\nProxy against training in full, hold-out: {worded(rank)}. The proxy chose these, which narrows what it can show.\n'
        print(text, end='')
        folder = os.path.join(workdir, 'search')
        chosen = next(one for one in best if one['hash'] == winner['hash'])
        scores = {name: winner[name] for name in ('accuracy', 'reward')} | {'cost': winner.get('whole_cost', winner['cost'])}
        outputs.write_winner(folder, config, found, chosen | scores, 'trained in full', outputs.held_out(config))
        return outputs.write_table(folder, 'finalists', text, {'rows': rows, 'rank': rank._asdict(), 'winner': winner})

    return hosts.on_first(summary)


def proxy_check(config, workdir: str, found: Setting, candidates: list[Candidate], score) -> dict[str, Any]:
    """Rank correlation of the proxy with training in full, beside that of the cost alone, and the proxy's spread over seeds."""
    first, knobs = config.seed, config.search
    proxy_seeds = range(first, first + (1 if knobs.evaluation == 'supernet' else knobs.check_seeds))  # a supernet has one score
    plan = {}
    for candidate in candidates:
        for kind, seeds in (('proxy', proxy_seeds), ('full', range(first, first + knobs.seeds))):
            plan |= {f'{kind}_{candidate_hash(candidate)}_s{seed}': _run(found, kind, candidate, seed) for seed in seeds}
    results = _train_all(config, workdir, found, '_proxy_check', plan, score)

    def summary():
        rows = []
        for candidate in candidates:
            name = candidate_hash(candidate)
            of = {kind: [r['accuracy'] for key, r in results.items() if key.startswith(f'{kind}_{name}_s')] for kind in ('proxy', 'full')}
            if all(of.values()):
                spread = statistics.stdev(of['proxy']) if len(of['proxy']) > 1 else None
                cost = next(r['cost'] for key, r in results.items() if key.startswith(f'proxy_{name}_s'))
                row = {'hash': name, 'cost': cost, 'proxy': statistics.mean(of['proxy']), 'seed_deviation': spread}
                rows.append(row | {'full': statistics.mean(of['full'])})
        if not rows:
            raise UserError('No candidate could be trained; the log says why. --config.search.retry=True tries again.')
        accuracies = [row['full'] for row in rows]
        facts = {
            'rank': spearman([row['proxy'] for row in rows], accuracies)._asdict(),
            'rank_of_cost': spearman([row['cost'] for row in rows], accuracies)._asdict(),
            'deviation_between_candidates': statistics.stdev(row['proxy'] for row in rows) if len(rows) > 1 else None,
            'deviation_between_seeds': _pooled([row['seed_deviation'] for row in rows]),
        }
        text = outputs.table(('hash', 'cost', 'proxy', 'seed_deviation', 'full'), rows) + _worth(facts, knobs.cost)
        print(text, end='')
        return outputs.write_table(os.path.join(workdir, 'search'), 'proxy_check', text, {'rows': rows, **facts})

    return hosts.on_first(summary)


def worded(rank: Rank) -> str:
    """A rank correlation in words, or why there is none."""
    if rank.correlation is None:
        return f'no rank correlation from {rank.n} networks of {"equal accuracy" if rank.n > 2 else "which three are needed"}'
    return f'Spearman correlation {rank.correlation:.2f} (p = {rank.p:.2f}, {rank.n} networks)'


def _worth(facts: dict[str, Any], cost: str) -> str:
    between, within = facts['deviation_between_candidates'], facts['deviation_between_seeds']
    spread = '' if between is None else f' Standard deviation of the proxy: {between:.2%} between candidates'
    spread += f', {within:.2%} between seeds of one.' if spread and within is not None else '.' if spread else ''
    return (
        f'\nProxy against training in full, hold-out: {worded(Rank(**facts["rank"]))}; {cost} alone: {worded(Rank(**facts["rank_of_cost"]))}.'
        f'{spread}\n'
    )


def _pooled(deviations: list[float | None]) -> float | None:
    known = [deviation for deviation in deviations if deviation is not None]
    return statistics.mean(deviation**2 for deviation in known) ** 0.5 if known else None


def _run(found: Setting, kind: str, candidate: Candidate, seed: int) -> dict[str, Any]:
    return {'kind': kind, 'hash': candidate_hash(candidate), 'tokens': found.space.tokens(candidate), 'seed': seed}


def _train_all(config, workdir: str, found: Setting, suffix: str, plan, score) -> dict[str, dict[str, Any]] | None:
    """{key: what was found} of the runs of plan, when all are done; on process 0, None on the others."""

    def open_it():
        queue = open_queue(config, workdir, found, suffix)
        queue.add(plan)
        return queue

    queue = on_process_0(open_it)
    work(queue, functools.partial(_evaluate, config, found, score, os.path.join(workdir, 'search')))
    return queue and {result['key']: result['attributes'] for result in queue.results()}


def _evaluate(config, found: Setting, score, folder: str, key: str, point: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    candidate = found.space.from_tokens(point['tokens'])
    where = os.path.join(folder, point['kind'], f'{point["hash"]}_s{point["seed"]}')
    if point['kind'] == 'full' or config.search.evaluation == 'train':
        jax.clear_caches()  # programs of other candidates, which no run here needs again
    if point['kind'] == 'proxy':
        kept = score(candidate, where, None, point['seed'])
    else:
        one = config.copy_and_resolve_references()
        one.seed = point['seed']
        kept = proxy.trained(proxy.full_config(one, found.space, candidate), where, None, [], config.search)
    seconds = kept.pop('step_seconds', None)
    kept['cost'] = hosts.on_first(lambda: seconds if found.cost is None else found.cost(candidate))
    return kept['accuracy'], kept


def _finalist(config, one: dict[str, Any], results, seeds, found: Setting) -> dict[str, Any] | None:
    """A row of the table; None where no seed could be trained. Estimated cycles are those of the whole network, compiled here."""
    got = [results[f'{one["hash"]}_s{seed}']['accuracy'] for seed in seeds if f'{one["hash"]}_s{seed}' in results]
    if not got:
        return None
    row, cost = {'hash': one['hash'], 'arm': one['arm'], 'cost': one['cost']}, one['cost']
    if config.search.cost == 'cycles':
        knobs, network = config.study, found.space.decode(one['candidate'])
        row['whole_cost'] = cost = aot.estimated_cycles(config, knobs.chip, knobs.cycles_batch, network, knobs.cycles_train).cycles
    mean = statistics.mean(got)
    row |= {'proxy': one['accuracy'], 'accuracy': mean, 'lowest': min(got), 'highest': max(got)}
    return row | {'reward': found.objective(mean, cost), 'seeds': len(got)}
