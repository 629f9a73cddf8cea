/*-------------------------------------------------------------------------
 *
 * json_schema_text.c
 *	  What json_schema_*.c tell of a schema and a document: places, values and
 *	  types in words.
 *
 * Everything is on one line and of bounded length: a name in a document can be
 * megabytes, a number a hundred thousand digits.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "utils/json.h"

#include "json.h"
#include "json_schema_private.h"

/* the longest text that is quoted whole, in bytes */
#define MAX_QUOTED		80

/* what the list of an enum's values may take */
#define MAX_ENUM_PHRASE 400

static const char ellipsis[] = "...";

/* How much of the text is at most limit bytes, cut between characters. */
static int
clip(const char *s, int len, int limit)
{
	int			encoding = GetDatabaseEncoding();

	/* a SQL_ASCII database holds the bytes of UTF-8 here (see json.c) */
	if (encoding == PG_SQL_ASCII)
		encoding = PG_UTF8;
	if (len <= limit)
		return len;
	return pg_encoding_mbcliplen(encoding, s, len, limit);
}

/*
 * JSON pointers
 */

void
llmgw_pointer_init(LlmPointer *p)
{
	p->start = sizeof(p->buf);
	p->cut = false;
}

void
llmgw_pointer_prepend(LlmPointer *p, const char *token, int len)
{
	char		escaped[2 * MAX_QUOTED + sizeof(ellipsis) + 1];
	int			shown = clip(token, len, MAX_QUOTED);
	int			n = 0;

	escaped[n++] = '/';
	for (int i = 0; i < shown; i++)
	{
		if (token[i] == '~' || token[i] == '/')
		{
			escaped[n++] = '~';
			escaped[n++] = token[i] == '~' ? '0' : '1';
		}
		else
			escaped[n++] = token[i];
	}
	if (shown < len)
	{
		memcpy(escaped + n, ellipsis, sizeof(ellipsis) - 1);
		n += sizeof(ellipsis) - 1;
	}

	if (p->cut || n > p->start)
	{
		p->cut = true;
		return;
	}
	p->start -= n;
	memcpy(p->buf + p->start, escaped, n);
}

void
llmgw_pointer_prepend_index(LlmPointer *p, uint32 index)
{
	char		digits[16];

	snprintf(digits, sizeof(digits), "%u", index);
	llmgw_pointer_prepend(p, digits, (int) strlen(digits));
}

char *
llmgw_pointer_quoted(const LlmPointer *p)
{
	char	   *pointer = pnstrdup(p->buf + p->start,
								   sizeof(p->buf) - p->start);
	StringInfoData buf;

	initStringInfo(&buf);
	escape_json(&buf, p->cut ? psprintf("%s%s", ellipsis, pointer) : pointer);
	return buf.data;
}

/*
 * Values
 */

char *
llmgw_quoted(const char *s, int len)
{
	int			shown = clip(s, len, MAX_QUOTED);
	char	   *text = pnstrdup(s, shown);
	StringInfoData buf;

	initStringInfo(&buf);
	escape_json(&buf, shown < len ? psprintf("%s%s", text, ellipsis) : text);
	return buf.data;
}

char *
llmgw_value_phrase(const JsonbValue *v)
{
	StringInfoData buf;
	int			shown;

	if (v->type == jbvString)
		return llmgw_quoted(v->val.string.val, v->val.string.len);

	initStringInfo(&buf);
	llmgw_json_append_value(&buf, unconstify(JsonbValue *, v));
	shown = clip(buf.data, buf.len, MAX_QUOTED);
	if (shown < buf.len)
	{
		buf.len = shown;
		buf.data[shown] = '\0';
		appendStringInfoString(&buf, ellipsis);
	}
	return buf.data;
}

char *
llmgw_enum_phrase(JsonbContainer *array)
{
	JsonbIterator *it = JsonbIteratorInit(array);
	bool		several = JsonContainerSize(array) > 1;
	StringInfoData buf;
	JsonbIteratorToken token;
	JsonbValue	v;

	initStringInfo(&buf);
	if (several)
		appendStringInfoString(&buf, "one of ");
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (buf.data[buf.len - 1] != ' ' && buf.len > 0)
			appendStringInfoString(&buf, ", ");
		if (buf.len > MAX_ENUM_PHRASE)
		{
			appendStringInfoString(&buf, ellipsis);
			break;
		}
		appendStringInfoString(&buf, llmgw_value_phrase(&v));
	}
	return buf.data;
}

char *
llmgw_types_phrase(int types)
{
	static const char *const words[LLMGW_NTYPES] = {
		"null", "a boolean", "an object", "an array", "a number",
		"an integer", "a string"
	};
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < LLMGW_NTYPES; i++)
	{
		int			left = types & ~((1 << i) - 1);

		if ((types & (1 << i)) == 0)
			continue;
		if (buf.len > 0)
			appendStringInfoString(&buf, left == (1 << i) ? " or " : ", ");
		appendStringInfoString(&buf, words[i]);
	}
	return buf.data;
}
