# All states of the limiter (t/model/limiter_model.c), and mistakes that have to be found.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use ModelTest qw(check_model);
use Test::More;

check_model('limiter',
	# limits
	[ 'one call too many at a time', 'in_flight >= limits->concurrency', 'in_flight > limits->concurrency' ],
	[ 'one call too few at a time', 'in_flight >= limits->concurrency', 'in_flight + 1 >= limits->concurrency' ],
	[ 'one request too many', 'limits->requests - 1, now', 'limits->requests, now' ],
	[ 'tokens of the call itself do not count', 'Max(limits->tokens - tokens, 0)', 'limits->tokens' ],
	[ 'a call of more tokens than the limit waits for ever', 'Max(limits->tokens - tokens, 0)', 'limits->tokens - tokens' ],
	[ 'the oldest second is left out', 'seconds[i].second + LLMGW_LIMITER_SECONDS > second)', 'seconds[i].second + LLMGW_LIMITER_SECONDS - 1 > second)' ],
	[ 'the moment of room is a second late', 'return leaves * SECOND', 'return (leaves + 1) * SECOND' ],
	[ 'the moment of room is a second early', 'return leaves * SECOND', 'return (leaves - 1) * SECOND' ],
	[ 'the moment of room is that of another second', '(second + i) % LLMGW_LIMITER_SECONDS', '(second + i + 1) % LLMGW_LIMITER_SECONDS' ],
	[ 'of two limits the one that ends first counts', "if (at > *until)\n\t\t{\n\t\t\tobstacle = LLMGW_OBSTACLE_TOKENS", "if (at > 0)\n\t\t{\n\t\t\tobstacle = LLMGW_OBSTACLE_TOKENS" ],
	[ 'a second of the last minute is added to', 'seconds[i].second < second', 'seconds[i].second == 0' ],
	[ 'what a call used is booked in another minute', 'tokens >= 0 && limiter->seconds[i].second == hold->second', 'tokens >= 0' ],
	[ 'what a call used is not booked', 'tokens += tokens - hold->tokens', 'tokens += 0' ],
	[ 'an abandoned call has used minus one token', 'tokens >= 0 && limiter', 'limiter' ],
	[ 'the end of a call is not noticed', "limiter->in_flight--;", '(void) 0;' ],

	# pauses
	[ 'there is no pause', 'limiter->limited_until > now', 'false' ],
	[ 'the earlier pause counts', "if (until <= limiter->limited_until)\n\t\treturn;", '' ],
	[ 'all go at once after a pause', 'limiter->easing = 1;', 'limiter->easing = 0;' ],
	[ 'easing goes on for ever', '&&' . "\n\t\tnow < limiter->limited_until + LLMGW_EASING_US", '' ],
	[ 'easing does not end with successes', 'limiter->easing * 2 : 0', 'limiter->easing : 0' ],
	[ 'failures end easing, too', 'if (success && limiter->easing > 0)', 'if (limiter->easing > 0)' ],
	[ 'calls of before the pause end easing', 'if (hold->pauses == limiter->pauses)', 'if (true)' ],
	[ 'calls of before the pause are counted',
		"easing = 1;\n\tlimiter->eased = 0;", 'easing = 1;' ],

	# the queue
	[ 'newcomers do not queue', 'waiters[limiter->head].key <= key', 'false' ],
	[ 'newcomers are served before their equals', 'waiters[limiter->head].key <= key', 'waiters[limiter->head].key < key' ],
	[ 'who has come first is the last', 'waiters[before].key > key)', 'waiters[before].key < key)' ],
	[ 'ranks do not count', 'waiters[before].key > key)', 'false)' ],
	[ 'an equal is put before its equals', 'waiters[before].key > key)', 'waiters[before].key >= key)' ],
	[ 'who has room stays in the queue', 'if (waiter != LLMGW_NO_WAITER && waiters[waiter].queued)', 'if (false)' ],
	[ 'the end of the queue is not noted', 'limiter->tail = w->prev;', '(void) 0;' ],
	[ 'a call waits for its own session', '!(alone && (', '!(false && (' ],
	[ 'a call of a session with a cursor goes before all others', '(concurrency_used_up(limiter, limits) || easing_used_up(limiter, now))', 'true' ],

	# waking
	[ 'the end of a call wakes nobody', "hold->tokens;\n\twake_head(limiter, waiters, now, wake);", 'hold->tokens;' ],
	[ 'who was served does not wake the next', "&ignored) == LLMGW_OBSTACLE_NONE)", "&ignored) == LLMGW_OBSTACLE_QUEUE)" ],
	[ 'a head that goes wakes nobody', 'if (was_head)', 'if (false)' ],
	[ 'a new head is not told', "limiter->head = waiter;\n\t\twake_head(limiter, waiters, now, wake);", 'limiter->head = waiter;' ],
	[ 'who was told once is not told again', "waiters[waiter].asked_at = now;\n\t\twaiters[waiter].woken_at = 0;", 'waiters[waiter].asked_at = now;' ],
	[ 'a head that was displaced counts as told', 'waiters[w->next].woken_at = 0;', '' ],
	[ 'a sleeper keeps its place', 'now - waiter->woken_at >= LLMGW_HEAD_US', 'false' ],
	[ 'a head loses its place at once', 'now - waiter->woken_at >= LLMGW_HEAD_US', 'true' ],
	[ 'nobody looks after a sleeper', 'if (expected_until(&waiters[limiter->head]) <= now)', 'if (false)' ],
	[ 'a head that is woken while another takes the room is forgotten', "if (*wake == waiter)\n\t\t*wake = LLMGW_NO_WAITER;", '*wake = LLMGW_NO_WAITER;' ],
	[ 'who asks what would be does not see that a place is lost', 'if (head != LLMGW_NO_WAITER && lost_place(&waiters[head], now))', 'if (false)' ],
	[ 'when somebody asks is not noted', 'waiters[waiter].asked_at = now;', '' ]);

done_testing();
