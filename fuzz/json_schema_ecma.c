/*-------------------------------------------------------------------------
 *
 * json_schema_ecma.c (fuzz)
 *	  Any bytes as a pattern: refused, or written with nothing in it by which
 *	  PostgreSQL's engine would read the rest in another way.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "backend.h"
#include "json_schema_private.h"

char *
pstrdup(const char *in)
{
	return pnstrdup(in, strlen(in));
}

char *
psprintf(const char *fmt,...)
{
	char		buf[1024];
	va_list		args;

	va_start(args, fmt);
	vsnprintf(buf, sizeof(buf), fmt, args);
	va_end(args);
	return pstrdup(buf);
}

void
appendStringInfoString(StringInfo str, const char *s)
{
	appendBinaryStringInfo(str, s, strlen(s));
}

void
appendStringInfo(StringInfo str, const char *fmt,...)
{
	va_list		args;
	va_list		again;
	int			len;
	char	   *buf;

	va_start(args, fmt);
	va_copy(again, args);
	len = vsnprintf(NULL, 0, fmt, args);
	buf = palloc(len + 1);
	vsnprintf(buf, len + 1, fmt, again);
	va_end(args);
	va_end(again);
	appendBinaryStringInfo(str, buf, len);
}

int
pg_encoding_mblen(int encoding, const char *mbstr)
{
	unsigned char c = *mbstr;

	return c < 0xC0 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

/* Whether it is made of whole characters. */
static bool
is_utf8(const uint8_t *data, size_t size)
{
	for (size_t i = 0; i < size;)
	{
		size_t		n = pg_encoding_mblen(PG_UTF8, (const char *) data + i);

		if ((data[i] >= 0x80 && data[i] < 0xC0) || n > size - i)
			return false;
		for (i++; n > 1; n--, i++)
			if ((data[i] & 0xC0) != 0x80)
				return false;
	}
	return true;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *copy;
	char	   *are;
	char	   *problem;
	bool		in_class = false;

	if (size < 1 || memchr(data, '\0', size) != NULL ||
		!is_utf8(data + 1, size - 1))
		return 0;
	copy = malloc(size);
	memcpy(copy, data, size);
	are = llmgw_ecma_to_are(copy + 1, size - 1, PG_UTF8, data[0] & 1, &problem);
	free(copy);
	CLAIM((are == NULL) == (problem != NULL));
	if (are != NULL)
	{
		CLAIM(strchr("*+?", are[0]) == NULL || are[0] == '\0');
		for (const char *p = are; *p != '\0'; p++)
		{
			if (*p == '\\')
			{
				/* no reference to a group, no constraint but on words */
				p++;
				CLAIM(*p != '\0' && strchr("dDwWyYtnvfruU-]}", *p) != NULL);
				CLAIM(!in_class || strchr("yY", *p) == NULL);
			}
			else if (in_class)
			{
				/* no class, collating element or equivalence within */
				CLAIM(*p != '[');
				in_class = *p != ']';
			}
			else if (*p == '[')
			{
				in_class = true;
				p += p[1] == '^';
				CLAIM(p[1] != ']');
			}
			else if (*p == '(')
			{
				/* neither options nor comments nor captures */
				CLAIM(p[1] == '?' && p[2] != '\0');
				CLAIM(strchr(":=!", p[2]) != NULL ||
					  (p[2] == '<' && (p[3] == '=' || p[3] == '!')));
				p += p[2] == '<' ? 3 : 2;
			}
		}
		CLAIM(!in_class);
	}
	fuzz_free_all();
	return 0;
}
