"""The URLs in a sample's lineage, and patterns of URLs, as a removal request names them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

URL_KEYS = ("url", "file", "page")
"""Lineage of one URL or file: of the first medium, and of the page that a document was on."""
MEDIA_URLS = "urls"
"""Lineage of a sample with several media: a JSON list of their URLs or files."""


def urls_of(lineage: Mapping[str, str]) -> list[str]:
    """Return all URLs and files that a sample's lineage names, each once."""
    found = [lineage[key] for key in URL_KEYS if lineage.get(key)]
    if MEDIA_URLS in lineage:
        found += json.loads(lineage[MEDIA_URLS])
    return list(dict.fromkeys(found))


def url_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Return whether a URL matches one of some patterns, as a function.

    A pattern stands for the whole URL, whatever its case; `*` is any text, and no other character
    is special, since `?` and `[` are frequent in URLs.
    """
    texts = (".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns)
    expression = re.compile("|".join(f"(?:{text})" for text in texts), re.IGNORECASE | re.DOTALL)
    return lambda url: bool(patterns) and expression.fullmatch(url) is not None
