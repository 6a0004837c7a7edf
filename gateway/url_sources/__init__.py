"""Documents that a request names by a URL: fetched here, from public addresses only, and only where that is turned on.

The gateway fetches and the workers do not: the processes that open documents have no network at all.
"""

from gateway.url_sources.building import url_source

__all__ = ["url_source"]
