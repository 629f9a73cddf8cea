/*-------------------------------------------------------------------------
 *
 * json_schema_ecma.c
 *	  Regular expressions of ECMA-262, as JSON Schema writes them, for
 *	  PostgreSQL's engine.
 *
 * JSON Schema's patterns are ECMA-262's (Core 2020-12, 6.4).  The two dialects
 * look alike, but some of what both accept means something else: \b is a word's
 * boundary in one and a backspace in the other, "." takes a newline or not,
 * [[:alpha:]] is a class or a set of letters, \x41B is two characters or one, a
 * leading (?i) or *** changes how the rest is read.  So a pattern is read by
 * the rules of ECMA-262 (with the flag u; of its Annex B, the lenient forms
 * that people write) and written anew from the part of PostgreSQL's dialect
 * where nothing is left to guess.  What cannot be expressed is refused.
 *
 * Refused are back references in particular.  PostgreSQL's differ where a group
 * took no part in the match or lies in a lookahead.  Without them, and as nobody
 * asks what was captured, an expression is matched by its automaton alone, in
 * time linear in the spelled, whatever a pattern repeats.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "json_schema_private.h"

/* the engine's bound for {n,m} (DUPMAX) */
#define MAX_REPEAT		255

/* ECMA-262's WhiteSpace and LineTerminator, as the inside of [] */
#define ASCII_SPACES	"\\t\\n\\v\\f\\r "
#define UNICODE_SPACES	ASCII_SPACES \
	"\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000\\ufeff"

typedef struct Translator
{
	const char *p;
	const char *end;
	int			encoding;
	bool		unicode;
	char	   *problem;
} Translator;

/* One member of a character class, or an end of a range. */
typedef struct ClassAtom
{
	char		escape;			/* one of dDwWsS, or 0: a character */
	char		spelled[16];	/* what stands for the character */
} ClassAtom;

static bool
refuse(Translator *t, const char *problem)
{
	t->problem = pstrdup(problem);
	return false;
}

static const char *
spaces(Translator *t)
{
	return t->unicode ? UNICODE_SPACES : ASCII_SPACES;
}

/* Writes what stands for an ASCII or, in Unicode, any character. */
static void
spell(char *spelled, size_t size, pg_wchar c)
{
	if (c < 0x80 && isalnum(c))
		snprintf(spelled, size, "%c", (char) c);
	else if (c <= 0xFFFF)
		snprintf(spelled, size, "\\u%04x", c);
	else
		snprintf(spelled, size, "\\U%08x", c);
}

/* Reads exactly n hexadecimal digits. */
static bool
read_hex(Translator *t, int n, pg_wchar *c)
{
	*c = 0;
	for (int i = 0; i < n; i++)
	{
		char		digit;

		if (t->p >= t->end || !isxdigit((unsigned char) *t->p))
			return refuse(t, "has an escape with too few hexadecimal digits");
		digit = tolower((unsigned char) *t->p++);
		*c = *c * 16 + (digit <= '9' ? digit - '0' : digit - 'a' + 10);
	}
	return true;
}

/* Reads what follows \u: XXXX, two of them for one character, or {X...}. */
static bool
read_unicode(Translator *t, pg_wchar *c)
{
	if (t->p < t->end && *t->p == '{')
	{
		const char *first = ++t->p;

		*c = 0;
		while (t->p < t->end && isxdigit((unsigned char) *t->p) &&
			   *c <= 0x10FFFF)
		{
			pg_wchar	digit;

			if (!read_hex(t, 1, &digit))
				return false;
			*c = *c * 16 + digit;
		}
		if (t->p == first || t->p >= t->end || *t->p != '}' || *c > 0x10FFFF)
			return refuse(t, "has an escape \\u{...} that is no character");
		t->p++;
	}
	else
	{
		if (!read_hex(t, 4, c))
			return false;
		if (is_utf16_surrogate_first(*c) && t->end - t->p >= 6 &&
			t->p[0] == '\\' && t->p[1] == 'u')
		{
			pg_wchar	second;

			t->p += 2;
			if (!read_hex(t, 4, &second))
				return false;
			if (!is_utf16_surrogate_second(second))
				return refuse(t, "has half of a surrogate pair");
			*c = surrogate_pair_to_codepoint(*c, second);
		}
	}
	if (is_utf16_surrogate_first(*c) || is_utf16_surrogate_second(*c))
		return refuse(t, "has half of a surrogate pair");
	return true;
}

/*
 * Reads what follows a backslash and means one character, in a class or not.
 * False without a problem: it is none of those, and nothing was read.
 */
static bool
read_character_escape(Translator *t, char *spelled, size_t size)
{
	pg_wchar	c;

	switch (*t->p++)
	{
		case 't':
			c = '\t';
			break;
		case 'n':
			c = '\n';
			break;
		case 'v':
			c = '\v';
			break;
		case 'f':
			c = '\f';
			break;
		case 'r':
			c = '\r';
			break;
		case '0':
			if (t->p < t->end && isdigit((unsigned char) *t->p))
				return refuse(t, "has an octal escape");
			c = 0;
			break;
		case 'c':
			if (t->p >= t->end || !isalpha((unsigned char) *t->p))
				return refuse(t, "has an escape \\c without a letter");
			c = *t->p++ & 0x1F;
			break;
		case 'x':
			if (!read_hex(t, 2, &c))
				return false;
			break;
		case 'u':
			if (!read_unicode(t, &c))
				return false;
			break;
		default:
			t->p--;
			if (isalnum((unsigned char) *t->p) || IS_HIGHBIT_SET(*t->p))
				return false;
			c = (unsigned char) *t->p++;
			break;
	}

	/* the engine takes \u for a character of the server's encoding */
	if (c >= 0x80 && !t->unicode)
		return refuse(t, "has an escape beyond ASCII, which needs a database in UTF-8");
	spell(spelled, size, c);
	return true;
}

/* After a backslash that means nothing here. */
static bool
refuse_escape(Translator *t)
{
	if (t->p >= t->end)
		return refuse(t, "ends with a backslash");
	if (isdigit((unsigned char) *t->p) || *t->p == 'k')
		return refuse(t, "has a back reference, which is not supported");
	if (*t->p == 'p' || *t->p == 'P')
		return refuse(t, psprintf("has \\%c{...}, which is not supported",
								  *t->p));
	if (IS_HIGHBIT_SET(*t->p))
		return refuse(t, "has a backslash before a character that needs none");
	return refuse(t, psprintf("has \\%c, which is not an escape of ECMA-262",
							  *t->p));
}

/* Copies one character as it is. */
static void
take_character(Translator *t, char *spelled, size_t size)
{
	int			len = 1;

	if (IS_HIGHBIT_SET(*t->p))
		len = pg_encoding_mblen(t->encoding, t->p);
	len = Min(len, t->end - t->p);
	len = Min(len, (int) size - 1);
	memcpy(spelled, t->p, len);
	spelled[len] = '\0';
	t->p += len;
}

/*
 * Character classes
 */

static bool
read_class_atom(Translator *t, ClassAtom *atom)
{
	atom->escape = 0;
	if (*t->p != '\\')
	{
		if (IS_HIGHBIT_SET(*t->p))
			take_character(t, atom->spelled, sizeof(atom->spelled));
		else
			spell(atom->spelled, sizeof(atom->spelled), (unsigned char) *t->p++);
		return true;
	}

	t->p++;
	if (t->p >= t->end)
		return refuse_escape(t);
	if (strchr("dDwWsS", *t->p) != NULL)
	{
		atom->escape = *t->p++;
		return true;
	}
	if (*t->p == 'b')
	{
		t->p++;
		spell(atom->spelled, sizeof(atom->spelled), '\b');
		return true;
	}
	if (read_character_escape(t, atom->spelled, sizeof(atom->spelled)))
		return true;
	return t->problem != NULL ? false : refuse_escape(t);
}

/*
 * [...].  White space is more than the engine's \s, and what is not white space
 * cannot be listed inside brackets: it becomes an alternative beside them or,
 * when they are negated, a lookahead.
 */
static bool
translate_class(Translator *t, StringInfo out)
{
	StringInfoData body;
	bool		negated = false;
	bool		not_spaces = false;

	initStringInfo(&body);
	t->p++;
	if (t->p < t->end && *t->p == '^')
	{
		negated = true;
		t->p++;
	}

	while (t->p < t->end && *t->p != ']')
	{
		ClassAtom	atoms[2];
		int			n = 1;

		if (!read_class_atom(t, &atoms[0]))
			return false;
		if (t->end - t->p >= 2 && t->p[0] == '-' && t->p[1] != ']')
		{
			t->p++;
			if (!read_class_atom(t, &atoms[1]))
				return false;
			n = 2;
		}

		for (int i = 0; i < n; i++)
		{
			/* beside a class like \d the dash is a dash (Annex B) */
			if (i == 1)
				appendStringInfoString(&body,
									   atoms[0].escape || atoms[1].escape ?
									   "\\-" : "-");
			if (atoms[i].escape == 0)
				appendStringInfoString(&body, atoms[i].spelled);
			else if (atoms[i].escape == 's')
				appendStringInfoString(&body, spaces(t));
			else if (atoms[i].escape == 'S')
				not_spaces = true;
			else
				appendStringInfo(&body, "\\%c", atoms[i].escape);
		}
	}
	if (t->p >= t->end)
		return refuse(t, "has a [ without its ]");
	t->p++;

	if (body.len == 0 && !not_spaces)
		appendStringInfoString(out, negated ? "." : "(?:(?!))");
	else if (!not_spaces)
		appendStringInfo(out, "[%s%s]", negated ? "^" : "", body.data);
	else if (body.len == 0)
		appendStringInfo(out, "[%s%s]", negated ? "" : "^", spaces(t));
	else if (negated)
		appendStringInfo(out, "(?:(?![%s])[%s])", body.data, spaces(t));
	else
		appendStringInfo(out, "(?:[%s]|[^%s])", body.data, spaces(t));
	return true;
}

/*
 * Outside of classes
 */

static bool
translate_escape(Translator *t, StringInfo out)
{
	char		spelled[16];

	t->p++;
	if (t->p >= t->end)
		return refuse_escape(t);
	switch (*t->p)
	{
		case 'd':
		case 'D':
		case 'w':
		case 'W':
			appendStringInfo(out, "\\%c", *t->p++);
			return true;
		case 's':
		case 'S':
			appendStringInfo(out, "[%s%s]", *t->p++ == 'S' ? "^" : "",
							 spaces(t));
			return true;
		case 'b':
			t->p++;
			appendStringInfoString(out, "\\y");
			return true;
		case 'B':
			t->p++;
			appendStringInfoString(out, "\\Y");
			return true;
		default:
			break;
	}
	if (!read_character_escape(t, spelled, sizeof(spelled)))
		return t->problem != NULL ? false : refuse_escape(t);
	appendStringInfoString(out, spelled);
	return true;
}

/* Groups do not capture: nobody asks. */
static bool
translate_group(Translator *t, StringInfo out)
{
	static const char *const lookaround[] = {"(?:", "(?=", "(?!", "(?<=", "(?<!"};
	size_t		left = t->end - t->p;

	if (left < 2 || t->p[1] != '?')
	{
		t->p++;
		appendStringInfoString(out, "(?:");
		return true;
	}
	for (int i = 0; i < lengthof(lookaround); i++)
	{
		size_t		len = strlen(lookaround[i]);

		if (left >= len && memcmp(t->p, lookaround[i], len) == 0)
		{
			t->p += len;
			appendStringInfoString(out, lookaround[i]);
			return true;
		}
	}
	if (left >= 3 && t->p[2] == '<')
	{
		const char *name = t->p + 3;
		const char *c = name;

		while (c < t->end && (isalnum((unsigned char) *c) || *c == '_' ||
							  *c == '$' || IS_HIGHBIT_SET(*c)))
			c++;
		if (c > name && c < t->end && *c == '>')
		{
			t->p = c + 1;
			appendStringInfoString(out, "(?:");
			return true;
		}
	}
	return refuse(t, "has a group (?...) that is not supported");
}

/* {n}, {n,} and {n,m}; any other brace is a brace (Annex B). */
static bool
translate_brace(Translator *t, StringInfo out)
{
	const char *c = t->p + 1;
	long		bounds[2] = {0, 0};
	int			n;

	for (n = 0; n < 2; n++)
	{
		const char *first = c;

		for (; c < t->end && isdigit((unsigned char) *c); c++)
			bounds[n] = Min(bounds[n] * 10 + (*c - '0'), MAX_REPEAT + 1);
		if (c == first && n == 0)
			break;
		if (c < t->end && *c == '}')
		{
			if (bounds[0] > MAX_REPEAT || bounds[1] > MAX_REPEAT)
				return refuse(t, psprintf("repeats something more than %d times, which is not supported",
										  MAX_REPEAT));
			c++;
			appendBinaryStringInfo(out, t->p, c - t->p);
			t->p = c;
			return true;
		}
		if (n == 1 || c >= t->end || *c++ != ',')
			break;
	}
	appendStringInfoString(out, "\\u007b");
	t->p++;
	return true;
}

char *
llmgw_ecma_to_are(const char *pattern, int len, int encoding, bool unicode,
				  char **problem)
{
	Translator	t = {pattern, pattern + len, encoding, unicode, NULL};
	StringInfoData out;

	initStringInfo(&out);

	/* some at the beginning mean something of their own to the engine */
	if (len > 0 && strchr("*+?", pattern[0]) != NULL)
		(void) refuse(&t, "repeats what is not there");

	while (t.problem == NULL && t.p < t.end)
	{
		switch (*t.p)
		{
			case '\\':
				(void) translate_escape(&t, &out);
				break;
			case '[':
				(void) translate_class(&t, &out);
				break;
			case '(':
				(void) translate_group(&t, &out);
				break;
			case '{':
				(void) translate_brace(&t, &out);
				break;
			case '.':
				t.p++;
				appendStringInfoString(&out, unicode ?
									   "[^\\n\\r\\u2028\\u2029]" : "[^\\n\\r]");
				break;
			case ']':
			case '}':
				appendStringInfo(&out, "\\%c", *t.p++);
				break;
			default:
				{
					char		spelled[16];

					take_character(&t, spelled, sizeof(spelled));
					appendStringInfoString(&out, spelled);
				}
				break;
		}
	}

	*problem = t.problem;
	return t.problem == NULL ? out.data : NULL;
}
