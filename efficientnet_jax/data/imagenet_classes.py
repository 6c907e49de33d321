"""Names of the 1,000 ImageNet classes; the file beside this one holds them with their source and licence."""

import pathlib


def class_names() -> tuple[str, ...]:
    """In the order of the logits of every network trained on ImageNet 2012: sorted by WordNet id."""
    lines = pathlib.Path(__file__).with_suffix('.txt').read_text(encoding='utf-8').splitlines()
    return tuple(line for line in lines if not line.startswith('#'))
