import os
import time
from collections.abc import Iterator

from django.core.checks import CheckMessage, Info, Warning

from jobs.doctor import ONLINE, examines

SECONDS = 10.0


@examines("hub", ONLINE)
def hub() -> Iterator[CheckMessage]:
    import httpx2
    from huggingface_hub import constants

    from jobs.ml.hub import HubError, reason
    from jobs.ml.hub import read_bounded as read
    from jobs.ml.hub_preview import account_of

    try:
        if token := os.environ.get("HF_TOKEN", ""):
            yield Info(f"{constants.ENDPOINT} answers, and knows HF_TOKEN: it belongs to {account_of(token)}.")
        else:
            read(f"{constants.ENDPOINT}/api/models?limit=1", 2**20, time.monotonic() + SECONDS)
            yield Info(f"{constants.ENDPOINT} answers; no HF_TOKEN is set.")
    except HubError as error:
        yield Warning(f"{error}", hint=error.hint or "Is the network up, and HF_ENDPOINT right?")
    except httpx2.HTTPError as error:
        said = f"{constants.ENDPOINT} does not answer: {reason(error)}."
        yield Warning(
            said, hint="Is the network up, and HF_ENDPOINT right? Local folders and files can be used meanwhile."
        )
