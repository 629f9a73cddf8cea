/*-------------------------------------------------------------------------
 *
 * call_probe.c
 *	  Probes: calls that ask a provider whether it works.
 *
 * A probe is a call with one candidate, that is tried once.  How it is asked is
 * the provider's choice (llm_providers.probe):
 *
 *	models		its list of models, which is free and needs the key
 *	completion	a tiny one of its cheapest model, an ordinary request; where it
 *				has no model that could make one, its list of models
 *	a URL		a GET; with the key only where calls go as well
 *	none		never by the worker; by hand, its list of models
 *
 * But for a completion only the HTTP status counts: what is in the body is
 * nobody's business, and nothing is paid for it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "call.h"
#include "dialect_request.h"

/* longest time of a probe, where the provider's row allows more */
#define MAX_PROBE_MS		30000

/* what a completion asks, and for how much: some models take no smaller limit */
#define PROMPT				"Reply with OK."
#define MAX_TOKENS			16

/* A probe has no priority of its own: it goes before all calls, and says so nowhere. */
static const LlmPriority probe_priority = {.name = NULL,.rank = 1};

/* Whether a model could answer a prompt, as far as is known. */
static bool
makes_completions(const LlmModel *model)
{
	bool		embeds = false;

	for (int i = 0; i < model->ncapabilities; i++)
	{
		if (strcmp(model->capabilities[i], "chat") == 0)
			return true;
		embeds = embeds || strcmp(model->capabilities[i], "embedding") == 0;
	}
	return !embeds;
}

/* The provider's cheapest model for a tiny completion, unpriced ones last. */
static const LlmModel *
cheapest_model(const LlmConfig *config, const LlmProvider *provider)
{
	const LlmModel *best = NULL;
	LlmNano		best_cost = 0;

	for (int i = 0; i < config->nmodels; i++)
	{
		const LlmModel *m = &config->models[i];
		LlmNano		cost;

		if (m->provider != provider || !m->enabled || !makes_completions(m))
			continue;
		cost = llmgw_cost_estimate(m, strlen(PROMPT), MAX_TOKENS);
		if (best == NULL ||
			(cost != LLMGW_COST_UNKNOWN &&
			 (best_cost == LLMGW_COST_UNKNOWN || cost < best_cost)))
		{
			best = m;
			best_cost = cost;
		}
	}
	return best;
}

/*
 * The model that a probe is for, of its own: its time-out is a probe's, and what
 * is learned of it is forgotten.
 */
static LlmModel *
make_model(LlmCall *call, const LlmProvider *p, const LlmModel *like)
{
	LlmModel   *model = palloc0(sizeof(LlmModel));
	const LlmConfig *config = call->spec->config;
	int			total;

	if (like != NULL)
		*model = *like;
	else
	{
		static const LlmTier no_tier = {.name = "",.rank = PG_INT32_MAX};

		model->provider = p;
		model->name = "(probe)";
		model->upstream_name = model->name;
		model->tier = config->ntiers > 0 ? &config->tiers[config->ntiers - 1] : &no_tier;
		model->ncapabilities = -1;
		model->first_byte_ms = -1;
		model->total_ms = -1;
		model->enabled = true;
	}
	total = model->total_ms >= 0 ? model->total_ms : p->total_ms;
	model->total_ms = total > 0 ? Min(total, MAX_PROBE_MS) : MAX_PROBE_MS;
	return model;
}

LlmSpec *
llmgw_probe_spec(LlmConfig *config, const LlmProvider *provider, LlmBreakerAsk ask)
{
	LlmSpec    *spec = palloc0(sizeof(LlmSpec));

	spec->config = config;
	spec->operation = LLMGW_OP_PROBE;
	spec->probe = provider;
	spec->ask = ask;
	spec->priority = &probe_priority;
	spec->cache = LLMGW_CACHE_OFF;
	if (provider->probe == LLMGW_PROBE_COMPLETION &&
		cheapest_model(config, provider) != NULL)
		spec->max_tokens = MAX_TOKENS;
	else
		spec->max_tokens = LLMGW_NO_OUTPUT;
	return spec;
}

const char *
llmgw_probe_route(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	const LlmProvider *p = spec->probe;
	const LlmModel *like = NULL;
	LlmCandidate *candidate = palloc0(sizeof(LlmCandidate));
	const char *reason = llmgw_route_unreachable(p, &call->hint);

	if (reason == NULL && p->probe == LLMGW_PROBE_URL)
	{
		char	   *hint = NULL;

		reason = llmgw_host_refused(p->probe_url, &hint);
		call->hint = hint;
	}

	call->plain = spec->max_tokens == LLMGW_NO_OUTPUT;
	if (!call->plain)
	{
		like = cheapest_model(spec->config, p);
		call->prompt = PROMPT;
		call->messages = llmgw_messages_from_prompt(call->prompt);
		call->characters = call->messages->characters;
	}
	candidate->model = make_model(call, p, like);
	candidate->estimate = llmgw_estimate_cost(candidate->model, call->characters,
											  spec->max_tokens);
	call->estimate = candidate->estimate;
	call->route.pinned = true;

	call->route.ncandidates = 1;
	call->route.candidates = candidate;
	return reason;
}

/* The same place, so that a key which goes to the one may go to the other. */
static bool
same_origin(const LlmUrl *a, const LlmUrl *b)
{
	return a->host != NULL && b->host != NULL && strcmp(a->host, b->host) == 0 &&
		strcmp(a->scheme, b->scheme) == 0 && a->port == b->port;
}

void
llmgw_probe_request(LlmCall *call, LlmHttpRequest *request)
{
	const LlmProvider *p = call->spec->probe;
	LlmUrl		url;
	const char *reason;

	if (p->probe != LLMGW_PROBE_URL)
	{
		p->dialect->probe_request(&call->wire, request);
		return;
	}

	/* as the kind asks, key and all, where the provider itself is asked */
	if (llmgw_http_split_url(p->probe_url, &url, &reason) && same_origin(&url, &p->url))
		p->dialect->probe_request(&call->wire, request);
	else
	{
		call->wire.api_key = NULL;
		llmgw_request_header(request, "Accept", "*/*");
		llmgw_request_user_agent(request);
	}
	request->url = p->probe_url;
	request->replay = NULL;
}

LlmErrorClass
llmgw_probe_judge(const LlmCall *call, LlmErrorClass error)
{
	const LlmTransfer *t = call->transfer;

	if (t->http_status >= 300)
	{
		/* a health check that wants a key says nothing about ours */
		if (call->spec->probe->probe == LLMGW_PROBE_URL && call->wire.api_key == NULL &&
			(error == LLMGW_AUTH || error == LLMGW_QUOTA))
			return LLMGW_INVALID_REQUEST;
		return error;
	}
	if (t->http_status >= 200 && t->http_status <= 299 &&
		(t->outcome == LLMGW_HTTP_DONE || t->outcome == LLMGW_HTTP_TOO_LARGE))
		return LLMGW_OK;
	return error != LLMGW_OK ? error : LLMGW_MALFORMED;
}
