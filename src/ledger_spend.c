/*-------------------------------------------------------------------------
 *
 * ledger_spend.c
 *	  The rows of llm_daily_spend.
 *
 * A step's requests are added up here first, so that each row is written once
 * a step, in the order of the keys.
 *
 * While somebody's snapshot is older - that of a statement that makes many
 * calls, say - all versions of a row stay, one for each step, and a search by
 * its key looks at every one of them.  So it is remembered where each row was
 * put last, and looked for there first.  That is a hint only: what is found
 * must have the key.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "datatype/timestamp.h"
#include "utils/builtins.h"
#include "utils/date.h"
#include "utils/memutils.h"

#include "ledger_post.h"

/* With more rows in a step, one statement for all of them is cheaper. */
#define MAX_SINGLE		50

/* rows that are remembered */
#define MAX_PLACES		5000

typedef struct SpendKey
{
	int32		day;			/* as a date */
	const char *provider;		/* texts are never NULL */
	const char *model;
	const char *task;
	const char *model_tier;
	const char *priority;
	const char *role;
} SpendKey;

typedef struct SpendRow
{
	SpendKey	key;
	uint32		hash;
	char		status;
	int64		requests;
	int64		failures;
	int64		cached;
	int64		fallbacks;
	int64		unpriced;
	int64		input_tokens;
	int64		output_tokens;
	LlmNano		estimate;
	LlmNano		cost;
} SpendRow;

static uint32
hash_text(uint32 hash, const char *text)
{
	return hash_combine(hash, hash_bytes((const unsigned char *) text, (int) strlen(text)));
}

static uint32
hash_key(const SpendKey *key)
{
	uint32		hash = murmurhash32((uint32) key->day);

	hash = hash_text(hash, key->provider);
	hash = hash_text(hash, key->model);
	hash = hash_text(hash, key->task);
	hash = hash_text(hash, key->model_tier);
	hash = hash_text(hash, key->priority);
	return hash_text(hash, key->role);
}

static int
compare_keys(const SpendKey *a, const SpendKey *b)
{
	int			result = a->day < b->day ? -1 : a->day > b->day;

	if (result == 0)
		result = strcmp(a->provider, b->provider);
	if (result == 0)
		result = strcmp(a->model, b->model);
	if (result == 0)
		result = strcmp(a->task, b->task);
	if (result == 0)
		result = strcmp(a->model_tier, b->model_tier);
	if (result == 0)
		result = strcmp(a->priority, b->priority);
	if (result == 0)
		result = strcmp(a->role, b->role);
	return result;
}

#define SH_PREFIX		spendhash
#define SH_ELEMENT_TYPE SpendRow
#define SH_KEY_TYPE		SpendKey
#define SH_KEY			key
#define SH_HASH_KEY(table, key) hash_key(&(key))
#define SH_EQUAL(table, a, b)	(compare_keys(&(a), &(b)) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(table, row) ((row)->hash)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

struct LlmSpend
{
	struct spendhash_hash *rows;
};

typedef struct SpendPlace
{
	SpendKey	key;
	uint32		hash;
	char		status;
	ItemPointerData tid;
} SpendPlace;

#define SH_PREFIX		placehash
#define SH_ELEMENT_TYPE SpendPlace
#define SH_KEY_TYPE		SpendKey
#define SH_KEY			key
#define SH_HASH_KEY(table, key) hash_key(&(key))
#define SH_EQUAL(table, a, b)	(compare_keys(&(a), &(b)) == 0)
#define SH_STORE_HASH
#define SH_GET_HASH(table, row) ((row)->hash)
#define SH_SCOPE		static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

/* where rows were put last; of that epoch of the tables */
static MemoryContext places_context = NULL;
static struct placehash_hash *places = NULL;
static uint64 places_epoch;

static LlmStatement update_at = {
	"UPDATE @.llm_daily_spend SET"
	" requests = requests + $9, failures = failures + $10, cached = cached + $11,"
	" fallbacks = fallbacks + $12, unpriced = unpriced + $13,"
	" input_tokens = input_tokens + $14, output_tokens = output_tokens + $15,"
	" estimated_usd = estimated_usd + $16, cost_usd = cost_usd + $17"
	" WHERE ctid = $1 AND day = $2 AND provider = $3 AND model = $4 AND task = $5"
	" AND model_tier = $6 AND priority = $7 AND role = $8 RETURNING ctid",
	17,
	{
		TIDOID, DATEOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, INT8OID,
		INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, INT8OID, NUMERICOID, NUMERICOID
	}
};

LlmSpend *
llmgw_spend_begin(void)
{
	LlmSpend   *spend = palloc(sizeof(LlmSpend));

	spend->rows = spendhash_create(CurrentMemoryContext, 64, NULL);
	return spend;
}

/* The day in UTC, whatever the session's time zone is. */
static int32
utc_day(TimestampTz time)
{
	if (!IS_VALID_TIMESTAMP(time))
		return 0;
	return (int32) (time >= 0 ? time / USECS_PER_DAY : -((-time - 1) / USECS_PER_DAY) - 1);
}

/* The row of a request, at the place where it was answered or tried. */
static SpendRow *
find_row(LlmSpend *spend, const LlmFacts *facts, TimestampTz time,
		 const char *provider, const char *model, const char *model_tier)
{
	SpendKey	key;
	SpendRow   *row;
	bool		found;

	key.day = utc_day(time);
	key.provider = provider ? provider : "";
	key.model = model ? model : "";
	key.model_tier = model_tier ? model_tier : "";
	key.task = facts->request.task ? facts->request.task : "";
	key.priority = facts->request.priority ? facts->request.priority : "";
	key.role = facts->request.role ? facts->request.role : "";
	row = spendhash_insert(spend->rows, key, &found);
	if (!found)
		memset((char *) row + offsetof(SpendRow, requests), 0,
			   sizeof(SpendRow) - offsetof(SpendRow, requests));
	return row;
}

void
llmgw_spend_add(LlmSpend *spend, const LlmFacts *facts)
{
	LlmStatus	status = facts->result.status;
	SpendRow   *row = find_row(spend, facts, facts->request.created_at,
							   facts->provider, facts->model, facts->model_tier);

	row->requests++;
	row->failures += status == LLMGW_STATUS_ERROR || status == LLMGW_STATUS_UNKNOWN;
	row->cached += status == LLMGW_STATUS_CACHED;
	row->fallbacks += facts->result.fallback;
	row->estimate = llmgw_sum(row->estimate, Max(facts->request.estimate, 0));

	for (int i = 0; i < facts->nattempts; i++)
	{
		const LlmAttemptFacts *attempt = &facts->attempts[i];
		const LlmOutcome *outcome = &attempt->outcome;

		row = find_row(spend, facts, attempt->info.started_at, attempt->info.provider,
					   attempt->info.model, attempt->info.model_tier);
		row->input_tokens = llmgw_sum(row->input_tokens, outcome->usage.input);
		row->output_tokens = llmgw_sum(row->output_tokens, outcome->usage.output);
		if (outcome->cost == LLMGW_COST_UNKNOWN)
			row->unpriced++;
		else
			row->cost = llmgw_sum(row->cost, outcome->cost);
	}
}

static int
compare_rows(const void *a, const void *b)
{
	return compare_keys(&(*(SpendRow *const *) a)->key, &(*(SpendRow *const *) b)->key);
}

static void
forget_places(LlmTables *tables)
{
	if (places != NULL && places_epoch == llmgw_tables_epoch(tables) &&
		places->members < MAX_PLACES)
		return;
	if (places_context == NULL)
		places_context = AllocSetContextCreate(TopMemoryContext, "llm_gateway daily spend",
											   ALLOCSET_DEFAULT_SIZES);
	places = NULL;
	MemoryContextReset(places_context);
	places = placehash_create(places_context, 64, NULL);
	places_epoch = llmgw_tables_epoch(tables);
}

/* The statement returned where it put the row. */
static void
remember_place(const SpendKey *key, int result)
{
	bool		isnull;
	Datum		tid = SPI_getbinval(SPI_tuptable->vals[result], SPI_tuptable->tupdesc, 1, &isnull);
	SpendPlace *place = placehash_lookup(places, *key);

	if (place == NULL)
	{
		SpendKey	copy = *key;
		bool		found;

		copy.provider = MemoryContextStrdup(places_context, key->provider);
		copy.model = MemoryContextStrdup(places_context, key->model);
		copy.task = MemoryContextStrdup(places_context, key->task);
		copy.model_tier = MemoryContextStrdup(places_context, key->model_tier);
		copy.priority = MemoryContextStrdup(places_context, key->priority);
		copy.role = MemoryContextStrdup(places_context, key->role);
		place = placehash_insert(places, copy, &found);
	}
	place->tid = *(ItemPointer) DatumGetPointer(tid);
}

/* Adds to the row where it was put last.  False: it is not there. */
static bool
update_row(LlmTables *tables, const SpendRow *row)
{
	SpendPlace *place = placehash_lookup(places, row->key);
	Datum		values[17];
	ItemPointerData tid;

	if (place == NULL)
		return false;
	tid = place->tid;
	values[0] = PointerGetDatum(&tid);
	values[1] = DateADTGetDatum(row->key.day);
	values[2] = CStringGetTextDatum(row->key.provider);
	values[3] = CStringGetTextDatum(row->key.model);
	values[4] = CStringGetTextDatum(row->key.task);
	values[5] = CStringGetTextDatum(row->key.model_tier);
	values[6] = CStringGetTextDatum(row->key.priority);
	values[7] = CStringGetTextDatum(row->key.role);
	values[8] = Int64GetDatum(row->requests);
	values[9] = Int64GetDatum(row->failures);
	values[10] = Int64GetDatum(row->cached);
	values[11] = Int64GetDatum(row->fallbacks);
	values[12] = Int64GetDatum(row->unpriced);
	values[13] = Int64GetDatum(row->input_tokens);
	values[14] = Int64GetDatum(row->output_tokens);
	values[15] = llmgw_nano_to_numeric(row->estimate);
	values[16] = llmgw_nano_to_numeric(row->cost);
	if (llmgw_tables_execute(tables, &update_at, values, NULL) != 1)
		return false;
	remember_place(&row->key, 0);
	return true;
}

static void
put_row(LlmRows *rows, const SpendRow *row)
{
	llmgw_rows_date(rows, row->key.day);
	llmgw_rows_text(rows, row->key.provider);
	llmgw_rows_text(rows, row->key.model);
	llmgw_rows_text(rows, row->key.task);
	llmgw_rows_text(rows, row->key.model_tier);
	llmgw_rows_text(rows, row->key.priority);
	llmgw_rows_text(rows, row->key.role);
	llmgw_rows_int8(rows, row->requests);
	llmgw_rows_int8(rows, row->failures);
	llmgw_rows_int8(rows, row->cached);
	llmgw_rows_int8(rows, row->fallbacks);
	llmgw_rows_int8(rows, row->unpriced);
	llmgw_rows_int8(rows, row->input_tokens);
	llmgw_rows_int8(rows, row->output_tokens);
	llmgw_rows_nano(rows, row->estimate);
	llmgw_rows_nano(rows, row->cost);
	llmgw_rows_next(rows);
}

void
llmgw_spend_write(LlmSpend *spend, LlmTables *tables)
{
	SpendRow  **sorted = palloc(sizeof(SpendRow *) * Max(spend->rows->members, 1));
	spendhash_iterator iterator;
	SpendRow   *row;
	LlmRows    *rows;
	bool		single = spend->rows->members <= MAX_SINGLE;
	int			n = 0;
	int			left = 0;

	spendhash_start_iterate(spend->rows, &iterator);
	while ((row = spendhash_iterate(spend->rows, &iterator)) != NULL)
		sorted[n++] = row;
	qsort(sorted, n, sizeof(SpendRow *), compare_rows);

	forget_places(tables);
	rows = llmgw_rows_begin(tables, LLMGW_TABLE_SPEND);
	for (int i = 0; i < n; i++)
	{
		if (single && update_row(tables, sorted[i]))
			continue;
		put_row(rows, sorted[i]);
		sorted[left++] = sorted[i];
	}

	/* what is returned is in the order of the rows, if none was held back */
	if (llmgw_rows_insert(rows) == left)
	{
		for (int i = 0; i < left && single; i++)
			remember_place(&sorted[i]->key, i);
	}
}
