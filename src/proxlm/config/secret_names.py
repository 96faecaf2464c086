"""Names of settings that hold secrets: api_key, apiToken, db-pwd, Authorization, …"""

from __future__ import annotations

import re

# The ends of names, in words: api_key, apiKey, API-KEY and apikey are all ("api", "key") or ("apikey",).
_CERTAIN = {
    "password", "passwd", "pwd", "passphrase", "passcode", "credential", "credentials", "apikey", "accesskey",
    "secretkey", "privatekey", "authkey", "signingkey", "clientsecret", "accesstoken", "authtoken", "bearertoken",
    "apitoken", "apisecret", "secretaccesskey", "passwords", "apikeys", "apitokens", "pw", "passkey",
    "sshkey", "encryptionkey", "masterkey", "accountkey", "subscriptionkey", "servicekey", "webhooksecret",
    "signingsecret", "appsecret", "refreshtoken", "sessiontoken", "sastoken", "bottoken", "useraccesstoken",
}  # fmt: skip
_LIKELY = {
    "token", "secret", "auth", "authorization", "authorisation", "bearer", "cookie", "secrets", "pass", "jwt",
    "session",
}  # fmt: skip
# Of these a token is a piece of text.
_OF_TEXT = {
    "eos", "bos", "pad", "unk", "sep", "cls", "mask", "stop", "start", "end", "special", "begin", "image", "first",
    "last", "final", "answer", "think", "separator",
}  # fmt: skip
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _words(name: str) -> list[str]:
    """The words of a name in any spelling; numbers, as in password2, do not count."""
    return [word.lower() for word in _WORDS.findall(name)]


def secret_name(name: str) -> bool:
    """Whether a setting of this name may be a secret: api_key, apiToken, db-pwd, Authorization, …"""
    return bool(name) and (is_certain(name) or is_likely(name) or is_key(name))


def is_certain(name: str) -> bool:
    """Whether nothing but a secret has such a name."""
    words = _words(name)
    return any("".join(words[-count:]) in _CERTAIN for count in (1, 2, 3) if count <= len(words))


def is_likely(name: str) -> bool:
    """Whether a secret may have such a name, or a piece of text: token, secret, auth."""
    words = _words(name)
    return bool(words) and words[-1] in _LIKELY and not (len(words) > 1 and words[-2] in _OF_TEXT)


def is_key(name: str) -> bool:
    """Whether the name is of a key, which may be that of a service or that of a table."""
    words = _words(name)
    return bool(words) and words[-1] in ("key", "keys")
