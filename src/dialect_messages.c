/*-------------------------------------------------------------------------
 *
 * dialect_messages.c
 *	  A conversation in no provider's words: what dialects translate.
 *
 * Everything is checked here, so that a dialect never meets a message that its
 * provider would refuse for its form, and a mistake costs no attempt.  Members
 * that are not understood are mistakes, too: what they ask for would be left
 * out in silence.  Those that OpenAI's answers carry along empty are not.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"

#include "dialect_answer.h"
#include "dialect_messages.h"
#include "dialect_reader.h"
#include "json.h"

/*
 * Content
 */

static bool
is_base64(const char *data)
{
	size_t		len = strspn(data, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
	size_t		padding = strspn(data + len, "=");

	return len > 0 && data[len + padding] == '\0' && padding <= 2 &&
		(len + padding) % 4 == 0;
}

static bool
read_image_url(const LlmReader *r, const char *url, LlmPart *part)
{
	static const char form[] =
	"an http or https URL, or data:image/png;base64,... with the image's data";
	const char *comma;
	char	   *type;

	if (pg_strncasecmp(url, "http://", 7) == 0 ||
		pg_strncasecmp(url, "https://", 8) == 0)
	{
		for (const char *c = url; *c; c++)
			if ((unsigned char) *c <= ' ' || *c == 0x7F)
				return llmgw_reader_wrong(r, ".url must have no blanks or control characters");
		part->type = LLMGW_PART_IMAGE_URL;
		part->text = url;
		return true;
	}
	if (pg_strncasecmp(url, "data:", 5) != 0)
		return llmgw_reader_wrong(r, ".url must be %s", form);
	comma = strchr(url, ',');
	if (comma == NULL || comma - url < 5 + 7 ||
		pg_strncasecmp(comma - 7, ";base64", 7) != 0 ||
		pg_strncasecmp(url + 5, "image/", 6) != 0)
		return llmgw_reader_wrong(r, ".url must be %s", form);
	type = pnstrdup(url + 5, comma - 7 - (url + 5));
	for (char *c = type; *c; c++)
	{
		*c = pg_ascii_tolower((unsigned char) *c);
		if (strchr("abcdefghijklmnopqrstuvwxyz0123456789/.+-", *c) == NULL)
			return llmgw_reader_wrong(r, ".url must be %s", form);
	}
	if (type[6] == '\0')
		return llmgw_reader_wrong(r, ".url must be %s", form);
	if (!is_base64(comma + 1))
		return llmgw_reader_wrong(r, ".url must hold the image's data in base64, without blanks or line breaks");
	part->type = LLMGW_PART_IMAGE_DATA;
	part->text = comma + 1;
	part->media_type = type;
	return true;
}

static bool
read_image(const LlmReader *parent, LlmPart *part)
{
	static const char *const members[] = {"url", "detail", NULL};
	LlmReader	r;
	JsonbValue	v;
	const char *url;

	if (!llmgw_json_get(parent->c, &v, "image_url", NULL))
		return llmgw_reader_wrong(parent, ".image_url is missing; it must be an object with \"url\"");
	if (!llmgw_reader_enter(&r, psprintf("%s.image_url", parent->place), &v, parent->reason) ||
		!llmgw_reader_members(&r, members) ||
		!llmgw_reader_name(&r, "url", &url) ||
		!llmgw_reader_text(&r, "detail", false, &part->detail))
		return false;
	if (part->detail != NULL && strcmp(part->detail, "auto") != 0 &&
		strcmp(part->detail, "low") != 0 && strcmp(part->detail, "high") != 0)
		return llmgw_reader_wrong(&r, ".detail must be \"auto\", \"low\" or \"high\", not \"%s\"",
								  llmgw_reader_shown(part->detail));
	return read_image_url(&r, url, part);
}

static bool
read_part(const LlmReader *r, LlmRole role, LlmPart *part)
{
	static const char *const text_members[] = {"type", "text", NULL};
	static const char *const image_members[] = {"type", "image_url", NULL};
	const char *type;

	if (!llmgw_reader_text(r, "type", true, &type))
		return false;
	if (strcmp(type, "text") == 0)
	{
		part->type = LLMGW_PART_TEXT;
		return llmgw_reader_members(r, text_members) &&
			llmgw_reader_text(r, "text", true, &part->text);
	}
	if (strcmp(type, "image_url") == 0)
	{
		if (role != LLMGW_ROLE_USER)
			return llmgw_reader_wrong(r, ".type must be \"text\": only a user's message may have images");
		return llmgw_reader_members(r, image_members) && read_image(r, part);
	}
	return llmgw_reader_wrong(r, ".type must be %s, not \"%s\"", role == LLMGW_ROLE_USER ?
							  "\"text\" or \"image_url\"" : "\"text\"", llmgw_reader_shown(type));
}

/* Leaves out texts that are empty: there are providers that refuse them. */
static void
drop_empty_parts(LlmMessage *m)
{
	int			n = 0;

	for (int i = 0; i < m->nparts; i++)
		if (m->parts[i].type != LLMGW_PART_TEXT || m->parts[i].text[0] != '\0')
			m->parts[n++] = m->parts[i];
	m->nparts = n;
}

static bool
read_content(const LlmReader *r, LlmMessage *m)
{
	JsonbContainer *array;
	JsonbValue	v;

	if (!llmgw_json_get(r->c, &v, "content", NULL))
		return (m->role == LLMGW_ROLE_ASSISTANT && m->ntool_uses > 0) ||
			llmgw_reader_wrong(r, ".content is missing; it must be a string or an array of parts");
	array = llmgw_reader_array(&v);
	if (v.type == jbvString)
	{
		m->nparts = 1;
		m->parts = palloc0(sizeof(LlmPart));
		m->parts[0].type = LLMGW_PART_TEXT;
		m->parts[0].text = llmgw_json_value_text(&v);
	}
	else if (array != NULL)
	{
		m->nparts = JsonContainerSize(array);
		m->parts = palloc0(Max(m->nparts, 1) * sizeof(LlmPart));
		for (int i = 0; i < m->nparts; i++)
		{
			LlmReader	part;

			if (!llmgw_reader_enter(&part, psprintf("%s.content[%d]", r->place, i),
									getIthJsonbValueFromContainer(array, i), r->reason) ||
				!read_part(&part, m->role, &m->parts[i]))
				return false;
		}
	}
	else
		return llmgw_reader_wrong(r, ".content must be a string or an array of parts");

	drop_empty_parts(m);
	return m->nparts > 0 || m->ntool_uses > 0 ||
		m->role == LLMGW_ROLE_TOOL ||	/* which may have nothing to say */
		llmgw_reader_wrong(r, ".content must not be empty; leave out a message that says nothing");
}

/*
 * Tool calls and their results
 */

/* The text of a JSON object. */
static bool
is_object_text(const char *text)
{
	char	   *reason;
	Jsonb	   *doc = llmgw_json_parse_text(text, &reason);

	return doc != NULL && JB_ROOT_IS_OBJECT(doc);
}

static bool
read_tool_use(const LlmReader *r, LlmToolUse *use)
{
	static const char *const members[] = {
		"id", "type", "function", "index", "extra_content", NULL
	};
	static const char *const function_members[] = {"name", "arguments", NULL};
	LlmReader	f;
	JsonbValue	v;

	if (!llmgw_reader_members(r, members) || !llmgw_reader_name(r, "id", &use->id) ||
		!llmgw_reader_function(r))
		return false;
	if (!llmgw_json_get(r->c, &v, "function", NULL))
		return llmgw_reader_wrong(r, ".function is missing; it must be an object with \"name\" and \"arguments\"");
	if (!llmgw_reader_enter(&f, psprintf("%s.function", r->place), &v, r->reason) ||
		!llmgw_reader_members(&f, function_members) ||
		!llmgw_reader_name(&f, "name", &use->name) ||
		!llmgw_reader_text(&f, "arguments", true, &use->arguments))
		return false;
	if (strspn(use->arguments, " \t\r\n") == strlen(use->arguments))
		use->arguments = "{}";

	/* where Google's OpenAI-compatible endpoint puts it, too */
	use->signature = llmgw_json_get_text(r->c, "extra_content", "google",
										 "thought_signature", NULL);
	return is_object_text(use->arguments) ||
		llmgw_reader_wrong(&f, ".arguments must be the text of a JSON object");
}

static bool
read_tool_uses(const LlmReader *r, LlmMessage *m)
{
	JsonbContainer *array;
	JsonbValue	v;

	if (!llmgw_json_get(r->c, &v, "tool_calls", NULL) || llmgw_reader_nothing(&v))
		return true;
	if (m->role != LLMGW_ROLE_ASSISTANT)
		return llmgw_reader_wrong(r, ".tool_calls may only be in a message of the assistant");
	array = llmgw_reader_array(&v);
	if (array == NULL)
		return llmgw_reader_wrong(r, ".tool_calls must be an array");
	if (JsonContainerSize(array) > LLMGW_MAX_TOOL_CALLS)
		return llmgw_reader_wrong(r, ".tool_calls may have %d calls at most", LLMGW_MAX_TOOL_CALLS);
	m->ntool_uses = JsonContainerSize(array);
	m->tool_uses = palloc0(m->ntool_uses * sizeof(LlmToolUse));
	for (int i = 0; i < m->ntool_uses; i++)
	{
		LlmReader	use;

		if (!llmgw_reader_enter(&use, psprintf("%s.tool_calls[%d]", r->place, i),
								getIthJsonbValueFromContainer(array, i), r->reason) ||
			!read_tool_use(&use, &m->tool_uses[i]))
			return false;
		for (int j = 0; j < i; j++)
			if (strcmp(m->tool_uses[i].id, m->tool_uses[j].id) == 0)
				return llmgw_reader_wrong(&use, ".id is \"%s\", as that of tool_calls[%d]; each call needs its own",
										  llmgw_reader_shown(m->tool_uses[i].id), j);
	}
	return true;
}

/* The calls of the assistant's last message, and which have their result. */
typedef struct OpenCalls
{
	const LlmMessage *message;	/* NULL: none */
	int			number;			/* of that message */
	int			nopen;
	bool	   *answered;
} OpenCalls;

static void
open_calls(OpenCalls *calls, const LlmMessage *m, int number)
{
	calls->message = m->ntool_uses > 0 ? m : NULL;
	calls->number = number;
	calls->nopen = m->ntool_uses;
	calls->answered = palloc0(Max(m->ntool_uses, 1) * sizeof(bool));
}

/* Finds the call that a tool's result answers. */
static bool
answer_call(const LlmReader *r, OpenCalls *calls, LlmMessage *m)
{
	const LlmMessage *asked = calls->message;

	for (int i = 0; asked != NULL && i < asked->ntool_uses; i++)
	{
		if (strcmp(asked->tool_uses[i].id, m->tool_call_id) != 0)
			continue;
		if (calls->answered[i])
			return llmgw_reader_wrong(r, ".tool_call_id: call \"%s\" of messages[%d] is answered already",
									  llmgw_reader_shown(m->tool_call_id), calls->number);
		calls->answered[i] = true;
		calls->nopen--;
		m->tool_name = asked->tool_uses[i].name;
		return true;
	}
	return llmgw_reader_wrong(r, ".tool_call_id must be the id of a call in tool_calls of the assistant's message before; there is no \"%s\"",
							  llmgw_reader_shown(m->tool_call_id));
}

/* The id of a call without a result. */
static const char *
open_call(const OpenCalls *calls)
{
	int			i = 0;

	while (calls->answered[i])
		i++;
	return llmgw_reader_shown(calls->message->tool_uses[i].id);
}

/*
 * Messages
 */

static bool
read_role(const LlmReader *r, LlmRole *role)
{
	static const struct
	{
		const char *name;
		LlmRole		role;
	}			roles[] = {
		{"system", LLMGW_ROLE_SYSTEM}, {"developer", LLMGW_ROLE_SYSTEM},
		{"user", LLMGW_ROLE_USER}, {"assistant", LLMGW_ROLE_ASSISTANT},
		{"tool", LLMGW_ROLE_TOOL}
	};
	const char *name;

	if (!llmgw_reader_text(r, "role", true, &name))
		return false;
	for (int i = 0; i < lengthof(roles); i++)
	{
		if (strcmp(roles[i].name, name) == 0)
		{
			*role = roles[i].role;
			return true;
		}
	}
	return llmgw_reader_wrong(r, ".role must be system, developer, user, assistant or tool, not \"%s\"",
							  llmgw_reader_shown(name));
}

static bool
read_message(const LlmReader *r, int number, OpenCalls *calls, LlmMessage *m)
{
	static const char *const members[] = {
		"role", "content", "name", "tool_calls", "tool_call_id", NULL
	};

	if (!read_role(r, &m->role) || !llmgw_reader_members(r, members))
		return false;
	if (calls->nopen > 0 && m->role != LLMGW_ROLE_TOOL)
		return llmgw_reader_wrong(r, " must be a tool message: call \"%s\" of messages[%d] has no result yet",
								  open_call(calls), calls->number);
	if (!llmgw_reader_text(r, "name", false, &m->name) ||
		!read_tool_uses(r, m) || !read_content(r, m))
		return false;
	if (m->role == LLMGW_ROLE_TOOL)
		return llmgw_reader_name(r, "tool_call_id", &m->tool_call_id) &&
			answer_call(r, calls, m);
	if (!llmgw_reader_text(r, "tool_call_id", false, &m->tool_call_id))
		return false;
	if (m->tool_call_id != NULL)
		return llmgw_reader_wrong(r, ".tool_call_id may only be in a message of a tool");
	if (m->role == LLMGW_ROLE_ASSISTANT)
		open_calls(calls, m, number);
	return true;
}

/* Adds up what a message has. */
static void
count_message(LlmMessages *messages, const LlmMessage *m)
{
	for (int i = 0; i < m->nparts; i++)
	{
		if (m->parts[i].type == LLMGW_PART_TEXT)
			messages->characters += pg_mbstrlen(m->parts[i].text);
		else
			messages->has_images = true;
		if (m->parts[i].type == LLMGW_PART_IMAGE_URL)
			messages->has_image_urls = true;
	}
	for (int i = 0; i < m->ntool_uses; i++)
		messages->characters += pg_mbstrlen(m->tool_uses[i].arguments);
	if (m->ntool_uses > 0 || m->role == LLMGW_ROLE_TOOL)
		messages->has_tools = true;
}

LlmMessages *
llmgw_messages_parse(Jsonb *doc, char **reason)
{
	LlmMessages *messages = palloc0(sizeof(LlmMessages));
	OpenCalls	calls = {0};
	LlmRole		last = LLMGW_ROLE_SYSTEM;
	LlmReader	r = {"messages", NULL, reason};

	if (!JB_ROOT_IS_ARRAY(doc) || JB_ROOT_IS_SCALAR(doc))
	{
		llmgw_reader_wrong(&r, " must be an array of objects such as {\"role\": \"user\", \"content\": \"...\"}");
		return NULL;
	}
	messages->n = JB_ROOT_COUNT(doc);
	messages->messages = palloc0(Max(messages->n, 1) * sizeof(LlmMessage));
	for (int i = 0; i < messages->n; i++)
	{
		LlmMessage *m = &messages->messages[i];

		CHECK_FOR_INTERRUPTS();
		if (!llmgw_reader_enter(&r, psprintf("messages[%d]", i),
								getIthJsonbValueFromContainer(&doc->root, i), reason) ||
			!read_message(&r, i, &calls, m))
			return NULL;
		count_message(messages, m);
		if (m->role != LLMGW_ROLE_SYSTEM)
			last = m->role;
	}

	r.place = "messages";
	if (calls.nopen > 0)
	{
		llmgw_reader_wrong(&r, " end before call \"%s\" of messages[%d] has its result: add a message with \"role\": \"tool\"",
						   open_call(&calls), calls.number);
		return NULL;
	}
	if (last == LLMGW_ROLE_SYSTEM)
	{
		llmgw_reader_wrong(&r, " must have at least one message with \"role\": \"user\"");
		return NULL;
	}
	if (last == LLMGW_ROLE_ASSISTANT)
	{
		llmgw_reader_wrong(&r, " must not end with a message of the assistant: there is nothing to answer");
		return NULL;
	}
	return messages;
}

LlmMessages *
llmgw_messages_from_prompt(const char *prompt)
{
	LlmMessages *messages = palloc0(sizeof(LlmMessages));
	LlmMessage *m = palloc0(sizeof(LlmMessage));

	m->role = LLMGW_ROLE_USER;
	m->nparts = 1;
	m->parts = palloc0(sizeof(LlmPart));
	m->parts[0].type = LLMGW_PART_TEXT;
	m->parts[0].text = prompt;
	messages->n = 1;
	messages->messages = m;
	count_message(messages, m);
	return messages;
}

/*
 * For providers with other forms
 */

char *
llmgw_messages_system(const LlmMessages *messages, const char *system_prompt)
{
	StringInfoData buf;
	bool		any = system_prompt != NULL;

	initStringInfo(&buf);
	if (any)
		appendStringInfoString(&buf, system_prompt);
	for (int i = 0; i < messages->n; i++)
	{
		const LlmMessage *m = &messages->messages[i];

		if (m->role != LLMGW_ROLE_SYSTEM)
			continue;
		if (any)
			appendStringInfoString(&buf, "\n\n");
		for (int p = 0; p < m->nparts; p++)
			appendStringInfoString(&buf, m->parts[p].text);
		any = true;
	}
	return any ? buf.data : NULL;
}

const char *
llmgw_messages_lead(const LlmMessages *messages, const char *system_prompt, int *next)
{
	LlmMessages first = {.n = 1,.messages = messages->messages};

	*next = 0;
	if (system_prompt == NULL || messages->n == 0 ||
		messages->messages[0].role != LLMGW_ROLE_SYSTEM || messages->messages[0].name != NULL)
		return system_prompt;
	*next = 1;
	return llmgw_messages_system(&first, system_prompt);
}

LlmTurn *
llmgw_messages_turns(const LlmMessages *messages, int *nturns)
{
	LlmTurn    *turns = palloc(Max(messages->n, 1) * sizeof(LlmTurn));
	const LlmMessage **members = palloc(Max(messages->n, 1) * sizeof(LlmMessage *));
	int			n = 0;

	for (int i = 0; i < messages->n; i++)
	{
		const LlmMessage *m = &messages->messages[i];
		bool		assistant = m->role == LLMGW_ROLE_ASSISTANT;

		if (m->role == LLMGW_ROLE_SYSTEM)
			continue;
		if (n == 0 || turns[n - 1].assistant != assistant)
		{
			turns[n].assistant = assistant;
			turns[n].n = 0;
			turns[n].messages = members;
			n++;
		}
		turns[n - 1].n++;
		*members++ = m;
	}
	*nturns = n;
	return turns;
}
