"""A server that answers like vLLM, or misbehaves as a test says; only the standard library."""

import json
import math
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

LETTERS = "ABCDEFG"
FIRST_ID = 65  # the token id of the label A
FAVOURITE = 3  # the column to which this model gives half of its probability
CHAT_PATHS = ("/v1/chat/completions",)
TOP_TOKENS = {"D": 0.3, " D": 0.2, "A": 0.25, "The": 0.1}  # the first token of a chat's answer

Misbehaviour = Callable[["Handler", dict[str, Any]], bool]  # True: the request has been answered


class Server(ThreadingHTTPServer):
    """Keeps the requests that it gets."""

    daemon_threads = True
    allow_reuse_address = True
    models: tuple[str, ...] = ("tiny",)
    roots: ClassVar[dict[str, str]] = {}  # what each model was loaded from, if not its name
    models_reply: tuple[int, bytes] | None = None  # in place of the list of models
    misbehave: Misbehaviour | None = None
    is_vllm = True  # else a server that has the chat API only
    metrics, metrics_status = "", 200  # of the page /metrics
    scheme = "http"
    text = "<action>D</action>"  # that it generates
    chat_template = "<s>[{}]"  # as it renders a message
    unthinking = ""  # added to that where thinking is switched off
    needs_space = False  # whether a label is one token after a space only

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[dict[str, Any]] = []  # bodies of /v1/completions
        self.headers_seen: list[dict[str, str]] = []
        self.connections: list[socket.socket] = []

    def answer(self, index: int, prompt: str, body: dict[str, Any]) -> dict[str, Any]:
        """One choice of a reply, of the kind that `body` asks for."""
        if "logprob_token_ids" in body:
            return choice(index, body)
        if "messages" not in body:
            return {"index": index, "text": self.text, "finish_reason": "stop"}
        message = {"index": index, "message": {"role": "assistant", "content": self.text}, "finish_reason": "stop"}
        if body.get("logprobs"):
            top = [{"token": token, "logprob": math.log(share)} for token, share in TOP_TOKENS.items()]
            message["logprobs"] = {"content": [{"token": "D", "logprob": math.log(0.5), "top_logprobs": top}]}
        return message

    def tokenize(self, body: dict[str, Any]) -> list[int]:
        """One token a letter; a label with the space before it may be one token of its own."""
        text = body.get("prompt", "")
        if "messages" in body:
            text = self.chat_template.format(body["messages"][0]["content"])
            if not body.get("chat_template_kwargs", {}).get("enable_thinking", True):
                text += self.unthinking
        if self.needs_space and text[-2] == " ":
            return [*map(ord, text[:-2]), ord(text[-1])]
        return [*map(ord, text), *([0] if self.needs_space and text[-1] in "ABCDEFG" else [])]

    def detokenize(self, token_ids: list[int]) -> str:
        """The text of tokens."""
        return "".join(map(chr, token_ids))

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore a client that hung up."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each reply waits 40 ms for the acknowledgement of its header
    server: Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def do_GET(self) -> None:
        self.server.headers_seen.append(dict(self.headers))
        if self.path == "/metrics":
            self.send_raw(self.server.metrics_status, self.server.metrics.encode())
            return
        if self.server.models_reply is not None:
            self.send_raw(*self.server.models_reply)
            return
        roots = self.server.roots
        models = [{"id": name, "root": roots.get(name, name)} for name in self.server.models]
        self.reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.headers_seen.append(dict(self.headers))
        if self.path == "/tokenize" and self.server.is_vllm:
            self.reply(200, {"tokens": self.server.tokenize(body)})
            return
        if self.path == "/detokenize" and self.server.is_vllm:
            self.reply(200, {"prompt": self.server.detokenize(body["tokens"])})
            return
        if self.path not in (("/v1/completions", "/v1/chat/completions") if self.server.is_vllm else CHAT_PATHS):
            self.reply(404, {"error": {"message": "Not Found"}})
            return
        self.server.asked.append(body)
        if self.server.misbehave is not None and self.server.misbehave(self, body):
            return
        prompts = body["prompt"] if "prompt" in body else [body["messages"][0]["content"]]
        choices = [
            self.server.answer(row * body.get("n", 1) + sample, prompt, body)
            for row, prompt in enumerate(prompts)
            for sample in range(body.get("n", 1))
        ]
        usage = {"prompt_tokens": 100 * len(prompts), "completion_tokens": len(choices)}
        self.reply(200, {"model": body["model"], "choices": choices, "usage": usage})

    def reply(self, status: int, body: object, **headers: str) -> None:
        self.send_raw(status, json.dumps(body).encode(), **headers)

    def send_raw(self, status: int, raw: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def choice(row: int, body: dict[str, Any]) -> dict[str, Any]:
    """A choice as vLLM returns it: probability 0.5 for one column, 0.1 for no label at all."""
    others = 0.4 / (len(body["logprob_token_ids"]) - 1)
    logs = {
        f"token_id:{token}": math.log(0.5 if token == FIRST_ID + FAVOURITE else others)
        for token in body["logprob_token_ids"]
    }
    return {"index": row, "text": "D", "logprobs": {"top_logprobs": [logs]}}


@contextmanager
def serving(port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Serve from a thread while the block runs."""
    server = Server(port)
    if tls is not None:
        server.socket, server.scheme = tls.wrap_socket(server.socket, server_side=True), "https"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        for connection in server.connections:  # a server that is gone has closed all connections
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()
