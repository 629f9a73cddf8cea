/*-------------------------------------------------------------------------
 *
 * dialect_mock_content.c
 *	  What the mock says beyond an echo: tool calls, JSON, embeddings.
 *
 * Nothing of it is clever, and all is a function of the call.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "mb/pg_wchar.h"
#include "utils/json.h"

#include "dialect_mock.h"
#include "json.h"

#define MAX_DEPTH			16
#define MAX_ELEMENTS		100

int
llmgw_mock_character_bytes(const char *p)
{
	int			encoding = GetDatabaseEncoding();

	if (!IS_HIGHBIT_SET(*p))
		return 1;
	return (int) strnlen(p, pg_encoding_mblen(encoding == PG_SQL_ASCII ?
											  PG_UTF8 : encoding, p));
}

int64
llmgw_mock_characters(const char *str)
{
	int64		n = 0;

	for (; *str; str += llmgw_mock_character_bytes(str))
		n++;
	return n;
}

int64
llmgw_mock_message_characters(const LlmWireCall *call)
{
	int64		n = 0;

	for (int i = 0; i < call->messages->n; i++)
	{
		const LlmMessage *m = &call->messages->messages[i];

		for (int p = 0; p < m->nparts; p++)
			if (m->parts[p].type == LLMGW_PART_TEXT)
				n += llmgw_mock_characters(m->parts[p].text);
		for (int t = 0; t < m->ntool_uses; t++)
			n += llmgw_mock_characters(m->tool_uses[t].arguments);
	}
	return n;
}

char *
llmgw_mock_subject(const LlmWireCall *call)
{
	const LlmMessage *m = &call->messages->messages[call->messages->n - 1];
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < m->nparts; i++)
		if (m->parts[i].type == LLMGW_PART_TEXT)
			appendStringInfoString(&buf, m->parts[i].text);
	return buf.data;
}

/*
 * A model calls tools where it likes to.  This one does where it must, or when
 * options.call_tools says so, and not again once it was told a result.
 */
const LlmTool *
llmgw_mock_tool(const LlmWireCall *call)
{
	const LlmMessages *messages = call->messages;
	bool		wants = call->options != NULL &&
	llmgw_json_get_bool(&call->options->root, false, "call_tools", NULL);

	if (call->tools == NULL ||
		messages->messages[messages->n - 1].role == LLMGW_ROLE_TOOL)
		return NULL;
	switch (call->tool_choice.mode)
	{
		case LLMGW_CHOICE_NONE:
			return NULL;
		case LLMGW_CHOICE_UNSET:
		case LLMGW_CHOICE_AUTO:
			return wants ? &call->tools->tools[0] : NULL;
		case LLMGW_CHOICE_REQUIRED:
			break;
		case LLMGW_CHOICE_NAMED:
			for (int i = 0; i < call->tools->n; i++)
				if (strcmp(call->tools->tools[i].name, call->tool_choice.name) == 0)
					return &call->tools->tools[i];
			break;
	}
	return &call->tools->tools[0];
}

/*
 * JSON of a schema
 */

typedef struct Sample
{
	StringInfoData buf;
	JsonbContainer *root;
	const char *text;
} Sample;

static void put_sample(Sample *s, JsonbValue *schema, int depth);

/* The place in the same document that a reference names; false: none. */
static bool
resolve(Sample *s, const char *path, JsonbValue *result)
{
	JsonbContainer *c = s->root;

	if (strncmp(path, "#/", 2) != 0)
		return false;
	for (path += 2;; path++)
	{
		size_t		len = strcspn(path, "/");

		if (c == NULL || !llmgw_json_get(c, result, pnstrdup(path, len), NULL))
			return false;
		c = result->type == jbvBinary ? result->val.binary.data : NULL;
		path += len;
		if (*path == '\0')
			return true;
	}
}

static const char *
type_of(JsonbContainer *c)
{
	char	   *type = llmgw_json_get_text(c, "type", NULL);
	JsonbValue	v;

	if (type == NULL)
		type = llmgw_json_get_text(c, "type", "[0]", NULL);
	if (type == NULL)
		type = llmgw_json_get(c, &v, "properties", NULL) ? "object" : "string";
	return type;
}

static void
put_object(Sample *s, JsonbContainer *c, int depth)
{
	JsonbIterator *it = NULL;
	JsonbValue	properties;
	JsonbValue	value;
	char	   *key;

	appendStringInfoChar(&s->buf, '{');
	if (llmgw_json_get(c, &properties, "properties", NULL) &&
		properties.type == jbvBinary)
	{
		while (llmgw_json_next_member(properties.val.binary.data, &it, &key, &value))
		{
			llmgw_json_key(&s->buf, key);
			put_sample(s, &value, depth + 1);
		}
	}
	appendStringInfoChar(&s->buf, '}');
}

static void
put_array(Sample *s, JsonbContainer *c, int depth)
{
	int64		n = 1;
	JsonbValue	items;

	(void) llmgw_json_get_int(c, &n, "minItems", NULL);
	if (!llmgw_json_get(c, &items, "items", NULL))
		items.type = jbvNull;
	appendStringInfoChar(&s->buf, '[');
	for (int64 i = 0; i < Min(Max(n, 1), MAX_ELEMENTS); i++)
	{
		if (i > 0)
			appendStringInfoChar(&s->buf, ',');
		put_sample(s, &items, depth + 1);
	}
	appendStringInfoChar(&s->buf, ']');
}

static void
put_sample(Sample *s, JsonbValue *schema, int depth)
{
	JsonbContainer *c = schema->type == jbvBinary ? schema->val.binary.data : NULL;
	JsonbValue	v;
	const char *type;
	char	   *reference;
	int64		number;
	int64		bound;

	if (c == NULL || !JsonContainerIsObject(c) || depth > MAX_DEPTH)
	{
		escape_json(&s->buf, s->text);
		return;
	}
	if (llmgw_json_get(c, &v, "const", NULL) ||
		llmgw_json_get(c, &v, "enum", "[0]", NULL))
	{
		llmgw_json_append_value(&s->buf, &v);
		return;
	}
	reference = llmgw_json_get_text(c, "$ref", NULL);
	if ((reference != NULL && resolve(s, reference, &v)) ||
		llmgw_json_get(c, &v, "anyOf", "[0]", NULL) ||
		llmgw_json_get(c, &v, "oneOf", "[0]", NULL) ||
		llmgw_json_get(c, &v, "allOf", "[0]", NULL))
	{
		put_sample(s, &v, depth + 1);
		return;
	}

	type = type_of(c);
	if (strcmp(type, "object") == 0)
		put_object(s, c, depth);
	else if (strcmp(type, "array") == 0)
		put_array(s, c, depth);
	else if (strcmp(type, "integer") == 0 || strcmp(type, "number") == 0)
	{
		number = llmgw_mock_characters(s->text);
		if (llmgw_json_get_int(c, &bound, "minimum", NULL))
			number = Max(number, bound);
		if (llmgw_json_get_int(c, &bound, "maximum", NULL))
			number = Min(number, bound);
		appendStringInfo(&s->buf, INT64_FORMAT, number);
	}
	else if (strcmp(type, "boolean") == 0)
		appendStringInfoString(&s->buf, "true");
	else if (strcmp(type, "null") == 0)
		appendStringInfoString(&s->buf, "null");
	else
		escape_json(&s->buf, s->text);
}

char *
llmgw_mock_sample(Jsonb *schema, const char *text)
{
	Sample		s;
	JsonbValue	root;

	initStringInfo(&s.buf);
	s.root = &schema->root;
	s.text = text;

	root.type = jbvBinary;
	root.val.binary.data = &schema->root;
	root.val.binary.len = VARSIZE(schema) - VARHDRSZ;
	put_sample(&s, &root, 1);
	return s.buf.data;
}

/*
 * Embeddings
 */

/* Adds the direction that a word stands for. */
static void
add_word(double *vector, int dimensions, const char *word, size_t len)
{
	pg_prng_state state;

	pg_prng_seed(&state, hash_bytes_extended((const unsigned char *) word, (int) len, 0));
	for (int i = 0; i < dimensions; i++)
		vector[i] += pg_prng_double(&state) * 2 - 1;
}

void
llmgw_mock_put_vector(StringInfo buf, const char *text, int dimensions)
{
	double	   *vector = palloc0(dimensions * sizeof(double));
	double		length = 0;
	const char *p = text;

	do
	{
		size_t		len;

		p += strspn(p, " \t\r\n");
		len = strcspn(p, " \t\r\n");
		add_word(vector, dimensions, p, len);
		p += len;
	} while (*p != '\0');

	for (int i = 0; i < dimensions; i++)
		length += vector[i] * vector[i];
	length = length > 0 ? sqrt(length) : 1;
	appendStringInfoChar(buf, '[');
	for (int i = 0; i < dimensions; i++)
		appendStringInfo(buf, "%s%.7f", i > 0 ? "," : "", vector[i] / length);
	appendStringInfoChar(buf, ']');
	pfree(vector);
}
