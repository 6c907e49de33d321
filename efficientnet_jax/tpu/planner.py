"""What a config costs on a TPU slice that is not there: its very train step, compiled ahead of time on whatever machine this is.

    python main.py --config=configs/b0.py --workdir=runs/b0_plan --mode=plan --config.plan.topology=v5e:4x4

All figures are the compiler's, of one device (a chip; on v2 and v3 one of its two cores); nothing is run, and cycles are no latency.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from efficientnet_jax import counting, models
from efficientnet_jax.data import sources
from efficientnet_jax.errors import NotThere
from efficientnet_jax.evaluation.network import as_dict
from efficientnet_jax.reporting import page, pictures
from efficientnet_jax.runs import recipe, record, secrets, storage
from efficientnet_jax.tpu import aot
from efficientnet_jax.training.setup import Training, training_of
from efficientnet_jax.weights.init_from import start as starting

GIB = 2**30
WAYS = ('forward', 'recompute', 'backward')
ENDS = {'inputs': '0', 'stem': '1', 'head': 't', 'classifier': 'u', 'optimizer': 'v', 'other': 'w'}  # stages sort between them


def plan(config, workdir: str) -> dict[str, Any]:
    """Compiles the train step for config.plan.topology; prints a table, writes plan.json and plan.png, returns the content of plan.json.

    With plan.search the batch is the largest that fits (plan.json's 'search' has what was tried), and with plan.remats the other
    policies are compiled too. Raises UserError for a topology or config that cannot be, and aot.DoesNotFit, with a way out, when the
    step needs more memory than a device has.
    """
    began = time.monotonic()
    aot.generation(config.plan.topology)
    print(f'plan: compiling the train step for {config.plan.topology}, which takes minutes.', file=sys.stderr, flush=True)
    classes, examples, note = data_of(config)
    start = starting(config, None, classes, new_head=True)

    def planned(**knobs) -> tuple[Training, aot.StepCost]:
        varied = config.copy_and_resolve_references()
        varied.update(knobs)
        setup = training_of(varied, classes, examples, aot.slice_devices(varied.plan.topology), start)
        return setup, aot.cost(aot.lower_train(setup, varied.batch_size), varied.plan.topology, varied.batch_size / setup.mesh.size)

    batch_size, found = config.batch_size, None
    if config.plan.search:
        setup = training_of(config, classes, examples, aot.slice_devices(config.plan.topology), start)
        found = search(config, setup, lambda batch: planned(batch_size=batch, eval_batch_size=batch, steps=config.steps or 1)[1])
        batch_size = found['batch_size']
    try:
        setup, cost = planned(batch_size=batch_size, **({'eval_batch_size': batch_size, 'steps': config.steps or 1} if found else {}))
    except aot.DoesNotFit as error:
        raise aot.DoesNotFit(does_not_fit(config, error)) from error
    result = summary(config, setup, cost, batch_size) | {'data': note, 'search': found}
    result['remat'] = remat_table(config.remat, cost, lambda policy: planned(remat=policy, batch_size=batch_size)[1], config.plan.remats)
    result['advice'] = advice(config, result)
    os.makedirs(workdir, exist_ok=True)
    storage.write_json(os.path.join(workdir, 'plan.json'), result)
    draw(result, os.path.join(workdir, 'plan.png'))
    page.leave(workdir, record.result('plan', as_dict(config), 0, {}, 0, time.monotonic() - began), as_dict(config))
    print(table(result))
    return result


def data_of(config) -> tuple[int, int, str]:
    """(classes, training examples, where they are from): of the data set where it is prepared, else plan.classes and plan.examples.

    Raises NotThere for a folder of images that is not there: it has no sizes that could be known without it.
    """
    classes, examples = config.plan.classes, config.plan.examples
    if classes is None or examples is None:
        try:
            source = sources.open_source(config.dataset, config.train_split, config.data_dir)
            return classes or source.num_classes, examples or len(source), source.name
        except NotThere:
            if config.dataset.startswith('folder:'):
                raise
    imagenet = aot.IMAGENET_CLASSES, aot.IMAGENET_EXAMPLES
    return classes or imagenet[0], examples or imagenet[1], 'plan.classes and plan.examples; where they are None, those of ImageNet'


def summary(config, setup: Training, cost: aot.StepCost, batch_size: int) -> dict[str, Any]:
    """plan.json without what search and remat add. Bytes are per device."""
    generation = aot.generation(config.plan.topology)
    architecture = setup.module.architecture
    _, macs = counting.count(architecture, setup.preprocess.resolution, setup.module.num_classes)
    compute, memory = cost.flops / generation.flops_per_second, cost.accessed_bytes / generation.bytes_per_second
    return {
        'model': recipe.network_name(as_dict(config)),
        'resolution': setup.preprocess.resolution,
        'topology': config.plan.topology,
        'device': generation.device,
        'devices': setup.mesh.size,
        'mesh': dict(setup.mesh.shape),
        'batch_size': batch_size,
        'images_per_device': cost.images,
        'dtype': config.dtype,
        'remat_policy': config.remat,
        'bytes': {
            'available': round(generation.hbm_gib * GIB),
            'peak': cost.peak_bytes,
            'arguments': cost.argument_bytes,
            'temporaries': cost.temp_bytes,
            'outputs not in place of arguments': cost.output_bytes - cost.alias_bytes,
            'code': cost.code_bytes,
        },
        'cycles_per_image': cost.cycles,
        'flops_per_image': cost.flops,
        'model_flops_per_image': 6 * macs,  # two for a multiply-add, forward and twice that backward
        'accessed_bytes_per_image': cost.accessed_bytes,
        'places': cost.places,
        'kinds': cost.kinds,
        'collectives': cost.collectives,
        'bound': {
            'compute_seconds_per_image': compute,
            'memory_seconds_per_image': memory,
            'images_per_second_per_device': 1 / max(compute, memory),
            'by': 'compute' if compute > memory else 'memory',
        },
        'compile_seconds': cost.compile_seconds,
        'libtpu': importlib.metadata.version('libtpu'),
        'config': secrets.public_config(as_dict(config)),
        'config_hash': recipe.config_hash(as_dict(config)),
    }


def granule(images: int) -> int:
    """Step in which batches are searched: an eighth of their size, rounded down to a power of two."""
    return max(1, 2 ** (images.bit_length() - 4))


def search(config, setup: Training, cost_of: Callable[[int], aot.StepCost]) -> dict[str, Any]:
    """The largest batch that fits, in steps of a granule, in at most plan.compiles compiles.

    Memory grows nearly linearly with the batch, so two small ones tell where the limit lies; that one is compiled, and its neighbours.
    Raises aot.DoesNotFit when one image for each mesh row does not fit.
    """
    rows, available = setup.mesh.shape['data'], aot.generation(config.plan.topology).hbm_gib * GIB
    group = config.batch_norm_group or 1
    unit = next(n for n in range(1, group + 1) if n * rows % group == 0)  # images of a mesh row, in whole groups
    unit *= 2 if (config.augment.mixup is not None or config.augment.cutmix is not None) and unit * rows % 2 else 1
    peaks: dict[int, float | None] = {}  # images of a mesh row: peak bytes; None: does not fit

    def fits(n: int) -> bool:
        try:
            peaks[n] = cost_of(n * rows).peak_bytes
        except aot.DoesNotFit:
            peaks[n] = None
        return peaks[n] is not None

    n = rounded(available / 2 / guess_bytes(setup), unit)
    while not fits(n):
        if n == unit or len(peaks) >= config.plan.compiles:
            raise aot.DoesNotFit(does_not_fit(config, f'{n} images for each of {rows} mesh rows are too many.'))
        n = rounded(n / 4, unit)
    if n > unit:
        fits(rounded(n / 2, unit))
    while len(peaks) < config.plan.compiles:
        fitting = sorted(k for k, peak in peaks.items() if peak is not None)
        best, too_many = fitting[-1], min((k for k, peak in peaks.items() if peak is None), default=None)
        last = peaks[fitting[0]], peaks[best]
        slope = (last[1] - last[0]) / (best - fitting[0]) if best > fitting[0] else last[1] / best
        n = rounded(best + (available - last[1]) / max(slope, 1), unit)
        n = n if too_many is None or n < too_many else rounded((best + too_many) / 2, unit)
        if n <= best:
            n = best + max(unit, granule(best) // unit * unit)  # one more, in case the line is too steep
        if n in peaks or (too_many is not None and n >= too_many):
            break
        fits(n)
    best = max(k for k, peak in peaks.items() if peak is not None)
    tried = [{'images_per_device': k / setup.mesh.shape['spatial'], 'peak_bytes': peaks[k]} for k in sorted(peaks)]
    return {'batch_size': best * rows, 'images_per_device': best / setup.mesh.shape['spatial'], 'tried': tried}


def rounded(images: float, unit: int) -> int:
    """Downwards to the granule and to a multiple of unit, at least one unit."""
    whole = max(unit, int(images))
    return max(unit, whole // granule(whole) * granule(whole) // unit * unit)


def guess_bytes(setup: Training) -> float:
    """A first guess of what an image takes: each convolution's result and what its batch norm makes of it, or what remat keeps."""
    rows = counting.layers(setup.module.architecture, setup.preprocess.resolution, setup.module.num_classes)
    kept = {
        None: lambda name: 2.0,
        'activations': lambda name: 1.2,
        'blocks': lambda name: 2.0 if '/project' in name or '/' not in name else 0.15,
    }
    width = setup.module.dtype(0).dtype.itemsize
    return sum(row.activations * kept[setup.module.remat](row.name) for row in rows) * width / setup.mesh.shape['spatial']


def remat_table(policy, cost: aot.StepCost, cost_of, others: bool) -> dict[str, Any]:
    """{policy: {'cycles_per_image', 'peak_bytes'}}, with only 'does_not_fit' in it where the compiler says so. None is written 'None'."""
    rows = {}
    for name in (None, *models.REMAT) if others else (policy,):
        try:
            one = cost if name == policy else cost_of(name)
            rows[str(name)] = {'cycles_per_image': one.cycles, 'peak_bytes': one.peak_bytes}
        except aot.DoesNotFit as error:
            rows[str(name)] = {'does_not_fit': str(error)}
    return rows


def advice(config, result: dict[str, Any]) -> str:
    """What to set config.remat to, from what was compiled."""
    share = result['bytes']['peak'] / result['bytes']['available']
    policy, rows = config.remat, result['remat']
    if len(rows) > 1:
        cycles = {name: row['cycles_per_image'] for name, row in rows.items() if 'does_not_fit' not in row}
        best = min(cycles, key=cycles.get)
        return f'remat={best}: the fewest cycles of what fits at this batch ({cycles[best] / cycles[str(policy)] - 1:+.0%} against remat={policy}).'
    if policy is None:
        spare = 'nothing need be recomputed' if share < 0.9 else 'a larger batch needs remat'
        return f'The step takes {share:.0%} of the memory without rematerialisation: {spare}.'
    recomputed = sum(ways.get('recompute', 0) for ways in result['places'].values()) / result['cycles_per_image']
    return f'remat={policy} takes {recomputed:.0%} of the cycles and the step {share:.0%} of the memory; plan.remats=True compares with the others.'


def does_not_fit(config, error) -> str:
    """The message for a step that a chip cannot hold, with the ways out that are left."""
    ways = [] if config.plan.search else ['plan.search=True finds the largest batch']
    ways += [f'set remat={name!r}' for name in models.REMAT if config.remat is None] + ["set remat='blocks'"] * (
        config.remat == 'activations'
    )
    ways += ['raise mesh.spatial', 'set mesh.shard_state=True' if not config.mesh.shard_state else 'take a larger slice']
    return f'batch_size={config.batch_size} must fit into the memory of {config.plan.topology}; {", or ".join(ways)}. The compiler: {error}'


def table(result: dict[str, Any]) -> str:
    """The plan for a terminal."""
    device, memory, bound = result['device'], result['bytes'], result['bound']
    lines = [
        f'{result["model"]} at {result["resolution"]} px, {result["dtype"]}, remat {result["remat_policy"]}, batch {result["batch_size"]} on '
        f'{result["topology"]}, mesh {result["mesh"]}: {result["images_per_device"]:g} images a {device}',
        f'HBM a {device}: peak {memory["peak"] / GIB:.2f} of {memory["available"] / GIB:.2f} GiB (arguments {memory["arguments"] / GIB:.2f}, '
        f'temporaries {memory["temporaries"] / GIB:.2f}, code {memory["code"] / GIB:.2f})',
        f'an image: {result["cycles_per_image"]:,.0f} estimated cycles, {result["flops_per_image"] / 1e9:.2f} GFLOP '
        f'(model {result["model_flops_per_image"] / 1e9:.2f}), {result["accessed_bytes_per_image"] / 1e9:.3f} GB',
        f'bound by {bound["by"]}: at most {bound["images_per_second_per_device"]:,.0f} images/s a {device} at the peak rates of the hardware',
        'collectives a step: '
        + (', '.join(f'{c["count"]:g} {kind} ({c["bytes"] / 2**20:.1f} MiB)' for kind, c in result['collectives'].items()) or 'none'),
        f'compiled in {result["compile_seconds"]:.0f} s, libtpu {result["libtpu"]}',
        '',
        f'{"cycles an image":16}' + ''.join(f'{way:>12}' for way in WAYS) + f'{"share":>8}',
    ]
    for place, ways in in_order(result['places']).items():
        share = sum(ways.values()) / result['cycles_per_image']
        lines.append(f'{place:16}' + ''.join(f'{ways.get(way, 0):12,.0f}' for way in WAYS) + f'{share:8.1%}')
    lines.append('by kind: ' + ', '.join(f'{kind} {cycles / result["cycles_per_image"]:.0%}' for kind, cycles in result['kinds'].items()))
    if len(result['remat']) > 1:
        shown = [
            f'{name}: '
            + ('does not fit' if 'does_not_fit' in row else f'{row["cycles_per_image"]:,.0f} cycles, {row["peak_bytes"] / GIB:.2f} GiB')
            for name, row in result['remat'].items()
        ]
        lines.append('remat ' + '; '.join(shown))
    if result['search']:
        lines.append(
            f'largest batch that fits: {result["search"]["batch_size"]}, {result["search"]["images_per_device"]:g} images a {device}'
        )
    return '\n'.join([*lines, result['advice']])


def in_order(places: dict[str, Any]) -> dict[str, Any]:
    """The parts of a step in the order in which they run."""
    return dict(sorted(places.items(), key=lambda item: ENDS.get(item[0], item[0])))


def draw(result: dict[str, Any], path: str) -> None:
    """Estimated cycles an image of each stage, forward, recomputed and backward, as a PNG."""
    figure, (axis,) = pictures.new_figure(1)
    figure.set_size_inches(7, 3.6)
    places = list(in_order(result['places']))
    bottom = [0.0] * len(places)
    for way, colour, hatch in zip(WAYS, ('0.85', 'white', '0.55'), ('', '///', ''), strict=True):
        heights = [result['places'][place].get(way, 0) / 1e3 for place in places]
        if any(heights):
            axis.bar(places, heights, 0.7, bottom, label=way, color=colour, hatch=hatch, edgecolor='black', linewidth=0.6)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axis.set_ylabel('thousand estimated cycles an image')
    axis.tick_params(axis='x', rotation=45)
    axis.grid(visible=False, axis='x')
    axis.set_axisbelow(True)
    axis.legend(frameon=False)
    axis.set_title(
        f'{result["model"]} at {result["resolution"]} px, {result["images_per_device"]:g} images a {result["device"]}, {result["topology"]}'
    )
    pictures.save(figure, path)
