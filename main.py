"""Trains, evaluates and studies EfficientNets, the same as `python -m efficientnet_jax` and the installed command `efficientnet-jax`.

    python main.py --config=configs/b7.py --workdir=DIR [--mode=MODE] [--config.OPTION=VALUE ...]
    python main.py --help

Flags and modes are in efficientnet_jax/cli/, so that an installed package has them too; what a mode does is in the rooms beside it.
"""

from efficientnet_jax.cli.command import main

if __name__ == '__main__':
    main()
