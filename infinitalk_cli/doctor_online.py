"""Whether the hub of the weights answers: the one check that uses the network, and only on request."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

from infinitalk_cli.doctor_machine import Check

LIMIT_S = 5.0
ENDPOINT = "HF_ENDPOINT"


def check_hub(url: str | None = None) -> Check:
    """Ask for the hub's front page. `url`: None for HF_ENDPOINT, else what huggingface_hub has."""
    url = url or os.environ.get(ENDPOINT) or _default_endpoint()
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S):
            return Check("hub", True, False, f"{url} answers")
    except urllib.error.HTTPError as error:
        return Check("hub", True, False, f"{url} answers with status {error.code}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check("hub", False, False, f"{url} does not answer: {reason}", f"export {ENDPOINT}=MIRROR, or a proxy")


def _default_endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
