"""EfficientNet-B0 on the 1,797 handwritten digits that scikit-learn ships: the embedded main job, no download.

    python main.py --config=configs/digits.py --workdir=runs/digits
"""

from configs import default


def get_config():
    config = default.get_config()
    config.dataset = 'digits'
    config.eval_split = 'test'
    config.resolution = 32
    config.dtype = 'float32'
    config.interpolation = 'bilinear'
    config.eval_crop_padding = 0
    config.augment.crop = 'pad'
    config.augment.pad = 4
    config.augment.flip = None
    config.batch_size = 96
    config.epochs = 16.0
    config.optimizer = 'adamw'
    config.lr_per_256 = 0.008
    config.schedule = 'cosine'
    config.warmup_epochs = 1.0
    config.weight_decay = 1e-2
    config.bn_momentum = 0.9  # 0.99 leaves the running statistics behind in so few steps
    config.ema_decay = 0.99
    config.eval_batch_size = 304
    config.eval_every_epochs = 4.0
    config.checkpoint_every_epochs = 4.0
    config.log_every_steps = 20
    return config
