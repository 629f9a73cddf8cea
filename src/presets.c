/*-------------------------------------------------------------------------
 *
 * presets.c
 *	  Well-known providers and their models: what llm_add_provider() writes.
 *
 * Prices are public list prices for standard processing, in USD per million
 * tokens.  They age: a user corrects llm_models, which nothing here overwrites.
 *
 * The rules that a preset brings try a standard model first, then an economy
 * one, then a premium one.  So a call that asks for nothing in particular costs
 * what a standard model costs, a failure of that model does not multiply the
 * bill, and who wants the best asks for it (min_tier, model, or a rule).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "presets.h"

/* what OpenAI's chat models can do, without and with reasoning */
#define OPENAI_CHAT \
	"{chat,streaming,system_prompt,temperature,tools,json_object,json_schema,image,prompt_cache}"
#define OPENAI_REASONING \
	"{chat,streaming,system_prompt,reasoning,tools,json_object,json_schema,image,prompt_cache}"

static const LlmPresetModel openai_models[] =
{
	/*
	 * name, tier, quality, input, output, cached, window, output,
	 * capabilities
	 */
	{"gpt-5", "premium", "92", "1.25", "10", "0.125", "400000", "128000", OPENAI_REASONING, 30},
	{"gpt-5-mini", "standard", "80", "0.25", "2", "0.025", "400000", "128000", OPENAI_REASONING, 10},
	{"gpt-5-nano", "economy", "60", "0.05", "0.4", "0.005", "400000", "128000", OPENAI_REASONING, 20},
	{"gpt-4.1", "premium", "82", "2", "8", "0.5", "1047576", "32768", OPENAI_CHAT, 0},
	{"gpt-4.1-mini", "standard", "70", "0.4", "1.6", "0.1", "1047576", "32768", OPENAI_CHAT, 0},
	{"gpt-4.1-nano", "economy", "52", "0.1", "0.4", "0.025", "1047576", "32768", OPENAI_CHAT, 0},
	{"gpt-4o", "premium", "75", "2.5", "10", "1.25", "128000", "16384", OPENAI_CHAT, 0},
	{"gpt-4o-mini", "economy", "55", "0.15", "0.6", "0.075", "128000", "16384", OPENAI_CHAT, 0},
	{"o3", "premium", "88", "2", "8", "0.5", "200000", "100000", OPENAI_REASONING, 0},
	{"o4-mini", "standard", "78", "1.1", "4.4", "0.275", "200000", "100000", OPENAI_REASONING, 0},
};

#define GROQ_CHAT		"{chat,streaming,system_prompt,temperature,tools,json_object}"
#define GROQ_REASONING	"{chat,streaming,system_prompt,temperature,reasoning,tools,json_object,json_schema}"

static const LlmPresetModel groq_models[] =
{
	{"openai/gpt-oss-120b", "standard", "72", "0.15", "0.6", "0.075", "131072", "65536", GROQ_REASONING, 10},
	{"openai/gpt-oss-20b", "economy", "58", "0.075", "0.3", "0.0375", "131072", "65536", GROQ_REASONING, 20},
	{"llama-3.3-70b-versatile", "standard", "65", "0.59", "0.79", NULL, "131072", "32768", GROQ_CHAT, 30},
	{"llama-3.1-8b-instant", "economy", "40", "0.05", "0.08", NULL, "131072", "131072", GROQ_CHAT, 0},
};

/* no network and no bill, but prices, so that costs show */
#define MOCK_CHAT		"{chat,streaming,system_prompt,temperature}"

static const LlmPresetModel mock_models[] =
{
	{"mock-premium", "premium", "90", "5", "15", "0.5", NULL, NULL, MOCK_CHAT, 30},
	{"mock-standard", "standard", "70", "1", "3", "0.1", NULL, NULL, MOCK_CHAT, 10},
	{"mock-economy", "economy", "50", "0.1", "0.3", "0.01", NULL, NULL, MOCK_CHAT, 20},
};

static const LlmPreset presets[] =
{
	{
		.name = "openai",
		.kind = "openai",
		.base_url = "https://api.openai.com/v1",
		.api_key = "env:OPENAI_API_KEY",
		.nmodels = lengthof(openai_models),
		.models = openai_models,
	},
	{
		.name = "groq",
		.kind = "openai",
		.base_url = "https://api.groq.com/openai/v1",
		.api_key = "env:GROQ_API_KEY",
		.nmodels = lengthof(groq_models),
		.models = groq_models,
	},
	{
		.name = "mock",
		.kind = "mock",
		.nmodels = lengthof(mock_models),
		.models = mock_models,
	},
};

const LlmPreset *
llmgw_preset_find(const char *name)
{
	for (int i = 0; i < lengthof(presets); i++)
		if (strcmp(presets[i].name, name) == 0)
			return &presets[i];
	return NULL;
}

static bool
same_origin(const LlmUrl *url, const char *base_url)
{
	LlmUrl		other;
	const char *reason;

	return base_url != NULL &&
		llmgw_http_split_url(base_url, &other, &reason) &&
		strcmp(url->scheme, other.scheme) == 0 &&
		strcmp(url->host, other.host) == 0 &&
		url->port == other.port;
}

const LlmPreset *
llmgw_preset_at(const char *kind, const char *base_url)
{
	LlmUrl		url;
	const char *reason;

	if (base_url != NULL && !llmgw_http_split_url(base_url, &url, &reason))
		return NULL;
	for (int i = 0; i < lengthof(presets); i++)
	{
		const LlmPreset *preset = &presets[i];

		if (strcmp(preset->kind, kind) == 0 &&
			(base_url == NULL ? preset->base_url == NULL :
			 same_origin(&url, preset->base_url)))
			return preset;
	}
	return NULL;
}

bool
llmgw_preset_has_host(const LlmUrl *url)
{
	for (int i = 0; i < lengthof(presets); i++)
		if (same_origin(url, presets[i].base_url))
			return true;
	return false;
}

const LlmPresetModel *
llmgw_preset_model(const LlmPreset *preset, const char *name)
{
	for (int i = 0; i < preset->nmodels; i++)
		if (strcmp(preset->models[i].name, name) == 0)
			return &preset->models[i];
	return NULL;
}

const char *
llmgw_preset_names(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(presets); i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", presets[i].name);
	return buf.data;
}
