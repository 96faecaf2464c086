"""Names on the Hugging Face hub: what its local cache has, and whether the hub can be asked."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from proxlm.text import shown

# Seconds that the hub may take to answer at all.
_LONGEST = 3.0


class NotOnHubError(OSError):
    """A name that is no folder, and that the hub cannot be asked for."""


def in_hub_cache(name: str) -> Path | None:
    """The folder of the revision that the local cache of the hub has of a model; None: it has none."""
    try:
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, "config.json")
    except Exception:  # a name that is none of the hub's
        return None
    return Path(found).parent if isinstance(found, str) else None


def check_hub(name: str) -> None:
    """See that a name is a folder, or one that can be asked of the hub, which would be tried for a minute.

    Raises:
        NotOnHubError: It is no folder and cannot be a name on the hub, stands in a folder that is here, or is not in
            the cache and the hub does not answer.
    """
    if os.path.isdir(name):
        return
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise NotOnHubError("no such folder, and no name that the hub could have") from error
    cached, parent = in_hub_cache(name) is not None, os.path.dirname(name)
    if constants.HF_HUB_OFFLINE:
        if not cached:
            raise NotOnHubError("no such folder, not in the hub's cache, and HF_HUB_OFFLINE is set")
        return
    if parent and os.path.isdir(parent) and not cached:
        raise NotOnHubError(f"no such folder in {shown(parent, 60)}; is its name right?")
    try:
        _ask(constants.ENDPOINT)
    except Exception as error:  # of the package that speaks HTTP
        where = shown(constants.ENDPOINT, 60)
        if cached:
            raise NotOnHubError(
                f"{where} does not answer; HF_HUB_OFFLINE=1 takes it from the cache"
            ) from error
        raise NotOnHubError(
            f"no such folder, not in the hub's cache, and {where} does not answer; HF_HUB_OFFLINE=1 never asks it"
        ) from error


@cache
def _ask(endpoint: str) -> None:
    """One request, remembered once it was answered. Raises what the HTTP package raises."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    get_session().head(endpoint, timeout=_LONGEST)
