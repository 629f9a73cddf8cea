/*-------------------------------------------------------------------------
 *
 * worker_probe.c
 *	  The worker looks after circuit breakers: writes what they did, and probes.
 *
 * Everything that other processes tell is in shared memory (endpoint.h) and read
 * from there each time; what is remembered here is only when not to look.
 *
 * A probe is a call like any other (call_probe.c), made in the name of the
 * extension's owner.  Its provider's row is read in a short transaction, which
 * has ended when the call begins.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/memutils.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"

#include "engine.h"
#include "functions.h"
#include "guc.h"
#include "ledger_tables.h"
#include "worker_private.h"

/* events written in one transaction */
#define MAX_EVENTS			64

/* probes under way at one time; others wait for their turn */
#define MAX_PROBES			16

/* how often to look for what was not announced */
#define LOOK_MS				60000
#define MIN_LOOK_MS			100

/* how soon to try again what failed: writing events, starting probes */
#define RETRY_MS			1000

/*
 * How long an endpoint is left alone that was probed, while its breaker makes up
 * its mind; whose row forbids it or is missing, which is read again because no
 * commit wakes the worker; and whose probe could not be sent.
 */
#define AGAIN_MS			200
#define FORBIDDEN_MS		5000
#define UNSENT_MS			30000

/* a probe that is to come within this time keeps the worker from leaving */
#define PROBE_SOON_MS		600000

/* how long to turn the loop at once: each turn is an attempt */
#define TURN_MS				1000

/* An endpoint that was looked at. */
typedef struct Probed
{
	char		provider[128];
	uint64		fingerprint;
	LlmInstant	not_before;
	bool		under_way;
} Probed;

static struct
{
	MemoryContext context;		/* lives as long as the process */
	ResourceOwner owner;		/* of what the server's functions take while a
								 * call makes use of them: no transaction has
								 * one for us */
	LlmRun		run;
	List	   *waiting;		/* calls that the run has not asked for yet */
	Probed	   *known;			/* endpoints that were probed */
	int			nknown;
	int			size;
	LlmInstant	look_at;		/* for probes that are due */
	int			interval;		/* llm_gateway.probe_interval, then */
	bool		enabled;		/* llm_gateway.enabled, then */
	LlmInstant	write_at;		/* not before: writing events failed */
	LlmInstant	next;			/* when a probe is due, as far as is known */
}			probes = {.next = LLMGW_NEVER};

/* arguments and results of the actions below, which take none */
static LlmBook *the_book;
static LlmBreakerEvent *events;
static int	nevents;
static LlmProbeDue *due;
static int	ndue;
static LlmInstant turn_until;

static LlmCall *
next_probe(LlmRun *run)
{
	LlmCall    *call;

	if (probes.waiting == NIL)
		return NULL;
	call = linitial(probes.waiting);
	probes.waiting = list_delete_first(probes.waiting);
	return call;
}

static Probed *
find_known(const char *provider, uint64 fingerprint)
{
	for (int i = 0; i < probes.nknown; i++)
		if (probes.known[i].fingerprint == fingerprint &&
			strcmp(probes.known[i].provider, provider) == 0)
			return &probes.known[i];
	return NULL;
}

/* Leaves an endpoint alone for a while. */
static void
not_before(const char *provider, uint64 fingerprint, int ms, bool under_way)
{
	Probed	   *p = find_known(provider, fingerprint);

	if (p == NULL)
	{
		if (probes.nknown == probes.size)
		{
			probes.size *= 2;
			probes.known = repalloc(probes.known, sizeof(Probed) * probes.size);
		}
		p = &probes.known[probes.nknown++];
		strlcpy(p->provider, provider, sizeof(p->provider));
		p->fingerprint = fingerprint;
	}
	p->not_before = llmgw_after_ms(llmgw_now(), ms);
	p->under_way = under_way;
}

static void
probe_done(LlmRun *run, LlmCall *call)
{
	LlmProbeDue *of = call->owner;

	/* one that could not be sent would be tried again at once */
	not_before(of->provider, of->fingerprint,
			   llmgw_call_attempts(call) > 0 ? AGAIN_MS : UNSENT_MS, false);
	probes.look_at = 0;
	MemoryContextDelete(GetMemoryChunkContext(of));
}

static void
set_up(void)
{
	if (probes.context != NULL)
		return;
	probes.context = AllocSetContextCreate(TopMemoryContext, "llm_gateway probes",
										   ALLOCSET_SMALL_SIZES);
	probes.owner = ResourceOwnerCreate(NULL, "llm_gateway probes");
	probes.size = 16;
	probes.known = MemoryContextAlloc(probes.context, sizeof(Probed) * probes.size);
	probes.run.context = AllocSetContextCreate(probes.context, "llm_gateway run",
											   ALLOCSET_SMALL_SIZES);
	probes.run.max_in_flight = MAX_PROBES;
	probes.run.next = next_probe;
	probes.run.done = probe_done;
	llmgw_engine_begin(&probes.run);
}

/* Takes all probes off the wire, also one that is only half made. */
static void
drop_run(void)
{
	MemoryContextReset(probes.run.context);
	probes.waiting = NIL;
	llmgw_engine_begin(&probes.run);
	probes.look_at = llmgw_after_ms(llmgw_now(), RETRY_MS);
	probes.next = probes.look_at;
	for (int i = 0; i < probes.nknown; i++)
	{
		if (probes.known[i].under_way)
			probes.known[i].not_before = probes.look_at;
		probes.known[i].under_way = false;
	}
}

bool
llmgw_probes_under_way(void)
{
	return probes.waiting != NIL || probes.run.in_flight > 0;
}

void
llmgw_probes_abandon(void)
{
	if (llmgw_probes_under_way())
		drop_run();
}

/*
 * The provider that an endpoint stands for; NULL: none does any more.  Long names
 * are known by their beginning.
 */
static const LlmProvider *
provider_of(const LlmConfig *config, const LlmProbeDue *of)
{
	size_t		len = strlen(of->provider);

	for (int i = 0; i < config->nproviders; i++)
	{
		const LlmProvider *p = &config->providers[i];

		if (p->fingerprint == of->fingerprint &&
			strncmp(p->name, of->provider, len) == 0 &&
			(p->name[len] == '\0' || len + MAX_MULTIBYTE_CHAR_LEN >= sizeof(of->provider)))
			return p;
	}
	return NULL;
}

/* Makes the call of a probe; the run sends it. */
static void
start_probe(LlmConfig *config, const LlmProvider *provider, Oid role, const LlmProbeDue *of)
{
	MemoryContext context = AllocSetContextCreate(probes.run.context, "llm_gateway probe",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	LlmSpec    *spec;
	LlmCall    *call;

	llmgw_config_pin(config, context);
	spec = llmgw_probe_spec(config, provider, LLMGW_ASK_PROBE);
	llmgw_args_set_caller(spec, role);
	call = llmgw_call_create(context, spec, "");
	call->owner = memcpy(palloc(sizeof(*of)), of, sizeof(*of));

	not_before(of->provider, of->fingerprint, UNSENT_MS, true);
	MemoryContextSwitchTo(probes.run.context);
	probes.waiting = lappend(probes.waiting, call);
	MemoryContextSwitchTo(old);
}

/* Whether it is this endpoint's turn. */
static bool
is_due(const LlmProbeDue *of, LlmInstant now)
{
	const Probed *p = find_known(of->provider, of->fingerprint);

	return of->at <= now && (p == NULL || (!p->under_way && p->not_before <= now));
}

/*
 * Begins those that are due, in a transaction that reads the configuration.  A
 * probe by completion of a provider that is only idle costs money, and is what
 * was asked for.
 */
static void
start_action(void)
{
	LlmInstant	now = llmgw_now();
	LlmConfig  *config;
	Oid			owner;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	pgstat_report_activity(STATE_RUNNING, "reading which providers to probe");
	owner = llmgw_tables_extension_owner();
	config = OidIsValid(owner) ? llmgw_config_get() : NULL;
	if (config != NULL)
		llmgw_ledger_open(config);
	for (int i = 0; i < ndue; i++)
	{
		const LlmProvider *provider;

		if (!is_due(&due[i], now))
			continue;
		provider = config != NULL ? provider_of(config, &due[i]) : NULL;
		if (provider == NULL)
		{
			/* in use: it is looked at again */
			not_before(due[i].provider, due[i].fingerprint, FORBIDDEN_MS, false);
			llmgw_endpoint_drop(due[i].provider, due[i].fingerprint);
		}
		else if (due[i].check || provider->probe == LLMGW_PROBE_NONE || !provider->enabled)
			not_before(due[i].provider, due[i].fingerprint, FORBIDDEN_MS, false);
		else
			start_probe(config, provider, owner, &due[i]);
	}
	CommitTransactionCommand();
}

static void
turn_action(void)
{
	CurrentResourceOwner = probes.owner;
	(void) llmgw_engine_turn_until(&probes.run, turn_until);
	CurrentResourceOwner = NULL;
}

void
llmgw_probes_turn(LlmInstant until)
{
	turn_until = Min(until, llmgw_after_ms(llmgw_now(), TURN_MS));
	if (llmgw_worker_attempt(LLMGW_DEED_PROBES, turn_action) == 0)
		return;
	CurrentResourceOwner = NULL;
	ResourceOwnerRelease(probes.owner, RESOURCE_RELEASE_BEFORE_LOCKS, false, true);
	ResourceOwnerRelease(probes.owner, RESOURCE_RELEASE_LOCKS, false, true);
	ResourceOwnerRelease(probes.owner, RESOURCE_RELEASE_AFTER_LOCKS, false, true);
	drop_run();
}

static void
write_action(void)
{
	llmgw_book_events(the_book, events, nevents);
}

/* Writes what breakers did.  False: it has to be tried again later. */
static bool
write_events(LlmBook *book)
{
	MemoryContext caller = CurrentMemoryContext;
	bool		written = true;

	if (!llmgw_endpoint_has_events())
		return true;
	if (events == NULL)
		events = MemoryContextAlloc(probes.context, sizeof(LlmBreakerEvent) * MAX_EVENTS);
	the_book = book;
	while (written && (nevents = llmgw_endpoint_events(events, MAX_EVENTS)) > 0)
	{
		written = llmgw_worker_attempt(LLMGW_DEED_EVENTS, write_action) == 0;
		if (written)
		{
			llmgw_endpoint_forget_events();
			llmgw_worker_succeeded(LLMGW_DEED_EVENTS);

			/* what they did may ask for a probe */
			probes.look_at = 0;
		}
	}
	MemoryContextSwitchTo(caller);
	return written;
}

bool
llmgw_probes_has_news(void)
{
	LlmBreakerEvent event;

	return llmgw_endpoint_has_events() && llmgw_now() >= probes.write_at &&
		llmgw_endpoint_events(&event, 1) > 0;
}

/* Finds out which probes are due, begins them, and when the next one will be. */
static void
look(LlmInstant now)
{
	bool		any = false;
	int			kept = 0;

	/* drop_run() sets an earlier time */
	probes.interval = llmgw_probe_interval;
	probes.enabled = llmgw_enabled;
	probes.look_at = llmgw_after_ms(now, probes.interval > 0 ?
									Max(Min(probes.interval, LOOK_MS), MIN_LOOK_MS) : LOOK_MS);
	probes.next = LLMGW_NEVER;
	if (!llmgw_enabled)
		return;
	due = llmgw_endpoint_probes((int64) probes.interval * 1000, &ndue);
	for (int i = 0; i < ndue; i++)
		any = any || is_due(&due[i], now);

	/* forget those that nobody wants any more */
	for (int i = 0; i < probes.nknown; i++)
		if (probes.known[i].under_way || probes.known[i].not_before > now)
			probes.known[kept++] = probes.known[i];
	probes.nknown = kept;

	if (any)
	{
		if (llmgw_worker_attempt(LLMGW_DEED_PROBES, start_action) != 0)
			drop_run();
		else
		{
			llmgw_worker_succeeded(LLMGW_DEED_PROBES);
			llmgw_engine_resume(&probes.run);
		}
	}

	/*
	 * One that is not to be probed for now is looked at again in time; like
	 * one that is under way, it does not keep the worker from leaving.
	 */
	for (int i = 0; i < ndue; i++)
	{
		const Probed *p = find_known(due[i].provider, due[i].fingerprint);

		if (p != NULL && !p->under_way)
			probes.look_at = Min(probes.look_at, p->not_before);
		if (p == NULL || p->not_before <= llmgw_after_ms(now, RETRY_MS))
			probes.next = Min(probes.next,
							  Max(due[i].at, p == NULL ? now : p->not_before));
	}
	pfree(due);
}

bool
llmgw_probes_wanted(void)
{
	LlmBreakerEvent event;

	return llmgw_probes_under_way() ||
		probes.next <= llmgw_after_ms(llmgw_now(), PROBE_SOON_MS) ||
		(llmgw_endpoint_has_events() && llmgw_endpoint_events(&event, 1) > 0);
}

LlmInstant
llmgw_probes_wake_at(void)
{
	LlmInstant	at = Min(probes.look_at, probes.next);

	return probes.write_at != 0 ? Min(at, probes.write_at) : at;
}

void
llmgw_probes_step(LlmBook *book)
{
	LlmInstant	now = llmgw_now();

	set_up();
	if (now >= probes.write_at)
		probes.write_at = write_events(book) ? 0 : llmgw_after_ms(now, RETRY_MS);
	if (llmgw_worker_stop_requested)
	{
		llmgw_probes_abandon();
		return;
	}
	if (now >= Min(probes.look_at, probes.next) || probes.interval != llmgw_probe_interval ||
		probes.enabled != llmgw_enabled)
		look(now);
	if (llmgw_probes_under_way())
		llmgw_probes_turn(llmgw_now());
}
