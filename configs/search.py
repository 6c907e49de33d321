"""Architecture search as it found EfficientNet-B0 (arXiv 1807.11626, arXiv 1905.11946 section 4), and on a small budget.

    python main.py --config=configs/search.py:ppo --mode=search --workdir=runs/search
    python main.py --config=configs/search.py:evolution,digits --mode=search --workdir=runs/search      # 2 CPU cores, half an hour
    ... --config.search.action=status | finalists | proxy_check                                          # same config and workdir

random, evolution, ppo, tpe, nsga2: strategies, beside each of which random search runs at equal cost. supernet: one network whose weights
all candidates share is trained, then evolution picks from it. The recipe after the comma, imagenet or digits, is what the proxy shortens and
what trains finalists and winner. The same command on more machines, or again on this one, makes more workers; a killed one is replaced by
starting it again. WORKDIR/search/winner.py is the config that comes out. ImageNet searches have not been run with this code.
"""

from configs import default, digits
from efficientnet_jax.errors import UserError

RECIPES = {'imagenet': default, 'digits': digits}
STRATEGIES = ('random', 'evolution', 'ppo', 'tpe', 'nsga2')


def get_config(kind_and_recipe='evolution'):
    kind, _, recipe = kind_and_recipe.partition(',')
    if kind not in (*STRATEGIES, 'supernet') or (recipe or 'imagenet') not in RECIPES:
        raise UserError(
            f'--config=configs/search.py:{kind_and_recipe} must be KIND or KIND,RECIPE with KIND of {", ".join(STRATEGIES)}, supernet and RECIPE '
            f'of {", ".join(RECIPES)}.'
        )
    config = RECIPES[recipe or 'imagenet'].get_config()
    config.search.strategy = 'evolution' if kind == 'supernet' else kind
    config.search.evaluation = 'supernet' if kind == 'supernet' else 'train'
    if kind == 'supernet':
        config.search.ops = ('separable', 'mbconv')  # a full convolution in every block would be most of the supernet's work
    if recipe == 'digits':
        small(config)
    return config


def small(config):
    """1,200 digits train candidates for 60 updates and 300 choose: networks of a quarter of the width and half the depth."""
    config.width, config.depth = 0.25, 0.5
    config.checkpoint_every_epochs = 12.0
    search = config.search
    search.train_split, search.eval_split = 'train[:-300]', 'train[-300:]'
    search.ops = ('separable', 'mbconv')
    search.steps = 60
    search.target = 648096.0  # multiply-adds of B0 at this width, depth and resolution
    search.trials, search.population, search.sample = 24, 8, 3
    search.ppo_batch = 8
    search.finalists, search.checked = 5, 8
    config.supernet.steps, config.supernet.largest_share = 1500, 0.2
