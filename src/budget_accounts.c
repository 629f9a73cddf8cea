/*-------------------------------------------------------------------------
 *
 * budget_accounts.c
 *	  The table of accounts: who has one, who gets one, who loses it.
 *
 * A budget remembers its account and which owner of it that was; so an account is
 * looked up once per process, configuration and period.  The table is searched
 * from its beginning.
 *
 * An account that nobody has used for IDLE_US is looked up again long before
 * it may be given away; so who has just opened one can rely on it, unless its
 * period ends meanwhile.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xlog.h"
#include "miscadmin.h"

#include "budget_private.h"
#include "guc.h"
#include "shmem.h"
#include "spool.h"

/* an account of the running period may be given away when unused for so long */
#define IDLE_US			(INT64CONST(60) * 1000000)

/* and is looked up again when it has not been used for so long */
#define LOOK_AGAIN_US	(IDLE_US / 2)

#define UNSETTLED		"the ledger has yet to book calls of before the server's last start"

/* A place of its own in the caches: neighbours are other sessions'. */
typedef union Place
{
	LlmBudgetAccount account;
	char		pad[PG_CACHE_LINE_SIZE];
} Place;

StaticAssertDecl(sizeof(Place) == PG_CACHE_LINE_SIZE, "an account fits into a cache line");

/* Under the table's lock. */
typedef struct LlmBudgetShared
{
	uint64		last_serial;
	uint64		ngiven_away;	/* how often an account has lost its owner */
	int			nplaces;
	Size		places_offset;	/* from the start of this struct */
} LlmBudgetShared;

static LlmBudgetShared *shared = NULL;

/* An account's name in shared memory, and until when it is good. */
typedef struct AccountName
{
	Oid			extension;
	int64		id;
	TimestampTz period_start;
	TimestampTz period_end;
} AccountName;

typedef enum Entered
{
	ENTERED,
	ENTER_AGAIN,				/* what was read may be out of date */
	ENTER_NOWHERE				/* there is no place left */
} Entered;

static Size
places_offset(void)
{
	return TYPEALIGN(PG_CACHE_LINE_SIZE, sizeof(LlmBudgetShared));
}

static Size
budget_size(void)
{
	return add_size(places_offset(), mul_size(sizeof(Place), llmgw_max_budgets));
}

static LlmBudgetAccount *
place(int i)
{
	return &((Place *) ((char *) shared + shared->places_offset))[i].account;
}

static void
budget_init(void *part)
{
	shared = part;
	memset(shared, 0, budget_size());
	shared->nplaces = llmgw_max_budgets;
	shared->places_offset = places_offset();
	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = place(i);

		LWLockInitialize(&of->lock, llmgw_shmem_lock(LLMGW_LOCK_BUDGETS)->tranche);
		pg_atomic_init_u64(&of->serial, 0);
		pg_atomic_init_u64(&of->last_used, 0);
	}
}

static const LlmSharedPart budget_part =
{
	"llm_gateway budgets", budget_size, budget_init, (void **) &shared
};

void
llmgw_budget_init(void)
{
	llmgw_shmem_register(&budget_part);
}

/* Under the table's lock. */
static bool
has_owner(LlmBudgetAccount *of)
{
	return pg_atomic_read_u64(&of->serial) != 0;
}

/* Under the table's lock. */
static LlmBudgetAccount *
find(const AccountName *name)
{
	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = place(i);

		if (of->id == name->id && of->period_start == name->period_start &&
			of->database == MyDatabaseId && of->extension == name->extension && has_owner(of))
			return of;
	}
	return NULL;
}

/* Under the table's lock: it is this budget's, and stays for a while. */
static void
remember(LlmBudget *budget, LlmBudgetAccount *of)
{
	pg_atomic_write_u64(&of->last_used, llmgw_now());
	budget->account = of;
	budget->account_serial = pg_atomic_read_u64(&of->serial);
}

/*
 * Whether it can be made again from the tables, and is not in use.  `at` is the
 * present moment of the caller.  Reliable under the account's lock and the table's.
 */
static bool
can_be_given_away(LlmBudgetAccount *of, TimestampTz at)
{
	int			n;
	LlmSpoolShared *spool = &llmgw_spool_slots(&n)[of->spool_slot];

	return of->nholds == 0 &&
		pg_atomic_read_u64(&spool->needed) >= of->charged_until &&
		(of->period_end <= at ||
		 llmgw_now() - (LlmInstant) pg_atomic_read_u64(&of->last_used) >= IDLE_US);
}

/* Makes it nobody's, under the table's lock and its own, both exclusive. */
static void
clear_place(LlmBudgetAccount *of)
{
	pg_atomic_write_u64(&of->serial, 0);
	of->database = InvalidOid;
	of->extension = InvalidOid;
	of->id = 0;
	of->period_start = 0;
	of->period_end = 0;
	of->spool_slot = 0;
	of->nholds = 0;
	memset(&of->account, 0, sizeof(of->account));
	of->charged_until = 0;
	pg_atomic_write_u64(&of->last_used, 0);
	shared->ngiven_away++;
}

/*
 * The place that nobody has, or whose account has not been used for the longest
 * time.  What is read of accounts without their locks is only a hint.
 */
static LlmBudgetAccount *
propose_place(TimestampTz at)
{
	LlmBudgetAccount *best = NULL;

	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = place(i);

		if (!has_owner(of))
			return of;
		if (can_be_given_away(of, at) &&
			(best == NULL ||
			 pg_atomic_read_u64(&of->last_used) < pg_atomic_read_u64(&best->last_used)))
			best = of;
	}
	return best;
}

/*
 * A place that nobody has, locked; NULL when all are needed.  Under the table's
 * lock, exclusive; but whoever has opened the account that was proposed may begin to
 * use it before it is locked.
 */
static LlmBudgetAccount *
take_place(TimestampTz at)
{
	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = propose_place(at);

		if (of == NULL)
			break;
		LWLockAcquire(&of->lock, LW_EXCLUSIVE);
		if (!has_owner(of))
			return of;
		if (can_be_given_away(of, at))
		{
			clear_place(of);
			return of;
		}
		LWLockRelease(&of->lock);
	}
	return NULL;
}

/*
 * Gives the budget an account, if nobody else has done it, with what it had spent
 * when so many had been given away.
 */
static Entered
enter(LlmBudget *budget, const AccountName *name, TimestampTz at, int spool_slot, LlmNano spent,
	  uint64 ngiven_away)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_BUDGETS);
	LlmBudgetAccount *of;
	Entered		result = ENTERED;

	LWLockAcquire(table, LW_EXCLUSIVE);
	of = find(name);
	if (of == NULL && shared->ngiven_away != ngiven_away)
		result = ENTER_AGAIN;
	else if (of == NULL && (of = take_place(at)) == NULL)
		result = ENTER_NOWHERE;
	else if (!has_owner(of))
	{
		of->database = MyDatabaseId;
		of->extension = name->extension;
		of->id = name->id;
		of->period_start = name->period_start;
		of->period_end = name->period_end;
		of->spool_slot = spool_slot;
		of->account.spent = Max(spent, 0);
		pg_atomic_write_u64(&of->serial, ++shared->last_serial);
		LWLockRelease(&of->lock);
	}
	if (result == ENTERED)
		remember(budget, of);
	LWLockRelease(table);
	return result;
}

/* Looks for the account that somebody else may have opened. */
static bool
find_opened(LlmBudget *budget, const AccountName *name, uint64 *ngiven_away)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_BUDGETS);
	LlmBudgetAccount *of;

	LWLockAcquire(table, LW_SHARED);
	of = find(name);
	if (of != NULL)
		remember(budget, of);
	*ngiven_away = shared->ngiven_away;
	LWLockRelease(table);
	return of != NULL;
}

/* Without a lock: the account that was opened is good, and will be for a while. */
static bool
is_at_hand(const LlmBudget *budget, TimestampTz at)
{
	LlmBudgetAccount *of = budget->account;

	return of != NULL && at >= budget->period_start && at < budget->period_end &&
		llmgw_budget_is_current(of, budget) &&
		llmgw_now() - (LlmInstant) pg_atomic_read_u64(&of->last_used) < LOOK_AGAIN_US;
}

char *
llmgw_budget_open(const LlmConfig *config, LlmBudget *budget, TimestampTz at, int wait_ms)
{
	AccountName name;
	LlmSpoolShared *spool;
	uint64		ngiven_away;

	if (likely(is_at_hand(budget, at)))
		return NULL;

	budget->account = NULL;
	if (budget->zone == NULL)
		return psprintf("there is no time zone \"%s\"", budget->timezone);
	if (at < budget->period_start || at >= budget->period_end)
		llmgw_period_of(budget->period, budget->zone, at,
						&budget->period_start, &budget->period_end);
	name.extension = config->extension;
	name.id = budget->id;
	name.period_start = budget->period_start;
	name.period_end = budget->period_end;

	while (!find_opened(budget, &name, &ngiven_away))
	{
		LlmNano		spent;
		int			n;

		spool = llmgw_spool_slot(MyDatabaseId, true);
		if (spool == NULL)
			return pstrdup("too many databases make calls (llm_gateway.max_databases)");
		if (!llmgw_budget_is_settled(config, wait_ms))
			return pstrdup(UNSETTLED);
		spent = llmgw_budget_load(config, budget, name.period_start);
		switch (enter(budget, &name, at, spool - llmgw_spool_slots(&n), spent, ngiven_away))
		{
			case ENTERED:
				return NULL;
			case ENTER_NOWHERE:
				return psprintf("%d accounts of budgets are in use (llm_gateway.max_budgets)",
								llmgw_max_budgets);
			case ENTER_AGAIN:
				break;
		}
	}
	return NULL;
}

/* Without an account all that was charged is booked, or there would be one. */
char *
llmgw_budget_view(const LlmConfig *config, const LlmBudget *budget, TimestampTz period_start,
				  int wait_ms, LlmAccount *account)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_BUDGETS);
	AccountName name = {config->extension, budget->id, period_start};
	LlmBudgetAccount *of;

	memset(account, 0, sizeof(*account));
	LWLockAcquire(table, LW_SHARED);
	of = find(&name);
	if (of != NULL)
	{
		LWLockAcquire(&of->lock, LW_SHARED);
		*account = of->account;
		LWLockRelease(&of->lock);
	}
	LWLockRelease(table);
	if (of != NULL)
		return NULL;
	if (!RecoveryInProgress() && !llmgw_budget_is_settled(config, wait_ms))
		return pstrdup(UNSETTLED);
	account->spent = llmgw_budget_load(config, budget, period_start);
	return NULL;
}

LlmAccountStatus *
llmgw_budget_accounts(Oid extension, int *n)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_BUDGETS);
	LlmAccountStatus *all = palloc(mul_size(sizeof(*all), shared->nplaces));

	*n = 0;
	LWLockAcquire(table, LW_SHARED);
	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = place(i);
		LlmAccountStatus *status = &all[*n];

		if (!has_owner(of) || of->database != MyDatabaseId || of->extension != extension)
			continue;
		status->id = of->id;
		status->period_start = of->period_start;
		LWLockAcquire(&of->lock, LW_SHARED);
		status->account = of->account;
		LWLockRelease(&of->lock);
		(*n)++;
	}
	LWLockRelease(table);
	return all;
}

/* Nobody is connected to it any more. */
void
llmgw_budget_drop(Oid database)
{
	LWLock	   *table = llmgw_shmem_lock(LLMGW_LOCK_BUDGETS);

	LWLockAcquire(table, LW_EXCLUSIVE);
	for (int i = 0; i < shared->nplaces; i++)
	{
		LlmBudgetAccount *of = place(i);

		if (!has_owner(of) || of->database != database)
			continue;
		LWLockAcquire(&of->lock, LW_EXCLUSIVE);
		clear_place(of);
		LWLockRelease(&of->lock);
	}
	LWLockRelease(table);
}
