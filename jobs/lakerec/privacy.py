"""The key under which user ids become pseudonyms."""

from __future__ import annotations

import hashlib
import hmac
import os

from lakerec.config import Config
from lakerec.errors import ConfigError


def user_key(config: Config) -> str:
    """The key from the environment; raises ConfigError where it is not set."""
    name = config.privacy.key_env
    if not os.environ.get(name):
        raise ConfigError(f"{config.file}: privacy.pseudonymise needs a key in the environment variable {name}")
    return os.environ[name]


def known_as(config: Config, user: str) -> str:
    """The id that the tables have for a user of the source: HMAC-SHA256 in hex (RFC 2104) where pseudonymised."""
    if not config.privacy.pseudonymise:
        return user
    return hmac.new(user_key(config).encode(), user.encode(), hashlib.sha256).hexdigest()
