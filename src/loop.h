/*-------------------------------------------------------------------------
 *
 * loop.h
 *	  One event loop per process: curl's sockets, timers, the latch.
 *
 * The loop owns the process's only curl multi handle, an epoll descriptor with
 * curl's sockets, a heap of timers, and a WaitEventSet on {latch, postmaster
 * death, that epoll descriptor}.  All are made on first use and live as long
 * as the process: a connection stays warm from one call to the next.
 *
 * Several users may have transfers and timers in the loop at the same time (a
 * streaming portal and a call made between two of its rows).  Whoever turns
 * the loop moves everybody's bytes; what became ready is put on the list that
 * its owner named, and only its owner looks there.
 *
 * Nothing here is shared between processes.  Callbacks from curl and from
 * timers never raise errors and never allocate with palloc.
 *
 *-------------------------------------------------------------------------
 */
#ifndef LLMGW_LOOP_H
#define LLMGW_LOOP_H

#include <curl/curl.h>
#include <signal.h>

#include "lib/ilist.h"
#include "lib/pairingheap.h"

#include "timing.h"

/*
 * A timer.  Embedded in its owner's struct, zeroed before first use.  The
 * function is called from llmgw_loop_turn() with the timer disarmed; it must
 * not raise an error, and may set the timer again.
 */
typedef struct LlmTimer LlmTimer;
typedef void (*LlmTimerFn) (LlmTimer *timer, LlmInstant now);

struct LlmTimer
{
	pairingheap_node node;
	LlmInstant	at;
	bool		armed;
	LlmTimerFn	fn;
};

/*
 * Membership in a list of things that became ready.  Marking twice is the same
 * as marking once.
 */
typedef struct LlmReady
{
	dlist_node	node;
	dlist_head *list;			/* the owner's; NULL: nobody looks */
	bool		queued;
	void	   *owner;			/* what is ready, for who looks */
} LlmReady;

/*
 * What an easy handle's CURLOPT_PRIVATE points to: told when its transfer is
 * over.  Called inside the guard; must neither raise an error nor remove the
 * handle from the multi handle.
 */
typedef struct LlmCurlDone LlmCurlDone;
struct LlmCurlDone
{
	void		(*fn) (LlmCurlDone *done, CURLcode result);
};

/* Makes the loop on first use.  Raises 53000 when curl cannot start. */
extern CURLM *llmgw_loop_multi(void);

/*
 * Room for that many connections to stay warm.  Never less than a few, never
 * more than there are descriptors for; with less room than there are
 * connections, one is closed each time that one is given back.
 */
extern void llmgw_loop_expect_connections(int n);

/*
 * Both are cheap; setting an armed timer moves it.  The first one of a process
 * makes the loop, and may raise for that.
 */
extern void llmgw_timer_set(LlmTimer *timer, LlmInstant at);
extern void llmgw_timer_cancel(LlmTimer *timer);

extern void llmgw_ready_mark(LlmReady *ready);
extern void llmgw_ready_clear(LlmReady *ready);

/*
 * What another process makes ready, it tells with the latch: this function looks
 * for it, marks it, and returns whether there was something new.  There is one
 * for each kind of thing that is waited for (at most LLMGW_MAX_LATCH_FNS);
 * llmgw_loop_turn() calls them before it waits, for the latch may have been reset
 * by others, and whenever the latch was set.  They must not raise an error.
 */
#define LLMGW_MAX_LATCH_FNS		4
typedef bool (*LlmLatchFn) (void);

extern void llmgw_loop_on_latch(LlmLatchFn fn);

/*
 * Waits until a socket, a timer or the latch has something, at most until the
 * given instant, and handles it.  Returns at once when something is already
 * due.  Raises what CHECK_FOR_INTERRUPTS() raises, and then has left
 * everything consistent; exits on postmaster death.
 */
extern void llmgw_loop_turn(LlmInstant until);

/*
 * Calls into libcurl go between these two: they keep the resolver's threads
 * from inheriting our signals, and an ereport(LOG) below us from processing
 * an interrupt, that is from jumping out through libcurl's frames.
 */
typedef struct LlmCurlGuard
{
	sigset_t	saved;
} LlmCurlGuard;

extern void llmgw_curl_enter(LlmCurlGuard *guard);
extern void llmgw_curl_leave(LlmCurlGuard *guard);

/*
 * Socket functions for easy handles: they count our descriptors with fd.c's
 * and refuse one that would leave PostgreSQL too few.
 */
extern curl_socket_t llmgw_loop_open_socket(void *clientp, curlsocktype purpose,
											struct curl_sockaddr *address);
extern int	llmgw_loop_close_socket(void *clientp, curl_socket_t fd);

/* How many connections this process may have at a time, warm ones included. */
extern int	llmgw_loop_max_connections(void);

#endif							/* LLMGW_LOOP_H */
