/*-------------------------------------------------------------------------
 *
 * judge.c
 *	  What an attempt's bytes, or their absence, mean.
 *
 * An answer counts only when the provider said that it is complete: a stream
 * that was cut, stalled or broken is an error however much of it arrived.
 * The reverse holds too: what happens to the connection after the provider
 * said so does not matter.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "call.h"

/* How much of an answer shows what it is: it may come in many small pieces. */
#define MAX_LOOKED_AT	4096

static const char byte_order_mark[] = "\xEF\xBB\xBF";

static bool
has_byte_order_mark(const char *bytes, size_t len)
{
	size_t		n = strlen(byte_order_mark);

	return len >= n && memcmp(bytes, byte_order_mark, n) == 0;
}

/*
 * Whether a body that is not called a stream looks like one.  An event stream
 * begins with a field or a comment, as no JSON does; and a line of NDJSON is a
 * whole object, which is all of the answer if no other line follows.
 */
static bool
looks_like_stream(const char *bytes, size_t len, LlmFraming framing)
{
	static const char *const beginnings[] = {":", "data:", "event:", "id:", "retry:"};
	const char *end = bytes + Min(len, MAX_LOOKED_AT);

	if (has_byte_order_mark(bytes, len))
		bytes += strlen(byte_order_mark);
	while (bytes < end && strchr(" \t\r\n", *bytes) != NULL)
		bytes++;
	if (framing == LLMGW_FRAMING_NDJSON)
	{
		end = memchr(bytes, '\n', end - bytes);
		while (end && end > bytes && strchr(" \t\r", end[-1]) != NULL)
			end--;
		return end && end > bytes && *bytes == '{' && end[-1] == '}';
	}
	for (int i = 0; i < lengthof(beginnings); i++)
	{
		size_t		n = strlen(beginnings[i]);

		if (end - bytes >= n && memcmp(bytes, beginnings[i], n) == 0)
			return true;
	}
	return false;
}

bool
llmgw_judge_is_stream(const LlmTransfer *transfer, LlmFraming framing)
{
	char	   *type;
	bool		stream;

	if (transfer->http_status < 200 || transfer->http_status > 299)
		return false;
	type = llmgw_http_header(transfer->headers, "content-type");
	stream = type != NULL &&
		(pg_strncasecmp(type, "text/event-stream", 17) == 0 ||
		 pg_strncasecmp(type, "application/x-ndjson", 20) == 0);
	if (type != NULL)
		pfree(type);
	return stream || looks_like_stream(transfer->data, transfer->len, framing);
}

static LlmErrorClass
judge_transport(const LlmCall *call, const char **message)
{
	const LlmTransfer *t = call->transfer;
	const LlmModel *model = call->route.candidates[call->current].model;
	const LlmProvider *p = model->provider;
	const char *host = call->plain && p->probe_url != NULL ? p->probe_url : p->url.host;

	switch (t->outcome)
	{
		case LLMGW_HTTP_FAILED_RESOLVE:
			*message = psprintf("host \"%s\" could not be resolved", host);
			return LLMGW_NETWORK;
		case LLMGW_HTTP_FAILED_ADDRESS:
			*message = psprintf("host \"%s\" resolves to a link-local or metadata address, where the gateway does not connect",
								host);
			return LLMGW_NETWORK;
		case LLMGW_HTTP_FAILED_PROXY:
			*message = "llm_gateway.proxy cannot be used";
			return LLMGW_NETWORK;
		case LLMGW_HTTP_FAILED_CONNECT:
		case LLMGW_HTTP_FAILED_TLS:
		case LLMGW_HTTP_FAILED_NETWORK:
			/* libcurl may quote a proxy's URL, which has its password */
			if (llmgw_proxy && strchr(llmgw_proxy, '@') != NULL &&
				strchr(t->message, '@') != NULL)
				*message = "the connection through llm_gateway.proxy failed";
			else
				*message = llmgw_clean_text(t->message[0] ? t->message :
											"connection failed", 300);
			return LLMGW_NETWORK;
		case LLMGW_HTTP_TIMEOUT_CONNECT:
			*message = psprintf("no connection within %d ms (connect_timeout)", p->connect_ms);
			return LLMGW_TIMEOUT;
		case LLMGW_HTTP_TIMEOUT_FIRST_BYTE:
			*message = psprintf("no answer within %d ms (first_byte_timeout)",
								model->first_byte_ms >= 0 ? model->first_byte_ms : p->first_byte_ms);
			return LLMGW_TIMEOUT;
		case LLMGW_HTTP_TIMEOUT_IDLE:
			*message = psprintf("the answer stopped for %d ms (idle_timeout) after %zu bytes",
								p->idle_ms, t->total);
			return LLMGW_TIMEOUT;
		case LLMGW_HTTP_TIMEOUT_TOTAL:
			if (call->deadline_binds)
				*message = psprintf("the call was not done within its %d ms (timeout_ms)",
									call->spec->timeout_ms);
			else
				*message = psprintf("the answer was not complete within %d ms (total_timeout)",
									model->total_ms >= 0 ? model->total_ms : p->total_ms);
			return LLMGW_TIMEOUT;
		case LLMGW_HTTP_TOO_LARGE:
			*message = psprintf("the answer is larger than %d kB (llm_gateway.max_response_size)",
								llmgw_max_response_size);
			return LLMGW_MALFORMED;
		case LLMGW_HTTP_FAILED_INTERNAL:
			*message = psprintf("the request could not be started: %s",
								t->message[0] ? t->message : "out of memory");
			return LLMGW_NETWORK;
		case LLMGW_HTTP_STALE:
			*message = "the connection was closed before the request was sent";
			return LLMGW_NETWORK;
		case LLMGW_HTTP_DONE:
		case LLMGW_HTTP_RUNNING:
			break;
	}
	return LLMGW_OK;
}

/*
 * Where a redirect leads, in words: what has to be configured instead.  Without
 * what may be secret in it.
 */
static char *
redirect_message(const LlmCall *call)
{
	char	   *location = llmgw_http_header(call->transfer->headers, "location");

	if (location != NULL)
		location[strcspn(location, "?#")] = '\0';
	if (location == NULL || *location == '\0' || strchr(location, '@') != NULL)
		return psprintf("HTTP %d: redirect not followed", call->transfer->http_status);
	return psprintf("HTTP %d: redirect not followed: it leads to \"%s\"",
					call->transfer->http_status,
					llmgw_answer_clean(&call->answer, location, 200));
}

/* JSON has none before it, but there are servers that put it there. */
static void
drop_byte_order_mark(LlmTransfer *t)
{
	size_t		n = strlen(byte_order_mark);

	if (!has_byte_order_mark(t->data, t->len))
		return;
	t->len -= n;
	memmove(t->data, t->data + n, t->len + 1);
}

LlmErrorClass
llmgw_judge(LlmCall *call, const char **message)
{
	LlmTransfer *t = call->transfer;
	LlmAnswer  *answer = &call->answer;
	const LlmDialect *dialect =
	call->route.candidates[call->current].model->provider->dialect;
	LlmErrorClass transport;
	MemoryContext old;

	*message = NULL;
	if (!call->streaming)
		drop_byte_order_mark(t);

	/* an error status with whatever arrived of its body */
	if (t->http_status >= 300)
	{
		llmgw_mask_key(t->data, t->len, call->wire.api_key);
		old = MemoryContextSwitchTo(call->scratch);
		dialect->read_error(&call->wire, t->http_status, t->data ? t->data : "",
							t->len, answer);
		llmgw_params_read_refusal(t->http_status, t->data ? t->data : "", t->len, answer);
		MemoryContextSwitchTo(old);
		MemoryContextReset(call->scratch);
		*message = t->http_status < 400 ? redirect_message(call) : answer->message;
		if (*message == NULL)
			*message = psprintf("HTTP status %d", t->http_status);
		if (answer->error == LLMGW_OK)
			return LLMGW_SERVER_ERROR;
		return call->plain ? llmgw_probe_judge(call, answer->error) : answer->error;
	}

	if (call->plain)
	{
		transport = llmgw_probe_judge(call, judge_transport(call, message));
		if (transport == LLMGW_MALFORMED && *message == NULL)
			*message = psprintf("HTTP status %d", t->http_status);
		return transport;
	}
	if (!call->streaming && t->outcome == LLMGW_HTTP_DONE)
	{
		llmgw_mask_key(t->data, t->len, call->wire.api_key);
		old = MemoryContextSwitchTo(call->scratch);
		if (call->inputs != NULL)
			dialect->parse_embedding(&call->wire, t->data ? t->data : "", t->len, answer);
		else
			dialect->parse_response(&call->wire, t->data ? t->data : "", t->len, answer);
		MemoryContextSwitchTo(old);
		MemoryContextReset(call->scratch);
	}
	if (answer->complete && answer->ntool_calls > 0)
	{
		old = MemoryContextSwitchTo(call->scratch);
		llmgw_answer_end_tools(answer, psprintf("call_" INT64_FORMAT, call->request_id));
		MemoryContextSwitchTo(old);
		MemoryContextReset(call->scratch);
	}
	if (answer->error != LLMGW_OK)
	{
		*message = answer->message ? answer->message : "the answer cannot be read";
		return answer->error;
	}
	if (answer->complete &&
		(!dialect->ends_with_connection || t->outcome == LLMGW_HTTP_DONE))
		return LLMGW_OK;

	transport = judge_transport(call, message);
	if (transport != LLMGW_OK)
		return transport;
	*message = psprintf("the answer ended before it was complete, after %zu bytes",
						t->total);
	return LLMGW_MALFORMED;
}

/*
 * The tokens of a body that came at once and of which nothing could be read, or
 * not all came: what the model made is in it.  No more than it was asked for.
 * Nothing is allocated, and the bytes need not be text.
 */
static int64
unread_output(const LlmCall *call, const LlmModel *model, LlmErrorClass error)
{
	const LlmTransfer *t = call->transfer;
	int64		characters = 0;
	int64		tokens;

	if (call->streaming || call->inputs != NULL || t->outcome == LLMGW_HTTP_RUNNING ||
		(error != LLMGW_MALFORMED && error != LLMGW_NETWORK && error != LLMGW_TIMEOUT))
		return 0;
	for (size_t i = 0; i < t->len; i++)
		if (((unsigned char) t->data[i] & 0xC0) != 0x80)
			characters++;		/* not a later byte of one in UTF-8 */
	tokens = (characters + 3) / 4;
	if (call->wire.max_tokens > 0)
		tokens = Min(tokens, call->wire.max_tokens);
	if (model->max_output_tokens > 0)
		tokens = Min(tokens, model->max_output_tokens);
	return tokens;
}

/*
 * Usage where the provider gave it.  An error status costs nothing, nor does
 * what was never sent.  What was sent and has no known end is charged by what
 * we know: the prompt, and the output seen, or counted, so far; so is an answer of
 * which the provider counted only the input or only the output.
 */
LlmNano
llmgw_judge_cost(const LlmCall *call, LlmErrorClass error, LlmUsage *usage,
				 LlmCostSource *source)
{
	const LlmTransfer *t = call->transfer;
	const LlmModel *model = call->route.candidates[call->current].model;
	const LlmUsage *told = &call->answer.usage;
	LlmNano		cost;
	int64		seen;

	*usage = *told;
	if (usage->known)
	{
		cost = llmgw_cost(model, usage);
		*source = cost == LLMGW_COST_UNKNOWN ? LLMGW_SOURCE_NONE : LLMGW_SOURCE_USAGE;
		return cost;
	}
	memset(usage, 0, sizeof(*usage));
	*source = LLMGW_SOURCE_NONE;
	if (t->http_status >= 300 || t->requested_at == 0 || call->plain)
		return 0;
	llmgw_estimate(model, llmgw_call_characters(call, model), LLMGW_NO_OUTPUT, usage);
	seen = pg_mbstrlen_with_len(call->answer.text.data, call->answer.text.len);
	for (int i = 0; i < call->answer.ntool_calls; i++)
		seen += pg_mbstrlen_with_len(call->answer.tool_calls[i].arguments.data,
									 call->answer.tool_calls[i].arguments.len);
	usage->output = call->answer.output_alone > 0 ? call->answer.output_alone :
		seen > 0 ? (seen + 3) / 4 : unread_output(call, model, error);

	/* what was thought is not in what was seen */
	usage->output = Min(usage->output + told->reasoning, PG_INT32_MAX);
	llmgw_call_cap(call, usage);
	usage->output = Max(usage->output, told->output);
	usage->reasoning = told->reasoning;
	if (told->input > 0)
	{
		usage->input = told->input;
		usage->cached_input = told->cached_input;
		usage->cache_write = told->cache_write;
	}
	cost = llmgw_cost(model, usage);
	if (cost != LLMGW_COST_UNKNOWN)
		*source = LLMGW_SOURCE_ESTIMATE;
	return cost;
}
