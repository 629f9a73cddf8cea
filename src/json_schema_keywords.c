/*-------------------------------------------------------------------------
 *
 * json_schema_keywords.c
 *	  The keywords of JSON Schema, and how the value of each is read.
 *
 * A keyword is a line in the table at the end.  What is not in the table is
 * refused by json_schema_check.c.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "json.h"
#include "json_schema_private.h"

/* the keyword's place in the schema */
#define FIELD(schema, keyword, type) \
	((type *) ((char *) (schema) + (keyword)->field))

static bool
is_array(const JsonbValue *v)
{
	return llmgw_jsonb_type(v) == LLMGW_TYPE_ARRAY;
}

static bool
is_object(const JsonbValue *v)
{
	return llmgw_jsonb_type(v) == LLMGW_TYPE_OBJECT;
}

static bool
is_string(const JsonbValue *v, const char *s)
{
	return v->type == jbvString && v->val.string.len == strlen(s) &&
		memcmp(v->val.string.val, s, v->val.string.len) == 0;
}

static JsonbValue *
copy_value(const JsonbValue *v)
{
	JsonbValue *copy = palloc(sizeof(JsonbValue));

	*copy = *v;
	return copy;
}

/* Walks over the elements of an array; false at its end. */
static bool
next_element(JsonbContainer *array, JsonbIterator **it, JsonbValue *v)
{
	if (*it == NULL)
	{
		*it = JsonbIteratorInit(array);
		(void) JsonbIteratorNext(it, v, true);	/* WJB_BEGIN_ARRAY */
	}
	return JsonbIteratorNext(it, v, true) == WJB_ELEM;
}

/* The same for the members of an object. */
static bool
next_member(JsonbContainer *object, JsonbIterator **it, JsonbValue *name,
			JsonbValue *v)
{
	if (*it == NULL)
	{
		*it = JsonbIteratorInit(object);
		(void) JsonbIteratorNext(it, name, true);	/* WJB_BEGIN_OBJECT */
	}
	if (JsonbIteratorNext(it, name, true) != WJB_KEY)
		return false;
	(void) JsonbIteratorNext(it, v, true);
	return true;
}

/*
 * Readers
 */

/* type (Validation 6.1.1): a name, or several */
static bool
read_type(LlmSchemaReader *reader, LlmSchema *schema,
		  const LlmKeyword *keyword, JsonbValue *value)
{
	static const char *const names[LLMGW_NTYPES] = {
		"null", "boolean", "object", "array", "number", "integer", "string"
	};
	bool		several = is_array(value);
	JsonbIterator *it = NULL;
	JsonbValue	v = *value;

	while (several ? next_element(value->val.binary.data, &it, &v) :
		   schema->types == 0)
	{
		int			i = 0;

		while (i < LLMGW_NTYPES && !is_string(&v, names[i]))
			i++;
		if (i == LLMGW_NTYPES)
			return llmgw_schema_mistake(reader, schema, keyword->name,
										"names %s, which is not a type",
										llmgw_value_phrase(&v));
		if (schema->types & (1 << i))
			return llmgw_schema_mistake(reader, schema, keyword->name,
										"names \"%s\" twice", names[i]);
		schema->types |= 1 << i;
	}
	if (schema->types == 0)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must name at least one type");
	return true;
}

static bool
read_const(LlmSchemaReader *reader, LlmSchema *schema,
		   const LlmKeyword *keyword, JsonbValue *value)
{
	schema->constant = copy_value(value);
	return true;
}

static bool
read_enum(LlmSchemaReader *reader, LlmSchema *schema,
		  const LlmKeyword *keyword, JsonbValue *value)
{
	if (!is_array(value) || JsonContainerSize(value->val.binary.data) == 0)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be an array with at least one value");
	schema->enum_array = value->val.binary.data;
	schema->nenum = JsonContainerSize(schema->enum_array);
	schema->enum_values = llmgw_jsonb_hash_elements(schema->enum_array,
													reader->seed);
	return true;
}

/* required (Validation 6.5.3) */
static bool
read_required(LlmSchemaReader *reader, LlmSchema *schema,
			  const LlmKeyword *keyword, JsonbValue *value)
{
	JsonbIterator *it = NULL;
	JsonbValue	v;
	int			n;
	int			first;
	int			second;

	if (!is_array(value))
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be an array of strings");
	n = JsonContainerSize(value->val.binary.data);
	if (llmgw_jsonb_twins(llmgw_jsonb_hash_elements(value->val.binary.data,
													reader->seed),
						  n, &first, &second))
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"has the same element twice, at %d and %d",
									first, second);
	schema->required = palloc(Max(n, 1) * sizeof(LlmSchemaName));
	while (next_element(value->val.binary.data, &it, &v))
	{
		if (v.type != jbvString)
			return llmgw_schema_mistake(reader, schema, keyword->name,
										"must be an array of strings");
		schema->required[schema->nrequired].name = v.val.string.val;
		schema->required[schema->nrequired].len = v.val.string.len;
		schema->nrequired++;
	}
	return true;
}

/* a number that is not negative and has no fraction, as 3.0 has none */
static bool
read_count(LlmSchemaReader *reader, LlmSchema *schema,
		   const LlmKeyword *keyword, JsonbValue *value)
{
	int64	   *count = FIELD(schema, keyword, int64);

	if (!llmgw_jsonb_is_integer(value) ||
		(llmgw_json_value_int(value, count) ? *count < 0 :
		 *llmgw_json_value_text(value) == '-'))
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be an integer that is not negative");

	/* more than any document has */
	if (!llmgw_json_value_int(value, count))
		*count = PG_INT64_MAX;
	return true;
}

static bool
read_number(LlmSchemaReader *reader, LlmSchema *schema,
			const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvNumeric)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a number");
	*FIELD(schema, keyword, Numeric) = value->val.numeric;
	return true;
}

/* multipleOf (Validation 6.2.1) */
static bool
read_divisor(LlmSchemaReader *reader, LlmSchema *schema,
			 const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvNumeric ||
		!DatumGetBool(DirectFunctionCall2(numeric_gt,
										  NumericGetDatum(value->val.numeric),
										  NumericGetDatum(int64_to_numeric(0)))))
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a number greater than 0");
	schema->multiple_of = value->val.numeric;
	return true;
}

static bool
read_flag(LlmSchemaReader *reader, LlmSchema *schema,
		  const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvBool)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be true or false");
	*FIELD(schema, keyword, bool) = value->val.boolean;
	return true;
}

static bool
read_pattern(LlmSchemaReader *reader, LlmSchema *schema,
			 const LlmKeyword *keyword, JsonbValue *value)
{
	char	   *problem;

	if (value->type != jbvString)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a string");
	schema->pattern = llmgw_pattern_compile(value->val.string.val,
											value->val.string.len, &problem);
	if (schema->pattern == NULL)
		return llmgw_schema_mistake(reader, schema, keyword->name, "%s",
									problem);
	schema->pattern_text = copy_value(value);
	return true;
}

static bool
read_format(LlmSchemaReader *reader, LlmSchema *schema,
			const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvString)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a string");
	schema->format = llmgw_format_find(value->val.string.val,
									   value->val.string.len);
	if (schema->format == NULL)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"is %s, which is not supported",
									llmgw_value_phrase(value));
	return true;
}

static bool
read_schema(LlmSchemaReader *reader, LlmSchema *schema,
			const LlmKeyword *keyword, JsonbValue *value)
{
	LlmSchema  *child;

	if (is_array(value) && strcmp(keyword->name, "items") == 0)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a schema; an array of schemas is now \"prefixItems\"");
	child = llmgw_schema_read(reader, schema, keyword->name, NULL, 0, -1, value);
	*FIELD(schema, keyword, LlmSchema *) = child;
	return child != NULL;
}

static bool
read_list(LlmSchemaReader *reader, LlmSchema *schema,
		  const LlmKeyword *keyword, JsonbValue *value)
{
	LlmSchemaList *list = FIELD(schema, keyword, LlmSchemaList);
	JsonbIterator *it = NULL;
	JsonbValue	v;

	if (!is_array(value) || JsonContainerSize(value->val.binary.data) == 0)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be an array with at least one schema");
	list->schemas = palloc(JsonContainerSize(value->val.binary.data) *
						   sizeof(LlmSchema *));
	while (next_element(value->val.binary.data, &it, &v))
	{
		LlmSchema  *child;

		child = llmgw_schema_read(reader, schema, keyword->name, NULL, 0,
								  list->n, &v);
		if (child == NULL)
			return false;
		list->schemas[list->n++] = child;
	}
	return true;
}

static bool
read_map(LlmSchemaReader *reader, LlmSchema *schema,
		 const LlmKeyword *keyword, JsonbValue *value)
{
	LlmSchemaMap *map = FIELD(schema, keyword, LlmSchemaMap);
	JsonbIterator *it = NULL;
	JsonbValue	name;
	JsonbValue	v;

	if (!is_object(value))
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be an object that holds schemas");
	map->members = palloc0(Max(JsonContainerSize(value->val.binary.data), 1) *
						   sizeof(LlmSchemaMember));
	while (next_member(value->val.binary.data, &it, &name, &v))
	{
		LlmSchemaMember *member = &map->members[map->n];

		member->name = name.val.string.val;
		member->len = name.val.string.len;
		member->schema = llmgw_schema_read(reader, schema, keyword->name,
										   member->name, member->len, -1, &v);
		if (member->schema == NULL)
			return false;
		map->n++;
	}
	return true;
}

/* patternProperties (Core 10.3.2.2) */
static bool
read_pattern_map(LlmSchemaReader *reader, LlmSchema *schema,
				 const LlmKeyword *keyword, JsonbValue *value)
{
	LlmSchemaMap *map = FIELD(schema, keyword, LlmSchemaMap);

	if (!read_map(reader, schema, keyword, value))
		return false;
	for (int i = 0; i < map->n; i++)
	{
		LlmSchemaMember *member = &map->members[i];
		char	   *problem;

		member->pattern = llmgw_pattern_compile(member->name, member->len,
												&problem);
		if (member->pattern == NULL)
			return llmgw_schema_mistake(reader, schema, keyword->name,
										"has a pattern, %s, that %s",
										llmgw_quoted(member->name, member->len),
										problem);
	}
	return true;
}

/* $ref (Core 8.2.3.1); where it leads is looked up when all is read */
static bool
read_ref(LlmSchemaReader *reader, LlmSchema *schema,
		 const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvString)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a string");
	schema->ref_text = value->val.string.val;
	schema->ref_len = value->val.string.len;
	return true;
}

/*
 * $id (Core 8.2.1).  At the root it is the schema's name.  Below, it would make
 * "#" in its surroundings mean another place.
 */
static bool
read_id(LlmSchemaReader *reader, LlmSchema *schema,
		const LlmKeyword *keyword, JsonbValue *value)
{
	if (value->type != jbvString)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a string");
	if (schema->parent != NULL)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"is supported at the root only");
	return true;
}

/*
 * $schema (Core 8.1.1).  The keywords of the table mean the same in these
 * drafts, but for what stands beside a $ref (see json_schema_check.c).  In
 * draft-04 and before, 1.0 is not an integer.
 */
static bool
read_dialect(LlmSchemaReader *reader, LlmSchema *schema,
			 const LlmKeyword *keyword, JsonbValue *value)
{
	static const struct
	{
		const char *name;
		bool		ref_hides;
	}			drafts[] = {
		{"https://json-schema.org/draft/2020-12/schema", false},
		{"https://json-schema.org/draft/2019-09/schema", false},
		{"http://json-schema.org/draft-07/schema", true},
		{"http://json-schema.org/draft-06/schema", true},
	};
	char	   *name;
	size_t		len;

	if (value->type != jbvString)
		return llmgw_schema_mistake(reader, schema, keyword->name,
									"must be a string");

	/* people write http for https and the other way round, and a last "#" */
	name = pnstrdup(value->val.string.val, value->val.string.len);
	len = strlen(name);
	if (len > 0 && name[len - 1] == '#')
		name[len - 1] = '\0';
	for (int i = 0; i < lengthof(drafts); i++)
	{
		const char *a = strstr(drafts[i].name, "://");
		const char *b = strstr(name, "://");

		if (strncmp(name, "http", 4) == 0 && b != NULL && strcmp(a, b) == 0 &&
			b - name <= 5)
		{
			reader->ref_hides |= drafts[i].ref_hides;
			return true;
		}
	}
	return llmgw_schema_mistake(reader, schema, keyword->name,
								"is %s, which is not supported",
								llmgw_value_phrase(value));
}

static const LlmKeyword keywords[] = {
	{"$comment", NULL, 0},
	{"$defs", read_map, offsetof(LlmSchema, defs)},
	{"$id", read_id, 0},
	{"$ref", read_ref, 0},
	{"$schema", read_dialect, 0},
	{"additionalProperties", read_schema, offsetof(LlmSchema, additional_properties)},
	{"allOf", read_list, offsetof(LlmSchema, all_of)},
	{"anyOf", read_list, offsetof(LlmSchema, any_of)},
	{"const", read_const, 0},
	{"default", NULL, 0},
	{"definitions", read_map, offsetof(LlmSchema, definitions)},
	{"deprecated", NULL, 0},
	{"description", NULL, 0},
	{"enum", read_enum, 0},
	{"examples", NULL, 0},
	{"exclusiveMaximum", read_number, offsetof(LlmSchema, exclusive_maximum)},
	{"exclusiveMinimum", read_number, offsetof(LlmSchema, exclusive_minimum)},
	{"format", read_format, 0},
	{"items", read_schema, offsetof(LlmSchema, items)},
	{"maxItems", read_count, offsetof(LlmSchema, max_items)},
	{"maxLength", read_count, offsetof(LlmSchema, max_length)},
	{"maxProperties", read_count, offsetof(LlmSchema, max_properties)},
	{"maximum", read_number, offsetof(LlmSchema, maximum)},
	{"minItems", read_count, offsetof(LlmSchema, min_items)},
	{"minLength", read_count, offsetof(LlmSchema, min_length)},
	{"minProperties", read_count, offsetof(LlmSchema, min_properties)},
	{"minimum", read_number, offsetof(LlmSchema, minimum)},
	{"multipleOf", read_divisor, 0},
	{"not", read_schema, offsetof(LlmSchema, not_schema)},
	{"oneOf", read_list, offsetof(LlmSchema, one_of)},
	{"pattern", read_pattern, 0},
	{"patternProperties", read_pattern_map, offsetof(LlmSchema, pattern_properties)},
	{"prefixItems", read_list, offsetof(LlmSchema, prefix_items)},
	{"properties", read_map, offsetof(LlmSchema, properties)},
	{"propertyNames", read_schema, offsetof(LlmSchema, property_names)},
	{"readOnly", NULL, 0},
	{"required", read_required, 0},
	{"title", NULL, 0},
	{"type", read_type, 0},
	{"uniqueItems", read_flag, offsetof(LlmSchema, unique_items)},
	{"writeOnly", NULL, 0},
};

const LlmKeyword *
llmgw_schema_keyword(const char *name, int len)
{
	for (int i = 0; i < lengthof(keywords); i++)
		if (strlen(keywords[i].name) == len &&
			memcmp(keywords[i].name, name, len) == 0)
			return &keywords[i];
	return NULL;
}

LlmSchema *
llmgw_schema_step(LlmSchema *schema, char **tokens, int n, int *used)
{
	const LlmKeyword *keyword = llmgw_schema_keyword(tokens[0],
													 (int) strlen(tokens[0]));

	*used = 1;
	if (keyword == NULL)
		return NULL;
	if (keyword->read == read_schema)
		return *FIELD(schema, keyword, LlmSchema *);

	*used = 2;
	if (n < 2)
		return NULL;
	if (keyword->read == read_list)
	{
		LlmSchemaList *list = FIELD(schema, keyword, LlmSchemaList);

		int			i = atoi(tokens[1]);

		/* only digits, and no leading zeros (RFC 6901, 4) */
		if (i >= 0 && i < list->n &&
			strcmp(tokens[1], psprintf("%d", i)) == 0)
			return list->schemas[i];
	}
	else if (keyword->read == read_map || keyword->read == read_pattern_map)
	{
		LlmSchemaMember *member;

		member = llmgw_schema_member(FIELD(schema, keyword, LlmSchemaMap),
									 tokens[1], (int) strlen(tokens[1]));
		return member == NULL ? NULL : member->schema;
	}
	return NULL;
}

LlmSchemaMember *
llmgw_schema_member(const LlmSchemaMap *map, const char *name, int len)
{
	int			low = 0;
	int			high = map->n;

	while (low < high)
	{
		int			middle = low + (high - low) / 2;
		LlmSchemaMember *member = &map->members[middle];
		int			order = len - member->len;

		if (order == 0)
			order = memcmp(name, member->name, len);
		if (order == 0)
			return member;
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return NULL;
}
