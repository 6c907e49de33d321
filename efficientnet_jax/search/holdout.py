"""The images that choose among candidates: a part of train that no candidate is trained on, and never the test set."""

from __future__ import annotations

from efficientnet_jax.data import folder, sources
from efficientnet_jax.errors import UserError


def check(config) -> None:
    """Raises UserError where search.eval_split is not a part of train_split's data, or shares images with search.train_split or eval_split."""
    spans = {knob: _spans(config, split) for knob, split in _splits(config).items()}
    whole = set(_names(config.train_split))
    outside = {name for name, _, _ in spans['search.eval_split']} - whole
    if outside:
        raise UserError(
            f"search.eval_split={config.search.eval_split!r} must be a part of {', '.join(sorted(whole))} that is held out, such as 'train[-10%:]' "
            f"with search.train_split='train[:-10%]': {', '.join(sorted(outside))} is for the end, and must not choose networks."
        )
    for knob in ('search.train_split', 'eval_split'):
        shared = sum(_shared(a, b) for a in spans['search.eval_split'] for b in spans[knob])
        if shared:
            raise UserError(
                f'search.eval_split={config.search.eval_split!r} shares {shared:,} images with {knob}={_splits(config)[knob]!r}; they must be apart.'
            )


def _splits(config) -> dict[str, str]:
    return {'search.eval_split': config.search.eval_split, 'search.train_split': config.search.train_split, 'eval_split': config.eval_split}


def _names(split: str) -> list[str]:
    """'train[:-300]+validation' -> ['train', 'validation']"""
    return [part.split('[')[0].strip() for part in split.split('+')]


def _spans(config, split: str) -> list[tuple[str, int, int]]:
    """[(split, first, end)] of the examples. Raises what sources.open_source raises for a split that there is not."""
    import tensorflow_datasets as tfds

    sources.open_source(config.dataset, split, config.data_dir)
    infos = {name: folder.split_info(name, len(sources.open_source(config.dataset, name, config.data_dir))) for name in _names(split)}
    pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    ends = {name: info.num_examples for name, info in infos.items()}
    return [(p.splitname, p.from_ or 0, ends[p.splitname] if p.to is None else p.to) for p in pieces]


def _shared(a: tuple[str, int, int], b: tuple[str, int, int]) -> int:
    return max(0, min(a[2], b[2]) - max(a[1], b[1])) if a[0] == b[0] else 0
