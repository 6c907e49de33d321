"""What a search finds when the cost is estimated TPU cycles in place of multiply-adds: how many 5x5 depthwise convolutions are left.

    JAX_PLATFORMS=cpu python benchmarks/search_cycles_front.py --folder=runs/cycles --picture=docs/search_cycles.png

The accuracies are made up (efficientnet_jax/search/oracle.py: larger kernels help a little, beside seeded random effects) and the same for
both costs; the cycles are the TPU compiler's, from the table of efficientnet_jax/search/cycles.py, kept in the folder. Filters are the
reference's, so that a dozen networks fill the table; operator, expansion, kernel, squeeze-excite and repeats are searched. Prints a record
in Markdown.
"""

import argparse
import dataclasses
import os
import pathlib
import statistics
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from configs import default
from efficientnet_jax.reporting import pictures
from efficientnet_jax.search import cycles
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.objective import Objective, counted, pareto_front
from efficientnet_jax.search.oracle import Oracle
from efficientnet_jax.search.strategies import Seen, strategy
from efficientnet_jax.tpu import aot

COSTS = {'macs': 'multiply-adds', 'cycles': 'estimated cycles'}


def searched(space, accuracy, cost, knobs, seed, trials) -> list[Seen]:
    """All candidates of one evolution, evaluated one after the other. T only scales this reward, so it is 1."""
    objective = Objective('mnas', 'macs', 1.0, -0.07)
    chosen, seen = strategy('evolution', space, knobs, seed), {}
    for slot in range(trials):
        candidate = chosen.propose(slot, seen)
        seen[slot] = Seen(candidate, objective(accuracy(candidate), cost(candidate)), accuracy(candidate), cost(candidate))
    return list(seen.values())


def is_5x5(candidate, stage) -> bool:
    return candidate[f'stage{stage}_kernel'] == 5


def block_ratios(space, costs) -> list[tuple[int, int, float, float]]:
    """[(stage, pixels of its output, 5x5 over 3x3 in multiply-adds, in cycles)] of a candidate's stage alone: mbconv, 6 times, no more blocks."""
    rows, side = [], -(-space.base.resolution // 2)
    for stage in range(1, len(space.stages) + 1):
        side = -(-side // space.reference.stages[stage - 1].stride)
        plain = space.choose(lambda _, values: values[-1])
        both = [space.canonical(plain | {f'stage{stage}_kernel': kernel}) for kernel in (3, 5)]
        none = space.canonical(plain | {f'stage{stage}_repeats': min(space.values(stage)['repeats'])})
        fewer = [space.canonical(one | {f'stage{stage}_repeats': none[f'stage{stage}_repeats']}) for one in both]
        # Of one more block, the difference of two candidates.
        added = {name: [cost(a) - cost(b) for a, b in zip(both, fewer, strict=True)] for name, cost in costs.items()}
        rows.append((stage, side, added['macs'][1] / added['macs'][0], added['cycles'][1] / added['cycles'][0]))
    return rows


def draw(space, first, shares, seeds, path):
    """Left: what the two searches of the first seed found, accuracy against cycles. Right: share of winners with 5x5 in each stage."""
    figure, axes = pictures.new_figure(2)
    for (name, label), marker, line in zip(COSTS.items(), 'os', ('--', '-'), strict=True):
        x, y = zip(*first[name], strict=True)
        style = {'marker': marker, 'linestyle': line, 'color': 'black', 'markersize': 4, 'linewidth': 1, 'markerfacecolor': 'white'}
        axes[0].plot([cycles / 1e3 for cycles in x], y, label=f'cost: {label}', **style)
    axes[0].set(xlabel='estimated cycles an image, thousands', ylabel='accuracy (made up), %')
    axes[0].legend(frameon=False, fontsize=7)
    stages = range(1, len(space.stages) + 1)
    axes[1].set_axisbelow(True)
    for offset, (name, label), grey in zip((-0.2, 0.2), COSTS.items(), ('0.8', '0.3'), strict=True):
        heights = [100 * shares[name][stage] for stage in stages]
        axes[1].bar(
            [stage + offset for stage in stages], heights, 0.38, color=grey, edgecolor='black', linewidth=0.6, label=f'cost: {label}'
        )
    axes[1].set(xlabel='stage', ylabel=f'winners with 5x5, % of {seeds} seeds', ylim=(0, 100))
    axes[1].legend(frameon=False, fontsize=7, loc='upper left')
    pictures.save(figure, path)


def compare(space, table, config, candidates) -> None:
    """Prints the table's sums beside the compiles of whole networks."""
    print('\n| candidate | cycles by the table | of the whole network | ratio |\n|---|---|---|---|')
    for candidate in candidates:
        network = space.decode(candidate)
        whole = aot.estimated_cycles(config, config.study.chip, config.study.cycles_batch, network, config.study.cycles_train).cycles
        print(f'| {network.name} | {table(candidate):,.0f} | {whole:,.0f} | {table(candidate) / whole:.3f} |', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', required=True)
    parser.add_argument('--picture', required=True)
    parser.add_argument('--seeds', type=int, default=20)
    parser.add_argument('--trials', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--compared', type=int, default=2, help='seeds whose two winners are compiled as whole networks')
    parser.add_argument('--chip', default='v5e:1x1')
    args = parser.parse_args()
    config = default.get_config()
    config.study.update(chip=args.chip, cycles_batch=args.batch)
    config.search.population, config.search.sample = 50, 10
    full = spaces.get('efficientnet')
    space = dataclasses.replace(full, ops=('separable', 'mbconv'), filters=(1.0,), more_filters=(), skips=('identity',))
    table = cycles.cycle_cost(space, config, args.folder)
    table.fill()
    costs = {'macs': lambda candidate: counted('macs', space.decode(candidate), 224, 1000), 'cycles': table}
    stages = range(1, len(space.stages) + 1)
    best, first = {name: [] for name in COSTS}, {}
    for seed in range(args.seeds):
        accuracy = Oracle(space, seed, Objective('mnas', 'macs', 400e6, -0.07)).accuracy
        for name, cost in costs.items():
            found = searched(space, accuracy, cost, config.search, seed, args.trials)
            best[name].append(max(found, key=lambda one: one.reward))
            if seed == 0:
                points = [(table(one.candidate), 100 * one.accuracy) for one in found]
                first[name] = pareto_front(points, lambda point: point[0], lambda point: point[1])
    shares = {name: {s: statistics.fmean(is_5x5(one.candidate, s) for one in found) for s in stages} for name, found in best.items()}
    draw(space, first, shares, args.seeds, args.picture)
    print(
        f'{len(table.networks)} compiles for {args.chip}, {args.batch} images, evaluation; {args.seeds} seeds of {args.trials} candidates.\n'
    )
    print(
        '| stage | px | a 5x5 block over a 3x3 block, multiply-adds | estimated cycles | 5x5 in the best, cost multiply-adds | cost cycles |'
    )
    print('|---|---|---|---|---|---|')
    for stage, side, macs, estimated in block_ratios(space, costs):
        print(f'| {stage} | {side} | {macs:.2f} | {estimated:.2f} | {shares["macs"][stage]:.0%} | {shares["cycles"][stage]:.0%} |')
    print('\n| cost | 5x5 in stages 1 to 3 | in 4 to 7 | accuracy (made up) | multiply-adds | cycles an image |')
    print('|---|---|---|---|---|---|')
    for name, found in best.items():
        early, late = (statistics.fmean(shares[name][s] for s in part) for part in ((1, 2, 3), (4, 5, 6, 7)))
        means = [statistics.fmean(map(cost, (one.candidate for one in found))) for cost in costs.values()]
        accuracy = statistics.fmean(one.accuracy for one in found)
        print(f'| {COSTS[name]} | {early:.0%} | {late:.0%} | {accuracy:.2%} | {means[0] / 1e6:.0f}M | {means[1]:,.0f} |')
    compare(space, table, config, [one.candidate for found in best.values() for one in found[: args.compared]])


if __name__ == '__main__':
    main()
