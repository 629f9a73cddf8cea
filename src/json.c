/*-------------------------------------------------------------------------
 *
 * json.c
 *	  JSON that arrives from providers, and JSON that is sent to them.
 *
 * PostgreSQL's own parser does the work.  It raises errors, but a provider's
 * bytes must never end a call that could still be retried elsewhere, so the
 * errors that a document can cause are caught here and become a reason.
 *
 * Catching them needs no subtransaction: between PG_TRY and PG_CATCH runs only
 * code that computes in memory (jsonb_in, numeric_in, a conversion of
 * characters whose function was looked up when the backend started).  It takes
 * no lock, pin, snapshot or descriptor that an abort would have to release, and
 * what it palloc'd goes with the caller's context.  For the same reason it
 * works outside of transactions.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <limits.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "json.h"

/* a document with more values than this is not read */
#define MAX_JSON_VALUES		250000

/*
 * A number is written out with all its digits, so a few bytes can become 128 kB.
 * What a double can hold is enough for any provider.
 */
#define MAX_JSON_EXPONENT	400

/*
 * Reading
 */

/* Reads the four digits of \uXXXX; -1 when they are none. */
static int
hex4(const char *p)
{
	int			value = 0;

	for (int i = 0; i < 4; i++)
	{
		char		c = p[i];

		if (c >= '0' && c <= '9')
			value = value * 16 + (c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value * 16 + (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			value = value * 16 + (c - 'A' + 10);
		else
			return -1;
	}
	return value;
}

/*
 * A SQL_ASCII database takes the bytes of UTF-8 as they come, but jsonb_in
 * refuses an escape beyond ASCII there, because it cannot know an encoding to
 * translate to.  Many servers escape everything (Python's json does), so such
 * escapes become the bytes that the unescaped document would have had.  What
 * is no whole character stays for jsonb_in to refuse.
 */
static char *
unescape_to_utf8(const char *json, size_t len)
{
	const char *end = json + len;
	char	   *result = palloc(len + 1);
	char	   *out = result;

	while (json < end)
	{
		const char *backslash = memchr(json, '\\', end - json);
		size_t		plain = (backslash ? backslash : end) - json;
		pg_wchar	c;
		int			taken = 6;
		int			unit;

		memcpy(out, json, plain);
		out += plain;
		json += plain;
		if (end - json < 6 || json[1] != 'u')
			taken = Min(2, end - json);
		else if ((unit = hex4(json + 2)) >= 0x80)
		{
			c = unit;
			if (is_utf16_surrogate_first(c) && end - json >= 12 &&
				json[6] == '\\' && json[7] == 'u' &&
				(unit = hex4(json + 8)) >= 0 &&
				is_utf16_surrogate_second(unit))
			{
				c = surrogate_pair_to_codepoint(c, unit);
				taken = 12;
			}
			if (!is_utf16_surrogate_first(c) && !is_utf16_surrogate_second(c))
			{
				unicode_to_utf8(c, (unsigned char *) out);
				out += pg_utf_mblen((unsigned char *) out);
				json += taken;
				continue;
			}
		}
		memcpy(out, json, taken);
		out += taken;
		json += taken;
	}
	*out = '\0';
	return result;
}

/*
 * Returns valid UTF-8 as a C string in the server's encoding.  Raises 22P05
 * for a character that the encoding does not have.  pg_any_to_server() would
 * do, but for the catalog lookup by which it finds the conversion.
 */
static char *
utf8_to_server(const char *utf8, size_t len)
{
	const char *end = utf8 + len;
	StringInfoData buf;

	if (GetDatabaseEncoding() == PG_UTF8)
		return pnstrdup(utf8, len);
	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		return unescape_to_utf8(utf8, len);

	initStringInfo(&buf);
	enlargeStringInfo(&buf, len);
	while (utf8 < end)
	{
		unsigned char c[MAX_UNICODE_EQUIVALENT_STRING + 1];

		if (!IS_HIGHBIT_SET(*utf8))
		{
			appendStringInfoChar(&buf, *utf8++);
			continue;
		}
		pg_unicode_to_server(utf8_to_unicode((const unsigned char *) utf8), c);
		appendStringInfoString(&buf, (char *) c);
		utf8 += pg_utf_mblen((const unsigned char *) utf8);
	}
	return buf.data;
}

const char *const llmgw_json_unfit =
"valid, but has a character that the database's encoding cannot hold";

/*
 * What is wrong, from the error's code.  Its message is not used: it is
 * translated, and it quotes the document.
 */
static char *
reason_for(int sqlstate, const char *doc, size_t len)
{
	switch (sqlstate)
	{
		case ERRCODE_STATEMENT_TOO_COMPLEX:
			return pstrdup("not valid JSON: nested too deeply");
		case ERRCODE_PROGRAM_LIMIT_EXCEEDED:
			return pstrdup("not valid JSON: too large");
		case ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE:
			return pstrdup("not valid JSON: a number is out of range");
		case ERRCODE_UNTRANSLATABLE_CHARACTER:
		case ERRCODE_FEATURE_NOT_SUPPORTED:
			return unconstify(char *, llmgw_json_unfit);
		default:
			break;
	}

	while (len > 0 && isspace((unsigned char) doc[len - 1]))
		len--;
	for (; len > 0 && isspace((unsigned char) *doc); len--)
		doc++;
	if (len == 0)
		return pstrdup("not valid JSON: empty");
	if ((doc[0] == '{' && doc[len - 1] != '}') ||
		(doc[0] == '[' && doc[len - 1] != ']'))
		return pstrdup("not valid JSON: cut short");
	return pstrdup("not valid JSON: syntax error");
}

/*
 * Why a document should not be given to jsonb_in; NULL: it may be.  It keeps
 * each value in some hundred bytes until the document is read, does not look
 * for interrupts meanwhile, and beyond 2^24 fails with an internal error.
 */
static const char *
unbearable(const char *doc, size_t len)
{
	const char *end = doc + len;
	const char *begin = doc;
	int			n = 0;

	for (; doc < end; doc++)
	{
		if (*doc == '"')
		{
			for (doc++; doc < end && *doc != '"'; doc++)
				if (*doc == '\\')
					doc++;
		}
		else if ((*doc == ',' || *doc == '[' || *doc == '{' || *doc == ':') &&
				 ++n > MAX_JSON_VALUES)
			return "too many values";
		else if ((*doc == 'e' || *doc == 'E') && doc > begin && isdigit((unsigned char) doc[-1]))
		{
			int			exponent = 0;

			if (doc + 1 < end && (doc[1] == '+' || doc[1] == '-'))
				doc++;
			while (doc + 1 < end && isdigit((unsigned char) doc[1]) &&
				   exponent <= MAX_JSON_EXPONENT)
				exponent = exponent * 10 + (*++doc - '0');
			if (exponent > MAX_JSON_EXPONENT)
				return "a number is out of range";
		}
	}
	return NULL;
}

static Jsonb *
parse(const char *doc, size_t len, bool is_utf8, char **reason)
{
	MemoryContext caller = CurrentMemoryContext;
	uint32		interrupt_holdoff = InterruptHoldoffCount;
	uint32		cancel_holdoff = QueryCancelHoldoffCount;
	Jsonb	   *volatile result = NULL;
	volatile int sqlstate = 0;
	const char *problem = unbearable(doc, len);

	if (problem != NULL)
	{
		*reason = psprintf("not valid JSON: %s", problem);
		return NULL;
	}

	PG_TRY();
	{
		char	   *s;

		s = is_utf8 ? utf8_to_server(doc, len) :
			llmgw_json_plain(pnstrdup(doc, len));
		result = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
													CStringGetDatum(s)));
	}
	PG_CATCH();
	{
		int			category;

		MemoryContextSwitchTo(caller);
		sqlstate = geterrcode();
		category = ERRCODE_TO_CATEGORY(sqlstate);
		if (category != ERRCODE_DATA_EXCEPTION &&
			category != ERRCODE_PROGRAM_LIMIT_EXCEEDED &&
			sqlstate != ERRCODE_FEATURE_NOT_SUPPORTED)
			PG_RE_THROW();
		FlushErrorState();

		/* raising an error ended them, but we return to who holds them */
		InterruptHoldoffCount = interrupt_holdoff;
		QueryCancelHoldoffCount = cancel_holdoff;
	}
	PG_END_TRY();

	if (result == NULL)
		*reason = reason_for(sqlstate, doc, len);
	return result;
}

Jsonb *
llmgw_json_parse(const char *utf8, size_t len, char **reason)
{
	int			valid;

	*reason = NULL;
	if (len >= MaxAllocSize)
	{
		*reason = pstrdup("not valid JSON: too large");
		return NULL;
	}

	/* a NUL ends what is valid, too */
	valid = pg_encoding_verifymbstr(PG_UTF8, utf8, (int) len);
	if (valid < (int) len)
	{
		*reason = psprintf("not valid JSON: byte %d is %s", valid + 1,
						   utf8[valid] == '\0' ? "NUL" : "not UTF-8");
		return NULL;
	}
	return parse(utf8, len, true, reason);
}

Jsonb *
llmgw_json_parse_text(const char *text, char **reason)
{
	*reason = NULL;
	return parse(text, strlen(text), false, reason);
}

char *
llmgw_json_plain(char *text)
{
	return GetDatabaseEncoding() == PG_SQL_ASCII ?
		unescape_to_utf8(text, strlen(text)) : text;
}

/* One step of a path. */
static bool
step_into(JsonbContainer *c, const char *key, JsonbValue *result)
{
	if (JsonContainerIsObject(c))
		return getKeyJsonValueFromContainer(c, key, strlen(key),
											result) != NULL;
	if (JsonContainerIsArray(c) && !JsonContainerIsScalar(c) && key[0] == '[')
	{
		char	   *end;
		unsigned long i = strtoul(key + 1, &end, 10);
		JsonbValue *element;

		if (end == key + 1 || strcmp(end, "]") != 0 ||
			i >= JsonContainerSize(c))
			return false;
		element = getIthJsonbValueFromContainer(c, (uint32) i);
		if (element != NULL)
			*result = *element;
		return element != NULL;
	}
	return false;
}

static bool
follow(JsonbContainer *c, JsonbValue *result, va_list path)
{
	const char *key;
	bool		found = false;

	while ((key = va_arg(path, const char *)) != NULL)
	{
		if (c == NULL || !step_into(c, key, result))
			return false;
		c = result->type == jbvBinary ? result->val.binary.data : NULL;
		found = true;
	}
	return found && result->type != jbvNull;
}

bool
llmgw_json_get(JsonbContainer *c, JsonbValue *result,...)
{
	va_list		path;
	bool		found;

	va_start(path, result);
	found = follow(c, result, path);
	va_end(path);
	return found;
}

char *
llmgw_json_get_text(JsonbContainer *c,...)
{
	JsonbValue	v;
	va_list		path;
	bool		found;

	va_start(path, c);
	found = follow(c, &v, path);
	va_end(path);
	if (!found || v.type != jbvString)
		return NULL;
	return pnstrdup(v.val.string.val, v.val.string.len);
}

bool
llmgw_json_get_int(JsonbContainer *c, int64 *result,...)
{
	JsonbValue	v;
	va_list		path;
	bool		found;

	va_start(path, result);
	found = follow(c, &v, path);
	va_end(path);
	return found && llmgw_json_value_int(&v, result);
}

bool
llmgw_json_get_bool(JsonbContainer *c, int dflt,...)
{
	JsonbValue	v;
	va_list		path;
	bool		found;

	va_start(path, dflt);
	found = follow(c, &v, path);
	va_end(path);
	return found && v.type == jbvBool ? v.val.boolean : dflt;
}

char *
llmgw_json_value_text(const JsonbValue *v)
{
	if (v->type == jbvString)
		return pnstrdup(v->val.string.val, v->val.string.len);
	if (v->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out,
												   NumericGetDatum(v->val.numeric)));
	return NULL;
}

bool
llmgw_json_value_int(const JsonbValue *v, int64 *result)
{
	char	   *digits;
	char	   *end;
	long long	value;

	if (v->type != jbvNumeric)
		return false;

	/* numeric_out never writes an exponent */
	digits = llmgw_json_value_text(v);
	errno = 0;
	value = strtoll(digits, &end, 10);
	if (errno != 0 || end == digits || (*end != '\0' && *end != '.'))
		return false;
	*result = value;
	return true;
}

bool
llmgw_json_next_member(JsonbContainer *c, JsonbIterator **it, char **key,
					   JsonbValue *value)
{
	JsonbValue	k;

	if (*it == NULL)
	{
		if (!JsonContainerIsObject(c))
			return false;
		*it = JsonbIteratorInit(c);
		(void) JsonbIteratorNext(it, &k, false);	/* WJB_BEGIN_OBJECT */
	}
	if (JsonbIteratorNext(it, &k, true) != WJB_KEY)
		return false;
	*key = pnstrdup(k.val.string.val, k.val.string.len);
	(void) JsonbIteratorNext(it, value, true);
	return true;
}

/*
 * Writing
 */

/*
 * SQL_ASCII promises nothing about its bytes; JSON on the wire is UTF-8.  The
 * offset counts from the start of what the user can look at.
 */
static void
check_utf8(const char *text, size_t len, const char *what)
{
	int			valid;

	if (GetDatabaseEncoding() != PG_SQL_ASCII)
		return;
	valid = pg_encoding_verifymbstr(PG_UTF8, text, (int) len);
	if (valid == (int) len)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_CHARACTER_NOT_IN_REPERTOIRE),
			 errmsg("%s is not valid UTF-8 at byte offset %d: 0x%02x",
					what, valid, (unsigned char) text[valid]),
			 errhint("Providers take UTF-8. This database's encoding is SQL_ASCII, which converts nothing: store the text as UTF-8, or use convert() to make it so.")));
}

void
llmgw_json_key(StringInfo buf, const char *key)
{
	if (buf->len > 0 && buf->data[buf->len - 1] != '{')
		appendStringInfoChar(buf, ',');
	escape_json(buf, key);
	appendStringInfoChar(buf, ':');
}

void
llmgw_json_append_text(StringInfo buf, const char *value, const char *what)
{
	size_t		len = strlen(value);

	check_utf8(value, len, what);

	/* a prompt of megabytes is not copied once for each doubling */
	enlargeStringInfo(buf, (int) Min(len + 64, (size_t) INT_MAX));
	escape_json(buf, value);
}

void
llmgw_json_put_text(StringInfo buf, const char *key, const char *value)
{
	llmgw_json_key(buf, key);
	llmgw_json_append_text(buf, value, strcmp(key, "content") == 0 ? "the prompt" :
						   psprintf("the value of \"%s\"", key));
}

void
llmgw_json_put_int(StringInfo buf, const char *key, int64 value)
{
	llmgw_json_key(buf, key);
	appendStringInfo(buf, INT64_FORMAT, value);
}

void
llmgw_json_put_bool(StringInfo buf, const char *key, bool value)
{
	llmgw_json_key(buf, key);
	appendStringInfoString(buf, value ? "true" : "false");
}

void
llmgw_json_put_jsonb(StringInfo buf, const char *key, JsonbValue *value)
{
	llmgw_json_key(buf, key);
	llmgw_json_append_value(buf, value);
}

void
llmgw_json_append_value(StringInfo buf, JsonbValue *value)
{
	switch (value->type)
	{
		case jbvNull:
			appendStringInfoString(buf, "null");
			break;
		case jbvString:
			escape_json(buf, pnstrdup(value->val.string.val,
									  value->val.string.len));
			break;
		case jbvNumeric:
			appendStringInfoString(buf, llmgw_json_value_text(value));
			break;
		case jbvBool:
			appendStringInfoString(buf, value->val.boolean ? "true" : "false");
			break;
		case jbvBinary:
			(void) JsonbToCString(buf, value->val.binary.data,
								  value->val.binary.len);
			break;
		default:
			{
				/* one that was built in memory */
				Jsonb	   *jb = JsonbValueToJsonb(value);

				(void) JsonbToCString(buf, &jb->root, VARSIZE(jb));
			}
			break;
	}
}

char *
llmgw_json_to_utf8(StringInfo buf, size_t *len)
{
	char	   *utf8;

	if (GetDatabaseEncoding() == PG_SQL_ASCII)
		check_utf8(buf->data, buf->len, "the request");
	utf8 = pg_server_to_any(buf->data, buf->len, PG_UTF8);
	*len = utf8 == buf->data ? (size_t) buf->len : strlen(utf8);
	return utf8;
}
