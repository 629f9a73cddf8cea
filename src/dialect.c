/*-------------------------------------------------------------------------
 *
 * dialect.c
 *	  The dialects there are, and what they have in common.
 *
 * Common are the parameters of a call, the way a user's JSON is checked, and
 * the headers in which providers state their limits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "utils/builtins.h"

#include "dialect.h"
#include "json.h"

static const LlmDialect *const dialects[] = {
	&llmgw_dialect_openai,
	&llmgw_dialect_mock
};

/* Keys of params; their names are OpenAI's, and vLLM's for top_k and min_p. */
static const LlmOption params[] = {
	{"extra", LLMGW_OPTION_EXTRA},
	{"frequency_penalty", LLMGW_OPTION_NUMBER},
	{"min_p", LLMGW_OPTION_NUMBER},
	{"presence_penalty", LLMGW_OPTION_NUMBER},
	{"reasoning_effort", LLMGW_OPTION_TEXT},
	{"seed", LLMGW_OPTION_INT, PG_INT64_MIN, PG_INT64_MAX},
	{"stop", LLMGW_OPTION_STOP},
	{"top_k", LLMGW_OPTION_INT, -1, PG_INT32_MAX},
	{"top_p", LLMGW_OPTION_NUMBER},
	{"user", LLMGW_OPTION_TEXT},
	{"verbosity", LLMGW_OPTION_TEXT}
};

#define MAX_STOPS			16
#define MAX_USER_HEADERS	24	/* the rest of LLMGW_MAX_HEADERS is ours */

const LlmDialect *
llmgw_dialect_find(const char *kind)
{
	for (int i = 0; i < lengthof(dialects); i++)
	{
		if (strcmp(dialects[i]->kind, kind) == 0)
			return dialects[i];
	}
	return NULL;
}

const char *
llmgw_dialect_kinds(void)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < lengthof(dialects); i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", dialects[i]->kind);
	return buf.data;
}

void
llmgw_answer_init(LlmAnswer *answer, const char *api_key)
{
	memset(answer, 0, sizeof(*answer));
	answer->api_key = api_key;
	initStringInfo(&answer->text);
}

void
llmgw_answer_fail(LlmAnswer *answer, LlmErrorClass class, const char *message)
{
	if (answer->error != LLMGW_OK)
		return;
	answer->error = class;
	answer->message = MemoryContextStrdup(llmgw_answer_context(answer), message);
}

char *
llmgw_answer_clean(const LlmAnswer *answer, const char *text, size_t max_bytes)
{
	char	   *copy = pstrdup(text);

	/* before the text is cut: half a key is a leak too */
	llmgw_mask_key(copy, strlen(copy), answer->api_key);
	return llmgw_clean_text(copy, max_bytes);
}

Jsonb *
llmgw_answer_tool_calls(const LlmAnswer *answer)
{
	StringInfoData buf;

	if (answer->ntool_calls == 0)
		return NULL;
	initStringInfo(&buf);
	appendStringInfoChar(&buf, '[');
	for (int i = 0; i < answer->ntool_calls; i++)
	{
		const LlmToolCall *tool = &answer->tool_calls[i];

		appendStringInfoString(&buf, i > 0 ? ",{" : "{");
		if (tool->id != NULL)
			llmgw_json_put_text(&buf, "id", tool->id);
		llmgw_json_put_text(&buf, "type", "function");
		llmgw_json_key(&buf, "function");
		appendStringInfoChar(&buf, '{');
		llmgw_json_put_text(&buf, "name", tool->name ? tool->name : "");
		llmgw_json_put_text(&buf, "arguments", tool->arguments.data);
		appendStringInfoString(&buf, "}}");
	}
	appendStringInfoChar(&buf, ']');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
											  CStringGetDatum(buf.data)));
}

/*
 * Checking what users write
 */

/*
 * What the body's top level may not be given by "extra": what decides whether
 * we understand the answer, and how much it may cost.
 */
static const char *
extra_problem(const JsonbValue *value)
{
	static const char *const reserved[] = {
		"model", "messages", "stream", "stream_options", "n",
		"max_tokens", "max_completion_tokens"
	};
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;
	JsonbValue	v;

	if (c == NULL || !JsonContainerIsObject(c))
		return "must be an object";
	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (getKeyJsonValueFromContainer(c, reserved[i], strlen(reserved[i]),
										 &v) != NULL)
			return psprintf("may not set \"%s\"", reserved[i]);
	}
	return NULL;
}

/* RFC 9110, section 5.6.2: the characters of a header's name */
static bool
is_header_name(const char *name)
{
	if (*name == '\0')
		return false;
	for (; *name; name++)
	{
		if (IS_HIGHBIT_SET(*name) ||
			(!isalnum((unsigned char) *name) &&
			 strchr("!#$%&'*+-.^_`|~", *name) == NULL))
			return false;
	}
	return true;
}

/*
 * Headers that carry keys (an option is no place for them: it is shown and
 * dumped), that steer the connection, or that the dialects set themselves.
 */
static bool
is_reserved_header(const char *name)
{
	static const char *const reserved[] = {
		"authorization", "api-key", "x-api-key", "x-goog-api-key", "cookie",
		"host", "content-length", "content-type", "content-encoding",
		"transfer-encoding", "accept", "accept-encoding", "connection",
		"expect", "te", "trailer", "upgrade"
	};

	for (int i = 0; i < lengthof(reserved); i++)
	{
		if (pg_strcasecmp(name, reserved[i]) == 0)
			return true;
	}
	return pg_strncasecmp(name, "proxy-", 6) == 0;
}

static const char *
headers_problem(const JsonbValue *value)
{
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;
	JsonbIterator *it = NULL;
	JsonbValue	v;
	char	   *name;

	if (c == NULL || !JsonContainerIsObject(c))
		return "must be an object";
	if (JsonContainerSize(c) > MAX_USER_HEADERS)
		return psprintf("may have at most %d headers", MAX_USER_HEADERS);
	while (llmgw_json_next_member(c, &it, &name, &v))
	{
		if (!is_header_name(name))
			return psprintf("has a header with an invalid name");
		if (is_reserved_header(name))
			return psprintf("may not set \"%s\"", name);
		if (v.type != jbvString)
			return psprintf("must have a string for \"%s\"", name);
		for (int i = 0; i < v.val.string.len; i++)
		{
			unsigned char ch = v.val.string.val[i];

			if (ch < ' ' || ch >= 0x7F)
				return psprintf("has a value for \"%s\" that is not printable ASCII",
								name);
		}
	}
	return NULL;
}

static bool
is_stop(const JsonbValue *value)
{
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;

	if (value->type == jbvString)
		return true;
	if (c == NULL || !JsonContainerIsArray(c) ||
		JsonContainerSize(c) > MAX_STOPS)
		return false;
	for (uint32 i = 0; i < JsonContainerSize(c); i++)
	{
		if (getIthJsonbValueFromContainer(c, i)->type != jbvString)
			return false;
	}
	return true;
}

/* A phrase that follows the key's name; NULL when the value is fine. */
static const char *
option_problem(const LlmOption *option, const JsonbValue *value)
{
	int64		i;

	if (value->type == jbvNull)
		return NULL;
	switch (option->type)
	{
		case LLMGW_OPTION_BOOL:
			return value->type == jbvBool ? NULL : "must be true or false";
		case LLMGW_OPTION_INT:
			if (!llmgw_json_value_int(value, &i) ||
				strchr(llmgw_json_value_text(value), '.') != NULL)
				return "must be an integer";
			if (i < option->min || i > option->max)
				return psprintf("must be from " INT64_FORMAT " to " INT64_FORMAT,
								option->min, option->max);
			return NULL;
		case LLMGW_OPTION_NUMBER:
			return value->type == jbvNumeric ? NULL : "must be a number";
		case LLMGW_OPTION_TEXT:
			return value->type == jbvString ? NULL : "must be a string";
		case LLMGW_OPTION_STOP:
			return is_stop(value) ? NULL :
				psprintf("must be a string or an array of up to %d strings",
						 MAX_STOPS);
		case LLMGW_OPTION_EXTRA:
			return extra_problem(value);
		case LLMGW_OPTION_HEADERS:
			return headers_problem(value);
	}
	return NULL;
}

static const LlmOption *
find_option(const LlmOption *known, int n, const char *key)
{
	for (int i = 0; i < n; i++)
	{
		if (strcmp(known[i].name, key) == 0)
			return &known[i];
	}
	return NULL;
}

static char *
option_names(const LlmOption *known, int n)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n; i++)
		appendStringInfo(&buf, "%s%s", i > 0 ? ", " : "", known[i].name);
	return buf.data;
}

char *
llmgw_options_check(Jsonb *options, const LlmOption *known, int n)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	if (options == NULL)
		return NULL;
	if (!JB_ROOT_IS_OBJECT(options))
		return pstrdup("options must be a JSON object");
	while (llmgw_json_next_member(&options->root, &it, &key, &value))
	{
		const LlmOption *option = find_option(known, n, key);
		const char *problem;

		if (option == NULL)
			return psprintf("unknown key \"%s\" in options; known are: %s",
							key, option_names(known, n));
		problem = option_problem(option, &value);
		if (problem != NULL)
			return psprintf("options key \"%s\" %s", key, problem);
	}
	return NULL;
}

bool
llmgw_param_known(const char *key, const JsonbValue *value, const char **problem)
{
	const LlmOption *param = find_option(params, lengthof(params), key);

	*problem = NULL;
	if (param == NULL)
		return false;
	*problem = option_problem(param, value);
	return true;
}

const char *
llmgw_param_names(void)
{
	return option_names(params, lengthof(params));
}

/*
 * Limits
 */

#define MS_PER_DAY		(INT64CONST(24) * 60 * 60 * 1000)

/* How much of an error body is searched for a phrase. */
#define MAX_SEARCHED	8192

/*
 * Rounds up, so that waiting that long is enough, but not for what is only the
 * error of a binary fraction; nobody waits for a day.
 */
static int64
clamp_ms(double ms)
{
	return ms >= (double) MS_PER_DAY ? MS_PER_DAY : (int64) ceil(ms - 1e-6);
}

/* Reads digits, maybe with a fraction; no sign, exponent, NaN or infinity. */
static bool
scan_decimal(const char **p, double *value)
{
	const char *s = *p;
	double		scale = 1;

	if (!isdigit((unsigned char) *s))
		return false;
	*value = 0;
	for (; isdigit((unsigned char) *s); s++)
		*value = *value * 10 + (*s - '0');
	if (*s == '.' && isdigit((unsigned char) s[1]))
	{
		for (s++; isdigit((unsigned char) *s); s++)
			*value += (*s - '0') * (scale /= 10);
	}
	*p = s;
	return true;
}

/* Reads a unit of time; 0 when there is none. */
static double
scan_unit(const char **p)
{
	static const struct
	{
		const char *name;
		double		ms;
	}			units[] = {
		{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000},
		{"d", 86400000}, {"us", 1e-3}, {"ns", 1e-6},
		{"\xC2\xB5s", 1e-3}, {"\xCE\xBCs", 1e-3},	/* the two micro signs */
		{"millisecond", 1}, {"milliseconds", 1},
		{"sec", 1000}, {"secs", 1000}, {"second", 1000}, {"seconds", 1000},
		{"min", 60000}, {"mins", 60000}, {"minute", 60000}, {"minutes", 60000},
		{"hour", 3600000}, {"hours", 3600000}, {"day", 86400000},
		{"days", 86400000}
	};
	const char *s = *p + (**p == ' ');
	size_t		len = 0;

	while (isalpha((unsigned char) s[len]) || IS_HIGHBIT_SET(s[len]))
		len++;
	for (int i = 0; i < lengthof(units); i++)
	{
		if (strlen(units[i].name) == len &&
			pg_strncasecmp(units[i].name, s, len) == 0)
		{
			*p = s + len;
			return units[i].ms;
		}
	}
	return 0;
}

/*
 * Reads a duration as Go writes it ("6m0s", "120ms", "1h2m3.5s"), or a number
 * and a word ("20 seconds").  Leaves *p behind it.
 */
static bool
scan_duration(const char **p, double *ms)
{
	const char *s = *p;
	double		value;
	bool		found = false;

	*ms = 0;
	while (scan_decimal(&s, &value))
	{
		double		unit = scan_unit(&s);

		if (unit == 0)
			break;
		*ms += value * unit;
		*p = s;
		found = true;
	}
	return found;
}

/* A whole string that is a duration, or a number of seconds; -1: neither. */
static int64
duration_ms(const char *str)
{
	const char *p = str;
	double		value;

	if (scan_duration(&p, &value) && *p == '\0')
		return clamp_ms(value);
	p = str;
	if (scan_decimal(&p, &value) && *p == '\0')
		return clamp_ms(value * 1000);
	return -1;
}

static int64
header_ms(const char *headers, const char *name)
{
	char	   *text = llmgw_http_header(headers, name);
	const char *p = text;
	double		value;

	if (text == NULL || !scan_decimal(&p, &value) || *p != '\0')
		return -1;
	return clamp_ms(value);
}

static int64
header_duration(const char *headers, const char *name)
{
	char	   *text = llmgw_http_header(headers, name);

	return text ? duration_ms(text) : -1;
}

static int64
header_count(const char *headers, const char *name)
{
	char	   *text = llmgw_http_header(headers, name);
	const char *p = text;
	double		value;

	if (text == NULL || !scan_decimal(&p, &value) || *p != '\0')
		return -1;
	return value >= (double) PG_INT32_MAX ? PG_INT32_MAX : (int64) value;
}

/* RFC 9110, section 10.2.3: seconds (some send a fraction) or a date */
static int64
header_retry_after(const char *headers, int64 wall_clock)
{
	char	   *text = llmgw_http_header(headers, "retry-after");
	time_t		date;

	if (text == NULL)
		return -1;
	if (strchr(text, ':') == NULL)
		return duration_ms(text);
	date = curl_getdate(text, NULL);
	if (date == (time_t) -1)
		return -1;
	return (int64) date <= wall_clock ? 0 :
		clamp_ms(((double) date - (double) wall_clock) * 1000);
}

/* Google: error.details[] has a google.rpc.RetryInfo with retryDelay "39s" */
static int64
body_retry_info(const char *body, size_t len)
{
	char	   *reason;
	Jsonb	   *doc = llmgw_json_parse(body, len, &reason);
	JsonbValue	details;

	if (doc == NULL ||
		!(llmgw_json_get(&doc->root, &details, "error", "details", NULL) ||
		  llmgw_json_get(&doc->root, &details, "[0]", "error", "details", NULL)) ||
		details.type != jbvBinary ||
		!JsonContainerIsArray(details.val.binary.data))
		return -1;
	for (uint32 i = 0; i < JsonContainerSize(details.val.binary.data); i++)
	{
		JsonbValue *v = getIthJsonbValueFromContainer(details.val.binary.data, i);
		char	   *delay;

		if (v->type != jbvBinary)
			continue;
		delay = llmgw_json_get_text(v->val.binary.data, "retryDelay", NULL);
		if (delay != NULL)
			return duration_ms(delay);
	}
	return -1;
}

/* OpenAI, Groq: "Please try again in 5.289s"; Azure: "retry after 20 seconds" */
static int64
body_retry_phrase(const char *body, size_t len)
{
	static const char *const phrases[] = {
		"try again in ", "retry in ", "retry after "
	};
	char	   *text = pnstrdup(body, Min(len, MAX_SEARCHED));

	for (char *c = text; *c; c++)
		*c = pg_ascii_tolower((unsigned char) *c);
	for (int i = 0; i < lengthof(phrases); i++)
	{
		const char *p = strstr(text, phrases[i]);
		double		ms;

		if (p == NULL)
			continue;
		p += strlen(phrases[i]);
		if (scan_duration(&p, &ms))
			return clamp_ms(ms);
	}
	return -1;
}

void
llmgw_read_limits(const char *headers, const char *body, size_t len,
				  int64 wall_clock, LlmRateInfo *info)
{
	info->retry_after_ms = header_ms(headers, "retry-after-ms");
	if (info->retry_after_ms < 0)
		info->retry_after_ms = header_ms(headers, "x-ms-retry-after-ms");
	if (info->retry_after_ms < 0)
		info->retry_after_ms = header_retry_after(headers, wall_clock);
	if (info->retry_after_ms < 0 && body != NULL)
		info->retry_after_ms = body_retry_info(body, len);
	if (info->retry_after_ms < 0 && body != NULL)
		info->retry_after_ms = body_retry_phrase(body, len);

	info->remaining_requests = header_count(headers, "x-ratelimit-remaining-requests");
	info->remaining_tokens = header_count(headers, "x-ratelimit-remaining-tokens");
	info->reset_requests_ms = header_duration(headers, "x-ratelimit-reset-requests");
	info->reset_tokens_ms = header_duration(headers, "x-ratelimit-reset-tokens");
}
