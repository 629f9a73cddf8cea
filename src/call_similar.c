/*-------------------------------------------------------------------------
 *
 * call_similar.c
 *	  Answers that are kept for prompts of nearly the same meaning.
 *
 * How close two prompts are, their embeddings say.  They are made by a model of
 * llm_gateway.cache_embedding_model, in a call of its own, with a record and a price
 * of its own, on behalf of whom the first one is made for: the same role, priority and
 * tags, so the budgets that match those.  It is made where an equal prompt's answer was looked for and
 * not found, or where the answer is to be kept, and before that is asked for.
 *
 * It is a help and not a need: when it fails, for whatever reason, there is no
 * similar prompt.  So that it cannot take the time that its call needs, it gets half
 * of what is left, and no more than some seconds; after it was waited for in vain, this
 * session does without it for a while.
 *
 * The embedding's call is driven here, within the other's, which has nothing on the
 * wire at that moment.  Other calls of the session stand still meanwhile: so
 * only calls that are driven on their own take part, not those of a batch.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "call.h"

#define EMBEDDING_TASK		"embedding"

/* for the embedding of a prompt */
#define MOST_MS				5000

/* after one that did not come, although it was waited for that long */
#define PAUSE_MS			60000
#define PATIENCE_MS			1000

typedef struct LlmSimilar
{
	LlmDriver	drive;
	bool		asked;			/* for its embedding */
	LlmEmbedding embedding;		/* dimensions 0: there is none */
} LlmSimilar;

/* until then none is asked for */
static LlmInstant paused_until = 0;

static const LlmTask *
task_of(const LlmCall *call)
{
	return llmgw_config_task(call->spec->config, call->spec->task);
}

void
llmgw_call_allow_similar(LlmCall *call, LlmDriver drive)
{
	const LlmTask *task = task_of(call);

	Assert(call->messages == NULL && call->inputs == NULL);
	Assert(call->spec->tools == NULL && call->spec->schema == NULL);
	if (task == NULL || task->cache_similarity <= 0 || llmgw_cache_size == 0 ||
		llmgw_cache_embedding_model[0] == '\0' || call->prompt[0] == '\0')
		return;
	call->similar = MemoryContextAllocZero(call->context, sizeof(LlmSimilar));
	call->similar->drive = drive;
}

bool
llmgw_call_may_be_similar(const LlmCall *call)
{
	return call->similar != NULL;
}

/* What is asked for, in the current context. */
static LlmSpec *
make_spec(const LlmCall *call)
{
	const LlmSpec *of = call->spec;
	const LlmTask *task = llmgw_config_task(of->config, EMBEDDING_TASK);
	LlmSpec    *spec = palloc0(sizeof(LlmSpec));

	spec->config = of->config;
	spec->operation = LLMGW_OP_EMBED;
	spec->role = of->role;
	spec->role_name = of->role_name;
	spec->application_name = of->application_name;
	spec->query_id = of->query_id;
	spec->priority = of->priority;
	spec->task = EMBEDDING_TASK;
	spec->task_source = "default";
	spec->model = pstrdup(llmgw_cache_embedding_model);
	spec->optimize = task != NULL && task->optimize != LLMGW_OPTIMIZE_NONE ?
		task->optimize : llmgw_default_optimize;
	spec->cache = LLMGW_CACHE_OFF;
	spec->max_tokens = LLMGW_NO_OUTPUT;
	spec->timeout_ms = MOST_MS;
	spec->tags = of->tags;
	spec->tags_text = of->tags_text;
	spec->ask = of->ask;
	return spec;
}

/* Makes it; into the call's context. */
static void
embed(LlmCall *call, LlmEmbedding *embedding)
{
	MemoryContext context;
	MemoryContext old;
	const char **inputs;
	LlmCall    *embedder;
	LlmInstant	now = llmgw_now();
	LlmInstant	limit = llmgw_after_ms(now, MOST_MS);

	if (now < paused_until)
		return;
	if (call->deadline != LLMGW_NEVER)
		limit = Min(limit, now + (call->deadline - now) / 2);
	if (limit <= now)
		return;

	context = AllocSetContextCreate(call->context, "llm_gateway embedding",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	inputs = palloc(sizeof(char *));
	inputs[0] = call->prompt;
	embedder = llmgw_call_create(context, make_spec(call), call->prompt);
	embedder->ninputs = 1;
	embedder->inputs = inputs;
	embedder->deadline = limit;

	call->similar->drive(embedder, context);
	MemoryContextSwitchTo(old);

	if (embedder->error == LLMGW_TIMEOUT && llmgw_now() >= llmgw_after_ms(now, PATIENCE_MS))
		paused_until = llmgw_after_ms(llmgw_now(), PAUSE_MS);
	if (embedder->error == LLMGW_OK && embedder->answer.dimensions > 0 &&
		embedder->answer.dimensions <= LLMGW_MAX_DIMENSIONS &&
		llmgw_call_scope(call, embedder->model->name, &embedding->scope))
	{
		Size		size = sizeof(float4) * embedder->answer.dimensions;
		float4	   *vector = MemoryContextAlloc(call->context, size);

		memcpy(vector, embedder->answer.vectors, size);
		embedding->vector = vector;
		embedding->dimensions = embedder->answer.dimensions;
	}
	MemoryContextDelete(context);
}

const LlmEmbedding *
llmgw_call_has_embedding(const LlmCall *call)
{
	return call->similar != NULL && call->similar->embedding.dimensions > 0 ?
		&call->similar->embedding : NULL;
}

const LlmEmbedding *
llmgw_call_embedding(LlmCall *call)
{
	if (call->similar != NULL && !call->similar->asked)
	{
		call->similar->asked = true;
		embed(call, &call->similar->embedding);
	}
	return llmgw_call_has_embedding(call);
}

static bool
serves(const void *arg, const char *model_tier)
{
	return model_tier != NULL && llmgw_call_accepts_tier(arg, model_tier);
}

bool
llmgw_call_nearest(LlmCall *call, LlmKept *kept)
{
	const LlmTask *task = task_of(call);
	const LlmEmbedding *embedding = llmgw_call_embedding(call);
	LlmNearness near = {0};

	if (embedding == NULL)
		return false;
	near.similarity = task->cache_similarity;
	if (task->cache_similar_ttl_ms >= 0)
		near.oldest = llmgw_wall_clock() - task->cache_similar_ttl_ms * 1000;
	near.serves = serves;
	near.arg = call;
	return llmgw_cache_nearest(call->spec->config, embedding, &near,
							   call->spec->cache == LLMGW_CACHE_ONLY, kept);
}

const char *
llmgw_call_similar_notice(const LlmKept *kept)
{
	return psprintf("this is the answer to another prompt that is similar (%.3f)",
					kept->similarity);
}
