"""MnasNet-A1 on ImageNet with the recipe that EfficientNet took over from it.

    python main.py --config=configs/mnasnet_a1.py --workdir=runs/mnasnet_a1

Quoted, not measured here: top-1 75.2 % (arXiv 1807.11626, table 1), with no label smoothing stated. 350 epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'mnasnet_a1'
    return config
