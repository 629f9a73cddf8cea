/*-------------------------------------------------------------------------
 *
 * dialect_reader.h
 *	  Reads a JSON document that a user wrote, and says what is wrong with it.
 *
 * Functions that return bool return false after they have set the reason.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_READER_H
#define LLMGW_DIALECT_READER_H

#include "utils/jsonb.h"

/* An object that is being read. */
typedef struct LlmReader
{
	const char *place;			/* "messages[2].content[0]" */
	JsonbContainer *c;
	char	  **reason;			/* gets a palloc'd phrase */
} LlmReader;

/* Sets the reason: the place, and after it what is wrong. */
extern bool llmgw_reader_wrong(const LlmReader *r, const char *fmt,...) pg_attribute_printf(2, 3);

/* A user's text, fit for a phrase; palloc'd. */
extern char *llmgw_reader_shown(const char *text);

/* An array's or an object's container; NULL: it is something else. */
extern JsonbContainer *llmgw_reader_array(const JsonbValue *v);
extern JsonbContainer *llmgw_reader_object(const JsonbValue *v);

/* Whether a value says nothing: null, or an array with nothing in it. */
extern bool llmgw_reader_nothing(const JsonbValue *v);

/* Makes r the object in that place. */
extern bool llmgw_reader_enter(LlmReader *r, const char *place,
							   const JsonbValue *v, char **reason);

/* Whether each member is in a list that ends with NULL, or says nothing. */
extern bool llmgw_reader_members(const LlmReader *r, const char *const *known);

/* A string member, palloc'd; NULL where there is none and none is required. */
extern bool llmgw_reader_text(const LlmReader *r, const char *key, bool required,
							  const char **text);

/* A string member that names something: required, and not empty. */
extern bool llmgw_reader_name(const LlmReader *r, const char *key, const char **name);

/* Whether "type" is "function", the only one that tools and calls have. */
extern bool llmgw_reader_function(const LlmReader *r);

#endif							/* LLMGW_DIALECT_READER_H */
