/*-------------------------------------------------------------------------
 *
 * json_schema_private.h
 *	  Between the files json_schema_*.c.
 *
 * A schema is compiled before it is used: json_schema_check.c reads the jsonb
 * into a tree of LlmSchema, which json_schema_validate.c walks along with the
 * document.  The tree points into the schema's jsonb and lives in the memory
 * context that it was compiled in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_JSON_SCHEMA_PRIVATE_H
#define LLMGW_JSON_SCHEMA_PRIVATE_H

#include "lib/stringinfo.h"
#include "utils/hsearch.h"
#include "utils/jsonb.h"
#include "utils/numeric.h"

typedef struct LlmSchema LlmSchema;
typedef struct LlmPattern LlmPattern;

/* the types that a schema may name */
#define LLMGW_TYPE_NULL		0x01
#define LLMGW_TYPE_BOOLEAN	0x02
#define LLMGW_TYPE_OBJECT	0x04
#define LLMGW_TYPE_ARRAY	0x08
#define LLMGW_TYPE_NUMBER	0x10
#define LLMGW_TYPE_INTEGER	0x20
#define LLMGW_TYPE_STRING	0x40
#define LLMGW_NTYPES		7

/* the schemas of a keyword like anyOf */
typedef struct LlmSchemaList
{
	int			n;
	LlmSchema **schemas;
} LlmSchemaList;

/* those of a keyword like properties */
typedef struct LlmSchemaMember
{
	const char *name;			/* not terminated */
	int			len;
	LlmSchema  *schema;
	LlmPattern *pattern;		/* the name compiled, in patternProperties */
} LlmSchemaMember;

typedef struct LlmSchemaMap
{
	int			n;
	LlmSchemaMember *members;	/* in jsonb's order: by length, then by bytes */
} LlmSchemaMap;

typedef struct LlmSchemaName
{
	const char *name;			/* not terminated */
	int			len;
} LlmSchemaName;

/* a value and its hash, by which an array of them is sorted */
typedef struct LlmHashed
{
	uint64		hash;
	int			index;			/* in the array that it is from */
	JsonbValue	value;
} LlmHashed;

typedef struct LlmFormat
{
	const char *name;
	const char *what;			/* "a date (YYYY-MM-DD)" */
	bool		(*fits) (const char *s, size_t len);
} LlmFormat;

/*
 * One schema.  A keyword that is not given is NULL, 0 or empty; of those with
 * max, PG_INT64_MAX.
 */
struct LlmSchema
{
	/* where it is: a keyword of its parent, and what selects it there */
	LlmSchema  *parent;
	const char *keyword;
	const char *name;			/* not terminated; NULL when there is none */
	int			name_len;
	int			index;			/* -1 when there is none */

	/* of the compiler */
	LlmSchema  *next;			/* every schema that was read */
	int			mark;
	const char *ref_text;		/* not terminated */
	int			ref_len;
	bool		asserts;		/* has keywords that matter, beside $ref */
	LlmSchemaMap defs;
	LlmSchemaMap definitions;

	bool		is_false;		/* the schema false */
	int			types;			/* LLMGW_TYPE_*; 0 is any */
	JsonbValue *constant;
	JsonbContainer *enum_array; /* as it was written */
	LlmHashed  *enum_values;	/* sorted */
	int			nenum;

	Numeric		minimum;
	Numeric		maximum;
	Numeric		exclusive_minimum;
	Numeric		exclusive_maximum;
	Numeric		multiple_of;

	int64		min_length;
	int64		max_length;
	LlmPattern *pattern;
	JsonbValue *pattern_text;
	const LlmFormat *format;

	LlmSchema  *items;
	LlmSchemaList prefix_items;
	int64		min_items;
	int64		max_items;
	bool		unique_items;

	LlmSchemaMap properties;
	LlmSchemaMap pattern_properties;
	LlmSchema  *additional_properties;
	LlmSchema  *property_names;
	LlmSchemaName *required;
	int			nrequired;
	int64		min_properties;
	int64		max_properties;

	LlmSchema  *ref;
	LlmSchemaList all_of;
	LlmSchemaList any_of;
	LlmSchemaList one_of;
	LlmSchema  *not_schema;
};

/* What the readers of keywords work on. */
typedef struct LlmSchemaReader
{
	LlmSchema  *all;			/* what was read, newest first */
	bool		ref_hides;		/* the draft ignores what is beside a $ref */
	uint64		seed;
	char	   *problem;		/* set once something is wrong */
} LlmSchemaReader;

typedef struct LlmKeyword LlmKeyword;

/* reads the keyword's value into the schema; false with reader->problem */
typedef bool (*LlmKeywordFn) (LlmSchemaReader *reader, LlmSchema *schema,
							  const LlmKeyword *keyword, JsonbValue *value);

struct LlmKeyword
{
	const char *name;
	LlmKeywordFn read;			/* NULL: an annotation, ignored */
	size_t		field;			/* of LlmSchema, for the reader */
};

/* json_schema_check.c */

/* seed: for the hashes of enum's values.  NULL with *problem (palloc'd). */
extern LlmSchema *llmgw_schema_compile(Jsonb *schema, uint64 seed,
									   char **problem);

/* a schema below parent; NULL with reader->problem */
extern LlmSchema *llmgw_schema_read(LlmSchemaReader *reader, LlmSchema *parent,
									const char *keyword, const char *name,
									int name_len, int index, JsonbValue *value);

/* sets reader->problem to '"keyword" at "/place" text'; returns false */
extern bool llmgw_schema_mistake(LlmSchemaReader *reader,
								 const LlmSchema *schema, const char *keyword,
								 const char *fmt,...) pg_attribute_printf(4, 5);

/* ' at "/place"', or nothing for the root */
extern char *llmgw_schema_place(const LlmSchema *schema);

/* json_schema_keywords.c */
extern const LlmKeyword *llmgw_schema_keyword(const char *name, int len);

/*
 * Follows a JSON pointer's first tokens to the schema that they select; *used
 * is their number.  NULL when there is none.
 */
extern LlmSchema *llmgw_schema_step(LlmSchema *schema, char **tokens, int n,
									int *used);

/* the member of that name, or NULL */
extern LlmSchemaMember *llmgw_schema_member(const LlmSchemaMap *map,
											const char *name, int len);

/* json_schema_value.c */
extern void llmgw_jsonb_root(Jsonb *jb, JsonbValue *v);
extern int	llmgw_jsonb_type(const JsonbValue *v);	/* one LLMGW_TYPE_* */
extern bool llmgw_jsonb_is_integer(const JsonbValue *v);
extern bool llmgw_jsonb_same(const JsonbValue *a, const JsonbValue *b);
extern uint64 llmgw_jsonb_hash(const JsonbValue *v, uint64 seed);
extern LlmHashed *llmgw_jsonb_hash_elements(JsonbContainer *array, uint64 seed);
extern bool llmgw_jsonb_among(const LlmHashed *sorted, int n, uint64 seed,
							  const JsonbValue *v);
extern bool llmgw_jsonb_twins(const LlmHashed *sorted, int n, int *first,
							  int *second);

/* json_schema_text.c: phrases */

/* a JSON pointer (RFC 6901), built from its last token to its first */
typedef struct LlmPointer
{
	char		buf[256];
	int			start;
	bool		cut;			/* the first tokens found no room */
} LlmPointer;

extern void llmgw_pointer_init(LlmPointer *p);
extern void llmgw_pointer_prepend(LlmPointer *p, const char *token, int len);
extern void llmgw_pointer_prepend_index(LlmPointer *p, uint32 index);
extern char *llmgw_pointer_quoted(const LlmPointer *p);

/* text in JSON's quotes, clipped */
extern char *llmgw_quoted(const char *s, int len);

/* a value as JSON, clipped */
extern char *llmgw_value_phrase(const JsonbValue *v);

/* "one of 1, 2, 3", as far as there is room */
extern char *llmgw_enum_phrase(JsonbContainer *array);

/* "a string or null" */
extern char *llmgw_types_phrase(int types);

/* json_schema_reason.c */

/* A value in the document. */
typedef struct LlmPlace
{
	JsonbValue	v;
	const void *id;				/* an address that no other value has */
	const struct LlmPlace *up;	/* what holds it; NULL for the document */
	const JsonbValue *name;		/* a property's name, else NULL */
	uint32		index;			/* an element's place */
	bool		is_name;		/* v is the name itself (propertyNames) */
} LlmPlace;

/* One walk over a document. */
typedef struct LlmCheck
{
	uint64		seed;			/* of the hashes of values */
	HTAB	   *verdicts;
	StringInfoData reason;
	const LlmPlace *about;		/* the reason has just named this place */
	bool		cut;			/* the reason has no room for more */
	const char *given_up;		/* why no verdict is possible, or NULL */
} LlmCheck;

/*
 * Each returns false, having said why where an explanation is wanted.  The last
 * two name every property that is missing or that additionalProperties: false
 * does not allow.
 */
extern bool llmgw_schema_fail(LlmCheck *run, const LlmPlace *place,
							  bool explain, const char *fmt,...) pg_attribute_printf(4, 5);
extern bool llmgw_schema_fail_type(LlmCheck *run, const LlmSchema *s,
								   const LlmPlace *place, bool explain);
extern bool llmgw_schema_fail_bound(LlmCheck *run, const LlmPlace *place,
									bool explain, const char *expected,
									Numeric bound);
extern bool llmgw_schema_fail_required(LlmCheck *run, const LlmSchema *s,
									   const LlmPlace *place, bool explain);
extern bool llmgw_schema_fail_additional(LlmCheck *run, const LlmSchema *s,
										 const LlmPlace *place, bool explain);

/*
 * Returns false for good: what cannot be checked has not passed, and not(that)
 * has not either.
 */
extern bool llmgw_schema_give_up(LlmCheck *run, const LlmPlace *place,
								 const char *why);

/* Whether n is within the bounds; says which one it is beyond. */
extern bool llmgw_schema_check_count(LlmCheck *run, const LlmPlace *place,
									 bool explain, int64 n, int64 min,
									 int64 max, const char *one,
									 const char *many);

/* whether the object is without the property */
extern bool llmgw_schema_lacks(JsonbContainer *object,
							   const LlmSchemaName *required);

/* json_schema_format.c */
extern const LlmFormat *llmgw_format_find(const char *name, int len);

/* json_schema_ecma.c */

/*
 * A regular expression of ECMA-262 as an equivalent one of PostgreSQL's
 * (REG_ADVANCED, matched without regard to what it captures), palloc'd.  NULL
 * with *problem when there is none.  encoding is that of the pattern, which is
 * valid in it; unicode says that the expression will work on code points.
 */
extern char *llmgw_ecma_to_are(const char *pattern, int len, int encoding,
							   bool unicode, char **problem);

/* json_schema_pattern.c */

/* NULL with *problem; freed with the current memory context */
extern LlmPattern *llmgw_pattern_compile(const char *pattern, int len,
										 char **problem);

typedef enum LlmMatch
{
	LLMGW_NO_MATCH,
	LLMGW_MATCH,
	LLMGW_MATCH_FAILED			/* the engine gave up */
} LlmMatch;

extern LlmMatch llmgw_pattern_match(LlmPattern *pattern, const char *s, int len);

/* in characters, not bytes */
extern int64 llmgw_character_count(const char *s, int len);

#endif							/* LLMGW_JSON_SCHEMA_PRIVATE_H */
