/*-------------------------------------------------------------------------
 *
 * dialect_limits.c
 *	  The headers and phrases in which providers state their limits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "utils/datetime.h"

#include "dialect.h"
#include "json.h"

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

/* What time the provider says that it is; ours, where it does not. */
static int64
provider_clock(const char *headers, int64 wall_clock)
{
	char	   *text = llmgw_http_header(headers, "date");
	time_t		date = text !=NULL ? curl_getdate(text, NULL) : (time_t) -1;

	return date == (time_t) -1 ? wall_clock : (int64) date;
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

/*
 * Anthropic's resets are RFC 3339 timestamps, "2025-08-21T12:34:56Z", which
 * curl_getdate() does not read.
 */
static bool
scan_digits(const char **p, int n, int max, int *value)
{
	*value = 0;
	for (int i = 0; i < n; i++, (*p)++)
	{
		if (!isdigit((unsigned char) **p))
			return false;
		*value = *value * 10 + (**p - '0');
	}
	return *value <= max;
}

static bool
scan_char(const char **p, const char *chars)
{
	if (**p == '\0' || strchr(chars, **p) == NULL)
		return false;
	(*p)++;
	return true;
}

static int64
header_reset(const char *headers, const char *name, int64 wall_clock)
{
	const char *p = llmgw_http_header(headers, name);
	int			year,
				month,
				day,
				hour,
				minute,
				second;
	double		seconds;
	double		fraction = 0;

	if (p == NULL ||
		!scan_digits(&p, 4, 9999, &year) || !scan_char(&p, "-") ||
		!scan_digits(&p, 2, 12, &month) || !scan_char(&p, "-") ||
		!scan_digits(&p, 2, 31, &day) || !scan_char(&p, "Tt ") ||
		!scan_digits(&p, 2, 23, &hour) || !scan_char(&p, ":") ||
		!scan_digits(&p, 2, 59, &minute) || !scan_char(&p, ":") ||
		!scan_digits(&p, 2, 60, &second) || month < 1 || day < 1)
		return -1;
	seconds = ((double) (date2j(year, month, day) - UNIX_EPOCH_JDATE)) * SECS_PER_DAY +
		hour * 3600 + minute * 60 + second;
	if (scan_char(&p, "."))
	{
		double		scale = 1;

		if (!isdigit((unsigned char) *p))
			return -1;
		for (; isdigit((unsigned char) *p); p++)
			fraction += (*p - '0') * (scale /= 10);
	}
	if (*p == '+' || *p == '-')
	{
		int			sign = *p++ == '-' ? 1 : -1;

		if (!scan_digits(&p, 2, 23, &hour) || !scan_char(&p, ":") ||
			!scan_digits(&p, 2, 59, &minute))
			return -1;
		seconds += sign * (hour * 3600 + minute * 60);
	}
	else if (!scan_char(&p, "Zz"))
		return -1;
	seconds += fraction - (double) wall_clock;
	return *p != '\0' ? -1 : seconds <= 0 ? 0 : clamp_ms(seconds * 1000);
}

/*
 * The limit on tokens is the one of input and output that is nearest to its
 * end (Anthropic, rate limits).  Where only those two are told, the input's is
 * what a request can be compared with.
 */
static void
read_anthropic_limits(const char *headers, int64 wall_clock, LlmRateInfo *info)
{
	info->remaining_requests = header_count(headers, "anthropic-ratelimit-requests-remaining");
	info->reset_requests_ms = header_reset(headers, "anthropic-ratelimit-requests-reset",
										   wall_clock);
	info->remaining_tokens = header_count(headers, "anthropic-ratelimit-tokens-remaining");
	info->reset_tokens_ms = header_reset(headers, "anthropic-ratelimit-tokens-reset",
										 wall_clock);
	if (info->remaining_tokens < 0)
	{
		info->remaining_tokens = header_count(headers, "anthropic-ratelimit-input-tokens-remaining");
		info->reset_tokens_ms = header_reset(headers, "anthropic-ratelimit-input-tokens-reset",
											 wall_clock);
	}

	/* when nothing else says when to come again: a limit that is used up does */
	if (info->retry_after_ms < 0)
	{
		if (info->remaining_requests == 0)
			info->retry_after_ms = info->reset_requests_ms;
		if (info->remaining_tokens == 0)
			info->retry_after_ms = Max(info->retry_after_ms, info->reset_tokens_ms);
	}
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
	/* its moments are by its own clock */
	wall_clock = provider_clock(headers, wall_clock);

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
	if (info->remaining_requests < 0 && info->remaining_tokens < 0)
		read_anthropic_limits(headers, wall_clock, info);
}
