/*-------------------------------------------------------------------------
 *
 * dialect_answer.h
 *	  What reading answers and errors has in common among the dialects.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_ANSWER_H
#define LLMGW_DIALECT_ANSWER_H

#include "dialect.h"

#define LLMGW_MAX_SHOWN		500 /* bytes of a provider's text that we show */
#define LLMGW_MAX_TOOL_CALLS	128 /* OpenAI's own limit of tools */

/* What was found in an error body; its text is not cleaned yet. */
typedef struct LlmErrorBody
{
	LlmErrorWords words;
	int			status;			/* 0: it says none */
} LlmErrorBody;

/*
 * Reads an error from a document's root.  False when there is none, that is
 * neither "error" nor, if any_shape, a text in another known place.
 */
extern bool llmgw_read_error_body(JsonbContainer *root, bool any_shape,
								  LlmErrorBody *e);

/*
 * The message for an error status and its body, and the words by which to
 * classify it.
 */
extern char *llmgw_answer_http_error(const LlmAnswer *answer, int http_status,
									 const char *body, size_t len,
									 LlmErrorBody *e);

/* The answer holds an error, although its status says that all is well. */
extern void llmgw_answer_fail_inside(LlmAnswer *answer, const LlmErrorBody *e);

/* The beginning of bytes from the wire, as one clean line. */
extern char *llmgw_answer_excerpt(const LlmAnswer *answer, const char *bytes,
								  size_t len);

/* The whole body as JSON; else NULL, and the answer has failed. */
extern Jsonb *llmgw_answer_parse_body(LlmAnswer *answer, const char *body,
									  size_t len);

/*
 * The data of an event as a JSON object; else NULL, and the answer has failed.
 * What is no JSON but named an error is that error's text.
 */
extern Jsonb *llmgw_answer_parse_event(LlmAnswer *answer, const char *name,
									   const char *data, size_t len);

/* The bytes without white space around them. */
extern const char *llmgw_trim_bytes(const char *bytes, size_t *len);

/*
 * A count of tokens; one that is not there stays as it is.  False when it is no
 * such number: then nothing is known of the usage, and the answer, which is
 * whole all the same, is priced by an estimate.
 */
extern bool llmgw_read_count(JsonbContainer *usage, int64 *count,
							 const char *group, const char *key);

/* Appends an empty tool call. */
extern LlmToolCall *llmgw_answer_new_tool_call(LlmAnswer *answer);

/*
 * Whether an id is one that llmgw_judge() gave to a call of a provider that gives
 * none: call_, the request's id, _, the call's number.
 */
extern bool llmgw_is_made_call_id(const char *id);

/* Sets finish_reason to a provider's word. */
extern void llmgw_answer_set_finish(LlmAnswer *answer, const char *reason);

#endif							/* LLMGW_DIALECT_ANSWER_H */
