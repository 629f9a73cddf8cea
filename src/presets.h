/*-------------------------------------------------------------------------
 *
 * presets.h
 *	  Well-known providers and their models: what llm_add_provider() writes.
 *
 * Plain data.  It is copied into the tables once and belongs to the user from
 * then on: nothing else reads prices or windows from here.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_PRESETS_H
#define LLMGW_PRESETS_H

#include "http.h"

/*
 * A model.  Numbers are texts, as numeric reads them, so that prices are
 * exact; NULL: unknown.
 */
typedef struct LlmPresetModel
{
	const char *name;
	const char *tier;
	const char *quality;		/* 0 to 100, a rough order */
	const char *input_price;	/* USD per 1 M tokens */
	const char *output_price;
	const char *cached_input_price;
	const char *cache_write_price;
	const char *price_tiers;	/* of long prompts: a JSON array's text */
	const char *context_window; /* tokens */
	const char *max_output_tokens;
	const char *capabilities;	/* an array's text */
	int			rule_rank;		/* of its routing rule; 0: no rule */
	const char *rule_task;		/* that the rule is for; NULL: any */
	bool		withdrawn;		/* by this provider; known for its price */
} LlmPresetModel;

typedef struct LlmPreset
{
	const char *name;
	const char *kind;
	const char *base_url;		/* NULL: no network, or the user must say */
	const char *api_key;		/* a reference; NULL: none is needed */
	const char *failure_domain; /* NULL: none that others share */
	const char *options;		/* a JSON object's text; NULL: none */
	const char *example;		/* a model's name, for hints */
	const char *price_list_name;	/* what LiteLLM's price list calls it;
									 * NULL: as here */
	int			nmodels;
	const LlmPresetModel *models;

	/* Every provider of that kind is one of these, wherever it is. */
	bool		own_kind;

	/* It is the user's own server: what it serves costs nothing. */
	bool		self_hosted;

	/* It has what the user put there: no model is added that is not named. */
	bool		named_only;
} LlmPreset;

/* the preset of that name; NULL when there is none */
extern const LlmPreset *llmgw_preset_find(const char *name);

/*
 * The preset that is of that kind and at that host (base_url NULL: without a
 * network); NULL when there is none.
 */
extern const LlmPreset *llmgw_preset_at(const char *kind, const char *base_url);

/*
 * Whether a URL's scheme, host and port are those of some preset that is a
 * public service.
 */
extern bool llmgw_preset_has_host(const LlmUrl *url);

/*
 * The preset whose key that variable of the environment has, by its well-known
 * name; NULL: none's.
 */
extern const LlmPreset *llmgw_preset_of_key(const char *variable);

/*
 * Whether the URL's scheme, host and port are the preset's; of Azure, whose
 * users have hosts of their own, one below Microsoft's domains.
 */
extern bool llmgw_preset_is_at(const LlmPreset *preset, const LlmUrl *url);

/* the model of that name; NULL when the preset does not know it */
extern const LlmPresetModel *llmgw_preset_model(const LlmPreset *preset,
												const char *name);

/* Whether the model comes with the preset when no models are named. */
extern bool llmgw_preset_brings(const LlmPreset *preset, const LlmPresetModel *model);

/* the names, for messages: "openai, groq, mock" */
extern const char *llmgw_preset_names(void);

#endif							/* LLMGW_PRESETS_H */
