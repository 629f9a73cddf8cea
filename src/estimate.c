/*-------------------------------------------------------------------------
 *
 * estimate.c
 *	  What a model's answers were like, so that the next is estimated better.
 *
 * See estimate.h for what protects what.
 *
 * The first answers count alike; from MEMORY answers on a new one weighs 1/MEMORY,
 * so that some dozens of answers replace what was known.  What the input is
 * multiplied with is the ratio of two means, not the mean of ratios: else short
 * prompts, of which a provider's own words are the larger part, would make long
 * ones look dear.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "miscadmin.h"
#include "port/atomics.h"

#include "estimate.h"
#include "guc.h"
#include "shmem.h"

/* models of one provider that there is room for, on average */
#define PLACES_PER_PROVIDER	16

#define MEMORY			32

/* no provider's count moves a mean by more: one that lies must not spoil it */
#define LEAST_FACTOR	0.25
#define MOST_FACTOR		16
#define MOST_OUTPUT		1000000

typedef struct LlmEstimate
{
	pg_atomic_uint64 key;		/* 0: free */
	pg_atomic_uint32 ninputs;	/* how many answers are in the means, at most
								 * MEMORY */
	pg_atomic_uint32 noutputs;
	pg_atomic_uint64 input;		/* two means in one word: a Pair */
	pg_atomic_uint64 output;	/* a Pair of which only one is used */
} LlmEstimate;

typedef union Pair
{
	uint64		word;
	struct
	{
		float		actual;		/* tokens */
		float		expected;
	}			mean;
} Pair;

typedef struct LlmEstimateShared
{
	pg_atomic_uint32 nused;		/* written under LLMGW_LOCK_ESTIMATES */
	uint32		nplaces;
	LlmEstimate places[FLEXIBLE_ARRAY_MEMBER];
} LlmEstimateShared;

static LlmEstimateShared *shared = NULL;

static Size
estimate_size(void)
{
	return add_size(offsetof(LlmEstimateShared, places),
					mul_size(sizeof(LlmEstimate),
							 mul_size(llmgw_max_providers, PLACES_PER_PROVIDER)));
}

static void
estimate_init(void *part)
{
	LlmEstimateShared *table = part;

	pg_atomic_init_u32(&table->nused, 0);
	table->nplaces = llmgw_max_providers * PLACES_PER_PROVIDER;
	for (uint32 i = 0; i < table->nplaces; i++)
	{
		LlmEstimate *place = &table->places[i];

		pg_atomic_init_u64(&place->key, 0);
		pg_atomic_init_u32(&place->ninputs, 0);
		pg_atomic_init_u32(&place->noutputs, 0);
		pg_atomic_init_u64(&place->input, 0);
		pg_atomic_init_u64(&place->output, 0);
	}
}

static const LlmSharedPart estimate_part =
{
	"llm_gateway estimates", estimate_size, estimate_init, (void **) &shared
};

void
llmgw_estimate_init(void)
{
	llmgw_shmem_register(&estimate_part);
}

/*
 * Places
 */

static uint64
hash_text(const char *text, uint64 seed)
{
	return hash_bytes_extended((const unsigned char *) text, strlen(text), seed);
}

/* Another model by an old name is another model: what is asked for counts. */
static uint64
key_of(const LlmModel *model)
{
	uint64		key = hash_text(model->provider->name, MyDatabaseId);

	key = hash_text(model->upstream_name, hash_text(model->name, key));
	return key != 0 ? key : 1;
}

/* The place of a key, or the free one where it belongs; NULL: all are taken. */
static LlmEstimate *
search(uint64 key, bool *found)
{
	*found = false;
	for (uint32 i = 0; i < shared->nplaces; i++)
	{
		LlmEstimate *place = &shared->places[(key + i) % shared->nplaces];
		uint64		there = pg_atomic_read_u64(&place->key);

		if (there == key)
			*found = true;
		if (there == key || there == 0)
			return place;
	}
	return NULL;
}

/*
 * What is known of a model; NULL: nothing.  A place is never given back, so where
 * it was last seen is where it is; and while none is taken, who had none has none.
 */
static LlmEstimate *
find(const LlmModel *model)
{
	LlmModel   *learned;
	LlmEstimate *place;
	uint32		nused;
	bool		found;

	if (model->estimate != NULL)
		return model->estimate;
	nused = pg_atomic_read_u32(&shared->nused) + 1;
	if (model->no_estimate == nused)
		return NULL;
	place = search(key_of(model), &found);
	learned = unconstify(LlmModel *, model);
	learned->estimate = found ? place : NULL;
	learned->no_estimate = found ? 0 : nused;
	return learned->estimate;
}

/* The same; gives it a place when it has none. */
static LlmEstimate *
find_created(const LlmModel *model)
{
	LlmEstimate *place = find(model);
	uint64		key;
	LWLock	   *lock;
	bool		found;

	if (place != NULL || pg_atomic_read_u32(&shared->nused) == shared->nplaces)
		return place;
	key = key_of(model);
	lock = llmgw_shmem_lock(LLMGW_LOCK_ESTIMATES);
	LWLockAcquire(lock, LW_EXCLUSIVE);
	place = search(key, &found);
	if (place != NULL && !found)
	{
		/* nobody wrote to it before it had a key: it is all zeros */
		pg_atomic_write_u64(&place->key, key);
		pg_atomic_fetch_add_u32(&shared->nused, 1);
	}
	LWLockRelease(lock);
	return place;
}

/*
 * Means
 */

/* Adds a sample to a pair of means; both change together, or neither. */
static void
add_sample(pg_atomic_uint64 *means, pg_atomic_uint32 *count, double actual, double expected)
{
	uint32		n = pg_atomic_read_u32(count);
	double		weight = 1.0 / (n < MEMORY ? n + 1 : MEMORY);
	Pair		old;
	Pair		new;

	old.word = pg_atomic_read_u64(means);
	new.mean.actual = old.mean.actual + weight * (actual - old.mean.actual);
	new.mean.expected = old.mean.expected + weight * (expected - old.mean.expected);

	/* who comes between has changed them as well: one answer of many */
	if (pg_atomic_compare_exchange_u64(means, &old.word, new.word) && n < MEMORY)
		pg_atomic_fetch_add_u32(count, 1);
}

/* The means of that many answers; false: they are too few. */
static bool
read_means(pg_atomic_uint64 *means, pg_atomic_uint32 *count, Pair *pair)
{
	if (pg_atomic_read_u32(count) < LLMGW_ESTIMATE_MIN)
		return false;
	pair->word = pg_atomic_read_u64(means);
	return true;
}

void
llmgw_estimate_learn(const LlmModel *model, int64 characters, const LlmUsage *usage,
					 bool whole)
{
	LlmEstimate *place = find_created(model);
	double		expected = (characters + 3) / 4;
	double		actual = usage->input;

	if (place == NULL)
		return;
	if (expected > 0 && actual > 0)
	{
		actual = Max(actual, expected * LEAST_FACTOR);
		actual = Min(actual, expected * MOST_FACTOR);
		add_sample(&place->input, &place->ninputs, actual, expected);
	}
	if (whole)
		add_sample(&place->output, &place->noutputs, Min(usage->output, MOST_OUTPUT), 0);
}

/*
 * Estimates
 */

/* The mean answer; 0: it is not known. */
static int
mean_output(const LlmEstimate *place)
{
	LlmEstimate *p = unconstify(LlmEstimate *, place);
	Pair		output;

	if (p == NULL || !read_means(&p->output, &p->noutputs, &output))
		return 0;
	return (int) Max(ceil(output.mean.actual), 1);
}

void
llmgw_estimate(const LlmModel *model, int64 characters, int max_tokens, LlmUsage *usage)
{
	LlmEstimate *place;
	Pair		input;

	if (!llmgw_adaptive_estimates || (place = find(model)) == NULL)
	{
		llmgw_cost_expect(model, characters, max_tokens, usage);
		return;
	}
	llmgw_cost_expect(model, characters, max_tokens == 0 ? mean_output(place) : max_tokens,
					  usage);
	if (read_means(&place->input, &place->ninputs, &input) && input.mean.expected > 0)
		usage->input = (int64) rint(usage->input * (input.mean.actual / input.mean.expected));
}

LlmNano
llmgw_estimate_cost(const LlmModel *model, int64 characters, int max_tokens)
{
	LlmUsage	usage;

	llmgw_estimate(model, characters, max_tokens, &usage);
	return llmgw_cost(model, &usage);
}

int
llmgw_estimate_output(const LlmModel *model)
{
	int			mean = llmgw_adaptive_estimates ? mean_output(find(model)) : 0;

	return mean > 0 ? mean : LLMGW_EXPECTED_OUTPUT;
}
