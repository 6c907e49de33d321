"""Faults of wiring, each put into a copy of the repository alone, with the default tests that must notice it.

    python tests/mutations.py                      all of them, a line each, as benchmarks/records/mutations.md has them
    python tests/mutations.py --only=warm-up,flip  those whose names contain one of these

A fault is a text of one file and what it becomes. The named test files are a part of the default tests; the first failure ends them.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
COPIED = ('efficientnet_jax', 'tests', 'configs', 'benchmarks', 'main.py', 'pyproject.toml', 'launch', 'examples')


class Fault(NamedTuple):
    """One change of wiring. tests: files of tests/ that must fail with it, run until the first failure."""

    name: str
    file: str  # in efficientnet_jax/
    text: str  # occurs once
    fault: str
    tests: tuple[str, ...]


WIRING, RECIPE, PIPELINE = 'training/test_wiring.py', 'training/test_recipe.py', 'data/test_pipeline.py'
FAULTS_TEST, SCHEDULE, ORDER = 'runs/test_faults.py', 'training/test_schedule.py', 'data/test_order.py'
FAULTS = (
    Fault('dropout key without the step', 'training/step.py', 'fold_in(jax.random.key(recipe.seed), state.step)', 'key(recipe.seed)', (WIRING,)),
    Fault('dropout key without the seed', 'training/step.py', 'fold_in(jax.random.key(recipe.seed), state.step)', 'fold_in(jax.random.key(0), state.step)', (WIRING,)),
    Fault('label smoothing not passed on', 'training/setup.py', 'label_smoothing=config.label_smoothing', 'label_smoothing=0.0', (WIRING,)),
    Fault('label smoothing not applied', 'training/step.py', ', recipe.label_smoothing)', ')', (WIRING,)),
    Fault('moving average of the weights alone', 'training/step.py', "{'params': params, 'batch_stats': batch_stats}, ema,", "{'params': params, 'batch_stats': ema['batch_stats']}, ema,", (WIRING,)),
    Fault('moving average without its warm-up', 'training/step.py', '1 - ema_decay(recipe.ema_decay, step))', '1 - recipe.ema_decay)', (WIRING,)),
    Fault('moving average off by an update', 'training/step.py', 'ema_decay(recipe.ema_decay, step)', 'ema_decay(recipe.ema_decay, state.step)', (WIRING,)),
    Fault('running statistics not kept', 'training/step.py', 'batch_stats=batch_stats, opt_state', 'batch_stats=state.batch_stats, opt_state', (WIRING, 'training/test_step.py')),
    Fault('weight decay on batch norm', 'training/optim.py', "all(key.key != 'bn' for key in path)", 'True', (WIRING,)),
    Fault('weight decay not passed on', 'training/optim.py', 'add_decayed_weights(config.weight_decay', 'add_decayed_weights(0.0', (WIRING,)),
    Fault('momentum not passed on', 'training/optim.py', 'optax.sgd(rate, momentum=config.momentum)', 'optax.sgd(rate, momentum=0.9)', (WIRING,)),
    Fault('warm-up in steps', 'training/optim.py', 'int(config.warmup_epochs * horizon.steps_per_epoch)', 'int(config.warmup_epochs)', (RECIPE,)),
    Fault('warm-up from the peak', 'training/optim.py', 'peak * step / max(1, warmup_steps)', 'peak', (RECIPE,)),
    Fault('peak rate without the batch size', 'training/optim.py', 'config.lr_per_256 * config.batch_size / 256', 'config.lr_per_256', (RECIPE,)),
    Fault('decay without a staircase', 'training/optim.py', 'staircase=True', 'staircase=False', (RECIPE,)),
    Fault('cosine counted from step 0', 'training/optim.py', 'cosine(step - warmup_steps)', 'cosine(step)', (RECIPE,)),
    Fault('rmsprop with epsilon outside the root', 'training/optim.py', 'eps_in_sqrt=True', 'eps_in_sqrt=False', (RECIPE,)),
    Fault('backbone multiplier on the classifier', 'training/optim.py', "name != 'classifier', value)", "name == 'classifier', value)", ('weights/test_init_from.py',)),
    Fault('frozen backbone still learns', 'training/setup.py', 'frozen=config.backbone_lr_multiplier == 0', 'frozen=False', (WIRING,)),
    Fault('batch-norm group not passed on', 'training/setup.py', 'batch_norm_group=config.batch_norm_group', 'batch_norm_group=None', (WIRING,)),
    Fault('remat not passed on', 'training/setup.py', 'remat=config.remat', 'remat=None', (WIRING,)),
    Fault('frozen batch norm not passed on', 'training/setup.py', 'freeze_batch_norm=config.freeze_batch_norm', 'freeze_batch_norm=False', (WIRING,)),
    Fault('state not sharded', 'training/setup.py', 'shard_state=config.mesh.shard_state', 'shard_state=False', (WIRING,)),
    Fault('augmentation options not passed on', 'training/setup.py', 'Augment(**config.augment)', 'Augment()', (WIRING, 'training/test_inputs.py')),
    Fault('mesh options not passed on', 'evaluation/inference.py', '(config.mesh.data, config.mesh.spatial) if split', '(-1, 1) if split', (WIRING,)),
    Fault('dtype not passed on', 'evaluation/network.py', 'DTYPES[config.dtype]', 'jnp.float32', (WIRING,)),
    Fault('evaluation with batch statistics', 'evaluation/inference.py', "    logits = module.apply(variables, pixels(preprocess, batch), train=False)\n    return metric", "    logits, _ = module.apply(variables, pixels(preprocess, batch), train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(0)})\n    return metric", (WIRING,)),
    Fault('evaluation counts the padding', 'evaluation/inference.py', "return metric_sums(logits, batch['label'], batch['mask'])\n", "return metric_sums(logits, batch['label'])\n", (WIRING,)),
    Fault('evaluation scores the raw weights twice', 'training/setup.py', 'state.variables(ema=True), meshes', 'state.variables(), meshes', (WIRING,)),
    Fault('last batch of an evaluation dropped', 'data/pipeline.py', 'steps, size = -(-n // batch_size)', 'steps, size = n // batch_size', (PIPELINE,)),
    Fault('best checkpoint by the raw weights', 'evaluation/score.py', "scores.get('eval_ema') or scores['eval']", "scores['eval']", (WIRING,)),
    Fault('score not passed to the checkpoint', 'training/loop.py', 'None if scores is None else best_top1(scores)', 'None', (WIRING,)),
    Fault('seed ignored by initialisation', 'training/state.py', 'module.init(jax.random.key(seed)', 'module.init(jax.random.key(0)', (WIRING,)),
    Fault('seed ignored by the order of examples', 'data/pipeline.py', 'order.TrainOrder(len(source), seed)', 'order.TrainOrder(len(source), 0)', (WIRING, PIPELINE)),
    Fault('seed ignored by augmentation', 'data/order.py', 'key(seed, epochs, indices, 1)', 'key(0, epochs, indices, 1)', (ORDER,)),
    Fault('epoch ignored by augmentation', 'data/order.py', 'key(seed, epochs, indices, 1)', 'key(seed, indices, 1)', (ORDER,)),
    Fault('seed not passed to the stream', 'training/stream.py', 'seed=config.seed', 'seed=0', (WIRING,)),
    Fault('stream begins at the first batch', 'training/stream.py', 'start_step=number', 'start_step=0', (WIRING,)),
    Fault('interpolation not passed to the stream', 'training/stream.py', 'interpolation=preprocess.interpolation', "interpolation='bicubic'", (WIRING,)),
    Fault('flip always', 'data/crops.py', '< augment.flip', '< 1.0', (PIPELINE,)),
    Fault('crop and flip from one draw', 'data/crops.py', '_stream(seed, 1)', 'tf.zeros_like(seed)', (PIPELINE,)),
    Fault('hosts take the same examples', 'data/order.py', 'step * batch_size + process_index * local', 'step * batch_size', (ORDER,)),
    Fault('skipped batches are not skipped', 'training/loop.py', 'run.stream.start(step + int(state.skipped))\n    return', 'run.stream.start(step)\n    return', (FAULTS_TEST,)),
    Fault('evaluation without a save', 'training/schedule.py', 'save |= evaluate', 'save |= last', (SCHEDULE,)),
    Fault('no evaluation at the end', 'training/schedule.py', 'evaluate = last or since == 0', 'evaluate = since == 0', (SCHEDULE,)),
    Fault('metrics of the updates before a stop lost', 'training/loop.py', 'if due.log or stopping:', 'if due.log:', (FAULTS_TEST,)),
    Fault('a stop is not obeyed', 'training/loop.py', 'stopping = run.stop.asked()', 'stopping = False', (FAULTS_TEST,)),
    Fault('an evaluation is not interrupted', 'training/loop.py', 'run.score(state, run.stop.asked)', 'run.score(state)', ('training/test_interruptions.py',)),
    Fault('an owed evaluation is forgotten', 'training/loop.py', 'owed = step > 0 and', 'owed = False and', ('training/test_interruptions.py',)),
    Fault('a rollback leaves newer checkpoints', 'training/rollback.py', '    checkpoints.discard_after(step)\n', '', (FAULTS_TEST, 'training/test_interruptions.py')),
    Fault('a state with NaN is saved', 'runs/checkpoint.py', '            integrity.check_finite(state)\n', '            pass\n', ('training/test_interruptions.py',)),
    Fault('other classes pass on resume', 'runs/workdir.py', '        check_same_data(workdir, there, data)\n', '        pass\n', ('runs/test_record.py',)),
    Fault('a preemption counts against a point', 'queue/trials.py', "== 'expired' for trial in failed", "!= 'lost' for trial in failed", ('queue/test_trials.py',)),
    Fault('evaluation renumbers no classes', 'evaluation/evaluate.py', 'with_classes_of(', '(lambda source, *_: source)(', ('evaluation/test_evaluate.py', 'evaluation/test_classes.py')),
)  # fmt: skip


def copy(folder: pathlib.Path) -> None:
    """The repository without what was made in it."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns('__pycache__', '*.pyc'))
        else:
            shutil.copy(source, folder / name)


def noticed_by(fault: Fault, python: str = sys.executable) -> str | None:
    """The first of its tests that fails with it, or None when all pass. Raises RuntimeError where the tests did not run."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy(folder)
        path = folder / 'efficientnet_jax' / fault.file
        text = path.read_text()
        if text.count(fault.text) < 1:
            raise RuntimeError(f'{fault.name}: {fault.file} has no {fault.text!r} any more.')
        path.write_text(text.replace(fault.text, fault.fault))
        command = [python, '-m', 'pytest', '-x', '-q', '--no-header', '-p', 'no:cacheprovider', *(f'tests/{one}' for one in fault.tests)]
        done = subprocess.run(command, cwd=folder, env=os.environ | {'PYTHONPATH': str(folder)}, capture_output=True, text=True)
    failed = [line.split(' ')[1] for line in done.stdout.splitlines() if line.startswith('FAILED ')]
    if done.returncode not in (0, 1) or (done.returncode == 1 and not failed):
        raise RuntimeError(f'{fault.name}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
    return failed[0].removeprefix('tests/') if failed else None


def main() -> None:
    """Prints a table as Markdown; ends with 1 where a fault was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', default='', help='parts of names, separated by commas')
    words = [word for word in parser.parse_args().only.split(',') if word]
    print('| fault | file | noticed by | seconds |\n| --- | --- | --- | --- |', flush=True)
    missed = []
    for fault in (fault for fault in FAULTS if not words or any(word in fault.name for word in words)):
        began = time.monotonic()
        found = noticed_by(fault)
        print(f'| {fault.name} | {fault.file} | {found or "**nothing**"} | {time.monotonic() - began:.0f} |', flush=True)
        missed += [] if found else [fault.name]
    if missed:
        sys.exit(f'Not noticed: {", ".join(missed)}.')


if __name__ == '__main__':
    main()
