"""Removing credentials from everything that is stored or shown."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_HIDDEN = "***"
_NAME = r"\b(?i:abfss?)://\$?[a-z0-9][a-z0-9-]{2,62}|\b(?i:gc?s)://anonymous"
"""What is no secret before `@`: a container or an account of Azure, and Google's `anonymous`."""
_USERINFO = re.compile(rf"({_NAME})@(?![^/\s'\"]*@)|(?<=://)[^/\s'\"]*@")
_ODD_USERINFO = re.compile(r"(?<=://)[^/\s:@]*:(?!\d+(?:[/?#]|$))[^\s@\"]*@(?:[^\s/@\"]*@)*")
"""A password may hold a slash or a quote, though these should be percent-encoded in a URI."""
_BARE_USERINFO = re.compile(
    r"(?<![^\s'\"=(])[^\s:/@'\"=(]+(?::(?!//)[^\s@'\"=]*)?@"
    r"(?=(?:[\w-]+\.[\w.-]+|localhost|\[[\da-f:]+\]):\d{1,5}(?!\w)|[\w-]+:\d{4,5}(?!\w))"
)
"""Credentials before `HOST:PORT` without a scheme: an address of Ray, also quoted in its errors."""
_SECRET_FIELD = re.compile(
    r"(?i)([?&;#][^=&;\s]*(?:token|passw|pwd|secret|key|sig|credential|auth)[^=&;\s]*=)[^&;\s'\"]+"
)
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRET_NAME = re.compile(
    r"(?i)(?:token|passw(?:or)?d|secret|secret_?key|access_?key(?:_?id)?|api_?key|credentials?)$"
)
_PART_OF_SECRET_NAME = re.compile(r"(?i)token|passw|secret|key|credential|auth")
_SHORTEST_SECRET = 4
"""Shorter secrets are not replaced, because they occur in ordinary text."""
_SHORTEST_BY_NAME = 8
"""The same if only the name of a variable suggests that it holds a secret."""


def redact(text: str) -> str:
    """Return the text without credentials in URIs and values of secret environment variables."""
    for secret in _secrets():
        text = text.replace(secret, _HIDDEN)
    return _SECRET_FIELD.sub(rf"\1{_HIDDEN}", _without_userinfo(text))


def holds_userinfo(text: str) -> bool:
    """Return whether a text holds `USER@` or `USER:PASSWORD@` before a host, as in a URI.

    A container or an account of Azure before `@`, and `anonymous` of Google, do not count.

    >>> holds_userinfo("s3://KEY:SEC/RET@bucket/x"), holds_userinfo("s3://bucket/you@home")
    (True, False)
    >>> holds_userinfo("abfs://container@account.dfs.core.windows.net/x")
    False
    """
    return _without_userinfo(text) != text


def without_name(uri: str) -> str:
    """Return a URI without what is no secret before `@`: a container of Azure, for example.

    >>> without_name("abfs://container@account/x"), without_name("s3://KEY@bucket/x")
    ('abfs://account/x', 's3://KEY@bucket/x')
    """
    return re.sub(rf"^({_NAME})@", lambda found: uri[: uri.index("://") + 3], uri)


def may_name_a_secret(variable: str) -> bool:
    """Return whether an environment variable of this name may hold a secret.

    This covers more than `redact` hides, because it does no harm not to pass on a variable.

    >>> may_name_a_secret("AWS_ACCESS_KEY_ID"), may_name_a_secret("RAY_TRAIN_V2_ENABLED")
    (True, False)
    """
    return bool(_PART_OF_SECRET_NAME.search(variable))


def redact_all(content: Any) -> Any:
    """Return plain content, as in JSON or TOML, with every text in it redacted."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, Mapping):
        return {key: redact_all(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redact_all(item) for item in content]
    return content


def _without_userinfo(text: str) -> str:
    text = _USERINFO.sub(lambda found: found[0] if found[1] else f"{_HIDDEN}@", text)
    for pattern in (_ODD_USERINFO, _BARE_USERINFO):
        text = pattern.sub(f"{_HIDDEN}@", text)
    return text


def _secrets() -> list[str]:
    """Return the values of secret environment variables, the longest first."""
    found = [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    found = [secret for secret in found if len(secret) >= _SHORTEST_SECRET]
    found += [
        value
        for name, value in os.environ.items()
        # A path of a file that holds the secret is not a secret itself.
        if len(value) >= _SHORTEST_BY_NAME
        and _SECRET_NAME.search(name)
        and not value.startswith(("/", "~"))
    ]
    return sorted(set(found), key=len, reverse=True)
