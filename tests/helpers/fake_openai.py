"""An OpenAI-compatible server on this machine that can misbehave. Its completions depend on prompt and seed alone.

A fault is drawn for each request by a function of the caller's. A completion is words of a fixed list, drawn with the
seed of a request plus the completion's index, as vLLM does.
"""

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-secret-of-this-test"
WORDS = ["a", "b", "c", "d", "e", "return", "(", ")", "+", "-", "*", "min", "max", "[", "]", "0", "1", "2", "3"]

Fault = Callable[[int], str]  # from the number of a request to the name of what goes wrong; "": nothing


class FakeOpenAI:
    """A server, as a context manager.

    Args:
      encode: from a text to token ids, without special tokens.
      end: the token that ends a completion.
      fault: what goes wrong in each request.
      token_ids: answers have them, and log-probs, as vLLM's.
      seconds: that a completion takes.
      together: every request but the first waits until so many have been under way at once, or for ten seconds.
      key: that requests must bring; "" for none.

    Attributes:
      answered: whole answers by (prompt, seed, n).
      faults: by name, as often as they happened.
      most: requests that were under way at the same time.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        end: int,
        *,
        fault: Fault = lambda number: "",
        token_ids: bool = True,
        seconds: float = 0.0,
        together: int = 0,
        key: str = "",
    ) -> None:
        self.encode, self.end, self.fault, self.token_ids = encode, end, fault, token_ids
        self.seconds, self.together, self.key = seconds, together, key
        self.requests: list[dict[str, Any]] = []
        self.answered: Counter[tuple[str, int, int]] = Counter()
        self.faults: Counter[str] = Counter()
        self.most = 0
        self._under_way, self._lock, self._gathered = 0, threading.Lock(), threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake.serve(self)

            def log_message(self, *words: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512
            daemon_threads = True

            def handle_error(self, *connection: Any) -> None:
                pass  # clients that give up are part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> "FakeOpenAI":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        with self._lock:
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            if self.most >= self.together:
                self._gathered.set()
            number = len(self.requests)
            self.requests.append(body | {"path": http.path})
        try:
            if number:  # the first is a trial, and alone
                self._gathered.wait(10)
            time.sleep(self.seconds)
            self._answer(http, body, self.fault(number))
        finally:
            with self._lock:
                self._under_way -= 1

    def _answer(self, http: BaseHTTPRequestHandler, body: dict[str, Any], fault: str) -> None:
        if self.key and http.headers.get("Authorization") != f"Bearer {self.key}":
            said = f"wrong key {http.headers.get('Authorization')}"
            return _send(http, 401, {"error": {"message": said}})
        with self._lock:
            self.faults[fault] += 1
        answer = self.answer(body)
        choices = answer["choices"]
        match fault:
            case "500" | "503" | "400" | "404":
                return _send(http, int(fault), {"error": {"message": f"the engine said {fault}"}})
            case "429":
                return _send(http, 429, {"message": "too many"}, {"Retry-After": "0.2"})
            case "reset":
                linger = struct.pack("ii", 1, 0)  # closes with a reset
                http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                http.close_connection = True
                http.connection.shutdown(socket.SHUT_RD)
                return http.connection.close()
            case "half":
                return _send(http, 200, answer, cut=0.5)
            case "trickle":
                return _send(http, 200, answer, pause=0.05)
            case "no json":
                return _send(http, 200, "<html>busy</html>")
            case "error":
                answer = {"error": {"message": "the engine is dead"}}
            case "list":
                answer = [answer]
            case "too few":
                choices.pop()
            case "too many":
                choices.append(dict(choices[0], index=len(choices)))
            case "twice":
                choices[-1] = dict(choices[0]) if len(choices) > 1 else dict(choices[0], index=1)
            case "no end":
                choices[-1]["finish_reason"] = None
            case "abort":
                choices[-1]["finish_reason"] = "abort"
            case "no text":
                choices[-1] = {"index": choices[-1]["index"], "finish_reason": "stop"}
            case "empty":
                choices[-1] |= {"text": "", "token_ids": None, "logprobs": None, "finish_reason": "length"}
            case "shuffled":
                choices.reverse()
        _send(http, 200, answer)
        if fault in ("", "shuffled"):
            with self._lock:
                self.answered[
                    json.dumps(body.get("prompt", body.get("messages"))), body.get("seed"), body.get("n")
                ] += 1

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request of an undisturbed server."""
        prompt = body.get("prompt", body.get("messages"))
        choices = [self._choice(body, prompt, body["seed"] + index, index) for index in range(body["n"])]
        length = len(prompt) if isinstance(prompt, list) else len(self.encode(prompt))
        return {"object": "text_completion", "choices": choices, "usage": {"prompt_tokens": length}}

    def _choice(self, body: dict[str, Any], prompt: Any, seed: int, index: int) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps([prompt, seed]).encode()).digest()
        rng = random.Random(digest)
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 12)))
        tokens = [*self.encode(text), self.end]
        stops = [(text.find(stop), stop) for stop in body.get("stop", []) if stop in text]
        if stops:  # as vLLM: its tokens end with the string, its text before it
            text, stop = text[: min(stops)[0]], min(stops)[1]
            tokens = self.encode(text + stop)
        finished = len(tokens) <= body["max_tokens"]
        tokens = tokens[: body["max_tokens"]]
        choice = {"index": index, "text": text, "finish_reason": "stop" if finished else "length"}
        if "messages" in body:
            choice["message"] = {"role": "assistant", "content": choice.pop("text")}
        if self.token_ids:
            logged = {"token_logprobs": [-rng.random() for _ in tokens], "tokens": ["?"] * len(tokens)}
            choice |= {"token_ids": tokens, "logprobs": logged if "logprobs" in body else None}
        return choice


def _send(
    http: BaseHTTPRequestHandler,
    status: int,
    content: Any,
    headers: dict[str, str] | None = None,
    cut: float = 1.0,
    pause: float = 0.0,
) -> None:
    """Sends a whole answer, its first part, or byte by byte."""
    data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    http.send_response(status)
    for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
        http.send_header(name, value)
    http.end_headers()
    if cut < 1:
        http.close_connection = True
        data = data[: int(cut * len(data))]
    if not pause:
        http.wfile.write(data)
        return
    for byte in data:
        http.wfile.write(bytes([byte]))
        http.wfile.flush()
        time.sleep(pause)
