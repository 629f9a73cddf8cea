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
	const char *context_window; /* tokens */
	const char *max_output_tokens;
	const char *capabilities;	/* an array's text */
	int			rule_rank;		/* of its routing rule; 0: no rule */
} LlmPresetModel;

typedef struct LlmPreset
{
	const char *name;
	const char *kind;
	const char *base_url;		/* NULL: no network */
	const char *api_key;		/* a reference; NULL: none is needed */
	int			nmodels;
	const LlmPresetModel *models;
} LlmPreset;

/* the preset of that name; NULL when there is none */
extern const LlmPreset *llmgw_preset_find(const char *name);

/*
 * The preset that is of that kind and at that host (base_url NULL: without a
 * network); NULL when there is none.
 */
extern const LlmPreset *llmgw_preset_at(const char *kind, const char *base_url);

/* Whether a URL's scheme, host and port are those of some preset. */
extern bool llmgw_preset_has_host(const LlmUrl *url);

/* the model of that name; NULL when the preset does not know it */
extern const LlmPresetModel *llmgw_preset_model(const LlmPreset *preset,
												const char *name);

/* the names, for messages: "openai, groq, mock" */
extern const char *llmgw_preset_names(void);

#endif							/* LLMGW_PRESETS_H */
