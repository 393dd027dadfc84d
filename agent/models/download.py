"""The child that downloads: ``<executable> pull-worker``.

Standard input carries one ``Job`` a line: when it closes, whoever asked has gone, and the child
ends at once. Standard output carries an event a line. This is the only part of ``agent.models`` that opens connections; it writes into the job's folder and nowhere else,
``<name>.part`` while a file is under way. What is whole there is still to be verified.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn, cast
from urllib.parse import unquote, urlsplit

import msgspec

from agent.errors import (
    DiskFull,
    ModelNotFound,
    ModelRejected,
    OutriderError,
    SourceUnreachable,
    StorageError,
    Unauthorized,
)
from agent.models.pull_job import Event, Fetched, Job, Listing, Progress, RemoteFile, failed, require_tls

_TELL_EVERY_S = 0.2
_CHUNK = 256 << 10  # bytes; what has not filled one is lost when a connection is cut
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
# Read by the hub's client when it is imported. Its own transfer protocol cannot go on with a
# part of an earlier process, and plain HTTP can; nothing is reported about this device.
_CLIENT_ENVIRONMENT = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "HF_HUB_VERBOSITY": "error",
}

Send = Callable[[Event], None]


def main(arguments: Sequence[str]) -> NoReturn:
    """Do jobs until standard input closes."""
    del arguments
    events = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    os.environ.update(_CLIENT_ENVIRONMENT)
    jobs: SimpleQueue[Job] = SimpleQueue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()

    def send(event: Event) -> None:
        os.write(events, msgspec.json.encode(event) + b"\n")

    _prepare_client()
    while True:
        job = jobs.get()
        try:
            with _plain_errors(job):
                if job.action == "look":
                    send(_look_at_url(job) if job.url else _look_at_hub(job))
                else:
                    _fetch(job, send)
                    send(Fetched())
        except OutriderError as error:
            send(failed(error))


def _read(jobs: SimpleQueue[Job]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(msgspec.json.decode(line, type=Job))
    os._exit(0)  # also in the middle of a download: nobody waits for it any more


def _prepare_client() -> None:
    """Let the hub's client follow no redirect to an address without TLS, and write what it has soon."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> Any:
        client = default_client_factory()
        client.event_hooks["request"].append(lambda request: require_tls(str(request.url)))
        return client

    set_client_factory(factory)
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK


def _look_at_hub(job: Job) -> Listing:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=job.endpoint, token=job.token or False, library_name="outrider")
    info = api.model_info(job.repository, revision=job.revision or None, files_metadata=True, timeout=30)
    if not info.sha:
        raise SourceUnreachable(f"{job.endpoint} does not tell the commit of {job.repository}: not a hub?")
    files = tuple(
        RemoteFile(
            path=file.rfilename,
            bytes=file.lfs.size if file.lfs else file.size,
            sha256=file.lfs.sha256 if file.lfs else None,
            git_sha1=None if file.lfs else file.blob_id,
        )
        for file in info.siblings or ()
    )
    gguf: dict[str, Any] = info.gguf or {}
    card = info.card_data
    return Listing(
        revision=info.sha,
        files=files,
        licence=str((card.get("license_name") or card.get("license") or "") if card else ""),
        parameters=gguf.get("total") or (info.safetensors.total if info.safetensors else None),
        gated=bool(info.gated),
    )


def _look_at_url(job: Job) -> Listing:
    from huggingface_hub.utils._http import get_session

    reply = get_session().head(job.url, headers={"Accept-Encoding": "identity"}, timeout=30)
    reply.raise_for_status()
    length = reply.headers.get("content-length", "")
    file = RemoteFile(
        path=unquote(urlsplit(job.url).path).rpartition("/")[2],
        bytes=int(length) if length.isdecimal() else None,
        url=job.url,
    )
    return Listing(revision=reply.headers.get("etag", reply.headers.get("last-modified", "")), files=(file,))


def _fetch(job: Job, send: Send) -> None:
    total = sum(file.bytes or 0 for file in job.files)
    done = 0
    last = 0.0

    def tell(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= _TELL_EVERY_S or done == total:
            last = time.monotonic()
            send(Progress(done=done, total=total))

    for file in job.files:
        _fetch_one(job, file, tell)


def _fetch_one(job: Job, file: RemoteFile, tell: Callable[[int], None]) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    whole = Path(job.folder) / file.name
    if whole.exists() and whole.stat().st_size == file.bytes:
        tell(file.bytes)
        return
    part = whole.with_name(f"{file.name}.part")
    headers = {"Accept-Encoding": "identity"}
    url = file.url
    if not url:
        headers |= build_hf_headers(token=job.token or False, library_name="outrider")
        url = hf_hub_url(job.repository, file.path, revision=job.revision, endpoint=job.endpoint)
    part.touch(mode=0o600)
    with part.open("r+b", buffering=0) as raw:
        here = raw.seek(0, os.SEEK_END)
        if file.bytes is None or here > file.bytes:  # nothing that the end could be known by
            raw.truncate(0)
            here = raw.seek(0)
        tell(here)
        counted = cast("BinaryIO", _Counted(raw, tell))
        http_get(
            url, counted, resume_size=here, headers=headers, expected_size=file.bytes, displayed_filename=file.name
        )
        os.fsync(raw.fileno())
    part.replace(whole)


class _Counted(io.RawIOBase):
    """A file that tells how many bytes were added to it, or taken back by a server that starts anew."""

    def __init__(self, file: io.FileIO, tell: Callable[[int], None]) -> None:
        self._file = file
        self._tell = tell

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            count = self._file.write(view)
            self._tell(count)
            view = view[count:]
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        before = self._file.seek(0, os.SEEK_END) if size is not None else os.fstat(self._file.fileno()).st_size
        after = self._file.truncate(size)
        self._tell(after - before)
        return after


@contextmanager
def _plain_errors(job: Job) -> Iterator[None]:
    """Turn what the client meets into the errors that users meet."""
    import httpx2
    from huggingface_hub import errors

    what = job.repository or job.url
    try:
        yield
    except errors.GatedRepoError as error:
        raise Unauthorized(
            f"{what} is gated: its owner wants the licence accepted on the hub first; do that at "
            f"{job.endpoint}/{job.repository}, then give an access token in HF_TOKEN or the file of pull.token_file"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{what} has no revision {job.revision!r}", param="model") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"{job.endpoint} has no repository {what}, or it is private: check the name, or set HF_TOKEN", param="model"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(f"a file of {what} is gone from {job.endpoint}", param="model") from error
    except (errors.HfHubHTTPError, httpx2.HTTPStatusError) as error:
        raise _refused(what, error.response.status_code) from error
    except (httpx2.HTTPError, errors.OfflineModeIsEnabled) as error:
        raise SourceUnreachable(
            f"{urlsplit(job.url or job.endpoint).netloc} cannot be reached ({type(error).__name__}); "
            "what has arrived is kept, pull again to go on"
        ) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise DiskFull("no space is left; free some and pull again: what has arrived is kept") from error
        if error.errno is None:  # the client's own finding about sizes
            raise ModelRejected(f"{what}: not the size that was promised; pull again") from error
        raise StorageError(f"{job.folder}: {error.strerror}; check its permissions") from error


def _refused(what: str, status: int) -> OutriderError:
    if status in {401, 403}:
        return Unauthorized(f"access to {what} is refused ({status}); check HF_TOKEN or pull.token_file")
    if status in {404, 410}:
        return ModelNotFound(f"there is nothing at {what} ({status})", param="model")
    wait = "; it asks for a pause: try again in some minutes" if status == 429 else "; try again later"
    return SourceUnreachable(f"{what}: the server answers {status}{wait}; what has arrived is kept")
