/*-------------------------------------------------------------------------
 *
 * stub.c
 *	  A provider that costs nothing: for benchmarks, so that it is never the
 *	  bottleneck.
 *
 * One thread, one epoll loop, answers prepared in advance.  What a request
 * gets is said by its path, so one server serves every measurement:
 *
 *		/l<ms>/b<bytes>/p<ms>/v1/chat/completions
 *
 * waits that many milliseconds and answers with so many bytes of content (both
 * 0 where left out; 0 bytes: the word "ok").  A request whose body asks to
 * stream gets events of 64 bytes of content, up to 1,000 of them, with a pause
 * of so many milliseconds after the first one; otherwise one JSON object.
 * Request bodies are read and thrown away.
 *
 * Usage: stub [PORT]	prints "PORT n" and serves until its input ends.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS			8192
#define HEAD_SIZE		16384
#define MAX_ANSWERS		64
#define EVENT_BYTES		64
#define MAX_EVENTS		1000

typedef struct Answer
{
	long		bytes;
	bool		stream;
	char	   *data;
	size_t		len;
	size_t		first;			/* of that, head and first event */
} Answer;

/* A connection: its request while it is read, its answer while it is sent. */
typedef struct Conn
{
	char		head[HEAD_SIZE];
	size_t		head_len;
	size_t		body_left;
	bool		in_body;
	bool		stream;
	long		latency_ms;
	long		pause_ms;
	long		bytes;
	const Answer *answer;
	size_t		sent;
	uint32_t	generation;		/* of the descriptor: a timer may come late */
} Conn;

/* Answers that wait, earliest first: a binary heap. */
typedef struct Timer
{
	int64_t		at;
	int			fd;
	uint32_t	generation;
} Timer;

static Conn *conns[MAX_FDS];
static uint32_t generations[MAX_FDS];
static Timer timers[MAX_FDS];
static int	ntimers = 0;
static Answer answers[MAX_ANSWERS];
static int	nanswers = 0;
static int	epoll_fd;

static void
die(const char *what)
{
	fprintf(stderr, "stub: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * INT64_C(1000000) + ts.tv_nsec / 1000;
}

static void
swap_timers(int a, int b)
{
	Timer		t = timers[a];

	timers[a] = timers[b];
	timers[b] = t;
}

static void
push_timer(Timer t)
{
	int			i = ntimers++;

	timers[i] = t;
	for (; i > 0 && timers[(i - 1) / 2].at > timers[i].at; i = (i - 1) / 2)
		swap_timers(i, (i - 1) / 2);
}

static Timer
pop_timer(void)
{
	Timer		first = timers[0];
	int			i = 0;

	timers[0] = timers[--ntimers];
	for (;;)
	{
		int			least = i;

		for (int child = 2 * i + 1; child <= 2 * i + 2; child++)
			if (child < ntimers && timers[child].at < timers[least].at)
				least = child;
		if (least == i)
			return first;
		swap_timers(i, least);
		i = least;
	}
}

/* The whole response for so many bytes of content, made once. */
static const Answer *
find_answer(long bytes, bool stream)
{
	Answer	   *a;
	FILE	   *body;
	char	   *text = NULL;
	size_t		len = 0;
	size_t		first = 0;
	FILE	   *out;
	long		left = bytes > 0 ? bytes : 2;

	for (int i = 0; i < nanswers; i++)
		if (answers[i].bytes == bytes && answers[i].stream == stream)
			return &answers[i];
	if (nanswers == MAX_ANSWERS)
		nanswers = 0;
	a = &answers[nanswers++];
	a->bytes = bytes;
	a->stream = stream;

	body = open_memstream(&text, &len);
	if (stream)
	{
		long		step = left / MAX_EVENTS > EVENT_BYTES ? left / MAX_EVENTS + 1 : EVENT_BYTES;

		for (long n; left > 0; left -= n)
		{
			n = left < step ? left : step;
			fputs("data: {\"id\":\"stub\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"", body);
			if (bytes == 0)
				fputs("ok", body);
			else
				for (long i = 0; i < n; i++)
					fputc('a' + i % 26, body);
			fputs("\"},\"finish_reason\":null}]}\n\n", body);
			if (first == 0)
			{
				fflush(body);
				first = len;
			}
		}
		fputs("data: {\"id\":\"stub\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
			  "data: {\"id\":\"stub\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"stub\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"total_tokens\":6}}\n\n"
			  "data: [DONE]\n\n", body);
	}
	else
	{
		fputs("{\"id\":\"stub\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"stub\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"", body);
		if (bytes == 0)
			fputs("ok", body);
		else
			for (long i = 0; i < bytes; i++)
				fputc('a' + i % 26, body);
		fputs("\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1,\"total_tokens\":6}}", body);
	}
	fclose(body);

	free(a->data);
	a->data = NULL;
	out = open_memstream(&a->data, &a->len);
	fprintf(out, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n",
			stream ? "text/event-stream" : "application/json", len);
	fflush(out);
	a->first = a->len + first;
	fwrite(text, 1, len, out);
	fclose(out);
	free(text);
	return a;
}

static void
drop(int fd)
{
	free(conns[fd]);
	conns[fd] = NULL;
	generations[fd]++;
	close(fd);
}

static void
watch(int fd, uint32_t events)
{
	struct epoll_event ev = {.events = events,.data.fd = fd};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &ev) != 0)
		die("epoll_ctl");
}

static void
send_answer(int fd)
{
	Conn	   *c = conns[fd];
	bool		pauses = c->pause_ms > 0 && c->stream && c->sent < c->answer->first;
	size_t		end = pauses ? c->answer->first : c->answer->len;

	while (c->sent < end)
	{
		ssize_t		n = send(fd, c->answer->data + c->sent, end - c->sent, MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN)
		{
			watch(fd, EPOLLOUT);
			return;
		}
		if (n <= 0)
		{
			drop(fd);
			return;
		}
		c->sent += n;
	}
	if (pauses)
	{
		push_timer((Timer) {now_us() + c->pause_ms * 1000, fd, c->generation});
		return;
	}
	if (c->sent > 65536)
		watch(fd, EPOLLIN);
	c->answer = NULL;
}

/* The request is there: answer now, or when its time has come. */
static void
respond(int fd)
{
	Conn	   *c = conns[fd];

	c->answer = find_answer(c->bytes, c->stream);
	c->sent = 0;
	c->head_len = 0;
	c->in_body = false;
	if (c->latency_ms == 0)
		send_answer(fd);
	else
		push_timer((Timer) {now_us() + c->latency_ms * 1000, fd, c->generation});
}

/* Reads path and length; false when the request makes no sense. */
static bool
parse_head(Conn *c, const char *end)
{
	char	   *p;

	c->latency_ms = c->bytes = c->pause_ms = 0;
	if ((p = strstr(c->head, "/l")) != NULL && p < strchr(c->head, '\n'))
		c->latency_ms = atol(p + 2);
	if ((p = strstr(c->head, "/b")) != NULL && p < strchr(c->head, '\n'))
		c->bytes = atol(p + 2);
	if ((p = strstr(c->head, "/p")) != NULL && p < strchr(c->head, '\n'))
		c->pause_ms = atol(p + 2);
	p = strcasestr(c->head, "\ncontent-length:");
	c->body_left = p && p < end ? strtoul(p + 16, NULL, 10) : 0;
	c->stream = false;
	c->in_body = true;
	return c->latency_ms >= 0 && c->bytes >= 0 && c->pause_ms >= 0;
}

static void
take_body(Conn *c, const char *bytes, size_t n)
{
	if (!c->stream && memmem(bytes, n, "\"stream\":true", 13) != NULL)
		c->stream = true;
	if (!c->stream && memmem(bytes, n, "\"stream\": true", 14) != NULL)
		c->stream = true;
	c->body_left -= n < c->body_left ? n : c->body_left;
}

static void
receive(int fd)
{
	static char buf[1 << 20];
	Conn	   *c = conns[fd];
	ssize_t		n = recv(fd, buf, sizeof(buf), 0);

	if (n <= 0)
	{
		if (n == 0 || errno != EAGAIN)
			drop(fd);
		return;
	}
	if (!c->in_body)
	{
		size_t		old = c->head_len;
		size_t		take = (size_t) n < HEAD_SIZE - 1 - old ? (size_t) n : HEAD_SIZE - 1 - old;
		char	   *end;

		memcpy(c->head + old, buf, take);
		c->head_len += take;
		c->head[c->head_len] = '\0';
		end = strstr(c->head, "\r\n\r\n");
		if (end == NULL)
		{
			if (c->head_len == HEAD_SIZE - 1)
				drop(fd);
			return;
		}
		if (!parse_head(c, end))
		{
			drop(fd);
			return;
		}
		/* what followed the head in this piece is body */
		{
			size_t		used = end + 4 - c->head - old;

			take_body(c, buf + used, n - used);
		}
	}
	else
		take_body(c, buf, n);
	if (c->body_left == 0)
		respond(fd);
}

static void
accept_all(int listener)
{
	int			fd;
	int			one = 1;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
	{
		struct epoll_event ev = {.events = EPOLLIN,.data.fd = fd};

		if (fd >= MAX_FDS || (conns[fd] = calloc(1, sizeof(Conn))) == NULL)
		{
			close(fd);
			continue;
		}
		conns[fd]->generation = generations[fd];
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) != 0)
			die("epoll_ctl");
	}
}

int
main(int argc, char **argv)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,.sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
	socklen_t	len = sizeof(addr);
	struct rlimit limit;
	struct epoll_event ev = {.events = EPOLLIN};
	struct epoll_event events[256];
	int			listener;
	int			one = 1;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	signal(SIGPIPE, SIG_IGN);

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (listener < 0 || bind(listener, (struct sockaddr *) &addr, sizeof(addr)) != 0 ||
		listen(listener, 4096) != 0 ||
		getsockname(listener, (struct sockaddr *) &addr, &len) != 0)
		die("listen");
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	ev.data.fd = listener;
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &ev);
	ev.data.fd = STDIN_FILENO;
	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &ev);
	printf("PORT %d\n", ntohs(addr.sin_port));
	fflush(stdout);

	for (;;)
	{
		int			timeout = -1;
		int			n;

		if (ntimers > 0)
		{
			int64_t		wait = timers[0].at - now_us();

			timeout = wait <= 0 ? 0 : (int) ((wait + 999) / 1000);
		}
		n = epoll_wait(epoll_fd, events, 256, timeout);
		for (int i = 0; i < n; i++)
		{
			int			fd = events[i].data.fd;

			if (fd == STDIN_FILENO)
			{
				char		c;

				if (read(fd, &c, 1) <= 0)
					return 0;
			}
			else if (fd == listener)
				accept_all(fd);
			else if (conns[fd] == NULL)
				continue;
			else if (events[i].events & EPOLLOUT)
				send_answer(fd);
			else
				receive(fd);
		}
		while (ntimers > 0 && timers[0].at <= now_us())
		{
			Timer		t = pop_timer();

			if (conns[t.fd] != NULL && conns[t.fd]->generation == t.generation)
				send_answer(t.fd);
		}
	}
}
