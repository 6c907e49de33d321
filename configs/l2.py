"""EfficientNet-L2 at 800 px with the published recipe of the smaller models.

    python main.py --config=configs/l2.py --workdir=runs/l2

Quoted, not measured here: top-1 88.4 % with NoisyStudent (arXiv 1911.04252), whose 300 million unlabelled images are not part
of this code base; supervised training of L2 alone on ImageNet has no published score. For 475 px: --config.model=efficientnet_l2_475.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model = 'efficientnet_l2'
    config.batch_size = 2048
    config.remat = 'blocks'
    config.mesh.shard_state = True
    return config
