"""Users and their passwords: read once at the start, and refused as a whole when anything is off.

Three forms are read: `name:password` from the command line, a users file with one
`name:$argon2id$...` a line, and the JSON list [{"user": ..., "pass": ...}] that Fooocus users
have ("hash" with the SHA-256 in hexadecimal as well). A file that cannot be read in full stops
the start: a server that silently runs without a login is the worst outcome there is.

`python -m modules.api.auth NAME` asks for a password and writes a line for the users file.
"""

import getpass
import hashlib
import hmac
import json
import re
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher, extract_parameters
from argon2.exceptions import InvalidHashError, VerificationError
from argon2.low_level import Type

from modules.spec.errors import ConfigError

FILE_BYTES = 1024 * 1024
PASSWORD_CHARACTERS = 1_024
_NAME = re.compile(r"[^\s:\x00-\x1f]{1,64}")
_Check = Callable[[str], bool]


class Users:
    """Names and how to check each one's password; never empty."""

    def __init__(self, checks: dict[str, tuple[_Check, bool]]) -> None:
        if not checks:
            raise ConfigError("The login has no users; name at least one, or leave --auth out.")
        self._checks = checks
        self._hasher = PasswordHasher()
        self._decoy = self._hasher.hash(secrets.token_hex(16))

    def __len__(self) -> int:
        return len(self._checks)

    @property
    def owner(self) -> str:
        """The first one named: whose computer it is."""
        return next(iter(self._checks))

    def verify(self, name: str, password: str) -> bool:
        """Whether `password` is `name`'s. Takes as long for a name that does not exist.

        Slow on purpose (about 0.1 s, 64 MiB): call it in a thread, few at a time.
        """
        check, is_slow = self._checks.get(name, (None, False))
        password = password[: PASSWORD_CHARACTERS + 1]
        fits = len(password) <= PASSWORD_CHARACTERS
        right = check is not None and check(password)
        if not is_slow:
            _argon2_matches(self._hasher, self._decoy, password)
        return right and fits


def load_users(auth: str | Path) -> Users:
    """Users of a file (a Path), or the one user of `name:password` (a str).

    Raises ConfigError with one sentence for anything that is not exactly right.
    """
    if isinstance(auth, Path):
        return _users_of_file(auth)
    name, _, password = auth.partition(":")
    return Users({_name(name, "--auth"): _check(password, "--auth")})


def _users_of_file(path: Path) -> Users:
    where = f"The users file {path.name}"
    try:
        if not path.is_file():
            raise ConfigError(f"{where} is not a file; give the path of a file.")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{where} cannot be read ({error.strerror}); check its permissions."
        ) from None
    if len(data) > FILE_BYTES:
        raise ConfigError(f"{where} is larger than 1 MiB; it should hold names and hashes only.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8 text; save it as UTF-8.") from None
    if "\x00" in text:
        raise ConfigError(f"{where} holds NUL characters; save it as plain text.")
    is_json = path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{")
    pairs = _pairs_of_json(text, where) if is_json else _pairs_of_lines(text, where)
    checks: dict[str, tuple[_Check, bool]] = {}
    for name, check in pairs:
        if name in checks:
            raise ConfigError(f"{where} names {name!r} twice; keep one of them.")
        checks[name] = check
    if not checks:
        raise ConfigError(f"{where} names no users; add one, or leave --auth out.")
    return Users(checks)


def _pairs_of_lines(text: str, where: str) -> list[tuple[str, tuple[_Check, bool]]]:
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, secret = (part.strip() for part in line.partition(":"))
        at = f"{where}, line {number},"
        if not colon:
            raise ConfigError(f"{at} is not name:hash; write one user a line.")
        if not secret.startswith("$argon2id$"):
            raise ConfigError(
                f"{at} holds no argon2id hash; make one with "
                f"`python -m modules.api.auth {name[:64]}`."
            )
        pairs.append((_name(name, at), _check(secret, at)))
    return pairs


def _pairs_of_json(text: str, where: str) -> list[tuple[str, tuple[_Check, bool]]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f" at line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigError(f"{where} is not valid JSON{line}; correct it there.") from None
    if not isinstance(rows, list):
        raise ConfigError(f'{where} is not a list; it should read [{{"user": …, "pass": …}}].')
    return [_pair_of_row(row, f"{where}, entry {n},") for n, row in enumerate(rows, 1)]


def _pair_of_row(row: Any, at: str) -> tuple[str, tuple[_Check, bool]]:
    if not isinstance(row, dict) or not isinstance(row.get("user"), str):
        raise ConfigError(f'{at} has no "user" text; it should read {{"user": …, "pass": …}}.')
    name = _name(row["user"], at)
    keys = [key for key in ("pass", "hash") if key in row]
    if len(keys) != 1 or not isinstance(row[keys[0]], str) or set(row) - {"user", "pass", "hash"}:
        raise ConfigError(f'{at} should have "user" and one of "pass" or "hash", all of them text.')
    secret = row[keys[0]]
    if keys[0] == "pass" or secret.startswith("$argon2"):
        return name, _check(secret, at)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", secret):
        raise ConfigError(f'{at} has a "hash" that is neither argon2id nor SHA-256; renew it.')
    return name, (_sha256_check(secret.lower()), False)


def _name(name: str, at: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{at} has an unusable user name; use 1 to 64 characters without spaces or colons."
        )
    return name


def _check(secret: str, at: str) -> tuple[_Check, bool]:
    """How to check a password against `secret`, a password itself or its argon2id hash."""
    if not secret:
        raise ConfigError(f"{at} has an empty password; choose one.")
    if not secret.startswith("$argon2"):
        if len(secret) > PASSWORD_CHARACTERS:
            raise ConfigError(f"{at} has a password over {PASSWORD_CHARACTERS:,} characters.")
        return _plain_check(secret), False
    try:
        sound = extract_parameters(secret).type is Type.ID
    except (InvalidHashError, ValueError):
        sound = False
    if not sound:
        raise ConfigError(f"{at} has a broken argon2id hash; make a new one.")
    hasher = PasswordHasher()
    return (lambda password: _argon2_matches(hasher, secret, password)), True


def _plain_check(secret: str) -> _Check:
    key = secrets.token_bytes(32)

    def digest(text: str) -> bytes:
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=key).digest()

    wanted = digest(secret)
    return lambda password: hmac.compare_digest(digest(password), wanted)


def _sha256_check(wanted: str) -> _Check:
    def check(password: str) -> bool:
        found = hashlib.sha256(password.encode("utf-8", "surrogatepass")).hexdigest()
        return hmac.compare_digest(found, wanted)

    return check


def _argon2_matches(hasher: PasswordHasher, wanted: str, password: str) -> bool:
    try:
        return hasher.verify(wanted, password.encode("utf-8", "surrogatepass"))
    except (VerificationError, InvalidHashError):
        return False


def main(arguments: list[str]) -> int:
    """Ask for a password and write `name:hash`, a line for the users file."""
    if len(arguments) != 1 or not _NAME.fullmatch(arguments[0]):
        sys.stderr.write("Usage: python -m modules.api.auth NAME\n")
        return 2
    password = getpass.getpass(f"Password for {arguments[0]}: ")
    if not password:
        sys.stderr.write("The password is empty; choose one.\n")
        return 2
    sys.stdout.write(f"{arguments[0]}:{PasswordHasher().hash(password)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
