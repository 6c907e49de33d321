"""Scaling studies: the paper's tables and figures, grids, methods, class activation maps and latency. main.py --mode=study."""

from efficientnet_jax.study.study import study

__all__ = ['study']
