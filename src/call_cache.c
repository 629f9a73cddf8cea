/*-------------------------------------------------------------------------
 *
 * call_cache.c
 *	  When a call is answered from the cache, waits for another's answer, and
 *	  when its own is kept.
 *
 *	mode		looks for an answer				keeps its own
 *	off			never							never
 *	auto		below premium by a budget		where the task has a cache_ttl
 *	on			always							always
 *	refresh		never							always
 *	only		always, and makes no call		-
 *
 * Where the budgets leave nothing but kept answers (on_exhausted = cache_only), all
 * modes but "off" look for one; where they reject the call, "auto" does not.
 *
 * What is served is at least as good as what a call would get at this moment: of the
 * first candidate's tier or a better one.  So an answer that an economy model gave
 * while a budget ran low is not served once it has recovered, but to "only", which
 * would get nothing.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/memutils.h"

#include "call.h"

StaticAssertDecl(LLMGW_CACHE_KEY_LEN == LLMGW_HASH_LEN, "keys are hashes");

/* Another key for everything when what is in it, or how, changes. */
#define KEY_FORMAT		"llm_gateway kept answer 1"

#define SCOPE_FORMAT	"llm_gateway similar prompts 1"

/* a prompt beyond that is not looked for */
#define MAX_KEY_BYTES	((Size) 256 * 1024 * 1024)

/* ten years */
#define MAX_KEPT_MS		(INT64CONST(3650) * 86400 * 1000)

/*
 * What shapes an answer, as bytes: numbers as they are, texts and documents with
 * their length before them, so that nothing can be taken for something else.  With
 * more than MAX_KEY_BYTES of it there is no key.
 */
static void
put_int(StringInfo buf, int64 value)
{
	appendBinaryStringInfo(buf, (const char *) &value, sizeof(value));
}

static void
put_bytes(StringInfo buf, const char *data, Size len)
{
	put_int(buf, (int64) len);
	if (buf->len + len > MAX_KEY_BYTES)
		buf->cursor = 1;		/* too long */
	else
		appendBinaryStringInfo(buf, data, (int) len);
}

static void
put_text(StringInfo buf, const char *text)
{
	if (text == NULL)
		put_int(buf, -1);
	else
		put_bytes(buf, text, strlen(text));
}

static void
put_jsonb(StringInfo buf, const Jsonb *doc)
{
	if (doc == NULL)
		put_int(buf, -1);
	else
		put_bytes(buf, VARDATA_ANY(doc), VARSIZE_ANY_EXHDR(doc));
}

static void
put_messages(StringInfo buf, const LlmMessages *messages)
{
	put_int(buf, messages->n);
	for (int i = 0; i < messages->n; i++)
	{
		const LlmMessage *m = &messages->messages[i];

		put_int(buf, m->role);
		put_text(buf, m->name);
		put_int(buf, m->nparts);
		for (int j = 0; j < m->nparts; j++)
		{
			put_int(buf, m->parts[j].type);
			put_text(buf, m->parts[j].text);
			put_text(buf, m->parts[j].media_type);
			put_text(buf, m->parts[j].detail);
		}
		put_int(buf, m->ntool_uses);
		for (int j = 0; j < m->ntool_uses; j++)
		{
			put_text(buf, m->tool_uses[j].id);
			put_text(buf, m->tool_uses[j].name);
			put_text(buf, m->tool_uses[j].arguments);
			put_text(buf, m->tool_uses[j].signature);
		}
		put_text(buf, m->tool_call_id);
		put_text(buf, m->tool_name);
	}
}

static void
put_tools(StringInfo buf, const LlmSpec *spec)
{
	put_int(buf, spec->tools ? spec->tools->n : -1);
	for (int i = 0; spec->tools != NULL && i < spec->tools->n; i++)
	{
		put_text(buf, spec->tools->tools[i].name);
		put_text(buf, spec->tools->tools[i].description);
		put_jsonb(buf, spec->tools->tools[i].parameters);
		put_int(buf, spec->tools->tools[i].strict);
	}
	put_int(buf, spec->tool_choice.mode);
	put_text(buf, spec->tool_choice.name);
}

static int
compare_models(const void *a, const void *b)
{
	const LlmModel *x = *(const LlmModel *const *) a;
	const LlmModel *y = *(const LlmModel *const *) b;
	Jsonb	   *x_options = x->provider->options;
	Jsonb	   *y_options = y->provider->options;
	int			c = strcmp(x->name, y->name);

	if (c == 0)
		c = strcmp(x->upstream_name, y->upstream_name);
	if (c != 0)
		return c;
	if (x_options == NULL || y_options == NULL)
		return (x_options != NULL) - (y_options != NULL);

	/* byte by byte, as they go into the key */
	c = (int) VARSIZE_ANY_EXHDR(x_options) - (int) VARSIZE_ANY_EXHDR(y_options);
	return c != 0 ? c : memcmp(VARDATA_ANY(x_options), VARDATA_ANY(y_options),
							   VARSIZE_ANY_EXHDR(x_options));
}

/*
 * Whether a is asked before b where no budget keeps either from the call.  The
 * candidates have an order, but those that are denied may be behind the others there
 * (route_order.c).
 */
static bool
is_before(const LlmCandidate *a, const LlmCandidate *b, LlmOptimize optimize)
{
	bool		a_spare = a->model->weight * a->model->provider->weight <= 0;
	bool		b_spare = b->model->weight * b->model->provider->weight <= 0;
	int			c;

	if (optimize != LLMGW_OPTIMIZE_QUALITY)
		return false;
	if (a_spare != b_spare)
		return b_spare;
	if (a->model->quality != b->model->quality)
		return a->model->quality > b->model->quality;
	if (a->group != b->group)
		return a->group < b->group;
	c = strcmp(a->model->provider->name, b->model->provider->name);
	return c != 0 ? c < 0 : strcmp(a->model->name, b->model->name) < 0;
}

/*
 * Which models the configuration has for this call: the first one, so that another
 * rule means another answer.  What the budgets keep from it now counts all the same,
 * or nothing would be found when they run low.  Where the order follows prices or
 * latencies, which change by themselves, it is all of them.  With each goes what its
 * providers are asked for, and how: another model by an old name is another model, and
 * a provider's options may add to each request.
 */
static void
put_models(StringInfo buf, const LlmCall *call)
{
	const LlmModel **models = palloc(sizeof(LlmModel *) * Max(call->route.ncandidates, 1));
	bool		ordered = call->spec->optimize != LLMGW_OPTIMIZE_COST &&
	call->spec->optimize != LLMGW_OPTIMIZE_SPEED;
	const LlmCandidate *first = NULL;
	int			n = 0;

	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		if ((c->dropped == NULL || c->denied_by != NULL) &&
			(first == NULL || is_before(c, first, call->spec->optimize)))
			first = c;
	}
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		/* of the first, all its providers, also one that is switched off now */
		if (ordered ? first != NULL && strcmp(c->model->name, first->model->name) == 0 :
			c->dropped == NULL || c->denied_by != NULL)
			models[n++] = c->model;
	}
	qsort(models, n, sizeof(LlmModel *), compare_models);
	for (int i = 0; i < n; i++)
	{
		if (i > 0 && compare_models(&models[i - 1], &models[i]) == 0)
			continue;
		put_text(buf, models[i]->name);
		put_text(buf, models[i]->upstream_name);
		put_jsonb(buf, models[i]->provider->options);
	}
	put_int(buf, -1);
}

/*
 * Hashes all that shapes the answer: of the prompt, or, with an embedder, of that
 * in its place.  False: it is too much.
 */
static bool
hash_question(const LlmCall *call, const char *embedder, LlmCacheKey *key)
{
	const LlmSpec *spec = call->spec;
	const LlmTask *task = llmgw_config_task(spec->config, spec->task);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "llm_gateway cache key",
												  ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	StringInfoData buf;
	bool		hashed;

	initStringInfo(&buf);
	put_text(&buf, embedder != NULL ? SCOPE_FORMAT : KEY_FORMAT);
	put_int(&buf, spec->config->extension);
	put_int(&buf, task != NULL && task->cache_shared ? InvalidOid : spec->role);
	put_int(&buf, spec->operation == LLMGW_OP_JSON);
	if (embedder != NULL)
		put_text(&buf, embedder);
	else
		put_messages(&buf, call->messages);
	put_text(&buf, spec->system_prompt);
	put_text(&buf, spec->advice);
	put_text(&buf, spec->model);
	put_text(&buf, spec->task);
	put_models(&buf, call);
	put_int(&buf, spec->optimize);
	put_int(&buf, spec->max_tokens);
	put_int(&buf, spec->has_temperature);
	put_bytes(&buf, (const char *) &spec->temperature, sizeof(spec->temperature));
	put_jsonb(&buf, spec->params);
	put_tools(&buf, spec);
	put_jsonb(&buf, spec->schema);
	for (int i = 0; i < spec->config->ntiers; i++)
		put_text(&buf, spec->config->tiers[i].system_prompt_suffix);

	hashed = buf.cursor == 0;
	if (hashed)
		llmgw_ledger_hash(buf.data, buf.len, key->bytes);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return hashed;
}

bool
llmgw_call_scope(const LlmCall *call, const char *embedder, LlmCacheKey *scope)
{
	return hash_question(call, embedder, scope);
}

static bool
make_key(LlmCall *call)
{
	const LlmSpec *spec = call->spec;

	if (call->has_cache_key)
		return true;
	if (spec->probe != NULL || call->inputs != NULL || call->messages == NULL)
		return false;

	/* of a round that mends an answer: what was asked for at first */
	if (call->mends != NULL)
	{
		call->cache_key = call->mends->cache_key;
		call->has_cache_key = call->mends->has_cache_key;
		return call->has_cache_key;
	}

	call->has_cache_key = hash_question(call, NULL, &call->cache_key);
	return call->has_cache_key;
}

/* For how long an answer is kept, in ms; 0: it is not. */
static int64
time_to_keep(const LlmSpec *spec)
{
	const LlmTask *task;
	bool		has_ttl;

	/* a probe has no task */
	if (spec->cache == LLMGW_CACHE_OFF || spec->cache == LLMGW_CACHE_ONLY)
		return 0;
	task = llmgw_config_task(spec->config, spec->task);
	has_ttl = task != NULL && task->cache_ttl_ms >= 0;
	if (spec->cache == LLMGW_CACHE_AUTO)
		return has_ttl ? task->cache_ttl_ms : 0;
	return has_ttl ? task->cache_ttl_ms : INT64CONST(1000) * llmgw_cache_ttl;
}

/* The first candidate that may get the call, and has not been found too dear. */
static const LlmCandidate *
first_left(const LlmCall *call)
{
	for (int i = 0; i < call->route.ncandidates; i++)
	{
		const LlmCandidate *c = &call->route.candidates[i];

		if (c->dropped == NULL && c->shortage == NULL)
			return c;
	}
	return NULL;
}

/*
 * Whether the budgets leave nothing but a kept answer: no candidate is left, and all
 * budgets that are used up say that such an answer may do.
 */
static bool
only_kept_is_left(const LlmCall *call)
{
	bool		exhausted = call->short_of > 0;

	if (first_left(call) != NULL || call->short_rejects)
		return false;
	for (int i = 0; i < call->tier.nbudgets; i++)
	{
		if (call->tier.budgets[i].level != LLMGW_LEVEL_EXHAUSTED)
			continue;
		if (!call->tier.budgets[i].budget->cache_only)
			return false;
		exhausted = true;
	}
	return exhausted;
}

/* Whether this call looks for a kept answer. */
static bool
looks(const LlmCall *call)
{
	const LlmSpec *spec = call->spec;

	if (spec->cache == LLMGW_CACHE_OFF || call->mends != NULL)
		return false;
	if (spec->cache == LLMGW_CACHE_ON || spec->cache == LLMGW_CACHE_ONLY ||
		only_kept_is_left(call))
		return true;

	/* what an exhausted budget rejects is rejected */
	return spec->cache == LLMGW_CACHE_AUTO && call->tier.level > LLMGW_LEVEL_ALL &&
		call->tier.level < LLMGW_LEVEL_EXHAUSTED;
}

/*
 * As good as what the call would get now, if it would be made, and as it wants at
 * least.
 */
bool
llmgw_call_accepts_tier(const LlmCall *call, const char *model_tier)
{
	const LlmTier *tier = llmgw_config_tier(call->spec->config, model_tier);
	const LlmCandidate *first = first_left(call);

	if (tier == NULL ||
		(call->spec->min_tier != NULL && tier->rank > call->spec->min_tier->rank))
		return false;
	return first == NULL || call->spec->cache == LLMGW_CACHE_ONLY ||
		tier->rank <= first->model->tier->rank;
}

/* Whether the schema, which is in the key, still takes it: its checks may be newer. */
static bool
satisfies_schema(LlmCall *call)
{
	const LlmSpec *spec = call->spec;

	if (spec->schema == NULL ||
		(call->tool_calls != NULL && spec->operation != LLMGW_OP_JSON))
		return true;
	if (call->scratch == NULL)
		call->scratch = AllocSetContextCreate(call->context, "llm_gateway parsing",
											  ALLOCSET_SMALL_SIZES);
	llmgw_call_check_schema(call);
	if (call->mismatch == NULL)
		return true;
	call->mismatch = NULL;
	return false;
}

/* Ends the call with that answer; false: it is none for it. */
static bool
serve(LlmCall *call, const LlmKept *kept)
{
	call->response = kept->response;
	call->tool_calls = kept->tool_calls == NULL ? NULL :
		DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(kept->tool_calls)));
	call->finish_reason = kept->finish_reason;
	if (!satisfies_schema(call))
	{
		call->response = NULL;
		call->tool_calls = NULL;
		call->finish_reason = NULL;
		return false;
	}

	/* of what this call has cost, which is nothing */
	memset(&call->usage, 0, sizeof(call->usage));
	call->usage.known = true;
	call->estimate = 0;
	call->kept = kept;
	return llmgw_call_end_cached(call);
}

/* Ends the call with the answer that is kept for it; false: there is none. */
static bool
look(LlmCall *call)
{
	LlmKept    *kept;

	if (!make_key(call))
		return false;
	kept = MemoryContextAlloc(call->context, sizeof(LlmKept));
	return llmgw_cache_get(call->spec->config, &call->cache_key,
						   call->spec->cache == LLMGW_CACHE_ONLY, kept) &&
		llmgw_call_accepts_tier(call, kept->model_tier) && serve(call, kept);
}

/*
 * The same with that of a similar prompt, once there is none for this one.  Has the
 * embedding made that the call's own answer is kept with, too.
 */
static bool
look_similar(LlmCall *call)
{
	LlmKept    *kept;

	if (!llmgw_call_may_be_similar(call))
		return false;
	if (!looks(call))
	{
		if (time_to_keep(call->spec) > 0 && first_left(call) != NULL)
			(void) llmgw_call_embedding(call);
		return false;
	}
	kept = MemoryContextAlloc(call->context, sizeof(LlmKept));
	return llmgw_call_nearest(call, kept) && serve(call, kept);
}

/*
 * Ends a call that has been routed with the answer that is kept for it, where its
 * mode or an exhausted budget says to look for one; with cache "only" also with
 * the error that there is none.  False: it is to be made.
 */
static bool
end_with_kept(LlmCall *call)
{
	if (looks(call) && look(call))
		return true;
	if (call->spec->cache != LLMGW_CACHE_ONLY || call->mends != NULL)
		return false;
	if (look_similar(call))
		return true;

	/* which models would have answered does not matter */
	call->route.ncandidates = 0;
	call->route.unresolved = NULL;
	llmgw_call_fail(call, LLMGW_NO_CANDIDATE, call->inputs != NULL ?
					"no answer is cached for this input" :
					"no answer is cached for this prompt");
	return true;
}

bool
llmgw_call_rescued(LlmCall *call)
{
	return call->short_of > 0 && call->nattempts == 0 &&
		call->spec->cache != LLMGW_CACHE_OFF && call->mends == NULL &&
		only_kept_is_left(call) &&
		(look(call) || (llmgw_call_has_embedding(call) != NULL && look_similar(call)));
}

/*
 * Whether it may lead or follow.  What is read by a cursor may stand still for as
 * long as its reader likes, and a table that is not committed keeps nothing.
 */
static bool
may_fly(const LlmCall *call)
{
	const LlmSpec *spec = call->spec;

	return (spec->cache == LLMGW_CACHE_ON || spec->cache == LLMGW_CACHE_REFRESH) &&
		call->has_cache_key && call->mends == NULL &&
		spec->operation != LLMGW_OP_STREAM && time_to_keep(spec) > 0 &&
		!TransactionIdIsValid(spec->config->creator) &&
		first_left(call) != NULL;
}

/* Goes on as the flight stands. */
static bool
fly(LlmCall *call, LlmFlightState state, int64 again_us)
{
	LlmInstant	now;

	switch (state)
	{
		case LLMGW_FLIGHT_FOLLOW:

			/* who wants a fresh answer does not take another's */
			if (call->spec->cache == LLMGW_CACHE_REFRESH)
			{
				llmgw_flight_leave(&call->flight);
				break;
			}
			now = llmgw_now();
			call->state = LLMGW_CALL_FOLLOWING;
			llmgw_timer_set(&call->timer, Max(Min(now + again_us, call->deadline), now + 1000));
			return false;
		case LLMGW_FLIGHT_LEAD:
		case LLMGW_FLIGHT_LANDED:
		case LLMGW_FLIGHT_NONE:
			if (call->spec->cache != LLMGW_CACHE_REFRESH && look(call))
				return true;
			break;
	}
	return look_similar(call) || llmgw_call_next(call);
}

bool
llmgw_call_begin(LlmCall *call)
{
	if (end_with_kept(call))
		return true;
	if (time_to_keep(call->spec) > 0)
		(void) make_key(call);
	if (!may_fly(call))
		return look_similar(call) || llmgw_call_next(call);
	return fly(call, llmgw_flight_join(&call->flight, call->spec->config, &call->cache_key,
									   call->spec->priority->rank, &call->ready),
			   LLMGW_LOOK_US);
}

bool
llmgw_call_follow(LlmCall *call)
{
	int64		again_us;
	LlmFlightState state;

	llmgw_timer_cancel(&call->timer);
	if (llmgw_now() >= call->deadline)
	{
		llmgw_call_fail(call, LLMGW_TIMEOUT,
						psprintf("the call was not done within its %d ms (timeout_ms)",
								 call->spec->timeout_ms));
		return true;
	}
	state = llmgw_flight_look(&call->flight, &again_us);
	return fly(call, state, again_us);
}

/* Whether it is whole, as the model meant it, and what the caller asked for. */
static bool
is_worth_keeping(const LlmCall *call)
{
	const char *finish = call->finish_reason;

	return call->error == LLMGW_OK && call->kept == NULL && call->degraded == 0 &&
		(finish == NULL || strcmp(finish, "stop") == 0 || strcmp(finish, "tool_calls") == 0);
}

bool
llmgw_call_keep(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	int64		ms = time_to_keep(spec);
	const LlmEmbedding *embedding = llmgw_call_has_embedding(call);
	LlmKeep		keep = {0};

	if (ms <= 0 || llmgw_cache_size == 0 || !is_worth_keeping(call) || !make_key(call))
		return false;
	memcpy(keep.key, call->cache_key.bytes, sizeof(keep.key));
	keep.created_at = llmgw_wall_clock();
	keep.expires_at = keep.created_at + Min(ms, MAX_KEPT_MS) * 1000;
	keep.response = call->response;
	if (call->tool_calls != NULL)
		keep.tool_calls = JsonbToCString(NULL, &call->tool_calls->root,
										 VARSIZE(call->tool_calls));
	if (embedding != NULL)
	{
		memcpy(keep.scope, embedding->scope.bytes, sizeof(keep.scope));
		keep.dimensions = embedding->dimensions;
		keep.embedding = embedding->vector;
	}
	return llmgw_ledger_keep(&call->entry, call->request_id, &keep);
}
