"""The behaviours: what models say, and how their answers fail to arrive."""

from __future__ import annotations

import itertools
import zlib

from .behaviours import document, faults, problem, replies, shapes
from .errors import ERRORS
from .model import Answer, Ask, Framing, Plan, Then, Usage

# What is said -----------------------------------------------------------------------------------


@shapes("default", "the answer is 'echo: ' and the last user message, cut at max_tokens")
def _default(ask: Ask, answer: Answer) -> None:
    pass


@shapes("length", "cut by the token limit: finish_reason length")
def _length(ask: Ask, answer: Answer) -> None:
    answer.finish = "length"


@shapes("empty", "an answer without text")
def _empty(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, "")


@shapes("refusal", "200 with message.refusal instead of content")
def _refusal(ask: Ask, answer: Answer) -> None:
    answer.text, answer.refusal = None, "I'm sorry, I can't assist with that request."


@shapes("content-policy-200", "200 with half an answer and finish_reason content_filter")
def _content_policy_200(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, (answer.text or "")[: len(answer.text or "") // 2])
    answer.finish = "content_filter"


@shapes("tokens-N", "an answer of N tokens, cut at max_tokens")
def _tokens(ask: Ask, answer: Answer, count: str) -> None:
    said = ask.answer("word" * min(int(count), 10_000_000))
    answer.text, answer.usage, answer.finish = said.text, said.usage, said.finish


@shapes("ignore-max-tokens", "the whole echo, whatever max_tokens says")
def _ignore_max_tokens(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, "echo: " + ask.prompt)
    answer.finish = "stop"


@shapes("huge-N", "an answer of N MB")
def _huge(ask: Ask, answer: Answer, megabytes: str) -> None:
    _say(ask, answer, "x" * (min(int(megabytes), 1024) << 20))
    answer.finish = "stop"


@shapes("nul", "a NUL (\\u0000) in the text")
def _nul(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, "before\0after")


@shapes("usage-X-Y-C-R", "usage: X prompt tokens (C of them cached), Y completion (R reasoning)")
def _usage(ask: Ask, answer: Answer, x: str, y: str, c: str, r: str) -> None:
    answer.usage = Usage(prompt=int(x), completion=int(y), cached=int(c), reasoning=int(r))


@shapes("metered", "usage drawn from the prompt, unlike what its length would give")
def _metered(ask: Ask, answer: Answer) -> None:
    drawn = zlib.crc32(ask.prompt.encode("utf-8", "surrogatepass"))
    prompt, completion = 100 + drawn % 9901, 1 + (drawn >> 7) % 2003
    if ask.max_tokens is not None:
        completion = min(completion, ask.max_tokens)
    cached, reasoning = prompt * (drawn >> 30) // 4, completion * (drawn >> 29 & 1) // 3
    answer.usage = Usage(prompt, completion, cached, reasoning)


@shapes("no-usage", "no usage, even where it was asked for")
def _no_usage(ask: Ask, answer: Answer) -> None:
    answer.usage = None


@shapes("json-only", "a plain JSON body, also for a streamed request")
def _json_only(ask: Ask, answer: Answer) -> None:
    ask.stream = False


@shapes("leak-key-in-answer", "200 whose text holds the request's key in full")
def _leak_key_in_answer(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, f"your key is {ask.key}, is it not?")


def _say(ask: Ask, answer: Answer, text: str) -> None:
    answer.text, answer.usage = text, ask.usage(text)


# What is said instead ---------------------------------------------------------------------------


@replies("status-CODE", "an error of that status, in the dialect's words")
def _status(ask: Ask, code: str) -> Plan:
    status = int(code)
    if status == 401:
        return problem(ask, "auth")
    return document(ask, status, ask.dialect.failure(ask, status))


@replies("flaky-N", "status 500 for every Nth of all requests that the fake gets")
def _flaky(ask: Ask, n: str) -> Plan | None:
    return None if ask.n % max(1, int(n)) else _status(ask, "500")


@replies("context-length", "the prompt is too long for the model")
def _context_length(ask: Ask) -> Plan:
    return problem(ask, "context_length")


@replies("content-policy", "the prompt is refused by the safety system")
def _content_policy(ask: Ask) -> Plan:
    return problem(ask, "content_policy")


@replies("require-key-KEY", "401 unless the request's key is KEY; the body shows a part of the key")
def _require_key(ask: Ask, key: str) -> Plan | None:
    return None if ask.key == key else problem(ask, "auth")


@replies("leak-key", "401 whose body echoes the request's key in full")
def _leak_key(ask: Ask) -> Plan:
    ask.shown_key = ask.key or ""
    return problem(ask, "auth")


@replies("error-in-200", "200 with an error as its JSON body, also for a streamed request")
def _error_in_200(ask: Ask) -> Plan:
    return document(ask, 200, ask.dialect.problem(ask, "server")[1])


_HTML = b"<!DOCTYPE html>\n<html><head><title>%b</title></head><body><h1>%b</h1></body></html>\n"


@replies("html", "200 with a web page, as a captive portal or a wrong base_url gives")
def _html(ask: Ask) -> Plan:
    return Plan(200, {"content-type": "text/html"}, [_HTML % (b"Welcome", b"Welcome")])


@replies("html-CODE", "an error page of that status, as a proxy gives")
def _html_code(ask: Ask, code: str) -> Plan:
    title = b"%b Proxy Error" % code.encode()
    return Plan(int(code), {"content-type": "text/html"}, [_HTML % (title, title)])


@replies("redirect", "302 to another path here, so that the journal shows who follows it")
def _redirect(ask: Ask) -> Plan:
    return Plan(302, {"location": "/redirected/chat/completions"}, [b""])


for _name, _error in ERRORS.items():
    replies(f"error-body-{_name}", _error.help)(_error.plan)


# How it goes out --------------------------------------------------------------------------------


@faults("slow-N", "N ms before the first byte")
def _slow(ask: Ask, plan: Plan, milliseconds: str) -> None:
    plan.delay += int(milliseconds) / 1000


@faults("drip-N", "head at once, then N ms before each event")
def _drip(ask: Ask, plan: Plan, milliseconds: str) -> None:
    plan.gap = int(milliseconds) / 1000


@faults("silent", "reads the request and never answers")
def _silent(ask: Ask, plan: Plan) -> None:
    plan.send_head, plan.then = False, Then.STALL


@faults("stall", "goes silent half-way through the answer; the connection stays open")
def _stall(ask: Ask, plan: Plan) -> None:
    plan.truncate(1 / 2)
    plan.then = Then.STALL


@faults("reset-before", "RST before a byte is sent")
def _reset_before(ask: Ask, plan: Plan) -> None:
    plan.send_head, plan.whole, plan.then = False, False, Then.RESET


@faults("reset-mid", "RST half-way through the answer")
def _reset_mid(ask: Ask, plan: Plan) -> None:
    plan.truncate(1 / 2)
    plan.then = Then.RESET


@faults("close-before", "clean close before a byte is sent")
def _close_before(ask: Ask, plan: Plan) -> None:
    plan.send_head, plan.whole, plan.then = False, False, Then.CUT


def _close_after(plan: Plan) -> None:
    """Says so, or the next request may be on its way on a connection that is about to close."""
    plan.headers["connection"], plan.then = "close", Then.CLOSE


@faults("cut", "two thirds of the answer, then a close which to HTTP is a proper end")
def _cut(ask: Ask, plan: Plan) -> None:
    plan.truncate(2 / 3)
    plan.promised = None
    _close_after(plan)


@faults("cut-short", "two thirds of the answer, then a close although HTTP promised more")
def _cut_short(ask: Ask, plan: Plan) -> None:
    plan.truncate(2 / 3)
    plan.then = Then.CUT


@faults("no-done", "the whole answer, but without the end marker; then closes")
def _no_done(ask: Ask, plan: Plan) -> None:
    if plan.marked:
        plan.parts.pop()
        plan.tail, plan.marked = plan.tail - 1, False
    _close_after(plan)


@faults("half-close", "body without length, ended by FIN; the socket itself stays open")
def _half_close(ask: Ask, plan: Plan) -> None:
    plan.framing, plan.then = Framing.UNTIL_CLOSE, Then.HALF_CLOSE


@faults("chunked-odd", "chunks with extensions, leading zeros, trailers, and no respect for events")
def _chunked_odd(ask: Ask, plan: Plan) -> None:
    plan.framing = Framing.CHUNKED_ODD


@faults("one-byte", "the whole response, one byte per write")
def _one_byte(ask: Ask, plan: Plan) -> None:
    plan.write_size = 1


@faults("keepalive-comments", "a comment before each event of a stream")
def _keepalive_comments(ask: Ask, plan: Plan) -> None:
    if ask.stream and ask.dialect.comment:
        plan.parts = [piece for part in plan.parts for piece in (ask.dialect.comment, part)]
        plan.tail *= 2


@faults("malformed", "a broken JSON event half-way; the rest of the stream is sound")
def _malformed(ask: Ask, plan: Plan) -> None:
    broken = b'{"id":"fake-broken","choices":[{"index":0,"delta":{"content":"brok'
    if ask.stream:
        plan.parts.insert(plan.middle(), ask.dialect.event(broken))
    else:
        plan.parts = [broken]


@faults("error-in-stream", "an error event half-way, which ends the stream; unstreamed: the error")
def _error_in_stream(ask: Ask, plan: Plan) -> None:
    error = ask.dialect.problem(ask, "server")[1]
    if ask.stream:
        plan.parts[plan.middle() :] = [ask.dialect.event(error)]
        plan.tail, plan.marked = 0, False
    else:
        plan.parts = [error]


@faults("deep-N", "a sound answer with one more field, nested N deep")
def _deep(ask: Ask, plan: Plan, depth: str) -> None:
    levels = min(int(depth), 10_000_000)
    deep = b'{"deep":' + b"[" * levels + b"]" * levels + b","
    for i, part in enumerate(plan.parts):
        if b"{" in part:
            plan.parts[i] = part.replace(b"{", deep, 1)
            break


# A character that no test uses: it survives the rendering, and then becomes what no JSON encoder
# would write.
_MARK = "\ue0f8"


@shapes("bad-utf8", "bytes that are not UTF-8 in the text")
def _bad_utf8(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, f"before{_MARK}after")


@faults("bad-utf8")
def _bad_utf8_bytes(ask: Ask, plan: Plan) -> None:
    plan.parts = [part.replace(_MARK.encode(), b"\xc3\x28\xff") for part in plan.parts]


_UNICODE = "na\u00efve \u65e5\u672c\u8a9e \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 end"


@shapes("unicode-split", "multi-byte text, CR LF line ends, writes that end inside both")
def _unicode(ask: Ask, answer: Answer) -> None:
    _say(ask, answer, _UNICODE)


@faults("unicode-split")
def _split(ask: Ask, plan: Plan) -> None:
    """Cut inside every character of several bytes, between CR and LF, and inside field names."""
    raw = b"".join(plan.parts)
    if ask.stream:
        raw = raw.replace(b"\n", b"\r\n")
    cuts = {0, len(raw)}
    for i in range(1, len(raw)):
        inside = raw[i] & 0xC0 == 0x80  # a continuation byte
        if inside or raw[i - 1 : i + 1] == b"\r\n" or raw[i - 2 : i + 2] == b"data":
            cuts.add(i)
    plan.parts = [raw[a:b] for a, b in itertools.pairwise(sorted(cuts))]
    plan.tail, plan.marked, plan.gap = 0, False, plan.gap or 0.001


@faults("retry-after-N", "adds the header retry-after: N (seconds)")
def _retry_after(ask: Ask, plan: Plan, seconds: str) -> None:
    plan.headers["retry-after"] = seconds


@faults("retry-after-ms-N", "adds the header retry-after-ms: N")
def _retry_after_ms(ask: Ask, plan: Plan, milliseconds: str) -> None:
    plan.headers["retry-after-ms"] = milliseconds
