/*-------------------------------------------------------------------------
 *
 * dialect_vectors.h
 *	  Embeddings in an answer: arrays of very many numbers.
 *
 * As jsonb a batch of embeddings would take a hundred times the memory of its
 * numbers, so arrays that hold nothing but numbers are taken out of the document
 * before it is parsed, and become vectors of float4.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_DIALECT_VECTORS_H
#define LLMGW_DIALECT_VECTORS_H

#include "dialect.h"

typedef struct LlmVector
{
	size_t		first;			/* in LlmVectors.numbers */
	size_t		n;				/* at least 1 */
} LlmVector;

typedef struct LlmVectors
{
	size_t		nnumbers;
	size_t		max_numbers;
	float4	   *numbers;
	int			nvectors;
	int			max_vectors;
	LlmVector  *vectors;
	bool	   *seen;			/* by input: it has its vector */
} LlmVectors;

/*
 * Parses the body of an embedding request's answer, as llmgw_json_parse() does,
 * but for the vectors.  NULL: the answer has failed.
 */
extern Jsonb *llmgw_vectors_parse(LlmVectors *vectors, const char *body,
								  size_t len, LlmAnswer *answer);

/*
 * Makes what stands at this place of the document the vector of input number i
 * (from 0).  Fails the answer when it is no vector, there is no such input or it
 * has one already, or the length is not that of the others or not what the call
 * asks for.
 */
extern void llmgw_vectors_put(LlmVectors *vectors, const LlmWireCall *call,
							  int64 i, const JsonbValue *value, LlmAnswer *answer);

/* All are put: completes the answer if each input has a vector, else fails it. */
extern void llmgw_vectors_end(const LlmVectors *vectors, const LlmWireCall *call,
							  LlmAnswer *answer);

#endif							/* LLMGW_DIALECT_VECTORS_H */
