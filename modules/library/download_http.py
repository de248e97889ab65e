"""What a download needs to know of HTTP: this computer's proxy, versions, and lasting faults."""

from urllib.request import getproxies

import httpx

from modules.settings.presets import Download
from modules.spec.errors import DownloadFailed


def client_for(download: Download, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """What asks for a file. Raises DownloadFailed for a proxy that it cannot use."""
    # A proxy cannot reach this very computer.
    trust_env = not download.url.startswith("http://")
    try:
        return httpx.AsyncClient(timeout=timeout, trust_env=trust_env)
    except (ImportError, ValueError, httpx.InvalidURL):
        proxies = {name: url.partition("://") for name, url in getproxies().items()}
        odd = [
            f"{name.upper()}_PROXY begins with {scheme[:20]}://"
            for name, (scheme, mark, _) in proxies.items()
            if name in ("all", "http", "https") and mark and scheme not in ("http", "https")
        ]
        raise DownloadFailed(
            f"{download.file} was not fetched, because Easel cannot use this computer's proxy "
            f"({', '.join(odd) or 'its address cannot be read'}); name one that begins with "
            "http://, or none."
        ) from None


def version_of(headers: httpx.Headers) -> str:
    """What If-Range may name: a strong ETag, else the date."""
    etag = headers.get("etag", "")
    version = headers.get("last-modified", "") if not etag or etag.startswith("W/") else etag
    return version if version.isascii() and version.isprintable() else ""  # it must go back


def may_pass(error: Exception) -> bool:
    """False for a certificate that is not right: another try would not help."""
    return "CERTIFICATE_VERIFY_FAILED" not in str(error)
