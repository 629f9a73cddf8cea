/*-------------------------------------------------------------------------
 *
 * functions_route.c
 *	  llm_route: which models would be asked, in which order, and why.
 *
 * It looks where a call looks: the same arguments, the same route, the same
 * questions to the endpoints.  But it takes nothing: no turn of a provider, no room, no
 * request id, and the ledger does not hear of it.
 *
 * What decides among the candidates at the moment is what call_next.c does:
 * choose() follows llmgw_call_next() up to its first request.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/tuplestore.h"

#include "functions.h"

PG_FUNCTION_INFO_V1(llmgw_sql_route);

/* the longest waits, as in call_next.c */
#define MAX_WAIT_MS			60000
#define MAX_WAIT_BESIDE_MS	10000

/* its own arguments, where they are not those that every calling function has */
enum
{
	ARG_PARAMS = LLMGW_ARG_MAX_TOKENS + 1,
	ARG_TAGS
};

/* the columns */
enum
{
	RANK,
	PROVIDER,
	MODEL,
	MODEL_TIER,
	TASK,
	TASK_SOURCE,
	ESTIMATED_USD,
	CHOSEN,
	REASON,
	NCOLUMNS
};

/* How a candidate stands at this moment. */
typedef struct View
{
	char	   *key_problem;	/* why its key cannot be read; NULL: it can */
	LlmAdmit	admit;
	LlmRefusal	refusal;
	char	   *problem;		/* why it was not admitted, in words; NULL: it
								 * was */
	bool		full;			/* LLMGW_ADMIT_OPEN, and no room past the
								 * breaker either */
	bool		asked;			/* a call would have found that out */
	bool		passed_over;	/* it is not asked any more */
	const char *shortage;		/* why no budget has room for it; NULL: all
								 * that it is charged to have */
} View;

/* Whether a candidate may be asked, as far as is known. */
static bool
is_left(const LlmCandidate *c, const View *view)
{
	return c->dropped == NULL && view->key_problem == NULL && !view->passed_over;
}

static void
look(LlmCall *call, const LlmCandidate *c, View *view)
{
	const LlmProvider *provider = c->model->provider;
	LlmAdmitQuery query = {0};

	if (!llmgw_config_key(provider, &query.key, &view->key_problem))
		return;
	query.provider = provider;
	query.who = call->spec->ask;
	query.rank = call->spec->priority->rank;
	if (provider->limits.tokens > 0)
	{
		LlmUsage	expected;

		llmgw_estimate(c->model, call->characters, call->spec->max_tokens, &expected);
		query.tokens = expected.input + expected.output;
	}
	view->shortage = llmgw_call_shortage(call, c);
	view->admit = llmgw_endpoint_look(&query, &view->refusal);
	if (view->admit == LLMGW_ADMITTED)
		return;
	if (view->admit == LLMGW_ADMIT_OPEN)
	{
		LlmRefusal	ignored;

		query.who = LLMGW_ASK_FORCE;
		view->full = llmgw_endpoint_look(&query, &ignored) != LLMGW_ADMITTED;
	}

	/* it may have ended since */
	view->problem = llmgw_endpoint_problem(provider, query.rank, query.tokens);
	if (view->problem == NULL)
		view->problem = view->admit == LLMGW_ADMIT_LATER ? "its limits leave no room" :
			"its breaker is open";
}

/* How long a call waits at a candidate, in ms, given what else there is. */
static int
patience_ms(const LlmCall *call, const LlmCandidate *c, bool alternatives)
{
	int			ms = MAX_WAIT_MS;

	if (alternatives)
		ms = Min(llmgw_config_policy(call->spec->config, LLMGW_RATE_LIMIT,
									 c->model->provider->name)->backoff_ms, MAX_WAIT_BESIDE_MS);
	return call->spec->timeout_ms > 0 ? Min(ms, call->spec->timeout_ms) : ms;
}

/* Whether it waits there at all, which it does not if it knows it to be in vain. */
static bool
would_wait(const LlmCall *call, const LlmCandidate *c, const View *view, bool alternatives)
{
	int			ms = patience_ms(call, c, alternatives);

	return ms > 0 && (view->refusal.until == LLMGW_NEVER ||
					  view->refusal.until <= llmgw_after_ms(llmgw_now(), ms));
}

/* Whether another candidate might take the call, as far as it has asked. */
static bool
has_alternatives(const LlmCall *call, const View *views, int than)
{
	for (int i = 0; i < call->route.ncandidates; i++)
		if (i != than && is_left(&call->route.candidates[i], &views[i]) &&
			(!views[i].asked || views[i].admit == LLMGW_ADMITTED))
			return true;
	return false;
}

/* Want of money for one tier does not lead to a worse one. */
static void
pass_over_worse(const LlmCall *call, View *views, int rank)
{
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		if (c->dropped != NULL || c->model->tier->rank <= rank)
			continue;
		views[i].passed_over = true;
		if (views[i].shortage == NULL)
			views[i].shortage = psprintf("priority \"%s\" is not served by a worse tier for want of money",
										 call->spec->priority->name);
	}
}

/*
 * The candidate that the call is sent to or waits at, if it is made now; -1: it
 * fails.
 */
static int
choose(const LlmCall *call, View *views)
{
	const LlmCandidate *candidates = call->route.candidates;

	for (;;)
	{
		int			later = -1;
		int			open = -1;

		for (int i = 0; i < call->route.ncandidates; i++)
		{
			const LlmCandidate *c = &candidates[i];

			/* while it waits for one, another provider of that model will do */
			if (c->dropped != NULL || views[i].passed_over ||
				(later >= 0 && strcmp(candidates[later].model->name, c->model->name) != 0 &&
				 would_wait(call, &candidates[later], &views[later], true)))
				continue;
			views[i].asked = true;
			if (views[i].key_problem != NULL)
			{
				if (!llmgw_config_policy(call->spec->config, LLMGW_AUTH,
										 c->model->provider->name)->fallback)
					return -1;
				continue;
			}
			switch (views[i].admit)
			{
				case LLMGW_ADMITTED:
					if (views[i].shortage == NULL)
						return i;
					views[i].passed_over = true;
					if (llmgw_call_keeps_tier(call))
						pass_over_worse(call, views, c->model->tier->rank);
					break;
				case LLMGW_ADMIT_OPEN:
					if (open < 0 || views[i].refusal.until < views[open].refusal.until)
						open = i;
					break;
				case LLMGW_ADMIT_LATER:
					if (later < 0)
						later = i;
					break;
				case LLMGW_ADMIT_STOPPED:
					break;
			}
		}
		if (later < 0)
		{
			if (open < 0 || (!views[open].full && views[open].shortage == NULL))
				return open;
			views[open].passed_over = true;
			if (!views[open].full && llmgw_call_keeps_tier(call))
				pass_over_worse(call, views, candidates[open].model->tier->rank);
			continue;
		}
		if (would_wait(call, &candidates[later], &views[later],
					   has_alternatives(call, views, later)))
			return later;
		views[later].passed_over = true;
	}
}

/* Why one that may be asked is where it is in the list. */
static void
say_place(const LlmCall *call, const LlmCandidate *c, StringInfo buf)
{
	const char *optimize = llmgw_optimize_name(call->spec->optimize);

	appendStringInfoString(buf, c == llmgw_route_first(&call->route) ? "first" : "fallback");
	if (optimize != NULL)
		appendStringInfo(buf, " by %s", optimize);
	if (c->rule != NULL)
		appendStringInfo(buf, optimize ? " (routing rule " INT64_FORMAT ")" :
						 " by routing rule " INT64_FORMAT, c->rule->id);
	else if (call->route.pinned)
		appendStringInfoString(buf, ": the call names this model");
	else
		appendStringInfo(buf, "%s: no routing rule applies", optimize ? "" : " by quality");
}

/* Why a candidate is where it is in the list, and what is in its way, in words. */
static char *
reason_of(const LlmCall *call, const View *views, int number, bool chosen)
{
	const LlmCandidate *c = &call->route.candidates[number];
	const View *view = &views[number];
	StringInfoData buf;

	initStringInfo(&buf);
	if (c->dropped != NULL)
	{
		appendStringInfo(&buf, "dropped: %s", c->dropped);
		if (c->rule != NULL)
			appendStringInfo(&buf, " (routing rule " INT64_FORMAT ")", c->rule->id);
		return buf.data;
	}
	say_place(call, c, &buf);
	if (view->key_problem != NULL)
		appendStringInfo(&buf, "; its key cannot be read: %s", view->key_problem);
	else if (view->admit == LLMGW_ADMIT_LATER)
	{
		appendStringInfo(&buf, "; no room now: %s", view->problem);
		if (chosen)
			appendStringInfo(&buf, "; a call waits for it up to %g s",
							 patience_ms(call, c, has_alternatives(call, views, number)) / 1000.0);
	}
	else if (view->admit != LLMGW_ADMITTED)
	{
		appendStringInfo(&buf, "; %s", view->problem);
		if (chosen)
			appendStringInfoString(&buf, "; asked all the same, as nothing else is left");
	}
	if (view->key_problem == NULL && view->shortage != NULL)
		appendStringInfo(&buf, "; not sent: %s", view->shortage);
	return buf.data;
}

/* There is nothing to show: what a call would say. */
static void
refuse(LlmCall *call)
{
	const char *message;
	char	   *detail;

	call->error = llmgw_call_no_candidate(call, &message);
	detail = llmgw_call_detail(call);
	ereport(ERROR,
			(errcode(llmgw_error_class_sqlstate(call->error)),
			 errmsg("%s", message),
			 detail ? errdetail("%s", detail) : 0,
			 errhint("%s", llmgw_call_hint(call))));
}

/* The arguments as a calling function has them; those that do not matter are NULL. */
static LlmSpec *
read_arguments(FunctionCallInfo fcinfo, MemoryContext context)
{
	LOCAL_FCINFO(common, LLMGW_NCOMMON_ARGS);
	LlmSpec    *spec;

	llmgw_args_none(fcinfo, common);
	for (int i = LLMGW_ARG_PROMPT; i <= LLMGW_ARG_MAX_TOKENS; i++)
		common->args[i] = fcinfo->args[i];
	common->args[LLMGW_ARG_PARAMS] = fcinfo->args[ARG_PARAMS];
	common->args[LLMGW_ARG_TAGS] = fcinfo->args[ARG_TAGS];

	spec = llmgw_args_read(common, context);
	spec->cache = LLMGW_CACHE_OFF;
	return spec;
}

static void
put_rows(const LlmCall *call, View *views, ReturnSetInfo *rsinfo)
{
	int			chosen = choose(call, views);

	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];
		Datum		values[NCOLUMNS];
		bool		nulls[NCOLUMNS] = {0};

		values[RANK] = Int32GetDatum(i + 1);
		values[PROVIDER] = CStringGetTextDatum(c->model->provider->name);
		values[MODEL] = CStringGetTextDatum(c->model->name);
		values[MODEL_TIER] = CStringGetTextDatum(c->model->tier->name);
		values[TASK] = CStringGetTextDatum(call->spec->task);
		values[TASK_SOURCE] = CStringGetTextDatum(call->spec->task_source);
		nulls[ESTIMATED_USD] = c->estimate == LLMGW_COST_UNKNOWN;
		values[ESTIMATED_USD] = nulls[ESTIMATED_USD] ? (Datum) 0 :
			llmgw_nano_to_numeric(c->estimate);
		values[CHOSEN] = BoolGetDatum(i == chosen);
		values[REASON] = CStringGetTextDatum(reason_of(call, views, i, i == chosen));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

Datum
llmgw_sql_route(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MemoryContext context;
	MemoryContext old;
	LlmCall    *call;
	char	   *prompt;
	View	   *views;

	InitMaterializedSRF(fcinfo, 0);
	if (PG_ARGISNULL(LLMGW_ARG_PROMPT))
		return (Datum) 0;

	context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway route",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	call = palloc0(sizeof(LlmCall));
	call->context = context;
	call->spec = read_arguments(fcinfo, context);
	prompt = text_to_cstring(PG_GETARG_TEXT_PP(LLMGW_ARG_PROMPT));
	llmgw_args_check_prompt(prompt);
	call->prompt = prompt;

	llmgw_call_route(call, true);
	if (call->route.ncandidates == 0)
		refuse(call);
	if (call->route.unresolved != NULL)
		ereport(NOTICE,
				(errmsg("some routing rules choose nothing"),
				 errdetail("%s", call->route.unresolved)));
	views = palloc0(sizeof(View) * call->route.ncandidates);
	for (int i = 0; i < call->route.ncandidates; i++)
		if (call->route.candidates[i].dropped == NULL)
			look(call, &call->route.candidates[i], &views[i]);
	put_rows(call, views, rsinfo);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return (Datum) 0;
}
