/*-------------------------------------------------------------------------
 *
 * dialect_tools.c
 *	  The tools that a caller offers, in no provider's words, and the ids of
 *	  calls of tools.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"

#include "dialect_messages.h"
#include "dialect_reader.h"
#include "json.h"

#define MAX_TOOLS			128 /* OpenAI's limit */
#define MAX_TOOL_NAME		64	/* the smallest limit that a provider has */

static bool
check_tool_name(const LlmReader *r, const char *name)
{
	size_t		len = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-");

	return (name[len] == '\0' && len <= MAX_TOOL_NAME) ||
		llmgw_reader_wrong(r, ".name must be up to %d letters, digits, _ or -, not \"%s\"",
						   MAX_TOOL_NAME, llmgw_reader_shown(name));
}

static bool
read_parameters(const LlmReader *r, LlmTool *tool)
{
	JsonbContainer *c;
	JsonbValue	v;
	char	   *type;

	if (!llmgw_json_get(r->c, &v, "parameters", NULL))
		return true;
	c = llmgw_reader_object(&v);
	if (c == NULL)
		return llmgw_reader_wrong(r, ".parameters must be a JSON schema, an object");
	if (JsonContainerSize(c) == 0)
		return true;			/* takes none */
	type = llmgw_json_get_text(c, "type", NULL);
	if (type == NULL || strcmp(type, "object") != 0)
		return llmgw_reader_wrong(r, ".parameters must be a JSON schema with \"type\": \"object\"");
	tool->parameters = JsonbValueToJsonb(&v);
	return true;
}

static bool
read_tool(const LlmReader *parent, LlmTool *tool)
{
	static const char *const members[] = {"type", "function", NULL};
	static const char *const function_members[] = {
		"name", "description", "parameters", "strict", NULL
	};
	LlmReader	r;
	JsonbValue	v;

	if (!llmgw_reader_function(parent) || !llmgw_reader_members(parent, members))
		return false;
	if (!llmgw_json_get(parent->c, &v, "function", NULL))
		return llmgw_reader_wrong(parent, ".function is missing; it must be an object with \"name\"");
	if (!llmgw_reader_enter(&r, psprintf("%s.function", parent->place), &v, parent->reason) ||
		!llmgw_reader_members(&r, function_members) ||
		!llmgw_reader_name(&r, "name", &tool->name) ||
		!check_tool_name(&r, tool->name) ||
		!llmgw_reader_text(&r, "description", false, &tool->description) ||
		!read_parameters(&r, tool))
		return false;
	if (llmgw_json_get(r.c, &v, "strict", NULL))
	{
		if (v.type != jbvBool)
			return llmgw_reader_wrong(&r, ".strict must be true or false");
		tool->strict = v.val.boolean;
	}
	return true;
}

LlmTools *
llmgw_tools_parse(Jsonb *doc, char **reason)
{
	LlmTools   *tools = palloc0(sizeof(LlmTools));
	LlmReader	r = {"tools", NULL, reason};

	if (!JB_ROOT_IS_ARRAY(doc) || JB_ROOT_IS_SCALAR(doc) || JB_ROOT_COUNT(doc) == 0)
	{
		llmgw_reader_wrong(&r, " must be an array of objects such as {\"type\": \"function\", \"function\": {\"name\": \"...\"}}");
		return NULL;
	}
	if (JB_ROOT_COUNT(doc) > MAX_TOOLS)
	{
		llmgw_reader_wrong(&r, " may be at most %d", MAX_TOOLS);
		return NULL;
	}
	tools->n = JB_ROOT_COUNT(doc);
	tools->tools = palloc0(tools->n * sizeof(LlmTool));
	for (int i = 0; i < tools->n; i++)
	{
		if (!llmgw_reader_enter(&r, psprintf("tools[%d]", i),
								getIthJsonbValueFromContainer(&doc->root, i), reason) ||
			!read_tool(&r, &tools->tools[i]))
			return NULL;
		for (int j = 0; j < i; j++)
		{
			if (strcmp(tools->tools[i].name, tools->tools[j].name) == 0)
			{
				llmgw_reader_wrong(&r, ".function.name is \"%s\", as that of tools[%d]; each tool needs its own",
								   tools->tools[i].name, j);
				return NULL;
			}
		}
	}
	return tools;
}

bool
llmgw_tool_choice_parse(Jsonb *doc, const LlmTools *tools, LlmToolChoice *choice,
						char **reason)
{
	static const char form[] =
	" must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": \"...\"}}";
	static const char *const members[] = {"type", "function", NULL};
	static const char *const function_members[] = {"name", NULL};
	LlmReader	r = {"tool_choice", &doc->root, reason};
	JsonbValue	v;

	choice->mode = LLMGW_CHOICE_UNSET;
	choice->name = NULL;
	if (tools == NULL)
		return llmgw_reader_wrong(&r, " needs tools");
	if (JB_ROOT_IS_SCALAR(doc))
	{
		const JsonbValue *scalar = getIthJsonbValueFromContainer(&doc->root, 0);
		const char *word = scalar->type == jbvString ?
		llmgw_json_value_text(scalar) : "";

		if (strcmp(word, "auto") == 0)
			choice->mode = LLMGW_CHOICE_AUTO;
		else if (strcmp(word, "none") == 0)
			choice->mode = LLMGW_CHOICE_NONE;
		else if (strcmp(word, "required") == 0)
			choice->mode = LLMGW_CHOICE_REQUIRED;
		else
			return llmgw_reader_wrong(&r, "%s", form);
		return true;
	}
	if (!JB_ROOT_IS_OBJECT(doc) ||
		!llmgw_json_get(&doc->root, &v, "function", NULL))
		return llmgw_reader_wrong(&r, "%s", form);
	if (!llmgw_reader_function(&r) || !llmgw_reader_members(&r, members) ||
		!llmgw_reader_enter(&r, "tool_choice.function", &v, reason) ||
		!llmgw_reader_members(&r, function_members) ||
		!llmgw_reader_name(&r, "name", &choice->name))
		return false;
	for (int i = 0; i < tools->n; i++)
	{
		if (strcmp(tools->tools[i].name, choice->name) == 0)
		{
			choice->mode = LLMGW_CHOICE_NAMED;
			return true;
		}
	}
	return llmgw_reader_wrong(&r, ".name must be one of tools; there is no \"%s\"",
							  llmgw_reader_shown(choice->name));
}

/*
 * Ids
 */

static bool
id_fits(const char *id, const LlmCallIds *ids)
{
	int			len = strlen(id);

	return (ids->exactly ? len == ids->length : len <= ids->length) &&
		(ids->characters == NULL || strspn(id, ids->characters) == len);
}

static const char *
fit_id(const char *id, const LlmCallIds *ids)
{
	static const char digits[] = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
	StringInfoData buf;
	int			length = ids->exactly ? ids->length : Min(ids->length, 25);

	if (id_fits(id, ids))
		return id;
	initStringInfo(&buf);
	if (!ids->exactly)
		appendStringInfoString(&buf, "call_");
	for (uint64 seed = 1; buf.len < length; seed++)
	{
		uint64		hash = hash_bytes_extended((const unsigned char *) id,
											   strlen(id), seed);

		/* ten digits are in 64 bits */
		for (int i = 0; i < 10 && buf.len < length; i++, hash /= 62)
			appendStringInfoChar(&buf, digits[hash % 62]);
	}
	return buf.data;
}

const LlmMessages *
llmgw_messages_fit_ids(const LlmMessages *messages, const LlmCallIds *ids)
{
	LlmMessages *copy;

	if (!messages->has_tools)
		return messages;
	copy = palloc(sizeof(LlmMessages));
	*copy = *messages;
	copy->messages = palloc(messages->n * sizeof(LlmMessage));
	for (int i = 0; i < messages->n; i++)
	{
		LlmMessage *m = &copy->messages[i];
		LlmToolUse *uses;

		*m = messages->messages[i];
		uses = m->tool_uses;
		if (m->tool_call_id != NULL)
			m->tool_call_id = fit_id(m->tool_call_id, ids);
		if (m->ntool_uses == 0)
			continue;
		m->tool_uses = palloc(m->ntool_uses * sizeof(LlmToolUse));
		for (int j = 0; j < m->ntool_uses; j++)
		{
			m->tool_uses[j] = uses[j];
			m->tool_uses[j].id = fit_id(uses[j].id, ids);
		}
	}
	return copy;
}
