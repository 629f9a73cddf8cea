/*-------------------------------------------------------------------------
 *
 * json.h
 *	  JSON that arrives from providers, and JSON that is sent to them.
 *
 * Reading uses PostgreSQL's jsonb.  A document from a provider is never
 * trusted: llmgw_json_parse() returns a reason instead of raising an error for
 * anything that the document's own bytes can cause.  Out of memory, a cancel
 * and the like still raise.
 *
 * Writing appends to a StringInfo in the server's encoding, and
 * llmgw_json_to_utf8() turns the finished document into the UTF-8 that goes
 * over the wire.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_JSON_H
#define LLMGW_JSON_H

#include "lib/stringinfo.h"
#include "utils/jsonb.h"

/* json.c: reading */

/*
 * Parses len bytes of UTF-8.  Returns a palloc'd document, or NULL with
 * *reason (palloc'd) set: not UTF-8, not JSON, too deep, a character that the
 * server's encoding cannot hold.  The reason is one line for people and holds
 * nothing of the document.
 *
 * Works in the current memory context and leaves its garbage there: who parses
 * many documents resets a context between them.  Needs no transaction.
 */
extern Jsonb *llmgw_json_parse(const char *utf8, size_t len, char **reason);

/* the same for a NUL-terminated text in the server's encoding */
extern Jsonb *llmgw_json_parse_text(const char *text, char **reason);

/*
 * The same document without escapes that jsonb_in refuses in a SQL_ASCII
 * database; in others the text itself.
 */
extern char *llmgw_json_plain(char *text);

/* *reason is this very string when only the server's encoding is at fault */
extern const char *const llmgw_json_unfit;

/*
 * Follow object keys from a container; the path ends with a NULL:
 *		llmgw_json_get(doc, &v, "error", "code", NULL)
 * False when a step is missing or no object, or the value is JSON null.  An
 * array's element i is addressed as "[i]".
 */
extern bool llmgw_json_get(JsonbContainer *c, JsonbValue *result,...);

/* the same for a string (palloc'd), a number or a boolean; NULL/false/default otherwise */
extern char *llmgw_json_get_text(JsonbContainer *c,...);
extern bool llmgw_json_get_int(JsonbContainer *c, int64 *result,...);
extern bool llmgw_json_get_bool(JsonbContainer *c, int dflt,...);

/* a palloc'd C string of a string value; of a number, its digits; else NULL */
extern char *llmgw_json_value_text(const JsonbValue *v);

/* whether the value fits an int64; a fraction is cut off */
extern bool llmgw_json_value_int(const JsonbValue *v, int64 *result);

/*
 * Walks over the members of an object, in jsonb's order:
 *		JsonbIterator *it = NULL;
 *		while (llmgw_json_next_member(c, &it, &key, &value)) ...
 * The key is palloc'd.  Of anything but an object there are no members.
 */
extern bool llmgw_json_next_member(JsonbContainer *c, JsonbIterator **it,
								   char **key, JsonbValue *value);

/* json.c: writing */

/*
 * Appends "key": to an object under construction, with a comma where one is
 * needed.  The value is the caller's to append.
 */
extern void llmgw_json_key(StringInfo buf, const char *key);

/*
 * Appends "key": "value", the value escaped.  Raises 22021 when a SQL_ASCII
 * database holds a value that is not UTF-8.
 */
extern void llmgw_json_put_text(StringInfo buf, const char *key, const char *value);

/* the same for an element; what it is, for that error ("the input") */
extern void llmgw_json_append_text(StringInfo buf, const char *value, const char *what);
extern void llmgw_json_put_int(StringInfo buf, const char *key, int64 value);
extern void llmgw_json_put_bool(StringInfo buf, const char *key, bool value);
extern void llmgw_json_put_jsonb(StringInfo buf, const char *key, JsonbValue *value);

/* the text of any jsonb value, appended */
extern void llmgw_json_append_value(StringInfo buf, JsonbValue *value);

/*
 * The document as UTF-8: buf->data itself where the server's encoding is
 * UTF-8, a palloc'd copy otherwise.  Raises 22021 when a SQL_ASCII database
 * holds bytes that are not UTF-8.  Where the server's encoding is a third one
 * this looks up a conversion, and needs a transaction.
 */
extern char *llmgw_json_to_utf8(StringInfo buf, size_t *len);

#endif							/* LLMGW_JSON_H */
