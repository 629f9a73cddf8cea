/*-------------------------------------------------------------------------
 *
 * json_schema_pattern.c
 *	  Patterns of JSON Schema, compiled and matched by PostgreSQL's engine.
 *
 * The engine is called directly and not by way of textregexeq: that raises an
 * error for a pattern that does not compile or a text on which the engine gives
 * up, keeps only 32 patterns compiled, and cannot be told that nothing is
 * captured.
 *
 * Classes like \w are those of the collation "C", ASCII only, as ECMA-262 has
 * them; so nothing depends on the database's locale.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_collation_d.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "regex/regex.h"
#include "utils/memutils.h"

#include "json_schema_private.h"

struct LlmPattern
{
	regex_t		regex;
	bool		compiled;
	MemoryContextCallback on_reset;
};

/* texts up to this many bytes need no allocation */
#define SHORT_TEXT		256

/*
 * A SQL_ASCII database holds the bytes of UTF-8 here (see json.c).  The engine
 * works on pg_wchar, and with the collation "C" on any of them.
 */
static int
text_encoding(void)
{
	int			encoding = GetDatabaseEncoding();

	return encoding == PG_SQL_ASCII ? PG_UTF8 : encoding;
}

/* Before PostgreSQL 16 a compiled expression is malloc'd. */
static void
free_pattern(void *arg)
{
	LlmPattern *pattern = arg;

	if (pattern->compiled)
		pg_regfree(&pattern->regex);
	pattern->compiled = false;
}

/* The text as the engine wants it, in buf where it fits. */
static pg_wchar *
to_wide(const char *s, int len, pg_wchar *buf, int *wide_len)
{
	pg_wchar   *wide = buf;

	if (len > SHORT_TEXT)
		wide = MemoryContextAllocHuge(CurrentMemoryContext,
									  ((Size) len + 1) * sizeof(pg_wchar));
	*wide_len = pg_encoding_mb2wchar_with_len(text_encoding(), s, wide, len);
	return wide;
}

LlmPattern *
llmgw_pattern_compile(const char *pattern, int len, char **problem)
{
	LlmPattern *result;
	pg_wchar	buf[SHORT_TEXT + 1];
	pg_wchar   *wide;
	int			wide_len;
	char	   *are;
	int			status;

	/* only a SQL_ASCII database can hold such a pattern */
	if (text_encoding() == PG_UTF8 &&
		pg_encoding_verifymbstr(PG_UTF8, pattern, len) != len)
	{
		*problem = pstrdup("is not valid UTF-8");
		return NULL;
	}
	are = llmgw_ecma_to_are(pattern, len, text_encoding(),
							text_encoding() == PG_UTF8, problem);
	if (are == NULL)
		return NULL;
	wide = to_wide(are, (int) strlen(are), buf, &wide_len);

	result = palloc0(sizeof(LlmPattern));
	result->on_reset.func = free_pattern;
	result->on_reset.arg = result;
	MemoryContextRegisterResetCallback(CurrentMemoryContext,
									   &result->on_reset);

	/* without captures the match is left to the automaton, which is linear */
	status = pg_regcomp(&result->regex, wide, wide_len,
						REG_ADVANCED | REG_NOSUB, C_COLLATION_OID);
	if (wide != buf)
		pfree(wide);
	pfree(are);
	if (status != REG_OKAY)
	{
		char		message[100];

		/* before PostgreSQL 16 a cancel is such a status */
		CHECK_FOR_INTERRUPTS();
		pg_regerror(status, &result->regex, message, sizeof(message));
		*problem = psprintf("is not a valid regular expression: %s", message);
		return NULL;
	}
	result->compiled = true;
	return result;
}

LlmMatch
llmgw_pattern_match(LlmPattern *pattern, const char *s, int len)
{
	pg_wchar	buf[SHORT_TEXT + 1];
	pg_wchar   *wide;
	int			wide_len;
	int			status;

	wide = to_wide(s, len, buf, &wide_len);
	status = pg_regexec(&pattern->regex, wide, wide_len, 0, NULL, 0, NULL, 0);
	if (wide != buf)
		pfree(wide);
	if (status == REG_OKAY)
		return LLMGW_MATCH;
	if (status == REG_NOMATCH)
		return LLMGW_NO_MATCH;
	CHECK_FOR_INTERRUPTS();
	return LLMGW_MATCH_FAILED;
}

int64
llmgw_character_count(const char *s, int len)
{
	int64		count = 0;

	if (text_encoding() != PG_UTF8)
		return pg_mbstrlen_with_len(s, len);

	/* all bytes but those that continue a character */
	for (int i = 0; i < len; i++)
		count += ((unsigned char) s[i] & 0xC0) != 0x80;
	return count;
}
