/*-------------------------------------------------------------------------
 *
 * dialect_request.h
 *	  What the dialects' requests have in common.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_REQUEST_H
#define LLMGW_DIALECT_REQUEST_H

#include "dialect.h"

/* A text of llm_providers.options, palloc'd; NULL: not given. */
extern char *llmgw_request_option(const LlmWireCall *call, const char *key);

/* The call's base URL, or the default one, and a path that begins with a slash. */
extern char *llmgw_request_url(const LlmWireCall *call, const char *default_base,
							   const char *path);

/* Adds a header unless there is one of that name, or no value. */
extern void llmgw_request_header(LlmHttpRequest *request, const char *name,
								 const char *value);

/* Adds those of options.headers; what was added before stays. */
extern void llmgw_request_option_headers(const LlmWireCall *call,
										 LlmHttpRequest *request);

/* Adds User-Agent; the last, so that a user may have given another. */
extern void llmgw_request_user_agent(LlmHttpRequest *request);

/*
 * Members of the body that a user wrote: the caller's params.extra, then the
 * provider's options.extra.  False when neither has the key.
 */
extern bool llmgw_request_extra(const LlmWireCall *call, const char *key,
								JsonbValue *value);

/* Whether ours is to be written: each key must be in the body only once. */
extern bool llmgw_request_is_ours(const LlmWireCall *call, const char *key);

/* Begins an element, an object, of the array at the buffer's end. */
extern void llmgw_request_begin_element(StringInfo buf);

/* Appends "key": the whole document. */
extern void llmgw_request_put_document(StringInfo buf, const char *key, Jsonb *doc);

/* Writes the call's temperature, if it has one. */
extern void llmgw_request_put_temperature(StringInfo buf, const LlmWireCall *call);

/*
 * What a user wrote into one object of the body, in "extra": the caller's and
 * the provider's, each NULL when there is nothing.  Some providers take
 * parameters in an object of their own; there, too, a member that is added must
 * not take ours away.  With key NULL: what was written into the body itself.
 */
typedef struct LlmGroup
{
	JsonbContainer *extra[2];
} LlmGroup;

extern void llmgw_request_group(const LlmWireCall *call, const char *key,
								LlmGroup *group);
extern bool llmgw_group_is_ours(const LlmGroup *group, const char *key);

/*
 * Writes these members, but for some that are never the user's: a list that ends
 * with NULL; may be NULL.
 */
extern void llmgw_group_put_extra(StringInfo buf, const LlmGroup *group,
								  const char *const *skipped);

/* Writes a value that may be a string or an array, such as "stop", as an array. */
extern void llmgw_request_put_list(StringInfo buf, const char *key,
								   JsonbValue *value);

/* A text as one segment of a URL's path, or a value in its query: UTF-8, escaped. */
extern char *llmgw_request_escape(const char *text);

/*
 * Writes what the user added, ends the object that is in buf and makes it the
 * request's body.
 */
extern void llmgw_request_end_body(LlmHttpRequest *request, StringInfo buf,
								   const LlmWireCall *call);

/*
 * For check_options: NULL, or why a text that becomes a header cannot; the keys
 * end with a NULL.
 */
extern char *llmgw_request_check_headers(Jsonb *options, const char *const *keys);

#endif							/* LLMGW_DIALECT_REQUEST_H */
