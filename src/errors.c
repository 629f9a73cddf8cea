/*-------------------------------------------------------------------------
 *
 * errors.c
 *	  Error classes, their SQLSTATEs, and text from providers made safe.
 *
 * Which words mean what was collected from OpenAI's error code guide, from
 * recorded answers of Azure, Groq, Mistral, vLLM and llama.cpp, and from the
 * phrases that other gateways look for.  Words are trusted as little as
 * possible: a message may quote the prompt, so a phrase anywhere in it chooses
 * only between classes that end this one call.  What would park a provider for
 * everybody (auth, quota) takes a status, a code, or the message's beginning.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "errors.h"

/* How much of a message is searched: it may quote a prompt of megabytes. */
#define MAX_SEARCHED	4096

typedef struct ErrorClassInfo
{
	const char *name;
	int			sqlstate;
	const char *hint;
} ErrorClassInfo;

static const ErrorClassInfo classes[LLMGW_NCLASSES] = {
	[LLMGW_OK] = {"ok", 0, ""},
	[LLMGW_RATE_LIMIT] = {"rate_limit", ERRCODE_LLM_RATE_LIMITED,
	"Wait and try again, lower llm_gateway.batch_concurrency, or add another provider of the model."},
	[LLMGW_AUTH] = {"auth", ERRCODE_LLM_AUTH,
	"Check the key that llm_providers.api_key refers to, that the server can read it, and what the provider permits it."},
	[LLMGW_TIMEOUT] = {"timeout", ERRCODE_LLM_TIMEOUT,
	"Raise timeout_ms or llm_gateway.default_timeout, or the time-outs in llm_providers or llm_models; where no connection came about, check llm_providers.base_url."},
	[LLMGW_NETWORK] = {"network", ERRCODE_LLM_ALL_FAILED,
	"Check llm_providers.base_url, and that this server can reach it; llm_gateway.proxy and llm_gateway.ca_file may be needed."},
	[LLMGW_SERVER_ERROR] = {"server_error", ERRCODE_LLM_ALL_FAILED,
	"The fault is the provider's: try again later, or add another provider of the model."},
	[LLMGW_OVERLOADED] = {"overloaded", ERRCODE_LLM_ALL_FAILED,
	"The provider has no capacity now: try again later, or add another provider of the model."},
	[LLMGW_MALFORMED] = {"malformed", ERRCODE_LLM_BAD_RESPONSE,
	"Check that llm_providers.base_url and kind belong together, and that no proxy between changes answers."},
	[LLMGW_QUOTA] = {"quota", ERRCODE_LLM_UNAVAILABLE,
	"The provider's account is out of credit: add credit there, or another provider of the model."},
	[LLMGW_NOT_FOUND] = {"not_found", ERRCODE_LLM_INVALID_REQUEST,
	"Check llm_models.upstream_name (or name) against the provider's list of models, and llm_providers.base_url."},
	[LLMGW_CONTEXT_LENGTH] = {"context_length", ERRCODE_LLM_CONTEXT_LENGTH,
	"Shorten the prompt, lower max_tokens, or use a model with a larger context window."},
	[LLMGW_CONTENT_POLICY] = {"content_policy", ERRCODE_LLM_CONTENT_POLICY,
	"The provider refuses this content: change the prompt, or use another model."},
	[LLMGW_INVALID_REQUEST] = {"invalid_request", ERRCODE_LLM_INVALID_REQUEST,
	"The provider does not accept the request: check the arguments and params against what the model supports."},
	[LLMGW_BUDGET] = {"budget", ERRCODE_LLM_BUDGET_EXCEEDED,
	"Raise the limit in llm_budgets, wait for its next period, or use a higher priority."},
	[LLMGW_NO_CANDIDATE] = {"no_candidate", ERRCODE_LLM_NO_CANDIDATE,
	"Change what DETAIL names, or name another model."},
	[LLMGW_SCHEMA] = {"schema", ERRCODE_LLM_SCHEMA_MISMATCH,
	"Simplify the schema, describe the wanted answer in the prompt, or use a better model."},
	[LLMGW_UNAVAILABLE] = {"unavailable", ERRCODE_LLM_UNAVAILABLE,
	"Try again later, or add another provider of the model."},
	[LLMGW_ALL_FAILED] = {"all_failed", ERRCODE_LLM_ALL_FAILED,
	"The attempts failed in different ways: see DETAIL for each."}
};

const char *
llmgw_error_class_name(LlmErrorClass class)
{
	return classes[class].name;
}

LlmErrorClass
llmgw_error_class_from_name(const char *name)
{
	for (int i = LLMGW_OK + 1; i < LLMGW_NCLASSES; i++)
	{
		if (strcmp(classes[i].name, name) == 0)
			return (LlmErrorClass) i;
	}
	return LLMGW_OK;
}

int
llmgw_error_class_sqlstate(LlmErrorClass class)
{
	return classes[class].sqlstate;
}

const char *
llmgw_error_class_hint(LlmErrorClass class)
{
	return classes[class].hint;
}

/*
 * Classification
 */

static const char *const quota_codes[] = {
	"insufficient_quota", "credit_balance_exhausted",
	"organization_spend_limit_exceeded", "billing_hard_limit_reached",
	"billing_not_active", "billing_error",
	"exceeded_current_quota_error", /* Moonshot */
	NULL
};

static const char *const context_codes[] = {
	"context_length_exceeded", "exceed_context_size_error",
	"request_too_large", NULL
};

static const char *const content_codes[] = {
	"content_filter", "content_policy_violation", "moderation_blocked",
	"responsibleaipolicyviolation", NULL
};

static const char *const model_codes[] = {
	"model_not_found", "model_decommissioned", "invalid_model",
	"notfounderror", "not_found_error", "deploymentnotfound", NULL
};

static const char *const auth_codes[] = {
	"invalid_api_key", "authentication_error", "permission_error",
	"authenticationerror", "permissiondeniederror", "unauthenticated",
	"permission_denied", "unauthorized", NULL
};

static const char *const context_phrases[] = {
	"exceed context limit",
	"maximum context length",
	"maximum context limit",
	"maximum model length",
	"string too long. expected a string with maximum length",
	"is longer than the model's context length",
	"input tokens exceed the configured limit",
	"`inputs` tokens + `max_new_tokens` must be",
	"exceeds the available context size",
	"exceeds the maximum number of tokens allowed",
	"reduce the length of the messages",
	"prompt is too long",
	"is too large to process. increase the physical batch size",	/* llama.cpp */
	NULL
};

static const char *const content_phrases[] = {
	"your request was rejected as a result of our safety system",
	"the response was filtered due to the prompt triggering",
	"the model produced invalid content",
	NULL
};

static const char *const unsupported_phrases[] = {
	"is not supported", "are not supported", "not supported with",
	"unsupported parameter", "unrecognized request argument",
	"unrecognized parameter", "unknown parameter", "unknown field", "unknown name",
	"unexpected keyword",
	"inputs are not permitted", "fields not permitted", "extra_forbidden",
	NULL
};

/* An all-ASCII lower-case copy; "" of NULL. */
static char *
lower(const char *text)
{
	size_t		len = text ? strnlen(text, MAX_SEARCHED) : 0;
	char	   *result = palloc(len + 1);

	for (size_t i = 0; i < len; i++)
		result[i] = pg_ascii_tolower((unsigned char) text[i]);
	result[len] = '\0';
	return result;
}

static bool
has_phrase(const char *lower_text, const char *const *phrases)
{
	for (; *phrases; phrases++)
	{
		if (strstr(lower_text, *phrases) != NULL)
			return true;
	}
	return false;
}

static bool
begins_with(const char *text, const char *beginning)
{
	return strncmp(text, beginning, strlen(beginning)) == 0;
}

/* Whether code, type or inner code is one of the list. */
static bool
has_code(const LlmErrorWords *w, const char *const *codes)
{
	for (; *codes; codes++)
	{
		if ((w->code && pg_strcasecmp(w->code, *codes) == 0) ||
			(w->type && pg_strcasecmp(w->type, *codes) == 0) ||
			(w->inner_code && pg_strcasecmp(w->inner_code, *codes) == 0))
			return true;
	}
	return false;
}

/* Whether code or type contains the word. */
static bool
mentions(const LlmErrorWords *w, const char *word)
{
	return strstr(lower(w->code), word) != NULL ||
		strstr(lower(w->type), word) != NULL;
}

/* Whether the first occurrence of a is followed by b. */
static bool
in_order(const char *text, const char *a, const char *b)
{
	const char *p = strstr(text, a);

	return p != NULL && strstr(p, b) != NULL;
}

static bool
is_context_length(const LlmErrorWords *w, const char *text)
{
	if (has_code(w, context_codes))
		return true;

	/* a limit on one string, which a larger window does not change */
	if (mentions(w, "string_above_max_length"))
		return false;
	return has_phrase(text, context_phrases) ||
		in_order(text, "current length is", "while limit is") ||	/* Cerebras */
		in_order(text, "maximum input length is", "tokens");
}

static bool
is_content_policy(const LlmErrorWords *w, const char *text)
{
	return has_code(w, content_codes) ||
		has_phrase(text, content_phrases) ||
		in_order(text, "invalid prompt", "usage policy") ||
		in_order(text, "requires moderation", "flagged");	/* OpenRouter */
}

static bool
is_unknown_model(const LlmErrorWords *w, const char *text)
{
	return has_code(w, model_codes) ||
		in_order(text, "model", "does not exist");
}

static bool
is_quota(const LlmErrorWords *w, const char *text)
{
	/* Anthropic says it with 400 and an ordinary type */
	return has_code(w, quota_codes) ||
		begins_with(text, "your credit balance is too low");
}

static bool
is_rate_limit(const LlmErrorWords *w, const char *text)
{
	return mentions(w, "rate_limit") || mentions(w, "ratelimit") ||
		mentions(w, "resource_exhausted") || mentions(w, "too_many_requests") ||
		strstr(text, "rate limit") != NULL ||
		strstr(text, "ratelimit") != NULL ||
		strstr(text, "rate-limit") != NULL ||
		strstr(text, "service tier capacity exceeded") != NULL; /* Mistral */
}

/* Statuses by which a provider says that the request itself is wrong. */
static LlmErrorClass
classify_bad_request(const LlmErrorWords *w, const char *text)
{
	if (is_context_length(w, text))
		return LLMGW_CONTEXT_LENGTH;
	if (is_content_policy(w, text))
		return LLMGW_CONTENT_POLICY;
	if (is_quota(w, text))
		return LLMGW_QUOTA;
	if (has_code(w, auth_codes))
		return LLMGW_AUTH;
	if (is_unknown_model(w, text))
		return LLMGW_NOT_FOUND;
	return LLMGW_INVALID_REQUEST;
}

/* An error without a status: only words. */
static LlmErrorClass
classify_words(const LlmErrorWords *w, const char *text)
{
	LlmErrorClass class;

	if (is_quota(w, text))
		return LLMGW_QUOTA;
	if (is_rate_limit(w, text))
		return LLMGW_RATE_LIMIT;
	if (mentions(w, "overloaded") || mentions(w, "slow_down") ||
		mentions(w, "unavailable"))
		return LLMGW_OVERLOADED;
	class = classify_bad_request(w, text);
	if (class != LLMGW_INVALID_REQUEST)
		return class;
	if (mentions(w, "timeout"))
		return LLMGW_TIMEOUT;
	if (mentions(w, "invalid_request") || mentions(w, "badrequest") ||
		mentions(w, "bad_request"))
		return LLMGW_INVALID_REQUEST;
	return LLMGW_SERVER_ERROR;
}

LlmErrorClass
llmgw_error_classify(int http_status, const LlmErrorWords *words)
{
	const char *text = lower(words->message);

	switch (http_status)
	{
		case 0:
			return classify_words(words, text);
		case 400:
		case 405:
		case 409:
		case 415:
		case 422:
			return classify_bad_request(words, text);
		case 403:				/* OpenRouter: flagged; Together: too long */
			if (is_context_length(words, text))
				return LLMGW_CONTEXT_LENGTH;
			if (is_content_policy(words, text))
				return LLMGW_CONTENT_POLICY;
			if (is_quota(words, text))
				return LLMGW_QUOTA;
			return LLMGW_AUTH;
		case 401:
			return LLMGW_AUTH;
		case 402:
			return LLMGW_QUOTA;
		case 404:
			return LLMGW_NOT_FOUND;
		case 408:
			return LLMGW_TIMEOUT;
		case 413:				/* Groq: for a minute; Anthropic: for ever */
			return mentions(words, "rate_limit") ? LLMGW_RATE_LIMIT :
				LLMGW_CONTEXT_LENGTH;
		case 429:

			/*
			 * Only the exact codes: Scaleway's "INSUFFICIENT QUOTA" is a
			 * limit per minute.
			 */
			return has_code(words, quota_codes) ? LLMGW_QUOTA :
				LLMGW_RATE_LIMIT;
		case 498:				/* Groq: flex capacity exceeded */
			return LLMGW_RATE_LIMIT;
		case 503:
		case 529:				/* Anthropic: overloaded */
			return LLMGW_OVERLOADED;
		case 500:				/* llama.cpp says so of what it is asked, too */
			if (is_context_length(words, text))
				return LLMGW_CONTEXT_LENGTH;
			return begins_with(text, "image input is not supported") ||
				begins_with(text, "audio input is not supported") ?
				LLMGW_INVALID_REQUEST : LLMGW_SERVER_ERROR;
		case 501:				/* it cannot do that, now or later */
			return LLMGW_INVALID_REQUEST;
		default:
			/* a redirect, which nobody follows: the URL is not the right one */
			if (http_status >= 300 && http_status < 400)
				return LLMGW_NOT_FOUND;
			return http_status >= 400 && http_status < 500 ?
				LLMGW_INVALID_REQUEST : LLMGW_SERVER_ERROR;
	}
}

bool
llmgw_error_unsupported(const char *message)
{
	return has_phrase(lower(message), unsupported_phrases);
}

/*
 * Text
 */

/*
 * Characters that are no text but instructions to a terminal: C1 controls,
 * line separators, and those that change the direction of writing.
 */
static bool
is_unicode_control(const unsigned char *p, int len)
{
	if (len == 2)
		return p[0] == 0xC2 && p[1] < 0xA0;
	if (len == 3 && p[0] == 0xE2)
		return (p[1] == 0x80 && p[2] >= 0xA8 && p[2] <= 0xAE) ||
			(p[1] == 0x81 && p[2] >= 0xA6 && p[2] <= 0xA9);
	return false;
}

char *
llmgw_clean_text(const char *text, size_t max_bytes)
{
	static const char ellipsis[] = "...";
	int			encoding = GetDatabaseEncoding();
	bool		unicode = encoding == PG_UTF8 || encoding == PG_SQL_ASCII;
	const unsigned char *p = (const unsigned char *) text;
	char	   *result = palloc(Min(strlen(text), max_bytes) + 1);
	size_t		len = 0;
	size_t		keep = 0;		/* the longest prefix that an ellipsis fits to */
	bool		space = false;

	while (*p != '\0')
	{
		int			n = 1;
		const unsigned char *character = p;
		bool		blank;

		if (IS_HIGHBIT_SET(*p))
		{
			int			whole = pg_encoding_mblen(unicode ? PG_UTF8 : encoding,
												  (const char *) p);

			n = (int) strnlen((const char *) p, whole);
			if (unicode && (n < whole || !pg_utf8_islegal(p, n)))
			{
				character = (const unsigned char *) "?";
				n = 1;
			}
			blank = unicode && is_unicode_control(p, n);
		}
		else
			blank = *p <= ' ' || *p == 0x7F;
		p += n;
		if (blank)
		{
			space = len > 0;
			continue;
		}

		if (len + space + n > max_bytes)
		{
			if (max_bytes >= sizeof(ellipsis) - 1)
			{
				memcpy(result + keep, ellipsis, sizeof(ellipsis) - 1);
				len = keep + sizeof(ellipsis) - 1;
			}
			break;
		}
		if (space)
			result[len++] = ' ';
		space = false;
		memcpy(result + len, character, n);
		len += n;
		if (len + sizeof(ellipsis) - 1 <= max_bytes)
			keep = len;
	}
	result[len] = '\0';
	return result;
}

void
llmgw_mask_key(char *buf, size_t len, const char *key)
{
	size_t		key_len = key ? strlen(key) : 0;
	char	   *end = buf + len;
	char	   *found;

	if (len == 0 || key_len < LLMGW_MIN_MASKED_KEY)
		return;
	while ((found = memmem(buf, end - buf, key, key_len)) != NULL)
	{
		memset(found, '*', key_len);
		buf = found + key_len;
	}
}
