"""Language models that answer messages: behind an OpenAI-compatible address, or of transformers on this machine."""

import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from atr.system.credentials import without_credentials

MESSAGE_LENGTH = 200  # characters of a server's message that an error repeats
MOST = 1 << 22  # bytes of an answer
THOUGHTS = ("thinking", "redacted_thinking", "reasoning")  # kinds of parts of an answer that are none of it
ONLY_REASONING = "reasoning"  # finish reason recorded where the model thought aloud and did not answer
REFUSAL = "refusal"  # and where it declined in the field that the format has for it


class CaptioningError(ValueError):
    """A run cannot go on; the message says why, how far it came, and what to do."""


class RefusalError(CaptioningError):
    """The server does not take this one request, whatever the model."""


class Reply(NamedTuple):
    """A model's answer, the reason it ended ("stop", "length", …) and the tokens it used, as the server counts."""

    text: str
    finish: str | None
    usage: dict[str, int]


class LanguageModel(Protocol):
    """Answers messages; `model` names it. Called from several threads. Raises CaptioningError if it cannot answer."""

    model: str

    def __call__(self, messages: list[dict[str, str]]) -> Reply: ...


def _client(seconds: float) -> Any:
    """A client of httpx that gives up a whole answer after `seconds`; its own timeouts begin anew at every byte."""
    import httpx

    class Client(httpx.Client):
        def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
            end = time.monotonic() + seconds
            # A connection of its own, which can be closed under a server that sends a byte now and then.
            with httpx.Client(timeout=seconds) as once, _after(seconds, once.close):
                try:
                    for _ in range(once.max_redirects):
                        response = once.send(request, stream=True, **options)
                        if response.next_request is None:
                            break
                        response.close()  # httpx would read the whole body, however long
                        request = response.next_request
                    else:
                        raise CaptioningError("one redirect after another")
                    body = bytearray()
                    for chunk in response.iter_bytes(1 << 16):
                        body += chunk
                        if len(body) > MOST:
                            raise CaptioningError(f"an answer of more than {MOST:,} bytes")
                except httpx.TransportError:
                    if time.monotonic() >= end:
                        raise httpx.ReadTimeout("the whole answer took too long", request=request) from None
                    raise
            headers = [pair for pair in response.headers.multi_items() if pair[0].lower() != "content-encoding"]
            return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=request)

    return Client(timeout=seconds)


@contextmanager
def _after(seconds: float, act: Any) -> Iterator[None]:
    """Call `act` unless the block ends within `seconds`."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Endpoint:
    """A model behind an OpenAI-compatible address: Ollama (http://localhost:11434/v1), vLLM, llama.cpp, or a service.

    key: the environment's ATR_API_KEY or OPENAI_API_KEY if None; servers at home need none. timeout: seconds for the
    whole answer, however slowly it comes; an answer has at most MOST bytes.
    retries: further attempts at a request that met a broken connection, silence, HTTP 408, 409, 429 or 5xx, or an
    answer that is no chat completion, with growing pauses or the one that the server asks for (up to two minutes).
    Calling it raises CaptioningError when they are used up, and at once for other errors: RefusalError for HTTP 400,
    413 and 422, which concern the one request.
    """

    def __init__(self, url: str, model: str, key: str | None = None, timeout: float = 60.0, retries: int = 5) -> None:
        import openai

        if not url.startswith(("http://", "https://")):
            shown = without_credentials(url.rpartition("@")[2])
            raise ValueError(f"endpoint {shown!r}: give an address such as http://localhost:11434/v1")
        address, self.model, self.timeout, self.retries = url.rstrip("/"), model, timeout, retries
        self.url = without_credentials(address)
        self._key = key or os.environ.get("ATR_API_KEY") or os.environ.get("OPENAI_API_KEY") or "none"
        parts = urlsplit(address)
        own = {self._key, parts.password or "", unquote(parts.password or "")} - {"", "none"}
        other = {parts.username or "", *(value for _, value in parse_qsl(parts.query))}
        self._secrets = sorted(own | {value for value in other if len(value) >= 6}, key=len, reverse=True)
        client: dict[str, Any] = {"max_retries": retries, "timeout": timeout, "http_client": _client(timeout)}
        self._client = openai.OpenAI(base_url=address, api_key=self._key, **client)

    def __call__(self, messages: list[dict[str, str]]) -> Reply:
        for pause in [*(min(0.5 * 2**n, 8.0) for n in range(self.retries)), None]:
            body = self._body(messages)
            if reply := _reply(body):
                return reply
            if pause is not None:
                time.sleep(pause)
        raise self._error(f"answers with something that is no chat completion: {body}", "is the address complete?")

    def _body(self, messages: list[dict[str, str]]) -> str:
        import openai

        tries = f"{self.retries + 1} times" if self.retries else "once"
        try:
            completions: Any = self._client.chat.completions.with_raw_response
            return completions.create(model=self.model, messages=messages).text
        except openai.APITimeoutError:
            mend = "give a longer timeout, or a lower concurrency if the server is busy"
            raise self._error(f"no answer within {self.timeout:g} s, tried {tries}", mend) from None
        except openai.APIConnectionError as error:
            reason = f"{error.__cause__ or error}, tried {tries}"
            raise self._error(f"cannot be reached ({reason})", "is the server running?") from None
        except openai.APIStatusError as error:
            status, message = error.status_code, f"HTTP {error.status_code}: {error.response.text}"
            if status in (400, 413, 422):
                raise self._error(message, "it does not take this request", RefusalError) from None
            if status in (401, 403):
                raise self._error(message, "set the key in the environment: ATR_API_KEY or OPENAI_API_KEY") from None
            if status == 404:
                mend = f"does it know the model {self.model!r}, and does its address end so, most often in /v1?"
                raise self._error(message, mend) from None
            wait = error.response.headers.get("retry-after")
            mend = f"it asks to wait {wait} s" if wait else "try again later"
            raise self._error(f"tried up to {tries}, {message}", mend) from None
        except CaptioningError as error:
            raise self._error(str(error), "does it stream, or is the address complete?") from None
        except openai.OpenAIError as error:
            raise self._error(f"{type(error).__name__}: {error}", "see the server's log") from None

    def _error(self, problem: str, mend: str, kind: type[CaptioningError] = CaptioningError) -> CaptioningError:
        shown = " ".join(without_credentials(problem).split())
        for secret in self._secrets:
            shown = shown.replace(secret, "…")
        return kind(f"{self.url}: {shown[:MESSAGE_LENGTH]}{'…' * (len(shown) > MESSAGE_LENGTH)}; {mend}")


def _reply(body: str) -> Reply | None:
    """The answer in a chat completion's body; None if it is none."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message, finish, usage = choice["message"], choice.get("finish_reason"), completion.get("usage")
        content = message.get("content")
        text, refusal = _text(content, "text", "output_text"), message.get("refusal") or _text(content, "refusal")
        thought = [message.get(name) for name in ("reasoning", "reasoning_content", "reasoning_details", "thinking")]
        if isinstance(content, list):
            thought += [part.get("type") in THOUGHTS for part in content if isinstance(part, dict)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    counts = usage if isinstance(usage, dict) else {}
    tokens = {name: number for name, number in counts.items() if isinstance(number, int)}
    if not text.strip() and isinstance(refusal, str) and refusal:
        text, finish = whole(refusal), REFUSAL
    elif not without_thoughts(text) and (text.strip() or any(thought)):
        finish = ONLY_REASONING
    return Reply(text, finish if isinstance(finish, str) else None, tokens)


def _text(content: Any, *kinds: str) -> str:
    """The text of a message's content: a string, nothing, or a list of parts of which those of these kinds count.

    Raises TypeError for another content, and AttributeError for a part that is neither a string nor an object.
    """
    if isinstance(content, list):
        parts = [{"text": part} if isinstance(part, str) else part for part in content]
        named = [part for part in parts if part.get("type", "text") in kinds]
        texts = [next((part[kind] for kind in ("text", *kinds) if kind in part), None) for part in named]
        return "".join(_text(one) for one in texts)
    if not isinstance(content, str | None):
        raise TypeError(f"content is {type(content).__name__}")
    return whole(content or "")


def whole(text: str) -> str:
    """A text whose halves of surrogate pairs, which JSON can hold and no file can, are joined or else U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_TAG = re.compile(r"(</?(?:think|thinking|thought|reasoning)>|\[/?THINK\])", re.IGNORECASE)


def without_thoughts(text: str) -> str:
    """An answer without what the model thought aloud, between <think> and </think> or the like: one may be missing."""
    pieces: list[str] = []
    thinking = False
    for place, piece in enumerate(_TAG.split(text)):  # texts, and the tags between them
        if place % 2:
            if piece[1] == "/" and not thinking:
                pieces.clear()
            thinking = piece[1] != "/"
        elif not thinking:
            pieces.append(piece)
    return "".join(pieces).strip()


class LocalModel:
    """A causal language model of transformers with a chat template, from a folder or the Hub; one request at a time.

    It samples afresh at each call (temperature 0.7), so that asking again may bring another answer.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", longest: int = 512) -> None:
        """longest: tokens of an answer. Raises OSError or ValueError if there is no such model or no template."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model, self.longest = Path(folder).name if Path(folder).is_dir() else str(folder), longest
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(folder))
        if not self._tokenizer.chat_template:
            raise ValueError(f"{folder}: the tokenizer has no chat template; take a model tuned to follow instructions")
        network: Any = AutoModelForCausalLM.from_pretrained(str(folder))
        self._network = network.to(device).eval()
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]]) -> Reply:
        import torch

        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self._network.device)
        prompt = inputs["input_ids"].shape[1]
        with self._lock, torch.inference_mode():
            whole = self._network.generate(**inputs, max_new_tokens=self.longest, do_sample=True, temperature=0.7)[0]
        tokens = whole[prompt:].tolist()
        ends = self._network.generation_config.eos_token_id
        stopped = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
        usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens), "total_tokens": prompt + len(tokens)}
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Reply(text, "stop" if stopped or len(tokens) < self.longest else "length", usage)
