"""Scaling studies of arXiv 1905.11946, one config per table or figure, and what goes beyond them.

    python main.py --config=configs/study.py:table2 --mode=study --workdir=runs/study      # counts beside the paper's, seconds
    python main.py --config=configs/study.py:grid --mode=study --workdir=runs/grid
    python main.py --config=configs/study.py:plan --mode=study --workdir=runs/plan --config.study.target=macs:1.8e9
    python main.py --config=configs/study.py:cam --mode=study --workdir=runs/cam --config.init_from=b0.pth --config.study.images=a.jpg,b.jpg
    python main.py --config=configs/study.py:latency --mode=study --workdir=runs/latency

Kinds: table2, table3, table7, fig3, fig4, fig8, grid, plan, cam, latency. With --config.study.train=True every point of the first eight is
trained, with the recipe, data set and budget of the config (study.py:fig3,digits takes those of configs/digits.py), by as many workers
as are started with the same command; a killed one is replaced by starting it again. Multipliers apply to config.model.
"""

from configs import default, digits
from efficientnet_jax.errors import UserError

RECIPES = {'imagenet': default, 'digits': digits}


def get_config(kind_and_recipe='table2'):
    kind, _, recipe = kind_and_recipe.partition(',')
    if (recipe or 'imagenet') not in RECIPES:
        raise UserError(f'--config=configs/study.py:{kind_and_recipe} must be KIND or KIND,RECIPE with RECIPE of {", ".join(RECIPES)}.')
    config = RECIPES[recipe or 'imagenet'].get_config()
    config.study.kind = kind
    return config
