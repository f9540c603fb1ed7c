"""Ids of the hub, as people write them. Needs nothing but Python: forms check them too."""

import re

ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)


def is_hub_id(text: str) -> bool:
    """name, or owner/name. What looks like a path is none."""
    return bool(ID.fullmatch(text)) and ".." not in text and "--" not in text
