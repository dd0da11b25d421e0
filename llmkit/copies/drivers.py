"""How each kind of store takes a file: S3 in parts, a web server by PUT, all others as fsspec writes them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from typing import Any

from llmkit.copies.outgoing import Outgoing, md5
from llmkit.copies.store import Attempt, Sending, Traffic
from llmkit.data.sources.retries import MISSING, TRANSIENT, RequestError, in_thread
from llmkit.errors import RunFault
from llmkit.files import sync_folder

FILE_SYSTEMS = frozenset({"file", "sftp"})
"""What fsspec calls stores that have folders, and show a file before all of it is there: in these one is
written under a name aside. All others take an object as a whole."""
_CHUNK = 256 << 10
"""Bytes that a web server gets at a time."""


class S3Driver:
    """S3, and stores that speak its language: files of more than one part go there part by part, each with
    its MD5, so that the store refuses what has changed on the way."""

    def __init__(self, filesystem: Any, stall_seconds: float) -> None:
        self._filesystem, self._limit = filesystem, stall_seconds

    def put(self, url: str, content: Outgoing, traffic: Traffic, sending: Sending) -> bool:
        """See `Driver.put`. The tag of an object is the MD5 of its parts, unless the store encrypts it."""
        bucket, key, _ = self._filesystem.split_path(self._filesystem._strip_protocol(url))
        at, attempt = {"Bucket": bucket, "Key": key}, sending.attempt()
        if content.count <= 1:
            body = next(content.parts(), b"")
            answer = self._send(traffic, "put_object", body, **at)
            attempt.add(len(body))
            return _tag(answer) == md5(body).hex()
        upload = {**at, "UploadId": self._ask(traffic, "create_multipart_upload", **at)["UploadId"]}
        try:
            parts, digests = [], []
            for number, body in enumerate(content.parts(), start=1):
                answer = self._send(traffic, "upload_part", body, PartNumber=number, **upload)
                attempt.add(len(body))
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                digests.append(md5(body))
            answer = self._ask(
                traffic, "complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload
            )
        except BaseException:
            with contextlib.suppress(Exception):  # what it has taken would else be kept, and paid for
                self._once("abort_multipart_upload", **upload)
            raise
        return _tag(answer) == f"{md5(b''.join(digests)).hex()}-{len(parts)}"

    def delete(self, url: str, traffic: Traffic) -> None:
        bucket, key, _ = self._filesystem.split_path(self._filesystem._strip_protocol(url))
        self._ask(traffic, "delete_object", Bucket=bucket, Key=key)

    def _send(self, traffic: Traffic, method: str, body: bytes, **arguments: Any) -> Any:
        digest = base64.b64encode(md5(body)).decode()
        return self._ask(traffic, method, Body=body, ContentMD5=digest, **arguments)

    def _ask(self, traffic: Traffic, method: str, **arguments: Any) -> Any:
        return traffic.try_again(lambda: self._once(method, **arguments))

    def _once(self, method: str, **arguments: Any) -> Any:
        from fsspec.asyn import sync

        async def ask() -> Any:
            # A server that takes no more bytes is seen by no other limit.
            async with asyncio.timeout(2 * self._limit):
                try:
                    return await self._filesystem._call_s3(method, **arguments)
                except OSError as error:
                    answer = getattr(error.__cause__, "response", {})
                    if answer.get("Error", {}).get("Code") == "BadDigest":  # else a 400 is final
                        raise RequestError("the store received other bytes than sent", False) from error
                    raise

        return sync(self._filesystem.loop, ask)


def _tag(answer: Any) -> str:
    return str(answer.get("ETag", "")).strip('"')


class WebDriver:
    """A web server that takes files by PUT and deletes them by DELETE. What it has taken is read back."""

    def __init__(self, filesystem: Any, stall_seconds: float) -> None:
        self._filesystem, self._limit = filesystem, stall_seconds

    def put(self, url: str, content: Outgoing, traffic: Traffic, sending: Sending) -> bool:
        """See `Driver.put`."""
        from fsspec.asyn import sync

        traffic.try_again(lambda: sync(self._filesystem.loop, self._put, url, content, sending.attempt()))
        return False

    def delete(self, url: str, traffic: Traffic) -> None:
        from fsspec.asyn import sync

        async def delete() -> None:
            session = await self._filesystem.set_session()
            async with session.delete(self._filesystem.encode_url(url)) as answer:
                _check_status(answer)

        traffic.try_again(lambda: sync(self._filesystem.loop, delete))

    async def _put(self, url: str, content: Outgoing, attempt: Attempt) -> None:
        faults = list[RunFault]()

        async def chunks() -> AsyncIterator[bytes]:
            for number in range(content.count):
                try:
                    part = content.part(number)
                except RunFault as fault:
                    faults.append(fault)
                    raise
                for at in range(0, len(part), _CHUNK):
                    chunk = part[at : at + _CHUNK]
                    yield chunk
                    attempt.add(len(chunk))

        async def put() -> None:
            session = await self._filesystem.set_session()
            headers = {"Content-Length": str(content.file.size), "Content-Type": "application/octet-stream"}
            async with session.put(
                self._filesystem.encode_url(url), data=chunks() if content.count else b"", headers=headers
            ) as answer:
                _check_status(answer)

        try:
            await _while_it_goes_on(put(), lambda: attempt.number, self._limit)
        except Exception:
            if faults:  # aiohttp would have it that the connection broke
                raise faults[0] from None
            raise


def _check_status(answer: Any) -> None:
    if not 200 <= answer.status < 300:
        final, missing = answer.status not in TRANSIENT, answer.status in MISSING
        raise RequestError(f"HTTP {answer.status} {answer.reason or ''}".strip(), final, missing)


async def _while_it_goes_on(work: Awaitable[None], progress: Callable[[], int], limit: float) -> None:
    """Waits for work as long as `progress` changes within `limit` seconds. Raises RequestError."""
    task = asyncio.ensure_future(work)
    seen = progress()
    try:
        while not (await asyncio.wait({task}, timeout=limit))[0]:
            if (now := progress()) == seen:
                raise RequestError(f"no byte was taken in {limit:g} s", False)
            seen = now
        await task
    finally:
        task.cancel()


class FileDriver:
    """Any other store that fsspec knows, in a thread that is left behind where it hangs. What the store has
    taken is read back."""

    def __init__(self, filesystem: Any, stall_seconds: float) -> None:
        self._filesystem, self._limit = filesystem, stall_seconds
        protocol = filesystem.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._has_folders = not FILE_SYSTEMS.isdisjoint(protocols)
        self._is_local = "file" in protocols

    def put(self, url: str, content: Outgoing, traffic: Traffic, sending: Sending) -> bool:
        """See `Driver.put`."""
        path = self._filesystem._strip_protocol(url)

        def one() -> None:
            attempt, given_up = sending.attempt(), Event()
            try:
                self._limited(lambda: self._write(path, content, attempt, given_up), lambda: attempt.number)
            finally:
                given_up.set()

        traffic.try_again(one)
        return False

    def _write(self, path: str, content: Outgoing, attempt: Attempt, given_up: Event) -> None:
        """One attempt. given_up: set once nobody waits for it: then the file does not get its name."""
        place, folder = f"{path}.part" if self._has_folders else path, path.rpartition("/")[0]
        if self._has_folders:
            self._filesystem.makedirs(folder, exist_ok=True)
            if self._filesystem.exists(place):  # an attempt that hangs may write into it yet
                self._filesystem.rm_file(place)
        with self._filesystem.open(place, "wb", block_size=content.part_bytes) as file:
            for part in content.parts():
                file.write(part)
                attempt.add(len(part))
            if self._is_local:  # what is called complete survives a power cut
                file.flush()
                os.fsync(file.fileno())
        if self._has_folders and not given_up.is_set():
            self._filesystem.mv(place, path)
            if self._is_local:
                sync_folder(Path(folder))
        self._filesystem.invalidate_cache()

    def delete(self, url: str, traffic: Traffic) -> None:
        path = self._filesystem._strip_protocol(url)

        def remove() -> None:
            self._filesystem.rm_file(path)
            if self._has_folders:
                with contextlib.suppress(OSError):  # it is not empty
                    self._filesystem.rmdir(path.rpartition("/")[0])

        traffic.try_again(lambda: self._limited(remove, lambda: 0))

    def _limited(self, function: Callable[[], None], progress: Callable[[], int]) -> None:
        """Runs it in a thread as long as `progress` changes within the limit. Raises RequestError."""
        future: Future[None] = in_thread(function)
        seen = progress()
        while True:
            try:
                return future.result(self._limit)
            except TimeoutError:
                if future.done():
                    raise
                if (now := progress()) == seen:
                    raise RequestError(f"no answer in {self._limit:g} s", False) from None
                seen = now
