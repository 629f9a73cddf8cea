/*-------------------------------------------------------------------------
 *
 * limiter_model.c
 *	  Goes through all that can happen to a limiter (src/limiter.h).
 *
 *		cc -DLIMITER_C='"limiter.c"' -Isrc -I... limiter_model.c && ./a.out
 *
 * A world is a limiter, two or three actors, each a process with a call, and a
 * clock.  Actors do what processes do (src/endpoint_admit.c): ask, queue up,
 * look when they were told or their time has come, end in various ways, cancel,
 * fall asleep while they wait (a cursor that nobody fetches from) and come back.
 * A step is what is done under the endpoint's lock at a time; steps come in
 * every order, but time does not pass while somebody who is awake has something
 * to do.  Worlds that behave alike from here on are one state; each state is
 * gone on from once, so the search ends when all have been seen.
 *
 * After each step it is checked what the limiter promises, by books that are
 * kept here.  Then, from each state on, everybody must have had a turn in time
 * when calls end as they do, first those who are awake, then the sleepers.
 *
 * Prints the number of states, or what does not hold and how it came to that, and
 * then exits with 1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

/* two seconds are a minute here */
#define LLMGW_LIMITER_SECONDS	3

#include "limiter.h"

/* of a program without the server's library */
#undef printf
#undef qsort

/* four ticks are a second; the other spans are short in comparison */
#define TICK			INT64CONST(250000)
#undef LLMGW_HEAD_US
#undef LLMGW_LOOK_US
#undef LLMGW_RANK_US
#undef LLMGW_EASING_US
#define LLMGW_HEAD_US	(2 * TICK)
#define LLMGW_LOOK_US	(4 * TICK)
#define LLMGW_RANK_US	(5 * TICK)
#define LLMGW_EASING_US	(7 * TICK)

#include LIMITER_C

#include "limiter_world.h"

static const Setup setups[] = {
	{"one at a time, two sleepers", 3, {1, 0, 0}, {1, 1, 1}, {1, 1, 1},.naps = 3,.patience = 20},
	{"two at a time", 3, {2, 0, 0}, {2, 1, 1}, {2, 2, 2},.naps = 1,.patience = 10},
	{"no place in the queue", 3, {1, 0, 0}, {1, 2, 1}, {2, 1, 1},.polls = true,.patience = 20},
	{"a cursor and a call of the same session", 3, {1, 0, 0}, {1, 1, 1}, {2, 2, 1},
	.nested = true,.patience = 10},
	{"the same, after a pause", 3, {2, 0, 0}, {1, 1, 1}, {1, 2, 1},
	.nested = true,.pauses = 1,.patience = 30},
	{"limits raised", 3, {1, 0, 0}, {1, 2, 1}, {2, 1, 1},.lifts = 2,.naps = 1,.patience = 14},
	{"pauses", 3, {0, 0, 0}, {1, 1, 1}, {2, 2, 2},.pauses = 1,.patience = 20},
	{"two pauses, two actors", 2, {0, 0, 0}, {1, 2}, {3, 3},.pauses = 2,.patience = 20},
	{"pauses, two at a time, a sleeper", 3, {2, 0, 0}, {1, 1, 1}, {1, 2, 1},.pauses = 1,
	.naps = 1,.patience = 30},
	{"one request a minute", 2, {0, 1, 0}, {1, 2}, {2, 2},.naps = 1,.patience = 60},
	{"two requests a minute", 3, {0, 2, 0}, {1, 1, 1}, {2, 1, 1},.patience = 40},
	{"tokens", 2, {0, 0, 10}, {1, 1}, {2, 2}, {4, 7},.usage = true,.patience = 60},
	{"more tokens than there may be", 3, {0, 0, 10}, {1, 1, 1}, {1, 1, 1}, {15, 5, 0},
	.usage = true,.patience = 60},
	{"one at a time", 3, {1, 0, 0}, {2, 2, 1}, {2, 2, 2},.naps = 1,.patience = 10},
	{"all limits", 2, {1, 2, 10}, {1, 1}, {2, 2}, {4, 7},.pauses = 1,.patience = 60},
};

/*
 * Steps.
 */

static void
tell(World *w, int wake)
{
	if (wake == LLMGW_NO_WAITER)
		return;
	must(wake == w->limiter.head, "only the head is told");
	must(w->waiters[wake].woken_at == w->now, "who is told is marked");
	w->actors[wake].told = true;
}

static void
queue_up(World *w, int a)
{
	int			wake;

	if (setup->polls && a == 2)
		return;
	llmgw_limiter_queue(&w->limiter, w->waiters, a, w->actors[a].key, w->now, &wake);
	must(wake == (w->limiter.head == a ? a : LLMGW_NO_WAITER), "a new head is told");
	must(w->waiters[a].next == LLMGW_NO_WAITER ||
		 w->waiters[w->waiters[a].next].key > w->actors[a].key, "who comes last is last of its equals");
	tell(w, wake);
}

static void
book_take(World *w, int a)
{
	int			n = 0;

	for (int i = 0; i < w->ntakes; i++)
		if (w->takes[i].at / SECOND + LLMGW_LIMITER_SECONDS > w->now / SECOND)
			w->takes[n++] = w->takes[i];
	w->ntakes = n;
	if (w->limits.requests == 0 && w->limits.tokens == 0)
		return;
	must(n < MAX_TAKES, "the books are large enough");
	w->takes[n].at = w->now;
	w->takes[n].tokens = setup->tokens[a];
	w->takes[n].actor = a;
	w->ntakes++;
}

/* Nobody who is awake stands before it. */
static void
check_order(const World *w, int a, bool queued)
{
	if (is_alone(w, a) && (concurrency_is_used_up(w) || eased_out(w)))
		return;
	for (int b = w->limiter.head; b != LLMGW_NO_WAITER && b != a; b = w->waiters[b].next)
		must(w->actors[b].absent || (!queued && w->actors[a].key < w->waiters[b].key),
			 "nobody is served before one who came first");
}

static void
check_refusal(World *w, int a)
{
	Actor	   *actor = &w->actors[a];
	int			head = w->limiter.head;
	bool		before = head != LLMGW_NO_WAITER && head != a &&
	w->waiters[head].key <= actor->key;
	bool		room = has_room(w, setup->tokens[a], is_alone(w, a));
	World		later = *w;

	must(!room || before, "who is refused has a limit or somebody before it");
	must(actor->until > w->now, "who is refused is not told to ask at once");
	if (room || actor->until == LLMGW_NEVER)
	{
		must(room || is_alone(w, a) || concurrency_is_used_up(w) || eased_out(w),
			 "an end is to come");
		return;
	}

	/* the first moment that has room */
	later.now = actor->until;
	later.paused_until = w->paused_until;
	must(has_room(&later, setup->tokens[a], true), "there is room when it was said to be");
	later.now--;
	must(!has_room(&later, setup->tokens[a], true), "there is none before");
}

/* As llmgw_endpoint_admit() does. */
static void
ask(World *w, int a)
{
	Actor	   *actor = &w->actors[a];
	bool		polls = setup->polls && a == 2;
	bool		in_queue = actor->doing == WAITING && w->waiters[a].queued;
	int			waiter = actor->doing == WAITING && !polls ? a : LLMGW_NO_WAITER;
	World		before = *w;
	int			wake;
	int			woken;
	bool		admitted;
	LlmInstant	until;
	LlmObstacle obstacle = llmgw_limiter_obstacle(&w->limiter, w->waiters, &w->limits, actor->key,
												  setup->tokens[a], w->now, &until);

	actor->told = false;
	admitted = llmgw_limiter_take(&w->limiter, w->waiters, &w->limits, waiter, actor->key,
								  setup->tokens[a], false, w->now, &actor->hold,
								  &actor->until, &wake);
	must(actor->doing == WAITING || admitted == (obstacle == LLMGW_OBSTACLE_NONE),
		 "what would be and what is are the same");
	must(admitted || actor->doing == WAITING || obstacle == LLMGW_OBSTACLE_QUEUE ||
		 until == actor->until, "and the moment is the same");
	if (!admitted && wake != LLMGW_NO_WAITER && wake == before.limiter.head)
		must(before.actors[wake].absent || is_due(&before, wake),
			 "a head that looks after itself is left alone");
	if (!admitted && is_alone(w, a))
	{
		woken = wake;
		admitted = llmgw_limiter_take(&w->limiter, w->waiters, &w->limits, waiter, actor->key,
									  setup->tokens[a], true, w->now, &actor->hold,
									  &actor->until, &wake);
		if (wake == LLMGW_NO_WAITER && woken != waiter)
			wake = woken;
	}
	tell(w, wake);

	if (admitted)
	{
		bool		alone = is_alone(&before, a);

		must(has_room(&before, setup->tokens[a], alone), "nobody gets more than the limits");
		must(w->limits.requests == 0 || taken(w, false, false) < w->limits.requests,
			 "no minute has more requests than the limit");
		must(w->limits.tokens == 0 || taken(w, true, false) == 0 ||
			 taken(w, true, false) + setup->tokens[a] <= w->limits.tokens,
			 "no minute has more tokens than the limit");
		check_order(&before, a, in_queue);
		actor->doing = HOLDING;
		actor->since_pause = w->paused_until != 0;
		actor->absent = false;
		book_take(w, a);
		return;
	}
	check_refusal(w, a);
	if (actor->doing == WAITING)
	{
		actor->timer = Min(actor->until, w->now + LLMGW_LOOK_US);
		if (!polls && !w->waiters[a].queued)
		{
			must(actor->absent, "who is awake keeps its place");
			queue_up(w, a);
		}
	}
	else
		actor->doing = REFUSED;
	actor->absent = false;
}

static void
end(World *w, int a, Step how)
{
	Actor	   *actor = &w->actors[a];
	bool		success = how == SUCCEED || how == USE_LESS || how == USE_MORE;
	int64		tokens = setup->tokens[a];
	int			wake;

	if (how == USE_LESS)
		tokens /= 2;
	else if (how == USE_MORE)
		tokens += 2;
	if (how == PAUSE)
	{
		/* the last is a short one: it may be over before the first */
		LlmInstant	until = w->now + (--w->pauses > 0 ? LONG_PAUSE : SHORT_PAUSE);

		llmgw_limiter_pause(&w->limiter, until);
		if (until > w->paused_until)
		{
			w->paused_until = until;
			w->easing = 1;
			for (int b = 0; b < setup->actors; b++)
				w->actors[b].since_pause = false;
		}
	}
	else if (success && actor->since_pause)
		w->easing = Min(w->easing * 2, EASED_ENOUGH);
	actor->doing = IDLE;
	actor->calls--;
	for (int i = 0; i < w->ntakes; i++)
		if (w->takes[i].actor == a)
		{
			w->takes[i].tokens = tokens;
			w->takes[i].actor = -1;
		}
	llmgw_limiter_give(&w->limiter, w->waiters, &actor->hold,
					   how == ABANDON ? -1 : tokens, success, w->now, &wake);
	tell(w, wake);
}

static bool
can(const World *w, Step step, int a)
{
	const Actor *actor = &w->actors[a];

	if (is_buried(w, a) && step != WAIT && step != RAISE)
		return false;
	switch (step)
	{
		case ASK:
			return actor->doing == IDLE && actor->calls > 0 &&
				!(setup->nested && a == 1 && w->actors[0].doing == REFUSED);
		case GO_AWAY:
		case QUEUE_UP:
			return actor->doing == REFUSED;
		case LOOK:
			return actor->doing == WAITING && is_due(w, a);
		case CANCEL:
			return actor->doing == WAITING;
		case FALL_ASLEEP:
			return actor->doing == WAITING && !actor->asleep && w->naps > 0;
		case COME_BACK:
			return actor->doing == WAITING && actor->asleep;
		case SUCCEED:
		case FAIL:
			return actor->doing == HOLDING;
		case PAUSE:
			return actor->doing == HOLDING && w->pauses > 0;
		case USE_LESS:
		case USE_MORE:
			return actor->doing == HOLDING && setup->usage;
		case ABANDON:
			return actor->doing == HOLDING && setup->usage;
		case WAIT:
			return a == 0 && !somebody_is_due(w);
		case RAISE:
			return a == 0 && w->lifts > 0;
		case STEPS:
			break;
	}
	return false;
}

static void
go(World *w, Step step, int a)
{
	Actor	   *actor = &w->actors[a];
	int			wake;

	switch (step)
	{
		case ASK:
			actor->key = w->now + setup->rank[a] * LLMGW_RANK_US;
			if (setup->nested && a == 1 && w->actors[0].doing == WAITING)
				w->actors[0].absent = true;
			ask(w, a);
			break;
		case GO_AWAY:
			actor->doing = IDLE;
			actor->calls--;
			break;
		case QUEUE_UP:
			actor->doing = WAITING;
			actor->timer = Min(actor->until, w->now + LLMGW_LOOK_US);
			queue_up(w, a);
			break;
		case LOOK:
			ask(w, a);
			break;
		case CANCEL:
			actor->doing = IDLE;
			actor->calls--;
			actor->asleep = actor->absent = actor->told = false;
			if (setup->polls && a == 2)
				break;
			llmgw_limiter_leave(&w->limiter, w->waiters, a, w->now, &wake);
			tell(w, wake);
			break;
		case FALL_ASLEEP:
			w->naps--;
			actor->asleep = actor->absent = true;
			break;
		case COME_BACK:
			actor->asleep = false;
			break;
		case SUCCEED:
		case FAIL:
		case PAUSE:
		case USE_LESS:
		case USE_MORE:
		case ABANDON:
			end(w, a, step);
			break;
		case WAIT:
			w->now += TICK;
			break;
		case RAISE:
			w->lifts--;
			w->limits.concurrency = w->lifts == 0 ? 0 : w->limits.concurrency + 1;
			break;
		case STEPS:
			break;
	}

	/* what nobody made is noticed in time: see is_due() and drain() */
	if (step == WAIT || step == RAISE)
		w->room_by_itself |= head_misses_room(w);
	else
		w->room_by_itself &= head_misses_room(w);
	check_world(w);
}

static void
begin(World *w)
{
	memset(w, 0, sizeof(*w));
	llmgw_limiter_init(&w->limiter);
	w->limits = setup->limits;
	w->now = PRESENT;
	w->naps = setup->naps;
	w->pauses = setup->pauses;
	w->lifts = setup->lifts;
	for (int a = 0; a < setup->actors; a++)
		w->actors[a].calls = setup->calls[a];
}

static void
print_move(const World *w, int move)
{
	printf("  %4d: ", (int) ((w->now - PRESENT) / TICK));
	if (move / ACTORS < WAIT)
		printf("%d ", move % ACTORS);
	printf("%s\n", steps[move / ACTORS]);
}

static void
print_story(void)
{
	static int	moves[1000];
	int			n = 0;
	int			last = current_move;
	World		w;

	/* what went wrong once goes wrong again */
	if (current_move == -2)
		return;
	for (uint32 i = current_state; i != 0 && n < lengthof(moves); i = seen[i].parent)
		moves[n++] = seen[i].move;
	begin(&w);
	current_move = -2;
	while (n-- > 0)
	{
		print_move(&w, moves[n]);
		go(&w, moves[n] / ACTORS, moves[n] % ACTORS);
	}
	if (last >= 0)
		print_move(&w, last);
	else
		printf("  then calls end, and nobody new comes, for %d ticks\n", wait_ended);
}

/*
 * Calls end and nobody new comes: one step of that.  False: there is nothing left
 * to be done by those who are awake.
 */
static bool
wind_up(World *w)
{
	bool		waits = false;

	for (int a = 0; a < setup->actors; a++)
	{
		Step		next = w->actors[a].doing == REFUSED ? QUEUE_UP : LOOK;

		if (is_due(w, a) && can(w, next, a))
		{
			go(w, next, a);
			return true;
		}
		waits |= w->actors[a].doing == WAITING && !w->actors[a].asleep && !is_buried(w, a);
	}
	for (int a = setup->actors - 1; a >= 0; a--)
		if (can(w, SUCCEED, a))
		{
			go(w, SUCCEED, a);
			return true;
		}
	if (!waits)
		return false;
	w->now += TICK;
	w->room_by_itself |= head_misses_room(w);
	wait_ended++;
	must(wait_ended <= setup->patience, "everybody has a turn in time");
	return true;
}

static void
drain(const World *from)
{
	World		w = *from;
	bool		again;
	int			n = 0;

	current_move = -1;
	wait_ended = 0;
	do
	{
		again = false;
		while (wind_up(&w))
			must(++n < 1000, "it comes to an end");
		for (int a = 0; a < setup->actors; a++)
			if (can(&w, COME_BACK, a))
			{
				go(&w, COME_BACK, a);
				wait_ended = 0;
				again = true;
			}
	} while (again);

	for (int a = 0; a < setup->actors; a++)
		must(w.actors[a].doing == IDLE, "all have had their turn");
	must(w.limiter.in_flight == 0 && w.limiter.nwaiters == 0 &&
		 w.limiter.head == LLMGW_NO_WAITER && w.limiter.tail == LLMGW_NO_WAITER,
		 "nothing stays behind");
	must(w.limiter.eased == 0, "nothing stays behind of easing");
}

/* What is still to be gone on from: worlds, and the numbers of their states. */
typedef struct Layer
{
	World	   *worlds;
	uint32	   *states;
	uint32		n;
	uint32		max;
} Layer;

static void
add(Layer *layer, const World *w, uint32 state)
{
	if (layer->n == layer->max)
	{
		layer->max = layer->max == 0 ? 1024 : layer->max * 2;
		layer->worlds = realloc(layer->worlds, layer->max * sizeof(World));
		layer->states = realloc(layer->states, layer->max * sizeof(uint32));
	}
	layer->worlds[layer->n] = *w;
	layer->states[layer->n++] = state;
}

static void
search(void)
{
	Layer		layer = {0};
	Layer		next = {0};
	World		w;

	nseen = 0;
	memset(places, 0, nplaces * sizeof(*places));
	begin(&w);
	is_new(&w, 0, 0);
	add(&layer, &w, 0);
	while (layer.n > 0)
	{
		Layer		swap;

		for (uint32 i = 0; i < layer.n; i++)
		{
			current_state = layer.states[i];
			drain(&layer.worlds[i]);
			for (Step step = 0; step < STEPS; step++)
				for (int a = 0; a < setup->actors; a++)
				{
					if (!can(&layer.worlds[i], step, a))
						continue;
					w = layer.worlds[i];
					current_move = step * ACTORS + a;
					go(&w, step, a);
					if (is_new(&w, current_state, current_move))
						add(&next, &w, nseen - 1);
				}
		}
		swap = layer;
		layer = next;
		next = swap;
		next.n = 0;
	}
	free(layer.worlds);
	free(layer.states);
	free(next.worlds);
	free(next.states);
}

/*
 * A call of the last rank among important ones that keep coming: it waits for as
 * long as its rank says, not for ever.
 */
static void
search_starvation(void)
{
	static const Setup crowd = {"nobody starves", 3, {1, 0, 0}, {3, 1, 1}, {1, 1000, 1000}};
	World		w;
	int			ticks = 0;

	setup = &crowd;
	current_state = 0;
	begin(&w);
	go(&w, ASK, 1);
	go(&w, ASK, 0);
	go(&w, QUEUE_UP, 0);
	while (w.actors[0].doing != HOLDING)
	{
		bool		done = false;

		for (int a = 0; a < 3 && !done; a++)
			for (Step step = ASK; step <= LOOK && !done; step++)
				if (step != GO_AWAY && can(&w, step, a))
				{
					go(&w, step, a);
					done = true;
				}
		if (done)
			continue;
		go(&w, WAIT, 0);
		must(++ticks <= 2 * LLMGW_RANK_US / TICK + 1, "who came long before is served first");
		for (int a = 1; a < 3; a++)
			if (can(&w, SUCCEED, a))
			{
				go(&w, SUCCEED, a);
				break;
			}
	}
	must(ticks > 1, "the important go first");
}

int
main(void)
{
	uint32		total = 0;

	/* a limiter with a mistake in it may go round in circles */
	alarm(600);
	for (int i = 0; i < lengthof(setups); i++)
	{
		setup = &setups[i];
		search();
		printf("%s: %u states\n", setup->name, nseen);
		total += nseen;
	}
	nseen = 0;
	search_starvation();
	printf("%u states\n", total);
	return 0;
}
