/*-------------------------------------------------------------------------
 *
 * dialect_request.c
 *	  What the dialects' requests have in common.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "common/shortest_dec.h"
#include "mb/pg_wchar.h"

#include "dialect_request.h"
#include "json.h"

char *
llmgw_request_option(const LlmWireCall *call, const char *key)
{
	return call->options == NULL ? NULL :
		llmgw_json_get_text(&call->options->root, key, NULL);
}

/* The object of that name in params or options; NULL when there is none. */
static JsonbContainer *
member_object(Jsonb *doc, const char *key)
{
	JsonbValue	v;

	if (doc == NULL || !llmgw_json_get(&doc->root, &v, key, NULL) ||
		v.type != jbvBinary || !JsonContainerIsObject(v.val.binary.data))
		return NULL;
	return v.val.binary.data;
}

char *
llmgw_request_url(const LlmWireCall *call, const char *default_base,
				  const char *path)
{
	const char *base = call->base_url ? call->base_url : default_base;
	int			len = strlen(base);

	while (len > 0 && base[len - 1] == '/')
		len--;
	return psprintf("%.*s%s", len, base, path);
}

void
llmgw_request_header(LlmHttpRequest *request, const char *name, const char *value)
{
	size_t		len = strlen(name);

	if (value == NULL || request->nheaders == LLMGW_MAX_HEADERS)
		return;
	for (int i = 0; i < request->nheaders; i++)
	{
		if (pg_strncasecmp(request->headers[i], name, len) == 0 &&
			request->headers[i][len] == ':')
			return;
	}
	request->headers[request->nheaders++] = psprintf("%s: %s", name, value);
}

void
llmgw_request_option_headers(const LlmWireCall *call, LlmHttpRequest *request)
{
	JsonbContainer *headers = member_object(call->options, "headers");
	JsonbIterator *it = NULL;
	JsonbValue	value;
	char	   *name;

	while (headers && llmgw_json_next_member(headers, &it, &name, &value))
		llmgw_request_header(request, name, llmgw_json_value_text(&value));
}

void
llmgw_request_user_agent(LlmHttpRequest *request)
{
	llmgw_request_header(request, "User-Agent", "llm_gateway/" LLM_GATEWAY_VERSION);
}

bool
llmgw_request_extra(const LlmWireCall *call, const char *key, JsonbValue *value)
{
	Jsonb	   *const docs[] = {call->params, call->options};

	for (int i = 0; i < lengthof(docs); i++)
	{
		JsonbContainer *extra = member_object(docs[i], "extra");

		if (extra && getKeyJsonValueFromContainer(extra, key, strlen(key), value))
			return true;
	}
	return false;
}

bool
llmgw_request_is_ours(const LlmWireCall *call, const char *key)
{
	JsonbValue	v;

	return !llmgw_request_extra(call, key, &v);
}

void
llmgw_request_begin_element(StringInfo buf)
{
	appendStringInfoString(buf, buf->data[buf->len - 1] == '[' ? "{" : ",{");
}

void
llmgw_request_put_document(StringInfo buf, const char *key, Jsonb *doc)
{
	llmgw_json_key(buf, key);
	(void) JsonbToCString(buf, &doc->root, VARSIZE(doc));
}

void
llmgw_request_put_temperature(StringInfo buf, const LlmWireCall *call)
{
	char		digits[FLOAT_SHORTEST_DECIMAL_LEN];

	if (!call->has_temperature || !isfinite(call->temperature) ||
		!llmgw_request_is_ours(call, "temperature"))
		return;
	float_to_shortest_decimal_buf(call->temperature, digits);
	llmgw_json_key(buf, "temperature");
	appendStringInfoString(buf, digits);
}

void
llmgw_request_group(const LlmWireCall *call, const char *key, LlmGroup *group)
{
	group->extra[0] = member_object(call->params, "extra");
	group->extra[1] = member_object(call->options, "extra");
	for (int i = 0; key != NULL && i < lengthof(group->extra); i++)
	{
		JsonbValue	v;

		if (group->extra[i] == NULL)
			continue;
		if (llmgw_json_get(group->extra[i], &v, key, NULL) &&
			v.type == jbvBinary && JsonContainerIsObject(v.val.binary.data))
			group->extra[i] = v.val.binary.data;
		else
			group->extra[i] = NULL;
	}
}

bool
llmgw_group_is_ours(const LlmGroup *group, const char *key)
{
	JsonbValue	v;

	for (int i = 0; i < lengthof(group->extra); i++)
	{
		if (group->extra[i] && getKeyJsonValueFromContainer(group->extra[i], key,
															strlen(key), &v))
			return false;
	}
	return true;
}

void
llmgw_group_put_extra(StringInfo buf, const LlmGroup *group,
					  const char *const *skipped)
{
	for (int i = 0; i < lengthof(group->extra); i++)
	{
		JsonbIterator *it = NULL;
		JsonbValue	value;
		JsonbValue	v;
		char	   *key;

		while (group->extra[i] &&
			   llmgw_json_next_member(group->extra[i], &it, &key, &value))
		{
			const char *const *skip = skipped;

			while (skip && *skip && strcmp(*skip, key) != 0)
				skip++;
			if (skip && *skip)
				continue;

			/* the caller's wins over the provider's */
			if (i == 0 || group->extra[0] == NULL ||
				!getKeyJsonValueFromContainer(group->extra[0], key, strlen(key), &v))
				llmgw_json_put_jsonb(buf, key, &value);
		}
	}
}

void
llmgw_request_put_list(StringInfo buf, const char *key, JsonbValue *value)
{
	bool		bare = value->type != jbvBinary;

	llmgw_json_key(buf, key);
	if (bare)
		appendStringInfoChar(buf, '[');
	llmgw_json_append_value(buf, value);
	if (bare)
		appendStringInfoChar(buf, ']');
}

char *
llmgw_request_escape(const char *text)
{
	char	   *utf8 = pg_server_to_any(text, strlen(text), PG_UTF8);
	StringInfoData buf;

	initStringInfo(&buf);
	for (const unsigned char *c = (unsigned char *) utf8; *c; c++)
	{
		/* RFC 3986, section 2.3: unreserved characters */
		if (!IS_HIGHBIT_SET(*c) && (isalnum(*c) || strchr("-._~", *c) != NULL))
			appendStringInfoChar(&buf, *c);
		else
			appendStringInfo(&buf, "%%%02X", *c);
	}
	return buf.data;
}

void
llmgw_request_end_body(LlmHttpRequest *request, StringInfo buf,
					   const LlmWireCall *call)
{
	LlmGroup	whole;

	llmgw_request_group(call, NULL, &whole);
	llmgw_group_put_extra(buf, &whole, NULL);
	appendStringInfoChar(buf, '}');
	request->body = llmgw_json_to_utf8(buf, &request->body_len);
}

char *
llmgw_request_check_headers(Jsonb *options, const char *const *keys)
{
	for (; *keys; keys++)
	{
		char	   *value = llmgw_json_get_text(&options->root, *keys, NULL);

		for (; value && *value; value++)
		{
			if ((unsigned char) *value < ' ' || (unsigned char) *value >= 0x7F)
				return psprintf("options key \"%s\" must be printable ASCII",
								*keys);
		}
	}
	return NULL;
}
