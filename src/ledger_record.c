/*-------------------------------------------------------------------------
 *
 * ledger_record.c
 *	  Encodes and decodes the payloads of the spool's records.
 *
 * See ledger_record.h for the format.  One list of fields for each struct
 * serves both ways, so that they cannot disagree.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/memutils.h"

#include "ledger_record.h"

/*
 * Either appends fields to a buffer (data is NULL) or reads them from
 * [data, end).  Once something does not fit, nothing more is read.
 */
typedef struct Codec
{
	StringInfo	buf;
	const char *data;
	const char *end;
	bool		failed;
} Codec;

static void
field(Codec *c, void *value, Size size)
{
	if (c->buf != NULL)
		appendBinaryStringInfo(c->buf, value, size);
	else if (c->failed || c->end - c->data < size)
	{
		memset(value, 0, size);
		c->failed = true;
	}
	else
	{
		memcpy(value, c->data, size);
		c->data += size;
	}
}

/* An enum or a flag, below the limit. */
static int
small_field(Codec *c, int value, int limit)
{
	uint8		byte = (uint8) value;

	field(c, &byte, 1);
	if (byte >= limit)
		c->failed = true;
	return c->failed ? 0 : byte;
}

#define FLAG(c, f)			((f) = small_field((c), (f), 2) != 0)
#define ENUM(c, f, limit)	((f) = small_field((c), (int) (f), (limit)))

static void
count_field(Codec *c, int *value)
{
	int32		n = *value;

	field(c, &n, sizeof(n));
	*value = n;
}

/* A text longer than max bytes is written up to the character that fits. */
static void
text_field(Codec *c, const char **text, Size max)
{
	int32		len = -1;

	if (c->buf != NULL)
	{
		if (*text !=NULL)
		{
			Size		all = strlen(*text);

			/* what is not valid in the encoding must not be looked beyond */
			len = (int32) (all <= max ? all :
						   Min(pg_mbcliplen(*text, (int) Min(all, MaxAllocSize), (int) max), max));
		}
		field(c, &len, sizeof(len));
		if (len > 0)
			field(c, unconstify(char *, *text), len);
		return;
	}
	field(c, &len, sizeof(len));
	*text = NULL;
	if (c->failed || len == -1)
		return;
	if (len < 0 || len > c->end - c->data || memchr(c->data, '\0', len) != NULL)
	{
		c->failed = true;
		return;
	}
	*text = pnstrdup(c->data, len);
	c->data += len;
}

#define TEXT(c, f)			text_field((c), &(f), MaxAllocSize / 8)

static void
request_fields(Codec *c, LlmRequestInfo *r)
{
	field(c, &r->created_at, sizeof(r->created_at));
	field(c, &r->extension, sizeof(r->extension));
	field(c, &r->creator, sizeof(r->creator));
	ENUM(c, r->operation, LLMGW_NOPERATIONS);
	field(c, &r->role_oid, sizeof(r->role_oid));
	field(c, &r->query_id, sizeof(r->query_id));
	FLAG(c, r->has_hash);
	field(c, r->prompt_hash, sizeof(r->prompt_hash));
	field(c, &r->estimate, sizeof(r->estimate));
	TEXT(c, r->role);
	TEXT(c, r->application_name);
	TEXT(c, r->task);
	TEXT(c, r->task_source);
	TEXT(c, r->priority);
	TEXT(c, r->optimize);
	TEXT(c, r->requested_model);
	TEXT(c, r->tags);
	TEXT(c, r->downgraded_by);
	TEXT(c, r->downgraded_from);
}

static void
charged_fields(Codec *c, LlmAttemptInfo *a)
{
	a->ncharged = small_field(c, a->ncharged, LLMGW_MAX_CHARGED + 1);
	if (c->buf == NULL)
		a->charged = a->ncharged > 0 ? palloc0(sizeof(LlmCharged) * a->ncharged) : NULL;
	for (int i = 0; i < a->ncharged; i++)
	{
		LlmCharged *charged = &a->charged[i];

		field(c, &charged->id, sizeof(charged->id));
		field(c, &charged->period_start, sizeof(charged->period_start));
		TEXT(c, charged->name);
		if (charged->name == NULL)
			c->failed = true;
	}
}

static void
attempt_fields(Codec *c, LlmAttemptInfo *a)
{
	count_field(c, &a->number);
	field(c, &a->started_at, sizeof(a->started_at));
	field(c, &a->queued_us, sizeof(a->queued_us));
	TEXT(c, a->provider);
	TEXT(c, a->model);
	TEXT(c, a->model_tier);
	field(c, &a->expected_input, sizeof(a->expected_input));
	field(c, &a->expected_output, sizeof(a->expected_output));
	field(c, &a->expected_cost, sizeof(a->expected_cost));
	charged_fields(c, a);
}

static void
usage_fields(Codec *c, LlmUsage *u)
{
	FLAG(c, u->known);
	field(c, &u->input, sizeof(u->input));
	field(c, &u->cached_input, sizeof(u->cached_input));
	field(c, &u->cache_write, sizeof(u->cache_write));
	field(c, &u->output, sizeof(u->output));
	field(c, &u->reasoning, sizeof(u->reasoning));
}

static void
outcome_fields(Codec *c, LlmOutcome *o)
{
	ENUM(c, o->error, LLMGW_NCLASSES);
	FLAG(c, o->cancelled);
	count_field(c, &o->http_status);
	field(c, &o->latency_us, sizeof(o->latency_us));
	usage_fields(c, &o->usage);
	field(c, &o->cost, sizeof(o->cost));
	ENUM(c, o->source, LLMGW_NSOURCES);
	text_field(c, &o->message, LLMGW_MAX_MESSAGE);
}

static void
result_fields(Codec *c, LlmResult *r)
{
	ENUM(c, r->status, LLMGW_NSTATUSES);
	ENUM(c, r->error, LLMGW_NCLASSES);
	text_field(c, &r->finish_reason, LLMGW_MAX_FINISH_REASON);
	count_field(c, &r->attempts);
	FLAG(c, r->fallback);
	text_field(c, &r->passed_over, LLMGW_MAX_PASSED_OVER);
	ENUM(c, r->passed_over_class, LLMGW_NCLASSES);
	field(c, &r->latency_us, sizeof(r->latency_us));
	field(c, &r->ttft_us, sizeof(r->ttft_us));
	field(c, &r->queue_us, sizeof(r->queue_us));
}

/* May be long, so not part of an END whose size is bounded. */
static void
answer_fields(Codec *c, LlmResult *r)
{
	TEXT(c, r->provider);
	TEXT(c, r->model);
	TEXT(c, r->model_tier);
}

static void
note_fields(Codec *c, LlmNote *note)
{
	field(c, &note->owner.procno, sizeof(note->owner.procno));
	field(c, &note->owner.incarnation, sizeof(note->owner.incarnation));
	request_fields(c, &note->request);
	attempt_fields(c, &note->attempt);
	FLAG(c, note->has_previous);
	if (note->has_previous)
		outcome_fields(c, &note->previous);
	if (note->attempt.number < 1 || note->attempt.provider == NULL ||
		note->attempt.model == NULL || note->request.role == NULL)
		c->failed = true;
}

static void
end_fields(Codec *c, LlmEnd *end)
{
	FLAG(c, end->has_request);
	if (end->has_request)
	{
		request_fields(c, &end->request);
		answer_fields(c, &end->result);
		if (end->request.role == NULL)
			c->failed = true;
	}
	FLAG(c, end->has_last);
	if (end->has_last)
		outcome_fields(c, &end->last);
	result_fields(c, &end->result);
}

static void
embedding_fields(Codec *c, LlmKeep *keep)
{
	Size		size;

	count_field(c, &keep->dimensions);
	if (keep->dimensions < 0 || keep->dimensions > LLMGW_MAX_DIMENSIONS)
		c->failed = true;
	if (c->failed || keep->dimensions == 0)
		return;
	size = sizeof(float4) * keep->dimensions;
	if (c->buf == NULL)
	{
		if (size > c->end - c->data)
		{
			c->failed = true;
			return;
		}
		keep->embedding = palloc(size);
	}
	field(c, unconstify(float4 *, keep->embedding), size);
	field(c, keep->scope, sizeof(keep->scope));
}

static void
keep_fields(Codec *c, LlmKeep *keep)
{
	field(c, keep->key, sizeof(keep->key));
	field(c, &keep->created_at, sizeof(keep->created_at));
	field(c, &keep->expires_at, sizeof(keep->expires_at));
	TEXT(c, keep->response);
	TEXT(c, keep->tool_calls);
	embedding_fields(c, keep);
}

void
llmgw_note_encode(StringInfo buf, const LlmNote *note)
{
	Codec		c = {.buf = buf};

	note_fields(&c, unconstify(LlmNote *, note));
	Assert(!c.failed);
}

void
llmgw_end_encode(StringInfo buf, const LlmEnd *end)
{
	Codec		c = {.buf = buf};

	end_fields(&c, unconstify(LlmEnd *, end));
	Assert(!c.failed);
}

void
llmgw_keep_encode(StringInfo buf, const LlmKeep *keep)
{
	Codec		c = {.buf = buf};

	keep_fields(&c, unconstify(LlmKeep *, keep));
	Assert(!c.failed);
}

bool
llmgw_note_decode(const char *data, uint32 len, LlmNote *note)
{
	Codec		c = {.data = data,.end = data + len};

	memset(note, 0, sizeof(*note));
	note_fields(&c, note);
	return !c.failed && c.data == c.end;
}

bool
llmgw_end_decode(const char *data, uint32 len, LlmEnd *end)
{
	Codec		c = {.data = data,.end = data + len};

	memset(end, 0, sizeof(*end));
	end_fields(&c, end);
	return !c.failed && c.data == c.end;
}

bool
llmgw_keep_decode(const char *data, uint32 len, LlmKeep *keep)
{
	Codec		c = {.data = data,.end = data + len};

	memset(keep, 0, sizeof(*keep));
	keep_fields(&c, keep);
	return !c.failed && c.data == c.end;
}

Size
llmgw_keep_size(const LlmKeep *keep)
{
	return (keep->response != NULL ? strlen(keep->response) : 0) +
		(keep->tool_calls != NULL ? strlen(keep->tool_calls) : 0) +
		sizeof(float4) * keep->dimensions;
}
