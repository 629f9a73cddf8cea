/*-------------------------------------------------------------------------
 *
 * ledger_budgets.c
 *	  What budgets are charged: the rows of _llm_budget_spend.
 *
 * Each attempt names the budgets that it was reserved on, and the period of each.
 * What it did cost is booked there, in the transaction that books the attempt;
 * so the table is what its budgets' accounts are made from (budget.h).
 *
 * A step's attempts are added up here first, so that each row is written once
 * a step, in the order of the keys.  Where a row was put last is remembered, for
 * the reason that ledger_spend.c gives.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "utils/memutils.h"

#include "ledger_post.h"

/* With more rows in a step, one statement for all of them is cheaper. */
#define MAX_SINGLE		50

/* rows that are remembered */
#define MAX_PLACES		5000

typedef struct SumKey
{
	int64		id;
	TimestampTz period_start;
} SumKey;

static uint32
hash_key(const SumKey *key)
{
	return hash_combine(murmurhash32((uint32) key->id ^ (uint32) ((uint64) key->id >> 32)),
						murmurhash32((uint32) key->period_start ^
									 (uint32) ((uint64) key->period_start >> 32)));
}

static int
compare_keys(const SumKey *a, const SumKey *b)
{
	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	return a->period_start < b->period_start ? -1 : a->period_start > b->period_start;
}

typedef struct SumRow
{
	SumKey		key;
	char		status;
	LlmNano		sum;
} SumRow;

#define SH_PREFIX		sumhash
#define SH_ELEMENT_TYPE SumRow
#define SH_KEY_TYPE		SumKey
#define SH_KEY			key
#define SH_HASH_KEY(table, key) hash_key(&(key))
#define SH_EQUAL(table, a, b)	(compare_keys(&(a), &(b)) == 0)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct LlmBudgetSums
{
	struct sumhash_hash *rows;
};

typedef struct SumPlace
{
	SumKey		key;
	char		status;
	ItemPointerData tid;
} SumPlace;

#define SH_PREFIX		sumplace
#define SH_ELEMENT_TYPE SumPlace
#define SH_KEY_TYPE		SumKey
#define SH_KEY			key
#define SH_HASH_KEY(table, key) hash_key(&(key))
#define SH_EQUAL(table, a, b)	(compare_keys(&(a), &(b)) == 0)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* where rows were put last; of that epoch of the tables */
static struct sumplace_hash *places = NULL;
static uint64 places_epoch;

/* a sum that is too large stays at the largest number, and does not raise */
static LlmStatement update_at = {
	"UPDATE @._llm_budget_spend SET spent_nano ="
	" CASE WHEN spent_nano > 9223372036854775807 - $4"
	" THEN 9223372036854775807 ELSE spent_nano + $4 END"
	" WHERE ctid = $1 AND budget_id = $2 AND period_start = $3 RETURNING ctid",
	4, {TIDOID, INT8OID, TIMESTAMPTZOID, INT8OID}
};

static int
compare_charged(const void *a, const void *b)
{
	int64		x = (*(const LlmCharged *const *) a)->id;
	int64		y = (*(const LlmCharged *const *) b)->id;

	return x < y ? -1 : x > y;
}

int
llmgw_facts_budgets(const LlmFacts *facts, const char ***names)
{
	const LlmCharged **all;
	int			n = 0;
	int			distinct = 0;

	for (int i = 0; i < facts->nattempts; i++)
		n += facts->attempts[i].info.ncharged;
	if (n == 0)
		return 0;
	all = palloc(sizeof(LlmCharged *) * n);
	n = 0;
	for (int i = 0; i < facts->nattempts; i++)
	{
		const LlmAttemptInfo *info = &facts->attempts[i].info;

		for (int j = 0; j < info->ncharged; j++)
			all[n++] = &info->charged[j];
	}
	qsort(all, n, sizeof(LlmCharged *), compare_charged);
	*names = palloc(sizeof(char *) * n);
	for (int i = 0; i < n; i++)
		if (i == 0 || all[i]->id != all[i - 1]->id)
			(*names)[distinct++] = all[i]->name;
	return distinct;
}

LlmBudgetSums *
llmgw_budget_sums_begin(void)
{
	LlmBudgetSums *sums = palloc(sizeof(LlmBudgetSums));

	sums->rows = sumhash_create(CurrentMemoryContext, 32, NULL);
	return sums;
}

void
llmgw_budget_sums_add(LlmBudgetSums *sums, const LlmFacts *facts)
{
	for (int i = 0; i < facts->nattempts; i++)
	{
		const LlmAttemptInfo *info = &facts->attempts[i].info;
		LlmNano		cost = facts->attempts[i].outcome.cost;

		for (int j = 0; j < info->ncharged && cost > 0; j++)
		{
			SumKey		key = {info->charged[j].id, info->charged[j].period_start};
			bool		found;
			SumRow	   *row = sumhash_insert(sums->rows, key, &found);

			row->sum = found ? llmgw_sum(row->sum, cost) : cost;
		}
	}
}

static int
compare_rows(const void *a, const void *b)
{
	return compare_keys(&(*(SumRow *const *) a)->key, &(*(SumRow *const *) b)->key);
}

static void
forget_places(LlmTables *tables)
{
	if (places == NULL)
		places = sumplace_create(TopMemoryContext, 32, NULL);
	else if (places_epoch != llmgw_tables_epoch(tables) || places->members >= MAX_PLACES)
		sumplace_reset(places);
	places_epoch = llmgw_tables_epoch(tables);
}

/* The statement returned where it put the row. */
static void
remember_place(const SumKey *key, int result)
{
	bool		isnull;
	bool		found;
	Datum		tid = SPI_getbinval(SPI_tuptable->vals[result], SPI_tuptable->tupdesc, 1, &isnull);

	sumplace_insert(places, *key, &found)->tid = *(ItemPointer) DatumGetPointer(tid);
}

/* Adds to the row where it was put last.  False: it is not there. */
static bool
update_row(LlmTables *tables, const SumRow *row)
{
	SumPlace   *place = sumplace_lookup(places, row->key);
	ItemPointerData tid;
	Datum		values[4];

	if (place == NULL)
		return false;
	tid = place->tid;
	values[0] = PointerGetDatum(&tid);
	values[1] = Int64GetDatum(row->key.id);
	values[2] = TimestampTzGetDatum(row->key.period_start);
	values[3] = Int64GetDatum(row->sum);
	if (llmgw_tables_execute(tables, &update_at, values, NULL) != 1)
		return false;
	remember_place(&row->key, 0);
	return true;
}

void
llmgw_budget_sums_write(LlmBudgetSums *sums, LlmTables *tables)
{
	bool		single = sums->rows->members <= MAX_SINGLE;
	SumRow	  **sorted = palloc(sizeof(SumRow *) * Max(sums->rows->members, 1));
	sumhash_iterator iterator;
	SumRow	   *row;
	LlmRows    *rows;
	int			n = 0;
	int			left = 0;

	if (sums->rows->members == 0)
		return;
	sumhash_start_iterate(sums->rows, &iterator);
	while ((row = sumhash_iterate(sums->rows, &iterator)) != NULL)
		sorted[n++] = row;
	qsort(sorted, n, sizeof(SumRow *), compare_rows);

	forget_places(tables);
	rows = llmgw_rows_begin(tables, LLMGW_TABLE_BUDGETS);
	for (int i = 0; i < n; i++)
	{
		if (single && update_row(tables, sorted[i]))
			continue;
		llmgw_rows_int8(rows, sorted[i]->key.id);
		llmgw_rows_time(rows, sorted[i]->key.period_start);
		llmgw_rows_int8(rows, sorted[i]->sum);
		llmgw_rows_next(rows);
		sorted[left++] = sorted[i];
	}

	/* what is returned is in the order of the rows, if none was held back */
	if (llmgw_rows_insert(rows) == left)
	{
		for (int i = 0; i < left && single; i++)
			remember_place(&sorted[i]->key, i);
	}
}
