/*-------------------------------------------------------------------------
 *
 * dialect_vectors.c
 *	  Embeddings in an answer: arrays of very many numbers.
 *
 * The document is copied with each array of numbers replaced by [k], k being the
 * vector's number; since every such array is replaced, a [k] in the copy is
 * always ours.  What is left is small, and parsed like any other document.
 *
 * One pass, which may be interrupted: a byte is looked at no more than twice, since an array that turns
 * out to hold something else is left where that was found, and nothing before
 * that can begin another one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <ctype.h>
#include <math.h>

#include "miscadmin.h"

#include "dialect_answer.h"
#include "dialect_vectors.h"
#include "json.h"

/* more arrays of numbers than this are no answer to any request of ours */
#define MAX_VECTORS			65536

#define MAX_DIGITS			18	/* that fit an int64 */
#define MAX_POWER			22	/* of ten that a double holds exactly */

static const char *
skip_space(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
		p++;
	return p;
}

static const char *
skip_digits(const char *p, const char *end)
{
	while (p < end && isdigit((unsigned char) *p))
		p++;
	return p;
}

/*
 * The end of the number that begins at p, by JSON's grammar; NULL when there is
 * none.
 */
static const char *
number_end(const char *p, const char *end)
{
	const char *digits;

	if (p < end && *p == '-')
		p++;
	digits = p;
	p = skip_digits(p, end);
	if (p == digits || (*digits == '0' && p > digits + 1))
		return NULL;
	if (p < end && *p == '.')
	{
		digits = ++p;
		p = skip_digits(p, end);
		if (p == digits)
			return NULL;
	}
	if (p < end && (*p == 'e' || *p == 'E'))
	{
		p++;
		if (p < end && (*p == '+' || *p == '-'))
			p++;
		digits = p;
		p = skip_digits(p, end);
		if (p == digits)
			return NULL;
	}
	return p;
}

/*
 * The value of a valid number.  Nearly all have few digits and a small
 * exponent: then an integer and a power of ten are as good as the library's
 * general way, which takes several times as long.  (Two roundings in double
 * precision do not show in a float4, but for one number in 2^27.)
 */
static float4
number_value(const char *number, const char *end)
{
	static const double powers[MAX_POWER + 1] = {
		1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11,
		1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22
	};
	const char *p = number + (*number == '-');
	bool		fraction = false;
	int64		digits = 0;
	int			ndigits = 0;
	int			exponent = 0;
	char		buf[64];
	char	   *copy;
	double		value;

	for (; p < end && (isdigit((unsigned char) *p) || *p == '.'); p++)
	{
		if (*p == '.')
			fraction = true;
		else
		{
			ndigits += ndigits > 0 || *p != '0';
			if (ndigits > MAX_DIGITS)
				break;
			digits = digits * 10 + (*p - '0');
			exponent -= fraction;
		}
	}
	if (p == end && exponent >= -MAX_POWER)
	{
		value = digits / powers[-exponent];
		return (float4) (*number == '-' ? -value : value);
	}

	copy = end - number < sizeof(buf) ? buf : palloc(end - number + 1);
	memcpy(copy, number, end - number);
	copy[end - number] = '\0';
	value = strtod(copy, NULL);
	if (copy != buf)
		pfree(copy);
	return (float4) value;
}

static void
add_number(LlmVectors *v, float4 number)
{
	if (v->nnumbers == v->max_numbers)
	{
		v->max_numbers = Max(1024, v->max_numbers * 2);
		if (v->numbers == NULL)
			v->numbers = palloc(v->max_numbers * sizeof(float4));
		else
			v->numbers = repalloc_huge(v->numbers, v->max_numbers * sizeof(float4));
	}
	v->numbers[v->nnumbers++] = number;
}

/*
 * Takes an array of numbers, of which p is the opening bracket, and returns its
 * end.  Otherwise returns where it is none.
 */
static const char *
take_array(LlmVectors *v, const char *p, const char *end, bool *taken,
		   bool *overflow)
{
	size_t		first = v->nnumbers;

	*taken = false;
	do
	{
		const char *number = skip_space(p + 1, end);
		float4		value;

		p = number_end(number, end);
		if (p == NULL)
		{
			v->nnumbers = first;
			return number;
		}
		value = number_value(number, p);
		if (isinf(value))
			*overflow = true;
		add_number(v, value);
		p = skip_space(p, end);
	} while (p < end && *p == ',');

	if (p >= end || *p != ']')
	{
		v->nnumbers = first;
		return p;
	}
	if (v->nvectors == v->max_vectors)
	{
		v->max_vectors = Max(64, v->max_vectors * 2);
		if (v->vectors == NULL)
			v->vectors = palloc(v->max_vectors * sizeof(LlmVector));
		else
			v->vectors = repalloc(v->vectors, v->max_vectors * sizeof(LlmVector));
	}
	v->vectors[v->nvectors].first = first;
	v->vectors[v->nvectors].n = v->nnumbers - first;
	v->nvectors++;
	*taken = true;
	return p + 1;
}

/* The end of the string of which p is the opening quote. */
static const char *
string_end(const char *p, const char *end)
{
	for (p++; p < end && *p != '"'; p++)
		if (*p == '\\')
			p++;
	return Min(p + 1, end);
}

/* Copies the document without its vectors.  NULL with a reason: not possible. */
static char *
extract(LlmVectors *v, const char *body, size_t len, size_t *rest_len,
		const char **reason)
{
	const char *end = body + len;
	const char *copied = body;
	StringInfoData rest;
	bool		overflow = false;

	initStringInfo(&rest);
	for (const char *p = body; p < end;)
	{
		const char *next;
		bool		taken;

		if (*p == '"')
		{
			p = string_end(p, end);
			continue;
		}
		if (*p != '[')
		{
			p++;
			continue;
		}
		CHECK_FOR_INTERRUPTS();
		if (v->nvectors == MAX_VECTORS)
		{
			*reason = "not valid JSON: too many values";
			return NULL;
		}
		next = take_array(v, p, end, &taken, &overflow);
		if (overflow)
		{
			*reason = "not valid JSON: a number is out of range";
			return NULL;
		}
		if (taken)
		{
			appendBinaryStringInfo(&rest, copied, p - copied);
			appendStringInfo(&rest, "[%d]", v->nvectors - 1);
			copied = next;
		}
		p = next;
	}
	appendBinaryStringInfo(&rest, copied, end - copied);
	*rest_len = rest.len;
	return rest.data;
}

Jsonb *
llmgw_vectors_parse(LlmVectors *vectors, const char *body, size_t len,
					LlmAnswer *answer)
{
	const char *reason = "no JSON";
	char	   *rest;
	size_t		rest_len;

	memset(vectors, 0, sizeof(*vectors));
	answer->ended = true;

	/* what the replacements may add must fit, too */
	if (len >= MaxAllocSize / 2)
		reason = "not valid JSON: too large";
	else
	{
		rest = extract(vectors, body, len, &rest_len, &reason);
		if (rest != NULL)
			return llmgw_answer_parse_body(answer, rest, rest_len);
	}
	llmgw_answer_fail(answer, LLMGW_MALFORMED, psprintf("the answer is %s", reason));
	return NULL;
}

/* The vector that a [k] of the document stands for; NULL: it is none. */
static const LlmVector *
find_vector(const LlmVectors *vectors, const JsonbValue *value)
{
	JsonbContainer *c = value->type == jbvBinary ? value->val.binary.data : NULL;
	int64		k;

	if (c == NULL || !JsonContainerIsArray(c) || JsonContainerSize(c) != 1 ||
		!llmgw_json_value_int(getIthJsonbValueFromContainer(c, 0), &k) ||
		k < 0 || k >= vectors->nvectors)
		return NULL;
	return &vectors->vectors[k];
}

void
llmgw_vectors_put(LlmVectors *vectors, const LlmWireCall *call, int64 i,
				  const JsonbValue *value, LlmAnswer *answer)
{
	const LlmVector *vector = find_vector(vectors, value);

	if (answer->error != LLMGW_OK)
		return;
	if (vector == NULL || vector->n > PG_INT16_MAX * 4)
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, vector ?
						  "an embedding is too long" : "an embedding is not an array of numbers");
		return;
	}
	if (i < 0 || i >= call->ninputs || (vectors->seen && vectors->seen[i]))
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED, i >= 0 && i < call->ninputs ?
						  psprintf("input " INT64_FORMAT " has two embeddings", i + 1) :
						  psprintf("an embedding is of input " INT64_FORMAT ", but there are %d",
								   i < PG_INT64_MAX ? i + 1 : i, call->ninputs));
		return;
	}
	if (answer->vectors == NULL)
	{
		vectors->seen = palloc0(call->ninputs * sizeof(bool));
		answer->dimensions = (int) vector->n;
		answer->vectors = MemoryContextAllocHuge(llmgw_answer_context(answer),
												 sizeof(float4) * call->ninputs * vector->n);
	}
	if (vector->n != answer->dimensions)
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("embeddings have %d and %zu dimensions",
								   answer->dimensions, vector->n));
		return;
	}
	if (call->dimensions > 0 && vector->n != call->dimensions)
	{
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("embeddings have %zu dimensions instead of %d",
								   vector->n, call->dimensions));
		return;
	}
	memcpy(answer->vectors + (size_t) i * answer->dimensions,
		   vectors->numbers + vector->first, sizeof(float4) * vector->n);
	vectors->seen[i] = true;
	answer->nvectors++;
}

void
llmgw_vectors_end(const LlmVectors *vectors, const LlmWireCall *call,
				  LlmAnswer *answer)
{
	if (answer->nvectors != call->ninputs)
		llmgw_answer_fail(answer, LLMGW_MALFORMED,
						  psprintf("the answer has %d embeddings for %d inputs",
								   answer->nvectors, call->ninputs));
	else
		answer->complete = answer->has_content = true;
}
