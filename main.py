"""The one way in: python main.py --config=configs/b7.py --workdir=DIR [--mode=train] [--config.batch_size=4096 ...].

Flags and dispatch only; what a mode does is in efficientnet_jax/, so that notebooks and tests call the same functions.
"""

import os
import sys

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # TensorFlow decodes images here; its start-up notes are noise

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file('config', None, 'Path of a config, for example configs/b7.py; --config.KNOB=VALUE overrides.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for checkpoints, metrics and results.')
_MODE = flags.DEFINE_enum('mode', 'train', ['train', 'evaluate', 'predict'], 'What to do.')
_JSON = flags.DEFINE_bool('json', False, 'predict: print JSON.')


def main(argv):
    logging.set_verbosity(logging.WARNING)
    config, workdir = _CONFIG.value, _WORKDIR.value

    def train():
        from efficientnet_jax.train import train

        train(config, workdir)

    def evaluate():
        from efficientnet_jax.evaluate import evaluate

        evaluate(config, workdir)

    def predict():
        from efficientnet_jax.predict import predict

        predict(config, workdir, argv[1:], as_json=_JSON.value)

    try:
        {'train': train, 'evaluate': evaluate, 'predict': predict}[_MODE.value]()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get('EFFICIENTNET_JAX_TRACEBACK'):
            raise
        sys.exit(f'{type(error).__name__}: {error}\n(EFFICIENTNET_JAX_TRACEBACK=1 shows where.)')


if __name__ == '__main__':
    flags.mark_flags_as_required(['config', 'workdir'])
    app.run(main)
