/*-------------------------------------------------------------------------
 *
 * cache.h
 *	  Kept answers (llm_cache), and calls under way that others may wait for.
 *
 * Answers are kept in the table llm_cache.  Callers read it, by key, with a snapshot
 * of the moment; the ledger's worker writes it, from a record of the spool, so
 * that neither a caller's rollback nor its snapshot has a say.  What is kept is
 * partitioned by role unless the task shares it (llm_tasks.cache_shared).
 *
 * FLIGHTS.  Where the cache is on, identical calls of several sessions are
 * made once: the first one leads, the others follow until it has ended and its answer
 * can be read.  A flight is a place in shared memory: key, the leader's process, who
 * follows.  Nobody follows a leader of its own process, and only calls that
 * their session drives until they end may lead, so not those of a cursor; a
 * follower whose leader is gone, or did not make the call, becomes the leader; where
 * the call was made and left no answer to be kept, each makes its own.  Nobody follows one of a
 * lower priority, which may be kept waiting for others of its own, or one that waits
 * for a lock, which the follower itself may hold.  Where no place is free, calls go
 * alone.
 *
 * LOCKING.  LLMGW_LOCK_FLIGHTS protects all flights: exclusive to change, shared to
 * look.  A leader's flight is given up by whoever ends its call, while aborting too,
 * and by the exit of its process.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CACHE_H
#define LLMGW_CACHE_H

#include "cost.h"
#include "loop.h"

#define LLMGW_CACHE_KEY_LEN		16

typedef struct LlmCacheKey
{
	char		bytes[LLMGW_CACHE_KEY_LEN];
} LlmCacheKey;

/* A kept answer. */
typedef struct LlmKept
{
	int64		request_id;		/* whose answer it was */
	const char *response;		/* "" where there are only tool calls */
	const char *provider;
	const char *model;
	const char *model_tier;
	const char *finish_reason;	/* NULL: none */
	const char *tool_calls;		/* jsonb as text; NULL: none */
	LlmUsage	usage;			/* of the call that it was made by */
	LlmNano		cost;			/* that it did cost then */
	TimestampTz created_at;
	TimestampTz expires_at;
	double		similarity;		/* of its prompt to this one; 0: it is the
								 * same */
} LlmKept;

extern void llmgw_cache_init(void);

/*
 * The answer that is kept under that key and has not expired, palloc'd; false: none.
 * While somebody has locked the table exclusively (TRUNCATE, VACUUM FULL) there is
 * none, unless wait says to wait for that.  Raises errors of reading a table.
 */
extern bool llmgw_cache_get(const LlmConfig *config, const LlmCacheKey *key, bool wait,
							LlmKept *kept);

/*
 * The embedding of a prompt, and among which others it may be similar to one.  The
 * scope is as a key: a hash of all but the prompt that shapes the answer, and of the
 * model that made the embedding.
 */
typedef struct LlmEmbedding
{
	LlmCacheKey scope;
	int			dimensions;
	const float4 *vector;
} LlmEmbedding;

/* What is served to a prompt that is similar. */
typedef struct LlmNearness
{
	double		similarity;		/* at least; more than 0 */
	TimestampTz oldest;			/* kept since then; 0: whenever */
	bool		(*serves) (const void *arg, const char *model_tier);
	const void *arg;
} LlmNearness;

/*
 * The same, of the answer whose prompt is the most similar one, by cosine.  Compared are
 * the newest LLMGW_CACHE_NEIGHBOURS of the scope, or with an index of pgvector
 * (cache_vector.c) the nearest ones that it finds.
 */
extern bool llmgw_cache_nearest(const LlmConfig *config, const LlmEmbedding *embedding,
								const LlmNearness *near, bool wait, LlmKept *kept);

#define LLMGW_CACHE_NEIGHBOURS	1000

/*
 * A call's part in a flight.  All zeros: none.  Part of the call, not to be moved
 * while it has a place.
 */
typedef struct LlmFlight
{
	int			place;			/* from 1; 0: none */
	bool		leads;
	int			rank;			/* of the call's priority */
	uint64		turn;			/* of the place: another one after it ended */
	uint64		seen;			/* of the place's changes */
	LlmReady   *ready;			/* of the call, marked when it is worth while
								 * to look */
	dlist_node	node;			/* among those of this process */
} LlmFlight;

typedef enum LlmFlightState
{
	LLMGW_FLIGHT_NONE,			/* it has no place (any more): go alone */
	LLMGW_FLIGHT_LEAD,			/* this call is to be made */
	LLMGW_FLIGHT_FOLLOW,		/* another one makes it, or its answer is not
								 * booked yet: wait */
	LLMGW_FLIGHT_LANDED			/* it was made: look for the answer */
} LlmFlightState;

/*
 * Joins a flight of that key, or begins one; rank is that of the call's priority.  Who is to lead looks for the
 * answer once more before it makes the call: the last leader may have landed in
 * between.
 */
extern LlmFlightState llmgw_flight_join(LlmFlight *flight, const LlmConfig *config,
										const LlmCacheKey *key, int rank, LlmReady *ready);

/*
 * How it stands; a follower may become the leader.  With NONE and LANDED the
 * flight is left.  To be asked when ready is marked, and from time to time without
 * that: *again_us is after how long.
 */
extern LlmFlightState llmgw_flight_look(LlmFlight *flight, int64 *again_us);

/*
 * The leader's answer is in the spool before that offset; or, offset 1, there is
 * none, and each follower goes alone; or, offset 0, another one is to lead.  Leaves the flight.  Neither raises nor allocates.
 */
extern void llmgw_flight_end(LlmFlight *flight, uint64 offset);

/* Leaves it, whatever its part.  Neither raises nor allocates. */
extern void llmgw_flight_leave(LlmFlight *flight);

#endif							/* LLMGW_CACHE_H */
