/*-------------------------------------------------------------------------
 *
 * dialect_reader.c
 *	  Reads a JSON document that a user wrote, and says what is wrong with it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"

#include "dialect_reader.h"
#include "errors.h"
#include "json.h"

#define MAX_SHOWN			64	/* bytes of a user's value in a phrase */

bool
llmgw_reader_wrong(const LlmReader *r, const char *fmt,...)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, r->place);
	for (;;)
	{
		va_list		args;
		int			needed;

		va_start(args, fmt);
		needed = appendStringInfoVA(&buf, fmt, args);
		va_end(args);
		if (needed == 0)
			break;
		enlargeStringInfo(&buf, needed);
	}
	*r->reason = buf.data;
	return false;
}

char *
llmgw_reader_shown(const char *text)
{
	return llmgw_clean_text(text, MAX_SHOWN);
}

JsonbContainer *
llmgw_reader_array(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsArray(v->val.binary.data) ?
		v->val.binary.data : NULL;
}

JsonbContainer *
llmgw_reader_object(const JsonbValue *v)
{
	return v->type == jbvBinary && JsonContainerIsObject(v->val.binary.data) ?
		v->val.binary.data : NULL;
}

bool
llmgw_reader_nothing(const JsonbValue *v)
{
	JsonbContainer *c = llmgw_reader_array(v);

	return v->type == jbvNull || (c != NULL && JsonContainerSize(c) == 0);
}

bool
llmgw_reader_members(const LlmReader *r, const char *const *known)
{
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *key;

	while (llmgw_json_next_member(r->c, &it, &key, &value))
	{
		StringInfoData names;
		const char *const *name = known;

		while (*name != NULL && strcmp(*name, key) != 0)
			name++;
		if (*name != NULL || llmgw_reader_nothing(&value))
			continue;
		initStringInfo(&names);
		for (name = known; *name; name++)
			appendStringInfo(&names, "%s%s", name == known ? "" : ", ", *name);
		return llmgw_reader_wrong(r, " has an unknown key \"%s\"; known are: %s",
								  llmgw_reader_shown(key), names.data);
	}
	return true;
}

bool
llmgw_reader_enter(LlmReader *r, const char *place, const JsonbValue *v, char **reason)
{
	r->place = place;
	r->reason = reason;
	r->c = llmgw_reader_object(v);
	return r->c != NULL || llmgw_reader_wrong(r, " must be an object");
}

bool
llmgw_reader_text(const LlmReader *r, const char *key, bool required, const char **text)
{
	JsonbValue	v;

	*text = NULL;
	if (!llmgw_json_get(r->c, &v, key, NULL))
		return !required || llmgw_reader_wrong(r, ".%s is missing; it must be a string", key);
	if (v.type != jbvString)
		return llmgw_reader_wrong(r, ".%s must be a string", key);
	*text = llmgw_json_value_text(&v);
	return true;
}

bool
llmgw_reader_name(const LlmReader *r, const char *key, const char **name)
{
	if (!llmgw_reader_text(r, key, true, name))
		return false;
	return **name != '\0' || llmgw_reader_wrong(r, ".%s must not be empty", key);
}

bool
llmgw_reader_function(const LlmReader *r)
{
	const char *type;

	if (!llmgw_reader_text(r, "type", true, &type))
		return false;
	return strcmp(type, "function") == 0 ||
		llmgw_reader_wrong(r, ".type must be \"function\", not \"%s\"", llmgw_reader_shown(type));
}
