"""Which option somebody means who writes the name that another project has for it, or a misspelled one."""

from __future__ import annotations

import difflib

from efficientnet_jax.runs.options import OPTIONS

# Names in timm's train.py, flax's ImageNet example, Keras, big_vision and the reference: the option here.
ELSEWHERE = {
    'lr_per_256': ('lr', 'learning_rate', 'base_learning_rate', 'base_lr', 'lr_base', 'peak_lr'),
    'warmup_epochs': ('warmup', 'warmup_steps', 'warmup_lr', 'lr_warmup_epochs'),
    'schedule': ('sched', 'lr_schedule', 'lr_decay_type', 'scheduler'),
    'decay_epochs': ('num_epochs_per_decay', 'epochs_per_decay'),
    'optimizer': ('opt', 'optim', 'optimiser', 'optax_name'),
    'momentum': ('opt_betas', 'beta1', 'b1'),
    'rmsprop_epsilon': ('opt_eps', 'eps', 'epsilon'),
    'weight_decay': ('wd', 'l2_weight', 'l2'),
    'label_smoothing': ('smoothing',),
    'ema_decay': ('ema', 'model_ema', 'model_ema_decay', 'moving_average_decay'),
    'drop_path': ('drop_path_rate', 'drop_connect', 'drop_connect_rate', 'drop_block', 'survival_prob', 'stochastic_depth'),
    'dropout': ('drop', 'drop_rate', 'dropout_rate'),
    'bn_momentum': ('bn_mom', 'batch_norm_momentum'),
    'model': ('model_name', 'arch', 'variant', 'architecture'),
    'depth': ('depth_coefficient', 'depth_multiplier'),
    'width': ('width_coefficient', 'width_multiplier', 'width_factor'),
    'resolution': ('img_size', 'image_size', 'input_size', 'input_image_size', 'size'),
    'init_from': ('pretrained', 'weights', 'initial_checkpoint', 'checkpoint', 'resume'),
    'dtype': ('amp', 'half_precision', 'use_bfloat16', 'precision', 'mixed_precision'),
    'remat': ('grad_checkpointing', 'gradient_checkpointing'),
    'batch_size': ('bs', 'train_batch_size', 'global_batch_size', 'batch'),
    'eval_batch_size': ('validation_batch_size', 'vb', 'test_batch_size'),
    'epochs': ('num_epochs', 'total_epochs', 'train_epochs', 'num_train_epochs'),
    'steps': ('num_train_steps', 'train_steps', 'num_steps', 'total_steps', 'max_steps'),
    'eval_every_epochs': ('eval_every', 'val_interval', 'log_eval_steps', 'evals_per_epoch'),
    'checkpoint_every_epochs': ('checkpoint_every', 'ckpt_steps', 'save_every'),
    'log_every_steps': ('log_interval', 'log_every', 'log_training_steps'),
    'keep_last': ('checkpoint_hist', 'keep', 'max_to_keep'),
    'data_dir': ('data', 'data_path', 'dataset_dir'),
    'seed': ('rng_seed', 'random_seed'),
    'train_split': ('split',),
    'eval_split': ('val_split', 'validation_split', 'test_split'),
    'eval_crop_fraction': ('crop_pct', 'crop_fraction'),
    'normalisation': ('normalization', 'mean', 'std'),
    'mesh.shard_state': ('fsdp', 'zero', 'shard_optimizer'),
    'augment.policy': ('aa', 'auto_augment', 'autoaugment', 'randaugment', 'augment_name', 'randaug'),
    'augment.layers': ('randaug_num_layers', 'num_ops', 'num_layers'),
    'augment.magnitude': ('randaug_magnitude',),
    'augment.erase': ('reprob', 'random_erasing', 'remode'),
    'augment.flip': ('hflip', 'random_flip'),
    'augment.area': ('scale',),
    'augment.mixup': ('mixup_alpha',),
    'augment.cutmix': ('cutmix_alpha',),
    'batch_norm_group': ('batch_norm_batch_size', 'sync_bn', 'split_bn', 'virtual_batch_size'),
}
MEANT = {name: option for option, names in ELSEWHERE.items() for name in names}


def near(name: str) -> list[str]:
    """Up to three options that may be meant by a name, the likeliest first: by another project's name, as a part of a group, or by spelling."""
    leaf = name.lower().replace('-', '_').rpartition('.')[2]
    sure = [MEANT[leaf]] if leaf in MEANT else []
    sure += [option for option in OPTIONS if option.rpartition('.')[2] == leaf]
    if sure:
        return sure[:3]
    found = difflib.get_close_matches(name, OPTIONS, n=3, cutoff=0.6)
    leaves = {option.rpartition('.')[2]: option for option in reversed(OPTIONS)}
    found += [leaves[close] for close in difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.75)]
    return list(dict.fromkeys(found))[:3]
