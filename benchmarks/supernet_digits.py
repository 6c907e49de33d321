"""A small supernet on digits: trained, searched by regularised evolution, and compared with candidates trained on their own.

    python benchmarks/supernet_digits.py --record=benchmarks/records/supernet_digits.md

Space: 'efficientnet' without the full convolution, on a quarter of B0's width and half its depth. Scores are on 300 digits that are held out of
the training set; the test set is not used. Evolution maximises ACC x (cost / T)^-0.07 with T the multiply-adds of the B0 of this size. Every
candidate of the comparison is trained from scratch by the normal trainer for --alone_steps, one seed.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import random
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from configs import digits
from efficientnet_jax import architectures, counting
from efficientnet_jax.runs import allocator
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search import supernet_train
from efficientnet_jax.search.finalists import worded
from efficientnet_jax.search.objective import Objective
from efficientnet_jax.search.rank_correlation import spearman
from efficientnet_jax.search.strategies import Evolution, Seen
from efficientnet_jax.training.loop import train


def setting():
    config = digits.get_config()
    config.train_split, config.eval_split = 'train[:-300]', 'train[-300:]'
    config.width, config.depth = 0.25, 0.5
    config.eval_batch_size = 300
    config.eval_every_epochs = config.checkpoint_every_epochs = 1e6
    return config


def evolve(space, evaluate, candidates, knobs):
    """Regularised evolution, one candidate after the other: [Seen]."""
    strategy, seen = Evolution(space, knobs, seed=0), {}
    for slot in range(candidates):
        seen[slot] = evaluate(strategy.propose(slot, seen))
    return list(seen.values())


def train_alone(space, candidate, steps, folder):
    """Top-1 of the moving average of a candidate that is trained by itself."""
    config = setting()
    config.steps, config.stages = steps, space.rows(candidate)
    top1 = train(config, f'{folder}/{spaces.candidate_hash(candidate)}')['metrics']['eval_ema']['top1']
    print(spaces.candidate_hash(candidate), top1, flush=True)
    return top1


def comparison(rows, macs):
    """Lines of the record: rows of (candidate, top-1 in the supernet, top-1 alone), the first chosen by the supernet."""
    drawn = rows[1:]  # the first one's choice would bias a correlation with the supernet's score
    alone = [row[2] for row in drawn]
    shared = spearman([row[1] for row in drawn], alone)
    counted = spearman([macs(row[0]) for row in drawn], alone)
    return [
        '| candidate | multiply-adds | supernet | alone |',
        '| --- | --- | --- | --- |',
        *(f'| {spaces.candidate_hash(c)} | {macs(c) / 1e6:.2f} M | {shared:.2%} | {own:.2%} |' for c, shared, own in rows),
        '',
        f'With the accuracy alone, over the random candidates: the supernet has {worded(shared)}, multiply-adds have {worded(counted)}; two-sided, by permutation.',
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=1500)
    parser.add_argument('--largest_share', type=float, default=0.2)
    parser.add_argument('--alone_steps', type=int, default=60)
    parser.add_argument('--candidates', type=int, default=40)
    parser.add_argument('--compared', type=int, default=8)
    parser.add_argument('--record')
    arguments = parser.parse_args()
    allocator.keep_freed_memory()
    config = setting()
    config.steps, config.supernet.largest_share = arguments.steps, arguments.largest_share
    space = supernet_train.scaled(dataclasses.replace(spaces.get('efficientnet'), ops=('separable', 'mbconv')), config)

    def macs(candidate):
        return counting.count(space.decode(candidate), num_classes=10)[1]

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        state, exp = supernet_train.train_supernet(config, space, f'{folder}/supernet')
        training = time.monotonic() - began
        evaluator = supernet_train.Evaluator(exp, config)
        variables = state.variables(ema=True)
        accuracy = {}

        def top1(candidate):
            key = spaces.candidate_hash(candidate)
            if key not in accuracy:
                accuracy[key] = evaluator.score(variables, candidate)['top1']
            return accuracy[key]

        b0 = space.encode(dataclasses.replace(space.base, stages=architectures.get('efficientnet_b0').stages))
        objective = Objective('mnas', 'macs', macs(b0), -0.07)

        def evaluate(candidate):
            accuracy, cost = top1(candidate), macs(candidate)
            return Seen(candidate, objective(accuracy, cost), accuracy, cost)

        def reward(candidate):
            return evaluate(candidate).reward

        began = time.monotonic()
        rng = random.Random(0)
        random_ones = [space.sample(rng) for _ in range(arguments.candidates)]
        best_random = max(random_ones, key=reward)
        config.search.population, config.search.sample = 16, 4
        seen = evolve(space, evaluate, arguments.candidates, config.search)
        searching = time.monotonic() - began
        best = max(seen, key=lambda one: one.reward).candidate
        one_program = evaluator.evaluate._cache_size()

        began = time.monotonic()
        compared = [best, *random_ones[: arguments.compared - 1]]
        alone = [train_alone(space, candidate, arguments.alone_steps, folder) for candidate in compared]
        alone_seconds = time.monotonic() - began
    rows = [(candidate, top1(candidate), own) for candidate, own in zip(compared, alone, strict=True)]
    lines = [
        '# A supernet on digits',
        '',
        f'`python benchmarks/supernet_digits.py --steps={arguments.steps} --largest_share={arguments.largest_share} --alone_steps={arguments.alone_steps} '
        f'--candidates={arguments.candidates} --compared={arguments.compared}`, {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores '
        f'({platform.machine()}), jax {jax.__version__}, one seed, the machine shared with other work.',
        '',
        f'Supernet: {arguments.steps} steps of {config.batch_size} images in {training:.0f} s, then {2 * arguments.candidates} candidates (half at random, '
        f'half by evolution) scored in {searching:.0f} s with {one_program} compiled evaluation program. Accuracies are on 300 digits held out of the training set.',
        '',
        f'Best reward after {arguments.candidates} candidates: evolution {reward(best):.4f} ({top1(best):.2%}, {macs(best) / 1e6:.2f} M multiply-adds), '
        f'random {reward(best_random):.4f} ({top1(best_random):.2%}, {macs(best_random) / 1e6:.2f} M).',
        '',
        f'Candidates trained on their own, {arguments.alone_steps} steps each, {alone_seconds:.0f} s in all. The first is the one that evolution found, the others '
        'are the first random ones.',
        '',
        *comparison(rows, macs),
    ]
    text = '\n'.join(lines) + '\n'
    print(text)
    if arguments.record:
        pathlib.Path(arguments.record).write_text(text)


if __name__ == '__main__':
    main()
