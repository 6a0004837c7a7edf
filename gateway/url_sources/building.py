"""Makes what fetches documents, where that is turned on. Where it is off, nothing of it is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.url_sources.settings import UrlSourceSettings
from mesh.settings import SettingsError

if TYPE_CHECKING:
    from gateway.url_sources.fetching import UrlSource


def url_source(settings: UrlSourceSettings) -> UrlSource | None:
    """What fetches documents; None where that is off.

    Raises:
        SettingsError: it is on, and what it needs is not installed.
    """
    if not settings.enabled:
        return None
    try:
        from gateway.url_sources.fetching import UrlSource
    except ImportError as error:
        raise SettingsError(
            "gateway.url_sources.enabled needs the package httpcore: install the extra gateway anew."
        ) from error
    return UrlSource(settings)
