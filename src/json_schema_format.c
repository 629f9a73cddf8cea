/*-------------------------------------------------------------------------
 *
 * json_schema_format.c
 *	  The formats of JSON Schema (Validation 2020-12, 7.3) that are enforced.
 *
 * Each is read by the grammar of the RFC that the specification names for it.
 * PostgreSQL's input functions would not do: they raise errors, depend on
 * settings, and take much that these grammars do not.
 *
 * Pure functions of bytes: no allocation, no locale, no errors.  A text is not
 * terminated; each reader moves *p and never looks at or beyond end.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "json_schema_private.h"

/* the longest parts of names and addresses (RFC 1035, 2.3.4; RFC 5321, 4.5.3.1) */
#define MAX_HOST_NAME	253
#define MAX_HOST_LABEL	63
#define MAX_LOCAL_PART	64

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool
is_letter(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool
is_hex(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool
is_one_of(char c, const char *set)
{
	return c != '\0' && strchr(set, c) != NULL;
}

/* Takes the character, where it comes next. */
static bool
take(const char **p, const char *end, char c)
{
	if (*p >= end || **p != c)
		return false;
	(*p)++;
	return true;
}

/* Takes exactly n digits. */
static bool
take_number(const char **p, const char *end, int n, int *value)
{
	*value = 0;
	if (end - *p < n)
		return false;
	for (; n > 0; n--, (*p)++)
	{
		if (!is_digit(**p))
			return false;
		*value = *value * 10 + (**p - '0');
	}
	return true;
}

/* Takes one digit or more; whether there was one. */
static bool
take_digits(const char **p, const char *end)
{
	const char *first = *p;

	while (*p < end && is_digit(**p))
		(*p)++;
	return *p > first;
}

/*
 * Times (RFC 3339)
 */

/* full-date */
static bool
take_date(const char **p, const char *end)
{
	static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	int			year;
	int			month;
	int			day;
	bool		leap;

	if (!take_number(p, end, 4, &year) || !take(p, end, '-') ||
		!take_number(p, end, 2, &month) || !take(p, end, '-') ||
		!take_number(p, end, 2, &day))
		return false;
	leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
	return month >= 1 && month <= 12 && day >= 1 &&
		day <= days[month - 1] + (month == 2 && leap);
}

/* full-time; a leap second is one at the end of a day in UTC (5.7) */
static bool
take_time(const char **p, const char *end)
{
	int			hour;
	int			minute;
	int			second;
	int			offset = 0;

	if (!take_number(p, end, 2, &hour) || !take(p, end, ':') ||
		!take_number(p, end, 2, &minute) || !take(p, end, ':') ||
		!take_number(p, end, 2, &second))
		return false;
	if (take(p, end, '.') && !take_digits(p, end))
		return false;
	if (hour > 23 || minute > 59 || second > 60)
		return false;

	if (!take(p, end, 'Z') && !take(p, end, 'z'))
	{
		int			hours;
		int			minutes;
		bool		east = take(p, end, '+');

		if ((!east && !take(p, end, '-')) ||
			!take_number(p, end, 2, &hours) || !take(p, end, ':') ||
			!take_number(p, end, 2, &minutes) ||
			hours > 23 || minutes > 59)
			return false;
		offset = (hours * 60 + minutes) * (east ? 1 : -1);
	}
	return second < 60 ||
		(hour * 60 + minute - offset + 2 * 24 * 60) % (24 * 60) == 24 * 60 - 1;
}

static bool
fits_date(const char *s, size_t len)
{
	const char *end = s + len;

	return take_date(&s, end) && s == end;
}

static bool
fits_time(const char *s, size_t len)
{
	const char *end = s + len;

	return take_time(&s, end) && s == end;
}

static bool
fits_date_time(const char *s, size_t len)
{
	const char *end = s + len;

	return take_date(&s, end) && (take(&s, end, 'T') || take(&s, end, 't')) &&
		take_time(&s, end) && s == end;
}

/*
 * Takes numbers with units, each unit the next in the list: "1Y2M" of "YMD".
 * The grammar lets none be left out between the first and the last.
 */
static bool
take_units(const char **p, const char *end, const char *units)
{
	const char *expected = NULL;

	while (*p < end && is_digit(**p))
	{
		const char *unit;

		(void) take_digits(p, end);
		if (*p >= end || **p == '\0')
			return false;
		unit = strchr(units, **p);
		if (unit == NULL || (expected != NULL && unit != expected))
			return false;
		expected = unit + 1;
		(*p)++;
	}
	return expected != NULL;
}

/* duration (appendix A) */
static bool
fits_duration(const char *s, size_t len)
{
	const char *end = s + len;

	if (!take(&s, end, 'P') || s == end)
		return false;
	if (end[-1] == 'W')
		return take_units(&s, end, "W") && s == end;
	if (*s != 'T' && !take_units(&s, end, "YMD"))
		return false;
	if (take(&s, end, 'T') && !take_units(&s, end, "HMS"))
		return false;
	return s == end;
}

/*
 * Hosts
 */

/* dotted-quad (RFC 2673, 3.2): no leading zeros, which some read as octal */
static bool
fits_ipv4(const char *s, size_t len)
{
	const char *end = s + len;

	for (int i = 0; i < 4; i++)
	{
		const char *first;
		int			value = 0;

		if (i > 0 && !take(&s, end, '.'))
			return false;
		first = s;
		for (; s < end && s - first < 3 && is_digit(*s); s++)
			value = value * 10 + (*s - '0');
		if (s == first || value > 255 || (*first == '0' && s - first > 1))
			return false;
	}
	return s == end;
}

/* RFC 4291, 2.2: eight groups, "::" for one or more of zeros, an IPv4 last */
static bool
fits_ipv6(const char *s, size_t len)
{
	const char *end = s + len;
	int			groups = 0;
	bool		shortened = false;

	if (end - s >= 2 && s[0] == ':' && s[1] == ':')
	{
		shortened = true;
		s += 2;
	}
	while (s < end)
	{
		const char *first = s;

		while (s < end && s - first < 4 && is_hex(*s))
			s++;
		if (s == first)
			return false;
		if (s < end && *s == '.')
		{
			if (!fits_ipv4(first, end - first))
				return false;
			groups += 2;
			s = end;
			break;
		}
		groups++;
		if (s == end)
			break;
		if (!take(&s, end, ':') || s == end)
			return false;
		if (*s == ':')
		{
			if (shortened)
				return false;
			shortened = true;
			s++;
		}
	}
	return shortened ? groups <= 7 : groups == 8;
}

/*
 * RFC 1123, 2.1.  Whether the letters of a label "xn--..." stand for a name that
 * IDNA permits takes Unicode's tables and is not looked at.
 */
static bool
fits_hostname(const char *s, size_t len)
{
	const char *end = s + len;

	if (len > MAX_HOST_NAME)
		return false;
	for (;;)
	{
		const char *first = s;

		while (s < end && (is_letter(*s) || is_digit(*s) || *s == '-'))
			s++;
		if (s == first || s - first > MAX_HOST_LABEL ||
			*first == '-' || s[-1] == '-')
			return false;
		if (s == end)
			return true;
		if (!take(&s, end, '.'))
			return false;
	}
}

/* Mailbox (RFC 5321, 4.1.2) */
static bool
fits_email(const char *s, size_t len)
{
	const char *end = s + len;
	const char *first = s;

	if (take(&s, end, '"'))
	{
		while (s < end && *s != '"')
		{
			if (*s == '\\' && ++s == end)
				return false;
			if (*s < ' ' || *s > '~')
				return false;
			s++;
		}
		if (!take(&s, end, '"'))
			return false;
	}
	else
	{
		do
		{
			const char *atom = s;

			while (s < end && (is_letter(*s) || is_digit(*s) ||
							   is_one_of(*s, "!#$%&'*+-/=?^_`{|}~")))
				s++;
			if (s == atom)
				return false;
		} while (take(&s, end, '.'));
	}
	if (s - first > MAX_LOCAL_PART || !take(&s, end, '@'))
		return false;

	if (!take(&s, end, '['))
		return fits_hostname(s, end - s);
	if (s == end || *--end != ']')
		return false;
	if (end - s > 5 && memcmp(s, "IPv6:", 5) == 0)
		return fits_ipv6(s + 5, end - s - 5);
	return fits_ipv4(s, end - s);
}

/*
 * URIs (RFC 3986, appendix A)
 */

/*
 * Takes unreserved characters, sub-delims, percent-encoded ones and those of
 * the set.  False for a broken percent sign; another character just ends it.
 */
static bool
take_uri_part(const char **p, const char *end, const char *also)
{
	while (*p < end)
	{
		if (**p == '%')
		{
			if (end - *p < 3 || !is_hex((*p)[1]) || !is_hex((*p)[2]))
				return false;
			*p += 3;
		}
		else if (is_letter(**p) || is_digit(**p) ||
				 is_one_of(**p, "-._~!$&'()*+,;=") || is_one_of(**p, also))
			(*p)++;
		else
			break;
	}
	return true;
}

/* What is between the brackets: an IPv6 address or "v1.something". */
static bool
fits_ip_literal(const char *s, const char *end)
{
	const char *digits;

	if (s < end && *s != 'v' && *s != 'V')
		return fits_ipv6(s, end - s);
	if (s == end)
		return false;
	digits = ++s;
	while (s < end && is_hex(*s))
		s++;
	if (s == digits || !take(&s, end, '.') || s == end)
		return false;
	for (; s < end; s++)
		if (!is_letter(*s) && !is_digit(*s) &&
			!is_one_of(*s, "-._~!$&'()*+,;=:"))
			return false;
	return true;
}

/* [ userinfo "@" ] host [ ":" port ], which goes on to the next of "/?#" */
static bool
fits_authority(const char *s, const char *end)
{
	const char *at = memchr(s, '@', end - s);

	if (at != NULL)
	{
		if (!take_uri_part(&s, at, ":") || s != at)
			return false;
		s++;
	}
	if (take(&s, end, '['))
	{
		const char *close = memchr(s, ']', end - s);

		if (close == NULL || !fits_ip_literal(s, close))
			return false;
		s = close + 1;
	}
	else if (!take_uri_part(&s, end, ""))
		return false;
	if (take(&s, end, ':'))
		(void) take_digits(&s, end);
	return s == end;
}

/* What follows the scheme, or all of a relative reference. */
static bool
fits_hier_part(const char *s, const char *end)
{
	if (end - s >= 2 && s[0] == '/' && s[1] == '/')
	{
		const char *authority = s + 2;

		for (s = authority; s < end && !is_one_of(*s, "/?#"); s++)
			 /* to its end */ ;
		if (!fits_authority(authority, s))
			return false;
	}
	if (!take_uri_part(&s, end, ":@/"))
		return false;
	if (take(&s, end, '?') && !take_uri_part(&s, end, ":@/?"))
		return false;
	if (take(&s, end, '#') && !take_uri_part(&s, end, ":@/?"))
		return false;
	return s == end;
}

/* The length of the scheme with its colon; 0 when there is none. */
static size_t
scheme_length(const char *s, const char *end)
{
	const char *first = s;

	if (s == end || !is_letter(*s))
		return 0;
	while (s < end && (is_letter(*s) || is_digit(*s) || is_one_of(*s, "+-.")))
		s++;
	return s < end && *s == ':' ? s + 1 - first : 0;
}

static bool
fits_uri(const char *s, size_t len)
{
	size_t		scheme = scheme_length(s, s + len);

	return scheme > 0 && fits_hier_part(s + scheme, s + len);
}

static bool
fits_uri_reference(const char *s, size_t len)
{
	const char *c;

	if (fits_uri(s, len))
		return true;

	/* without a scheme the first segment has no colon (path-noscheme) */
	for (c = s; c < s + len && !is_one_of(*c, "/?#"); c++)
		if (*c == ':')
			return false;
	return fits_hier_part(s, s + len);
}

/* RFC 4122, 3 */
static bool
fits_uuid(const char *s, size_t len)
{
	if (len != 36)
		return false;
	for (int i = 0; i < 36; i++)
	{
		bool		dash = i == 8 || i == 13 || i == 18 || i == 23;

		if (dash ? s[i] != '-' : !is_hex(s[i]))
			return false;
	}
	return true;
}

static const LlmFormat formats[] = {
	{"date", "a date, YYYY-MM-DD (RFC 3339)", fits_date},
	{"date-time", "a date and time with an offset, YYYY-MM-DDThh:mm:ssZ (RFC 3339)", fits_date_time},
	{"duration", "a duration like P1DT2H (RFC 3339)", fits_duration},
	{"email", "an e-mail address (RFC 5321)", fits_email},
	{"hostname", "a host name (RFC 1123)", fits_hostname},
	{"ipv4", "an IPv4 address", fits_ipv4},
	{"ipv6", "an IPv6 address", fits_ipv6},
	{"time", "a time with an offset, hh:mm:ssZ (RFC 3339)", fits_time},
	{"uri", "a URI with its scheme (RFC 3986)", fits_uri},
	{"uri-reference", "a URI or a relative reference (RFC 3986)", fits_uri_reference},
	{"uuid", "a UUID (RFC 4122)", fits_uuid},
};

/* NULL when the format is not enforced. */
const LlmFormat *
llmgw_format_find(const char *name, int len)
{
	for (int i = 0; i < lengthof(formats); i++)
		if (strlen(formats[i].name) == len &&
			memcmp(formats[i].name, name, len) == 0)
			return &formats[i];
	return NULL;
}
