/*-------------------------------------------------------------------------
 *
 * http.c
 *	  One HTTP request and the bytes that come back.
 *
 * Ownership.  A transfer is palloc'd in its caller's context; before anything
 * else is acquired it registers a reset callback there.  What curl and its
 * callbacks need is malloc'd and hangs on the transfer, so the callback can
 * give back everything whichever step was reached.
 *
 * Callbacks from curl run inside llmgw_curl_enter(): they store bytes, set
 * flags and timers, and mark the transfer ready.  They never palloc, never
 * ereport.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <curl/curl.h>
#include <poll.h>

#include "miscadmin.h"
#include "utils/memutils.h"

#include "compat.h"
#include "http.h"

/* idle easy handles kept for the next request */
#define MAX_IDLE_HANDLES	32

/* more header bytes than this are not kept */
#define MAX_HEADER_BYTES	(64 * 1024)

/* a body buffer larger than this is not kept once it was consumed */
#define MAX_KEPT_BUFFER		(1024 * 1024)

/*
 * They keep the options that are the same for every request
 * (set_constant_options); whatever else a request may set, every request sets.
 */
static CURL *idle_handles[MAX_IDLE_HANDLES];
static int	nidle_handles = 0;

/*
 * Appends to a malloc'd buffer and keeps a NUL behind it.  False when out of
 * memory; the buffer is then as it was.
 */
static bool
append(char **buf, size_t *len, size_t *size, const char *bytes, size_t n)
{
	if (*len + n + 1 > *size)
	{
		size_t		want = Max(*size * 2, (size_t) 4096);
		char	   *bigger;

		while (want < *len + n + 1)
			want *= 2;
		bigger = realloc(*buf, want);
		if (bigger == NULL)
			return false;
		*buf = bigger;
		*size = want;
	}
	memcpy(*buf + *len, bytes, n);
	*len += n;
	(*buf)[*len] = '\0';
	return true;
}

/* When the transfer must have moved, or it has timed out. */
static LlmInstant
next_deadline(const LlmTransfer *t)
{
	LlmInstant	at = t->ended_by;

	if (t->first_byte == 0)
		at = Min(at, t->first_byte_by);
	else if (t->idle_us > 0)
		at = Min(at, t->last_byte + t->idle_us);
	return at;
}

static void
set_outcome(LlmTransfer *t, LlmHttpOutcome outcome)
{
	if (t->outcome != LLMGW_HTTP_RUNNING)
		return;
	t->outcome = outcome;
	t->ended = llmgw_now();
	llmgw_timer_cancel(&t->timer);
	llmgw_ready_mark(&t->ready);
}

/* Body bytes arrived, from curl or from a replay.  False: stop the transfer. */
static bool
receive(LlmTransfer *t, const char *bytes, size_t n)
{
	if (t->outcome != LLMGW_HTTP_RUNNING)
		return false;
	if (n == 0)
		return true;
	t->last_byte = llmgw_now();
	if (t->first_byte == 0)
	{
		t->first_byte = t->last_byte;

		/* the timer so far was for the first byte; later ones move it lazily */
		llmgw_timer_set(&t->timer, next_deadline(t));
	}
	t->total += n;
	if (t->max_response > 0 && t->total > (size_t) t->max_response)
	{
		set_outcome(t, LLMGW_HTTP_TOO_LARGE);
		return false;
	}
	if (!append(&t->data, &t->len, &t->size, bytes, n))
	{
		t->no_memory = true;
		set_outcome(t, LLMGW_HTTP_FAILED_INTERNAL);
		return false;
	}
	llmgw_ready_mark(&t->ready);
	return true;
}

static size_t
on_body(char *bytes, size_t size, size_t nmemb, void *arg)
{
	return receive(arg, bytes, size * nmemb) ? size * nmemb : 0;
}

/*
 * A status line starts a new block: what came before belonged to an interim
 * response (100 Continue, 103 Early Hints).
 */
static size_t
on_header(char *line, size_t size, size_t nmemb, void *arg)
{
	LlmTransfer *t = arg;
	size_t		n = size * nmemb;
	size_t		used = n;

	if (n >= 5 && memcmp(line, "HTTP/", 5) == 0)
	{
		const char *space = memchr(line, ' ', n);

		t->header_len = 0;
		t->ncodings = 0;
		if (t->header_buf != NULL)
			t->header_buf[0] = '\0';
		if (space != NULL && n - (space - line) > 3)
			t->http_status = (space[1] - '0') * 100 + (space[2] - '0') * 10 +
				(space[3] - '0');
		return n;
	}
	while (used > 0 && (line[used - 1] == '\r' || line[used - 1] == '\n'))
		used--;
	t->ncodings += llmgw_http_codings(line, used);
	if (t->ncodings > 1)
		return 0;
	if (used == 0 || t->header_len + used > MAX_HEADER_BYTES)
		return n;
	if (!append(&t->header_buf, &t->header_len, &t->header_size, line, used) ||
		!append(&t->header_buf, &t->header_len, &t->header_size, "\n", 1))
	{
		t->no_memory = true;
		return 0;
	}
	t->headers = t->header_buf;
	return n;
}

static curl_socket_t
on_open_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *address)
{
	LlmTransfer *t = arg;
	curl_socket_t fd;

	if (llmgw_http_forbids(&address->addr))
	{
		t->refused_address = true;
		return CURL_SOCKET_BAD;
	}
	fd = llmgw_loop_open_socket(NULL, purpose, address);
	if (fd == CURL_SOCKET_BAD)
		t->no_socket = true;
	return fd;
}

/*
 * Whether the other side has closed a connection that we are about to use.
 * libcurl looks before it uses one again, but newer versions not if it was idle
 * for a short time only; older ones do not tell the socket, and do look.
 */
static bool
is_closed(CURL *easy)
{
	struct pollfd p = {.fd = -1,.events = POLLRDHUP};
	curl_socket_t fd = CURL_SOCKET_BAD;

	if (curl_easy_getinfo(easy, CURLINFO_ACTIVESOCKET, &fd) != CURLE_OK ||
		fd == CURL_SOCKET_BAD)
		return false;
	p.fd = fd;
	return poll(&p, 1, 0) > 0 &&
		(p.revents & (POLLRDHUP | POLLHUP | POLLERR | POLLNVAL)) != 0;
}

/*
 * Called before a request goes out.  A connection that is known to be dead gets
 * none, which costs nothing.
 *
 * libcurl sends a request again, unasked, when a kept connection dies before
 * any answer.  The provider may have seen the first one, and charge for both:
 * whether to try again, and what for, is not libcurl's to decide.
 */
static int
on_request(void *arg, char *primary_ip, char *local_ip, int primary_port,
		   int local_port)
{
	LlmTransfer *t = arg;

	if (t->requested_at == 0)
	{
		if (is_closed(t->easy))
		{
			t->stale = true;
			return CURL_PREREQFUNC_ABORT;
		}
		t->requested_at = llmgw_now();
		return CURL_PREREQFUNC_OK;
	}
	t->lost_connection = true;
	return CURL_PREREQFUNC_ABORT;
}

static LlmHttpOutcome
outcome_of(const LlmTransfer *t, CURLcode rc)
{
	if (rc == CURLE_OK)
		return LLMGW_HTTP_DONE;
	if (t->no_memory)
		return LLMGW_HTTP_FAILED_INTERNAL;
	if (t->stale)
		return LLMGW_HTTP_STALE;

	/* one address may have been refused and another one have answered */
	if (t->requested_at == 0 && t->refused_address)
		return LLMGW_HTTP_FAILED_ADDRESS;
	if (t->requested_at == 0 && t->no_socket)
		return LLMGW_HTTP_FAILED_INTERNAL;
	switch (rc)
	{
		case CURLE_COULDNT_RESOLVE_HOST:
			return LLMGW_HTTP_FAILED_RESOLVE;
		case CURLE_UNSUPPORTED_PROTOCOL:
			/* of the proxy's URL; later, what came back is no HTTP */
			if (t->requested_at != 0)
				return LLMGW_HTTP_FAILED_NETWORK;
			/* FALLTHROUGH */
		case CURLE_COULDNT_RESOLVE_PROXY:
		case CURLE_PROXY:
			return LLMGW_HTTP_FAILED_PROXY;
		case CURLE_COULDNT_CONNECT:
			return LLMGW_HTTP_FAILED_CONNECT;
		case CURLE_OPERATION_TIMEDOUT:
			/* the only time-out we leave to curl */
			return LLMGW_HTTP_TIMEOUT_CONNECT;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_INVALIDCERTSTATUS:
		case CURLE_SSL_PINNEDPUBKEYNOTMATCH:
			return LLMGW_HTTP_FAILED_TLS;
		case CURLE_OUT_OF_MEMORY:
			/* in an answer: also a header line of more than 100 kB */
			return t->requested_at != 0 ? LLMGW_HTTP_FAILED_NETWORK :
				LLMGW_HTTP_FAILED_INTERNAL;
		default:
			return LLMGW_HTTP_FAILED_NETWORK;
	}
}

static void
on_done(LlmCurlDone *done, CURLcode rc)
{
	LlmTransfer *t = (LlmTransfer *) ((char *) done - offsetof(LlmTransfer, done));

	if (t->lost_connection)
		strlcpy(t->message, "the connection was closed before an answer came",
				sizeof(t->message));
	else if (rc == CURLE_OUT_OF_MEMORY && t->requested_at != 0 && !t->no_memory)
		strlcpy(t->message, "a header line of the answer is too long, or memory has run short",
				sizeof(t->message));
	else if (t->ncodings > 1)
		strlcpy(t->message, "the answer is compressed more than once",
				sizeof(t->message));
	else if (rc == CURLE_BAD_CONTENT_ENCODING)
		strlcpy(t->message, "the answer's content encoding cannot be undone",
				sizeof(t->message));
	else if (rc != CURLE_OK && t->message[0] == '\0')
		strlcpy(t->message, curl_easy_strerror(rc), sizeof(t->message));
	set_outcome(t, outcome_of(t, rc));
}

/* Delivers the replay's steps that are due, and its end. */
static void
replay(LlmTransfer *t, LlmInstant now)
{
	const LlmReplay *r = t->replay;

	for (;;)
	{
		const LlmReplayStep *step;

		if (t->replay_step == r->nsteps)
		{
			if (r->end == LLMGW_REPLAY_DONE)
				set_outcome(t, LLMGW_HTTP_DONE);
			else if (r->end == LLMGW_REPLAY_CUT)
			{
				strlcpy(t->message, "connection reset", sizeof(t->message));
				set_outcome(t, LLMGW_HTTP_FAILED_NETWORK);
			}
			return;
		}
		step = &r->steps[t->replay_step++];
		if (!receive(t, step->bytes, step->len))
			return;
		if (t->replay_step < r->nsteps &&
			r->steps[t->replay_step].delay_ms > 0)
			return;
	}
}

static LlmInstant
next_replay(const LlmTransfer *t)
{
	if (t->replay == NULL || t->outcome != LLMGW_HTTP_RUNNING)
		return LLMGW_NEVER;
	if (t->replay_step < t->replay->nsteps)
		return Max(t->last_byte, t->started) +
			(LlmInstant) t->replay->steps[t->replay_step].delay_ms * 1000;
	return LLMGW_NEVER;
}

static void
on_timer(LlmTimer *timer, LlmInstant now)
{
	LlmTransfer *t = (LlmTransfer *) ((char *) timer - offsetof(LlmTransfer, timer));

	if (t->outcome != LLMGW_HTTP_RUNNING)
		return;
	if (t->ended_by <= now)
		set_outcome(t, LLMGW_HTTP_TIMEOUT_TOTAL);
	else if (t->first_byte == 0 && t->first_byte_by <= now)
		set_outcome(t, LLMGW_HTTP_TIMEOUT_FIRST_BYTE);
	else if (t->first_byte != 0 && t->idle_us > 0 &&
			 t->last_byte + t->idle_us <= now)
		set_outcome(t, LLMGW_HTTP_TIMEOUT_IDLE);
	else
	{
		if (next_replay(t) <= now)
			replay(t, now);
		if (t->outcome == LLMGW_HTTP_RUNNING)
			llmgw_timer_set(&t->timer, Min(next_deadline(t), next_replay(t)));
	}
}

void
llmgw_http_stop(LlmTransfer *t)
{
	LlmCurlGuard guard;

	llmgw_timer_cancel(&t->timer);
	llmgw_ready_clear(&t->ready);
	if (t->easy == NULL)
		return;

	llmgw_curl_enter(&guard);
	curl_multi_remove_handle(llmgw_loop_multi(), t->easy);
	if (t->outcome == LLMGW_HTTP_DONE && !t->custom_ca &&
		nidle_handles < MAX_IDLE_HANDLES)
	{
		/* what it points to goes with the transfer */
		curl_easy_setopt(t->easy, CURLOPT_ERRORBUFFER, NULL);
		curl_easy_setopt(t->easy, CURLOPT_PRIVATE, NULL);
		curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, NULL);
		idle_handles[nidle_handles++] = t->easy;
	}
	else
		curl_easy_cleanup(t->easy);
	t->easy = NULL;
	llmgw_curl_leave(&guard);
}

/* The context goes: give back what is not palloc'd. */
static void
on_reset(void *arg)
{
	LlmTransfer *t = arg;

	llmgw_http_stop(t);
	curl_slist_free_all(t->slist);
	free(t->data);
	free(t->header_buf);
	t->slist = NULL;
	t->data = t->header_buf = NULL;
}

static bool
add_header(LlmTransfer *t, const char *line)
{
	struct curl_slist *longer = curl_slist_append(t->slist, line);

	if (longer == NULL)
		return false;
	t->slist = longer;
	return true;
}

#define SET(option, value) \
	if (rc == CURLE_OK) rc = curl_easy_setopt(h, option, value)

/* The options of a new handle that no request changes. */
static CURLcode
set_constant_options(CURL *h)
{
	CURLcode	rc = CURLE_OK;

	SET(CURLOPT_WRITEFUNCTION, on_body);
	SET(CURLOPT_HEADERFUNCTION, on_header);
	SET(CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
	SET(CURLOPT_CLOSESOCKETFUNCTION, llmgw_loop_close_socket);
	SET(CURLOPT_PREREQFUNCTION, on_request);

	/* no alarm(), and no waiting for a resolver's thread on cancel */
	SET(CURLOPT_NOSIGNAL, 1L);
	SET(CURLOPT_QUICK_EXIT, 1L);

	/* a redirect would carry the key to a host that nobody configured */
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	SET(LLMGW_CURL_PROTOCOLS, LLMGW_CURL_PROTOCOLS_VALUE);
	SET(CURLOPT_NOPROXY, "");
	SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_2TLS);
	SET(CURLOPT_TCP_KEEPALIVE, 1L);

	/* asks for no compression, and undoes what comes all the same */
	SET(CURLOPT_ACCEPT_ENCODING, "identity");
	return rc;
}

/* The options that belong to this request: all of them, each time. */
static CURLcode
set_request_options(LlmTransfer *t, const LlmHttpRequest *r)
{
	CURL	   *h = t->easy;
	CURLcode	rc = CURLE_OK;

	for (int i = 0; i < r->nheaders; i++)
		if (!add_header(t, r->headers[i]))
			return CURLE_OUT_OF_MEMORY;

	/*
	 * Without this curl asks before it sends a large body, and waits a second
	 * for servers that do not answer.
	 */
	if (!add_header(t, "Expect:"))
		return CURLE_OUT_OF_MEMORY;

	SET(CURLOPT_URL, r->url);
	SET(CURLOPT_PRIVATE, &t->done);
	SET(CURLOPT_ERRORBUFFER, t->message);
	SET(CURLOPT_HTTPHEADER, t->slist);
	SET(CURLOPT_WRITEDATA, t);
	SET(CURLOPT_HEADERDATA, t);
	SET(CURLOPT_OPENSOCKETDATA, t);
	SET(CURLOPT_PREREQDATA, t);
	SET(CURLOPT_PROXY, r->proxy ? r->proxy : "");
	SET(CURLOPT_FRESH_CONNECT, r->fresh ? 1L : 0L);
	SET(CURLOPT_FORBID_REUSE, r->last ? 1L : 0L);
	SET(CURLOPT_PIPEWAIT, pg_strncasecmp(r->url, "https:", 6) == 0 ? 1L : 0L);
	SET(CURLOPT_CONNECTTIMEOUT_MS, r->connect_ms > 0 ? (long) r->connect_ms :
		(long) INT_MAX);
	if (r->ca_file != NULL)
	{
		/* there is no way back to the default: such a handle is not kept */
		t->custom_ca = true;
		SET(CURLOPT_CAINFO, r->ca_file);
	}
	if (r->body != NULL)
	{
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) r->body_len);
		SET(CURLOPT_POSTFIELDS, r->body);
	}
	else
		SET(CURLOPT_HTTPGET, 1L);
	return rc;
}

#undef SET

/* Hands the request to curl.  False: could not, for lack of memory. */
static bool
start_curl(LlmTransfer *t, const LlmHttpRequest *r)
{
	CURLM	   *multi = llmgw_loop_multi();
	LlmCurlGuard guard;
	CURLcode	rc = CURLE_OK;
	bool		ok;

	llmgw_curl_enter(&guard);
	if (nidle_handles > 0)
		t->easy = idle_handles[--nidle_handles];
	else if ((t->easy = curl_easy_init()) == NULL)
		rc = CURLE_OUT_OF_MEMORY;
	else
		rc = set_constant_options(t->easy);
	if (rc == CURLE_OK)
		rc = set_request_options(t, r);
	if (rc != CURLE_OK)
		strlcpy(t->message, curl_easy_strerror(rc), sizeof(t->message));
	ok = rc == CURLE_OK && curl_multi_add_handle(multi, t->easy) == CURLM_OK;
	llmgw_curl_leave(&guard);
	return ok;
}

/* Prepares a replay: its headers are there from the start. */
static bool
start_replay(LlmTransfer *t)
{
	char		line[256];
	int			n;

	t->requested_at = t->started;
	t->http_status = t->replay->http_status;
	n = snprintf(line, sizeof(line), "content-type: %s\n%s",
				 t->replay->content_type,
				 t->replay->headers ? t->replay->headers : "");
	if (!append(&t->header_buf, &t->header_len, &t->header_size, line,
				Min(n, (int) sizeof(line) - 1)))
		return false;
	t->headers = t->header_buf;
	if (t->replay->nsteps == 0 && t->replay->end != LLMGW_REPLAY_STALL)
		replay(t, t->started);
	return true;
}

LlmTransfer *
llmgw_http_start(MemoryContext context, const LlmHttpRequest *request,
				 dlist_head *ready_list, void *owner)
{
	LlmTransfer *t = MemoryContextAllocZero(context, sizeof(LlmTransfer));
	bool		ok;

	(void) llmgw_loop_multi();
	t->reset.func = on_reset;
	t->reset.arg = t;
	MemoryContextRegisterResetCallback(context, &t->reset);

	t->headers = "";
	t->done.fn = on_done;
	t->ready.list = ready_list;
	t->ready.owner = owner;
	t->timer.fn = on_timer;
	t->replay = request->replay;
	t->max_response = request->max_response;
	t->started = llmgw_now();
	t->first_byte_by = llmgw_after_ms(t->started, request->first_byte_ms);
	t->ended_by = llmgw_after_ms(t->started, request->total_ms);
	t->idle_us = (int64) request->idle_ms * 1000;

	ok = t->replay ? start_replay(t) : start_curl(t, request);
	if (!ok)
	{
		if (t->message[0] == '\0')
			strlcpy(t->message, "out of memory", sizeof(t->message));
		set_outcome(t, LLMGW_HTTP_FAILED_INTERNAL);
	}
	if (t->outcome == LLMGW_HTTP_RUNNING)
		llmgw_timer_set(&t->timer, Min(next_deadline(t), next_replay(t)));
	return t;
}

void
llmgw_http_consume(LlmTransfer *t)
{
	t->len = 0;
	if (t->size > MAX_KEPT_BUFFER)
	{
		free(t->data);
		t->data = NULL;
		t->size = 0;
	}
}
