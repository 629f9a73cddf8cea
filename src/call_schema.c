/*-------------------------------------------------------------------------
 *
 * call_schema.c
 *	  Whether an answer is the JSON document that was asked for.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/memutils.h"

#include "call.h"
#include "json.h"
#include "json_schema.h"

static const char *
skip_space(const char *s)
{
	return s + strspn(s, " \t\r\n");
}

/*
 * What is within a Markdown code fence, if the text is one; else the text.  A
 * model that can only be told to write JSON likes to wrap it.
 */
static char *
unfence(const char *text)
{
	const char *start = skip_space(text);
	const char *end;
	int			ticks = strspn(start, "`");
	int			closing = 0;

	if (ticks < 3)
		return pstrdup(text);
	start += ticks;

	/* the word for the language, and nothing else on that line */
	start += strspn(start, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0-9");
	if (strchr("\r\n", *(start += strspn(start, " \t"))) == NULL)
		return pstrdup(text);

	end = start + strlen(start);
	while (end > start && strchr(" \t\r\n", end[-1]) != NULL)
		end--;
	for (; closing < ticks && end > start && end[-1] == '`'; closing++)
		end--;
	if (closing < 3 && strstr(start, "```") != NULL)
		return pstrdup(text);
	return pnstrdup(start, end - start);
}

/*
 * A key that was sent back in escapes has not been found in the text.  Masked, a
 * document may not be one any more: then it is none.
 */
static Jsonb *
mask_document(Jsonb *doc, const char *key, char **reason)
{
	char	   *content;

	if (key == NULL || strlen(key) < LLMGW_MIN_MASKED_KEY)
		return doc;
	content = JsonbToCString(NULL, &doc->root, VARSIZE(doc));
	if (strstr(content, key) == NULL)
		return doc;
	llmgw_mask_key(content, strlen(content), key);
	return llmgw_json_parse_text(content, reason);
}

/*
 * What a token limit cut is whole only if its own last character ends it: of a
 * number, digits may be missing.
 */
static bool
may_be_cut(const LlmCall *call, Jsonb *doc)
{
	JsonbValue	v;

	if (!llmgw_call_was_cut(call) || !JB_ROOT_IS_SCALAR(doc))
		return false;
	return JsonbExtractScalar(&doc->root, &v) && v.type == jbvNumeric;
}

void
llmgw_call_check_schema(LlmCall *call)
{
	const LlmSpec *spec = call->spec;
	MemoryContext old = MemoryContextSwitchTo(call->scratch);
	const char *content = call->response;
	char	   *reason = NULL;
	Jsonb	   *doc;

	if (spec->operation == LLMGW_OP_JSON)
		content = unfence(content);
	if (*skip_space(content) == '\0')
	{
		doc = NULL;
		reason = "the answer is empty";
	}
	else
	{
		doc = llmgw_json_parse_text(content, &reason);
		if (doc != NULL)
			doc = mask_document(doc, call->wire.api_key, &reason);
		if (doc == NULL)
			reason = psprintf("the answer is %s", reason);
		else if (may_be_cut(call, doc))
			reason = "the answer is a number that may be cut short";
		else
			reason = llmgw_json_schema_validate(spec->schema, doc);
	}

	MemoryContextSwitchTo(call->context);
	if (reason != NULL)
		call->mismatch = pstrdup(reason);
	else
	{
		call->document = palloc(VARSIZE(doc));
		memcpy(call->document, doc, VARSIZE(doc));
	}
	MemoryContextSwitchTo(old);
	MemoryContextReset(call->scratch);
}
