/*-------------------------------------------------------------------------
 *
 * json_schema_validate.c
 *	  Whether a document satisfies a compiled JSON Schema, and if not, where
 *	  and why.
 *
 * One walk does both.  Schemas whose failure is not the document's failure (the
 * alternatives of anyOf, what not excludes) are tried in silence; everything
 * else writes its reason where it fails, and that ends the walk.
 *
 * A walk over a schema without $ref meets each pair of a schema and a value
 * once.  With $ref it could meet one pair by many ways, as many as two to the
 * power of the document's depth; so the verdict on each pair that a $ref leads
 * to is remembered, which bounds the whole by the product of both sizes.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/pg_prng.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

#include "json_schema.h"
#include "json_schema_private.h"

/* a reason that is longer gets no further alternatives */
#define ENOUGH_REASON	800

typedef struct Pair
{
	const LlmSchema *schema;
	const void *id;
} Pair;

typedef struct Verdict
{
	Pair		pair;
	bool		satisfied;
} Verdict;

static bool check(LlmCheck *run, const LlmSchema *schema, const LlmPlace *place,
				  bool explain);

/*
 * Values of one type
 */

static int
compare(const JsonbValue *v, Numeric bound)
{
	return DatumGetInt32(DirectFunctionCall2(numeric_cmp,
											 NumericGetDatum(v->val.numeric),
											 NumericGetDatum(bound)));
}

static bool
is_multiple(const JsonbValue *v, Numeric divisor)
{
	Datum		rest = DirectFunctionCall2(numeric_mod,
										   NumericGetDatum(v->val.numeric),
										   NumericGetDatum(divisor));
	bool		zero = DatumGetBool(DirectFunctionCall2(numeric_eq, rest,
														NumericGetDatum(int64_to_numeric(0))));

	pfree(DatumGetPointer(rest));
	return zero;
}

static bool
check_number(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			 bool explain)
{
	const JsonbValue *v = &place->v;

	if (s->minimum != NULL && compare(v, s->minimum) < 0)
		return llmgw_schema_fail_bound(run, place, explain,
									   "a number of at least", s->minimum);
	if (s->maximum != NULL && compare(v, s->maximum) > 0)
		return llmgw_schema_fail_bound(run, place, explain,
									   "a number of at most", s->maximum);
	if (s->exclusive_minimum != NULL && compare(v, s->exclusive_minimum) <= 0)
		return llmgw_schema_fail_bound(run, place, explain,
									   "a number greater than", s->exclusive_minimum);
	if (s->exclusive_maximum != NULL && compare(v, s->exclusive_maximum) >= 0)
		return llmgw_schema_fail_bound(run, place, explain,
									   "a number less than", s->exclusive_maximum);
	if (s->multiple_of != NULL && !is_multiple(v, s->multiple_of))
		return llmgw_schema_fail_bound(run, place, explain,
									   "a multiple of", s->multiple_of);
	return true;
}

static bool
check_string(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			 bool explain)
{
	const char *text = place->v.val.string.val;
	int			len = place->v.val.string.len;

	if ((s->min_length > 0 || s->max_length < PG_INT64_MAX) &&
		!llmgw_schema_check_count(run, place, explain,
								  llmgw_character_count(text, len),
								  s->min_length, s->max_length,
								  "character", "characters"))
		return false;
	if (s->pattern != NULL)
		switch (llmgw_pattern_match(s->pattern, text, len))
		{
			case LLMGW_MATCH:
				break;
			case LLMGW_NO_MATCH:
				if (!explain)
					return false;
				return llmgw_schema_fail(run, place, true,
										 "expected a string that matches the pattern %s",
										 llmgw_value_phrase(s->pattern_text));
			case LLMGW_MATCH_FAILED:
				return llmgw_schema_give_up(run, place,
											"could not be matched with a pattern");
		}
	if (s->format != NULL && !s->format->fits(text, len))
		return llmgw_schema_fail(run, place, explain, "expected %s",
								 s->format->what);
	return true;
}

static bool
check_array(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			bool explain)
{
	JsonbContainer *array = place->v.val.binary.data;
	uint32		n = JsonContainerSize(array);
	JsonbIterator *it;
	LlmPlace	child = {.up = place};

	if (!llmgw_schema_check_count(run, place, explain, n, s->min_items,
								  s->max_items, "item", "items"))
		return false;
	if (s->unique_items && n > 1)
	{
		LlmHashed  *hashed = llmgw_jsonb_hash_elements(array, run->seed);
		int			first;
		int			second;
		bool		twins = llmgw_jsonb_twins(hashed, n, &first, &second);

		pfree(hashed);
		if (twins)
			return llmgw_schema_fail(run, place, explain,
									 "expected no two equal items, found %d and %d equal",
									 first, second);
	}
	if (s->items == NULL && s->prefix_items.n == 0)
		return true;

	it = JsonbIteratorInit(array);
	(void) JsonbIteratorNext(&it, &child.v, true);	/* WJB_BEGIN_ARRAY */
	for (uint32 i = 0; i < n; i++)
	{
		const LlmSchema *schema = s->items;

		if (i < s->prefix_items.n)
			schema = s->prefix_items.schemas[i];
		if (schema == NULL)
			break;
		(void) JsonbIteratorNext(&it, &child.v, true);
		child.id = &array->children[i];
		child.index = i;
		if (!check(run, schema, &child, explain))
			return false;
	}
	return true;
}

/* One member of an object, by all the keywords that apply to it. */
static bool
check_member(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			 LlmPlace *child, bool explain)
{
	const char *name = child->name->val.string.val;
	int			len = child->name->val.string.len;
	const LlmSchemaMember *member = llmgw_schema_member(&s->properties, name, len);
	bool		listed = member != NULL;

	if (listed && !check(run, member->schema, child, explain))
		return false;
	for (int i = 0; i < s->pattern_properties.n; i++)
	{
		member = &s->pattern_properties.members[i];
		switch (llmgw_pattern_match(member->pattern, name, len))
		{
			case LLMGW_NO_MATCH:
				break;
			case LLMGW_MATCH:
				listed = true;
				if (!check(run, member->schema, child, explain))
					return false;
				break;
			case LLMGW_MATCH_FAILED:
				return llmgw_schema_give_up(run, child,
											"has a name that could not be matched with a pattern");
		}
	}
	if (listed || s->additional_properties == NULL)
		return true;
	if (s->additional_properties->is_false)
		return llmgw_schema_fail_additional(run, s, place, explain);
	return check(run, s->additional_properties, child, explain);
}

static bool
check_members(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			  bool explain)
{
	JsonbContainer *object = place->v.val.binary.data;
	uint32		n = JsonContainerSize(object);
	JsonbIterator *it;
	JsonbValue	name;

	it = JsonbIteratorInit(object);
	(void) JsonbIteratorNext(&it, &name, true); /* WJB_BEGIN_OBJECT */
	for (uint32 i = 0; i < n; i++)
	{
		LlmPlace	child = {.up = place,.name = &name};

		/* an object has the names first, then the values */
		(void) JsonbIteratorNext(&it, &name, true);
		(void) JsonbIteratorNext(&it, &child.v, true);
		child.id = &object->children[n + i];
		if (s->property_names != NULL)
		{
			LlmPlace	key = {
				.v = name,
				.id = &object->children[i],
				.up = place,
				.is_name = true
			};

			if (!check(run, s->property_names, &key, explain))
				return false;
		}
		if (!check_member(run, s, place, &child, explain))
			return false;
	}
	return true;
}

static bool
check_object(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			 bool explain)
{
	JsonbContainer *object = place->v.val.binary.data;
	bool		incomplete = false;

	if (!llmgw_schema_check_count(run, place, explain,
								  JsonContainerSize(object),
								  s->min_properties, s->max_properties,
								  "property", "properties"))
		return false;

	/*
	 * A reason tells of the properties that are there before those that are
	 * missing: of the alternatives of an anyOf, told apart by a property, the
	 * wrong ones then give that property as their reason.
	 */
	for (int i = 0; i < s->nrequired && !incomplete; i++)
		incomplete = llmgw_schema_lacks(object, &s->required[i]);
	if (incomplete && !explain)
		return false;
	if ((s->properties.n > 0 || s->pattern_properties.n > 0 ||
		 s->additional_properties != NULL || s->property_names != NULL) &&
		!check_members(run, s, place, explain))
		return false;
	return !incomplete || llmgw_schema_fail_required(run, s, place, explain);
}

/*
 * Schemas within schemas
 */

static bool
check_ref(LlmCheck *run, const LlmSchema *target, const LlmPlace *place,
		  bool explain)
{
	Pair		pair = {target, place->id};
	Verdict    *verdict;
	bool		satisfied;

	/* a failure has to be found again before it can be explained */
	verdict = hash_search(run->verdicts, &pair, HASH_FIND, NULL);
	if (verdict != NULL && (verdict->satisfied || !explain))
		return verdict->satisfied;

	satisfied = check(run, target, place, explain);
	if (run->given_up == NULL)
	{
		verdict = hash_search(run->verdicts, &pair, HASH_ENTER, NULL);
		verdict->satisfied = satisfied;
	}
	return satisfied;
}

/* Tells what each alternative would have needed, as far as there is room. */
static bool
fail_alternatives(LlmCheck *run, const LlmSchemaList *list,
				  const char *keyword, const LlmPlace *place, bool explain)
{
	const LlmPlace *about = run->about;

	(void) llmgw_schema_fail(run, place, explain, "fits no schema of \"%s\"",
							 keyword);
	if (!explain)
		return false;

	run->about = place;
	for (int i = 0; i < list->n && run->given_up == NULL; i++)
	{
		if (run->reason.len > ENOUGH_REASON)
		{
			if (!run->cut)
				appendStringInfoString(&run->reason, "; ...");
			run->cut = true;
			break;
		}
		appendStringInfo(&run->reason, "%s(%d) ", i == 0 ? ": " : "; ", i);
		(void) check(run, list->schemas[i], place, true);
	}
	run->about = about;
	return false;
}

static bool
check_any_of(LlmCheck *run, const LlmSchemaList *list,
			 const LlmPlace *place, bool explain)
{
	if (list->n == 1)
		return check(run, list->schemas[0], place, explain);
	for (int i = 0; i < list->n; i++)
	{
		if (check(run, list->schemas[i], place, false))
			return true;
		if (run->given_up != NULL)
			return false;
	}
	return fail_alternatives(run, list, "anyOf", place, explain);
}

static bool
check_one_of(LlmCheck *run, const LlmSchemaList *list,
			 const LlmPlace *place, bool explain)
{
	int			first = -1;

	if (list->n == 1)
		return check(run, list->schemas[0], place, explain);
	for (int i = 0; i < list->n; i++)
	{
		bool		fits = check(run, list->schemas[i], place, false);

		if (run->given_up != NULL)
			return false;
		if (fits && first >= 0)
			return llmgw_schema_fail(run, place, explain,
									 "fits two schemas of \"oneOf\", (%d) and (%d), expected only one",
									 first, i);
		if (fits)
			first = i;
	}
	if (first >= 0)
		return true;
	return fail_alternatives(run, list, "oneOf", place, explain);
}

static bool
check_in_place(LlmCheck *run, const LlmSchema *s, const LlmPlace *place,
			   bool explain)
{
	if (s->ref != NULL && !check_ref(run, s->ref, place, explain))
		return false;
	for (int i = 0; i < s->all_of.n; i++)
		if (!check(run, s->all_of.schemas[i], place, explain))
			return false;
	if (s->any_of.n > 0 && !check_any_of(run, &s->any_of, place, explain))
		return false;
	if (s->one_of.n > 0 && !check_one_of(run, &s->one_of, place, explain))
		return false;
	if (s->not_schema != NULL)
	{
		bool		fits = check(run, s->not_schema, place, false);

		if (fits)
			return llmgw_schema_fail(run, place, explain,
									 "fits the schema of \"not\", which excludes it");
		if (run->given_up != NULL)
			return false;
	}
	return true;
}

/*
 * Whether the value satisfies the schema.  With explain, false means that the
 * reason has been told.
 */
static bool
check(LlmCheck *run, const LlmSchema *s, const LlmPlace *place, bool explain)
{
	int			type = llmgw_jsonb_type(&place->v);
	bool		satisfied = true;

	CHECK_FOR_INTERRUPTS();
	if (run->given_up != NULL)
		return false;
	if (stack_is_too_deep())
		return llmgw_schema_give_up(run, place,
									"is nested too deeply to be checked");

	if (s->is_false)
		return llmgw_schema_fail(run, place, explain, "is not allowed here");
	if (s->types != 0 && (s->types & type) == 0 &&
		!((s->types & LLMGW_TYPE_INTEGER) && llmgw_jsonb_is_integer(&place->v)))
		return llmgw_schema_fail_type(run, s, place, explain);
	if (s->constant != NULL && !llmgw_jsonb_same(s->constant, &place->v))
		return llmgw_schema_fail(run, place, explain, "expected %s",
								 explain ? llmgw_value_phrase(s->constant) : "");
	if (s->enum_values != NULL &&
		!llmgw_jsonb_among(s->enum_values, s->nenum, run->seed, &place->v))
		return llmgw_schema_fail(run, place, explain, "expected %s",
								 explain ? llmgw_enum_phrase(s->enum_array) : "");

	if (type == LLMGW_TYPE_NUMBER)
		satisfied = check_number(run, s, place, explain);
	else if (type == LLMGW_TYPE_STRING)
		satisfied = check_string(run, s, place, explain);
	else if (type == LLMGW_TYPE_ARRAY)
		satisfied = check_array(run, s, place, explain);
	else if (type == LLMGW_TYPE_OBJECT)
		satisfied = check_object(run, s, place, explain);
	return satisfied && check_in_place(run, s, place, explain);
}

/* In a context of its own, for its garbage. */
static char *
validate(Jsonb *schema, Jsonb *document)
{
	LlmCheck	run = {.seed = pg_prng_uint64(&pg_global_prng_state)};
	LlmPlace	root = {.id = &document->root};
	HASHCTL		control = {
		.keysize = sizeof(Pair),
		.entrysize = sizeof(Verdict),
		.hcxt = CurrentMemoryContext
	};
	LlmSchema  *compiled;
	char	   *problem;

	compiled = llmgw_schema_compile(schema, run.seed, &problem);
	if (compiled == NULL)
		return psprintf("the schema cannot be used: %s", problem);

	initStringInfo(&run.reason);
	run.verdicts = hash_create("llm_gateway JSON schema verdicts", 256,
							   &control, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	llmgw_jsonb_root(document, &root.v);
	if (check(&run, compiled, &root, true))
		return NULL;
	return run.reason.data;
}

char *
llmgw_json_schema_validate(Jsonb *schema, Jsonb *document)
{
	MemoryContext caller = CurrentMemoryContext;
	MemoryContext context;
	char	   *reason;

	context = AllocSetContextCreate(caller, "llm_gateway JSON validation",
									ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(context);
	reason = validate(schema, document);
	MemoryContextSwitchTo(caller);
	if (reason != NULL)
		reason = pstrdup(reason);
	MemoryContextDelete(context);
	return reason;
}
