"""Fine-tuning on the data sets of the paper's table 5, or on a folder of your own images.

    python main.py --config=configs/transfer.py:cifar10,b0 --workdir=runs/cifar10
    python main.py --config=configs/transfer.py:folder,b0 --config.dataset=folder:/my/photos --workdir=runs/photos
    python main.py --config=configs/transfer.py:pets,lite0 --config.init_from=lite0.pth --workdir=runs/pets

Data: cifar10, cifar100, cars, flowers, pets, food (TFDS prepares them), folder. Birdsnap and FGVC Aircraft are not in TFDS: use folder. Models:
b0 to b7, lite0 to lite4. Weights are timm's conversions of the authors' and are fetched when huggingface_hub is installed; --config.init_from
names a file instead. On little data, freeze: --config.backbone_lr_multiplier=0 --config.freeze_batch_norm=True trains the classifier alone.

The paper gives no hyper-parameters; these are within the grid of the protocol that it cites (Kornblith et al. 2019, arXiv 1805.08974, appendix A:
batch 256, momentum 0.9, cosine over 20,000 steps, rate and decay by grid search). Quoted, not measured here, from arXiv 1905.11946 table 5:
B0 98.1 % on CIFAR-10 and 88.1 % on CIFAR-100.
"""

from configs import default
from efficientnet_jax.errors import UserError

# name: (TFDS name, training split, test split); sizes as in arXiv 1905.11946 table 6.
DATA = {
    'cifar10': ('cifar10', 'train', 'test'),
    'cifar100': ('cifar100', 'train', 'test'),
    'cars': ('cars196', 'train', 'test'),
    'flowers': ('oxford_flowers102', 'train+validation', 'test'),
    'pets': ('oxford_iiit_pet', 'train', 'test'),
    'food': ('food101', 'train', 'validation'),
    'folder': ('folder:', 'train', 'validation'),
}
MODELS = (*(f'b{i}' for i in range(8)), *(f'lite{i}' for i in range(5)))


def get_config(data_and_model='cifar10,b0'):
    data, _, model = data_and_model.partition(',')
    model = model or 'b0'
    if data not in DATA or model not in MODELS:
        raise UserError(
            f'--config=configs/transfer.py:{data_and_model} must be DATA,MODEL with DATA of {", ".join(DATA)} and MODEL of {", ".join(MODELS)}.'
        )
    config = default.get_config()
    config.model = f'efficientnet_{model}'
    config.init_from = f'hf_hub:timm/tf_efficientnet_{model}.' + ('in1k' if model.startswith('lite') else 'aa_in1k')
    config.dataset, config.train_split, config.eval_split = DATA[data]
    if data.startswith('cifar'):
        config.eval_crop_fraction = 1.0  # objects fill these images to the border
    config.batch_size, config.steps = 256, 20_000
    if data == 'folder':  # one's own is small as a rule: 2,000 steps of 64 are an epoch of 128,000 photographs, or 250 of 500
        config.batch_size, config.steps = 64, 2_000
        config.eval_every_epochs, config.checkpoint_every_epochs = 20.0, 5.0
    config.optimizer = 'sgd'
    config.lr_per_256 = 0.01
    config.schedule = 'cosine'
    config.warmup_epochs = 0.0
    config.weight_decay = 1e-4
    config.bn_momentum = 0.9  # the running statistics follow in 10 steps; 0.99 is made for runs of another length
    config.classifier_init_scale = 0.0
    config.ema_decay = 0.999
    config.eval_batch_size = 256
    return config
