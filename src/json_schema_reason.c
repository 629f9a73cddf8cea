/*-------------------------------------------------------------------------
 *
 * json_schema_reason.c
 *	  Why a document does not satisfy a schema, in words.
 *
 * A reason goes to the caller and to the model that is asked to repair its
 * answer.  It names the place and what was expected there, and all of the
 * properties that are missing or too many, so that one repair is enough.  Of
 * the document it quotes nothing but the names of properties: an error is
 * logged where the answers themselves must not be.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "miscadmin.h"

#include "json_schema_private.h"

/* names that one reason lists */
#define MAX_NAMES		10

static void
add_place(LlmCheck *run, const LlmPlace *place)
{
	const LlmPlace *holder = place->is_name ? place->up : place;
	LlmPointer	pointer;

	if (place == run->about)
		return;
	llmgw_pointer_init(&pointer);
	for (const LlmPlace *n = holder; n->up != NULL && !pointer.cut; n = n->up)
	{
		if (n->name != NULL)
			llmgw_pointer_prepend(&pointer, n->name->val.string.val,
								  n->name->val.string.len);
		else
			llmgw_pointer_prepend_index(&pointer, n->index);
	}
	appendStringInfoString(&run->reason, holder->up == NULL ? "the document" :
						   llmgw_pointer_quoted(&pointer));
	if (place->is_name)
		appendStringInfo(&run->reason, ", the property name %s",
						 llmgw_quoted(place->v.val.string.val,
									  place->v.val.string.len));
	appendStringInfoString(&run->reason, ": ");
}

bool
llmgw_schema_fail(LlmCheck *run, const LlmPlace *place, bool explain,
				  const char *fmt,...)
{
	va_list		args;
	int			needed;

	if (!explain || run->given_up != NULL)
		return false;
	add_place(run, place);
	for (;;)
	{
		va_start(args, fmt);
		needed = appendStringInfoVA(&run->reason, fmt, args);
		va_end(args);
		if (needed == 0)
			return false;
		enlargeStringInfo(&run->reason, needed);
	}
}

bool
llmgw_schema_give_up(LlmCheck *run, const LlmPlace *place, const char *why)
{
	if (run->given_up == NULL)
	{
		run->given_up = why;
		resetStringInfo(&run->reason);
		run->about = NULL;
		add_place(run, place);
		appendStringInfoString(&run->reason, why);
	}
	return false;
}

/* "1 item", "2 items" */
static const char *
count(int64 n, const char *one, const char *many)
{
	return psprintf(INT64_FORMAT " %s", n, n == 1 ? one : many);
}

bool
llmgw_schema_check_count(LlmCheck *run, const LlmPlace *place, bool explain,
						 int64 n, int64 min, int64 max, const char *one,
						 const char *many)
{
	if (n >= min && n <= max)
		return true;
	if (!explain)
		return false;
	return llmgw_schema_fail(run, place, true,
							 "expected at %s %s, found " INT64_FORMAT,
							 n < min ? "least" : "most",
							 count(n < min ? min : max, one, many), n);
}

bool
llmgw_schema_fail_type(LlmCheck *run, const LlmSchema *s,
					   const LlmPlace *place, bool explain)
{
	int			type = llmgw_jsonb_type(&place->v);

	if (!explain)
		return false;
	return llmgw_schema_fail(run, place, true, "expected %s, found %s%s",
							 llmgw_types_phrase(s->types),
							 llmgw_types_phrase(type),
							 (s->types & LLMGW_TYPE_INTEGER) != 0 &&
							 type == LLMGW_TYPE_NUMBER ? " with a fraction" : "");
}

bool
llmgw_schema_fail_bound(LlmCheck *run, const LlmPlace *place, bool explain,
						const char *expected, Numeric bound)
{
	JsonbValue	v = {.type = jbvNumeric,.val.numeric = bound};

	if (!explain)
		return false;
	return llmgw_schema_fail(run, place, true, "expected %s %s", expected,
							 llmgw_value_phrase(&v));
}

/* Adds a name to the list in buf; false when it is full. */
static bool
add_name(StringInfo buf, int *n, const char *name, int len)
{
	if (*n > 0)
		appendStringInfoString(buf, ", ");
	if (++*n > MAX_NAMES)
	{
		appendStringInfoString(buf, "...");
		return false;
	}
	appendStringInfoString(buf, llmgw_quoted(name, len));
	return true;
}

bool
llmgw_schema_lacks(JsonbContainer *object, const LlmSchemaName *required)
{
	JsonbValue	v;

	return getKeyJsonValueFromContainer(object, required->name, required->len,
										&v) == NULL;
}

bool
llmgw_schema_fail_required(LlmCheck *run, const LlmSchema *s,
						   const LlmPlace *place, bool explain)
{
	StringInfoData names;
	int			n = 0;

	if (!explain)
		return false;
	initStringInfo(&names);
	for (int i = 0; i < s->nrequired; i++)
		if (llmgw_schema_lacks(place->v.val.binary.data, &s->required[i]) &&
			!add_name(&names, &n, s->required[i].name, s->required[i].len))
			break;
	return llmgw_schema_fail(run, place, true, "lacks the required %s %s",
							 n == 1 ? "property" : "properties", names.data);
}

/* Whether properties or patternProperties have the name. */
static LlmMatch
is_listed(const LlmSchema *s, const JsonbValue *name)
{
	LlmMatch	match = LLMGW_NO_MATCH;

	if (llmgw_schema_member(&s->properties, name->val.string.val,
							name->val.string.len) != NULL)
		return LLMGW_MATCH;
	for (int i = 0; i < s->pattern_properties.n && match == LLMGW_NO_MATCH; i++)
		match = llmgw_pattern_match(s->pattern_properties.members[i].pattern,
									name->val.string.val,
									name->val.string.len);
	return match;
}

bool
llmgw_schema_fail_additional(LlmCheck *run, const LlmSchema *s,
							 const LlmPlace *place, bool explain)
{
	StringInfoData names;
	StringInfoData allowed;
	JsonbIterator *it;
	JsonbValue	name;
	JsonbValue	v;
	int			n = 0;
	int			nallowed = 0;

	if (!explain)
		return false;
	initStringInfo(&names);
	it = JsonbIteratorInit(place->v.val.binary.data);
	(void) JsonbIteratorNext(&it, &name, true);
	while (JsonbIteratorNext(&it, &name, true) == WJB_KEY)
	{
		CHECK_FOR_INTERRUPTS();
		(void) JsonbIteratorNext(&it, &v, true);
		if (is_listed(s, &name) == LLMGW_NO_MATCH &&
			!add_name(&names, &n, name.val.string.val, name.val.string.len))
			break;
	}

	initStringInfo(&allowed);
	for (int i = 0; i < s->properties.n; i++)
		if (!add_name(&allowed, &nallowed, s->properties.members[i].name,
					  s->properties.members[i].len))
			break;
	return llmgw_schema_fail(run, place, true, "has %s not allowed here: %s%s",
							 n == 1 ? "a property that is" : "properties that are",
							 names.data,
							 s->pattern_properties.n > 0 || nallowed == 0 ? "" :
							 psprintf(" (allowed: %s)", allowed.data));
}
