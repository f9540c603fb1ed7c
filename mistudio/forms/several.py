from typing import Any


def names_of(value: Any) -> list[str]:
    """Of several things, ticked or with commas between them; each once."""
    parts = [value] if isinstance(value, str) else value or []
    return list(dict.fromkeys(name.strip() for part in parts for name in str(part).split(",") if name.strip()))
