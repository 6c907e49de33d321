"""Architecture search: space, objective, strategies, evaluation by the normal trainer, many workers. `--mode=search` runs search.py."""
