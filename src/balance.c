/*-------------------------------------------------------------------------
 *
 * balance.c
 *	  Shares the calls for a model out among the providers that have it.
 *
 * See balance.h for the rules, and for what protects what.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "common/hashfn.h"
#include "common/pg_prng.h"
#include "miscadmin.h"
#include "storage/spin.h"

#include "balance.h"
#include "guc.h"
#include "shmem.h"

/*
 * Lags below that count as zero: sums of shares are not exact.
 */
#define NO_LAG			1e-9

/* what no failure and no latency takes away: how else would it recover */
#define LEAST_SHARE		0.02

/*
 * Latencies are compared only roughly: they depend on the prompts, and a
 * difference that nobody notices is none.
 */
#define SLOW_FACTOR		3
#define SLOW_MARGIN_US	INT64CONST(300000)

/*
 * By how much a provider is behind its share, in calls; in the order of the
 * group's members.
 */
typedef struct Lags
{
	double		turns[LLMGW_BALANCE_MEMBERS];
	double		served[LLMGW_BALANCE_MEMBERS];	/* as turns, while all are
												 * closed */
} Lags;

typedef struct LlmBalanceGroup
{
	uint64		key;			/* 0: free; under the table's lock */
	slock_t		mutex;
	LlmInstant	last_used;
	Lags		lags;
} LlmBalanceGroup;

typedef struct LlmBalanceShared
{
	int			ngroups;
	LlmBalanceGroup groups[FLEXIBLE_ARRAY_MEMBER];
} LlmBalanceShared;

static LlmBalanceShared *shared = NULL;

typedef struct Member
{
	const LlmModel *model;
	double		weight;			/* configured */
	double		pace;			/* what is left of it at this moment */
	bool		closed;			/* as far as is known */
	LlmHealth	health;

	/* its place in the order: the first of these that makes a difference */
	int			place;			/* below */
	double		load;			/* of least_busy, lowest_latency */
	bool		behind;			/* it is behind its share */
	double		deadline;		/* by when it has to be served */
} Member;

/* Member.place */
#define PLACE_FIRST		0
#define PLACE_CLOSED	1
#define PLACE_SKIPPED	2		/* its breaker is not closed */
#define PLACE_LAST		3		/* its weight is 0 */

static Size
balance_size(void)
{
	return add_size(offsetof(LlmBalanceShared, groups),
					mul_size(sizeof(LlmBalanceGroup), llmgw_max_providers));
}

static void
balance_init(void *part)
{
	LlmBalanceShared *balance = part;

	balance->ngroups = llmgw_max_providers;
	for (int i = 0; i < balance->ngroups; i++)
	{
		memset(&balance->groups[i], 0, sizeof(LlmBalanceGroup));
		SpinLockInit(&balance->groups[i].mutex);
	}
}

static const LlmSharedPart balance_part =
{
	"llm_gateway balance", balance_size, balance_init, (void **) &shared
};

void
llmgw_balance_init(void)
{
	llmgw_shmem_register(&balance_part);
}

double
llmgw_balance_shed(const LlmHealth *health, int64 fastest_us)
{
	double		left = (1 - health->failures) * (1 - health->failures);
	double		slow = (double) SLOW_FACTOR * fastest_us + SLOW_MARGIN_US;

	if (fastest_us > 0 && health->latency_us > slow)
		left *= (slow / health->latency_us) * (slow / health->latency_us);
	return Max(left, LEAST_SHARE);
}

/*
 * Groups
 */

static uint64
hash_text(const char *text, uint64 seed)
{
	return hash_bytes_extended((const unsigned char *) text, strlen(text), seed);
}

static uint64
group_key(const Member *members, int n)
{
	uint64		key = hash_combine64(MyDatabaseId, llmgw_load_balancing);

	key = hash_text(members[0].model->name, key);
	for (int i = 0; i < n; i++)
	{
		const LlmProvider *provider = members[i].model->provider;

		key = hash_text(provider->name, key);
		key = hash_combine64(key, provider->fingerprint);
		key = hash_bytes_extended((const unsigned char *) &members[i].weight,
								  sizeof(double), key);
	}
	return key != 0 ? key : 1;
}

/*
 * The place of a group, or where it may be put when there is none: a free place, or the one that has not been used for the longest time.  Places are
 * never given back, so that the group is before the first free one.
 */
static LlmBalanceGroup *
find_group(uint64 key, bool *found)
{
	LlmBalanceGroup *oldest = NULL;

	*found = false;
	for (int i = 0; i < shared->ngroups; i++)
	{
		LlmBalanceGroup *group = &shared->groups[(key % shared->ngroups + i) % shared->ngroups];

		if (group->key == key)
			*found = true;
		if (group->key == key || group->key == 0)
			return group;
		if (oldest == NULL || group->last_used < oldest->last_used)
			oldest = group;
	}
	return oldest;
}

/*
 * The group with its spinlock held, and the table's lock as well; NULL, nothing
 * held: there is none.
 */
static LlmBalanceGroup *
lock_group(uint64 key, bool create)
{
	LWLock	   *lock = llmgw_shmem_lock(LLMGW_LOCK_BALANCE);
	LlmBalanceGroup *group;
	bool		found;

	LWLockAcquire(lock, LW_SHARED);
	group = find_group(key, &found);
	if (!found)
	{
		LWLockRelease(lock);
		if (!create)
			return NULL;
		LWLockAcquire(lock, LW_EXCLUSIVE);
		group = find_group(key, &found);
	}
	SpinLockAcquire(&group->mutex);
	if (!found)
	{
		group->key = key;
		memset(&group->lags, 0, sizeof(group->lags));
	}
	return group;
}

static void
unlock_group(LlmBalanceGroup *group)
{
	SpinLockRelease(&group->mutex);
	LWLockRelease(llmgw_shmem_lock(LLMGW_LOCK_BALANCE));
}

/*
 * Turns.  What follows runs under a spinlock.
 */

/* Whether the first is to be served before the second. */
static bool
is_before(double lag1, double pace1, double lag2, double pace2)
{
	if ((lag1 > NO_LAG) != (lag2 > NO_LAG))
		return lag1 > NO_LAG;
	return (1 - lag1) / pace1 < (1 - lag2) / pace2;
}

/*
 * Adds the shares of one call to the lags of those in the set, and returns who
 * is next; -1: the set is empty.  What the others had is shared out by the same
 * rule, and so are the errors of the arithmetic: the sum of the lags is 1.
 */
static int
add_shares(double *lags, const double *paces, int n, uint32 set)
{
	double		total = 0;
	double		sum = 0;
	int			next = -1;

	for (int i = 0; i < n; i++)
	{
		if (set & (1u << i))
		{
			total += paces[i];
			sum += lags[i];
		}
		else
			lags[i] = 0;
	}
	for (int i = 0; i < n; i++)
	{
		if (!(set & (1u << i)))
			continue;
		lags[i] += (1 - sum) * (paces[i] / total);
		if (next < 0 || is_before(lags[i], paces[i], lags[next], paces[next]))
			next = i;
	}
	return next;
}

/*
 * Whose turn it is in the set, where those in closed can be sent to.  *before: the
 * lags as they were when that was decided.
 */
static int
take_turn(Lags *lags, const double *paces, int n, uint32 set, uint32 closed, Lags *before)
{
	int			first = add_shares(lags->turns, paces, n, set);
	int			served = first;

	if (closed == set)
		memcpy(lags->served, lags->turns, sizeof(lags->served));
	else
	{
		int			next = add_shares(lags->served, paces, n, closed);

		if (!(closed & (1u << first)))
			served = next;
	}
	*before = *lags;
	lags->turns[first] -= 1;
	if (served >= 0)
		lags->served[served] -= 1;
	return first;
}

/*
 * Who is first
 */

static uint32
closed_members(const Member *members, int n)
{
	uint32		set = 0;

	for (int i = 0; i < n; i++)
		if (members[i].closed)
			set |= 1u << i;
	return set;
}

/* The lags decide among those of the set. */
static int
first_in_turn(Member *members, int n, uint32 set, uint32 closed, LlmBalanceTurn turn)
{
	LlmInstant	now = llmgw_now();
	uint64		key = group_key(members, n);
	LlmBalanceGroup *group;
	double		paces[LLMGW_BALANCE_MEMBERS];
	Lags		copy = {0};
	Lags		before;
	int			first;

	for (int i = 0; i < n; i++)
		paces[i] = members[i].pace;
	group = lock_group(key, turn == LLMGW_TURN_TAKE);
	if (group != NULL && turn == LLMGW_TURN_TAKE)
	{
		first = take_turn(&group->lags, paces, n, set, closed, &before);
		group->last_used = now;
		unlock_group(group);
	}
	else
	{
		if (group != NULL)
		{
			copy = group->lags;
			unlock_group(group);
		}
		first = take_turn(&copy, paces, n, set, closed, &before);
	}

	for (int i = 0; i < n; i++)
	{
		double		lag = members[i].closed ? before.served[i] : before.turns[i];

		members[i].behind = lag > NO_LAG;
		members[i].deadline = (1 - lag) / paces[i];
	}
	return first;
}

/* Those of them that have the least load. */
static uint32
least_loaded(const Member *members, int n, uint32 set)
{
	uint32		least = 0;
	double		load = 0;

	for (int i = 0; i < n; i++)
	{
		if (!(set & (1u << i)))
			continue;
		if (least == 0 || members[i].load < load)
		{
			least = 0;
			load = members[i].load;
		}
		if (members[i].load == load)
			least |= 1u << i;
	}
	return least;
}

/* One of the set by chance, in proportion to its weight. */
static int
draw(const Member *members, int n, uint32 set)
{
	double		total = 0;
	double		point;
	int			drawn = -1;

	for (int i = 0; i < n; i++)
		if (set & (1u << i))
			total += members[i].weight;
	point = pg_prng_double(&pg_global_prng_state) * total;
	for (int i = 0; i < n; i++)
	{
		if (!(set & (1u << i)))
			continue;
		drawn = i;
		point -= members[i].weight;
		if (point < 0)
			break;
	}
	return drawn;
}

static int
faster_of_two(const Member *members, int n, uint32 set)
{
	int			one = draw(members, n, set);
	int			other;

	set &= ~(1u << one);
	if (set == 0 || pg_prng_double(&pg_global_prng_state) < LEAST_SHARE)
		return one;
	other = draw(members, n, set);
	return members[other].load < members[one].load ? other : one;
}

/*
 * What failures add to a load, as a multiple of what one call does: an endpoint
 * that only fails is never busy, and fails fast.
 */
static double
failure_load(const Member *member)
{
	return 1 / llmgw_balance_shed(&member->health, 0) - 1;
}

/* Sets what is left of the weights, and the loads. */
static void
weigh(Member *members, int n)
{
	int64		fastest = 0;
	int64		slowest = 0;

	for (int i = 0; i < n; i++)
	{
		int64		latency = members[i].closed ? members[i].health.latency_us : 0;

		if (latency > 0 && (fastest == 0 || latency < fastest))
			fastest = latency;
		slowest = Max(slowest, latency);
	}
	for (int i = 0; i < n; i++)
	{
		Member	   *m = &members[i];

		m->pace = m->closed ? m->weight * llmgw_balance_shed(&m->health, fastest) : m->weight;
		if (llmgw_load_balancing == LLMGW_BALANCE_LEAST_BUSY)
			m->load = (m->health.in_flight + floor(failure_load(m))) / m->weight;
		else if (llmgw_load_balancing == LLMGW_BALANCE_LOWEST_LATENCY)
		{
			/* of one that has not answered yet, the best is believed */
			m->load = m->health.latency_us > 0 ? m->health.latency_us : fastest;
			m->load += failure_load(m) * slowest;
		}
	}
}

/*
 * One that only a call can bring back, because no probe is sent there: without a
 * turn of its own it would never get any.  Its breaker lets one call pass.
 */
static int
first_due(const Member *members, int n)
{
	for (int i = 0; i < n; i++)
		if (members[i].health.due)
			return i;
	return -1;
}

/* Finds out who is first and sets by what the others are ordered. */
static int
choose_first(Member *members, int n, LlmBalanceTurn turn)
{
	uint32		all = (1u << n) - 1;
	uint32		closed = closed_members(members, n);
	uint32		set = closed != 0 ? closed : all;
	int			due = first_due(members, n);

	weigh(members, n);
	if (turn == LLMGW_TURN_DRAW)
		for (int i = 0; i < n; i++)
			members[i].deadline = -log(1 - pg_prng_double(&pg_global_prng_state)) / members[i].pace;

	switch ((LlmBalancing) llmgw_load_balancing)
	{
		case LLMGW_BALANCE_WEIGHTED:
		case LLMGW_BALANCE_ROUND_ROBIN:
			if (turn != LLMGW_TURN_DRAW)
				return first_in_turn(members, n, all, closed, turn);
			if (due >= 0)
				return due;
			break;
		case LLMGW_BALANCE_LEAST_BUSY:
			if (due >= 0)
				return due;
			set = least_loaded(members, n, set);
			if (turn != LLMGW_TURN_DRAW)
				return first_in_turn(members, n, set, set, turn);
			break;
		case LLMGW_BALANCE_LOWEST_LATENCY:
			if (due >= 0)
				return due;
			return faster_of_two(members, n, set);
	}
	return -1;
}

static int
cmp_member(const void *a, const void *b)
{
	const Member *x = a;
	const Member *y = b;

	if (x->place != y->place)
		return x->place - y->place;
	if (x->load != y->load)
		return x->load < y->load ? -1 : 1;
	if (x->behind != y->behind)
		return x->behind ? -1 : 1;
	if (x->deadline != y->deadline)
		return x->deadline < y->deadline ? -1 : 1;
	return x->model < y->model ? -1 : 1;
}

bool
llmgw_balance(const LlmModel **models, int n, LlmBalanceTurn turn)
{
	Member	   *members;
	int			weighty = 0;
	int			last = n;
	bool		any_closed = false;

	if (n == 1)
	{
		LlmHealth	health;

		llmgw_endpoint_health(models[0]->provider, &health);
		return health.closed;
	}
	members = palloc0(sizeof(Member) * Max(n, 1));

	/* those of weight 0 behind the others, each kind as it comes */
	for (int i = 0; i < n; i++)
	{
		double		weight = models[i]->weight * models[i]->provider->weight;
		Member	   *m = weight > 0 ? &members[weighty++] : &members[--last];

		m->model = models[i];
		m->weight = weight;
		if (weight > 0 && llmgw_load_balancing == LLMGW_BALANCE_ROUND_ROBIN)
			m->weight = 1;
		llmgw_endpoint_health(models[i]->provider, &m->health);
		m->closed = !m->health.known || m->health.closed;
		any_closed |= m->closed;
		m->place = weight <= 0 ? PLACE_LAST : m->closed ? PLACE_CLOSED : PLACE_SKIPPED;
	}

	if (weighty > LLMGW_BALANCE_MEMBERS)
	{
		for (int i = 0; i < weighty; i++)
		{
			members[i].place = PLACE_CLOSED;
			members[i].load = -members[i].weight;
		}
	}
	else if (weighty > 1)
	{
		int			first = choose_first(members, weighty, turn);

		if (first >= 0)
			members[first].place = PLACE_FIRST;
	}
	qsort(members, n, sizeof(Member), cmp_member);
	for (int i = 0; i < n; i++)
		models[i] = members[i].model;
	pfree(members);
	return any_closed;
}
