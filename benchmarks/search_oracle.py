"""Every strategy against random search at equal cost, on an analytic accuracy with a known optimum (efficientnet_jax/search/oracle.py).

    python benchmarks/search_oracle.py --seeds=20 --trials=600

Prints a Markdown table: reward of the best candidate found, and how much of random search's distance to the optimum is left.
"""

import argparse
import collections
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import default
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.objective import Objective
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.strategies import STRATEGIES, Seen, strategy


def best_of(name, space, oracle, knobs, seed, trials):
    """Reward of the best of `trials` candidates, evaluated one after the other."""
    chosen, seen = strategy(name, space, knobs, seed), {}
    for slot in range(trials):
        candidate = chosen.propose(slot, seen)
        accuracy, macs = oracle.accuracy(candidate), oracle.macs(candidate)
        seen[slot] = Seen(candidate, oracle.objective(accuracy, macs), accuracy, macs)
    return max(one.reward for one in seen.values())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--trials', type=int, default=600)
    parser.add_argument('--strategies', default=','.join(STRATEGIES))
    args = parser.parse_args()
    knobs, space = default.get_config().search, spaces.get('efficientnet')
    knobs.population, knobs.sample = 50, 10  # of 600 trials
    objective = Objective('mnas', 'macs', 400e6, -0.07)
    found, seconds, optima = collections.defaultdict(list), collections.Counter(), []
    for seed in range(args.seeds):
        oracle = Oracle(space, seed, objective)
        optima.append(oracle.optimum()[1])
        for name in args.strategies.split(','):
            began = time.monotonic()
            found[name].append(best_of(name, space, oracle, knobs, seed, args.trials))
            seconds[name] += time.monotonic() - began
    print(f'{args.seeds} seeds, {args.trials} candidates each; mean optimum {statistics.mean(optima):.4f}.\n')
    print(
        "| strategy | best reward, mean | standard deviation | better than random, seeds | distance to the optimum, of random's | s a search |"
    )
    print('|---|---|---|---|---|---|')
    for name, rewards in found.items():
        wins = sum(a > b for a, b in zip(rewards, found['random'], strict=True))
        left = statistics.mean((o - a) / (o - b) for o, a, b in zip(optima, rewards, found['random'], strict=True))
        spread = statistics.stdev(rewards) if len(rewards) > 1 else 0.0
        beaten = '-' if name == 'random' else f'{wins} of {len(rewards)}'
        print(f'| {name} | {statistics.mean(rewards):.4f} | {spread:.4f} | {beaten} | {left:.0%} | {seconds[name] / len(rewards):.1f} |')


if __name__ == '__main__':
    main()
