"""Images per second of this project's train step and inference beside timm's, on whatever device is there.

    python benchmarks/step_time.py --timm_python=/path/to/an/environment/with/timm/bin/python
    # A GPU, everything in one environment:
    python benchmarks/step_time.py --dtype=bfloat16 --steps=10 --contenders=ours,timm_compiled --settings=efficientnet_b0:256:224,efficientnet_b4:64:380

Same batch, dtype policy, optimiser (RMSProp), weight decay, label smoothing, dropout, stochastic depth and moving average. Every
contender is a process of its own; all compile at the same time, then they take turns, --steps each, so that a busy machine slows all alike; the reported ratio is the
median over rounds of the ratio within a round. This project normalises uint8 images inside the step; timm is given normalised floats.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONTENDERS = ('ours', 'timm', 'timm_channels_last', 'timm_compiled')
MODES = ('train', 'infer')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--settings', default='efficientnet_b0:16:224', help='MODEL:BATCH:PIXELS,...; the name is the same in timm')
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--steps', type=int, default=1, help='a turn is so many steps, waited for at its end; on a GPU 10 or more')
    parser.add_argument('--contenders', default='ours,timm,timm_channels_last', help=f'of {", ".join(CONTENDERS)}')
    parser.add_argument('--timm_python', default=sys.executable, help='interpreter of an environment with torch and timm')
    parser.add_argument('--worker', choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        model, batch_size, resolution = args.settings.split(':')
        args.model, args.batch_size, args.resolution = model, int(batch_size), int(resolution)
    unknown = set(args.contenders.split(',')) - set(CONTENDERS)
    if unknown:
        parser.error(f'--contenders={args.contenders} must be among {", ".join(CONTENDERS)}; unknown: {", ".join(sorted(unknown))}.')
    return args


def ours(args):
    """-> ({mode: function that starts one step}, function that waits for what the last one returned, device)."""
    sys.path.insert(0, str(ROOT))
    from efficientnet_jax.runs.allocator import keep_freed_memory

    keep_freed_memory()
    import functools

    import jax
    import numpy as np

    from configs import default
    from efficientnet_jax.training.setup import training_of
    from efficientnet_jax.training.step import train_step

    config = default.get_config()
    config.model, config.dtype, config.resolution = args.model, args.dtype, args.resolution
    config.batch_size = config.eval_batch_size = args.batch_size
    setup = training_of(config, num_classes=1000, train_examples=1_281_167)
    rng = np.random.default_rng(0)
    shape = (args.batch_size, args.resolution, args.resolution, 3)
    batch = jax.device_put({'image': rng.integers(0, 256, shape, np.uint8), 'label': np.arange(args.batch_size, dtype=np.int32)})
    step = jax.jit(functools.partial(train_step, setup.module, setup.optimizer, setup.recipe), donate_argnums=0)
    forward = jax.jit(lambda variables, images: setup.module.apply(variables, setup.preprocess.normalise(images), train=False))
    states = [setup.init()]

    def train():
        state, metrics = step(states.pop(), batch)
        states.append(state)
        return metrics

    def infer():
        return forward(states[0].variables(), batch['image'])

    return {'train': train, 'infer': infer}, jax.block_until_ready, jax.devices()[0].device_kind


def timm(args):
    """-> as ours(). On a GPU the policy is autocast for bfloat16 and TF32 off for float32."""
    import timm
    import torch
    from timm.optim import RMSpropTF
    from timm.utils import ModelEmaV3

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    form = torch.contiguous_format if args.worker == 'timm' else torch.channels_last
    model = timm.create_model(args.model, drop_rate=0.2, drop_path_rate=0.2).to(device, memory_format=form)
    average = ModelEmaV3(model, decay=0.9999)
    run = torch.compile(model) if args.worker == 'timm_compiled' else model
    optimizer = RMSpropTF(model.parameters(), lr=0.001, alpha=0.9, eps=1e-3, momentum=0.9, weight_decay=1e-5)
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    images = torch.randn(args.batch_size, 3, args.resolution, args.resolution).to(device, memory_format=form)
    labels = torch.arange(args.batch_size, device=device)
    policy = {'device_type': device, 'dtype': torch.bfloat16, 'enabled': args.dtype == 'bfloat16'}

    def wait(_):
        if device == 'cuda':
            torch.cuda.synchronize()

    def train():
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(**policy):
            loss = criterion(run(images), labels)
        loss.backward()
        optimizer.step()
        average.update(model)

    def infer():
        model.eval()
        with torch.inference_mode(), torch.autocast(**policy):
            run(images)

    return {'train': train, 'infer': infer}, wait, torch.cuda.get_device_name() if device == 'cuda' else 'cpu'


def worker(args):
    """Runs args.steps steps per line read, answers seconds of the clock and of the processor."""
    steps, wait, device = (ours if args.worker == 'ours' else timm)(args)
    for mode in MODES * 3:
        wait(steps[mode]())
    print(json.dumps({'device': device}), flush=True)
    for line in sys.stdin:
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        for _ in range(args.steps):
            last = steps[line.strip()]()
        wait(last)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({'wall': wall, 'cpu': cpu}), flush=True)


def start(name, setting, args):
    python = sys.executable if name == 'ours' else args.timm_python
    command = [python, __file__, f'--worker={name}', f'--settings={setting}', f'--dtype={args.dtype}', f'--steps={args.steps}']
    quiet = os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3', 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}  # contenders share the memory of a GPU
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet)


def read(process, name):
    for line in process.stdout:
        if line.startswith('{'):
            return json.loads(line)
    raise SystemExit(f'{name} ended with exit code {process.wait()}; is it installed in the interpreter given (--timm_python)?')


def measure(processes, rounds):
    """{(name, mode): [{'wall': s, 'cpu': s} of each round]}."""
    times = {(name, mode): [] for name in processes for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            for name, process in processes.items():
                process.stdin.write(mode + '\n')
                process.stdin.flush()
                times[name, mode].append(read(process, name))
    return times


def main():
    args = arguments()
    if args.worker:
        return worker(args)
    names, settings = args.contenders.split(','), args.settings.split(',')
    processes = {(setting, name): start(name, setting, args) for setting in settings for name in names}
    for (setting, name), process in processes.items():
        print(f'{setting} {name}: {read(process, name)["device"]}', flush=True)
    for setting in settings:
        times = measure({name: processes[setting, name] for name in names}, args.rounds)
        print(f'\n{setting}, {args.dtype}, {os.cpu_count()} cores, n={args.rounds} rounds of {args.steps}\n')
        table(names, times, int(setting.split(':')[1]) * args.steps)
    for process in processes.values():
        process.stdin.close()
        process.wait()


def table(names, times, images):
    """images: of one turn."""
    print(f'| contender | mode | images/s, median | CPU s per turn, median | speed of {names[0]} over it: clock | CPU time |')
    print('| --- | --- | --- | --- | --- | --- |')
    for mode in MODES:
        for name in names:
            rows = times[name, mode]
            images_per_second = images / statistics.median(row['wall'] for row in rows)
            cpu = statistics.median(row['cpu'] for row in rows)
            ratio = {
                key: statistics.median(theirs[key] / max(own[key], 1e-9) for theirs, own in zip(rows, times[names[0], mode], strict=True))
                for key in ('wall', 'cpu')
            }
            row = f'| {name} | {mode} | {images_per_second:.1f} | {cpu:.3f} | {ratio["wall"]:.2f} | {ratio["cpu"]:.2f} |'
            print(row, flush=True)


if __name__ == '__main__':
    main()
