/*-------------------------------------------------------------------------
 *
 * json_schema.h
 *	  JSON Schema (2020-12): whether a document satisfies a caller's schema.
 *
 * The promise is that what passes satisfies the schema, so a keyword that is
 * not enforced here is not ignored but refused by its name.  Enforced are
 *
 *	  type, enum, const, allOf, anyOf, oneOf, not, $ref to a place in the same
 *	  schema, the schemas true and false; minimum, maximum, exclusiveMinimum,
 *	  exclusiveMaximum, multipleOf; minLength, maxLength, pattern, format;
 *	  items, prefixItems, minItems, maxItems, uniqueItems; properties,
 *	  patternProperties, additionalProperties, propertyNames, required,
 *	  minProperties, maxProperties
 *
 * and ignored, because they say nothing about validity, are
 *
 *	  title, description, default, examples, deprecated, readOnly, writeOnly,
 *	  $comment, $defs and definitions (but what they hold is checked), $id at
 *	  the root, $schema where it names a draft that these keywords agree with.
 *
 * format is enforced, not an annotation: date, date-time, time, duration,
 * email, hostname, ipv4, ipv6, uri, uri-reference and uuid.  Others are
 * refused by name.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_JSON_SCHEMA_H
#define LLMGW_JSON_SCHEMA_H

#include "utils/jsonb.h"

/*
 * NULL when llmgw_json_schema_validate() enforces every keyword of the schema;
 * else a palloc'd phrase, one line, that names the unsupported keyword or the
 * mistake and its place:
 *		unsupported keyword "if" at "/properties/a"
 *		"minimum" must be a number
 * Without a place it is the root.  Raises nothing but out of memory and
 * interrupts.
 */
extern char *llmgw_json_schema_problem(Jsonb *schema);

/*
 * NULL when the document satisfies the schema; else a palloc'd reason, one
 * line: the JSON pointer of the value at fault and what was expected there,
 * for the caller and for the model that is asked to repair its answer.
 *		"/items/3/price": expected a number, found a string
 * Of the document it holds the names of properties, but no values.
 *
 * Nothing in the document raises an error; one that cannot be checked (it is
 * nested too deeply, or a pattern ran out of bounds on it) does not pass.  The
 * work is bounded by the number of values in the document times the number of
 * schemas in the schema, and can be interrupted.
 */
extern char *llmgw_json_schema_validate(Jsonb *schema, Jsonb *document);

#endif							/* LLMGW_JSON_SCHEMA_H */
