/*-------------------------------------------------------------------------
 *
 * budget_math_model.c
 *	  Goes through all that can happen to two budgets (src/budget_math.h).
 *
 *		cc -DBUDGET_MATH_C='"budget_math.c"' -Isrc -I... budget_math_model.c && ./a.out
 *
 * A world is two accounts, each with a lock, and some callers, who may see
 * different limits and have different priorities.  As in budget.c, a caller locks
 * what it is going to charge in its order, looks whether all have room, reserves on
 * all or on none, and unlocks; later it gives back account by account what it
 * holds, having paid nothing, less, as much, or more.  From the first world
 * on everything that anybody can do is done, in every order.
 *
 * What must hold is said here by what callers hold and have paid, never by
 * what the accounts say.  Before that, the arithmetic by itself is compared with
 * that of small numbers, and of the same numbers grown to the largest there are.
 *
 * Prints the number of states, or what does not hold and how it came to that, and
 * then exits with 1.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <unistd.h>

#include "budget_math.h"

/* of a program without the server's library */
#undef printf

/* how callers go about it: for mistakes that are not in budget_math.c */
#define FIRST_LOCK(a)	0
#define LOCKS_ALL		true
#define NEEDS_ALL_ROOM	true

#include BUDGET_MATH_C

#define ACTORS		3
#define BUDGETS		2

/* fractions in the tests are twentieths */
#define PARTS		20
#define PART		(LLMGW_WHOLE / PARTS)

typedef struct Setup
{
	const char *name;
	int			actors;
	int			calls[ACTORS];
	bool		uses_reserve[ACTORS];
	LlmNano		limits[ACTORS][BUDGETS];	/* as each sees them; -1: none */
	LlmNano		amounts[ACTORS][2]; /* of a call; 0 as the second: only the
									 * first */
	int			reserve_parts;
	bool		overruns;		/* more may be paid than was reserved */
} Setup;

static const Setup setups[] = {
	{"one limit", 2, {3, 3}, {false, false}, {{10, 6}, {10, 6}}, {{2, 3}, {1, 4}}, 1, false},
	{"one may use the reserve", 2, {3, 3}, {false, true}, {{10, 8}, {10, 8}}, {{2, 3}, {2, 5}}, 5, true},
	{"two limits", 2, {2, 3}, {false, false}, {{12, 5}, {6, 9}}, {{2, 4}, {3, 0}}, 2, true},
	{"three callers", 3, {2, 1, 2}, {false, true, true}, {{9, 9}, {9, 9}, {9, 9}}, {{3}, {4}, {2}}, 3, false},
	{"three callers, three limits", 3, {1, 2, 1}, {false, false, true}, {{8, 4}, {5, 9}, {-1, 7}}, {{3}, {2}, {4}}, 2, true},
	{"nothing to spend", 2, {2, 2}, {true, false}, {{0, 3}, {3, 0}}, {{1, 0}, {2, 0}}, 1, true},
};

typedef enum Doing
{
	IDLE,
	LOCKING,
	LOOKING,
	RESERVING,
	UNLOCKING,
	HOLDING,
	SETTLING
} Doing;

static const char *const doings[] = {"begins", "locks", "looks", "reserves", "unlocks", "holds", "settles"};

typedef enum Outcome
{
	NOTHING,
	UNKNOWN,
	LESS,
	EXACTLY,
	MORE,
	OUTCOMES
} Outcome;

static const char *const outcomes[] = {"nothing", "what it does not know", "less", "that", "more"};

typedef struct Actor
{
	Doing		doing;
	int			calls;			/* still to be made */
	int			nlocked;
	int			nlooked;
	int			nrooms;
	int			nreserved;
	int			ngiven;			/* accounts that were given back */
	LlmNano		amount;
	LlmNano		paid;
	bool		holds[BUDGETS];
} Actor;

typedef struct World
{
	LlmAccount	accounts[BUDGETS];
	LlmNano		paid[BUDGETS];	/* by all */
	LlmNano		over[BUDGETS];	/* more than was reserved */
	int			locked_by[BUDGETS]; /* actor + 1 */
	Actor		actors[ACTORS];
} World;

typedef struct State
{
	World		w;
	uint32		parent;
	int			move;
} State;

static const Setup *setup;
static State *states;
static uint32 nstates;
static uint32 max_states;
static uint32 *places;
static uint32 nplaces;
static uint32 current_state;
static int	current_move = -1;

static void
print_move(const World *w, int move)
{
	Doing		doing = w->actors[move / OUTCOMES].doing;

	printf("  %d %s", move / OUTCOMES, doings[doing]);
	if (doing == HOLDING)
		printf(", and pays %s", outcomes[move % OUTCOMES]);
	printf("\n");
}

static void
must(bool holds, const char *what)
{
	static uint32 story[1000];
	int			n = 0;

	if (holds)
		return;
	printf("does not hold: %s\n", what);
	if (setup != NULL)
	{
		printf("%s:\n", setup->name);
		for (uint32 i = current_state; i != 0 && n < lengthof(story); i = states[i].parent)
			story[n++] = i;
		while (n-- > 0)
			print_move(&states[states[story[n]].parent].w, states[story[n]].move);
		if (current_move >= 0)
			print_move(&states[current_state].w, current_move);
	}
	exit(1);
}

/*
 * The arithmetic by itself
 */

static const LlmThresholds priorities[] = {
	{0, 0, 0, true},
	{8 * PART, 2 * PART, 0, false},
	{16 * PART, 4 * PART, 0, false},
	{18 * PART, 10 * PART, 2 * PART, false},
	{LLMGW_WHOLE, LLMGW_WHOLE, LLMGW_WHOLE, true}
};

/* As in DESIGN's table, of small numbers. */
static LlmBudgetLevel
expected_level(int left, int limit, int reserve_parts, const LlmThresholds *p)
{
	if (!p->may_use_reserve && left * PARTS <= reserve_parts * limit)
		return LLMGW_LEVEL_EXHAUSTED;
	if (left * PARTS > p->premium_above / PART * limit)
		return LLMGW_LEVEL_ALL;
	if (left * PARTS > p->standard_above / PART * limit)
		return LLMGW_LEVEL_STANDARD;
	if (left * PARTS > p->economy_above / PART * limit)
		return LLMGW_LEVEL_ECONOMY;
	return LLMGW_LEVEL_EXHAUSTED;
}

static void
check_numbers(int limit, int spent, int reserved, int parts)
{
	static const LlmNano grown[] = {1, INT64CONST(1000000007), PG_INT64_MAX / 64};
	int			left = limit - spent - reserved;

	for (int g = 0; g < lengthof(grown); g++)
	{
		LlmNano		f = grown[g];
		LlmAccount	account = {spent * f, reserved * f};
		LlmAccount	more = {spent * f + 1, reserved * f};
		LlmNano		share = llmgw_budget_share(limit * f, parts * PART);
		LlmNano		room = llmgw_budget_room(&account, limit * f, parts * PART, false);
		int128		above = (int128) left * f * PARTS - (int128) parts * limit * f;

		must((int128) share * PARTS <= (int128) parts * limit * f &&
			 ((int128) share + 1) * PARTS > (int128) parts * limit * f, "a share is rounded down");
		must(llmgw_budget_remaining(&account, limit * f) == left * f, "what remains, remains");
		must(llmgw_budget_room(&account, limit * f, parts * PART, true) == Max(left, 0) * f,
			 "who may use the reserve has room for all that remains");
		must(room >= 0 && (room == 0 || (int128) room * PARTS <= above) &&
			 ((int128) room + 1) * PARTS > above, "the reserve is kept back, and no more");
		for (int p = 0; p < lengthof(priorities); p++)
		{
			LlmBudgetLevel level = llmgw_budget_level(&account, limit * f, parts * PART, &priorities[p]);

			must(level == expected_level(left, limit, parts, &priorities[p]), "levels are those of the table");
			must(llmgw_budget_level(&more, limit * f, parts * PART, &priorities[p]) >= level,
				 "who has spent more is not better off");
			must(llmgw_budget_level(&account, limit * f + 1, parts * PART, &priorities[p]) <= level,
				 "who has a higher limit is not worse off");
			must(p == 0 || level >= llmgw_budget_level(&account, limit * f, parts * PART, &priorities[p - 1]),
				 "a lower priority is not better off");
		}
	}
}

static void
check_arithmetic(void)
{
	LlmAccount	account = {PG_INT64_MAX - 1, PG_INT64_MAX};

	for (int limit = 0; limit <= 31; limit++)
		for (int spent = 0; spent <= 31; spent += 1 + spent / 16)
			for (int reserved = 0; reserved <= 9; reserved += 3)
				for (int parts = 0; parts <= PARTS; parts += 1 + parts * parts)
					check_numbers(limit, spent, reserved, parts);

	/* the ends of what numbers can hold */
	must(llmgw_budget_remaining(&account, 0) == PG_INT64_MIN, "less than nothing is not much");
	must(llmgw_budget_room(&account, PG_INT64_MAX, LLMGW_WHOLE, false) == 0, "nor is it room");
	must(llmgw_budget_room(&account, -1, PART, false) == PG_INT64_MAX &&
		 llmgw_budget_remaining(&account, -1) == PG_INT64_MAX &&
		 llmgw_budget_level(&account, -1, PART, &priorities[1]) == LLMGW_LEVEL_ALL,
		 "without a limit there is always room");
	llmgw_account_reserve(&account, 5);
	must(account.reserved == PG_INT64_MAX, "reservations do not wrap");
	llmgw_account_settle(&account, 7, 9);
	must(account.reserved == PG_INT64_MAX - 7 && account.spent == PG_INT64_MAX, "payments do not wrap");
	account.reserved = 3;
	llmgw_account_settle(&account, 7, 0);
	must(account.reserved == 0, "no more is given back than was reserved");
}

/*
 * What must hold between callers
 */

static LlmNano
highest_limit(int b)
{
	LlmNano		highest = 0;

	for (int a = 0; a < setup->actors; a++)
	{
		if (setup->limits[a][b] < 0)
			return -1;
		highest = Max(highest, setup->limits[a][b]);
	}
	return highest;
}

static void
check_world(const World *w)
{
	for (int b = 0; b < BUDGETS; b++)
	{
		const LlmAccount *account = &w->accounts[b];
		LlmNano		held = 0;
		LlmNano		highest = highest_limit(b);

		for (int a = 0; a < setup->actors; a++)
			held += w->actors[a].holds[b] ? w->actors[a].amount : 0;
		must(account->reserved == held, "what is reserved is what callers hold");
		must(account->spent == w->paid[b], "what is spent is what callers paid");
		must(highest < 0 || account->spent + account->reserved <= highest + w->over[b],
			 "all together stay within the limit, but for what they paid above their reservations");
	}
}

/* While the actor has locked both. */
static void
check_admitted(const World *w, int a)
{
	for (int b = 0; b < BUDGETS; b++)
	{
		LlmNano		limit = setup->limits[a][b];
		LlmNano		used = w->paid[b];

		for (int other = 0; other < setup->actors; other++)
			used += w->actors[other].holds[b] ? w->actors[other].amount : 0;
		must(w->actors[a].holds[b], "a call is reserved on all of its budgets");
		must(limit < 0 || used <= limit, "nobody gets more than the limit that it sees");
		must(limit < 0 || setup->uses_reserve[a] ||
			 (limit - used) * PARTS >= setup->reserve_parts * limit, "nobody gets into a reserve that is not for it");
	}
}

static void
check_refused(const World *w, int a)
{
	bool		room = true;

	for (int b = 0; b < BUDGETS; b++)
	{
		LlmNano		limit = setup->limits[a][b];
		LlmNano		left = limit - w->paid[b] - w->actors[a].amount;

		must(!w->actors[a].holds[b], "a call that is refused holds nothing");
		for (int other = 0; other < setup->actors; other++)
			left -= w->actors[other].holds[b] ? w->actors[other].amount : 0;
		if (limit >= 0)
			room &= left >= 0 &&
				(setup->uses_reserve[a] || left * PARTS >= setup->reserve_parts * limit);
	}
	must(!room, "nobody is refused who has room");
}

/*
 * What callers do
 */

static int
nth_lock(int a, int n)
{
	return (FIRST_LOCK(a) + n) % BUDGETS;
}

static int
moves_of(const World *w, int a)
{
	const Actor *actor = &w->actors[a];

	switch (actor->doing)
	{
		case IDLE:
			return actor->calls == 0 ? 0 : setup->amounts[a][1] == 0 ? 1 : 2;
		case LOCKING:
			return w->locked_by[nth_lock(a, actor->nlocked)] == 0;
		case SETTLING:
			return w->locked_by[actor->ngiven] == 0;
		case HOLDING:
			return setup->overruns ? OUTCOMES : MORE;
		default:
			return 1;
	}
}

static void
look_at_one(World *w, int a)
{
	Actor	   *actor = &w->actors[a];
	int			b = actor->nlooked++;

	actor->nrooms += actor->amount <= llmgw_budget_room(&w->accounts[b], setup->limits[a][b],
														setup->reserve_parts * PART, setup->uses_reserve[a]);
	if (actor->nlooked < BUDGETS)
		return;
	if (actor->nrooms == BUDGETS || (!NEEDS_ALL_ROOM && actor->nrooms > 0))
		actor->doing = RESERVING;
	else
	{
		actor->doing = UNLOCKING;
		check_refused(w, a);
	}
}

static void
reserve_one(World *w, int a)
{
	Actor	   *actor = &w->actors[a];
	int			b = actor->nreserved++;

	llmgw_account_reserve(&w->accounts[b], actor->amount);
	actor->holds[b] = true;
	if (actor->nreserved == BUDGETS)
	{
		actor->doing = UNLOCKING;
		check_admitted(w, a);
	}
}

static void
settle_one(World *w, int a)
{
	Actor	   *actor = &w->actors[a];
	int			b = actor->ngiven++;

	llmgw_account_settle(&w->accounts[b], actor->amount, actor->paid);
	actor->holds[b] = false;
	w->paid[b] += Max(actor->paid, 0);
	w->over[b] += Max(actor->paid - actor->amount, 0);
}

static void
end(Actor *actor)
{
	memset(&actor->nlocked, 0, sizeof(*actor) - offsetof(Actor, nlocked));
	actor->doing = IDLE;
	actor->calls--;
}

static void
go(World *w, int a, int choice)
{
	Actor	   *actor = &w->actors[a];

	switch (actor->doing)
	{
		case IDLE:
			actor->amount = setup->amounts[a][choice];
			actor->doing = LOCKS_ALL ? LOCKING : LOOKING;
			break;
		case LOCKING:
			w->locked_by[nth_lock(a, actor->nlocked++)] = a + 1;
			if (actor->nlocked == BUDGETS)
				actor->doing = LOOKING;
			break;
		case LOOKING:
			look_at_one(w, a);
			break;
		case RESERVING:
			reserve_one(w, a);
			break;
		case UNLOCKING:
			if (actor->nlocked > 0)
				w->locked_by[nth_lock(a, --actor->nlocked)] = 0;
			if (actor->nlocked > 0)
				break;
			if (actor->nreserved > 0)
				actor->doing = HOLDING;
			else
				end(actor);
			break;
		case HOLDING:
			actor->paid = choice == NOTHING ? 0 :
				choice == UNKNOWN ? LLMGW_COST_UNKNOWN :
				choice == LESS ? actor->amount / 2 :
				choice == EXACTLY ? actor->amount : actor->amount + 2;
			actor->doing = SETTLING;
			break;
		case SETTLING:
			settle_one(w, a);
			if (actor->ngiven == BUDGETS)
				end(actor);
			break;
	}
	check_world(w);
}

/*
 * The search
 */

static uint32
hash_world(const World *w)
{
	const unsigned char *bytes = (const unsigned char *) w;
	uint64		hash = UINT64CONST(14695981039346656037);

	for (Size i = 0; i < sizeof(World); i += sizeof(uint32))
	{
		uint32		word;

		memcpy(&word, bytes + i, sizeof(word));
		hash = (hash ^ word) * UINT64CONST(1099511628211);
		hash ^= hash >> 29;
	}
	return (uint32) (hash ^ (hash >> 32));
}

static void
grow(void)
{
	max_states = max_states == 0 ? 1024 : max_states * 2;
	nplaces = max_states * 2;
	states = realloc(states, max_states * sizeof(State));
	places = realloc(places, nplaces * sizeof(uint32));
	memset(places, 0, nplaces * sizeof(uint32));
	for (uint32 i = 0; i < nstates; i++)
	{
		uint32		at = hash_world(&states[i].w) % nplaces;

		while (places[at] != 0)
			at = (at + 1) % nplaces;
		places[at] = i + 1;
	}
}

static void
add(const World *w, uint32 parent, int move)
{
	uint32		at;

	if (nstates == max_states)
		grow();
	for (at = hash_world(w) % nplaces; places[at] != 0; at = (at + 1) % nplaces)
		if (memcmp(&states[places[at] - 1].w, w, sizeof(*w)) == 0)
			return;
	states[nstates].w = *w;
	states[nstates].parent = parent;
	states[nstates++].move = move;
	places[at] = nstates;
}

static void
search(void)
{
	World		w;

	nstates = 0;
	memset(places, 0, nplaces * sizeof(uint32));
	memset(&w, 0, sizeof(w));
	for (int a = 0; a < setup->actors; a++)
		w.actors[a].calls = setup->calls[a];
	add(&w, 0, -1);
	for (current_state = 0; current_state < nstates; current_state++)
	{
		bool		stuck = true;
		bool		done = true;

		for (int a = 0; a < setup->actors; a++)
		{
			int			n = moves_of(&states[current_state].w, a);

			done &= states[current_state].w.actors[a].doing == IDLE;
			stuck &= n == 0;
			for (int choice = 0; choice < n; choice++)
			{
				w = states[current_state].w;
				current_move = a * OUTCOMES + choice;
				go(&w, a, choice);
				add(&w, current_state, current_move);
			}
		}
		current_move = -1;
		must(!stuck || done, "nobody waits for ever");
		for (int b = 0; b < BUDGETS; b++)
			must(!done || (states[current_state].w.accounts[b].reserved == 0 &&
						   states[current_state].w.locked_by[b] == 0), "nothing stays behind");
	}
}

int
main(void)
{
	uint32		total = 0;

	alarm(60);
	check_arithmetic();
	for (int i = 0; i < lengthof(setups); i++)
	{
		setup = &setups[i];
		search();
		printf("%s: %u states\n", setup->name, nstates);
		total += nstates;
	}
	printf("%u states\n", total);
	return 0;
}
