/*-------------------------------------------------------------------------
 *
 * breaker_model.c
 *	  Goes through all that can happen to a breaker (src/breaker.h).
 *
 *		cc -DBREAKER_C='"breaker.c"' -Isrc -I... breaker_model.c && ./a.out
 *
 * A world is a breaker, some callers and a worker, each with at most one pass,
 * and a clock.  From the first world on, everything that anybody can do is done,
 * in every order: ask with either of two marks, bring a pass back with each
 * outcome, wait, open and reset by hand.  Worlds that behave alike from here on
 * (older moments than matter, other numbers of epochs) are one state; each state
 * is gone on from once, so the search ends when all have been seen.
 *
 * What must hold is said twice, in breaker.c and here.  Here by what the actors
 * have seen (struct Seen and what each knows of its pass), never by what the
 * breaker thinks: a pass is stale because something has changed since it was
 * given, not because its number says so.
 *
 * Prints the number of states, or what does not hold and how it came to that, and
 * then exits with 1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "breaker.h"

/* of a program without the server's library */
#undef printf
#undef qsort

/* moments are small numbers here */
#undef LLMGW_BREAKER_MAX_COOLDOWN
#undef LLMGW_PARK_AUTH
#undef LLMGW_PARK_QUOTA
#undef LLMGW_PROBE_GRACE
#define LLMGW_BREAKER_MAX_COOLDOWN	4
#define LLMGW_PARK_AUTH				3
#define LLMGW_PARK_QUOTA			5
#define LLMGW_PROBE_GRACE			1

#include BREAKER_C

#include "breaker_world.h"

static const Setup setups[] = {
	{"long cool-down", {2, 1, 6}, 2, true, false, false, true, false},
	{"three callers", {2, 2, 2}, 3, false, false, false, true, false},
	{"whenever they were", {2, 0, 1}, 2, true, true, true, true, false},
	{"three failures open", {3, 2, 2}, 2, true, true, false, true, false},
	{"three callers and a worker", {3, 1, 3}, 3, true, false, false, false, false},
	{"one failure opens", {1, 2, 2}, 2, true, true, true, true, true},
	{"two failures open", {2, 2, 2}, 2, true, true, false, true, true},
};

/*
 * What must hold
 */

static bool
same_breaker(const LlmBreaker *a, const LlmBreaker *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

static bool
is_closed(const LlmBreaker *breaker)
{
	return breaker->state == LLMGW_BREAKER_CLOSED;
}

static bool
has_reason(const LlmBreaker *breaker, LlmBreakerReason reason)
{
	return breaker->state != LLMGW_BREAKER_CLOSED && breaker->reason == reason;
}

static bool
parked(const LlmBreaker *breaker)
{
	return has_reason(breaker, LLMGW_BREAKER_AUTH) || has_reason(breaker, LLMGW_BREAKER_QUOTA);
}

static bool
counts(const Place *place)
{
	return place->taken && !place->stale && !place->replaced;
}

/* The pass that is the probe; NULL: there is none. */
static const Place *
valid_probe(const World *world)
{
	for (int i = 0; i < nplaces; i++)
		if (world->places[i].probe && counts(&world->places[i]))
			return &world->places[i];
	return NULL;
}

/* When it may be probed, as far as the actors know. */
static LlmInstant
time_to_probe(const World *world)
{
	const Place *probe = valid_probe(world);

	return Max(world->seen.deadline, probe != NULL ? probe->until : 0);
}

/* After every step. */
static void
check_world(const World *world)
{
	const LlmBreaker *breaker = &world->breaker;
	int			nvalid = 0;
	int			nnumbers = 0;

	for (int i = 0; i < nplaces; i++)
	{
		const Place *place = &world->places[i];

		nvalid += place->probe && counts(place);
		nnumbers += place->taken && place->pass.probe != 0 &&
			place->pass.epoch == breaker->epoch && place->pass.probe == breaker->probe;
	}
	HOLDS(nvalid <= 1 && nnumbers <= 1, "at most one pass is the probe");
	HOLDS(nvalid == (breaker->state == LLMGW_BREAKER_HALF_OPEN),
		  "half-open is where somebody probes");
	if (is_closed(breaker))
	{
		HOLDS(Min(breaker->nfailures, kept_failures()) == world->seen.nfailures,
			  "failures in a row are counted");
		HOLDS(breaker->opened_at == 0, "a closed one was not opened");
	}
	else
		HOLDS(breaker->opened_at != 0 && breaker->opened_at <= world->now,
			  "since when it is open is known");
	HOLDS(Min(breaker->openings, MAX_OPENINGS) == world->seen.openings, "openings are counted");
	if (breaker->state == LLMGW_BREAKER_OPEN && breaker->reason == LLMGW_BREAKER_OPERATOR)
		HOLDS(breaker->probe_at == LLMGW_NEVER, "what an operator opened is never probed");
	else if (breaker->state == LLMGW_BREAKER_OPEN)
	{
		HOLDS(breaker->probe_at >= world->seen.deadline,
			  "no probe before a deadline that was asked for");
		HOLDS(breaker->probe_at <= Max(world->seen.deadline, world->now),
			  "no probe later than what was asked for");
	}
	if (parked(breaker))
		HOLDS(breaker->parked_mark == world->seen.mark, "what is parked is known");
}

/*
 * From here the endpoint works, and what is under way never comes back: one
 * that asks again and again gets through as soon as it may.
 */
static void
check_recovers(const World *from, LlmBreakerAsk who, LlmBreakerOutcome outcome, int patience)
{
	World		copy = *from;
	World	   *world = &copy;
	LlmInstant	end = Max(time_to_probe(from), from->now) + patience;
	uint64		mark = parked(&from->breaker) ? from->seen.mark : 1;

	for (; world->now <= end && !is_closed(&world->breaker); world->now++)
	{
		LlmBreakerPass pass;
		LlmBreakerAnswer answer = llmgw_breaker_ask(&world->breaker, who, mark, PROBE_TIME,
													world->now, false, &pass);

		if (answer == LLMGW_BREAKER_PASS || answer == LLMGW_BREAKER_PROBE)
			llmgw_breaker_result(&world->breaker, &setup->settings, &pass, outcome, mark, 0,
								 world->now);
	}
	if (has_reason(&from->breaker, LLMGW_BREAKER_OPERATOR))
		HOLDS(same_breaker(&world->breaker, &from->breaker),
			  "only an operator undoes what an operator did");
	else
		HOLDS(is_closed(&world->breaker), "it closes once the endpoint works");
	llmgw_breaker_reset(&world->breaker, world->now);
	HOLDS(is_closed(&world->breaker), "an operator can close it");
}

static void
check_state(const World *world)
{
	check_recovers(world, LLMGW_ASK_CALL_MAY_PROBE, LLMGW_OUTCOME_SUCCESS, 0);
	check_recovers(world, LLMGW_ASK_CALL, LLMGW_OUTCOME_SUCCESS, LLMGW_PROBE_GRACE);
	if (has_reason(&world->breaker, LLMGW_BREAKER_OUTAGE))
	{
		check_recovers(world, LLMGW_ASK_PROBE, LLMGW_OUTCOME_ALIVE, 0);
		check_recovers(world, LLMGW_ASK_FORCE, LLMGW_OUTCOME_SUCCESS, 0);
		check_recovers(world, LLMGW_ASK_FORCE, LLMGW_OUTCOME_ALIVE, 0);
	}
}

/* Something has changed: what is under way but for one says nothing any more. */
static void
make_stale(World *world, const Place *except)
{
	for (int i = 0; i < nplaces; i++)
		if (world->places[i].taken && &world->places[i] != except)
			world->places[i].stale = true;
}

static void
seen_closed(World *world, bool forget_openings)
{
	world->seen.nfailures = 0;
	if (forget_openings)
		world->seen.openings = 0;
	world->seen.deadline = 0;
	world->seen.mark = 0;
}

static void
seen_failure(World *world)
{
	Seen	   *seen = &world->seen;

	if (seen->nfailures == kept_failures())
	{
		memmove(seen->failures, seen->failures + 1, sizeof(LlmInstant) * (seen->nfailures - 1));
		seen->nfailures--;
	}
	seen->failures[seen->nfailures++] = world->now;
}

static void
seen_deadline(World *world, int64 from_now)
{
	world->seen.deadline = Max(world->seen.deadline, world->now + from_now);
}

/* Opened for an outage: the cool-down doubles, up to a limit. */
static void
seen_opening(World *world, int retry_after)
{
	int64		wait = setup->settings.cooldown_us;

	for (int i = 0; i < world->seen.openings && wait * 2 <= LLMGW_BREAKER_MAX_COOLDOWN; i++)
		wait *= 2;
	if (world->seen.openings > 0 && wait < LLMGW_BREAKER_MAX_COOLDOWN &&
		wait < setup->settings.cooldown_us << world->seen.openings)
		wait = LLMGW_BREAKER_MAX_COOLDOWN;
	world->seen.openings = Min(world->seen.openings + 1, MAX_OPENINGS);
	world->seen.mark = 0;
	seen_deadline(world, wait);
	seen_deadline(world, retry_after);
}

/*
 * The steps
 */

static void
ask(World *world, Place *place, LlmBreakerAsk who, uint64 mark)
{
	LlmBreaker	before = world->breaker;
	const Place *probe = valid_probe(world);
	LlmInstant	probe_at = time_to_probe(world);
	LlmBreakerPass pass = {0};
	LlmBreakerAnswer peeked;
	LlmBreakerAnswer answer;

	if (who == LLMGW_ASK_CALL && has_reason(&before, LLMGW_BREAKER_OUTAGE))
		probe_at += LLMGW_PROBE_GRACE;

	peeked = llmgw_breaker_ask(&world->breaker, who, mark, PROBE_TIME, world->now, true, NULL);
	HOLDS(same_breaker(&before, &world->breaker), "to peek changes nothing");
	answer = llmgw_breaker_ask(&world->breaker, who, mark, PROBE_TIME, world->now, false, &pass);
	HOLDS(peeked == answer, "to peek tells the truth");

	switch (answer)
	{
		case LLMGW_BREAKER_PASS:
			HOLDS(!has_reason(&before, LLMGW_BREAKER_OPERATOR),
				  "nothing is sent that an operator stopped");
			HOLDS(pass.probe == 0, "who is let pass does not probe");
			HOLDS(pass.forced == !is_closed(&world->breaker),
				  "by force is what is sent though it is not closed");
			if (parked(&before))
			{
				HOLDS(mark != world->seen.mark, "what is parked is not sent to");
				HOLDS(is_closed(&world->breaker), "another row or key has no past");
				seen_closed(world, true);
				make_stale(world, NULL);
			}
			else
			{
				HOLDS(is_closed(&before) || who == LLMGW_ASK_FORCE,
					  "nobody passes one that is not closed, but by force");
				HOLDS(same_breaker(&before, &world->breaker), "to pass changes nothing");
			}
			break;

		case LLMGW_BREAKER_PROBE:
			HOLDS(!is_closed(&before), "a closed one is not probed");
			HOLDS(!has_reason(&before, LLMGW_BREAKER_OPERATOR),
				  "nothing is sent that an operator stopped");
			HOLDS(who != LLMGW_ASK_FORCE, "who forces does not probe");
			HOLDS(!parked(&before) || who != LLMGW_ASK_PROBE, "only calls prove credit");
			HOLDS(world->now >= probe_at, "a probe in its time");
			HOLDS(pass.probe != 0 && !pass.forced, "the probe knows that it is");
			HOLDS(world->breaker.state == LLMGW_BREAKER_HALF_OPEN, "a probe makes it half-open");
			HOLDS(world->breaker.reason == before.reason, "a probe does not change the reason");
			if (probe != NULL)
				((Place *) probe)->replaced = true;
			else
				make_stale(world, NULL);
			break;

		case LLMGW_BREAKER_REFUSED:
		case LLMGW_BREAKER_STOPPED:
			HOLDS(same_breaker(&before, &world->breaker), "to be refused changes nothing");
			HOLDS(!is_closed(&before), "a closed one lets pass");
			HOLDS((answer == LLMGW_BREAKER_REFUSED) == has_reason(&before, LLMGW_BREAKER_OUTAGE),
				  "an outage may be forced, nothing else");
			if (has_reason(&before, LLMGW_BREAKER_OPERATOR))
				return;
			if (parked(&before))
				HOLDS(mark == world->seen.mark, "another row or key is not parked");
			else
				HOLDS(who != LLMGW_ASK_FORCE, "an outage gives way to force");
			if (who == LLMGW_ASK_FORCE || (parked(&before) && who == LLMGW_ASK_PROBE))
				return;
			if (before.state == LLMGW_BREAKER_HALF_OPEN)
				HOLDS(world->now < probe_at, "no probe is put off");
			else
				HOLDS(world->now < Max(probe_at, before.probe_at + LLMGW_PROBE_GRACE),
					  "no probe is put off");
			return;
	}
	place->taken = true;
	place->pass = pass;
	place->mark = mark;
	place->probe = answer == LLMGW_BREAKER_PROBE;
	place->until = place->probe ? world->now + PROBE_TIME : 0;
}

static void
check_parking(World *world, const LlmBreaker *before, const Place *place,
			  LlmBreakerReason reason, int64 from_now)
{
	const LlmBreaker *after = &world->breaker;
	bool		longer = before->state == LLMGW_BREAKER_OPEN && parked(before) &&
	before->probe_at >= world->now + from_now;

	HOLDS(after->state == LLMGW_BREAKER_OPEN && parked(after),
		  "a refused key or an empty account parks it at once");
	seen_deadline(world, from_now);
	if (longer)
		HOLDS(same_breaker(before, after), "what is parked for longer stays so");
	else
	{
		HOLDS(after->reason == reason, "why it is parked is known");
		world->seen.mark = place->mark;
	}
}

static bool
enough_seen(const World *world)
{
	return world->seen.nfailures == setup->settings.failures &&
		(setup->settings.window_us == 0 ||
		 world->now - world->seen.failures[0] <= setup->settings.window_us);
}

static void
check_closed_result(World *world, const LlmBreaker *before, LlmBreakerOutcome outcome,
					int retry_after)
{
	const LlmBreaker *after = &world->breaker;

	switch (outcome)
	{
		case LLMGW_OUTCOME_SUCCESS:
			HOLDS(is_closed(after) && after->nfailures == 0 && after->openings == 0,
				  "a success makes up for the failures before it");
			seen_closed(world, true);
			break;
		case LLMGW_OUTCOME_FAILURE:
			seen_failure(world);
			if (enough_seen(world))
			{
				HOLDS(after->state == LLMGW_BREAKER_OPEN && after->reason == LLMGW_BREAKER_OUTAGE,
					  "enough failures within the window open it");
				seen_opening(world, retry_after);
			}
			else
				HOLDS(is_closed(after), "fewer failures do not open it");
			break;
		default:
			HOLDS(same_breaker(before, after), "what says nothing changes nothing");
			break;
	}
}

static void
check_broken_result(World *world, const LlmBreaker *before, const Place *place,
					LlmBreakerOutcome outcome, int retry_after)
{
	const LlmBreaker *after = &world->breaker;

	if (outcome == LLMGW_OUTCOME_SUCCESS)
	{
		HOLDS(is_closed(after), "a success closes it");
		seen_closed(world, true);
	}
	else if (outcome == LLMGW_OUTCOME_ALIVE && !parked(before))
	{
		HOLDS(is_closed(after), "a sign of life ends an outage");
		seen_closed(world, false);
	}
	else if (outcome == LLMGW_OUTCOME_FAILURE && place->probe)
	{
		HOLDS(after->state == LLMGW_BREAKER_OPEN && after->reason == LLMGW_BREAKER_OUTAGE,
			  "a probe that failed opens it again");
		seen_opening(world, retry_after);
	}
	else
	{
		LlmBreaker	expected = *before;

		if (place->probe)
		{
			LlmBreaker	peek = *after;
			LlmBreakerAnswer answer;

			HOLDS(after->state == LLMGW_BREAKER_OPEN && after->reason == before->reason,
				  "a probe that says nothing opens it again");
			HOLDS(after->openings == before->openings, "a probe that says nothing did not fail");
			answer = llmgw_breaker_ask(&peek, LLMGW_ASK_CALL_MAY_PROBE, world->seen.mark,
									   PROBE_TIME, world->now, true, NULL);
			if (world->seen.deadline <= world->now && retry_after == 0)
				HOLDS(answer == LLMGW_BREAKER_PROBE, "a cancelled probe makes room at once");
		}
		else
		{
			expected.probe_at = after->probe_at;
			HOLDS(same_breaker(&expected, after),
				  "what was sent by force in vain changes a deadline at most");
		}
		if (retry_after > 0)
			seen_deadline(world, retry_after);
	}
}

static void
result(World *world, Place *taken, LlmBreakerOutcome outcome, int retry_after)
{
	LlmBreaker	before = world->breaker;
	Place		place = *taken;
	const LlmBreaker *after = &world->breaker;

	memset(taken, 0, sizeof(*taken));
	llmgw_breaker_result(&world->breaker, &setup->settings, &place.pass, outcome, place.mark,
						 retry_after, world->now);
	if (has_reason(&before, LLMGW_BREAKER_OPERATOR))
		HOLDS(same_breaker(&before, after), "only an operator undoes what an operator did");
	else if (outcome == LLMGW_OUTCOME_AUTH)
		check_parking(world, &before, &place, LLMGW_BREAKER_AUTH,
					  Max(LLMGW_PARK_AUTH, retry_after));
	else if (outcome == LLMGW_OUTCOME_QUOTA)
		check_parking(world, &before, &place, LLMGW_BREAKER_QUOTA,
					  Max(LLMGW_PARK_QUOTA, retry_after));
	else if (!counts(&place))
		HOLDS(same_breaker(&before, after), "what is stale changes nothing");
	else if (is_closed(&before))
		check_closed_result(world, &before, outcome, retry_after);
	else
		check_broken_result(world, &before, &place, outcome, retry_after);

	if (after->state != before.state || (!is_closed(after) && after->reason != before.reason))
		make_stale(world, NULL);
	HOLDS(is_closed(&before) || is_closed(after) || after->opened_at == before.opened_at,
		  "it is open since it was opened first");
}

/* A step on a world of its own. */
static void
take(const World *from, Step step)
{
	World		copy = *from;
	World	   *world = &copy;
	Place	   *place = &copy.places[step.place];

	current_step = step;
	switch (step.act)
	{
		case WAIT:
			world->now++;
			break;
		case OPEN:
			llmgw_breaker_open(&world->breaker, world->now);
			HOLDS(world->breaker.state == LLMGW_BREAKER_OPEN &&
				  world->breaker.reason == LLMGW_BREAKER_OPERATOR, "an operator can open it");
			world->seen.mark = 0;
			make_stale(world, NULL);
			break;
		case RESET:
			llmgw_breaker_reset(&world->breaker, world->now);
			HOLDS(is_closed(&world->breaker), "an operator can close it");
			seen_closed(world, true);
			make_stale(world, NULL);
			break;
		case ASK:
			ask(world, place, step.who, step.mark);
			break;
		case RESULT:
			result(world, place, step.outcome, step.retry_after);
			break;
	}
	check_world(world);
	reached(world);
}

static Step
a_step(Act act, int place, int who, int mark, int outcome, int retry_after)
{
	Step		step = {act, place, who, mark, outcome, retry_after};

	return step;
}

/* All that the actor in that place can do. */
static void
take_all_of(const World *world, int i)
{
	bool		worker = i == setup->callers;
	static const unsigned char calls[] = {
		LLMGW_ASK_CALL, LLMGW_ASK_CALL_MAY_PROBE, LLMGW_ASK_FORCE
	};
	static const unsigned char probes[] = {LLMGW_ASK_PROBE};

	if (!world->places[i].taken)
	{
		/* callers are alike: the first that is free will do */
		if (!worker && i > 0 && !world->places[i - 1].taken)
			return;
		for (int w = 0; w < (worker ? lengthof(probes) : lengthof(calls)); w++)
			for (int mark = 1; mark <= (setup->two_marks ? 2 : 1); mark++)
				take(world, a_step(ASK, i, worker ? probes[w] : calls[w], mark, 0, 0));
		return;
	}
	for (int outcome = LLMGW_OUTCOME_SUCCESS; outcome <= LLMGW_OUTCOME_NONE; outcome++)
	{
		if ((worker && outcome == LLMGW_OUTCOME_SUCCESS) ||
			(!setup->quota && outcome == LLMGW_OUTCOME_QUOTA))
			continue;
		for (int retry = 0; retry <= (setup->retry_after ? RETRY_AFTER : 0); retry += RETRY_AFTER)
			take(world, a_step(RESULT, i, 0, 0, outcome, retry));
	}
}

static void
search(void)
{
	World		world;

	nplaces = setup->callers + (setup->worker ? 1 : 0);
	nsteps = 0;
	nstates = 0;
	current = 0;
	memset(&world, 0, sizeof(world));
	world.now = PRESENT;
	memset(table, 0, sizeof(uint32) * table_size);
	reached(&world);
	for (current = 0; current < nstates; current++)
	{
		unpack(states[current].bytes, &world);
		current_step = states[current].step;
		check_state(&world);
		take(&world, a_step(WAIT, 0, 0, 0, 0, 0));
		if (setup->by_hand)
		{
			take(&world, a_step(OPEN, 0, 0, 0, 0, 0));
			take(&world, a_step(RESET, 0, 0, 0, 0, 0));
		}
		for (int i = 0; i < nplaces; i++)
			take_all_of(&world, i);
	}
	printf("%s: %u states, %llu steps\n", setup->name, nstates, (unsigned long long) nsteps);
}

/*
 * Many failures: the ring of moments, which the search has only the beginning
 * of, against a list of all of them.
 */

#define MANY	400

static void
check_ring(int failures, int64 window_us)
{
	LlmBreakerSettings settings = {failures, window_us, 1};
	LlmBreaker	breaker = {0};
	LlmInstant	times[MANY];
	LlmInstant	now = PRESENT;
	uint32		random = failures * 7919 + window_us;
	int			known = Min(failures, LLMGW_BREAKER_MEMORY);
	int			n = 0;

	for (int i = 0; i < MANY; i++)
	{
		LlmBreakerPass pass;
		bool		enough;

		random = random * 1664525 + 1013904223;
		now += (random >> 16) % 3;
		times[n++] = now;
		enough = n >= failures && (window_us == 0 || now - times[n - known] <= window_us);
		(void) llmgw_breaker_ask(&breaker, LLMGW_ASK_CALL, 1, PROBE_TIME, now, false, &pass);
		llmgw_breaker_result(&breaker, &settings, &pass, LLMGW_OUTCOME_FAILURE, 1, 0, now);
		if (enough != (breaker.state == LLMGW_BREAKER_OPEN))
		{
			printf("does not hold: of %d failures within %d the %dth %s\n", failures,
				   (int) window_us, i + 1, enough ? "opens it" : "does not open it");
			exit(1);
		}
		if (enough)
		{
			llmgw_breaker_reset(&breaker, now);
			n = 0;
		}
	}
}

int
main(void)
{
	for (int failures = 1; failures <= LLMGW_BREAKER_MEMORY + 6; failures++)
		for (int64 window = 0; window <= failures + 8; window++)
			check_ring(failures, window);

	allocated = 1 << 16;
	table_size = 1 << 18;
	states = checked(malloc(sizeof(State) * allocated));
	table = checked(calloc(table_size, sizeof(uint32)));
	for (int i = 0; i < lengthof(setups); i++)
	{
		setup = &setups[i];
		search();
	}
	printf("all of it holds\n");
	return 0;
}
