/*-------------------------------------------------------------------------
 *
 * ledger_facts.c
 *	  What the records of a request say.
 *
 * What became of an attempt is in the note of the next one or, of the last
 * attempt, in the END.  Where neither is there, nobody lived to write it: then
 * what its own note expected counts, so that money that may have been spent is
 * never left out.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/int.h"

#include "ledger_post.h"

int64
llmgw_sum(int64 a, int64 b)
{
	int64		result;

	return pg_add_s64_overflow(a, b, &result) ? PG_INT64_MAX : result;
}

/* Numbers that a provider gave may be anything. */
static void
tidy_outcome(LlmOutcome *outcome)
{
	LlmUsage   *usage = &outcome->usage;

	usage->input = Max(usage->input, 0);
	usage->cached_input = Max(usage->cached_input, 0);
	usage->cache_write = Max(usage->cache_write, 0);
	usage->output = Max(usage->output, 0);
	usage->reasoning = Max(usage->reasoning, 0);
	if (outcome->cost < 0)
	{
		outcome->cost = LLMGW_COST_UNKNOWN;
		outcome->source = LLMGW_SOURCE_NONE;
	}
}

static void
expect_outcome(const LlmAttemptInfo *info, LlmOutcome *outcome)
{
	memset(outcome, 0, sizeof(*outcome));
	outcome->latency_us = -1;
	outcome->usage.input = info->expected_input;
	outcome->usage.output = info->expected_output;
	outcome->cost = info->expected_cost;
	outcome->source = LLMGW_SOURCE_ESTIMATE;
}

/* The attempt of that number; a new one if need be, in its place. */
static LlmAttemptFacts *
attempt_of_number(LlmFacts *facts, int number)
{
	int			i = facts->nattempts;

	while (i > 0 && facts->attempts[i - 1].info.number > number)
		i--;
	if (i > 0 && facts->attempts[i - 1].info.number == number)
		return &facts->attempts[i - 1];
	memmove(&facts->attempts[i + 1], &facts->attempts[i],
			sizeof(LlmAttemptFacts) * (facts->nattempts - i));
	facts->nattempts++;
	memset(&facts->attempts[i], 0, sizeof(LlmAttemptFacts));
	facts->attempts[i].info.number = number;
	facts->attempts[i].unknown = true;
	return &facts->attempts[i];
}

static bool
read_note(const LlmRaw *raw, LlmFacts *facts)
{
	LlmNote		note;

	if (!llmgw_note_decode(raw->data, raw->len, &note))
		return false;
	if (facts->nattempts == 0)
		facts->request = note.request;

	/* the attempt before it is there, or it was lost and cannot be booked */
	if (note.has_previous && facts->nattempts > 0 &&
		facts->attempts[facts->nattempts - 1].info.number == note.attempt.number - 1)
	{
		LlmAttemptFacts *previous = &facts->attempts[facts->nattempts - 1];

		previous->outcome = note.previous;
		previous->unknown = false;
	}
	attempt_of_number(facts, note.attempt.number)->info = note.attempt;
	return true;
}

static bool
read_end(const LlmOpenRequest *request, LlmFacts *facts)
{
	LlmEnd		end;

	if (request->end == NULL)
		llmgw_facts_unknown(request, &end);
	else if (!llmgw_end_decode(request->end->data, request->end->len, &end))
		return false;
	if (facts->nattempts == 0)
	{
		if (!end.has_request)
			return false;
		facts->request = end.request;
	}
	else if (end.has_last)
	{
		facts->attempts[facts->nattempts - 1].outcome = end.last;
		facts->attempts[facts->nattempts - 1].unknown = false;
	}
	facts->result = end.result;
	if (facts->nattempts == 0)
	{
		facts->provider = end.result.provider;
		facts->model = end.result.model;
		facts->model_tier = end.result.model_tier;
	}
	else
	{
		const LlmAttemptInfo *last = &facts->attempts[facts->nattempts - 1].info;

		facts->provider = last->provider;
		facts->model = last->model;
		facts->model_tier = last->model_tier;
	}
	return true;
}

static void
add_up(LlmFacts *facts)
{
	LlmUsage   *sum = &facts->usage;

	for (int i = 0; i < facts->nattempts; i++)
	{
		LlmAttemptFacts *attempt = &facts->attempts[i];
		LlmOutcome *outcome = &attempt->outcome;

		if (attempt->unknown)
			expect_outcome(&attempt->info, outcome);
		tidy_outcome(outcome);
		sum->input = llmgw_sum(sum->input, outcome->usage.input);
		sum->cached_input = llmgw_sum(sum->cached_input, outcome->usage.cached_input);
		sum->cache_write = llmgw_sum(sum->cache_write, outcome->usage.cache_write);
		sum->output = llmgw_sum(sum->output, outcome->usage.output);
		sum->reasoning = llmgw_sum(sum->reasoning, outcome->usage.reasoning);

		if (facts->cost == LLMGW_COST_UNKNOWN || outcome->cost == LLMGW_COST_UNKNOWN)
			facts->cost = LLMGW_COST_UNKNOWN;
		else
			facts->cost = llmgw_sum(facts->cost, outcome->cost);

		/* an estimate makes the sum one */
		if (outcome->source == LLMGW_SOURCE_ESTIMATE || facts->source == LLMGW_SOURCE_NONE)
			facts->source = outcome->source;
	}
	if (facts->cost == LLMGW_COST_UNKNOWN)
		facts->source = LLMGW_SOURCE_NONE;
}

bool
llmgw_facts_read(const LlmOpenRequest *request, LlmFacts *facts)
{
	int			notes = 0;

	memset(facts, 0, sizeof(*facts));
	facts->id = request->id;
	for (const LlmRaw *raw = request->records; raw != NULL; raw = raw->next)
		notes += raw->type == LLMGW_RECORD_NOTE;
	if (notes > 0)
		facts->attempts = palloc(sizeof(LlmAttemptFacts) * notes);

	for (const LlmRaw *raw = request->records; raw != NULL; raw = raw->next)
	{
		if (raw->type == LLMGW_RECORD_PROMPT)
			facts->prompt = raw;
		else if (raw->type == LLMGW_RECORD_RESPONSE)
			facts->response = raw;
		else if (raw->type == LLMGW_RECORD_KEEP)
			facts->keep = raw;
		else if (raw->type == LLMGW_RECORD_NOTE && !read_note(raw, facts))
			return false;
	}
	if (!read_end(request, facts))
		return false;
	add_up(facts);
	return true;
}

void
llmgw_facts_unknown(const LlmOpenRequest *request, LlmEnd *end)
{
	memset(end, 0, sizeof(*end));
	for (const LlmRaw *raw = request->records; raw != NULL; raw = raw->next)
		end->result.attempts += raw->type == LLMGW_RECORD_NOTE;
	end->result.status = LLMGW_STATUS_UNKNOWN;
	end->result.latency_us = -1;
	end->result.ttft_us = -1;
	end->result.queue_us = -1;
}

bool
llmgw_facts_owner(const LlmOpenRequest *request, LlmOwnerId *owner)
{
	LlmNote		note;

	for (const LlmRaw *raw = request->records; raw != NULL; raw = raw->next)
	{
		if (raw->type != LLMGW_RECORD_NOTE || !llmgw_note_decode(raw->data, raw->len, &note))
			continue;
		*owner = note.owner;
		return true;
	}
	return false;
}
