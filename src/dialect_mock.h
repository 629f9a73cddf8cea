/*-------------------------------------------------------------------------
 *
 * dialect_mock.h
 *	  What the mock says beyond an echo; private to the mock.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_MOCK_H
#define LLMGW_DIALECT_MOCK_H

#include "dialect.h"

/*
 * Bytes of the character at p.  A SQL_ASCII database is taken to hold UTF-8:
 * cutting inside a character would make JSON that cannot be sent.
 */
extern int	llmgw_mock_character_bytes(const char *p);
extern int64 llmgw_mock_characters(const char *str);

/* Characters of everything in the call's messages. */
extern int64 llmgw_mock_message_characters(const LlmWireCall *call);

/* The text of the last message, which the mock answers. */
extern char *llmgw_mock_subject(const LlmWireCall *call);

/* The tool that the mock calls; NULL: it answers with text. */
extern const LlmTool *llmgw_mock_tool(const LlmWireCall *call);

/* JSON that fits the schema, of the commoner keywords; made from a text. */
extern char *llmgw_mock_sample(Jsonb *schema, const char *text);

/* Appends the vector of a text, of length 1: close to those that share words. */
extern void llmgw_mock_put_vector(StringInfo buf, const char *text, int dimensions);

#endif							/* LLMGW_DIALECT_MOCK_H */
