/*-------------------------------------------------------------------------
 *
 * presets.c
 *	  Well-known providers and their models: what llm_add_provider() writes.
 *
 * Prices are public list prices of November 2026 for standard processing, in
 * USD per million tokens; limits are of the same date.  They age: a user
 * corrects llm_models, or brings it up to date with llm_import_prices(), and
 * nothing here overwrites that.  Where a price depends on the hour, or is lower
 * for some weeks, it is the full one: a budget is not to be passed by a
 * discount that has ended.
 *
 * Models that a provider has withdrawn are known still, since others may have
 * them (a deployment at Azure) under the same name and price.  Those that it
 * will withdraw soon are added, but have no rule.
 *
 * The rules that a preset brings try a standard model first, then an economy
 * one, then a premium one.  So a call that asks for nothing in particular costs
 * what a standard model costs, a failure of that model does not multiply the
 * bill, and who wants the best asks for it (min_tier, model, or a rule).  For
 * embeddings there is one rule: vectors of two models cannot be compared, so
 * one is never a fallback for the other.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "presets.h"

/*
 * In the tables below: name, tier, quality; prices of input, output, cached
 * input and writing to the cache, and those of long prompts; context window,
 * longest answer; capabilities, rank and task of the rule.
 */

/* What models can do.  Reasoning ones often take no temperature. */
#define CHAT			"chat,streaming,system_prompt"
#define JSON			"json_object,json_schema"
#define PLAIN_MODEL		"{" CHAT ",temperature,tools," JSON ",image,prompt_cache}"
#define REASONING_MODEL "{" CHAT ",reasoning,tools," JSON ",image,prompt_cache}"
#define WARM_REASONING_MODEL \
	"{" CHAT ",temperature,reasoning,tools," JSON ",image,prompt_cache}"
#define EMBEDDING_MODEL "{embedding}"
#define EMBEDDING_TASK	"embedding"

/* at the end, in the place of the rule */
#define WITHDRAWN		0, NULL, true

#define LONG_PROMPT(above, input, output, cached_input) \
	"[{\"above_tokens\": " above ", \"input\": " input ", \"output\": " output \
	", \"cached_input\": " cached_input "}]"
#define LONG_PROMPT_WRITE(above, input, output, cached_input, cache_write) \
	"[{\"above_tokens\": " above ", \"input\": " input ", \"output\": " output \
	", \"cached_input\": " cached_input ", \"cache_write\": " cache_write "}]"

static const LlmPresetModel openai_models[] =
{
	{"gpt-6.1-sol", "premium", "96", "2", "10", "0.1", "2.5", LONG_PROMPT_WRITE("272000", "4", "15", "0.2", "5"), "1050000", "128000", REASONING_MODEL, 30},
	{"gpt-6.1-terra", "standard", "89", "1", "5", "0.05", "1.25", LONG_PROMPT_WRITE("272000", "2", "7.5", "0.1", "2.5"), "1050000", "128000", REASONING_MODEL, 10},
	{"gpt-6-luna", "economy", "79", "0.1", "0.5", "0.01", "0.125", LONG_PROMPT_WRITE("272000", "0.2", "0.75", "0.02", "0.25"), "1050000", "128000", REASONING_MODEL, 20},
	{"gpt-5.6-sol", "premium", "95", "4", "20", "0.4", "5", LONG_PROMPT_WRITE("272000", "8", "30", "0.8", "10"), "1050000", "128000", REASONING_MODEL},
	{"gpt-5.6-terra", "standard", "88", "2", "12", "0.2", "2.5", LONG_PROMPT_WRITE("272000", "4", "18", "0.4", "5"), "1050000", "128000", REASONING_MODEL},
	{"gpt-5.6-luna", "economy", "77", "0.2", "1.2", "0.02", "0.25", LONG_PROMPT_WRITE("272000", "0.4", "1.8", "0.04", "0.5"), "1050000", "128000", REASONING_MODEL},
	{"gpt-5.4", "premium", "93", "2.5", "15", "0.25", NULL, LONG_PROMPT("272000", "5", "22.5", "0.5"), "1050000", "128000", REASONING_MODEL},
	{"gpt-5.4-mini", "standard", "83", "0.75", "4.5", "0.075", NULL, NULL, "400000", "128000", REASONING_MODEL},
	{"gpt-5.4-nano", "economy", "65", "0.2", "1.25", "0.02", NULL, NULL, "400000", "128000", REASONING_MODEL},
	{"gpt-5", "premium", "92", "1.25", "10", "0.125", NULL, NULL, "400000", "128000", REASONING_MODEL},
	{"gpt-5-mini", "standard", "80", "0.25", "2", "0.025", NULL, NULL, "400000", "128000", REASONING_MODEL},
	{"gpt-5-nano", "economy", "60", "0.05", "0.4", "0.005", NULL, NULL, "400000", "128000", REASONING_MODEL},
	{"gpt-4.1", "premium", "82", "2", "8", "0.5", NULL, NULL, "1047576", "32768", PLAIN_MODEL},
	{"gpt-4.1-mini", "standard", "70", "0.4", "1.6", "0.1", NULL, NULL, "1047576", "32768", PLAIN_MODEL},
	{"gpt-4.1-nano", "economy", "52", "0.1", "0.4", "0.025", NULL, NULL, "1047576", "32768", PLAIN_MODEL, WITHDRAWN},
	{"gpt-4o", "premium", "75", "2.5", "10", "1.25", NULL, NULL, "128000", "16384", PLAIN_MODEL},
	{"gpt-4o-mini", "economy", "55", "0.15", "0.6", "0.075", NULL, NULL, "128000", "16384", PLAIN_MODEL},
	{"o3", "premium", "88", "2", "8", "0.5", NULL, NULL, "200000", "100000", REASONING_MODEL},
	{"o4-mini", "standard", "78", "1.1", "4.4", "0.275", NULL, NULL, "200000", "100000", REASONING_MODEL, WITHDRAWN},
	{"text-embedding-3-small", "economy", "50", "0.02", "0", NULL, NULL, NULL, "8192", NULL, EMBEDDING_MODEL, 10, EMBEDDING_TASK},
	{"text-embedding-3-large", "standard", "60", "0.13", "0", NULL, NULL, NULL, "8192", NULL, EMBEDDING_MODEL, 20, EMBEDDING_TASK},
};

static const LlmPresetModel anthropic_models[] =
{
	{"claude-opus-5-5", "premium", "97", "4", "20", "0.2", "5", NULL, "1000000", "128000", REASONING_MODEL, 30},
	{"claude-opus-5", "premium", "95", "5", "25", "0.5", "6.25", NULL, "1000000", "128000", REASONING_MODEL},
	{"claude-sonnet-5-5", "standard", "91", "2", "10", "0.1", "2.5", NULL, "1000000", "128000", REASONING_MODEL, 10},
	{"claude-sonnet-5", "standard", "89", "2", "10", "0.2", "2.5", NULL, "1000000", "128000", REASONING_MODEL},
	{"claude-sonnet-4-5", "standard", "85", "3", "15", "0.3", "3.75", LONG_PROMPT_WRITE("200000", "6", "22.5", "0.6", "7.5"), "200000", "64000", WARM_REASONING_MODEL},
	{"claude-haiku-5-5", "economy", "79", "0.1", "0.5", "0.01", "0.125", LONG_PROMPT_WRITE("100000", "0.5", "2.5", "0.05", "0.625"), "1000000", "128000", REASONING_MODEL, 20},
	{"claude-haiku-4-5", "economy", "74", "1", "5", "0.1", "1.25", NULL, "200000", "64000", WARM_REASONING_MODEL},
};

#define GROQ_REASONING	"{" CHAT ",temperature,reasoning,tools," JSON ",prompt_cache}"

static const LlmPresetModel groq_models[] =
{
	{"openai/gpt-oss-120b", "standard", "72", "0.15", "0.6", "0.075", NULL, NULL, "131072", "65536", GROQ_REASONING, 10},
	{"openai/gpt-oss-20b", "economy", "58", "0.075", "0.3", "0.0375", NULL, NULL, "131072", "65536", GROQ_REASONING, 20},
	{"qwen/qwen3.8-27b", "standard", "74", "0.8", "4", NULL, NULL, NULL, "131072", "16384", "{" CHAT ",temperature,reasoning,tools," JSON ",image}", 30},
	{"llama-3.3-70b-versatile", "standard", "65", "0.59", "0.79", NULL, NULL, NULL, "131072", "32768", "{" CHAT ",temperature,tools,json_object}", WITHDRAWN},
	{"llama-3.1-8b-instant", "economy", "40", "0.05", "0.08", NULL, NULL, NULL, "131072", "131072", "{" CHAT ",temperature,tools,json_object}", WITHDRAWN},
};

static const LlmPresetModel gemini_models[] =
{
	{"gemini-3.8-flash", "standard", "86", "1.5", "7.5", "0.15", NULL, NULL, "1048576", "65536", REASONING_MODEL, 10},
	{"gemini-3.5-flash", "standard", "84", "1.5", "9", "0.15", NULL, NULL, "1048576", "65536", WARM_REASONING_MODEL},
	{"gemini-2.5-pro", "premium", "88", "1.25", "10", "0.125", NULL, LONG_PROMPT("200000", "2.5", "15", "0.25"), "1048576", "65536", WARM_REASONING_MODEL, 30},
	{"gemini-2.5-flash", "standard", "76", "0.3", "2.5", "0.03", NULL, NULL, "1048576", "65536", WARM_REASONING_MODEL},
	{"gemini-2.5-flash-lite", "economy", "62", "0.1", "0.4", "0.01", NULL, NULL, "1048576", "65536", WARM_REASONING_MODEL, 20},
	{"gemini-embedding-001", "economy", "55", "0.15", "0", NULL, NULL, NULL, "2048", NULL, EMBEDDING_MODEL, 10, EMBEDDING_TASK},
	{"gemini-embedding-2", "standard", "60", "0.2", "0", NULL, NULL, NULL, "8192", NULL, EMBEDDING_MODEL, 20, EMBEDDING_TASK},
};

/*
 * What runs at home is free and else unknown, but for those that make vectors:
 * taken for a chat model one of them would be asked what it cannot answer.
 */
#define OLLAMA_EMBEDDING \
	"economy", "50", "0", "0", NULL, NULL, NULL, NULL, NULL, EMBEDDING_MODEL, 10, EMBEDDING_TASK

static const LlmPresetModel ollama_models[] =
{
	{"all-minilm", OLLAMA_EMBEDDING},
	{"bge-large", OLLAMA_EMBEDDING},
	{"bge-m3", OLLAMA_EMBEDDING},
	{"embeddinggemma", OLLAMA_EMBEDDING},
	{"granite-embedding", OLLAMA_EMBEDDING},
	{"mxbai-embed-large", OLLAMA_EMBEDDING},
	{"nomic-embed-text", OLLAMA_EMBEDDING},
	{"nomic-embed-text-v2-moe", OLLAMA_EMBEDDING},
	{"paraphrase-multilingual", OLLAMA_EMBEDDING},
	{"qwen3-embedding", OLLAMA_EMBEDDING},
	{"snowflake-arctic-embed", OLLAMA_EMBEDDING},
	{"snowflake-arctic-embed2", OLLAMA_EMBEDDING},
};

/* It bills what the maker of the model does, whose names it has in front. */
static const LlmPresetModel openrouter_models[] =
{
	{"openai/gpt-6.1-sol", "premium", "96", "2", "10", "0.1", "2.5", LONG_PROMPT_WRITE("272000", "4", "15", "0.2", "5"), "1050000", "128000", REASONING_MODEL},
	{"openai/gpt-6.1-terra", "standard", "89", "1", "5", "0.05", "1.25", LONG_PROMPT_WRITE("272000", "2", "7.5", "0.1", "2.5"), "1050000", "128000", REASONING_MODEL, 10},
	{"openai/gpt-6-luna", "economy", "79", "0.1", "0.5", "0.01", "0.125", LONG_PROMPT_WRITE("272000", "0.2", "0.75", "0.02", "0.25"), "1050000", "128000", REASONING_MODEL, 20},
	{"anthropic/claude-opus-5.5", "premium", "97", "4", "20", "0.2", "5", NULL, "1000000", "128000", REASONING_MODEL, 30},
	{"anthropic/claude-sonnet-5.5", "standard", "91", "2", "10", "0.1", "2.5", NULL, "1000000", "128000", REASONING_MODEL},
	{"anthropic/claude-haiku-5.5", "economy", "79", "0.1", "0.5", "0.01", "0.125", LONG_PROMPT_WRITE("100000", "0.5", "2.5", "0.05", "0.625"), "1000000", "128000", REASONING_MODEL},
	{"google/gemini-3.8-flash", "standard", "86", "1.5", "7.5", "0.15", NULL, NULL, "1048576", "65536", REASONING_MODEL},
	{"google/gemini-2.5-flash", "standard", "76", "0.3", "2.5", "0.03", NULL, NULL, "1048576", "65536", WARM_REASONING_MODEL},
};

static const LlmPresetModel mistral_models[] =
{
	{"mistral-medium-3-5", "premium", "85", "1.5", "7.5", "0.15", NULL, NULL, "262144", NULL, "{" CHAT ",temperature,reasoning,tools," JSON ",image}", 30},
	{"mistral-large-2512", "standard", "78", "0.5", "1.5", "0.05", NULL, NULL, "262144", NULL, "{" CHAT ",temperature,tools," JSON ",image}", 10},
	{"mistral-small-2603", "economy", "66", "0.15", "0.6", "0.015", NULL, NULL, "262144", NULL, "{" CHAT ",temperature,reasoning,tools," JSON ",image}", 20},
	{"mistral-embed", "economy", "50", "0.1", "0", NULL, NULL, NULL, "8192", NULL, EMBEDDING_MODEL, 10, EMBEDDING_TASK},
};

/*
 * Prices are those of the peak hours, twice the others.  The API refuses
 * response_format json_schema.  deepseek-v4-flash is an older name for what is
 * now called deepseek-flash.
 */
static const LlmPresetModel deepseek_models[] =
{
	{"deepseek-v4-pro", "standard", "87", "1.32", "3.96", "0.044", NULL, NULL, "1000000", "393216", "{" CHAT ",temperature,reasoning,tools,json_object,prompt_cache}", 10},
	{"deepseek-flash", "economy", "80", "0.3", "1.2", "0.006", NULL, NULL, "1000000", "393216", "{" CHAT ",temperature,reasoning,tools,json_object,image,prompt_cache}", 20},
	{"deepseek-v4-flash", "economy", "80", "0.3", "1.2", "0.006", NULL, NULL, "1000000", "393216", "{" CHAT ",temperature,reasoning,tools,json_object,image,prompt_cache}"},
};

#define TOGETHER_CHAT	"{" CHAT ",temperature,tools," JSON ",prompt_cache}"
#define TOGETHER_REASONING	"{" CHAT ",temperature,reasoning,tools," JSON ",prompt_cache}"

static const LlmPresetModel together_models[] =
{
	{"moonshotai/Kimi-K3", "premium", "90", "3", "15", "0.3", NULL, NULL, "1048576", NULL, WARM_REASONING_MODEL, 30},
	{"deepseek-ai/DeepSeek-V4-Pro-0813", "standard", "87", "1.32", "3.96", "0.13", NULL, NULL, "1048576", NULL, TOGETHER_CHAT},
	{"zai-org/GLM-5.3", "standard", "86", "1.4", "4.4", "0.26", NULL, NULL, "1048575", "128000", TOGETHER_REASONING, 10},
	{"deepseek-ai/DeepSeek-V4.1-Flash-1017", "economy", "80", "0.3", "1.2", "0.006", NULL, NULL, "1048576", NULL, WARM_REASONING_MODEL, 20},
	{"zai-org/GLM-5.3-Flash", "economy", "72", "0.15", "0.5", "0.03", NULL, NULL, "1048575", "128000", WARM_REASONING_MODEL},
	{"openai/gpt-oss-120b", "standard", "72", "0.15", "0.6", NULL, NULL, NULL, "131072", NULL, "{" CHAT ",temperature,reasoning,tools," JSON "}"},
	{"meta-llama/Llama-3.3-70B-Instruct-Turbo", "standard", "65", "1.04", "1.04", NULL, NULL, NULL, "131072", NULL, "{" CHAT ",temperature,tools," JSON "}", WITHDRAWN},
};

/* no network and no bill, but prices, so that costs show */
#define MOCK_CHAT		"{" CHAT ",temperature,tools," JSON ",image}"

static const LlmPresetModel mock_models[] =
{
	{"mock-premium", "premium", "90", "5", "15", "0.5", NULL, NULL, NULL, NULL, MOCK_CHAT, 30},
	{"mock-standard", "standard", "70", "1", "3", "0.1", NULL, NULL, NULL, NULL, MOCK_CHAT, 10},
	{"mock-economy", "economy", "50", "0.1", "0.3", "0.01", NULL, NULL, NULL, NULL, MOCK_CHAT, 20},
};

#define MODELS(array)	.nmodels = lengthof(array), .models = array

static const LlmPreset presets[] =
{
	{
		.name = "openai",
		.kind = "openai",
		.base_url = "https://api.openai.com/v1",
		.api_key = "env:OPENAI_API_KEY",
		.failure_domain = "openai",
		MODELS(openai_models),
	},
	{
		/* the same models on the same software: they fail together */
		.name = "azure",
		.kind = "azure",
		.api_key = "env:AZURE_OPENAI_API_KEY",
		.failure_domain = "openai",
		.example = "DEPLOYMENT",
		MODELS(openai_models),
		.own_kind = true,
		.named_only = true,
	},
	{
		.name = "anthropic",
		.kind = "anthropic",
		.base_url = "https://api.anthropic.com",
		.api_key = "env:ANTHROPIC_API_KEY",
		.failure_domain = "anthropic",
		MODELS(anthropic_models),
	},
	{
		.name = "groq",
		.kind = "openai",
		.base_url = "https://api.groq.com/openai/v1",
		.api_key = "env:GROQ_API_KEY",
		.failure_domain = "groq",
		MODELS(groq_models),
	},
	{
		.name = "gemini",
		.kind = "gemini",
		.base_url = "https://generativelanguage.googleapis.com",
		.api_key = "env:GEMINI_API_KEY",
		.failure_domain = "gemini",
		MODELS(gemini_models),
	},
	{
		.name = "ollama",
		.kind = "ollama",
		.base_url = "http://localhost:11434",
		.example = "llama3.2",
		MODELS(ollama_models),
		.own_kind = true,
		.self_hosted = true,
		.named_only = true,
	},
	{
		.name = "openrouter",
		.kind = "openai",
		.base_url = "https://openrouter.ai/api/v1",
		.api_key = "env:OPENROUTER_API_KEY",
		.failure_domain = "openrouter",
		MODELS(openrouter_models),
	},
	{
		/* refuses stream_options, and reports the usage without it */
		.name = "mistral",
		.kind = "openai",
		.base_url = "https://api.mistral.ai/v1",
		.api_key = "env:MISTRAL_API_KEY",
		.failure_domain = "mistral",
		.options = "{\"include_usage\": false}",
		MODELS(mistral_models),
	},
	{
		.name = "deepseek",
		.kind = "openai",
		.base_url = "https://api.deepseek.com",
		.api_key = "env:DEEPSEEK_API_KEY",
		.failure_domain = "deepseek",
		MODELS(deepseek_models),
	},
	{
		.name = "together",
		.kind = "openai",
		.base_url = "https://api.together.ai/v1",
		.api_key = "env:TOGETHER_API_KEY",
		.failure_domain = "together",
		.price_list_name = "together_ai",
		MODELS(together_models),
	},
	{
		.name = "vllm",
		.kind = "openai",
		.base_url = "http://localhost:8000/v1",
		.example = "Qwen/Qwen3-8B",
		.self_hosted = true,
		.named_only = true,
	},
	{
		/* closes the connection after a stream, and says that it keeps it */
		.name = "llamacpp",
		.kind = "openai",
		.base_url = "http://localhost:8080/v1",
		.options = "{\"keep_connection\": false}",
		.example = "gemma-3-4b-it",
		.self_hosted = true,
		.named_only = true,
	},
	{
		.name = "mock",
		.kind = "mock",
		MODELS(mock_models),
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

/*
 * A server of kind openai on this machine may be anything that listens at such
 * a port, also a proxy to a provider that sends bills.  Who means vLLM says so
 * by the preset's name.
 */
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

		if (strcmp(preset->kind, kind) != 0)
			continue;
		if (preset->own_kind ||
			(!preset->self_hosted &&
			 (base_url == NULL ? preset->base_url == NULL :
			  same_origin(&url, preset->base_url))))
			return preset;
	}
	return NULL;
}

/*
 * Not a self-hosted one's: whoever has an account on this machine may listen at
 * its port while the server is not running, and would be sent keys.
 */
bool
llmgw_preset_has_host(const LlmUrl *url)
{
	for (int i = 0; i < lengthof(presets); i++)
		if (!presets[i].self_hosted && same_origin(url, presets[i].base_url))
			return true;
	return false;
}

const LlmPreset *
llmgw_preset_of_key(const char *variable)
{
	static const char prefix[] = "env:";

	for (int i = 0; i < lengthof(presets); i++)
		if (presets[i].api_key != NULL &&
			strncmp(presets[i].api_key, prefix, sizeof(prefix) - 1) == 0 &&
			strcmp(presets[i].api_key + sizeof(prefix) - 1, variable) == 0)
			return &presets[i];
	return NULL;
}

bool
llmgw_preset_is_at(const LlmPreset *preset, const LlmUrl *url)
{
	/* of the public cloud, the US government's and China's */
	static const char *const azure[] = {".azure.com", ".azure.us", ".azure.cn"};
	size_t		len = strlen(url->host);

	if (preset->base_url != NULL)
		return same_origin(url, preset->base_url);
	for (int i = 0; strcmp(preset->kind, "azure") == 0 && i < lengthof(azure); i++)
	{
		size_t		tail = strlen(azure[i]);

		if (len > tail && strcmp(url->host + len - tail, azure[i]) == 0)
			return true;
	}
	return false;
}

const LlmPresetModel *
llmgw_preset_model(const LlmPreset *preset, const char *name)
{
	for (int i = 0; i < preset->nmodels; i++)
	{
		const char *known = preset->models[i].name;
		size_t		len = strlen(known);

		/* Ollama's names may have a tag: nomic-embed-text:v1.5 */
		if (strncmp(known, name, len) == 0 &&
			(name[len] == '\0' || (preset->self_hosted && name[len] == ':')))
			return &preset->models[i];
	}
	return NULL;
}

bool
llmgw_preset_brings(const LlmPreset *preset, const LlmPresetModel *model)
{
	return !preset->named_only && !model->withdrawn;
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
