"""A server on this machine that speaks the chat completions API, reads what it is shown, and can be made unreliable.

Films made by ``coded_film`` carry a number in the picture, so that a caption shows which clip it was written for.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import io
import json
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.video.frame import VideoFrame

WIDTH, HEIGHT, BLOCK = 64, 32, 8
_BLANK_S = 0.1
_BITS = (WIDTH // BLOCK) * (HEIGHT // BLOCK)


def coded_picture(number: int, white: int = 255) -> np.ndarray:
    """H W 3: a number below 2**16 as black and white blocks, then its complement as a check."""
    bits = [(number >> i) & 1 for i in range(16)]
    blocks = np.array(bits + [1 - bit for bit in bits]).reshape(HEIGHT // BLOCK, WIDTH // BLOCK)
    return np.repeat(np.kron(blocks * white, np.ones((BLOCK, BLOCK), np.uint8))[..., None], 3, axis=2).astype(np.uint8)


def read_picture(jpeg: bytes) -> int:
    """The number in a picture.

    Raises:
        ValueError: it holds none.
    """
    grey = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    small = cv2.resize(grey, (WIDTH // BLOCK, HEIGHT // BLOCK), interpolation=cv2.INTER_AREA)
    bits = (small.reshape(-1) > 127).astype(int)
    if (bits[:16] == bits[16:]).any():
        raise ValueError("no number in this picture")
    return int(sum(int(bit) << i for i, bit in enumerate(bits[:16])))


def coded_film(path: Path, first: int, *, num_clips: int, clip_s: float = 0.5, fps: int = 4) -> None:
    """A film whose clips of ``clip_s`` show the numbers from ``first`` on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(round(num_clips * clip_s * fps)):
            picture = coded_picture(first + int(i / fps / clip_s), white=255 - 20 * (i % 4))  # no two are the same
            container.mux(stream.encode(VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def frames_of(video: bytes) -> list[bytes]:
    """The frames of a video file, each as JPEG."""
    with av.open(io.BytesIO(video)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return [bytes(cv2.imencode(".jpg", frame)[1]) for frame in frames]


@dataclasses.dataclass
class Behaviour:
    """How a server misbehaves. Shares are of requests."""

    delay_s: float = 0.0  # at most; each request waits for some of it, so that answers come out of order
    errors: float = 0.0  # answered with 500
    dropped: float = 0.0  # the connection ends without an answer
    limited: float = 0.0  # answered with 429
    key: str | None = None
    models: tuple[str, ...] = ("teller",)
    gone_after: int | None = None  # answers; after that, connections end without one
    silent: bool = False  # does not count tokens
    takes_videos: bool = True
    unsupported: frozenset[str] = frozenset()  # fields of a request, which is then answered with 400
    refuses: str | None = None  # a question that is to be answered with this; with 400
    status_after: tuple[int, int] | None = None  # answers; after that, all are refused with this status
    trickle_s: float = 0.0  # blanks come for so long before the answer does
    page: bytes | None = None  # answers everything with this, as what is no such server does
    page_type: str = "text/html"


class Server:
    """What it was asked and what it answered, counted by the whole question."""

    def __init__(self, behaviour: Behaviour, answer: Callable[[str, list[bytes]], str]) -> None:
        self.behaviour, self.answer = behaviour, answer
        self.answered: collections.Counter[str] = collections.Counter()
        self.num_requests = self._num_promised = 0
        self.url = ""
        self._lock = threading.Lock()
        self._random = random.Random(0)

    def decide(self) -> tuple[str, float]:
        """What happens to the next request, and after how long."""
        with self._lock:
            self.num_requests += 1
            drawn, delay = self._random.random(), self._random.random() ** 3 * self.behaviour.delay_s
            how = self.behaviour
            if how.gone_after is not None and self._num_promised >= how.gone_after:
                return "dropped", 0.0
            if how.status_after is not None and self._num_promised >= how.status_after[0]:
                return "refused", 0.0
            for name, share in (("errors", how.errors), ("dropped", how.dropped), ("limited", how.limited)):
                if drawn < share:
                    return name, delay
                drawn -= share
            self._num_promised += 1  # here, for between a decision and its answer others ask
            return "fine", delay

    def count(self, question: str) -> None:
        with self._lock:
            self.answered[question] += 1


def tell(prompt: str, images: list[bytes]) -> str:
    """Say the numbers in the pictures, or those that stand in the text."""
    numbers = [read_picture(image) for image in images] or [int(n) for n in re.findall(r"number (\d+)", prompt)]
    return "; ".join(f"number {number}" for number in dict.fromkeys(numbers))


class Handler(BaseHTTPRequestHandler):
    teller: Server  # set by ``serving``
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.teller.behaviour.page is not None:
            self._send(200, self.teller.behaviour.page, self.teller.behaviour.page_type)
        elif self._is_let_in():
            models = [{"id": model, "object": "model"} for model in self.teller.behaviour.models]
            self._reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        what, delay = self.teller.decide()
        time.sleep(delay)
        if self.teller.behaviour.page is not None:
            self._send(200, self.teller.behaviour.page, self.teller.behaviour.page_type)
        elif what == "dropped":
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
        elif what == "refused" and (after := self.teller.behaviour.status_after):
            self._reply(after[1], {"error": {"message": "no more"}})
        elif what == "errors":
            self._reply(500, {"error": {"message": "overturned"}})
        elif what == "limited":
            self._reply(429, {"error": {"message": "slower"}})
        elif self.teller.behaviour.unsupported & asked.keys():
            field = min(self.teller.behaviour.unsupported & asked.keys())
            self._reply(400, {"error": {"message": "unsupported parameter", "param": field}})
        elif self._is_let_in() and self._knows(asked["model"]):
            self._answer(asked)

    def _answer(self, asked: dict[str, Any]) -> None:
        parts = asked["messages"][-1]["content"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        images = [base64.b64decode(url.partition(",")[2]) for url in urls]
        for part in parts:
            if part["type"] == "video_url" and not self.teller.behaviour.takes_videos:
                self._reply(400, {"error": {"message": "unknown part video_url"}})
                return
            if part["type"] == "video_url":
                urls.append(part["video_url"]["url"])
                images += frames_of(base64.b64decode(urls[-1].removeprefix("data:video/mp4;base64,")))
        said = self.teller.answer(text, images)
        if said is not None and said == self.teller.behaviour.refuses:
            self._reply(400, {"error": {"message": "this question is too long"}})
            return
        self.teller.count(json.dumps([text, urls, asked["model"]]))
        usage = {"prompt_tokens": 10 + 100 * len(images), "completion_tokens": 5, "total_tokens": 15}
        message = {"role": "assistant", "content": said}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        about = {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
        self._reply(200, about if self.teller.behaviour.silent else {**about, "usage": usage})

    def _is_let_in(self) -> bool:
        key = self.teller.behaviour.key
        if key is None or self.headers.get("Authorization") == f"Bearer {key}":
            return True
        self._reply(401, {"error": {"message": "wrong key"}})
        return False

    def _knows(self, model: str) -> bool:
        if model in self.teller.behaviour.models:
            return True
        self._reply(404, {"error": {"message": f"no model {model}"}})
        return False

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, payload: bytes, kind: str) -> None:
        blanks = round(self.teller.behaviour.trickle_s / _BLANK_S) if self.command == "POST" else 0
        with contextlib.suppress(OSError):  # the client has gone
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(blanks + len(payload)))
            self.end_headers()
            for _ in range(blanks):
                self.wfile.write(b" ")
                time.sleep(_BLANK_S)
            self.wfile.write(payload)


@contextlib.contextmanager
def serving(
    behaviour: Behaviour | None = None, answer: Callable[[str, list[bytes]], str] = tell, *, port: int = 0
) -> Iterator[Server]:
    """Run a server in threads of this process."""
    server = Server(behaviour or Behaviour(), answer)
    handler = type("OfOneServer", (Handler,), {"teller": server})
    listener = ThreadingHTTPServer(("127.0.0.1", port), handler)
    listener.daemon_threads = True
    listener.handle_error = lambda request, address: None  # type: ignore[method-assign]  # clients are killed in tests
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
