"""Addresses, commands and messages of servers without the passwords and keys in them."""

import re

# In an address and in what servers say of it: the part before "@", and what is not to be seen in a query or a header.
_CREDENTIALS = re.compile(
    r"(?<=://)[^/\s?#]*@"
    r"|(?<=[?&])([\w-]*(?:key|token|secret|sig|signature|password|credential|auth)=)[^&#\s'\"]+"
    r"|(\b(?:hf_|sk-|gh[pousr]_)(?=[\w-]*(?:\d|(?-i:[a-z][A-Z]))))[\w-]{4,}"
    r"|(--[\w-]*(?:key|token|secret|password)[= ]|(?-i:\b[A-Z0-9_]*(?:KEY|TOKEN|SECRET|PASSWORD)=))"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s'\"]+)"
    r"|(\b(?:x-[\w-]*(?:key|token|secret)|api[-_]?key)['\"]?\s*[:=]\s*['\"]?)[^\s'\"]+"
    r"|\b(authorization['\"]?[:=]\s*['\"]?(?:(?:bearer|basic|token|apikey)\s+)?|bearer\s+(?=\S{8}))[^\s'\"]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """A text without the users, passwords, keys and tokens in its addresses, headers, options and variables."""
    return _CREDENTIALS.sub(lambda match: f"{match[match.lastindex]}…" if match.lastindex else "", text)
