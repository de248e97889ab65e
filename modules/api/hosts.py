"""Which names this server answers to, and which pages may talk to it.

A browser tells every server the name it was asked for (Host) and, when a page sends something,
where that page came from (Origin). Checking both closes DNS rebinding (a foreign name that points
at this machine) and cross-site requests (a foreign page that posts to this one).
"""

import ipaddress
import re
import socket
import threading
from collections.abc import Iterable

from modules.settings.config import is_loopback

_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def split_host(value: str) -> tuple[str, int | None] | None:
    """'name:port', '[v6]:port' or 'name' as (lower-case name, port or None); None if malformed."""
    match = re.fullmatch(r"(?:\[([0-9a-f:.]{2,45})\]|([^\[\]:/@\s]{1,253}))(?::(\d{1,5}))?",
                         value.lower(), re.ASCII)  # fmt: skip
    if match is None:
        return None
    bracketed, plain, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and not 0 < port < 65536:
        return None
    if bracketed is not None:
        try:
            return str(ipaddress.IPv6Address(bracketed)), port
        except ValueError:
            return None
    return (plain, port) if _NAME.fullmatch(plain) else None


def is_wildcard(name: str) -> bool:
    """True for the addresses that mean "every network of this machine"."""
    try:
        return ipaddress.ip_address(name).is_unspecified
    except ValueError:
        return False


class HostPolicy:
    """The allow-list of Host names, and the rule which Origin belongs to which Host.

    bound: the address the server listens on. Bound to every network, any bare address is taken
    (an address cannot be re-pointed as a name can) and so is this machine's own name.
    public: names under which the server is reached through a proxy, with or without TLS.
    """

    def __init__(self, bound: str, public: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._names = {"localhost", bound.lower()}
        self._any_address = is_wildcard(bound)
        if self._any_address:
            own = socket.gethostname().lower()
            self._names |= {own, own.split(".")[0], own.split(".")[0] + ".local"}
        self._public: dict[str, bool] = {}
        for name in public:
            self.admit(name)

    def admit(self, name: str, *, tls: bool = False) -> None:
        """Answer to this public name from now on. tls: it is only ever reached with TLS."""
        parts = split_host(name)
        if parts is None:
            raise ValueError(f"{name!r} is not a host name.")
        with self._lock:
            self._public = {**self._public, parts[0]: tls}

    def is_public(self, name: str) -> bool:
        return name in self._public

    def scheme(self, name: str, arrived: str, forwarded: str) -> str:
        """How the visitor reached `name`, given how the request arrived here.

        forwarded: what a proxy says; it counts for public names only, as anybody could say it.
        """
        if self._public.get(name) or (name in self._public and forwarded == "https"):
            return "https"
        return arrived

    def allows(self, name: str) -> bool:
        """`name` as split_host gives it."""
        if name in self._names or name in self._public or is_loopback(name):
            return True
        if not self._any_address:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def same_origin(self, origin: str, host: str, scheme: str) -> bool:
        """Whether a page of `origin` is a page of this server, asked for as `host` by `scheme`.

        A public name may sit behind a proxy that adds TLS, so both schemes count there.
        """
        origin_scheme, separator, rest = origin.partition("://")
        ours, theirs = split_host(host), split_host(rest)
        if not separator or ours is None or theirs is None:
            return False
        allowed = {"http", "https"} if self.is_public(ours[0]) else {scheme}
        if origin_scheme not in allowed:
            return False
        default = _DEFAULT_PORTS[origin_scheme]
        return (ours[0], ours[1] or default) == (theirs[0], theirs[1] or default)
