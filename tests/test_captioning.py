import gzip
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler

import made_models
import pandas as pd
import pytest
import torch
from local_server import serving
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from atr.corpora import load_corpus
from atr.corpora.captioning import language_models
from atr.corpora.captioning.answers import audit, parse
from atr.corpora.captioning.generate import generate, keywords_of, messages
from atr.corpora.captioning.language_models import CaptioningError, Endpoint, LocalModel, RefusalError, Reply
from atr.corpora.captioning.record import read
from atr.reports import output
from atr.system.credentials import without_credentials

GOOD = [f"fresh wording {letter} of what is there" for letter in "abcde"]
CLIPS = [f"clip {letter}" for letter in "abcdefgh"]
TABLE = pd.DataFrame(
    [(clip, f"own caption {n} of {clip}") for clip in CLIPS for n in "xyz"], columns=["clip", "caption"]
)
AT_ONCE = {"retry-after-ms": "1"}


def completion(text, finish="stop"):
    usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7, "details": {"cached": 0}}
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}
    )


class Server:
    """A model's server: `plan` holds what it does with the next requests, then it answers well."""

    def __init__(self):
        self.plan, self.asked, self.clips = [], [], []
        self.now = self.most = 0
        self.pause = 0.0
        self.answer = lambda clip: completion(json.dumps(GOOD))
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server.model
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        clip = (re.findall(r"own caption x of (clip \w)", request["messages"][-1]["content"]) or [""])[0]
        with server.lock:
            server.asked.append((time.monotonic(), self.path, self.headers.get("Authorization"), request))
            server.now += 1
            server.most = max(server.most, server.now)
            step = server.plan.pop(0) if server.plan else None
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # a client that gave up, or was killed
                time.sleep(server.pause)
                self.act(server, clip, step)
        finally:
            with server.lock:
                server.now -= 1

    def act(self, server, clip, step):
        if step == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "500")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            return
        if step == "slow":
            time.sleep(0.4)
        status, headers, body = step if isinstance(step, tuple) else (200, {}, step)
        if body in (None, "slow"):
            body = server.answer(clip)
            with server.lock:
                server.clips.append(clip)
        content = body.encode("latin-1" if "Content-Encoding" in headers else "utf-8")
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        """Keep the tests' output clean."""


@pytest.fixture(scope="module")
def running():
    with serving(Handler) as server:
        yield server


@pytest.fixture
def server(running, monkeypatch):
    for name in ("ATR_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    running.model = Server()
    running.model.url = f"http://127.0.0.1:{running.server_port}/v1"
    return running.model


@pytest.fixture
def ask(server):
    return Endpoint(server.url, "phi4", retries=2)


@pytest.fixture
def record(tmp_path):
    return tmp_path / "captions" / "m.jsonl"


@pytest.fixture
def interruptible():
    """Python does not listen to Ctrl-C where whoever started it did not, as a shell's background job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def clips(count):
    return TABLE[TABLE["clip"].isin(CLIPS[:count])]


def run(count, ask, record, **options):
    return generate(clips(count), ask, record, **{"quiet": True, "concurrency": 1} | options)


def lines(record):
    return [json.loads(line) for line in record.read_text().splitlines()]


class Says:
    """A model that answers from a list, then well."""

    model = "says"

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def __call__(self, messages):
        self.asked += 1
        answer = self.answers.pop(0) if self.answers else json.dumps(GOOD)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(answer, "stop", {})


class TestMessages:
    def test_they_hold_the_rules_and_the_captions_and_tags_as_json(self):
        (message,) = messages(["a “dog”\u2028", "b"], ["bark"])
        rules, _, given = message["content"].partition("\n\n")
        assert message["role"] == "user" and json.loads(given) == {"captions": ["a “dog”\u2028", "b"], "tags": ["bark"]}
        for words in ("exactly 5", "longer than 20 words", "means the same", "event", "digits", "names", "JSON list"):
            assert words in rules

    def test_keywords_are_joined_by_name(self, tmp_path):
        table = tmp_path / "metadata.csv"
        table.write_bytes("file_name,keywords,x\nCafé b.wav,b; c;,1\na.x.wav,a,2\nd.wav,d,3\n".encode("latin-1"))
        found = keywords_of(table, ["a.x", "train/d", "gone", "Café b.wav", "Café b"])
        assert found == {"a.x": ["a"], "train/d": ["d"], "Café b.wav": ["b", "c"], "Café b": ["b", "c"]}
        assert keywords_of(table, [" cafe\u0301\u00a0B "]) == {" cafe\u0301\u00a0B ": ["b", "c"]}
        with pytest.raises(ValueError, match="metadata.csv: has none of the 1 clips among its files"):
            keywords_of(table, ["gone"])
        table.write_text("name,keywords\n")
        with pytest.raises(ValueError, match="no column file_name; it has 'name', 'keywords'"):
            keywords_of(table, ["a"])
        good = "file_name,keywords\n"
        for damaged, problem in [
            (b"", r": no table in CSV \(is empty\)"),
            (good.encode() + b'a,"b', ", line 2: no table in CSV .*unexpected end"),
            (good.encode() + b"a,b,c\n", ", row 1: 3 fields where the header has 2"),
            (good.encode() + b"a,\0\n", ", line 2: no table in CSV .*0x00"),
            (good.encode("utf-16"), ", line 1: no table in CSV .*0x00, as in UTF-16"),
            (b"file_name,keywords,keywords\na,b,c\n", r": no table in CSV \(column 'keywords' is there twice\)"),
            (",".join(map(str, range(20_000))).encode(), ": no table in CSV .20,000 columns, more than 1,000.;"),
        ]:
            table.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"metadata.csv{problem}") as caught:
                keywords_of(table, ["a"])
            assert len(str(caught.value)) < 300 + len(str(table))


class TestEndpoint:
    def test_an_answer_with_its_end_and_tokens(self, server, ask):
        assert ask(messages(["a"])) == Reply(
            json.dumps(GOOD), "stop", {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        )
        _, path, _, request = server.asked[0]
        assert path == "/v1/chat/completions" and request == {"model": "phi4", "messages": messages(["a"])}

    @pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
    def test_a_busy_server_is_asked_again(self, server, ask, status):
        server.plan = [(status, AT_ONCE, "busy")] * 2
        assert ask(messages(["a"])).text == json.dumps(GOOD) and len(server.asked) == 3

    def test_the_pause_that_a_server_asks_for_is_kept(self, server, ask):
        server.plan = [(429, {"Retry-After": "1"}, "slow down"), (429, {"Retry-After": "0"}, "slow down")]
        ask(messages(["a"]))
        first, second, third = (asked[0] for asked in server.asked)
        assert second - first >= 1 and 0.3 < third - second

    @pytest.mark.parametrize(
        "damage",
        ["cut", '{"choices": [{"mess', (200, {"Content-Type": "text/html"}, "<html>hm</html>"), "[" * 100_000]
        + [
            json.dumps({"choices": [{"message": {"content": content}}]})
            for content in (7, True, {}, [7], [[]], [{"type": "text", "text": {"value": "a"}}])
        ],
        ids=lambda damage: str(damage)[:60],
    )
    def test_a_damaged_answer_is_asked_for_again(self, server, damage):
        server.plan = [damage]
        assert Endpoint(server.url, "m", retries=1)(messages(["a"])).text == json.dumps(GOOD) and len(server.asked) == 2

    @pytest.mark.parametrize(
        "step, message",
        [
            ((500, {}, "out of memory"), r"tried up to once, HTTP 500: out of memory; try again later"),
            ((429, {"Retry-After": "3600"}, "quota"), r"HTTP 429: quota; it asks to wait 3600 s"),
            ((401, {}, "bad key secret-key"), r"HTTP 401: bad key …; set the key in the environment: ATR_API_KEY"),
            ((403, {}, "no"), r"HTTP 403: no; set the key in the environment"),
            (
                (404, {}, "no such model"),
                r"HTTP 404: no such model; does it know the model 'phi4', and does its address",
            ),
            (
                (200, {"Content-Type": "text/html"}, "<html>\n login"),
                r"no chat completion: <html> login; is the address",
            ),
            ((200, {}, '{"error": "x"}'), r'no chat completion: \{"error": "x"\}'),
            ((200, {}, '{"choices": []}'), r"no chat completion"),
            ((200, {}, "[1]"), r"no chat completion"),
            ("cut", r"cannot be reached \(.+, tried once\); is the server running"),
            ("slow", r"no answer within 0.2 s, tried once; give a longer timeout"),
        ],
        ids=str,
    )
    def test_what_was_met_is_said_with_the_mend_and_without_the_key(self, server, step, message):
        server.plan = [step]
        # A busy machine takes its time: only the slow answer is to come too late.
        ask = Endpoint(server.url, "phi4", key="secret-key", timeout=0.2 if step == "slow" else 30, retries=0)
        with pytest.raises(CaptioningError, match=rf"{server.url}: .*{message}") as caught:
            ask(messages(["a"]))
        assert "secret" not in str(caught.value) and not isinstance(caught.value, RefusalError)

    def test_a_request_that_is_not_taken_is_its_own_error(self, server, ask):
        server.plan = [(400, {}, "too long")]
        with pytest.raises(RefusalError, match="HTTP 400: too long"):
            ask(messages(["a"]))

    def test_nobody_there(self):
        with pytest.raises(CaptioningError, match=r"http://127.0.0.1:9/v1: cannot be reached \(.*, tried once\)"):
            Endpoint("http://127.0.0.1:9/v1", "m", retries=0)(messages(["a"]))

    def test_no_address(self):
        with pytest.raises(ValueError, match="endpoint 'localhost': give an address such as"):
            Endpoint("localhost", "m")

    @pytest.mark.parametrize("given, sent", [({}, "none"), ({"OPENAI_API_KEY": "o"}, "o")])
    def test_the_key_comes_from_the_environment(self, server, monkeypatch, given, sent):
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        Endpoint(server.url, "m")(messages(["a"]))
        monkeypatch.setenv("ATR_API_KEY", "mine")
        Endpoint(server.url, "m")(messages(["a"]))
        assert [asked[2] for asked in server.asked] == [f"Bearer {sent}", "Bearer mine"]

    def test_an_answer_without_text_is_empty(self, server, ask):
        server.plan = [completion(None, "tool_calls")]
        assert ask(messages(["a"]))[:2] == ("", "tool_calls")


class TestGenerate:
    def test_every_clip_gets_captions_and_none_is_asked_for_twice(self, server, ask, record):
        report = run(8, ask, record, concurrency=3)
        assert sorted(server.clips) == CLIPS and report.valid == report.requests == report.replies == 8
        assert read(record).captions == dict.fromkeys(CLIPS, GOOD) and report.tokens == 56 and not report.missing
        again = run(8, ask, record)
        assert len(server.asked) == 8 and (again.requests, again.valid) == (0, 8)
        assert "8 of 8 clips have valid captions" in str(again) and "asked 0 times" in str(again)

    def test_what_is_recorded(self, server, ask, record, monkeypatch):
        monkeypatch.setenv("ATR_API_KEY", "very-secret")
        server.answer = lambda clip: completion(f"Fine:\n{json.dumps(GOOD[:4])}")
        run(1, Endpoint(server.url, "phi4"), record, attempts=1)
        (entry,) = lines(record)
        assert entry["clip"] == "clip a" and entry["model"] == "phi4" and entry["attempt"] == 1
        assert entry["text"] == f"Fine:\n{json.dumps(GOOD[:4])}" and entry["captions"] == GOOD[:4]
        assert entry["problems"] == ["count: 4 captions, not 5"] and entry["finish"] == "stop"
        assert entry["usage"]["total_tokens"] == 7 and re.fullmatch(r"[0-9T:-]+\+00:00", entry["time"])
        assert entry["given"] == [f"own caption {n} of clip a" for n in "xyz"] and re.fullmatch(
            "[0-9a-f]{24}", entry["key"]
        )
        assert "secret" not in record.read_text()

    @pytest.mark.parametrize("concurrency", [1, 3])
    def test_so_many_requests_at_a_time(self, server, ask, record, concurrency):
        server.pause = 0.3
        run(8, ask, record, concurrency=concurrency)
        assert server.most == concurrency

    @pytest.mark.parametrize(
        "body, reason",
        [
            (completion("I would rather not."), "count"),
            (completion("{}"), "count"),
            (completion(json.dumps(GOOD[:4])), "count"),
            (completion(json.dumps([*GOOD[:4], "rain " * 21])), "words"),
            (completion(json.dumps([*GOOD[:4], "rain at 5"])), "digits"),
            (completion(json.dumps([*GOOD[:4], "rain in Graz"])), "names"),
            (completion(json.dumps([*GOOD[:4], f"{GOOD[1]}!"])), "repeated"),
            (completion(json.dumps([*GOOD[:4], "…"])), "empty"),
            (completion(json.dumps(GOOD), "length"), "cut off"),
        ],
        ids=lambda value: value if len(value) < 9 else "",
    )
    def test_a_bad_answer_is_kept_and_asked_for_again_so_often(self, server, ask, record, body, reason):
        server.plan = [body]
        assert run(1, ask, record).valid == 1 and [entry["attempt"] for entry in lines(record)] == [1, 2]
        record.unlink()
        server.asked, server.plan = [], [body] * 9
        report = run(2, ask, record, attempts=2)
        assert len(server.asked) == 4 == len(lines(record)) and report.missing == {reason: ["clip a", "clip b"]}
        assert f"missing, {reason}: 2 ('clip a', 'clip b')" in str(report)

    def test_attempts_of_earlier_runs_count(self, record):
        ask = Says(*["no"] * 9)
        run(1, ask, record, attempts=2)
        assert run(1, ask, record, attempts=2).requests == 0 and ask.asked == 2
        run(1, ask, record, attempts=3)
        assert ask.asked == 3 and lines(record)[-1]["attempt"] == 3

    def test_a_better_reader_makes_old_answers_valid_without_asking(self, record, monkeypatch):
        ask = Says("; ".join(GOOD))
        assert run(1, ask, record, attempts=1).missing == {"count": ["clip a"]}
        monkeypatch.setattr("atr.corpora.captioning.record.parse", lambda text: text.split("; "))
        assert run(1, ask, record).valid == 1 and ask.asked == 1

    def test_another_request_is_asked_anew(self, record):
        ask = Says()
        run(2, ask, record)
        assert run(2, ask, record, keywords={"clip a": ["rain"]}).requests == 1

    def test_answers_of_another_model_are_not_mixed_in(self, record):
        run(1, Says(), record)
        other = Says()
        other.model = "other"
        with pytest.raises(CaptioningError, match="m.jsonl: holds answers of says; name another record"):
            run(1, other, record)
        assert other.asked == 0

    def test_a_failing_endpoint_ends_the_run_and_keeps_what_is_done(self, server, ask, record):
        server.plan = [None, None, (401, {}, "no")]
        message = (
            rf"HTTP 401: no; .*\. 2 of 4 clips are done and kept in {re.escape(str(record))}; the same command goes on"
        )
        with pytest.raises(CaptioningError, match=message):
            run(4, ask, record)
        assert len(server.asked) == 3 and len(lines(record)) == 2
        assert run(4, ask, record).valid == 4 and sorted(server.clips) == CLIPS[:4]

    def test_answers_under_way_are_recorded_when_another_request_fails(self, record):
        failed, begun = threading.Event(), threading.Barrier(3, timeout=5)

        class Mixed(Says):
            def __call__(self, messages):
                begun.wait()
                if "clip a" in messages[0]["content"]:
                    failed.set()
                    raise CaptioningError("gone")
                failed.wait(5)
                time.sleep(0.05)
                return Reply(json.dumps(GOOD), "stop", {})

        with pytest.raises(CaptioningError, match="gone. 2 of 8 clips are done"):
            run(8, Mixed(), record, concurrency=3)
        assert set(read(record).captions) == {"clip b", "clip c"}

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
    def test_an_interruption_keeps_everything_and_is_passed_on(self, record, error):
        ask = Says(json.dumps(GOOD), error)
        with pytest.raises(type(error)):
            run(4, ask, record)
        assert set(read(record).captions) == {"clip a"} and ask.asked == 2
        assert run(4, ask, record).requests == 3

    def test_ctrl_c_waits_for_what_is_under_way_and_records_it(self, record, interruptible):
        class Interrupting(Says):
            counting = threading.Lock()

            def __call__(self, messages):
                with self.counting:
                    self.asked += 1
                    if self.asked == 3:
                        os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1.5)  # long enough for a busy machine to hear of it before the next two
                return Reply(json.dumps(GOOD), "stop", {})

        ask = Interrupting()
        with pytest.raises(KeyboardInterrupt):
            run(8, ask, record, concurrency=2)
        assert len(read(record).captions) == ask.asked < 8

    def test_a_refused_request_costs_only_its_clip(self, server, ask, record):
        server.plan = [(400, {}, "content policy")]
        report = run(3, ask, record)
        assert (report.valid, report.requests, report.replies) == (2, 3, 2)
        assert report.missing == {"refused": ["clip a"]}
        assert run(3, ask, record, attempts=1).valid == 3

    def test_a_server_that_refuses_everything_ends_the_run(self, record, monkeypatch):
        monkeypatch.setattr("atr.corpora.captioning.generate.REFUSALS", 3)
        ask = Says(*[RefusalError("HTTP 400: unknown field")] * 9)
        with pytest.raises(CaptioningError, match="HTTP 400: unknown field. 0 of 8 clips"):
            run(8, ask, record)
        assert ask.asked == 3

    def test_a_corpus_is_asked_for_its_training_clips_with_its_events(self, record, corpus):
        seen = []

        class Seeing(Says):
            def __call__(self, messages):
                seen.append(json.loads(messages[0]["content"].partition("\n\n")[2]))
                return super().__call__(messages)

        report = generate(corpus, Seeing(), record, quiet=True, concurrency=1)
        train = corpus.split("train")
        assert report.valid == len(train) == len(seen)
        assert [given["captions"] for given in seen] == train.captions.groupby("clip", sort=False)["caption"].agg(
            list
        ).tolist()
        assert [tuple(given["tags"]) for given in seen] == train.kinds()[train.clips["clip"]].tolist()

    @pytest.mark.parametrize("options", [{"concurrency": 0}, {"attempts": 0}])
    def test_numbers_that_make_no_sense(self, record, options):
        with pytest.raises(ValueError, match="give 1 or more"):
            run(1, Says(), record, **options)

    def test_odd_texts_come_back_as_they_are(self, record):
        odd = [
            "cafe\u0301 \U0001f415\u200d\U0001f9ba",
            "\u200fגשם\u200f",
            "rain\u2028wind",
            "a\x85naïve\x0bb",
            "“x”ﬁre",
        ]
        table = pd.DataFrame({"clip": ["‮odd\u2028.wav"] * 2, "caption": ["a\u2028b", "🎵"]})
        generate(table, Says(json.dumps(odd)), record, quiet=True)
        assert read(record).captions == {"‮odd\u2028.wav": odd} and read(record).answers[0].given == ("a\u2028b", "🎵")


class TestRecord:
    def test_a_half_written_line_is_moved_aside_and_its_clip_asked_for_again(self, record):
        run(3, Says(), record)
        whole = record.read_bytes()
        record.write_bytes(whole[:-40])
        ask = Says()
        assert run(3, ask, record).valid == 3 and ask.asked == 1
        last = whole.splitlines(keepends=True)[-1]
        assert record.read_bytes().splitlines()[:2] == whole.splitlines()[:2] and len(lines(record)) == 3
        assert record.with_name("m.jsonl.damaged").read_bytes() == last[:-40] + b"\n"

    def test_a_line_that_lacks_only_its_end_is_kept(self, record):
        run(2, Says(), record)
        record.write_bytes(record.read_bytes()[:-1])
        ask = Says()
        assert run(3, ask, record).valid == 3 and ask.asked == 1 and len(lines(record)) == 3
        assert not record.with_name("m.jsonl.damaged").exists()

    def test_damage_within_is_reported(self, record):
        run(2, Says(), record)
        record.write_bytes(b"\0\0\n" + record.read_bytes())
        report = run(2, Says(), record)
        assert report.valid == 2 and "1 damaged lines, left out: 1" in str(report)

    def test_one_process_at_a_time(self, record):
        entered, leave = threading.Event(), threading.Event()

        class Waiting(Says):
            def __call__(self, messages):
                entered.set()
                leave.wait(5)
                return super().__call__(messages)

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(run, 1, Waiting(), record)
            entered.wait(5)
            with pytest.raises(CaptioningError, match="m.jsonl: another process is writing to it; wait for it or name"):
                run(1, Says(), record)
            leave.set()
            assert first.result().valid == 1

    def test_a_full_disk_ends_the_run_and_leaves_whole_lines(self, record, monkeypatch):
        run(1, Says(), record)
        monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(OSError, match=f"^{record}: cannot be written: No space left .*; free some space"):
            run(3, Says(), record)
        monkeypatch.undo()
        assert len(lines(record)) == 1 and run(3, Says(), record).valid == 3

    def test_a_killed_run_goes_on_without_asking_twice(self, server, ask, record):
        server.pause = 0.05
        code = f"""
from pathlib import Path
import pandas as pd
from atr.corpora.captioning.generate import generate
from atr.corpora.captioning.language_models import Endpoint
table = pd.DataFrame({TABLE.to_dict("list")!r})
generate(table, Endpoint({server.url!r}, "phi4"), Path({str(record)!r}), concurrency=2)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        deadline = time.monotonic() + 60
        while not (record.exists() and record.read_bytes().count(b"\n") >= 3) and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
        time.sleep(0.15)  # the server finishes what it has begun
        kept = record.read_bytes()
        done, answered = {answer.clip for answer in read(record).answers}, list(server.clips)
        assert 3 <= len(done) < 8 and len(answered) - len(done) <= 2
        report = run(8, ask, record)
        assert report.requests == 8 - len(done) and report.valid == 8
        assert not done & set(server.clips[len(answered) :])
        assert record.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])


TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of two layers with random weights and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = made_models.roberta_tokenizer(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=0, pad_token_id=1, eos_token_id=2, **sizes)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


class TestLocal:
    def test_it_answers_with_text_tokens_and_the_reason_of_its_end(self, folder):
        ask, asked = LocalModel(folder, longest=6), messages(["a dog"])
        assert ask.model == "tiny-llama"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            replies = [ask(asked) for _ in range(4)]
        tokens = AutoTokenizer.from_pretrained(folder)(f"<s>{asked[0]['content']}</s>", add_special_tokens=False)
        for reply in replies:
            used = reply.usage
            assert used["prompt_tokens"] == len(tokens["input_ids"]) and 1 <= used["completion_tokens"] <= 6
            assert used["total_tokens"] == len(tokens["input_ids"]) + used["completion_tokens"]
        assert len({reply.text for reply in replies}) > 1

    @pytest.mark.parametrize("tokens, finish", [([30, 31, 2], "stop"), ([30, 2], "stop"), ([30, 31, 32], "length")])
    def test_it_says_why_the_answer_ended(self, folder, monkeypatch, tokens, finish):
        ask = LocalModel(folder, longest=3)

        def generate(input_ids, **options):
            return torch.cat([input_ids, torch.tensor([tokens])], dim=1)

        monkeypatch.setattr(ask._network, "generate", generate)
        reply = ask(messages(["a dog"]))
        assert reply.finish == finish and reply.usage["completion_tokens"] == len(tokens) and "</s>" not in reply.text

    def test_its_answers_are_recorded_as_any_others(self, folder, record):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            report = run(1, LocalModel(folder, longest=4), record, attempts=2)
        assert report.requests == 2 == len(lines(record)) and report.missing == {"cut off": ["clip a"]}

    def test_a_model_that_knows_no_chat_is_refused(self, folder, tmp_path):
        made_models.roberta_tokenizer(tmp_path / "plain")
        (tmp_path / "plain" / "config.json").write_bytes((folder / "config.json").read_bytes())
        with pytest.raises(ValueError, match="no chat template; take a model tuned to follow instructions"):
            LocalModel(tmp_path / "plain")


class TestAudit:
    ORIGINALS = pd.DataFrame({"clip": ["a", "a", "b"], "caption": ["rain on a big roof", "a dog", "wind in Graz"]})

    def test_it_counts_captions_and_clips_by_rule(self):
        new = [("a", GOOD[0]), ("a", "a dog"), ("a", "on a roof rain"), ("a", "rain at 5"), ("a", "rain in Graz")]
        new += [("b", text) for text in [*GOOD[:2], "two winds in Graz", "winds in Linz at 7"]]
        found = audit(pd.DataFrame(new, columns=["clip", "caption"]), self.ORIGINALS).set_index("rule")
        counts = {
            "count": (4, 1),
            "empty": (0, 0),
            "words": (0, 0),
            "digits": (2, 2),
            "names": (2, 2),
            "repeated": (1, 1),
        }
        counts |= {"number words": (1, 1), "near copies": (1, 1), "any rule": (7, 2)}
        assert {rule: (row.captions, row.clips) for rule, row in found.iterrows()} == counts
        assert found.loc["digits", "share"] == pytest.approx(200 / 9) and list(found.columns[:1]) == ["kind"]
        assert found.index[found["kind"] == "remark"].tolist() == ["number words", "near copies"]

    def test_every_caption_of_a_whole_corpus_that_repeats_its_original_is_counted(self):
        many = [(f"clip {n}", text) for n in range(3839) for text in GOOD]
        table = pd.DataFrame(many, columns=["clip", "caption"])
        found = audit(table, table).set_index("rule")
        assert found.loc["repeated", ["captions", "clips", "share"]].tolist() == [5 * 3839, 3839, 100]
        assert found.drop(["repeated", "any rule"])["captions"].sum() == 0 and len(found) == 9

    def test_paraphrases_of_a_corpus_keep_to_every_rule(self, corpus):
        sizes = {"train": 48, "validation": 12, "test": 16, "duration": 4.0}
        made = load_corpus("soundscapes", **sizes, synthetic="paraphrase", use="synthetic").split("train").captions
        found = audit(made, corpus.captions).set_index("rule")
        assert len(made) == 5 * 48 and set(made["clip"]) == set(corpus.split("train").clips["clip"])
        assert found.loc["any rule", "captions"] == 0


@pytest.mark.parametrize(
    "text, left",
    [
        ("https://me:p%40ss@host:80/v1 and http://tok@h", "https://host:80/v1 and http://h"),
        ("http://h/v1?api_key=abc&x=1&token=t", "http://h/v1?api_key=…&x=1&token=…"),
        ("{'Authorization': 'Bearer sk-12345678'}", "{'Authorization': 'Bearer …'}"),
        ("Bearer sk-12345678 is unknown", "Bearer … is unknown"),
        ("atr x --api-key abc --name n", "atr x --api-key … --name n"),
        ("atr x --hf-token='a b' --seed 1", "atr x --hf-token=… --seed 1"),
        ("HF_TOKEN=abc OPENAI_API_KEY=s atr x", "HF_TOKEN=… OPENAI_API_KEY=… atr x"),
        ("x-api-key: abc, 'api-key': 'abc'", "x-api-key: … 'api-key': '…'"),
        ("{'x-auth-token': 'abc'}", "{'x-auth-token': '…'}"),
        ("Authorization: Token abc", "Authorization: Token …"),
        ("key hf_aBcDeFgHiJkL and sk-proj-12345678, ghp_a1b2c3", "key hf_… and sk-…, ghp_…"),
        ("task-12345 of hf_clips.wav with --keywords a.csv", "task-12345 of hf_clips.wav with --keywords a.csv"),
        ("a@b.c, http://h/a@b, the bearer of news, monkey=3", "a@b.c, http://h/a@b, the bearer of news, monkey=3"),
    ],
)
def test_credentials_are_left_out(text, left):
    assert without_credentials(text) == left


def test_the_recorded_command_holds_no_credentials(monkeypatch):
    monkeypatch.setenv("ATR_COMMAND", "atr x --endpoint http://me:pass@host/v1")
    assert output.provenance([])["command"] == "atr x --endpoint http://host/v1"
    monkeypatch.setenv("ATR_COMMAND", "HF_TOKEN=abc atr x --api-key abc --local hf_abcdefgh1")
    assert output.provenance([])["command"] == "HF_TOKEN=… atr x --api-key … --local hf_…"


@pytest.mark.parametrize("login", ["me:p%40ss@", "", "secretuser:pw@"])
def test_what_a_server_says_back_of_the_credentials_is_left_out(server, login):
    said = "version 1: no access for p@ss, p%40ss, pw, secretuser, geheim, key"
    server.plan = [(401, {}, said)]
    address = server.url.replace("//", f"//{login}") + "?v=1&sesame=geheim"
    with pytest.raises(CaptioningError, match=r"HTTP 401: version 1: no access for ") as caught:
        Endpoint(address, "m", key="key", retries=0)(messages(["a"]))
    left = {"me:p%40ss@": "…, …, pw, secretuser, …, …", "": "p@ss, p%40ss, pw, secretuser, …, …"}
    assert left.get(login, "p@ss, p%40ss, …, …, …, …") in str(caught.value)


@pytest.mark.parametrize("address", ["me:pass@host/v1", "host/v1?api_key=pass", "ftp://me:pass@host"])
def test_an_address_without_its_scheme_is_named_without_its_password(address):
    with pytest.raises(ValueError, match="endpoint 'host.*': give an address such as") as caught:
        Endpoint(address, "m")
    assert "pass" not in str(caught.value)


def reply(message, finish="stop"):
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]})


class TestWhatIsTheAnswer:
    @pytest.mark.parametrize(
        "message, text, finish",
        [
            (
                {"content": [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": "b"}]},
                "a b",
                "stop",
            ),
            ({"content": "a", "reasoning": "hm"}, "a", "stop"),
            ({"content": "<think>hm</think>a"}, "<think>hm</think>a", "stop"),
            ({"content": None, "reasoning": "hm"}, "", "reasoning"),
            ({"content": None, "reasoning_content": "hm"}, "", "reasoning"),
            ({"content": [], "reasoning": "hm"}, "", "reasoning"),
            ({"content": "<think>hm"}, "<think>hm", "reasoning"),
            ({"content": None, "refusal": "I will not."}, "I will not.", "refusal"),
            ({"content": [{"type": "refusal", "refusal": "I will not."}]}, "I will not.", "refusal"),
            ({"content": ["a ", {"text": "b"}, {"type": "output_text", "text": "c"}]}, "a bc", "stop"),
            ({"content": [{"type": "text", "text": None}, {"type": "text", "text": "a"}]}, "a", "stop"),
            ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}]}, "a", "stop"),
            ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]}, "", "reasoning"),
            ({"content": [{"type": "reasoning", "summary": []}]}, "", "reasoning"),
            ({"content": None, "thinking": "hm"}, "", "reasoning"),
            ({"content": "<thinking>hm"}, "<thinking>hm", "reasoning"),
            ({"content": "[THINK]hm[/THINK]"}, "[THINK]hm[/THINK]", "reasoning"),
            ({"content": "a \ud800 b \ud83d\ude00"}, "a \ufffd b \U0001f600", "stop"),
            ({"content": None, "refusal": "no\udfff"}, "no\ufffd", "refusal"),
        ],
    )
    def test_it_is_taken_from_its_place(self, server, ask, message, text, finish):
        server.plan = [reply(message)]
        assert ask(messages(["a"]))[:2] == (text, finish)

    @pytest.mark.parametrize(
        "text, said",
        [
            ("<think>a</think> b", "b"),
            ("a</think>b", "b"),
            ("b <think>a", "b"),
            ("b <think>a</think>", "b"),
            ("<thinking>a</thinking>b", "b"),
            ("[THINK]a[/THINK]b", "b"),
            ("b[THINK]a", "b"),
            ("<think>a<think>c</think>d</think>b", "b"),
            ("<reasoning>a</reasoning>b", "b"),
            ("<THINK>a</THINK>b", "b"),
            ("<thin>a", "<thin>a"),
        ],
    )
    def test_what_a_model_thought_aloud_is_not_its_answer(self, text, said):
        assert language_models.without_thoughts(text) == said

    def test_captions_have_no_half_of_a_surrogate_pair(self, server, ask, record):
        captions = ["\ud800 " + GOOD[0], *GOOD[1:4], "fresh \U0001f600 wording"]
        server.answer = lambda clip: completion(json.dumps(captions))  # escapes within the answer's text
        run(1, ask, record)
        found = read(record).answers[0].captions
        assert found == ["\ufffd " + GOOD[0], *GOOD[1:4], "fresh \U0001f600 wording"]

    def test_deep_nesting_is_no_caption(self):
        assert parse("[" * 50_000) == parse("[" * 50_000 + "]" * 50_000) == []

    def test_reasoning_alone_is_said_spends_no_attempt_and_is_asked_for_again_later(self, server, ask, record):
        server.answer = lambda clip: reply({"content": None, "reasoning": "hm"}, "length")
        report = run(3, ask, record, attempts=1)
        mend = "switch the model's thinking off, or raise the limit of tokens at its server"
        said = f"missing, only reasoning ({mend}, or longest of atr.corpora.captioning.language_models.LocalModel): 3 "
        assert report.requests == 3 and said in str(report)
        assert "longest" in inspect.signature(language_models.LocalModel).parameters
        server.answer = lambda clip: completion(json.dumps(GOOD))
        assert run(3, ask, record, attempts=1).valid == 3

    @pytest.mark.parametrize(
        "message, finish, reason",
        [
            ({"content": None, "reasoning": "hm"}, "stop", "only reasoning .switch the model's thinking off"),
            ({"content": '["a'}, "length", "cut off"),
            ({"content": None, "refusal": "I will not."}, "stop", "refusal"),
        ],
    )
    def test_first_answers_that_fail_alike_end_a_run(self, server, ask, record, monkeypatch, message, finish, reason):
        monkeypatch.setattr("atr.corpora.captioning.generate.ALIKE", 4)
        server.answer = lambda clip: reply(message, finish)
        with pytest.raises(CaptioningError, match=f"phi4: the first 4 answers fail alike, {reason}.*0 of 8 clips"):
            run(8, ask, record)
        assert len(server.asked) == 4

    def test_an_answer_with_captions_keeps_a_run_going(self, server, ask, record, monkeypatch):
        monkeypatch.setattr("atr.corpora.captioning.generate.ALIKE", 3)
        server.plan = [completion(json.dumps(GOOD))] + [reply({"content": None, "reasoning": "hm"})] * 5
        assert run(8, ask, record).valid == 3


class Trickle(Handler):
    def act(self, server, clip, step):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        status, body = (head + b"\r\n", b" " * 100) if server.plan == "body" else (b"", head + b"X: " + b"x" * 100)
        self.wfile.write(status)
        for place in range(len(body)):
            self.wfile.write(body[place : place + 1])
            time.sleep(0.05)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_sends_a_byte_now_and_then_is_given_up(monkeypatch, part):
    with serving(Trickle) as running:
        running.model = Server()
        running.model.url = f"http://127.0.0.1:{running.server_port}/v1"
        monkeypatch.setattr(Trickle, "do_POST", lambda self: self.act(self.server.model, "", None))
        running.model.plan = part
        begun = time.monotonic()
        with pytest.raises(CaptioningError, match="no answer within 0.4 s, tried once; give a longer timeout"):
            Endpoint(running.model.url, "m", timeout=0.4, retries=0)(messages(["a"]))
        assert time.monotonic() - begun < 3


@pytest.mark.parametrize("packed", [False, True])
def test_an_answer_has_a_size_limit_also_packed(server, monkeypatch, packed):
    monkeypatch.setattr(language_models, "MOST", 1000)
    body = b" " * 100_000
    sent = gzip.compress(body).decode("latin-1") if packed else body.decode()
    server.plan = [(200, {"Content-Encoding": "gzip"} if packed else {}, sent)]
    with pytest.raises(CaptioningError, match="an answer of more than 1,000 bytes; "):
        Endpoint(server.url, "m", retries=2)(messages(["a"]))
    assert len(server.asked) == 1


class Endless(Handler):
    status = 200

    def do_POST(self):
        self.send_response(self.status)
        if self.status == 307 and self.path.endswith("completions"):
            self.send_header("Location", "/there")
        elif self.status == 308:
            self.send_header("Location", self.path)
        self.end_headers()
        with suppress(OSError):
            while True:
                self.wfile.write(b"x" * 1000)


@pytest.mark.parametrize(
    "status, message",
    [(status, "an answer of more than 5,000 bytes") for status in (200, 307, 400, 401, 404, 429, 500)]
    + [(308, "one redirect after another")],
)
def test_an_endless_answer_of_any_status_is_given_up(monkeypatch, status, message):
    monkeypatch.setattr(language_models, "MOST", 5000)
    monkeypatch.setattr(Endless, "status", status)
    with serving(Endless) as running:
        with pytest.raises(CaptioningError, match=message):
            Endpoint(f"http://127.0.0.1:{running.server_port}/v1", "m", timeout=5, retries=0)(messages(["a"]))


def test_no_error_of_an_endpoint_holds_its_password():
    with pytest.raises(CaptioningError, match="^http://127.0.0.1:9/v1: cannot be reached") as caught:
        Endpoint("http://me:pass@127.0.0.1:9/v1", "m", retries=0)(messages(["a"]))
    assert "pass" not in str(caught.value)
