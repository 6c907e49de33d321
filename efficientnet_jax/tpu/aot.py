"""Programs compiled ahead of time for a TPU slice that is not there. Needs libtpu (jax[tpu]), and no TPU.

    estimated_cycles(config, 'v5e:1x1', batch=128, architecture=None, train=True, num_classes=1000) -> StepCost

gives the compiler's estimate for one device: `.cycles` per image, `.peak_bytes` of HBM, and what else StepCost lists; DoesNotFit where the
memory does not suffice. `lower_train(setup, batch_size)` is the whole train step on the devices of `slice_devices(topology)`, with its collectives.
Costs are kept beside JAX's compilation cache, where that is on, so that the same program is compiled once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from efficientnet_jax.data.augment import policies
from efficientnet_jax.errors import UserError
from efficientnet_jax.evaluation.inference import Inference, eval_step, inference_of
from efficientnet_jax.runs import mesh
from efficientnet_jax.tpu import hlo_cost
from efficientnet_jax.training.setup import Training, training_of

IMAGENET_EXAMPLES, IMAGENET_CLASSES = 1_281_167, 1000


class Generation(NamedTuple):
    """Peaks of one device, which is a chip, but on v2 and v3 one of a chip's two cores."""

    flops_per_second: float  # bfloat16
    bytes_per_second: float  # HBM
    hbm_gib: float  # what the compiler lets a program use ('exceeds available HBM (15.75G)', libtpu 0.0.42.1)
    axes: int  # of the slice's shape
    options: dict[str, Any]
    device: str = 'chip'


# Compute and bandwidth: cloud.google.com/tpu/docs, system architecture of each generation (per chip; halved for v2 and v3).
_MEGACORE = {'chip_config_name': 'megacore'}  # both cores of a chip as one device, as JAX runs them
GENERATIONS = {
    'v2': Generation(45e12 / 2, 700e9 / 2, 7.48, 2, {}, 'core'),
    'v3': Generation(123e12 / 2, 900e9 / 2, 15.48, 2, {}, 'core'),
    'v4': Generation(275e12, 1228e9, 30.75, 3, _MEGACORE),
    'v5e': Generation(197e12, 819e9, 15.75, 2, {}),
    'v5p': Generation(459e12, 2765e9, 95.74, 3, _MEGACORE),
    'v6e': Generation(918e12, 1640e9, 31.25, 2, {}),
}


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The compiler's figures for one device and one run of a program; nothing is run."""

    images: float  # a device
    cycles: float  # estimated, per image; collectives and stalls on memory are not in it
    flops: float  # per image; of loops (augmentation) the body counts once
    accessed_bytes: float  # of memory per image, likewise
    argument_bytes: int
    output_bytes: int
    alias_bytes: int  # of the outputs that take the place of donated arguments
    temp_bytes: int
    code_bytes: int
    places: dict[str, dict[str, float]]  # {'stage1': {'forward': cycles per image, 'backward': ...}}
    kinds: dict[str, float]  # {'depthwise': cycles per image}
    collectives: dict[str, dict[str, float]]  # {'all-reduce': {'count': per step, 'bytes': per device and step}}
    compile_seconds: float
    blocks: dict[str, float] = dataclasses.field(default_factory=dict)  # {'stage1_block1': cycles per image}, and as places

    @property
    def peak_bytes(self) -> int:
        """HBM that the program needs on a device."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temp_bytes + self.code_bytes


class DoesNotFit(UserError):
    """The compiler found no way to run the program in the memory of a device. needed_bytes is None where it does not tell."""

    def __init__(self, message: str):
        super().__init__(message)
        sizes = re.search(r'\(?([\d.]+)([KMGT])\)? (?:exceeds available|of [\d.]+[KMGT])', message)
        self.needed_bytes = float(sizes[1]) * 2 ** (10 * ' KMGT'.index(sizes[2])) if sizes else None


def generation(topology: str, knob: str = 'plan.topology') -> Generation:
    """Peaks of a topology's generation. Raises UserError, which names the knob, for a name that is not like 'v5e:4x4'."""
    name, _, shape = topology.partition(':')
    if name not in GENERATIONS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)+', shape) or shape.count('x') + 1 != GENERATIONS[name].axes:
        raise UserError(
            f"{knob}={topology!r} must be GENERATION:SHAPE, for example 'v5e:4x4' or 'v4:2x2x4' (v4 and v5p have three axes); "
            f'generations: {", ".join(GENERATIONS)}.'
        )
    return GENERATIONS[name]


def slice_devices(topology: str, knob: str = 'plan.topology') -> list:
    """Stand-ins for the devices of a slice. Raises UserError for a shape that cannot be, and where libtpu is not installed."""
    options = generation(topology, knob).options
    if importlib.util.find_spec('libtpu') is None:
        raise UserError(f"{knob}={topology!r} needs libtpu, the TPU compiler; install it with: pip install 'jax[tpu]'.")
    # No TPU is asked for: neither the metadata server of a TPU VM nor the chips, so several compilers may run at a time.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    from jax.experimental import topologies

    name, shape = topology.split(':')
    axes = [int(side) for side in shape.split('x')]
    host = tuple(min(side, most) for side, most in zip([*axes, 1], (2, 2, 1), strict=False))  # hosts of four chips, smaller slices one host
    try:
        with _answers():
            return topologies.get_topology_desc(topology, platform='tpu', chips_per_host_bounds=host, **options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'{knob}={topology!r} must be a shape in which {name} slices exist, sides 1, 2 or even: {reason}') from error


@contextlib.contextmanager
def _answers():
    """libtpu asks the environment what machine this is, and complains on stderr where it gets no answer; any will do, since none is used.

    Only for the moment: hosts.in_cluster would take this process for one of a pod.
    """
    made_up = {'TPU_ACCELERATOR_TYPE': 'v5litepod-4', 'TPU_WORKER_HOSTNAMES': 'localhost'}
    made_up = {name: value for name, value in made_up.items() if name not in os.environ}
    os.environ.update(made_up)
    try:
        yield
    finally:
        for name in made_up:
            del os.environ[name]


def libtpu_version() -> str:
    """Of the compiler, on which estimates depend."""
    return importlib.metadata.version('libtpu')


def abstract_batch(setup: Training, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays that mesh.put makes of a training batch (pipeline.train_batches), as shapes with shardings."""
    arrays = _images(setup.inference)
    augment = setup.augment
    if augment.policy is not None and augment.on == 'device':
        arrays['ops'] = ((policies.table(augment)[0].shape[1], 4), jnp.float32)
    if augment.mixup is not None or augment.cutmix is not None:
        arrays['mix'] = ((5,), jnp.float32)
    if augment.erase is not None:
        arrays['erase'] = ((4,), jnp.float32)
    return _abstract(setup.mesh, arrays, batch_size)


def _images(inference: Inference) -> dict[str, tuple[tuple[int, ...], Any]]:
    side = inference.preprocess.resolution
    height = side + -side % inference.mesh.shape['spatial']
    return {'image': ((height, side, 3), jnp.uint8), 'label': ((), jnp.int32)}


def _abstract(device_mesh: Mesh, arrays, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=mesh.batch_sharding(device_mesh, name))
        for name, (shape, dtype) in arrays.items()
    }


def lower_train(setup: Training, batch_size: int) -> jax.stages.Lowered:
    """The update that train runs, lowered for the devices of setup.mesh."""
    return setup.jit_train_step().lower(setup.abstract_state(), abstract_batch(setup, batch_size))


def lower_eval(inference: Inference, batch_size: int) -> jax.stages.Lowered:
    """Evaluation of a batch, lowered for the devices of inference.mesh."""
    batch = _abstract(inference.mesh, _images(inference) | {'mask': ((), jnp.bool_)}, batch_size)
    return inference.jit(eval_step).lower(inference.abstract_variables(), batch)


def estimated_cycles(
    config, topology: str = 'v5e:1x1', batch: int = 128, architecture=None, train: bool = True, num_classes: int = IMAGENET_CLASSES
) -> StepCost:
    """Cost of one step of a network on one device of a topology's kind: the update with config's recipe, or evaluation.

    architecture: in place of the config's, at its own resolution. batch: images. The augmentation policy is left out, and batch statistics
    are those of the batch. Takes a compile (B0: minutes), or none for a program that is in the cache. Raises DoesNotFit.
    """
    return cost(lower_alone(config, topology, batch, architecture, train, num_classes), topology, batch)


def lower_alone(config, topology: str, batch: int, architecture, train: bool, num_classes: int = IMAGENET_CLASSES) -> jax.stages.Lowered:
    """The program of estimated_cycles, lowered for one device of the topology; seconds."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update(batch_size=batch, eval_batch_size=batch, batch_norm_group=None, steps=1)
        config.mesh.update(data=1, spatial=1, shard_state=False)
        config.augment.update(policy=None, mixup=None, cutmix=None, erase=None)
        if architecture is not None:
            config.resolution = architecture.resolution
    device = slice_devices(topology)[:1]
    if not train:
        inference = inference_of(config, num_classes, devices=device)
        return lower_eval(inference if architecture is None else with_architecture(inference, architecture), batch)
    setup = training_of(config, num_classes, train_examples=batch, devices=device)
    if architecture is not None:
        setup = setup._replace(inference=with_architecture(setup.inference, architecture))
    return lower_train(setup, batch)


def with_architecture(inference: Inference, architecture) -> Inference:
    """The same devices and images with another architecture."""
    return inference._replace(module=inference.module.clone(architecture=architecture))


def cost(lowered: jax.stages.Lowered, topology: str, images: float) -> StepCost:
    """Compiles a lowered program and reads the compiler's figures, or takes them from the cache. images: of one run, per device.

    Raises DoesNotFit when the program does not fit into a device's memory.
    """
    path = _cache_path(lowered, topology)
    if path is not None and path.exists():
        kept = json.loads(path.read_text())
    else:
        kept = _compile(lowered, images)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f'.{os.uname().nodename}.{os.getpid()}')
            partial.write_text(json.dumps(kept))
            partial.replace(path)
    if 'does_not_fit' in kept:
        raise DoesNotFit(kept['does_not_fit'])
    return StepCost(**kept)


def _compile(lowered: jax.stages.Lowered, images: float) -> dict[str, Any]:
    """The fields of StepCost, or {'does_not_fit': message}."""
    began = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return {'does_not_fit': str(error).splitlines()[0]}
    seconds = time.monotonic() - began
    text, memory, total = compiled.as_text(), compiled.memory_analysis(), compiled.cost_analysis()
    ops = hlo_cost.ops(text)
    places: dict[str, dict[str, float]] = {}
    for op in ops:
        of = places.setdefault(hlo_cost.place(op.path), {})
        way = hlo_cost.direction(op.path)
        of[way] = of.get(way, 0) + op.cycles / images
    collectives: dict[str, dict[str, float]] = {}
    for one in hlo_cost.collectives(text):
        of = collectives.setdefault(one.kind, {'count': 0, 'bytes': 0})
        of['count'] += one.count
        of['bytes'] += one.bytes
    return {
        'images': images,
        'cycles': sum(op.cycles for op in ops) / images,
        'flops': total['flops'] / images,
        'accessed_bytes': total['bytes accessed'] / images,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes,
        'alias_bytes': memory.alias_size_in_bytes,
        'temp_bytes': memory.temp_size_in_bytes,
        'code_bytes': memory.generated_code_size_in_bytes,
        'places': places,
        'kinds': {name: cycles / images for name, cycles in hlo_cost.sums(ops, hlo_cost.kind).items()},
        'collectives': collectives,
        'compile_seconds': seconds,
        'blocks': {name: cycles / images for name, cycles in hlo_cost.sums(ops, hlo_cost.block).items()},
    }


def _cache_path(lowered: jax.stages.Lowered, topology: str) -> pathlib.Path | None:
    """Where the cost of this very program is kept: by its text, the compiler, its flags, and the code that reads its answer."""
    directory = jax.config.jax_compilation_cache_dir
    if not directory or not jax.config.jax_enable_compilation_cache:
        return None
    flags = [os.environ.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')]
    readers = [pathlib.Path(file).read_text() for file in (__file__, hlo_cost.__file__)]
    parts = [lowered.as_text(), topology, libtpu_version(), *flags, *readers]
    return pathlib.Path(directory, 'plans', hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:32] + '.json')
