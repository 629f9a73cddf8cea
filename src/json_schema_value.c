/*-------------------------------------------------------------------------
 *
 * json_schema_value.c
 *	  Equality of JSON values as JSON Schema has it (Core 2020-12, 4.2.2), and
 *	  hashes that agree with it.
 *
 * Numbers are equal when their mathematical values are (1 and 1.0), strings
 * when their characters are, objects whatever the order of their members.
 * jsonb's own comparison would go through the database's collation, which is
 * slow and can fail; here strings are their bytes.
 *
 * None of these functions recurses: JsonbIterator keeps its stack on the heap.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/numeric.h"

#include "json_schema_private.h"

/* The document itself as a value. */
void
llmgw_jsonb_root(Jsonb *jb, JsonbValue *v)
{
	if (JsonbExtractScalar(&jb->root, v))
		return;
	v->type = jbvBinary;
	v->val.binary.data = &jb->root;
	v->val.binary.len = VARSIZE(jb) - VARHDRSZ;
}

int
llmgw_jsonb_type(const JsonbValue *v)
{
	switch (v->type)
	{
		case jbvNull:
			return LLMGW_TYPE_NULL;
		case jbvBool:
			return LLMGW_TYPE_BOOLEAN;
		case jbvNumeric:
			return LLMGW_TYPE_NUMBER;
		case jbvString:
			return LLMGW_TYPE_STRING;
		case jbvBinary:
			return JsonContainerIsObject(v->val.binary.data) ?
				LLMGW_TYPE_OBJECT : LLMGW_TYPE_ARRAY;
		default:
			elog(ERROR, "unexpected type of jsonb value: %d", (int) v->type);
	}
	return 0;
}

/* "a number with a zero fractional part": 1.0 is an integer (Core 4.2.1) */
bool
llmgw_jsonb_is_integer(const JsonbValue *v)
{
	return v->type == jbvNumeric &&
		DatumGetInt32(DirectFunctionCall1(numeric_min_scale,
										  NumericGetDatum(v->val.numeric))) == 0;
}

static bool
same_scalar(const JsonbValue *a, const JsonbValue *b)
{
	if (a->type != b->type)
		return false;
	switch (a->type)
	{
		case jbvNull:
			return true;
		case jbvBool:
			return a->val.boolean == b->val.boolean;
		case jbvNumeric:
			return DatumGetBool(DirectFunctionCall2(numeric_eq,
													NumericGetDatum(a->val.numeric),
													NumericGetDatum(b->val.numeric)));
		case jbvString:
			return a->val.string.len == b->val.string.len &&
				memcmp(a->val.string.val, b->val.string.val,
					   a->val.string.len) == 0;
		default:
			return false;
	}
}

bool
llmgw_jsonb_same(const JsonbValue *a, const JsonbValue *b)
{
	JsonbIterator *ia;
	JsonbIterator *ib;
	JsonbIteratorToken token;
	bool		same = true;

	if (a->type != jbvBinary || b->type != jbvBinary)
		return same_scalar(a, b);

	/* kind and number of members */
	if (a->val.binary.data->header != b->val.binary.data->header)
		return false;

	/* an object's members are sorted, so that equal ones come in step */
	ia = JsonbIteratorInit(a->val.binary.data);
	ib = JsonbIteratorInit(b->val.binary.data);
	do
	{
		JsonbValue	va;
		JsonbValue	vb;

		CHECK_FOR_INTERRUPTS();
		token = JsonbIteratorNext(&ia, &va, false);
		if (JsonbIteratorNext(&ib, &vb, false) != token)
			same = false;
		else if (token == WJB_BEGIN_ARRAY)
			same = va.val.array.nElems == vb.val.array.nElems;
		else if (token == WJB_BEGIN_OBJECT)
			same = va.val.object.nPairs == vb.val.object.nPairs;
		else if (token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM)
			same = same_scalar(&va, &vb);
	} while (same && token != WJB_DONE);
	return same;
}

/* Equal values have equal hashes. */
uint64
llmgw_jsonb_hash(const JsonbValue *v, uint64 seed)
{
	JsonbIterator *it;
	JsonbIteratorToken token;
	JsonbValue	part;
	uint64		hash = seed;

	if (v->type != jbvBinary)
	{
		JsonbHashScalarValueExtended(v, &hash, seed);
		return hash;
	}

	it = JsonbIteratorInit(v->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &part, false)) != WJB_DONE)
	{
		CHECK_FOR_INTERRUPTS();

		/* the tokens count as well: [[1], 2] is not [[1, 2]] */
		hash = hash_combine64(hash, (uint64) token);
		if (token == WJB_KEY || token == WJB_VALUE || token == WJB_ELEM)
			JsonbHashScalarValueExtended(&part, &hash, seed);
	}
	return hash;
}

static int
by_hash(const void *a, const void *b)
{
	const LlmHashed *ha = a;
	const LlmHashed *hb = b;

	if (ha->hash != hb->hash)
		return ha->hash < hb->hash ? -1 : 1;
	return ha->index < hb->index ? -1 : ha->index > hb->index;
}

/* The elements of an array, sorted by hash; the array's order among equals. */
LlmHashed *
llmgw_jsonb_hash_elements(JsonbContainer *array, uint64 seed)
{
	int			n = JsonContainerSize(array);
	LlmHashed  *result = MemoryContextAllocHuge(CurrentMemoryContext,
												Max(n, 1) * sizeof(LlmHashed));
	JsonbIterator *it = JsonbIteratorInit(array);
	JsonbIteratorToken token;
	JsonbValue	v;
	int			i = 0;

	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		CHECK_FOR_INTERRUPTS();
		result[i].hash = llmgw_jsonb_hash(&v, seed);
		result[i].index = i;
		result[i].value = v;
		i++;
	}
	Assert(i == n);
	qsort(result, n, sizeof(LlmHashed), by_hash);
	return result;
}

/* Whether the value is one of those. */
bool
llmgw_jsonb_among(const LlmHashed *sorted, int n, uint64 seed,
				  const JsonbValue *v)
{
	uint64		hash = llmgw_jsonb_hash(v, seed);
	int			low = 0;
	int			high = n;

	/* the first that is not less */
	while (low < high)
	{
		int			middle = low + (high - low) / 2;

		if (sorted[middle].hash < hash)
			low = middle + 1;
		else
			high = middle;
	}
	for (; low < n && sorted[low].hash == hash; low++)
		if (llmgw_jsonb_same(&sorted[low].value, v))
			return true;
	return false;
}

/* Whether two of them are equal; gives their places in the array. */
bool
llmgw_jsonb_twins(const LlmHashed *sorted, int n, int *first, int *second)
{
	for (int i = 0; i < n; i++)
		for (int j = i + 1; j < n && sorted[j].hash == sorted[i].hash; j++)
			if (llmgw_jsonb_same(&sorted[i].value, &sorted[j].value))
			{
				*first = sorted[i].index;
				*second = sorted[j].index;
				return true;
			}
	return false;
}
