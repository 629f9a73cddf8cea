/*-------------------------------------------------------------------------
 *
 * secret.h
 *	  References to keys: their form, and reading what they refer to.
 *
 * A key never is configuration; a reference to it is: env:NAME, file:NAME or
 * secret:NAME.  This module knows the forms and reads environment
 * variables and files.  Stored secrets are read by the configuration cache, which
 * hands them in.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_SECRET_H
#define LLMGW_SECRET_H

typedef enum LlmSecretKind
{
	LLMGW_SECRET_NONE,			/* no key is configured */
	LLMGW_SECRET_ENV,
	LLMGW_SECRET_FILE,
	LLMGW_SECRET_STORED
} LlmSecretKind;

typedef struct LlmSecretRef
{
	LlmSecretKind kind;
	const char *name;			/* points into the parsed string */
} LlmSecretRef;

/*
 * Parses a reference (NULL: none).  False when it is not one: then it may be
 * a raw key, and must not appear in any message.
 */
extern bool llmgw_secret_parse(const char *str, LlmSecretRef *ref);

/*
 * Whether an environment variable of that name may be used as a key
 * (llm_gateway.secret_env_pattern).
 */
extern bool llmgw_secret_env_allowed(const char *name);

/*
 * The value of an env: reference.  Returns a pointer into the environment, not
 * to be freed; or NULL and a palloc'd reason that never contains the value:
 * unset, empty, not allowed, with control characters.
 */
extern const char *llmgw_secret_from_env(const char *name, char **reason);

/*
 * The value of a file: reference: the one line of that file in
 * llm_gateway.secret_directory, read anew each time, so that a key that is
 * replaced there is used at once.  Palloc'd; or NULL and a palloc'd reason that
 * never contains the value: no directory set, unreadable, no regular file,
 * empty, too large, several lines, with control characters.
 */
extern char *llmgw_secret_from_file(const char *name, char **reason);

/* NULL when the value can be a key; else a phrase saying why it cannot. */
extern const char *llmgw_secret_problem(const char *value);

/*
 * A stored key begins with so many random characters.  Operators of records
 * compare bytes and ask no type: who may read the table, and sees asterisks,
 * could find out a key by comparing its row with guesses.
 */
#define LLMGW_SECRET_SALT	32

/* a key as it is stored, palloc'd */
extern char *llmgw_secret_salted(const char *key);

#endif							/* LLMGW_SECRET_H */
