"""Images a second and memory of the input pipeline on this host's cores, beside the textbook tf.data formulation and timm's DataLoader.

    python benchmarks/input_pipeline.py [--timm_python=VENV/bin/python] [--against=CHECKOUT] [--images=512] [--rounds=5] [--memory_images=20000]
        [--record=benchmarks/records/input_pipeline.md]

Makes JPEGs like ImageNet's (500x375, quality 92) from the photographs that scikit-learn and matplotlib ship. The formulations take turns in
every round, so that what else the machine does falls on all alike; figures are medians over rounds, ratios medians of each round's ratio.
With --against, the plain crop of another checkout of this repository, and this one's, each in a process of its own, take part too.
Each is given as images a second, and as images per second of processor time, which says the same of a machine that does nothing else.
"""

import argparse
import io
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import numpy as np

BATCH, RESOLUTION, FILES = 64, 224, 256
ALONE, OTHER = 'crop and flip, own process', 'crop and flip of the other checkout, own process'
WARM = 6  # batches before the clock starts: more than any of the formulations holds ready
CORES = len(os.sched_getaffinity(0))
RAND = {'policy': 'randaugment', 'layers': 2, 'magnitude': 10.0}

# Ends what a Child runs: takes as many batches as each line that it reads says.
SERVE = """
for line in sys.stdin:
    for _ in range(int(line)):
        next(batches)
    print('done', flush=True)
"""

# Runs under --timm_python, which needs torch, torchvision and timm.
TIMM = """
import sys
from timm.data import create_dataset, create_loader
folder, batch, resolution, cores = sys.argv[1], *map(int, sys.argv[2:])
loader = create_loader(create_dataset('', folder), (3, resolution, resolution), batch, is_training=True, auto_augment='rand-m9-mstd0.5',
                       num_workers=cores, use_prefetcher=False, interpolation='bicubic', persistent_workers=True)
def stream():
    while True:
        yield from loader
batches = stream()
"""

# The plain crop of the checkout in argv[1].
PLAIN = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.input_pipeline import ours
batches = ours(sys.argv[2])
"""


def write_photos(folder):
    """FILES JPEGs of 500x375 in two classes: crops, scales and mirror images of photographs that packages ship."""
    import matplotlib.cbook
    from PIL import Image, ImageOps
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    photos.append(Image.open(matplotlib.cbook.get_sample_data('grace_hopper.jpg')).convert('RGB'))
    rng = np.random.default_rng(0)
    for i in range(FILES):
        photo = photos[i % len(photos)]
        scale = rng.uniform(0.7, 1.0)
        width = int(min(photo.width, photo.height * 4 / 3) * scale)
        left, top = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - width * 3 // 4 + 1)
        picture = photo.crop((left, top, left + width, top + width * 3 // 4)).resize((500, 375), Image.BICUBIC)
        path = pathlib.Path(folder, 'ab'[i % 2], f'{i}.jpg')
        path.parent.mkdir(exist_ok=True)
        out = io.BytesIO()
        (ImageOps.mirror(picture) if rng.random() < 0.5 else picture).save(out, 'JPEG', quality=92)
        path.write_bytes(out.getvalue())


def ours(folder, start_step=0, **augment):
    from efficientnet_jax.data import pipeline, sources

    source = sources.open_source(f'folder:{folder}', 'train+validation')
    return pipeline.train_batches(
        source, batch_size=BATCH, resolution=RESOLUTION, seed=0, start_step=start_step, augment=augment, read_threads=2 * CORES
    )


def textbook(folder):
    """As tutorials write it: float32 pixels, TensorFlow's distorted box, bicubic resize, flip, normalisation of each image."""
    import tensorflow as tf

    def load(path):
        encoded = tf.io.read_file(path)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
        )
        image = tf.io.decode_and_crop_jpeg(encoded, tf.concat([begin[:2], size[:2]], 0), channels=3)
        image = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), (RESOLUTION, RESOLUTION), 'bicubic')
        return tf.image.per_image_standardization(tf.image.random_flip_left_right(image))

    files = tf.data.Dataset.list_files(os.path.join(folder, '*', '*.jpg')).repeat()
    return files.map(load, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


class Child:
    """A loader in its own process; `take` by the batch, through a pipe. It runs ahead between its turns by what it holds ready, no more."""

    def __init__(self, python, code, *arguments):
        command = [python, '-c', code + SERVE, *map(str, (*arguments, BATCH, RESOLUTION, CORES))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.pid = self._process.pid

    def take(self, batches):
        self._process.stdin.write(f'{batches}\n')
        if not self._process.stdout.readline():
            raise RuntimeError(
                f'{self._process.args[0]} ended with status {self._process.wait()}; --timm_python needs torch, torchvision, timm.'
            )

    def close(self):
        self._process.stdin.close()
        self._process.wait()


class Stream:
    """An iterator of batches in this process, as `Child`."""

    def __init__(self, batches):
        self.pid = os.getpid()
        self._batches = batches

    def take(self, batches):
        for _ in range(batches):
            next(self._batches)

    def close(self):
        if hasattr(self._batches, 'close'):
            self._batches.close()


def cpu_seconds(pid, with_children):
    """Processor time of a process and, of timm's, of its workers."""
    total = sum(int(ticks) for ticks in pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[11:13])
    seconds = total / os.sysconf('SC_CLK_TCK')
    if with_children:
        children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
        seconds += sum(cpu_seconds(int(child), False) for child in children)
    return seconds


def speed(stream, images):
    """(images a second, images per second of processor time), once what was held ready is used up."""
    others = stream.pid != os.getpid()
    stream.take(WARM)
    start, cpu = time.perf_counter(), cpu_seconds(stream.pid, others)
    stream.take(images // BATCH)
    return images / (time.perf_counter() - start), images / (cpu_seconds(stream.pid, others) - cpu)


def device_speed(images):
    """Images a second of the operations of RandAugment alone, batched, on the device that jax finds."""
    import jax

    from efficientnet_jax.data import order
    from efficientnet_jax.data.augment import device, policies

    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, RESOLUTION, RESOLUTION, 3), np.uint8)
    ops = policies.draw(order.example_seeds(0, np.zeros(BATCH), np.arange(BATCH)), policies.Augment(**RAND))
    apply = jax.jit(device.apply_ops)
    apply(pixels, ops).block_until_ready()
    start, cpu = time.perf_counter(), time.process_time()
    for _ in range(images // BATCH):
        apply(pixels, ops).block_until_ready()
    return images / (time.perf_counter() - start), images / (time.process_time() - cpu)


def memory(folder, images):
    """Resident MiB after each tenth of `images`, the first of them after the start-up."""
    batches = ours(folder, on='device', **RAND)
    sizes = []
    for step in range(images // BATCH):
        next(batches)
        if (step + 1) % max(1, images // BATCH // 10) == 0:
            pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
            sizes.append(pages * os.sysconf('SC_PAGE_SIZE') / 2**20)
    batches.close()
    return sizes


def restart(folder):
    """Seconds from the call to the first batch at a step in the middle of an epoch, in a new process; imports are not in it."""
    code = (
        f'import sys, time; sys.path[:0] = {sys.path[:1]!r} + [{str(pathlib.Path(__file__).parent)!r}]; import tensorflow, input_pipeline\n'
        f's = time.perf_counter(); b = input_pipeline.ours({folder!r}, start_step=100002); next(b); print(time.perf_counter() - s); b.close()'
    )
    return float(subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=512, help='of each formulation in each round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--memory_images', type=int, default=20000)
    parser.add_argument('--timm_python', help='interpreter with torch, torchvision and timm; without it that comparison is left out')
    parser.add_argument('--against', help='another checkout of this repository, whose plain crop is compared')
    parser.add_argument('--record', help='write the result to this file')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_photos(folder)
        children = {}
        if args.timm_python:
            children['timm rand-m9-mstd0.5'] = Child(args.timm_python, TIMM, folder)
        if args.against:
            children[ALONE] = Child(sys.executable, PLAIN, sys.path[0], folder)
            children[OTHER] = Child(sys.executable, PLAIN, os.path.abspath(args.against), folder)
        makes = {
            'textbook': lambda: textbook(folder),
            'crop and flip': lambda: ours(folder),
            'RandAugment on the device, host time': lambda: ours(folder, on='device', **RAND),
            'RandAugment on the host': lambda: ours(folder, on='host', **RAND),
        }
        rounds = []
        for _ in range(args.rounds):
            speeds = {}
            for name, make in makes.items():
                stream = Stream(make())
                speeds[name] = speed(stream, args.images)
                stream.close()  # nothing runs ahead into the time of the next
            for name, child in children.items() if len(rounds) % 2 else reversed(children.items()):
                speeds[name] = speed(child, args.images)
            speeds['RandAugment operations alone, jax device'] = device_speed(2 * BATCH)
            rounds.append(speeds)
            print({name: (round(wall), round(cpu)) for name, (wall, cpu) in speeds.items()}, flush=True)
        for child in children.values():
            child.close()
        restarts = [restart(folder) for _ in range(3)]
        sizes = memory(folder, args.memory_images)
    print(report := render(args, rounds, restarts, sizes))
    if args.record:
        pathlib.Path(args.record).write_text(report)


def render(args, rounds, restarts, sizes):
    import jax
    import tensorflow as tf

    medians = {name: [statistics.median(values) for values in zip(*(speeds[name] for speeds in rounds), strict=True)] for name in rounds[0]}
    plain, device = 'crop and flip', 'RandAugment on the device, host time'
    wanted = [
        (plain, 'textbook', 1.3),
        (device, plain, 0.9),
        (device, 'timm rand-m9-mstd0.5', 3.0),
        ('RandAugment on the host', plain, None),
        (ALONE, OTHER, 1.0),
    ]
    lines = [
        '# The input pipeline',
        '',
        f'`python benchmarks/input_pipeline.py --images={args.images} --rounds={args.rounds} --memory_images={args.memory_images}`'
        f'{" with --timm_python" if args.timm_python else ""}{f" and --against={args.against}" if args.against else ""}, {time.strftime("%Y-%m-%d")}, {CORES} CPU cores, load average of the machine '
        f'{os.getloadavg()[1]:.1f}, jax {jax.__version__} on {jax.devices()[0].device_kind}, TensorFlow {tf.__version__}.',
        f'{FILES} JPEGs of 500x375 at quality 92 to {RESOLUTION} px, batches of {BATCH}; medians of {args.rounds} rounds of {args.images} images.',
        '',
        '| formulation | images/s | images per second of processor time |',
        '| --- | --- | --- |',
        *(f'| {name} | {wall:.0f} | {cpu:.0f} |' for name, (wall, cpu) in medians.items()),
        '',
        '| ratio, median of the rounds (lowest to highest) | of images/s | per processor time | wanted |',
        '| --- | --- | --- | --- |',
    ]
    for a, b, least in wanted:
        if a in medians and b in medians:
            cells = []
            for kind in range(2):
                ratios = sorted(speeds[a][kind] / speeds[b][kind] for speeds in rounds)
                cells.append(f'{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})')
            lines.append(f'| {a} / {b} | {cells[0]} | {cells[1]} | {least or "-"} |')
    lines += [
        '',
        f'From the call to the first batch at a step in the middle of an epoch, in a new process: {statistics.median(restarts):.2f} s '
        f'(median of {len(restarts)}).',
        '',
        f'Resident memory over {args.memory_images:,} images, MiB after each tenth: {", ".join(f"{size:.0f}" for size in sizes)}.',
        '',
    ]
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
