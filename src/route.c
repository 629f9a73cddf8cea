/*-------------------------------------------------------------------------
 *
 * route.c
 *	  Which models may answer a call, in which order.
 *
 * Rules name models the way a caller does: "provider/model" where both exist,
 * else a model's name, which stands for every provider that has it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"

#include "balance.h"
#include "json.h"
#include "route.h"

/* a prompt is dropped only when it is longer than the window by this much */
#define WINDOW_TOLERANCE	1.25

static bool
has_capability(const LlmModel *model, const char *capability)
{
	for (int i = 0; i < model->ncapabilities; i++)
		if (strcmp(model->capabilities[i], capability) == 0)
			return true;
	return false;
}

/* Whether it can be held to a JSON schema, as far as is known. */
static bool
takes_schema(const LlmModel *model)
{
	return model->provider->dialect->takes_schema &&
		(model->ncapabilities < 0 || has_capability(model, "json_schema"));
}

/*
 * Whether the server may fetch an image from where a caller says.  One of the
 * user's own sees what callers of the database do not, unless its row says that
 * this is no matter.
 */
static bool
may_fetch(const LlmProvider *provider)
{
	bool		near = provider->base_url != NULL && provider->url_problem == NULL &&
	provider->dialect != &llmgw_dialect_mock && llmgw_url_is_near(&provider->url);

	return provider->options == NULL ? !near :
		llmgw_json_get_bool(&provider->options->root, !near, "image_urls", NULL);
}

/*
 * What the call needs and this model cannot do; NULL: nothing.  Of a model that
 * does not say what it can do, all is believed.
 */
static const char *
lacks_feature(const LlmModel *model, const LlmRouteQuery *query, const char **hint)
{
	const LlmDialect *dialect = model->provider->dialect;
	const char *lacks = NULL;

	if (model->ncapabilities >= 0)
	{
		if (query->needs_tools && !has_capability(model, "tools"))
			lacks = "tools";
		else if (query->needs_images && !has_capability(model, "image"))
			lacks = "image";
		else if (query->needs_schema && !query->may_advise &&
				 !has_capability(model, "json_schema"))
			lacks = "json_schema";
		else if (query->needs_embedding && !has_capability(model, "embedding"))
			lacks = "embedding";
	}
	if (lacks != NULL)
	{
		*hint = psprintf("Use a model with \"%s\" in llm_models.capabilities, or add it there.", lacks);
		return psprintf("lacks %s", lacks);
	}
	if (query->needs_embedding && dialect->max_inputs == 0)
		return psprintf("kind \"%s\" makes no embeddings", dialect->kind);
	if (query->needs_schema && !query->may_advise && !dialect->takes_schema)
		return psprintf("kind \"%s\" takes no JSON schema", dialect->kind);
	if (query->needs_image_urls && !dialect->fetches_images)
	{
		*hint = "Give the image's data: data:image/png;base64,...";
		return psprintf("kind \"%s\" does not fetch images by URL", dialect->kind);
	}
	if (query->needs_image_urls && !may_fetch(model->provider))
	{
		*hint = psprintf("Give the image's data: data:image/png;base64,... Or let the server fetch what callers name: set \"image_urls\": true in options of provider \"%s\".",
						 model->provider->name);
		return "it may not fetch images by URL";
	}
	if (query->params != NULL && dialect->cannot != NULL)
		return dialect->cannot(query->params);
	return NULL;
}

/*
 * What can be left out, and will have to be.  "temperature" stands for whatever
 * changes how words are drawn.
 */
static LlmParams
lacks_params(const LlmModel *model)
{
	LlmParams	params = 0;

	if (model->ncapabilities < 0)
		return 0;
	if (!has_capability(model, "temperature"))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_TEMPERATURE) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_P) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_TOP_K) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_MIN_P) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_PRESENCE_PENALTY) |
			LLMGW_PARAM_BIT(LLMGW_PARAM_FREQUENCY_PENALTY);
	if (!has_capability(model, "reasoning"))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_REASONING_EFFORT);
	if (!has_capability(model, "tools"))
		params |= LLMGW_PARAM_BIT(LLMGW_PARAM_TOOLS);
	return params;
}

/* Why this model's window is too small; NULL: it is not, or nobody knows. */
static const char *
exceeds_window(const LlmModel *model, const LlmRouteQuery *query)
{
	int64		characters = query->needs_embedding ? query->longest_input : query->characters;
	int64		tokens = (characters + 3) / 4;

	if (model->context_window <= 0 ||
		tokens <= model->context_window * WINDOW_TOLERANCE)
		return NULL;
	return psprintf("the %s of about " INT64_FORMAT " tokens is longer than its context window of %d",
					query->needs_embedding ? "input" : "prompt", tokens,
					model->context_window);
}

const char *
llmgw_route_unreachable(const LlmProvider *provider, const char **hint)
{
	char	   *refused;
	char	   *refused_hint = NULL;

	if (provider->dialect == NULL)
		return psprintf("kind \"%s\" is not known to this version", provider->kind);
	if (provider->base_url == NULL && provider->dialect->default_base_url == NULL &&
		provider->dialect != &llmgw_dialect_mock)
	{
		*hint = "Set llm_providers.base_url.";
		return "the provider has no base_url";
	}
	if (provider->url_problem != NULL)
		return psprintf("its base_url cannot be used: %s", provider->url_problem);
	if (provider->base_url != NULL && provider->dialect != &llmgw_dialect_mock)
	{
		refused = llmgw_url_refused(&provider->url, &refused_hint);
		if (refused != NULL)
		{
			*hint = refused_hint;
			return refused;
		}
	}
	return NULL;
}

/* Why this model may not answer; NULL when it may. */
static const char *
drop_reason(const LlmModel *model, const LlmRouteQuery *query, const char **hint)
{
	const LlmProvider *provider = model->provider;
	const char *reason;

	if (!provider->enabled)
	{
		*hint = psprintf("Enable it: UPDATE llm_providers SET enabled = true WHERE name = %s;",
						 quote_literal_cstr(provider->name));
		return "the provider is disabled";
	}
	if (!model->enabled)
	{
		*hint = psprintf("Enable it: UPDATE llm_models SET enabled = true WHERE provider = %s AND name = %s;",
						 quote_literal_cstr(provider->name),
						 quote_literal_cstr(model->name));
		return "the model is disabled";
	}
	reason = llmgw_route_unreachable(provider, hint);
	if (reason != NULL)
		return reason;

	/* a model that says what it can do, and that is only embeddings */
	if (!query->needs_embedding &&
		has_capability(model, "embedding") && !has_capability(model, "chat"))
		return "it makes embeddings, not completions";
	reason = lacks_feature(model, query, hint);
	if (reason != NULL)
		return reason;
	return query->needs_embedding ? NULL : exceeds_window(model, query);
}

static void
add_candidate(LlmRoute *route, const LlmModel *model, const LlmRule *rule,
			  const LlmRouteQuery *query)
{
	LlmCandidate *c;

	for (int i = 0; i < route->ncandidates; i++)
		if (route->candidates[i].model == model)
			return;
	c = &route->candidates[route->ncandidates++];
	memset(c, 0, sizeof(*c));
	c->model = model;
	c->rule = rule;
	c->dropped = drop_reason(model, query, &c->hint);
	if (c->dropped == NULL && query->min_tier != NULL &&
		model->tier->rank > query->min_tier->rank)
	{
		c->dropped = psprintf("its tier \"%s\" is below min_tier \"%s\"",
							  model->tier->name, query->min_tier->name);
		route->below_tier = true;
	}
	c->advised = c->dropped == NULL && query->needs_schema && !takes_schema(model);
	c->lacks = lacks_params(model);
	c->estimate = llmgw_cost_estimate(model, query->characters, query->max_tokens);
}

/* Whether a name is this model's in the form provider/model. */
static bool
is_qualified_name(const LlmModel *model, const char *name)
{
	size_t		len = strlen(model->provider->name);

	return strncmp(name, model->provider->name, len) == 0 &&
		name[len] == '/' && strcmp(name + len + 1, model->name) == 0;
}

/* Whether a candidate takes part in balancing. */
static bool
is_balanced(const LlmCandidate *c, const LlmRouteQuery *query)
{
	/* see keep_one_model() */
	return c->dropped == NULL &&
		!(query->needs_embedding && exceeds_window(c->model, query) != NULL);
}

/*
 * Orders the candidates from start on, which have one model: those that may
 * answer as they are balanced, the others behind.
 */
static void
balance(LlmRoute *route, int start, const LlmRouteQuery *query)
{
	int			n = route->ncandidates - start;
	LlmCandidate *sorted = palloc(sizeof(LlmCandidate) * Max(n, 1));
	const LlmModel **models = palloc(sizeof(LlmModel *) * Max(n, 1));
	int			nmodels = 0;
	int			nsorted = 0;
	LlmBalanceTurn turn = LLMGW_TURN_TAKE;

	if (query->peek)
		turn = LLMGW_TURN_PEEK;
	else if (route->served)
		turn = LLMGW_TURN_DRAW;

	for (int i = start; i < route->ncandidates; i++)
		if (is_balanced(&route->candidates[i], query))
			models[nmodels++] = route->candidates[i].model;
	if (llmgw_balance(models, nmodels, turn))
		route->served = true;

	for (int i = 0; i < nmodels; i++)
		for (int j = start; j < route->ncandidates; j++)
			if (route->candidates[j].model == models[i])
				sorted[nsorted++] = route->candidates[j];
	for (int j = start; j < route->ncandidates; j++)
		if (!is_balanced(&route->candidates[j], query))
			sorted[nsorted++] = route->candidates[j];
	if (n > 0)
		memcpy(&route->candidates[start], sorted, sizeof(LlmCandidate) * n);
	pfree(sorted);
	pfree(models);
}

/*
 * Adds the models that a name stands for; false when there are none.  The rule that
 * names them is NULL where the caller does.
 */
static bool
add_named(LlmRoute *route, const LlmConfig *config, const char *name,
		  const LlmRule *rule, const LlmRouteQuery *query)
{
	int			start = route->ncandidates;
	bool		qualified = false;
	bool		found = false;

	for (int i = 0; i < config->nmodels && !qualified; i++)
	{
		qualified = is_qualified_name(&config->models[i], name);
		if (qualified)
			add_candidate(route, &config->models[i], rule, query);
	}
	for (int i = 0; i < config->nmodels && !qualified; i++)
	{
		if (strcmp(config->models[i].name, name) != 0)
			continue;
		add_candidate(route, &config->models[i], rule, query);
		found = true;
	}
	balance(route, start, query);
	return qualified || found;
}

/* Whether a rule is for this call's task, role and tags. */
static bool
rule_applies(const LlmRule *rule, const LlmRouteQuery *query)
{
	if (!rule->enabled)
		return false;
	if (rule->task != NULL && strcmp(rule->task, query->task) != 0)
		return false;
	if (rule->role != NULL)
	{
		/*
		 * a superuser has every role's rights, but is not a member of every
		 * team
		 */
		Oid			role = get_role_oid(rule->role, true);

		if (!OidIsValid(role) || !is_member_of_role_nosuper(query->role, role))
			return false;
	}
	if (rule->tags != NULL &&
		(query->tags == NULL ||
		 !DatumGetBool(DirectFunctionCall2(jsonb_contains,
										   JsonbPGetDatum(query->tags),
										   JsonbPGetDatum(rule->tags)))))
		return false;
	return true;
}

static int
cmp_quality(const void *a, const void *b)
{
	const LlmModel *x = *(const LlmModel *const *) a;
	const LlmModel *y = *(const LlmModel *const *) b;
	int			c;

	if (x->quality != y->quality)
		return x->quality > y->quality ? -1 : 1;
	c = strcmp(x->provider->name, y->provider->name);
	return c != 0 ? c : strcmp(x->name, y->name);
}

static void
add_all(LlmRoute *route, const LlmConfig *config, const LlmRouteQuery *query)
{
	const LlmModel **all = palloc(sizeof(LlmModel *) * Max(config->nmodels, 1));

	for (int i = 0; i < config->nmodels; i++)
		all[i] = &config->models[i];
	qsort(all, config->nmodels, sizeof(LlmModel *), cmp_quality);
	for (int i = 0; i < config->nmodels; i++)
		add_candidate(route, all[i], NULL, query);
	pfree(all);
}

/* Adds what a rule names; a rule that names nothing is remembered. */
static void
add_rule(LlmRoute *route, const LlmConfig *config, const LlmRule *rule,
		 const LlmRouteQuery *query)
{
	if (!add_named(route, config, rule->model, rule, query))
		route->unresolved = psprintf("%s%srouting rule " INT64_FORMAT ": no provider has model \"%s\"",
									 route->unresolved ? route->unresolved : "",
									 route->unresolved ? "\n" : "",
									 rule->id, rule->model);
}

/* The rules of an alias; false when there is no such alias. */
static bool
add_alias(LlmRoute *route, const LlmConfig *config, const char *alias,
		  const LlmRouteQuery *query)
{
	bool		known = false;

	for (int i = 0; i < config->nrules; i++)
	{
		const LlmRule *rule = &config->rules[i];

		if (rule->alias == NULL || strcmp(rule->alias, alias) != 0)
			continue;
		known = true;
		if (rule_applies(rule, query))
			add_rule(route, config, rule, query);
	}
	return known;
}

bool
llmgw_route_knows(const LlmConfig *config, const char *model)
{
	for (int i = 0; i < config->nrules; i++)
		if (config->rules[i].alias != NULL && strcmp(config->rules[i].alias, model) == 0)
			return true;
	for (int i = 0; i < config->nmodels; i++)
		if (strcmp(config->models[i].name, model) == 0 ||
			is_qualified_name(&config->models[i], model))
			return true;
	return false;
}

static void
add_candidates(LlmRoute *route, const LlmConfig *config, const LlmRouteQuery *query)
{
	bool		matched = false;

	if (query->model != NULL)
	{
		if (add_alias(route, config, query->model, query))
			return;
		route->pinned = true;
		route->unknown_model = !add_named(route, config, query->model, NULL, query);
		return;
	}

	/* the task's own rules, or else those for any task */
	for (int pass = 0; pass < 2 && !matched; pass++)
	{
		for (int i = 0; i < config->nrules; i++)
		{
			const LlmRule *rule = &config->rules[i];

			if (rule->alias != NULL || (rule->task != NULL) != (pass == 0) ||
				!rule_applies(rule, query))
				continue;
			matched = true;
			add_rule(route, config, rule, query);
		}
	}
	if (!matched)
		add_all(route, config, query);
}

const LlmCandidate *
llmgw_route_first(const LlmRoute *route)
{
	for (int i = 0; i < route->ncandidates; i++)
		if (route->candidates[i].dropped == NULL)
			return &route->candidates[i];
	return NULL;
}

/* Drops what is not the model that makes these embeddings. */
static void
keep_one_model(LlmRoute *route, const LlmRouteQuery *query)
{
	const LlmCandidate *first = llmgw_route_first(route);
	const char *name = query->only_model;

	if (name == NULL && first != NULL)
		name = first->model->name;
	for (int i = 0; i < route->ncandidates; i++)
	{
		LlmCandidate *c = &route->candidates[i];

		if (c->dropped != NULL)
			continue;
		if (strcmp(c->model->name, name) != 0)
			c->dropped = "embeddings never change model";
		else
			c->dropped = exceeds_window(c->model, query);
	}
}

void
llmgw_route(const LlmConfig *config, const LlmRouteQuery *query, LlmRoute *route)
{
	memset(route, 0, sizeof(*route));
	route->candidates = palloc(sizeof(LlmCandidate) * Max(config->nmodels, 1));
	add_candidates(route, config, query);
	if (query->needs_embedding)
		keep_one_model(route, query);
}

void
llmgw_route_prefer(LlmRoute *route, const LlmModel *model)
{
	for (int i = 1; i < route->ncandidates; i++)
	{
		LlmCandidate c = route->candidates[i];

		if (c.model != model || c.dropped != NULL)
			continue;
		memmove(&route->candidates[1], &route->candidates[0], sizeof(LlmCandidate) * i);
		route->candidates[0] = c;
		return;
	}
}
