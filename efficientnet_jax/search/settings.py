"""What a search is about, from its config, with every check that needs no compilation."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from efficientnet_jax.data import sources
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.queue import trials
from efficientnet_jax.runs import hosts, options, recipe
from efficientnet_jax.search import cycles, holdout, masks, proxy, strategies, supernet_train
from efficientnet_jax.search import objective as objectives
from efficientnet_jax.search import space as spaces
from efficientnet_jax.search.objective import Objective
from efficientnet_jax.search.space import Candidate, Space

# Knobs of config.search that do not decide what a slot's result is.
RUNTIME = (
    'action', 'storage', 'name', 'lease_seconds', 'retry', 'compile_ahead', 'keep_checkpoints', 'finalists', 'checked', 'check_seeds',
    'seeds',
)  # fmt: skip


class Setting(NamedTuple):
    """What a search needs beside its config."""

    space: Space  # with the stem, head, width and depth of the config
    objective: Objective
    cost: Callable[[Candidate], float] | None  # for process 0; None: it is measured when a candidate is trained
    num_classes: int


def setting(config, workdir: str) -> Setting:
    """Raises UserError for a knob that cannot work, or a target below the cost of every candidate."""
    options.check(config)
    knobs = config.search
    if knobs.cost == 'step_seconds' and knobs.evaluation != 'train':
        raise UserError(f"search.cost='step_seconds' needs search.evaluation='train', not {knobs.evaluation!r}, which runs no update.")
    space, aim = space_of(config), objectives.objective(config)
    strategies.strategy(knobs.strategy, space, knobs, config.seed)
    num_classes = 1000
    if knobs.evaluation != 'oracle':  # which needs no images
        holdout.check(config)
        num_classes = sources.open_source(config.dataset, knobs.train_split, config.data_dir).num_classes
        proxy.check(config, space, [masks.smallest(space), masks.largest(space)])
    if knobs.evaluation == 'supernet':
        one = supernet_config(config)
        supernet_train.build(space_of(one), one, num_classes, len(sources.open_source(one.dataset, one.train_split, one.data_dir)))
    cost = cost_of(config, workdir, space, num_classes)
    if knobs.cost in ('macs', 'params', 'activations'):  # no compile is behind these
        check_target(config, space, cost)
    return Setting(space, aim, cost, num_classes)


def space_of(config) -> Space:
    """The space of config.search with its `ops`, at the width and depth of the config. Raises UserError for unknown ops."""
    space, ops = spaces.get(config.search.space), tuple(config.search.ops)
    unknown = [op for op in ops if op not in space.ops]
    if unknown or not ops:
        raise UserError(f'search.ops={ops} must name some of {", ".join(space.ops)}.')
    return supernet_train.scaled(dataclasses.replace(space, ops=ops), config)


def supernet_config(config):
    """The config that trains the supernet and scores its candidates."""
    one, knobs = config.copy_and_resolve_references(), config.search
    one.update(train_split=knobs.train_split, eval_split=knobs.eval_split)
    values = {'epochs': config.supernet.epochs, 'steps': config.supernet.steps, 'resolution': knobs.resolution}
    for knob, value in values.items():
        if value is not None:
            one[knob] = value
    return one


def cost_of(config, workdir: str, space: Space, num_classes: int) -> Callable[[Candidate], float] | None:
    """The cost of a candidate at the resolution of the network that is searched; None for what is measured when it is trained."""
    name = config.search.cost
    if name == 'step_seconds':
        return None
    if name == 'cycles':
        return cycles.cycle_cost(space, config, os.path.join(workdir, 'search'))
    return lambda candidate: objectives.counted(name, space.decode(candidate), space.base.resolution, num_classes)


def check_target(config, space: Space, cost) -> None:
    """Raises UserError where the cheapest candidate costs more than search.target."""
    _, least = space.smallest(cost)
    if config.search.target < least:
        raise UserError(
            f'search.target={config.search.target:.4g} can be met by no candidate of space {space.name}: the cheapest has {least:.4g} '
            f'({config.search.cost}). Raise search.target, or lower width, depth or resolution.'
        )


def on_process_0(make: Callable[[], Any]) -> Any:
    """What make() returns, on process 0; None on the others. Raises on all what it raises."""
    made = []
    hosts.on_first(lambda: made.append(make()))
    return made[0] if made else None


def storage_of(config, workdir: str) -> str:
    """search.storage, or the journal in the workdir."""
    return config.search.storage or f'journal:{os.path.join(os.path.abspath(workdir), "search", "trials.journal")}'


def journal_of(config, workdir: str) -> str | None:
    """The path of the search's journal; None where it is kept in a database."""
    kind, _, path = storage_of(config, workdir).partition(':')
    return path if kind == 'journal' else None


def open_queue(config, workdir: str, found: Setting, suffix: str = '') -> trials.Queue:
    """The queue of the search, or another one of it (finalists, ...). Raises what trials.open_study raises."""
    knobs = config.search
    decides = {name: value for name, value in as_dict(knobs).items() if name not in RUNTIME}
    if knobs.evaluation == 'supernet':
        decides['supernet'] = as_dict(config.supernet)
    if knobs.cost == 'cycles':
        decides |= {name: config.study[name] for name in ('chip', 'cycles_batch', 'cycles_train')}
    if knobs.cost == 'step_seconds':
        decides['device'] = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    settings: dict[str, Any] = recipe.recipe_of(as_dict(config)) | {'search': decides}
    settings |= {'space': {'name': found.space.name, 'version': found.space.version}}
    queue = trials.open_study(storage_of(config, workdir), knobs.name + suffix, recipe.flatten(settings), lease_seconds=knobs.lease_seconds)
    if knobs.retry:
        queue.retry()
    return queue
