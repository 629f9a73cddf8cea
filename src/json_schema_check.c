/*-------------------------------------------------------------------------
 *
 * json_schema_check.c
 *	  Reads a JSON Schema into the tree that json_schema_validate.c walks, and
 *	  refuses what could not be enforced.
 *
 * A schema comes from the caller, and what is wrong with it is told to the
 * caller: as a phrase, not as an error, because this layer does not know which
 * argument or setting it came from.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/memutils.h"

#include "json_schema.h"
#include "json_schema_private.h"

/* LlmSchema.mark, while circles are looked for */
#define UNSEEN		0
#define UNDERWAY	1
#define DONE		2

/* the deepest place that a $ref can name */
#define MAX_TOKENS	1000

char *
llmgw_schema_place(const LlmSchema *schema)
{
	LlmPointer	pointer;

	if (schema->parent == NULL)
		return pstrdup("");
	llmgw_pointer_init(&pointer);
	for (; schema->parent != NULL && !pointer.cut; schema = schema->parent)
	{
		if (schema->name != NULL)
			llmgw_pointer_prepend(&pointer, schema->name, schema->name_len);
		else if (schema->index >= 0)
			llmgw_pointer_prepend_index(&pointer, schema->index);
		llmgw_pointer_prepend(&pointer, schema->keyword,
							  (int) strlen(schema->keyword));
	}
	return psprintf(" at %s", llmgw_pointer_quoted(&pointer));
}

bool
llmgw_schema_mistake(LlmSchemaReader *reader, const LlmSchema *schema,
					 const char *keyword, const char *fmt,...)
{
	StringInfoData buf;
	va_list		args;
	int			needed;

	initStringInfo(&buf);
	appendStringInfo(&buf, "\"%s\"%s ", keyword, llmgw_schema_place(schema));
	for (;;)
	{
		va_start(args, fmt);
		needed = appendStringInfoVA(&buf, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&buf, needed);
	}
	reader->problem = buf.data;
	return false;
}

/* One keyword of a schema. */
static bool
read_keyword(LlmSchemaReader *reader, LlmSchema *schema,
			 const JsonbValue *name, JsonbValue *value)
{
	const LlmKeyword *keyword = llmgw_schema_keyword(name->val.string.val,
													 name->val.string.len);

	if (keyword == NULL)
	{
		reader->problem = psprintf("unsupported keyword %s%s",
								   llmgw_quoted(name->val.string.val,
												name->val.string.len),
								   llmgw_schema_place(schema));
		return false;
	}
	if (keyword->read == NULL)
		return true;
	if (keyword->name[0] != '$' && strcmp(keyword->name, "definitions") != 0)
		schema->asserts = true;
	return keyword->read(reader, schema, keyword, value);
}

LlmSchema *
llmgw_schema_read(LlmSchemaReader *reader, LlmSchema *parent,
				  const char *keyword, const char *name, int name_len,
				  int index, JsonbValue *value)
{
	LlmSchema  *schema = palloc0(sizeof(LlmSchema));
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	v;

	CHECK_FOR_INTERRUPTS();
	schema->parent = parent;
	schema->keyword = keyword;
	schema->name = name;
	schema->name_len = name_len;
	schema->index = index;
	schema->max_length = PG_INT64_MAX;
	schema->max_items = PG_INT64_MAX;
	schema->max_properties = PG_INT64_MAX;
	schema->next = reader->all;
	reader->all = schema;

	/* the schemas true and false (Core 4.3.2) */
	if (value->type == jbvBool)
	{
		schema->is_false = !value->val.boolean;
		return schema;
	}
	if (llmgw_jsonb_type(value) != LLMGW_TYPE_OBJECT)
	{
		reader->problem = psprintf("the schema%s must be an object or a boolean",
								   llmgw_schema_place(schema));
		return NULL;
	}
	if (stack_is_too_deep())
	{
		reader->problem = pstrdup("nested too deeply");
		return NULL;
	}

	it = JsonbIteratorInit(value->val.binary.data);
	(void) JsonbIteratorNext(&it, &key, true);	/* WJB_BEGIN_OBJECT */
	while (JsonbIteratorNext(&it, &key, true) == WJB_KEY)
	{
		(void) JsonbIteratorNext(&it, &v, true);
		if (!read_keyword(reader, schema, &key, &v))
			return NULL;
	}
	return schema;
}

/*
 * References
 */

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/*
 * The fragment of a URI, percent-decoded (RFC 3986, 2.1); NULL when that gives
 * no text in the server's encoding.
 */
static char *
percent_decode(const char *s, int len)
{
	int			encoding = GetDatabaseEncoding();
	char	   *result = palloc(len + 1);
	int			n = 0;
	bool		beyond_ascii = false;

	for (int i = 0; i < len; i++)
	{
		int			high;
		int			low;

		if (s[i] != '%')
		{
			result[n++] = s[i];
			continue;
		}
		if (i + 2 >= len || (high = hex_digit(s[i + 1])) < 0 ||
			(low = hex_digit(s[i + 2])) < 0 || (high == 0 && low == 0))
			return NULL;
		result[n++] = (char) (high * 16 + low);
		beyond_ascii |= high >= 8;
		i += 2;
	}
	result[n] = '\0';

	/* they are the bytes of UTF-8 */
	if (beyond_ascii &&
		((encoding != PG_UTF8 && encoding != PG_SQL_ASCII) ||
		 pg_encoding_verifymbstr(PG_UTF8, result, n) != n))
		return NULL;
	return result;
}

/* Undoes ~0 and ~1 in place (RFC 6901, 4); false for another tilde. */
static bool
untilde(char *token)
{
	char	   *out = token;

	for (; *token != '\0'; token++)
	{
		if (*token != '~')
			*out++ = *token;
		else if (token[1] == '0' || token[1] == '1')
			*out++ = *++token == '0' ? '~' : '/';
		else
			return false;
	}
	*out = '\0';
	return true;
}

/* The schema at a JSON pointer, or NULL. */
static LlmSchema *
follow_pointer(LlmSchema *schema, char *pointer)
{
	char	  **tokens = palloc(MAX_TOKENS * sizeof(char *));
	int			n = 0;
	int			used;

	if (*pointer != '\0' && *pointer != '/')
		return NULL;
	while (*pointer == '/')
	{
		*pointer++ = '\0';
		if (n == MAX_TOKENS)
			return NULL;
		tokens[n++] = pointer;
		pointer += strcspn(pointer, "/");
	}
	for (int i = 0; i < n; i++)
		if (!untilde(tokens[i]))
			return NULL;
	for (int i = 0; i < n && schema != NULL; i += used)
		schema = llmgw_schema_step(schema, tokens + i, n - i, &used);
	pfree(tokens);
	return schema;
}

static bool
resolve(LlmSchemaReader *reader, LlmSchema *root, LlmSchema *schema)
{
	char	   *pointer;

	if (schema->ref_len == 0 || schema->ref_text[0] != '#')
		return llmgw_schema_mistake(reader, schema, "$ref",
									"leads to %s, out of the schema, which is not supported",
									llmgw_quoted(schema->ref_text,
												 schema->ref_len));
	if (reader->ref_hides && schema->asserts)
		return llmgw_schema_mistake(reader, schema, "$ref",
									"hides the keywords beside it in this draft; use \"allOf\" or the draft 2020-12");
	pointer = percent_decode(schema->ref_text + 1, schema->ref_len - 1);
	if (pointer != NULL)
		schema->ref = follow_pointer(root, pointer);
	if (schema->ref == NULL)
		return llmgw_schema_mistake(reader, schema, "$ref",
									"leads to %s, where there is no schema",
									llmgw_quoted(schema->ref_text,
												 schema->ref_len));
	return true;
}

/*
 * Circles
 */

static bool apply(LlmSchemaReader *reader, LlmSchema *schema);

static bool
apply_list(LlmSchemaReader *reader, const LlmSchemaList *list)
{
	for (int i = 0; i < list->n; i++)
		if (!apply(reader, list->schemas[i]))
			return false;
	return true;
}

/*
 * Follows what a schema applies to the very value that it is applied to.  A
 * circle of these would never end (Core 9.4.1); one that goes into the value,
 * by properties or items, ends with the document.
 */
static bool
apply(LlmSchemaReader *reader, LlmSchema *schema)
{
	if (schema == NULL || schema->mark == DONE)
		return true;
	if (schema->mark == UNDERWAY)
	{
		reader->problem = psprintf("endless circle of \"$ref\"%s, which never goes into a part of the value",
								   llmgw_schema_place(schema));
		return false;
	}
	if (stack_is_too_deep())
	{
		reader->problem = pstrdup("nested too deeply");
		return false;
	}

	CHECK_FOR_INTERRUPTS();
	schema->mark = UNDERWAY;
	if (!apply(reader, schema->ref) || !apply(reader, schema->not_schema) ||
		!apply_list(reader, &schema->all_of) ||
		!apply_list(reader, &schema->any_of) ||
		!apply_list(reader, &schema->one_of))
		return false;
	schema->mark = DONE;
	return true;
}

LlmSchema *
llmgw_schema_compile(Jsonb *schema, uint64 seed, char **problem)
{
	LlmSchemaReader reader = {.seed = seed};
	JsonbValue	value;
	LlmSchema  *root;

	llmgw_jsonb_root(schema, &value);
	root = llmgw_schema_read(&reader, NULL, NULL, NULL, 0, -1, &value);

	for (LlmSchema *s = reader.all; s != NULL && reader.problem == NULL; s = s->next)
		if (s->ref_text != NULL)
			(void) resolve(&reader, root, s);
	for (LlmSchema *s = reader.all; s != NULL && reader.problem == NULL; s = s->next)
		(void) apply(&reader, s);

	*problem = reader.problem;
	return reader.problem == NULL ? root : NULL;
}

char *
llmgw_json_schema_problem(Jsonb *schema)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	char	   *problem;

	context = AllocSetContextCreate(caller, "llm_gateway JSON schema",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	(void) llmgw_schema_compile(schema, 0, &problem);
	MemoryContextSwitchTo(caller);
	if (problem != NULL)
		problem = pstrdup(problem);
	MemoryContextDelete(context);
	return problem;
}
