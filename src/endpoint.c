/*-------------------------------------------------------------------------
 *
 * endpoint.c
 *	  The table of endpoints' slots: who has one, who gets one, who loses it.
 *
 * An endpoint is looked up once per process and configuration; after that the
 * provider's struct remembers the slot, which says itself whose it is.
 *
 * The table is searched from its beginning.  Lookups are rare, and
 * llm_gateway.max_providers is a few hundred.  That there is none is remembered,
 * too, until some slot gets another owner.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/spin.h"
#include "utils/timestamp.h"

#include "compat.h"
#include "endpoint_private.h"
#include "guc.h"
#include "shmem.h"
#include "spool.h"

/* Places in queues, however few processes the server may have. */
#define MIN_WAITERS		1024

LlmEndpointShared *llmgw_endpoints = NULL;

/* MaxBackends has no auxiliary processes, which make no calls. */
static int
waiters_wanted(void)
{
	return Max(MaxBackends * LLMGW_WAITERS_EACH, MIN_WAITERS);
}

static Size
slots_size(void)
{
	return MAXALIGN(add_size(offsetof(LlmEndpointShared, slots),
							 mul_size(sizeof(LlmEndpoint), llmgw_max_providers)));
}

static Size
endpoint_size(void)
{
	return add_size(slots_size(), mul_size(sizeof(LlmWaiter), waiters_wanted()));
}

static void
init_slot(LlmEndpoint *slot)
{
	memset(slot, 0, sizeof(*slot));
	LWLockInitialize(&slot->lock, llmgw_shmem_lock(LLMGW_LOCK_ENDPOINTS)->tranche);
	llmgw_limiter_init(&slot->limiter);
	pg_atomic_init_u32(&slot->in_flight, 0);
	pg_atomic_init_u32(&slot->closed, 1);
	pg_atomic_init_u64(&slot->parked_mark, 0);
	pg_atomic_init_u64(&slot->due_at, LLMGW_NEVER);
	pg_atomic_init_u64(&slot->latency_us, 0);
	pg_atomic_init_u64(&slot->failure_ppm, 0);
	pg_atomic_init_u64(&slot->settled_at, 0);
}

static void
endpoint_init(void *part)
{
	LlmEndpointShared *shared = part;
	LlmWaiter  *waiters;

	pg_atomic_init_u64(&shared->overflows, 0);
	pg_atomic_init_u64(&shared->nevents, 0);
	pg_atomic_init_u64(&shared->taken, 0);
	SpinLockInit(&shared->mutex);
	shared->nslots = llmgw_max_providers;
	for (int i = 0; i < shared->nslots; i++)
		init_slot(&shared->slots[i]);

	shared->nwaiters = waiters_wanted();
	shared->waiters_offset = slots_size();
	waiters = (LlmWaiter *) ((char *) shared + shared->waiters_offset);
	memset(waiters, 0, sizeof(LlmWaiter) * shared->nwaiters);
	for (int i = 0; i < shared->nwaiters; i++)
	{
		waiters[i].prev = LLMGW_NO_WAITER;
		waiters[i].next = i + 1 < shared->nwaiters ? i + 1 : LLMGW_NO_WAITER;
	}
	shared->free_waiter = 0;
}

static const LlmSharedPart endpoint_part =
{
	"llm_gateway endpoints", endpoint_size, endpoint_init, (void **) &llmgw_endpoints
};

void
llmgw_endpoint_init(void)
{
	llmgw_shmem_register(&endpoint_part);
}

static uint64
hash_name(const char *name)
{
	return DatumGetUInt64(hash_any_extended((const unsigned char *) name, strlen(name), 0));
}

static bool
is_slot_of(const LlmEndpoint *slot, uint64 name_hash, uint64 fingerprint)
{
	return slot->database == MyDatabaseId && slot->name_hash == name_hash &&
		slot->fingerprint == fingerprint;
}

/* Under the table's lock. */
static LlmEndpoint *
find_slot(uint64 name_hash, uint64 fingerprint)
{
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
		if (is_slot_of(&llmgw_endpoints->slots[i], name_hash, fingerprint))
			return &llmgw_endpoints->slots[i];
	return NULL;
}

/* Under the slot's lock: whether some process relies on it. */
static bool
is_in_use(LlmEndpoint *slot)
{
	return slot->limiter.in_flight > 0 || slot->limiter.nwaiters > 0 ||
		pg_atomic_read_u32(&slot->in_flight) > 0;
}

/*
 * Makes it nobody's, without a past, under the table's lock and its own, both
 * exclusive.  Epochs go on, so that no pass of before is taken for one of the
 * next owner.
 */
static void
clear_slot(LlmEndpoint *slot)
{
	uint32		epoch = slot->breaker.epoch;
	Size		first = offsetof(LlmEndpoint, successes);

	pg_atomic_fetch_sub_u64(&llmgw_endpoints->nevents, slot->nevents);
	slot->database = InvalidOid;
	slot->name_hash = 0;
	slot->fingerprint = 0;
	memset(slot->provider, 0, sizeof(slot->provider));
	slot->last_used = 0;
	memset(&slot->breaker, 0, sizeof(slot->breaker));
	slot->breaker.epoch = epoch + 1;
	memset(&slot->settings, 0, sizeof(slot->settings));
	memset(&slot->limiter, 0, sizeof(slot->limiter));
	llmgw_limiter_init(&slot->limiter);
	pg_atomic_write_u32(&slot->in_flight, 0);
	pg_atomic_write_u32(&slot->closed, 1);
	pg_atomic_write_u64(&slot->parked_mark, 0);
	pg_atomic_write_u64(&slot->due_at, LLMGW_NEVER);
	pg_atomic_write_u64(&slot->latency_us, 0);
	pg_atomic_write_u64(&slot->failure_ppm, 0);
	pg_atomic_write_u64(&slot->settled_at, 0);
	memset((char *) slot + first, 0, sizeof(*slot) - first);
}

/*
 * The slot that is to be had most cheaply: a free one, else one of an endpoint
 * that is closed, and of those the one without events that wait to be booked
 * and not used for the longest time.  What is read of others' slots without
 * their locks is only a hint.
 */
static LlmEndpoint *
propose_slot(void)
{
	LlmEndpoint *best = NULL;
	bool		best_has_events = false;

	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];
		bool		has_events = slot->nevents > 0;

		if (!OidIsValid(slot->database))
			return slot;
		if (pg_atomic_read_u32(&slot->closed) == 0 || is_in_use(slot))
			continue;
		if (best == NULL ||
			(has_events == best_has_events ? slot->last_used < best->last_used : best_has_events))
		{
			best = slot;
			best_has_events = has_events;
		}
	}
	return best;
}

/*
 * A free slot, locked; NULL when all are needed.  Under the table's lock,
 * exclusive: so nobody else takes or gives away a slot, but others may begin to
 * use the one that was proposed.
 */
static LlmEndpoint *
take_slot(void)
{
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = propose_slot();

		if (slot == NULL)
			break;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (!OidIsValid(slot->database))
			return slot;
		if (slot->breaker.state == LLMGW_BREAKER_CLOSED && !is_in_use(slot))
		{
			clear_slot(slot);
			return slot;
		}
		LWLockRelease(&slot->lock);
	}
	return NULL;
}

/* The provider's name as slots have it. */
static void
clip_name(char *to, Size size, const char *name)
{
	int			len = pg_mbcliplen(name, strlen(name), size - 1);

	memcpy(to, name, len);
	to[len] = '\0';
}

bool
llmgw_endpoint_relock(LlmEndpoint *slot, const LlmProvider *provider)
{
	uint64		name_hash = hash_name(provider->name);

	LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	if (is_slot_of(slot, name_hash, provider->fingerprint))
		return true;
	LWLockRelease(&slot->lock);
	return false;
}

/* Looks it up in the table, and locks it. */
static LlmEndpoint *
lock_found(const LlmProvider *provider)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_ENDPOINTS);
	LlmEndpoint *slot;

	LWLockAcquire(table, LW_SHARED);
	slot = find_slot(hash_name(provider->name), provider->fingerprint);
	if (slot != NULL)
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	LWLockRelease(table);
	return slot;
}

/* The same; gives it a slot when it has none. */
static LlmEndpoint *
lock_created(const LlmProvider *provider)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_ENDPOINTS);
	uint64		name_hash = hash_name(provider->name);
	char		name[sizeof(((LlmEndpoint *) NULL)->provider)];
	LlmEndpoint *slot;

	clip_name(name, sizeof(name), provider->name);
	LWLockAcquire(table, LW_EXCLUSIVE);
	slot = find_slot(name_hash, provider->fingerprint);
	if (slot != NULL)
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
	else if ((slot = take_slot()) != NULL)
	{
		pg_atomic_fetch_add_u64(&llmgw_endpoints->taken, 1);
		slot->database = MyDatabaseId;
		slot->name_hash = name_hash;
		slot->fingerprint = provider->fingerprint;
		strlcpy(slot->provider, name, sizeof(slot->provider));
	}
	else
		pg_atomic_fetch_add_u64(&llmgw_endpoints->overflows, 1);
	LWLockRelease(table);
	return slot;
}

LlmEndpoint *
llmgw_endpoint_lock(const LlmProvider *provider, bool create)
{
	LlmEndpoint *slot = provider->endpoint;

	if (slot == NULL || !llmgw_endpoint_relock(slot, provider))
	{
		LlmProvider *learned = unconstify(LlmProvider *, provider);
		uint64		none = pg_atomic_read_u64(&llmgw_endpoints->taken) + 1;

		/* a fallback that was never needed is asked for with each call */
		if (slot == NULL && !create && provider->no_endpoint == none)
			return NULL;
		slot = lock_found(provider);
		if (slot == NULL && create)
			slot = lock_created(provider);
		learned->endpoint = slot;
		learned->no_endpoint = slot == NULL ? none : 0;
	}
	if (slot != NULL && create)
	{
		slot->last_used = llmgw_now();
		slot->settings = provider->breaker;
	}
	return slot;
}

bool
llmgw_endpoint_note_change(LlmEndpoint *slot, const LlmBreakerBefore *before,
						   LlmErrorClass error, const char *message)
{
	const LlmBreaker *after = &slot->breaker;
	LlmBreakerEvent *event;

	pg_atomic_write_u32(&slot->closed, after->state == LLMGW_BREAKER_CLOSED);
	pg_atomic_write_u64(&slot->parked_mark, after->parked_mark);
	pg_atomic_write_u64(&slot->due_at, llmgw_breaker_may_probe_at(after, LLMGW_ASK_CALL));
	if (after->state == before->state &&
		(after->state == LLMGW_BREAKER_CLOSED || after->reason == before->reason))
		return false;
	if (slot->nevents == LLMGW_ENDPOINT_EVENTS)
	{
		slot->lost++;
		return true;
	}
	event = &slot->events[(slot->first_event + slot->nevents) % LLMGW_ENDPOINT_EVENTS];
	memset(event, 0, sizeof(*event));
	event->at = GetCurrentTimestamp();
	memcpy(event->provider, slot->provider, sizeof(event->provider));
	event->from_state = before->state;
	event->to_state = after->state;
	event->reason = after->state == LLMGW_BREAKER_CLOSED ? before->reason : after->reason;
	event->error = error;

	/* a success has set it to none: what was overcome tells more */
	event->consecutive_failures = after->state == LLMGW_BREAKER_CLOSED ?
		before->nfailures : after->nfailures;
	if (after->state == LLMGW_BREAKER_OPEN)
		event->next_probe_at = llmgw_endpoint_wall_time(after->probe_at);
	event->lost = slot->lost;
	if (message != NULL)
		clip_name(event->message, sizeof(event->message), message);
	slot->lost = 0;
	slot->nevents++;
	pg_atomic_fetch_add_u64(&llmgw_endpoints->nevents, 1);
	return true;
}

void
llmgw_endpoint_wake_worker(void)
{
	LlmSpoolShared *spool = llmgw_spool_slot(MyDatabaseId, true);

	/* as many databases as there may be: nobody books anything here */
	if (spool == NULL)
		return;
	llmgw_spool_want_worker(spool);
	llmgw_spool_wake_worker(spool, false);
}

TimestampTz
llmgw_endpoint_wall_time(LlmInstant at)
{
	if (at == 0 || at == LLMGW_NEVER)
		return 0;
	return GetCurrentTimestamp() + (at - llmgw_now());
}

uint64
llmgw_endpoint_overflows(void)
{
	return pg_atomic_read_u64(&llmgw_endpoints->overflows);
}

/*
 * Events that wait to be booked stay, and with them the slot, which somebody
 * else may have then; only the breaker has nothing to be probed for.
 */
void
llmgw_endpoint_drop(const char *provider, uint64 fingerprint)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_ENDPOINTS);
	char		name[sizeof(((LlmEndpoint *) NULL)->provider)];

	clip_name(name, sizeof(name), provider);
	LWLockAcquire(table, LW_EXCLUSIVE);
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];

		if (slot->database != MyDatabaseId || slot->fingerprint != fingerprint ||
			strcmp(slot->provider, name) != 0)
			continue;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		if (!is_in_use(slot))
		{
			if (slot->nevents == 0)
				clear_slot(slot);
			else
			{
				llmgw_breaker_reset(&slot->breaker, llmgw_now());
				pg_atomic_write_u32(&slot->closed, 1);
				pg_atomic_write_u64(&slot->parked_mark, 0);
				slot->last_used = llmgw_now();
			}
		}
		LWLockRelease(&slot->lock);
	}
	LWLockRelease(table);
}

/* Nobody is connected to it any more. */
void
llmgw_endpoint_drop_database(Oid database)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_ENDPOINTS);

	LWLockAcquire(table, LW_EXCLUSIVE);
	for (int i = 0; i < llmgw_endpoints->nslots; i++)
	{
		LlmEndpoint *slot = &llmgw_endpoints->slots[i];

		if (slot->database != database)
			continue;
		LWLockAcquire(&slot->lock, LW_EXCLUSIVE);
		clear_slot(slot);
		LWLockRelease(&slot->lock);
	}
	LWLockRelease(table);
}
