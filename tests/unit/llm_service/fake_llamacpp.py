"""A stand-in for llama.cpp's server."""

from __future__ import annotations

import json
from typing import Any

import httpx

from llm_service.testing import SpawningFake
from mesh.testing import FakeClock


class FakeLlamaCpp(SpawningFake):
    """Behaves like the server of llama-cpp-python 0.3.36 as far as it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: list[dict[str, Any]] = []
        self.words = ["one", " two", " three"]
        self.reason = "stop"
        self.refuses: httpx.Response | None = None
        self.breaks_off = False
        self.counted = 0
        self.counts_nothing = False
        self.silent_seconds = 0.0
        self.clock = FakeClock()

    async def handle(self, request: httpx.Request) -> httpx.Response:
        """One answer."""
        if request.url.path == "/docs":
            return httpx.Response(200)
        if request.headers.get("authorization") != f"Bearer {self.commands[-1].environment['API_KEY']}":
            return httpx.Response(401)
        body = json.loads(request.content)
        if request.url.path == "/extras/tokenize/count":
            self.counted += 1
            if self.counts_nothing:
                raise httpx.ReadError("gone", request=request)
            return httpx.Response(200, json={"count": len(body["input"].split())})
        self.bodies.append(body)
        if self.silent_seconds:
            self.clock.advance(self.silent_seconds)
            raise httpx.ReadTimeout("silent", request=request)
        texts = [str(message["content"]) for message in body.get("messages", [])] or [body["prompt"]]
        prompt = sum(len(text.split()) for text in texts) + (4 + len(texts) if "messages" in body else 0)
        if not body.get("stream"):
            usage = {"prompt_tokens": prompt, "completion_tokens": 1}
            return self.refuses or httpx.Response(200, json={"choices": [], "usage": usage})
        return httpx.Response(200, text="".join(f"data: {json.dumps(chunk)}\n\n" for chunk in self._chunks(body)))

    def _chunks(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """What a stream holds: no usage, and a called tool's name again and again."""
        chosen = body.get("tool_choice")
        deltas: list[dict[str, Any]] = [{"role": "assistant"}]
        for word in [*self.words, *([""] if chosen else [])]:
            call = {"index": 0, "id": "call_1", "function": {"name": "weather", "arguments": word}}
            deltas.append({"role": None, "content": None, "tool_calls": [call]} if chosen else {"content": word})
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas
        ]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls" if chosen else self.reason}]}
        return chunks if self.breaks_off else [*chunks, end]
