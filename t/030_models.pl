# All states of the circuit breaker (t/model/breaker_model.c), and mistakes that have to be found.
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use ModelTest qw(check_model);
use Test::More;

check_model('breaker',
	[ 'a stale result counts', 'pass->epoch != breaker->epoch', 'false' ],
	[ 'a replaced probe counts', 'pass->probe != 0 && pass->probe != breaker->probe', 'false' ],
	[ 'closing leaves the epoch as it is',
		"LLMGW_BREAKER_OUTAGE;\n\tbreaker->epoch++;", 'LLMGW_BREAKER_OUTAGE;' ],
	[ 'opening leaves the epoch as it is', "reason = reason;\n\tbreaker->epoch++;", 'reason = reason;' ],
	[ 'one failure more is needed', 'nfailures < settings->failures', 'nfailures <= settings->failures' ],
	[ 'the window is shorter', 'first <= settings->window_us', 'first < settings->window_us' ],
	[ 'there is no window', 'now - first <= settings->window_us', 'true' ],
	[ 'the ring is read one place off', 'nfailures - remembered)', 'nfailures - remembered + 1)' ],
	[ 'more failures are looked for than are remembered',
		'Min(settings->failures, LLMGW_BREAKER_MEMORY)', 'settings->failures' ],
	[ 'cool-downs do not grow', 'settings->cooldown_us << doublings', 'settings->cooldown_us' ],
	[ 'cool-downs grow for ever', 'settings->cooldown_us > (longest >> doublings)', 'false' ],
	[ 'openings are not counted', 'breaker->openings++', '(void) 0' ],
	[ 'Retry-After is not waited for', 'retry_after_us)));', '0)));' ],
	[ 'an earlier deadline counts',
		'breaker->probe_at = Max(breaker->probe_at, until)', 'breaker->probe_at = until' ],
	[ 'Retry-After of a call by force is forgotten',
		'if (retry_after_us > 0)', 'if (probe && retry_after_us > 0)' ],
	[ 'a call by force opens it',
		'outcome == LLMGW_OUTCOME_FAILURE && probe', 'outcome == LLMGW_OUTCOME_FAILURE' ],
	[ 'a key that is refused late does not count',
		'outcome == LLMGW_OUTCOME_AUTH)', 'outcome == LLMGW_OUTCOME_AUTH && pass->epoch == breaker->epoch)' ],
	[ 'what is parked is parked for less', 'breaker->probe_at >= until', 'false' ],
	[ 'a sign of life is taken for credit',
		'outcome == LLMGW_OUTCOME_ALIVE && !is_parked(breaker)', 'outcome == LLMGW_OUTCOME_ALIVE' ],
	[ 'the worker probes for credit', 'who == LLMGW_ASK_PROBE ? LLMGW_NEVER : at', 'at' ],
	[ 'calls do not wait for the worker', 'later(at, LLMGW_PROBE_GRACE)', 'at' ],
	[ 'a lost probe stays the probe', 'Max(at, breaker->probe_until)', 'LLMGW_NEVER' ],
	[ 'a probe does not keep others off', 'Max(at, breaker->probe_until)', 'at' ],
	[ 'a new key is not looked at', 'mark != breaker->parked_mark', 'false' ],
	[ 'to peek changes something', "if (!peek)\n\t\t\tclose_it", "if (true)\n\t\t\tclose_it" ],
	[ 'what is parked can be forced',
		'who == LLMGW_ASK_FORCE && !is_parked(breaker)', 'who == LLMGW_ASK_FORCE' ],
	[ 'a cancelled probe stays the probe', "if (probe)\n\t\t{", "if (false)\n\t\t{" ],
	[ 'a failure is not forgotten', "breaker->nfailures = 0;\n\t\tbreaker->openings", 'breaker->openings' ],
	[ 'a success does not end a series of openings',
		"\t\tbreaker->openings = 0;\n\t}\n\telse", "\t}\n\telse" ],
	[ 'results undo what an operator did',
		"if (is_stopped_by_operator(breaker))\n\t\treturn;\n\tif (outcome", 'if (outcome' ]);

done_testing();
