"""The planner: figures read from scheduled HLO, the search for the largest batch, its errors, and that it compiles what train runs."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import default
from efficientnet_jax.data import pipeline, sources
from efficientnet_jax.errors import NotThere
from efficientnet_jax.runs.mesh import put
from efficientnet_jax.tpu import aot, hlo_cost, planner
from efficientnet_jax.training.setup import training_of
from tests import tiny

# A program in the shape of XLA's scheduled text: a loop of 16 around a conditional of two, fusions, and collectives of every form.
SCHEDULED = """HloModule jit_train_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused.1 (p: bf16[8,4,4,16]) -> bf16[8,4,4,16] {
  ROOT %multiply.1 = bf16[8,4,4,16]{3,0,2,1:T(8,128)(2,1)} multiply(%p, %p), metadata={op_name="jit(train_step)/inner"}
}

%branch.0 (p: s32[3]) -> s32[3] {
  ROOT %f.1 = s32[3]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused.1, metadata={op_name="jit(train_step)/inputs/a"}, backend_config={"window_config":{"estimated_cycles":"100"}}
}

%branch.1 (p: s32[3]) -> s32[3] {
  ROOT %f.2 = s32[3]{0:T(128)} fusion(%p), kind=kLoop, calls=%fused.1, metadata={op_name="jit(train_step)/inputs/b"}, backend_config={"window_config":{"estimated_cycles":"300"}}
}

%body (p: (s32[], s32[3])) -> (s32[], s32[3]) {
  ROOT %conditional.1 = s32[3]{0:T(128)} conditional(%p, %p, %p), branch_computations={%branch.0, %branch.1}, metadata={op_name="jit(train_step)/inputs/cond"}
}

%condition (p: (s32[], s32[3])) -> pred[] {
  %limit = s32[]{:T(128)} constant(16)
  ROOT %lt = pred[]{:T(512)} compare(%p, %limit), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %while.1 = (s32[]{:T(128)}, s32[3]{0}) while(%tuple), condition=%condition, body=%body, metadata={op_name="jit(train_step)/inputs/while"}
  %f.3 = bf16[8,4,4,16]{3,0,2,1} fusion(%p), kind=kOutput, calls=%fused.1, metadata={op_name="jit(train_step)/jvp(MBConvNet)/stage1_block2/depthwise/conv_general_dilated"}, backend_config={"window_config":{"estimated_cycles":"1000"}}
  %f.4 = bf16[8,4,4,16]{3,0,2,1} fusion(%p), kind=kOutput, calls=%fused.1, metadata={op_name="jit(train_step)/transpose(jvp(MBConvNet))/stage1_block1/depthwise/bn/mul"}, backend_config={"window_config":{"estimated_cycles":"2000"}}
  %f.5 = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused.1, metadata={op_name="jit(train_step)/optimizer/add"}, backend_config={"window_config":{"estimated_cycles":"50"}}
  %all-reduce.1 = (f32[8]{0:T(128)S(1)}, f32[4]{0}) all-reduce(%x, %y), channel_id=7, to_apply=%sum, metadata={op_name="jit(train_step)/add"}
  %collective-permute-start.1 = (bf16[2,8]{1,0}, bf16[2,8]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=3
  %collective-permute-done.1 = bf16[2,8]{1,0} collective-permute-done(%collective-permute-start.1)
  ROOT %all-gather.1 = f32[32]{0} all-gather(%p), dimensions={0}
}
"""


def test_cycles_of_scheduled_hlo():
    ops = hlo_cost.ops(SCHEDULED)
    assert hlo_cost.sums(ops, hlo_cost.place) == {'inputs': 16 * (100 + 300) / 2, 'stage1': 3000, 'optimizer': 50}
    assert hlo_cost.sums(ops, hlo_cost.direction) == {'forward': 3200 + 1000 + 50, 'backward': 2000}
    assert hlo_cost.sums(ops, hlo_cost.kind) == {'other': 3250, 'batch norm': 2000, 'depthwise': 1000}


def test_collectives_of_scheduled_hlo():
    found = {(one.kind, one.bytes, one.count) for one in hlo_cost.collectives(SCHEDULED)}
    assert found == {('all-reduce', 48, 1), ('collective-permute', 32, 1), ('all-gather', 128, 1)}


@pytest.mark.parametrize(
    ('path', 'place', 'direction', 'kind'),
    [
        ('jit(train_step)/jvp(MBConvNet)/stem/conv_general_dilated', 'stem', 'forward', 'convolution'),
        ('jit(train_step)/transpose(jvp(MBConvNet))/stage3_block1/se/reduce/dot', 'stage3', 'backward', 'squeeze-excite'),
        ('jit(train_step)/transpose(jvp(MBConvNet))/stage2_block1/rematted_computation/expand/mul', 'stage2', 'recompute', 'convolution'),
        ('jit(train_step)/jvp(MBConvNet)/Dropout_0/add', 'other', 'forward', 'other'),
    ],
)
def test_where_an_operation_belongs(path, place, direction, kind):
    assert (hlo_cost.place(path), hlo_cost.direction(path), hlo_cost.kind(path)) == (place, direction, kind)


def test_a_compiler_that_does_not_tell_is_an_error():
    with pytest.raises(ValueError, match='has no "estimated_cycles"'):
        hlo_cost.ops(SCHEDULED.replace('estimated_cycles', 'cost'))
    with pytest.raises(ValueError, match='no ENTRY computation'):
        hlo_cost.ops('module @jit_f {}')


def test_planner_and_trainer_lower_the_same_program(data_dir):
    """Shapes, names, dtypes and shardings of real batches, with all that augmentation leaves to the device."""
    config = tiny.get_config()
    config.data_dir = data_dir
    config.augment.update(policy='randaugment', on='device', mixup=0.2, erase=0.5)
    source = sources.open_source(config.dataset, config.train_split, data_dir)
    setup = training_of(config, source.num_classes, len(source))
    stream = pipeline.train_batches(source, batch_size=32, resolution=16, seed=0, augment=setup.augment, interpolation='bicubic')
    batch = put(setup.mesh, next(stream))
    stream.close()
    assert set(batch) == {'image', 'label', 'ops', 'mix', 'erase'}
    trained, planned = setup.jit_train_step().lower(setup.init(), batch), aot.lower_train(setup, 32)
    assert trained.as_text() == planned.as_text()
    assert 'jax.buffer_donor' in planned.as_text() or 'tf.aliasing_output' in planned.as_text()  # the state's buffers are reused


@pytest.mark.parametrize('limit', [3, 17, 100, 1000])
def test_search_finds_the_largest_batch(limit):
    """Of a program whose memory is a line, with the compiler's refusal beyond it."""
    config = tiny.get_config()
    config.plan.compiles = 12
    setup = training_of(config, 10, 1500, jax.devices()[:4])
    available, compiled = aot.generation('v5e:2x2').hbm_gib * 2**30, []

    def cost_of(batch):
        compiled.append(batch)
        images = batch / 4
        if images > limit:
            raise aot.DoesNotFit('RESOURCE_EXHAUSTED')
        peak = int(available * (0.1 + 0.9 * images / limit))
        return dataclasses.replace(COST, argument_bytes=peak)

    found = planner.search(config, setup, cost_of)
    best = found['batch_size'] // 4
    assert best <= limit < best + planner.granule(best) and len(set(compiled)) == len(compiled) <= 12


COST = aot.StepCost(8, 1000.0, 5e9, 2e7, 0, 10, 10, 0, 0, {'stage1': {'forward': 600.0, 'backward': 400.0}}, {'depthwise': 1000.0}, {}, 1.0)


def test_a_batch_that_no_chip_holds_is_an_error():
    config = tiny.get_config()
    setup = training_of(config, 10, 1500, jax.devices()[:4])

    def never(_):
        raise aot.DoesNotFit('RESOURCE_EXHAUSTED')

    config.plan.compiles, config.plan.search = 30, True
    with pytest.raises(aot.DoesNotFit, match=r"must fit into the memory of v5e:2x2; set remat='activations', or .* mesh.spatial"):
        planner.search(config, setup, never)


def test_what_the_compiler_says_it_needs():
    message = 'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (180.00G) exceeds available HBM (15.75G).'
    assert aot.DoesNotFit(message).needed_bytes == 180 * 2**30
    assert aot.DoesNotFit('no figure').needed_bytes is None


@pytest.mark.parametrize('topology', ['v9:2x2', 'v5e', 'v5e:2x2x1', 'v4:2x2', 'v5e:0x2', '2x2'])
def test_a_topology_that_is_none(topology):
    with pytest.raises(ValueError, match=r"plan.topology='.*' must be GENERATION:SHAPE, for example 'v5e:4x4'"):
        aot.slice_devices(topology)


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(aot.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(
        ValueError, match=r"plan.topology='v5e:2x2' needs libtpu, the TPU compiler; install it with: pip install 'jax\[tpu\]'"
    ):
        aot.slice_devices('v5e:2x2')


def test_plan_needs_no_data_set(tmp_path):
    config = default.get_config()
    config.data_dir = str(tmp_path)
    assert planner.data_of(config)[:2] == (1000, 1_281_167)
    config.plan.classes, config.plan.examples = 10, 500
    assert planner.data_of(config)[:2] == (10, 500)


def test_plan_of_a_folder_that_is_not_there_is_refused():
    config = default.get_config()
    config.dataset = 'folder:/typo'
    with pytest.raises(NotThere, match='dataset=folder:/typo has no images'):
        planner.data_of(config)


@pytest.fixture(scope='module')
def stubbed_plan(tmp_path_factory):
    """plan() with the compiler replaced: what it writes, prints and draws."""
    config, workdir = tiny.get_config(), str(tmp_path_factory.mktemp('plan'))
    config.plan.update(classes=10, examples=1500, remats=True)
    costs = iter([COST, dataclasses.replace(COST, cycles=1200.0), dataclasses.replace(COST, cycles=1300.0)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, 'slice_devices', lambda topology: jax.devices()[:4])
        patch.setattr(aot, 'lower_train', lambda setup, batch_size: None)
        patch.setattr(aot, 'cost', lambda *_: next(costs))
        return planner.plan(config, workdir), workdir


def test_plan_json_and_picture(stubbed_plan):
    result, workdir = stubbed_plan
    with open(f'{workdir}/plan.json') as f:
        assert json.load(f) == json.loads(json.dumps(result))
    with open(f'{workdir}/plan.png', 'rb') as f:
        assert f.read(4) == b'\x89PNG'
    assert result['batch_size'] == 32 and result['devices'] == 4 and result['bytes']['peak'] == 0
    assert result['bound']['by'] == 'compute' and np.isclose(result['bound']['images_per_second_per_device'], 197e12 / 5e9)
    assert result['remat']['blocks']['cycles_per_image'] == 1300 and result['advice'].startswith('remat=None: the fewest cycles')


def test_plan_table(stubbed_plan):
    text = planner.table(stubbed_plan[0])
    assert 'tiny at 16 px, float32, remat None, batch 32 on v5e:2x2' in text
    assert 'stage1' in text and '100.0%' in text and 'remat None: 1,000 cycles' in text


def test_places_stand_in_the_order_of_a_step():
    names = ['optimizer', 'stage2', 'other', 'head', 'stem', 'stage1', 'classifier', 'inputs']
    order = ['inputs', 'stem', 'stage1', 'stage2', 'head', 'classifier', 'optimizer', 'other']
    assert list(planner.in_order(dict.fromkeys(names))) == order


def test_batch_that_does_not_divide():
    config = tiny.get_config()
    config.batch_size = 30
    with pytest.raises(ValueError, match=r'batch_size=30 must be a positive multiple of 4 \(mesh data=4\)'):
        training_of(config, 10, 1500, jax.devices()[:4])


@pytest.mark.aot
@pytest.mark.parametrize('topology, spatial', [('v5e:2x2', 1), ('v4:2x2x1', 2)])
def test_plan_of_a_slice_that_is_not_there(tmp_path, topology, spatial):
    pytest.importorskip('libtpu', reason='compiling for a TPU needs libtpu')
    config = tiny.get_config()
    config.dtype = 'bfloat16'
    config.mesh.spatial = spatial
    config.plan.update(topology=topology, classes=10, examples=1500)
    result = planner.plan(config, str(tmp_path))
    assert result['devices'] == 4 and result['cycles_per_image'] > 0 and {'stem', 'stage1', 'stage2', 'optimizer'} <= set(result['places'])
    assert 0 < result['bytes']['peak'] < result['bytes']['available']
    assert result['collectives']['all-reduce']['count'] > 0
    assert ('collective-permute' in result['collectives']) == (spatial == 2)


@pytest.mark.aot
def test_cost_of_an_architecture_is_kept(tmp_path):
    pytest.importorskip('libtpu', reason='compiling for a TPU needs libtpu')
    config = tiny.get_config()
    config.augment.policy = 'randaugment'
    architecture = dataclasses.replace(tiny.ARCHITECTURES['tiny'], resolution=32)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    try:
        costs = [aot.estimated_cycles(config, batch=8, architecture=architecture, train=train) for train in (True, False, False)]
    finally:
        jax.config.update('jax_compilation_cache_dir', before)
    assert costs[0].cycles > costs[1].cycles > 0 and costs[1] == costs[2] and 'inputs' not in costs[1].places
    assert len(list(tmp_path.glob('plans/*.json'))) == 2


@pytest.mark.aot
def test_a_shape_that_no_slice_has():
    pytest.importorskip('libtpu', reason='compiling for a TPU needs libtpu')
    with pytest.raises(ValueError, match=r"plan.topology='v5e:3x3' must be a shape in which v5e slices exist"):
        aot.slice_devices('v5e:3x3')
