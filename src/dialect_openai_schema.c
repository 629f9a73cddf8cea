/*-------------------------------------------------------------------------
 *
 * dialect_openai_schema.c
 *	  Whether OpenAI can hold an answer to a JSON schema strictly.
 *
 * With "strict" the provider lets the model write nothing else than what fits
 * the schema, but takes only a part of JSON Schema and refuses the request
 * otherwise (structured outputs: supported schemas).  Who is in doubt asks
 * without: then the schema is advice to the model, and what comes back is to be
 * checked.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "dialect.h"
#include "json.h"

#define MAX_DEPTH			10
#define MAX_PROPERTIES		5000
#define MAX_ENUM_VALUES		1000
#define MAX_NAMES			120000	/* bytes of all names and enum values */

/* What has been seen of the whole schema. */
typedef struct Seen
{
	int64		properties;
	int64		enum_values;
	int64		name_bytes;
} Seen;

static bool check_schema(const JsonbValue *v, int depth, Seen *seen);

static JsonbContainer *
object_of(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsObject(v->val.binary.data) ?
		v->val.binary.data : NULL;
}

static JsonbContainer *
array_of(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data) ?
		v->val.binary.data : NULL;
}

static bool
is_text(const JsonbValue *v, const char *text)
{
	return v->type == jbvString && v->val.string.len == strlen(text) &&
		memcmp(v->val.string.val, text, v->val.string.len) == 0;
}

/* Whether "type", a word or an array of words, has this one. */
static bool
has_type(JsonbContainer *c, const char *type)
{
	JsonbValue	v;
	JsonbContainer *array;

	if (!llmgw_json_get(c, &v, "type", NULL))
		return false;
	array = array_of(&v);
	if (array == NULL)
		return is_text(&v, type);
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
		if (is_text(getIthJsonbValueFromContainer(array, i), type))
			return true;
	return false;
}

/* An object whose members are schemas. */
static bool
check_members(const JsonbValue *v, int depth, Seen *seen)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	if (object_of(v) == NULL)
		return false;
	while (llmgw_json_next_member(object_of(v), &it, &key, &value))
	{
		seen->name_bytes += strlen(key);
		if (++seen->properties > MAX_PROPERTIES || !check_schema(&value, depth, seen))
			return false;
	}
	return true;
}

/* An array of schemas. */
static bool
check_elements(const JsonbValue *v, int depth, Seen *seen)
{
	JsonbContainer *array = array_of(v);

	if (array == NULL || JsonContainerSize(array) == 0)
		return false;
	for (uint32 i = 0; i < JsonContainerSize(array); i++)
		if (!check_schema(getIthJsonbValueFromContainer(array, i), depth, seen))
			return false;
	return true;
}

static bool
check_enum(const JsonbValue *v, Seen *seen)
{
	JsonbContainer *array = array_of(v);

	if (array == NULL || JsonContainerSize(array) == 0)
		return false;
	seen->enum_values += JsonContainerSize(array);
	seen->name_bytes += v->val.binary.len;
	return seen->enum_values <= MAX_ENUM_VALUES && seen->name_bytes <= MAX_NAMES;
}

/* Every property is required, and there are no others. */
static bool
check_object(JsonbContainer *c)
{
	JsonbValue	properties;
	JsonbValue	required;
	JsonbContainer *names = NULL;
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;
	uint32		n = 0;

	if (llmgw_json_get_bool(c, true, "additionalProperties", NULL) ||
		!llmgw_json_get(c, &properties, "properties", NULL) ||
		object_of(&properties) == NULL)
		return false;
	if (llmgw_json_get(c, &required, "required", NULL))
		names = array_of(&required);
	while (llmgw_json_next_member(object_of(&properties), &it, &key, &value))
	{
		JsonbValue	name;

		name.type = jbvString;
		name.val.string.val = key;
		name.val.string.len = strlen(key);
		if (names == NULL ||
			findJsonbValueFromContainer(names, JB_FARRAY, &name) == NULL)
			return false;
		n++;
	}
	return names == NULL || JsonContainerSize(names) == n;
}

/* The keywords that say nothing of other schemas. */
static bool
is_plain_keyword(const char *key)
{
	static const char *const keywords[] = {
		"type", "required", "additionalProperties", "const", "description",
		"title", "pattern", "format", "minimum", "maximum",
		"exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems",
		"maxItems"
	};

	for (int i = 0; i < lengthof(keywords); i++)
		if (strcmp(keywords[i], key) == 0)
			return true;
	return false;
}

static bool
check_schema(const JsonbValue *v, int depth, Seen *seen)
{
	JsonbContainer *c = object_of(v);
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;
	bool		says_something = false;

	if (c == NULL || depth > MAX_DEPTH || seen->name_bytes > MAX_NAMES)
		return false;
	while (llmgw_json_next_member(c, &it, &key, &value))
	{
		if (strcmp(key, "properties") == 0 || strcmp(key, "$defs") == 0 ||
			strcmp(key, "definitions") == 0)
		{
			if (!check_members(&value, depth + 1, seen))
				return false;
		}
		else if (strcmp(key, "anyOf") == 0)
		{
			if (!check_elements(&value, depth + 1, seen))
				return false;
			says_something = true;
		}
		else if (strcmp(key, "items") == 0)
		{
			if (!check_schema(&value, depth + 1, seen))
				return false;
		}
		else if (strcmp(key, "enum") == 0)
		{
			if (!check_enum(&value, seen))
				return false;
			says_something = true;
		}
		else if (strcmp(key, "$ref") == 0)
		{
			/* to a place in the same schema */
			if (value.type != jbvString || value.val.string.len == 0 ||
				value.val.string.val[0] != '#')
				return false;
			says_something = true;
		}
		else if (strcmp(key, "$schema") == 0)
			says_something |= depth == 1;
		else if (!is_plain_keyword(key))
			return false;
		else if (strcmp(key, "type") == 0 || strcmp(key, "const") == 0)
			says_something = true;
	}
	return says_something &&
		(!has_type(c, "object") || check_object(c)) &&
		(!has_type(c, "array") || llmgw_json_get(c, &value, "items", NULL));
}

bool
llmgw_openai_schema_is_strict(Jsonb *schema)
{
	Seen		seen = {0};
	JsonbValue	root;
	JsonbValue	v;

	if (!JB_ROOT_IS_OBJECT(schema) ||
		!llmgw_json_get(&schema->root, &v, "type", NULL) || !is_text(&v, "object") ||
		llmgw_json_get(&schema->root, &v, "anyOf", NULL))
		return false;
	root.type = jbvBinary;
	root.val.binary.data = &schema->root;
	root.val.binary.len = VARSIZE(schema) - VARHDRSZ;
	return check_schema(&root, 1, &seen);
}
