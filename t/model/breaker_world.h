/*-------------------------------------------------------------------------
 *
 * breaker_world.h
 *	  The worlds of breaker_model.c: what is in them, which of them are known, how
 *	  one came to them.
 *
 *-------------------------------------------------------------------------
 */
#ifndef BREAKER_WORLD_H
#define BREAKER_WORLD_H

#define PROBE_TIME		2
#define RETRY_AFTER		3

/* the present, in each state that is stored */
#define PRESENT			1000

#define MAX_FAILURES	3
#define MAX_OPENINGS	3
#define MAX_PLACES		4

/* what the search is about */
typedef struct Setup
{
	const char *name;
	LlmBreakerSettings settings;
	int			callers;
	bool		worker;
	bool		by_hand;
	bool		quota;			/* else only the key may be refused */
	bool		retry_after;
	bool		two_marks;
} Setup;

/* A pass, and what is known of it by those who watch. */
typedef struct Place
{
	bool		taken;
	LlmBreakerPass pass;
	uint64		mark;
	bool		probe;			/* given as the probe */
	bool		stale;			/* something has changed since */
	bool		replaced;		/* another probe was given since */
	LlmInstant	until;			/* of a probe: it counts as lost then */
} Place;

/* What the actors have seen so far. */
typedef struct Seen
{
	int			nfailures;		/* in a row, at most MAX_FAILURES */
	LlmInstant	failures[MAX_FAILURES]; /* the last ones, oldest first */
	int			openings;		/* for outages, in a row, at most MAX_OPENINGS */
	LlmInstant	deadline;		/* the latest that was asked for since it is
								 * not closed; 0: none */
	uint64		mark;			/* with what it was parked */
} Seen;

typedef struct World
{
	LlmBreaker	breaker;
	Seen		seen;
	Place		places[MAX_PLACES]; /* callers, then the worker */
	LlmInstant	now;
} World;

/* What somebody does. */
typedef enum Act
{
	WAIT, OPEN, RESET, ASK, RESULT
} Act;

typedef struct Step
{
	unsigned char act;
	unsigned char place;
	unsigned char who;			/* of ASK */
	unsigned char mark;
	unsigned char outcome;		/* of RESULT */
	unsigned char retry_after;
} Step;

/* A world without what makes no difference, as bytes. */
typedef struct State
{
	signed char bytes[32];
	uint32		parent;
	Step		step;			/* from there */
} State;

static const Setup *setup;
static int	nplaces;

static State *states;
static uint32 nstates;
static uint32 allocated;
static uint32 *table;			/* by hash: a state's number plus one */
static uint32 table_size;

static uint32 current;			/* the state that is gone on from */
static Step current_step;
static uint64 nsteps;

/*
 * Worlds and states
 */

static int
kept_failures(void)
{
	return setup->settings.failures;
}

/* A moment relative to the present; before `oldest` all are the same. */
static signed char
pack_moment(const World *world, LlmInstant at, int oldest)
{
	if (at == 0)
		return 127;
	if (at == LLMGW_NEVER)
		return 126;
	return (signed char) Max(at - world->now, oldest);
}

static LlmInstant
unpack_moment(signed char byte)
{
	return byte == 127 ? 0 : (byte == 126 ? LLMGW_NEVER : PRESENT + byte);
}

static int
cmp_place(const void *a, const void *b)
{
	return memcmp(a, b, 2);
}

static void
pack(const World *world, signed char *bytes)
{
	const LlmBreaker *breaker = &world->breaker;
	int			oldest_failure = -(int) setup->settings.window_us - 1;
	int			oldest = -LLMGW_PROBE_GRACE - 1;
	int			n = Min(breaker->nfailures, kept_failures());
	signed char *p = bytes;
	signed char *places;

	memset(bytes, 0, sizeof(((State *) NULL)->bytes));
	*p++ = breaker->state;
	*p++ = breaker->reason;
	*p++ = n;
	for (int i = 0; i < n; i++)
		p[i] = pack_moment(world,
						   breaker->failures[(breaker->nfailures - n + i) % LLMGW_BREAKER_MEMORY],
						   oldest_failure);
	p += MAX_FAILURES;
	*p++ = Min(breaker->openings, MAX_OPENINGS);
	*p++ = pack_moment(world, breaker->opened_at, -1);
	*p++ = pack_moment(world, breaker->probe_at, oldest);
	*p++ = pack_moment(world, breaker->probe_until, oldest);
	*p++ = breaker->parked_mark;

	*p++ = world->seen.nfailures;
	for (int i = 0; i < world->seen.nfailures; i++)
		p[i] = pack_moment(world, world->seen.failures[i], oldest_failure);
	p += MAX_FAILURES;
	*p++ = world->seen.openings;
	*p++ = pack_moment(world, world->seen.deadline, oldest);
	*p++ = world->seen.mark;

	places = p;
	for (int i = 0; i < nplaces; i++)
	{
		const Place *place = &world->places[i];

		if (place->taken)
		{
			p[0] = 1 |
				(place->pass.epoch == breaker->epoch ? 2 : 0) |
				(place->pass.probe == 0 ? 0 : (place->pass.probe == breaker->probe ? 4 : 8)) |
				(place->pass.forced ? 16 : 0) |
				(place->stale ? 32 : 0) |
				(place->replaced ? 64 : 0);
			if (place->mark == 2)
				p[0] |= -128;
			p[1] = place->probe ? pack_moment(world, place->until, oldest) : 127;
		}
		p += 2;
	}

	/* one caller is like the other */
	qsort(places, setup->callers, 2, cmp_place);
}

static void
unpack(const signed char *p, World *world)
{
	LlmBreaker *breaker = &world->breaker;

	memset(world, 0, sizeof(*world));
	world->now = PRESENT;
	breaker->epoch = 100;
	breaker->probe = 50;
	breaker->state = *p++;
	breaker->reason = *p++;
	breaker->nfailures = *p++;
	for (int i = 0; i < breaker->nfailures; i++)
		breaker->failures[i] = unpack_moment(p[i]);
	p += MAX_FAILURES;
	breaker->openings = *p++;
	breaker->opened_at = unpack_moment(*p++);
	breaker->probe_at = unpack_moment(*p++);
	breaker->probe_until = unpack_moment(*p++);
	breaker->parked_mark = *p++;

	world->seen.nfailures = *p++;
	for (int i = 0; i < world->seen.nfailures; i++)
		world->seen.failures[i] = unpack_moment(p[i]);
	p += MAX_FAILURES;
	world->seen.openings = *p++;
	world->seen.deadline = unpack_moment(*p++);
	world->seen.mark = *p++;

	for (int i = 0; i < nplaces; i++)
	{
		Place	   *place = &world->places[i];

		place->taken = p[0] & 1;
		if (place->taken)
		{
			place->pass.epoch = p[0] & 2 ? 100 : 99;
			place->pass.probe = p[0] & 4 ? 50 : (p[0] & 8 ? 49 : 0);
			place->pass.forced = (p[0] & 16) != 0;
			place->stale = (p[0] & 32) != 0;
			place->replaced = (p[0] & 64) != 0;
			place->mark = p[0] & -128 ? 2 : 1;
			place->probe = place->pass.probe != 0;
			place->until = place->probe ? unpack_moment(p[1]) : 0;
		}
		p += 2;
	}
}

static uint32
hash(const signed char *bytes)
{
	uint64		h = UINT64CONST(14695981039346656037);

	for (int i = 0; i < sizeof(((State *) NULL)->bytes) / 8; i++)
	{
		uint64		word;

		memcpy(&word, bytes + i * 8, 8);
		h = (h ^ word) * UINT64CONST(0x9E3779B97F4A7C15);
		h ^= h >> 29;
	}
	return (uint32) (h >> 16);
}

static void
remember(uint32 number)
{
	uint32		place = hash(states[number].bytes) & (table_size - 1);

	while (table[place] != 0)
		place = (place + 1) & (table_size - 1);
	table[place] = number + 1;
}

static void *
checked(void *p)
{
	if (p == NULL)
	{
		printf("out of memory\n");
		exit(2);
	}
	return p;
}

/* Adds the world unless it is known. */
static void
reached(const World *world)
{
	State		state = {.parent = current,.step = current_step};
	uint32		place;

	nsteps++;
	pack(world, state.bytes);
	for (place = hash(state.bytes) & (table_size - 1); table[place] != 0;
		 place = (place + 1) & (table_size - 1))
		if (memcmp(states[table[place] - 1].bytes, state.bytes, sizeof(state.bytes)) == 0)
			return;
	if (nstates == allocated)
	{
		allocated *= 2;
		states = checked(realloc(states, sizeof(State) * allocated));
	}
	states[nstates] = state;
	table[place] = ++nstates;
	if (nstates > table_size / 2)
	{
		free(table);
		table_size *= 2;
		table = checked(calloc(table_size, sizeof(uint32)));
		for (uint32 i = 0; i < nstates; i++)
			remember(i);
	}
}

/*
 * What does not hold
 */

static void
print_step(const Step *step)
{
	static const char *const who[] = {"CALL", "CALL_MAY_PROBE", "PROBE", "FORCE"};
	static const char *const outcome[] = {
		"SUCCESS", "ALIVE", "FAILURE", "AUTH", "QUOTA", "NONE"
	};

	switch (step->act)
	{
		case WAIT:
			printf("time passes");
			break;
		case OPEN:
			printf("an operator opens it");
			break;
		case RESET:
			printf("an operator resets it");
			break;
		case ASK:
			printf("%d asks: %s, mark %d", step->place, who[step->who], step->mark);
			break;
		case RESULT:
			printf("%d returns: %s, Retry-After %d", step->place, outcome[step->outcome],
				   step->retry_after);
			break;
	}
}

static void
print_world(const World *world)
{
	const LlmBreaker *breaker = &world->breaker;

	printf("  [%s", llmgw_breaker_state_name(breaker->state));
	if (breaker->state != LLMGW_BREAKER_CLOSED)
	{
		printf(" %s", llmgw_breaker_reason_name(breaker->reason));
		if (breaker->probe_at != LLMGW_NEVER)
			printf(" probe_at %+d", (int) (breaker->probe_at - world->now));
	}
	printf(" nfailures %d openings %d]\n", breaker->nfailures, breaker->openings);
}

static void
print_path(uint32 number)
{
	World		world;

	if (number != 0)
	{
		print_path(states[number].parent);
		printf("    ");
		print_step(&states[number].step);
	}
	unpack(states[number].bytes, &world);
	print_world(&world);
}

static void
fail(const World *world, const char *what)
{
	printf("does not hold (%s): %s\n", setup->name, what);
	print_path(current);
	printf("  > ");
	print_step(&current_step);
	print_world(world);
	exit(1);
}

#define HOLDS(condition, what) \
	do { \
		if (!(condition)) \
			fail(world, what); \
	} while (0)

#endif							/* BREAKER_WORLD_H */
