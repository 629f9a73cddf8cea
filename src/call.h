/*-------------------------------------------------------------------------
 *
 * call.h
 *	  One call: a value that is passed along the pipeline until it has an
 *	  answer or an error.
 *
 *		route -> admission -> attempt (send, judge) -> settlement -> done
 *					 ^							   |
 *					 +--- back off, next candidate +
 *
 * A call is a state machine.  llmgw_call_start() takes it to its first wait;
 * llmgw_call_advance() goes on whenever its LlmReady shows up on the run's
 * list; both return true when the call is done.  Nothing in it waits, so one
 * loop (engine.c) drives as many as there are.
 *
 * Everything that a call owns hangs on its memory context: the transfer under
 * way, parser, timers, the pinned configuration.  Deleting the context at any
 * moment ends the call and leaves nothing behind.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_CALL_H
#define LLMGW_CALL_H

#include "cache.h"
#include "config.h"
#include "cost.h"
#include "estimate.h"
#include "guc.h"
#include "http.h"
#include "ledger.h"
#include "route.h"
#include "tier.h"

/*
 * What is asked, checked, shared by all calls of a batch.  Lives in the
 * caller's context, which pins the configuration.
 */
typedef struct LlmSpec
{
	LlmConfig  *config;
	LlmOperation operation;
	Oid			role;			/* who is charged: GetOuterUserId() */
	const char *role_name;
	const char *application_name;	/* NULL: none */
	int64		query_id;		/* 0: none */
	const LlmPriority *priority;
	const char *task;
	const char *task_source;	/* argument or default */
	const char *model;			/* the argument; NULL: the gateway chooses */
	LlmOptimize optimize;
	const LlmTier *min_tier;	/* NULL: any */
	LlmCacheMode cache;
	const char *system_prompt;	/* NULL: none */
	int			max_tokens;		/* 0: not given; or LLMGW_NO_OUTPUT */
	bool		has_temperature;
	float4		temperature;
	Jsonb	   *params;			/* checked; NULL: none */
	const char *only_model;		/* of embeddings: the name of the model that
								 * all calls must use; NULL: not known yet */
	int			dimensions;		/* of embeddings; 0: the model's own */
	const LlmTools *tools;		/* NULL: none */
	LlmToolChoice tool_choice;
	Jsonb	   *schema;			/* of the answer; NULL: any text */
	const char *advice;			/* the system prompt with the schema in words,
								 * for models that cannot be held to it; NULL:
								 * those are no candidates */
	int64		extra_characters;	/* of tools and schema */
	int			timeout_ms;		/* of the whole call; 0: none */
	Jsonb	   *tags;			/* an object; NULL: none */
	const char *tags_text;
	const LlmProvider *probe;	/* it only asks whether that works; NULL: it
								 * is no probe */
	LlmBreakerAsk ask;			/* what it may do about an open breaker */
} LlmSpec;

/* What became of one attempt, or of a candidate that could not be tried. */
typedef struct LlmAttempt
{
	const LlmModel *model;
	bool		sent;			/* false: its key could not be read */
	LlmErrorClass error;
	int			http_status;	/* 0: no answer */
	const char *message;		/* NULL only when error is LLMGW_OK */
	int64		latency_us;
	LlmUsage	usage;
	LlmNano		cost;			/* LLMGW_COST_UNKNOWN: no price */
	LlmCostSource source;
} LlmAttempt;

/*
 * How a model wants to be asked, as far as it has said so in this call, and what
 * that means for the request under way; see call_degrade.c.
 */
typedef struct LlmWording
{
	const LlmModel *model;		/* NULL: nobody was asked yet */
	int			changes;		/* how often it was asked again */
	LlmTokenParam token_param;	/* that it asked for; AUTO: none */
	bool		no_usage;		/* it is not to be asked for a stream's */
	LlmParams	refused;		/* by it */
	LlmParams	learned;		/* of them, those that it does not have at all */
	LlmParams	given;			/* what the caller asks for and could do
								 * without */
	LlmParams	left_out;		/* of it */
} LlmWording;

typedef enum LlmCallState
{
	LLMGW_CALL_NEW,
	LLMGW_CALL_SENDING,			/* a transfer is under way */
	LLMGW_CALL_BACKOFF,			/* waits before it tries the same candidate */
	LLMGW_CALL_QUEUED,			/* waits for room at a candidate */
	LLMGW_CALL_FOLLOWING,		/* another session makes the same call */
	LLMGW_CALL_DONE
} LlmCallState;

typedef struct LlmCall
{
	MemoryContext context;
	const LlmSpec *spec;
	const char *prompt;
	const LlmMessages *messages;	/* NULL until it starts: the prompt alone */
	int			ninputs;		/* or, of embeddings, inputs instead */
	const char *const *inputs;	/* NULL: it is no embedding */
	int64		request_id;
	LlmCallState state;
	bool		plain;			/* a probe of which only the status counts */
	void	   *owner;			/* whatever who made it wants to know */
	const LlmModel *preferred;	/* tried first if it may answer; NULL: none */

	/* the cache; see call_cache.c */
	const struct LlmCall *mends;	/* it is the second round of that one,
									 * whose answer was not good: kept in its
									 * place; NULL: it is no such */
	bool		has_cache_key;
	LlmCacheKey cache_key;
	LlmFlight	flight;
	struct LlmSimilar *similar; /* NULL: it is for equal prompts only */
	const LlmKept *kept;		/* its answer was kept, or NULL */

	/* the way */
	LlmTierView tier;			/* what the budgets let it have */
	int			short_of;		/* how often a budget had no room for an
								 * attempt */
	bool		short_rejects;	/* one that rejects what it has no room for */
	LlmRoute	route;
	int			current;		/* candidate being tried */
	LlmAdmission admission;		/* what is held, or waited for, at an endpoint */
	int64		queued_us;		/* it has waited for room in all */
	int64		noted_queued_us;	/* of that, what the ledger knows of */
	int64		paused_us;		/* of that, because the provider asked for it */
	LlmInstant	paused_at;		/* since when it does; 0: it does not */
	const LlmModel *forced;		/* that it is sent to past an open breaker;
								 * NULL: to none yet */
	LlmWording	wording;		/* of the current candidate's request */

	/* what the attempt under way may spend; see call_budget.c */
	LlmHold		hold;
	LlmNano		bound;			/* it costs no more; UNKNOWN: no strict budget
								 * asks */
	int64		input_cap;		/* tokens that the bound is for */
	int			output_cap;		/* and max_tokens to send; 0: the caller's */
	bool		lowered;		/* which is less than the caller and the model
								 * would have allowed */
	int			ncharged;
	LlmCharged *charged;		/* NULL: nothing was charged yet */
	TimestampTz charged_at;		/* in whose periods */

	int64		characters;		/* of everything that is sent */
	int			smallest_window;	/* that a prompt was too long for; 0: none */
	LlmInstant	started;
	LlmInstant	deadline;		/* set before it starts, or by timeout_ms */
	LlmReady	ready;
	LlmTimer	timer;			/* back-off, a look at the queue, or the grace
								 * after the last event */
	MemoryContextCallback reset;

	/* the attempt under way, in a context of its own */
	MemoryContext attempt_context;
	MemoryContext scratch;		/* below it: for parsing, reset after each
								 * piece */
	LlmInstant	attempt_started;
	LlmTransfer *transfer;
	LlmWireCall wire;
	LlmEventParser parser;
	LlmAnswer	answer;
	bool		fresh;			/* must not use a kept connection */
	bool		streaming;		/* the body is a stream of events */
	LlmInstant	first_content;	/* when its first words came; 0: not yet */
	bool		deadline_binds; /* its total time-out is the call's deadline */
	Size		streamed;		/* bytes of its text that the caller has been
								 * given; then there is no way back */

	/* the ledger; see call_record.c */
	LlmLedgerEntry entry;
	LlmRequestInfo request;		/* created_at 0: not filled in yet */
	int			nnoted;			/* attempts noted */
	bool		attempt_noted;	/* the one under way is */
	bool		has_outcome;	/* outcome is that of attempt nnoted */
	LlmOutcome	outcome;
	MemoryContextCallback attempt_reset;

	/* past attempts */
	int			nattempts;		/* entries, sent or not */
	int			attempts_size;
	LlmAttempt *attempts;

	/* the result, in the call's context, valid when state is DONE */
	LlmErrorClass error;		/* LLMGW_OK: there is an answer */
	int			sqlstate;
	const char *message;		/* the error in one line */
	const char *hint;			/* better than its class's; NULL: none */
	const LlmModel *model;		/* that answered; in an error, tried last */
	const char *response;		/* server encoding */
	const char *finish_reason;
	LlmUsage	usage;
	Jsonb	   *tool_calls;
	Jsonb	   *document;		/* the response, where there is a schema */
	const char *mismatch;		/* why it does not satisfy that; NULL: it does */
	LlmParams	degraded;		/* what it was given without */
	bool		fallback;
	LlmNano		estimate;
	LlmNano		cost;			/* of all attempts */
	int64		latency_us;
	int64		ttft_us;		/* -1: no answer */
} LlmCall;

/*
 * Makes a call in a new context below the given one.  The prompt must live as
 * long as the call.  Draws its request id.  A conversation is put into messages
 * afterwards, what is to be embedded into inputs; the prompt is then its text.
 * The vectors are in answer.
 */
extern LlmCall *llmgw_call_create(MemoryContext parent, const LlmSpec *spec,
								  const char *prompt);

/*
 * Finds the candidates, and with the first of them the estimate.  A call that is
 * only looked at, with peek, needs no more than context, spec and prompt: it need
 * not be created, and is never started.
 */
extern void llmgw_call_route(LlmCall *call, bool peek);

/* What routing asks of a call whatever its content is. */
extern void llmgw_spec_query(const LlmSpec *spec, LlmRouteQuery *query);

/* Ready lists must outlive the call. */
extern bool llmgw_call_start(LlmCall *call, dlist_head *ready_list);
extern bool llmgw_call_advance(LlmCall *call);

extern void llmgw_call_free(LlmCall *call);

/* Ends a call that was not started with an error of its own. */
extern void llmgw_call_fail(LlmCall *call, LlmErrorClass error,
							const char *message);

/* attempts that reached, or may have reached, a provider */
extern int	llmgw_call_attempts(const LlmCall *call);

/* DETAIL of its error, a line for each attempt or candidate; NULL: none */
extern char *llmgw_call_detail(const LlmCall *call);

/* The error of a call whose route has no candidate that may answer. */
extern LlmErrorClass llmgw_call_no_candidate(const LlmCall *call, const char **message);

/* why a candidate was not asked, palloc'd */
extern char *llmgw_call_refusal(const LlmCall *call, const LlmCandidate *candidate);

/* only the lines of its attempts, appended */
extern void llmgw_call_append_attempts(const LlmCall *call, StringInfo buf);

/* whether a token limit cut the answer */
extern bool llmgw_call_was_cut(const LlmCall *call);

/* that, for an error or a warning: whose limit it was, and what helps */
extern char *llmgw_call_cut_message(const LlmCall *call, const char **hint);

/* HINT of its error; never NULL */
extern const char *llmgw_call_hint(const LlmCall *call);

/* call_next.c, for call.c: both return true when the call has ended */

/*
 * Sends to the first candidate that takes the call now, or queues up, or ends
 * the call when none is left.
 */
extern bool llmgw_call_next(LlmCall *call);

/* What the last attempt's failure leaves to decide. */
typedef struct LlmFailure
{
	LlmErrorClass error;
	bool		timed_out_whole;	/* the call's own time is over */
	bool		silent;			/* and the provider was silent for so long
								 * that it is its failure, too */
	bool		hopeless;		/* trying again cannot help */
	bool		reword;			/* it is to be asked again in other words */
	int64		retry_after_ms; /* the provider wants a pause; 0: it did not
								 * say */
} LlmFailure;

/*
 * Gives back what the attempt held at its endpoint, with what it shows of that:
 * it worked (failure->error is LLMGW_OK), or why not.
 */
extern void llmgw_call_settle(LlmCall *call, const LlmFailure *failure);

/* How long the provider wants to be left alone, in ms; 0: it did not say. */
extern int64 llmgw_call_pause_ms(const LlmRateInfo *info);

/* Goes on after a failed attempt, as the policy of its class says. */
extern bool llmgw_call_after_failure(LlmCall *call, const LlmFailure *failure);

/* call.c, for call_next.c */

/* Sends the current candidate's request, admitted, its key in call->wire. */
extern bool llmgw_call_send(LlmCall *call);

/* One more line in the list of what was tried. */
extern LlmAttempt *llmgw_call_add_attempt(LlmCall *call);

/* call_end.c, for call.c and call_next.c: each ends the call and returns true */

/* the last attempt gave the answer */
extern bool llmgw_call_end_answered(LlmCall *call);

/* the last attempt's error is the call's, whatever went before */
extern bool llmgw_call_end_stopped(LlmCall *call);

/*
 * No candidate is left.  When every attempt ended alike, that is the error;
 * otherwise only that all failed can be said.
 */
extern bool llmgw_call_end_failed(LlmCall *call);

/* The ledger cannot take the next attempt: it is not sent (53100). */
extern bool llmgw_call_end_unrecorded(LlmCall *call, const char *reason);

/* with call->kept, which has been put into the result */
extern bool llmgw_call_end_cached(LlmCall *call);

/* call_cache.c */

/*
 * For call.c.  The call has been routed: answers it from the cache, lets it
 * follow another session's, or sends it.  llmgw_call_follow() goes on with one that
 * follows.  Both return true when the call has ended.
 */
extern bool llmgw_call_begin(LlmCall *call);
extern bool llmgw_call_follow(LlmCall *call);

/*
 * For call_similar.c: a hash of what the key is made of but for the prompt, and of
 * the model that makes embeddings.  False: it has none.
 */
extern bool llmgw_call_scope(const LlmCall *call, const char *embedder, LlmCacheKey *scope);

/* What is kept may be served to the call: of that tier it is good enough. */
extern bool llmgw_call_accepts_tier(const LlmCall *call, const char *model_tier);

/*
 * For call_next.c, when no candidate is left that some budget had room for: the
 * same, where all those budgets say that a kept answer may do.
 */
extern bool llmgw_call_rescued(LlmCall *call);

/*
 * For call_end.c, before the end is recorded: keeps the answer, if that is asked
 * for and it is worth it.  Whether it is on its way.
 */
extern bool llmgw_call_keep(LlmCall *call);

/* call_similar.c */

/* Drives a call in that context to its end; raises what ends the statement only. */
typedef void (*LlmDriver) (LlmCall *call, MemoryContext context);

/*
 * Lets a call that was created, and is driven on its own, be answered with what is
 * kept for a similar prompt, where its task says so.  Its content must be its
 * prompt and nothing else.
 */
extern void llmgw_call_allow_similar(LlmCall *call, LlmDriver drive);

/* For call_cache.c: whether it may be. */
extern bool llmgw_call_may_be_similar(const LlmCall *call);

/*
 * Has the prompt's embedding made, once, and returns when that call has ended; the
 * limits of time that it has are its own.  NULL: there is none.  Raises what ends
 * the statement, and nothing else.
 */
extern const LlmEmbedding *llmgw_call_embedding(LlmCall *call);

/* The same if it was made already. */
extern const LlmEmbedding *llmgw_call_has_embedding(const LlmCall *call);

/* The kept answer of the most similar prompt; false: none is similar enough. */
extern bool llmgw_call_nearest(LlmCall *call, LlmKept *kept);

/* What the caller is to be told of such an answer, palloc'd. */
extern const char *llmgw_call_similar_notice(const LlmKept *kept);

/* call_degrade.c, for call.c */

/*
 * Before a request is built from wire, which says all that the caller wants:
 * takes out of it what the candidate cannot take.
 */
extern void llmgw_call_degrade(LlmCall *call);

/*
 * After an attempt that failed: whether to ask the candidate again, at once and
 * in other words, because of what it said.
 */
extern bool llmgw_call_reword(LlmCall *call);

/* After one that was answered: remembers for the next calls what was learned. */
extern void llmgw_call_learn(LlmCall *call);

/* call_budget.c */

/* What the budgets let the call have at this moment: call->tier. */
extern void llmgw_call_budgets(LlmCall *call);

/*
 * Reserves what an attempt at the candidate may cost, on all its budgets.  NULL, or
 * why there is no room, palloc'd, and by which budget; then nothing is reserved.
 */
extern const char *llmgw_call_reserve(LlmCall *call, const LlmCandidate *c,
									  const LlmBudget **by);

/*
 * Whether the call's priority keeps the best tier for as long as anything is left: then
 * want of room for a model does not lead to one of a worse tier.
 */
extern bool llmgw_call_keeps_tier(const LlmCall *call);

/* The same answer as it would get now, with nothing reserved. */
extern const char *llmgw_call_shortage(LlmCall *call, const LlmCandidate *c);

/*
 * The attempt that was reserved for has cost so much.  A WARNING where that is more
 * than a strict budget held for it.
 */
extern void llmgw_call_pay(LlmCall *call, LlmNano cost);

/* An estimate of the attempt's usage is no more than what a strict budget holds for it. */
extern void llmgw_call_cap(const LlmCall *call, LlmUsage *estimate);

/* Of all that is sent to that model; of a completion the suffix of its tier as well. */
extern int64 llmgw_call_characters(const LlmCall *call, const LlmModel *model);

/*
 * Puts the call's messages and that system prompt (NULL: none) into call->wire, with the
 * suffix of the candidate's tier after all that the system says at the beginning.
 */
extern void llmgw_call_put_messages(LlmCall *call, const LlmCandidate *c,
									const char *system_prompt);

/*
 * The first candidate that configuration and tier allow; NULL: there is none that may
 * answer.  It is not that of llmgw_route_first where a budget of its provider or model
 * has nothing left for it.
 */
extern const LlmCandidate *llmgw_call_first(const LlmCall *call);

/*
 * What the caller is to be told of a call that was answered by a worse tier than it
 * could have had; NULL: nothing.
 */
extern const char *llmgw_call_notice(const LlmCall *call);

/*
 * For the ledger, in call->request: the budget that took a better tier away than that
 * of the candidate that is asked, or would be; NULL: nobody is.
 */
extern void llmgw_call_say_downgraded(LlmCall *call, const LlmCandidate *asked,
									  const LlmTier *to);

/* call_schema.c, for call_end.c */

/*
 * Reads the response as JSON and checks it against the call's schema: sets
 * document, or mismatch.
 */
extern void llmgw_call_check_schema(LlmCall *call);

/* call_record.c, for call.c and call_end.c */

/* Fills in call->request; once. */
extern void llmgw_call_describe(LlmCall *call);

/* Before an attempt is sent.  NULL, or why it must not be, palloc'd. */
extern char *llmgw_call_note_attempt(LlmCall *call);

/* Once it has a transfer: its end is recorded should its memory go. */
extern void llmgw_call_watch_attempt(LlmCall *call);

/* The attempt has an outcome. */
extern void llmgw_call_judged(LlmCall *call, const LlmAttempt *attempt);

/* The call has ended, or its memory goes. */
extern void llmgw_call_record_end(LlmCall *call);
extern void llmgw_call_record_abort(LlmCall *call);

/*
 * Of a batch: another request that shares the outcome of a call that is done.
 * The end of its record; 0: there was no room for it.
 */
extern uint64 llmgw_call_record_shared(const LlmCall *call, int64 request_id);

/* call_probe.c */

/*
 * What a probe of that provider asks for, palloc'd; who asks is left to fill in.
 * The call is created with an empty prompt.
 */
extern LlmSpec *llmgw_probe_spec(LlmConfig *config, const LlmProvider *provider,
								 LlmBreakerAsk ask);

/* for call.c: the route of a probe; NULL, or why it cannot be made, with a hint */
extern const char *llmgw_probe_route(LlmCall *call);

/* for call.c: the request of a plain probe */
extern void llmgw_probe_request(LlmCall *call, LlmHttpRequest *request);

/*
 * for judge.c: the class of a plain probe, from that of its error answer or, where
 * there is none, of what happened to the connection
 */
extern LlmErrorClass llmgw_probe_judge(const LlmCall *call, LlmErrorClass error);

/* judge.c */

/*
 * Names the outcome of the attempt whose transfer has ended: LLMGW_OK when
 * the answer is whole, else its class, with a message.  May parse the body.
 */
extern LlmErrorClass llmgw_judge(LlmCall *call, const char **message);

/*
 * Whether the attempt's bytes are a stream of events: by its headers or, where
 * these say something else or nothing, by how it begins.
 */
extern bool llmgw_judge_is_stream(const LlmTransfer *transfer, LlmFraming framing);

/*
 * What the attempt costs, whatever its end (DESIGN: charging).  May be called
 * while aborting.
 */
extern LlmNano llmgw_judge_cost(const LlmCall *call, LlmErrorClass error,
								LlmUsage *usage, LlmCostSource *source);

#endif							/* LLMGW_CALL_H */
