"""A reply that a server sends as an event stream, although none was asked for, as the one reply that it adds up to."""

import json
from collections.abc import Iterator
from typing import Any

END = "[DONE]"


def join_stream(raw: bytes) -> dict[str, Any] | None:
    """Return the reply that the chunks of a stream of server-sent events add up to; None where that is none.

    A stream that breaks off, without its end or a finish reason for each choice, is none. An error among the chunks is
    the reply.
    """
    try:
        chunks, has_ended = [], False
        for data in events(raw.decode()):
            if data == END:
                has_ended = True
                break
            chunks.append(json.loads(data))
        reply: dict[str, Any] = {}
        choices: dict[int, dict[str, Any]] = {}
        for chunk in chunks:
            if chunk.get("error") is not None:
                return {"error": chunk["error"]}
            reply |= {name: value for name, value in chunk.items() if value is not None}
            for place, piece in enumerate(chunk.get("choices") or []):
                add(choices.setdefault(piece.get("index", place), {}), piece)
    except (ValueError, TypeError, AttributeError, RecursionError):  # no text, no JSON, or no chunks
        return None
    is_whole = has_ended or all(choice.get("finish_reason") for choice in choices.values())
    return reply | {"choices": list(choices.values())} if choices and is_whole else None


def events(raw: str) -> Iterator[str]:
    """Yield the data of each event; the lines of one event are joined, and comments left out."""
    lines: list[str] = []
    for line in [*raw.removeprefix("\ufeff").splitlines(), ""]:
        if line.startswith("data:"):
            lines.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines = []


def add(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a chunk's piece of a choice to it: texts and log-probabilities go on, of all else the last counts."""
    for name, value in piece.items():
        if value is None:
            choice.setdefault(name, None)
        elif name == "delta":
            message = choice["message"] = choice.get("message") or {}
            for field, part in value.items():
                is_text = field != "role" and isinstance(part, str)
                message[field] = (message.get(field) or "") + part if is_text else message.get(field) or part
        elif name == "text":
            choice[name] = choice.get(name, "") + value
        elif name == "logprobs":
            known = choice[name] = choice.get(name) or {}
            known |= {kind: (known.get(kind) or []) + one for kind, one in value.items() if isinstance(one, list)}
        else:
            choice[name] = value
