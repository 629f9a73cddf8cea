/*-------------------------------------------------------------------------
 *
 * errors.h
 *	  Error classes, their SQLSTATEs, and text from providers made safe.
 *
 * An attempt that fails has exactly one class.  The class decides, through
 * llm_error_policies, what happens next, and at the end which SQLSTATE of
 * class LG the caller sees.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_ERRORS_H
#define LLMGW_ERRORS_H

#include "utils/elog.h"

typedef enum LlmErrorClass
{
	LLMGW_OK = 0,
	LLMGW_RATE_LIMIT,			/* too fast: wait, then it works */
	LLMGW_AUTH,					/* key refused, missing or not permitted */
	LLMGW_TIMEOUT,				/* connect, first byte, idle, total */
	LLMGW_NETWORK,				/* DNS, TCP, TLS, connection cut */
	LLMGW_SERVER_ERROR,			/* 5xx */
	LLMGW_OVERLOADED,			/* 503, 529: alive, but full */
	LLMGW_MALFORMED,			/* an answer that is none */
	LLMGW_QUOTA,				/* out of credit: waiting does not help */
	LLMGW_NOT_FOUND,			/* no such model there */
	LLMGW_CONTEXT_LENGTH,		/* prompt longer than the model's window */
	LLMGW_CONTENT_POLICY,		/* refused for its content */
	LLMGW_INVALID_REQUEST,		/* the caller's fault */
	LLMGW_NATTEMPT_CLASSES,		/* those above are rows of llm_error_policies */

	/* outcomes of a call that belong to no single attempt */
	LLMGW_BUDGET = LLMGW_NATTEMPT_CLASSES,
	LLMGW_NO_CANDIDATE,
	LLMGW_SCHEMA,
	LLMGW_UNAVAILABLE,
	LLMGW_ALL_FAILED,
	LLMGW_NCLASSES
} LlmErrorClass;

/* SQLSTATE class LG (DESIGN: errors) */
#define ERRCODE_LLM_BUDGET_EXCEEDED		MAKE_SQLSTATE('L','G','0','0','1')
#define ERRCODE_LLM_RATE_LIMITED		MAKE_SQLSTATE('L','G','0','0','2')
#define ERRCODE_LLM_TIMEOUT				MAKE_SQLSTATE('L','G','0','0','3')
#define ERRCODE_LLM_ALL_FAILED			MAKE_SQLSTATE('L','G','0','0','4')
#define ERRCODE_LLM_NO_CANDIDATE		MAKE_SQLSTATE('L','G','0','0','5')
#define ERRCODE_LLM_CONTENT_POLICY		MAKE_SQLSTATE('L','G','0','0','6')
#define ERRCODE_LLM_CONTEXT_LENGTH		MAKE_SQLSTATE('L','G','0','0','7')
#define ERRCODE_LLM_INVALID_REQUEST		MAKE_SQLSTATE('L','G','0','0','8')
#define ERRCODE_LLM_AUTH				MAKE_SQLSTATE('L','G','0','0','9')
#define ERRCODE_LLM_BAD_RESPONSE		MAKE_SQLSTATE('L','G','0','1','0')
#define ERRCODE_LLM_SCHEMA_MISMATCH		MAKE_SQLSTATE('L','G','0','1','1')
#define ERRCODE_LLM_UNAVAILABLE			MAKE_SQLSTATE('L','G','0','1','2')

/* the word used in llm_error_policies and in DETAIL.error_class */
extern const char *llmgw_error_class_name(LlmErrorClass class);

/* the class of that name; LLMGW_OK when there is none */
extern LlmErrorClass llmgw_error_class_from_name(const char *name);

/* the SQLSTATE that a call ends with when every attempt had this class */
extern int	llmgw_error_class_sqlstate(LlmErrorClass class);

/* what a user can do about it, for HINT; never NULL */
extern const char *llmgw_error_class_hint(LlmErrorClass class);

/* What an error answer says; each may be NULL. */
typedef struct LlmErrorWords
{
	const char *code;			/* a number as its digits */
	const char *type;
	const char *inner_code;		/* of a nested reason (Azure) */
	const char *message;
} LlmErrorWords;

/*
 * The class of an error answer.  The HTTP status decides first; the words only
 * tell apart what one status stands for.  Status 0 (an error inside an answer
 * with status 200) leaves all to the words.  Never LLMGW_OK.
 */
extern LlmErrorClass llmgw_error_classify(int http_status,
										  const LlmErrorWords *words);

/*
 * Whether the words refuse a parameter as unknown to the model or server, as
 * against its value.
 */
extern bool llmgw_error_unsupported(const char *message);

/*
 * Returns text from a provider, made safe to show: at most max_bytes bytes
 * (cut at a character, with an ellipsis), control characters as spaces, no
 * white space at the ends or in runs.  The input is in the server's encoding
 * (in a SQL_ASCII database it may be any bytes); the result is palloc'd.
 */
extern char *llmgw_clean_text(const char *text, size_t max_bytes);

/*
 * Overwrites every occurrence of the key in the buffer with asterisks.  A
 * provider may echo the key in an error or, a hostile one, in an answer.  A key
 * shorter than LLMGW_MIN_MASKED_KEY bytes is left alone: it is one of the
 * placeholders that local servers are given ("none", "ollama"), and masking it
 * would damage ordinary answers.
 */
#define LLMGW_MIN_MASKED_KEY	7
extern void llmgw_mask_key(char *buf, size_t len, const char *key);

#endif							/* LLMGW_ERRORS_H */
