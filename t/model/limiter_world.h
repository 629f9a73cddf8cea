/*-------------------------------------------------------------------------
 *
 * limiter_world.h
 *	  The worlds of limiter_model.c: what is in them, what is known of them, which
 *	  of them are alike.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LIMITER_WORLD_H
#define LIMITER_WORLD_H

#define ACTORS			3
#define MINUTE			((LLMGW_LIMITER_SECONDS - 1) * SECOND)
#define LONG_PAUSE		(4 * TICK)
#define SHORT_PAUSE		(2 * TICK)
#define PRESENT			(100 * SECOND)
#define MAX_TAKES		12

/* more easing than there are actors is none */
#define EASED_ENOUGH	4

typedef struct Setup
{
	const char *name;
	int			actors;
	LlmLimits	limits;
	int			rank[ACTORS];
	int			calls[ACTORS];	/* that it makes, one after another */
	int			tokens[ACTORS];
	int			naps;			/* how often somebody falls asleep */
	int			pauses;			/* how often the provider wants one */
	int			lifts;			/* how often the limits are raised */
	bool		usage;			/* calls use fewer or more tokens than
								 * expected */
	bool		nested;			/* 1 is a call of 0's process, which has a
								 * cursor */
	bool		polls;			/* 2 finds no place in the queue */
	int			patience;		/* in ticks: then those who were awake at the
								 * beginning have had their turn */
} Setup;

typedef enum Doing
{
	IDLE,						/* has no call */
	REFUSED,					/* was told to wait, and has not queued up yet */
	WAITING,
	HOLDING
} Doing;

typedef struct Actor
{
	Doing		doing;
	int			calls;			/* that are left */
	LlmInstant	key;
	LlmInstant	until;			/* what the refusal said */
	LlmInstant	timer;
	LlmLimiterHold hold;
	bool		told;
	bool		asleep;
	bool		absent;			/* was asleep since it last asked */
	bool		since_pause;	/* holds what it took after the last pause */
} Actor;

typedef struct World
{
	LlmLimiter	limiter;
	LlmWaiter	waiters[ACTORS];
	LlmLimits	limits;
	LlmInstant	now;
	Actor		actors[ACTORS];
	int			naps;
	int			pauses;
	int			lifts;

	/* the books */
	int			ntakes;			/* of the last minute and a bit */
	struct
	{
		LlmInstant	at;
		int64		tokens;
		int			actor;		/* who still holds it; -1: nobody */
	}			takes[MAX_TAKES];
	LlmInstant	paused_until;	/* 0: never */
	int			easing;
	bool		room_by_itself; /* the head has room that nobody made */
} World;

typedef enum Step
{
	ASK, GO_AWAY, QUEUE_UP, LOOK, CANCEL, FALL_ASLEEP, COME_BACK,
	SUCCEED, FAIL, PAUSE, USE_LESS, USE_MORE, ABANDON,
	/* nobody's */
	WAIT, RAISE, STEPS
} Step;

static const char *const steps[] = {
	"asks", "goes away", "queues up", "looks", "cancels", "falls asleep", "comes back",
	"succeeds", "fails", "is told to pause", "has used fewer tokens", "has used more tokens",
	"is abandoned", "a tick", "the limits are raised"
};

/* A state: by which step from which it was first reached. */
typedef struct Seen
{
	uint64		hash[2];
	uint32		parent;
	uint8		move;			/* step * ACTORS + actor */
} Seen;

static const Setup *setup;

static Seen *seen;
static uint32 nseen;
static uint32 max_seen;
static uint32 *places;			/* hash table of numbers of states, plus one */
static uint32 nplaces;

/* for who finds something wrong */
static uint32 current_state;
static int	current_move = -1;
static int	wait_ended = 0;		/* ticks, in what follows if nobody comes */

static void print_story(void);

static void
must(bool holds, const char *what)
{
	if (holds)
		return;
	printf("does not hold (%s): %s\n", setup->name, what);
	print_story();
	exit(1);
}

/*
 * What is known of the present.
 */

/* Nobody looks after the cursor while its session makes another call. */
static bool
is_buried(const World *w, int a)
{
	return setup->nested && a == 0 && w->actors[1].doing != IDLE;
}

static bool
is_due(const World *w, int a)
{
	const Actor *actor = &w->actors[a];

	if (is_buried(w, a))
		return false;
	if (actor->doing == REFUSED)
		return true;
	return actor->doing == WAITING && !actor->asleep &&
		((actor->told && w->waiters[a].woken_at != 0) || actor->timer <= w->now);
}

static bool
somebody_is_due(const World *w)
{
	for (int a = 0; a < setup->actors; a++)
		if (is_due(w, a))
			return true;
	return false;
}

static int
holders(const World *w)
{
	int			n = 0;

	for (int a = 0; a < setup->actors; a++)
		n += w->actors[a].doing == HOLDING;
	return n;
}

static int
holders_since_pause(const World *w)
{
	int			n = 0;

	for (int a = 0; a < setup->actors; a++)
		n += w->actors[a].doing == HOLDING && w->actors[a].since_pause;
	return n;
}

/*
 * Of what was taken: how much lies less than a minute back, to the instant, or
 * with whole seconds as the limiter counts them.
 */
static int64
taken(const World *w, bool tokens, bool whole_seconds)
{
	int64		sum = 0;

	for (int i = 0; i < w->ntakes; i++)
		if (whole_seconds ?
			w->takes[i].at / SECOND + LLMGW_LIMITER_SECONDS > w->now / SECOND :
			w->takes[i].at > w->now - MINUTE)
			sum += tokens ? w->takes[i].tokens : 1;
	return sum;
}

static bool
eased_out(const World *w)
{
	return w->paused_until != 0 && w->now < w->paused_until + LLMGW_EASING_US &&
		holders_since_pause(w) >= w->easing;
}

static bool
concurrency_is_used_up(const World *w)
{
	return w->limits.concurrency > 0 && holders(w) >= w->limits.concurrency;
}

/* Whether the limits let somebody have so many tokens. */
static bool
has_room(const World *w, int64 tokens, bool alone)
{
	if (!alone && (concurrency_is_used_up(w) || eased_out(w)))
		return false;
	if (w->now < w->paused_until)
		return false;
	if (w->limits.requests > 0 && taken(w, false, true) >= w->limits.requests)
		return false;
	return w->limits.tokens == 0 || taken(w, true, true) == 0 ||
		taken(w, true, true) + tokens <= w->limits.tokens;
}

static bool
is_alone(const World *w, int a)
{
	return setup->nested && a == 1 && w->actors[0].doing == HOLDING;
}

/*
 * Whether a head that is awake has room, and nobody has told it.  That a limit
 * does not hold for it, only itself knows.
 */
static bool
head_misses_room(const World *w)
{
	int			head = w->limiter.head;

	return head != LLMGW_NO_WAITER && !w->actors[head].absent && !is_due(w, head) &&
		has_room(w, setup->tokens[head], false);
}

/* What holds whatever the step was. */
static void
check_world(const World *w)
{
	const LlmLimiter *l = &w->limiter;
	int			n = 0;
	int			last = LLMGW_NO_WAITER;

	must(l->in_flight == holders(w), "as many are under way as hold room");
	for (int a = l->head; a != LLMGW_NO_WAITER; a = w->waiters[a].next)
	{
		must(++n <= setup->actors, "the queue has an end");
		must(w->waiters[a].queued && w->waiters[a].prev == last, "the queue is linked");
		must(w->actors[a].doing == WAITING, "only who waits is in the queue");
		must(last == LLMGW_NO_WAITER || w->waiters[last].key <= w->waiters[a].key,
			 "the queue is in order");
		must(last == LLMGW_NO_WAITER || w->waiters[a].woken_at == 0, "only the head was told");
		last = a;
	}
	must(l->tail == last && l->nwaiters == n, "the queue's end and length");
	for (int a = 0; a < setup->actors; a++)
	{
		bool		expected = w->actors[a].doing == WAITING && !(setup->polls && a == 2);

		must(w->waiters[a].queued ? expected : !expected || w->actors[a].absent,
			 "who waits and is awake keeps its place");
	}
	must(w->room_by_itself || !head_misses_room(w), "who makes room tells the head");
}

/*
 * Which worlds are alike.
 */

static uint64
mix(uint64 hash, uint64 value, uint64 factor)
{
	hash = (hash ^ value) * factor;
	return hash ^ (hash >> 29);
}

/*
 * What of the world makes a difference from now on, as numbers that do not grow
 * with time.
 */
static int
describe(const World *w, int64 *d)
{
	LlmInstant	newcomers = PG_INT64_MAX;
	int64		second = w->now / SECOND;
	int			n = 0;

	for (int a = 0; a < setup->actors; a++)
		newcomers = Min(newcomers, w->now + setup->rank[a] * LLMGW_RANK_US);

	if (w->limits.requests > 0 || w->limits.tokens > 0)
	{
		d[n++] = w->now % SECOND;
		for (int i = 0; i < LLMGW_LIMITER_SECONDS; i++)
		{
			int			at = (second - i) % LLMGW_LIMITER_SECONDS;
			bool		counts = w->limiter.seconds[at].second == second - i;

			d[n++] = counts ? w->limiter.seconds[at].requests : 0;
			d[n++] = counts ? w->limiter.seconds[at].tokens : 0;
		}
		for (int i = 0; i < w->ntakes; i++)
			if (w->takes[i].at / SECOND + LLMGW_LIMITER_SECONDS > second)
			{
				d[n++] = w->now - w->takes[i].at;
				d[n++] = w->takes[i].tokens;
				d[n++] = w->takes[i].actor;
			}
		d[n++] = -1;
	}
	d[n++] = w->limits.concurrency;
	d[n++] = w->naps;
	d[n++] = w->pauses;
	d[n++] = w->lifts;
	d[n++] = w->room_by_itself;
	d[n++] = w->limiter.head;
	if (w->paused_until != 0)
	{
		d[n++] = w->limiter.easing == 0 ? EASED_ENOUGH : Min(w->limiter.easing, EASED_ENOUGH);
		d[n++] = w->easing;
		d[n++] = w->limiter.eased;
		d[n++] = Max(w->limiter.limited_until + LLMGW_EASING_US - w->now, 0);
		d[n++] = Max(w->paused_until + LLMGW_EASING_US - w->now, 0);
	}
	for (int a = 0; a < setup->actors; a++)
	{
		const Actor *actor = &w->actors[a];
		const LlmWaiter *waiter = &w->waiters[a];

		d[n++] = actor->doing * 1000 + actor->calls * 100 + actor->asleep * 10 + actor->absent;
		if (actor->doing == HOLDING)
		{
			d[n++] = actor->since_pause;
			d[n++] = actor->hold.pauses == w->limiter.pauses;
			if (w->limits.tokens > 0)
				d[n++] = Min(second - actor->hold.second, LLMGW_LIMITER_SECONDS);
		}
		if (actor->doing == REFUSED)
			d[n++] = Min(actor->until - w->now, LLMGW_LOOK_US);
		if (actor->doing == REFUSED || actor->doing == WAITING)
		{
			/* of keys before all that are to come only the order counts */
			int64		key = 0;

			if (actor->key > newcomers)
				key = 100 + actor->key - newcomers;
			else
				for (int b = 0; b < setup->actors; b++)
					key += w->actors[b].doing == WAITING && w->actors[b].key < actor->key;
			d[n++] = key;
		}
		if (actor->doing == WAITING)
		{
			d[n++] = Max(actor->timer - w->now, 0);
			d[n++] = waiter->queued ? 1 + waiter->next : -1;
			d[n++] = Min(w->now - waiter->asked_at, LLMGW_LOOK_US);
			d[n++] = waiter->woken_at == 0 ? -1 : Min(w->now - waiter->woken_at, LLMGW_HEAD_US);
			d[n++] = actor->told && waiter->woken_at != 0;
		}
	}
	return n;
}

/* Whether it is a state that has not been seen; remembers it. */
static bool
is_new(const World *w, uint32 parent, int move)
{
	int64		d[200];
	int			n = describe(w, d);
	uint64		hash[2] = {1, 2};
	uint32		place;

	for (int i = 0; i < n; i++)
	{
		hash[0] = mix(hash[0], d[i], UINT64CONST(0x9E3779B97F4A7C15));
		hash[1] = mix(hash[1], d[i], UINT64CONST(0xD6E8FEB86659FD93));
	}
	if (nseen * 2 >= nplaces)
	{
		nplaces = nplaces == 0 ? 1 << 16 : nplaces * 2;
		free(places);
		places = calloc(nplaces, sizeof(*places));
		for (uint32 i = 0; i < nseen; i++)
		{
			place = seen[i].hash[0] & (nplaces - 1);
			while (places[place] != 0)
				place = (place + 1) & (nplaces - 1);
			places[place] = i + 1;
		}
	}
	place = hash[0] & (nplaces - 1);
	for (; places[place] != 0; place = (place + 1) & (nplaces - 1))
		if (memcmp(seen[places[place] - 1].hash, hash, sizeof(hash)) == 0)
			return false;
	if (nseen == max_seen)
	{
		max_seen = max_seen == 0 ? 1 << 16 : max_seen * 2;
		seen = realloc(seen, max_seen * sizeof(*seen));
	}
	memcpy(seen[nseen].hash, hash, sizeof(hash));
	seen[nseen].parent = parent;
	seen[nseen].move = move;
	nseen++;
	places[place] = nseen;
	return true;
}

#endif							/* LIMITER_WORLD_H */
