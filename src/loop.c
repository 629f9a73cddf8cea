/*-------------------------------------------------------------------------
 *
 * loop.c
 *	  One event loop per process: curl's sockets, timers, the latch.
 *
 * libcurl tells us through its socket function which descriptors it wants
 * watched; they live in an epoll set of our own, whose descriptor is one event
 * of a WaitEventSet.  So a thousand sockets cost one wait event, and
 * PostgreSQL's latch, and with it every kind of interrupt, ends any wait at
 * once: also while a name is being resolved, since libcurl resolves in a
 * thread and is told not to wait for it (CURLOPT_QUICK_EXIT, see http.c).
 *
 * Time-outs are timers in a pairing heap.  libcurl has one timer of its own,
 * kept beside the heap.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/latch.h"
#include "utils/memutils.h"

#include "compat.h"
#include "loop.h"

/* connections that stay warm however few are in use */
#define MIN_WARM_CONNECTIONS	32

/* descriptors that are left to PostgreSQL whatever we do */
#define RESERVED_FDS			96

/* sockets beyond one for each connection: two address families are tried at once */
#define EXTRA_SOCKETS			32

#define MAX_SOCKET_EVENTS		128

/* timers wait for so many turns in which that many sockets were ready */
#define MAX_FULL_TURNS			8

static struct
{
	bool		ready;
	pid_t		pid;			/* the process that made it */
	CURLM	   *multi;
	int			epoll_fd;
	WaitEventSet *wait_set;
	int			latch_pos;
	uint32		wait_event;
	int			nlatch_fns;
	LlmLatchFn	latch_fns[LLMGW_MAX_LATCH_FNS];
	pairingheap *timers;
	LlmInstant	curl_at;		/* when libcurl wants to be called */
	int			full_turns;		/* in a row: timers wait */
	int			open_sockets;
	long		warm_connections;
}			loop = {.epoll_fd = -1,.curl_at = LLMGW_NEVER};

/*
 * Signals are blocked and interrupts held while libcurl runs.
 *
 * A thread inherits its creator's signal mask: without this, a resolver thread
 * could take a SIGTERM or SIGUSR1 meant for the backend and run its handler.
 */
void
llmgw_curl_enter(LlmCurlGuard *guard)
{
	sigset_t	all;

	HOLD_INTERRUPTS();
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &guard->saved);
}

void
llmgw_curl_leave(LlmCurlGuard *guard)
{
	pthread_sigmask(SIG_SETMASK, &guard->saved, NULL);
	RESUME_INTERRUPTS();
}

/*
 * Tells epoll what libcurl wants to know of a socket.  Whether the descriptor
 * is already in the set is remembered in its socketp.
 */
static int
on_socket(CURL *easy, curl_socket_t fd, int what, void *clientp, void *socketp)
{
	static char known;			/* its address marks a known socket */
	struct epoll_event ev = {0};

	ev.data.fd = fd;
	if (what == CURL_POLL_REMOVE)
	{
		/* the descriptor may be closed already: then epoll has dropped it */
		(void) epoll_ctl(loop.epoll_fd, EPOLL_CTL_DEL, fd, &ev);
		curl_multi_assign(loop.multi, fd, NULL);
		return 0;
	}

	if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
		ev.events |= EPOLLIN;
	if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
		ev.events |= EPOLLOUT;

	if (epoll_ctl(loop.epoll_fd, socketp ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
				  &ev) != 0)
	{
		/* a descriptor number that was closed and used again, or the reverse */
		if (errno == EEXIST)
			(void) epoll_ctl(loop.epoll_fd, EPOLL_CTL_MOD, fd, &ev);
		else if (errno == ENOENT)
			(void) epoll_ctl(loop.epoll_fd, EPOLL_CTL_ADD, fd, &ev);
		else
			return 0;			/* -1 would end every transfer there is: let
								 * this one time out */
	}
	curl_multi_assign(loop.multi, fd, &known);
	return 0;
}

static int
on_curl_timer(CURLM *multi, long timeout_ms, void *clientp)
{
	loop.curl_at = timeout_ms < 0 ? LLMGW_NEVER :
		llmgw_now() + (LlmInstant) timeout_ms * 1000;
	return 0;
}

curl_socket_t
llmgw_loop_open_socket(void *clientp, curlsocktype purpose,
					   struct curl_sockaddr *address)
{
	curl_socket_t fd;

	if (loop.open_sockets >= llmgw_loop_max_connections() + EXTRA_SOCKETS)
		return CURL_SOCKET_BAD;
	fd = socket(address->family, address->socktype | SOCK_CLOEXEC,
				address->protocol);
	if (fd < 0)
		return CURL_SOCKET_BAD;

	/*
	 * The unconditional form: AcquireExternalFD() stops at a third of the
	 * descriptors, which is too few for a batch of a thousand calls.  Ours is
	 * the looser bound above.
	 */
	ReserveExternalFD();
	loop.open_sockets++;
	return fd;
}

int
llmgw_loop_close_socket(void *clientp, curl_socket_t fd)
{
	ReleaseExternalFD();
	loop.open_sockets--;
	return close(fd);
}

int
llmgw_loop_max_connections(void)
{
	return Max(max_safe_fds - RESERVED_FDS - EXTRA_SOCKETS, max_safe_fds / 4);
}

static int
timer_cmp(const pairingheap_node *a, const pairingheap_node *b, void *arg)
{
	LlmInstant	x = pairingheap_const_container(LlmTimer, node, a)->at;
	LlmInstant	y = pairingheap_const_container(LlmTimer, node, b)->at;

	/* the heap gives the largest first; we want the earliest */
	return x < y ? 1 : (x > y ? -1 : 0);
}

/*
 * Each step remembers its result, so that a failure half way (no descriptor, no
 * memory) leaks nothing and the next call goes on from there.
 */
CURLM *
llmgw_loop_multi(void)
{
	MemoryContext old;

	if (likely(loop.ready))
	{
		Assert(loop.pid == MyProcPid);
		return loop.multi;
	}

	if (loop.multi == NULL)
	{
		LlmCurlGuard guard;
		CURLcode	rc;

		llmgw_curl_enter(&guard);
		rc = curl_global_init(CURL_GLOBAL_DEFAULT);
		if (rc == CURLE_OK)
			loop.multi = curl_multi_init();
		llmgw_curl_leave(&guard);
		if (loop.multi == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("could not initialize libcurl: %s",
							rc != CURLE_OK ? curl_easy_strerror(rc) : "out of memory")));
		if (!(curl_version_info(CURLVERSION_NOW)->features & CURL_VERSION_ASYNCHDNS))
			ereport(WARNING,
					(errmsg("this libcurl resolves host names synchronously"),
					 errdetail("A call cannot be cancelled while it resolves a name.")));
		curl_multi_setopt(loop.multi, CURLMOPT_SOCKETFUNCTION, on_socket);
		curl_multi_setopt(loop.multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
		curl_multi_setopt(loop.multi, CURLMOPT_PIPELINING, (long) CURLPIPE_MULTIPLEX);

		/*
		 * at the limit curl closes an idle connection, or lets a transfer
		 * wait
		 */
		curl_multi_setopt(loop.multi, CURLMOPT_MAX_TOTAL_CONNECTIONS,
						  (long) llmgw_loop_max_connections());
	}

	if (loop.epoll_fd < 0)
	{
		if (!AcquireExternalFD())
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("too many open files for an HTTP request"),
					 errhint("Raise max_files_per_process.")));
		loop.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
		if (loop.epoll_fd < 0)
		{
			ReleaseExternalFD();
			ereport(ERROR,
					(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
					 errmsg("could not create an epoll descriptor: %m")));
		}
	}

	if (loop.timers == NULL)
	{
		old = MemoryContextSwitchTo(TopMemoryContext);
		loop.timers = pairingheap_allocate(timer_cmp, NULL);
		MemoryContextSwitchTo(old);
	}

	if (loop.wait_set == NULL)
	{
		WaitEventSet *volatile set = llmgw_create_wait_event_set(3);

		PG_TRY();
		{
			loop.latch_pos = AddWaitEventToSet(set, WL_LATCH_SET,
											   PGINVALID_SOCKET, MyLatch, NULL);
			if (IsUnderPostmaster)
				AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET,
								  NULL, NULL);
			AddWaitEventToSet(set, WL_SOCKET_READABLE, loop.epoll_fd, NULL, NULL);
		}
		PG_CATCH();
		{
			FreeWaitEventSet(set);
			PG_RE_THROW();
		}
		PG_END_TRY();
		loop.wait_set = set;
	}

	loop.wait_event = llmgw_wait_event("LlmGatewayHttp");
	loop.pid = MyProcPid;
	loop.ready = true;
	llmgw_loop_expect_connections(MIN_WARM_CONNECTIONS);
	return loop.multi;
}

void
llmgw_loop_expect_connections(int n)
{
	LlmCurlGuard guard;

	n = Max(n, MIN_WARM_CONNECTIONS);
	n = Min(n, llmgw_loop_max_connections());
	if (n == loop.warm_connections)
		return;
	(void) llmgw_loop_multi();
	loop.warm_connections = n;
	llmgw_curl_enter(&guard);
	curl_multi_setopt(loop.multi, CURLMOPT_MAXCONNECTS, loop.warm_connections);
	llmgw_curl_leave(&guard);
}

void
llmgw_timer_set(LlmTimer *timer, LlmInstant at)
{
	if (timer->armed)
	{
		if (timer->at == at)
			return;
		llmgw_timer_cancel(timer);
	}
	if (at == LLMGW_NEVER)
		return;
	/* a session's first call may have to wait before it sends anything */
	(void) llmgw_loop_multi();
	timer->at = at;
	timer->armed = true;
	pairingheap_add(loop.timers, &timer->node);
}

void
llmgw_timer_cancel(LlmTimer *timer)
{
	if (!timer->armed)
		return;
	timer->armed = false;
	pairingheap_remove(loop.timers, &timer->node);
}

void
llmgw_ready_mark(LlmReady *ready)
{
	if (ready->queued || ready->list == NULL)
		return;
	ready->queued = true;
	dlist_push_tail(ready->list, &ready->node);
}

void
llmgw_ready_clear(LlmReady *ready)
{
	if (!ready->queued)
		return;
	ready->queued = false;
	dlist_delete(&ready->node);
}

void
llmgw_loop_on_latch(LlmLatchFn fn)
{
	Assert(loop.nlatch_fns < LLMGW_MAX_LATCH_FNS);
	loop.latch_fns[loop.nlatch_fns++] = fn;
}

/* Marks what other processes have made ready; whether there was something new. */
static bool
look_around(void)
{
	bool		any = false;

	for (int i = 0; i < loop.nlatch_fns; i++)
		any |= loop.latch_fns[i] ();
	return any;
}

/*
 * Runs the timers that are due.  A timer that sets itself again is due later
 * than now, so this ends.
 */
static void
run_timers(LlmInstant now)
{
	while (!pairingheap_is_empty(loop.timers))
	{
		LlmTimer   *timer = pairingheap_container(LlmTimer, node,
												  pairingheap_first(loop.timers));

		if (timer->at > now)
			break;
		llmgw_timer_cancel(timer);
		timer->fn(timer, now);
	}
}

/* Lets libcurl handle one socket's events, or its timer (CURL_SOCKET_TIMEOUT). */
static void
socket_action(curl_socket_t fd, int events)
{
	int			running;

	(void) curl_multi_socket_action(loop.multi, fd, events, &running);
}

/* Tells the owners of finished transfers; see LlmCurlDone. */
static void
collect_finished(void)
{
	CURLMsg    *msg;
	int			left;

	while ((msg = curl_multi_info_read(loop.multi, &left)) != NULL)
	{
		LlmCurlDone *done = NULL;

		if (msg->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(msg->easy_handle, CURLINFO_PRIVATE, (char **) &done);
		if (done != NULL)
			done->fn(done, msg->data.result);
	}
}

/*
 * Runs what is due now in libcurl: its timer, and the sockets that epoll names.
 * Must be called inside the guard.  Whether more sockets may be ready.
 */
static bool
run_curl(LlmInstant now)
{
	struct epoll_event events[MAX_SOCKET_EVENTS];
	int			n = epoll_wait(loop.epoll_fd, events, MAX_SOCKET_EVENTS, 0);

	for (int i = 0; i < n; i++)
	{
		int			what = 0;

		if (events[i].events & EPOLLIN)
			what |= CURL_CSELECT_IN;
		if (events[i].events & EPOLLOUT)
			what |= CURL_CSELECT_OUT;
		if (events[i].events & (EPOLLERR | EPOLLHUP))
			what |= CURL_CSELECT_ERR | CURL_CSELECT_IN;
		socket_action(events[i].data.fd, what);
	}

	if (loop.curl_at <= now)
	{
		loop.curl_at = LLMGW_NEVER;
		socket_action(CURL_SOCKET_TIMEOUT, 0);
	}
	collect_finished();
	return n == MAX_SOCKET_EVENTS;
}

/*
 * What has come, and then the timers: an answer is not late only because nobody
 * has looked for a while.  WaitEventSetWait() does not always say that something
 * has: a latch hides it, and so does a signal, where the wait is over meanwhile.
 * There may be more than one turn's worth of it; between two turns the call can
 * be interrupted.
 */
static void
run_due(void)
{
	LlmInstant	now = llmgw_now();
	LlmCurlGuard guard;
	bool		more;

	llmgw_curl_enter(&guard);
	more = run_curl(now);
	llmgw_curl_leave(&guard);
	if (more && ++loop.full_turns < MAX_FULL_TURNS)
		return;
	loop.full_turns = 0;
	run_timers(now);
}

void
llmgw_loop_turn(LlmInstant until)
{
	LlmInstant	now;
	LlmInstant	wake;
	WaitEvent	events[3];
	long		timeout_ms;
	int			n;

	(void) llmgw_loop_multi();
	CHECK_FOR_INTERRUPTS();

	/* what is due already is done without waiting */
	now = llmgw_now();
	if (loop.curl_at <= now)
	{
		run_due();
		return;
	}

	if (look_around())
		until = now;
	wake = Min(until, loop.curl_at);
	if (!pairingheap_is_empty(loop.timers))
		wake = Min(wake, pairingheap_container(LlmTimer, node,
											   pairingheap_first(loop.timers))->at);
	if (wake == LLMGW_NEVER)
		timeout_ms = -1;
	else if (wake <= now)
		timeout_ms = 0;
	else
		timeout_ms = Min((wake - now + 999) / 1000, INT_MAX);

	/* a latch may have been replaced since (it is in a few kinds of worker) */
	ModifyWaitEvent(loop.wait_set, loop.latch_pos, WL_LATCH_SET, MyLatch);
	n = WaitEventSetWait(loop.wait_set, timeout_ms, events, lengthof(events),
						 loop.wait_event);
	for (int i = 0; i < n; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			CHECK_FOR_INTERRUPTS();
			(void) look_around();
		}
	}
	run_due();
}
