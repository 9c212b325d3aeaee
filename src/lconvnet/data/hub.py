"""Named data sets by name, where there is internet: their parquet files, kept in the hub's own cache."""

from pathlib import Path

from lconvnet.data.errors import DataError
from lconvnet.extras import require

_TIMEOUT = 10  # seconds for the first answer, so that no network means an error and not a wait


def download(name: str, repository: str) -> Path:
    """Return the local folder with the parquet files of `repository`, downloading what the cache lacks.

    Without a connection a complete earlier download is used. Raises `DataError` naming `--data-dir` and
    `LCONVNET_DATA` when there is neither.
    """
    hub = require("huggingface_hub", "data")
    patterns = ["*train-*.parquet", "*test-*.parquet"]
    try:
        found = hub.snapshot_download(repository, repo_type="dataset", allow_patterns=patterns, etag_timeout=_TIMEOUT)
    except Exception as error:  # httpx, hub and disk errors alike mean: not available from here
        reason = str(error).splitlines()[0]
        raise DataError(
            f"data {name!r} is not on this machine and {repository!r} cannot be downloaded ({reason}): pass "
            f"--data-dir DIR or set LCONVNET_DATA=DIR where DIR/{name}/ holds train-*.parquet and "
            "test-*.parquet, "
            'or use the embedded "digits"'
        ) from error
    return Path(found)
