"""What of an option must not stand in a file or a message: the passwords of the databases that studies and searches are kept in."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

HIDDEN = '***'
STORAGES = ('study', 'search')  # groups of options whose `storage` may have a password in it


def public(text: str) -> str:
    """A URL, or a word with one in it, without its password, which may hold any character, and without the values of options."""
    if '://' not in text:
        return text
    return re.sub(r'([?&][^=&@]*)=[^&]*', rf'\1={HIDDEN}', re.sub(r'(://[^:/@]*):.*@', rf'\1:{HIDDEN}@', text))


def public_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config as files hold it: with the public part of its storages, none of which decides a result (recipe.RUNTIME_KNOBS)."""
    hidden = config.copy()
    for group in STORAGES:
        storage = config[group].get('storage') if isinstance(config.get(group), dict) else None
        if isinstance(storage, str):
            hidden[group] = config[group] | {'storage': public(storage)}
    return hidden


def is_hidden(storage: str) -> bool:
    """Whether a storage is what `public` left of one: nothing can be opened with that."""
    return f':{HIDDEN}@' in storage or f'={HIDDEN}' in storage


def without(storage: str, text: str) -> str:
    """A driver's text without the parts of the storage that `public` hides, as they stand and decoded."""
    hidden = [part for found in re.findall(r'://[^:/@]*:(.*)@|[?&][^=&]*=([^&]*)', storage) for part in found if len(part) > 2]
    for part in sorted({*hidden, *map(urllib.parse.unquote, hidden)}, key=len, reverse=True):
        text = text.replace(part, HIDDEN)
    return text
