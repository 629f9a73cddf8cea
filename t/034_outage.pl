# An outage that no user notices: each way in which a provider fails, with one fallback model behind
# it. Who answers, how often each provider is asked, how long that takes, and what an operator sees.
use strict;
use warnings;

use FindBin;
use POSIX ();
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(error_ok literal row rows silent_listener wait_until);

my $gw = LlmGateway->new(
	name => 'outage',
	conf => "llm_gateway.worker_idle_timeout = 0\n");
my $fake = $gw->fake;
my $s = $gw->session;

my %ordinary = (breaker_failures => 3);
$gw->add_provider('primary', $fake->url('/p'), \%ordinary);
$gw->add_provider('backup', $fake->url('/b'), \%ordinary);
$gw->add_models('primary', 'big', { context_window => 1000, input_price => 1, output_price => 2 });
$gw->add_models('backup', 'small', { context_window => 4000, input_price => 1, output_price => 2 });
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('big', 1), ('small', 2)});
$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 50)');

# Everybody is well again, and nobody remembers.
sub fresh
{
	$fake->reset;
	$gw->sql(q{SELECT llm_breaker_reset(name) FROM llm_providers;});
	return;
}

# How often each provider was asked for an answer since the last fresh().
sub asked
{
	my %count = (p => 0, b => 0);
	for my $request (@{ $fake->journal })
	{
		next unless $request->{method} eq 'POST';
		$count{$1}++ if $request->{path} =~ m{^/(\w+)/};
	}
	return \%count;
}

# What a call gives while the primary behaves as told; the numbers are attempts at each.
sub case_ok
{
	my ($name, $steps, %want) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	fresh();
	$fake->script({ model => 'big', path => '/p' }, @$steps);
	my $began = time;
	my $row = row($s, $want{query} // q{SELECT * FROM llm_complete_detail('Hello')});
	my $took = time - $began;
	my $asked = asked();
	is($asked->{p}, $want{primary}, "$name: attempts at the primary");
	is($asked->{b}, $want{backup}, "$name: attempts at the fallback");
	is($row->{attempts}, $want{primary} + $want{backup}, "$name: attempts, as told");
	if ($want{error})
	{
		is($row->{error_class}, $want{error}, "$name: error class");
		is($row->{response}, undef, "$name: no answer");
		return $row;
	}
	is($row->{error_class}, undef, "$name: no error");
	is($row->{response}, 'echo: Hello', "$name: the whole answer, of one model");
	is($row->{provider}, $want{backup} ? 'backup' : 'primary', "$name: who answered");
	is($row->{model}, $want{backup} ? 'small' : 'big', "$name: with which model");
	is($row->{fallback}, $want{backup} ? 'true' : 'false', "$name: fallback");
	ok($took >= $want{at_least}, "$name: it was waited for") if $want{at_least};
	my ($charged) = rows($s, "SELECT count(*) AS n, sum(cost_usd) AS usd FROM llm_attempts WHERE request_id = $row->{request_id}");
	is($charged->{n}, $row->{attempts}, "$name: each attempt is in the ledger, once");
	is($charged->{usd} + 0, $row->{cost_usd} + 0, "$name: with what it cost");
	return $row;
}

# The list of what may happen

case_ok('a rate limit, once',
	[ { behaviour => 'status-429', headers => { 'retry-after' => '1' } } ],
	primary => 2, backup => 0, at_least => 0.95);
case_ok('a rate limit without a word of when',
	[ { behaviour => 'status-429', headers => { 'retry-after' => undef } } ],
	primary => 2, backup => 0);
case_ok('a rate limit for ever', [ { behaviour => 'status-429', headers => { 'retry-after' => undef }, repeat => 'forever' } ],
	primary => 2, backup => 1);
case_ok('a rate limit for too long', [ { behaviour => 'status-429', headers => { 'retry-after' => '3600' }, repeat => 'forever' } ],
	primary => 1, backup => 1);

# its date is by the provider's clock, which may be wrong, or ours may be
sub date { return POSIX::strftime('%a, %d %b %Y %H:%M:%S GMT', gmtime(time + $_[0])) }
for my $clock (0, -7200, 7200)
{
	case_ok("a rate limit until a moment of a clock that is $clock s off",
		[ { behaviour => 'status-429', headers => { date => date($clock), 'retry-after' => date($clock + 2) } } ],
		primary => 2, backup => 0, at_least => 0.9);
}
for my $headers ({ 'retry-after' => '0.9' }, { 'retry-after-ms' => '900', 'retry-after' => '3600' }, { 'x-ms-retry-after-ms' => '900', 'retry-after' => undef },
	{ 'retry-after' => undef, 'x-ratelimit-remaining-requests' => '0', 'x-ratelimit-reset-requests' => '900ms' })
{
	case_ok('a rate limit, told by ' . join(' and ', map { "$_: " . ($headers->{$_} // 'none') } sort keys %$headers),
		[ { behaviour => 'status-429', headers => $headers } ],
		primary => 2, backup => 0, at_least => 0.85);
}
case_ok("a rate limit until nobody knows when: $_",
	[ { behaviour => 'status-429', headers => { 'retry-after' => $_ } } ],
	primary => 2, backup => 0)
  for 'NaN', '-30', 'soon';
case_ok('a rate limit for too long, in figures that no clock has', [ { behaviour => 'status-429', headers => { 'retry-after' => '9' x 30 } } ],
	primary => 1, backup => 1);
case_ok('500, once', ['status-500'], primary => 2, backup => 0);
case_ok('500 for ever', [ { behaviour => 'status-500', repeat => 'forever' } ], primary => 2, backup => 1);
case_ok('503 for ever', [ { behaviour => 'status-503', repeat => 'forever' } ], primary => 2, backup => 1);
case_ok('529, once', ['status-529'], primary => 2, backup => 0);
case_ok('a reset before the headers', ['reset-before'], primary => 2, backup => 0);
case_ok('a reset before the headers for ever', [ { behaviour => 'reset-before', repeat => 'forever' } ], primary => 2, backup => 1);
case_ok('a cut after two thirds', [ { behaviour => 'cut', headers => { connection => 'close' } } ], primary => 2, backup => 0);
case_ok('a cut after two thirds for ever', [ { behaviour => 'cut', headers => { connection => 'close' }, repeat => 'forever' } ], primary => 2, backup => 1);
case_ok('a malformed event', [ { behaviour => 'malformed', repeat => 'forever' } ], primary => 2, backup => 1);
case_ok('no [DONE], but all else', ['no-done'], primary => 1, backup => 0);
case_ok('no credit left', [ { behaviour => 'error-body-openai-429-quota', repeat => 'forever' } ], primary => 1, backup => 1);
case_ok('a key that is refused', [ { behaviour => 'status-401', repeat => 'forever' } ], primary => 1, backup => 1);
case_ok('a model that is not there', [ { behaviour => 'status-404', repeat => 'forever' } ], primary => 1, backup => 1);
case_ok('a prompt too long', [ { behaviour => 'context-length', repeat => 'forever' } ], primary => 1, backup => 1);
case_ok('a refusal', [ { behaviour => 'content-policy', repeat => 'forever' } ], primary => 1, backup => 0, error => 'content_policy');
case_ok('a refusal in an answer', [ { behaviour => 'content-policy-200', repeat => 'forever' } ], primary => 1, backup => 0, error => 'content_policy');
unlike($s->value(q{SELECT coalesce(last_error, '') FROM llm_provider_status WHERE provider = 'primary'}), qr/content_policy/,
	'what a prompt was blamed for, and may quote it, is for its caller only');
case_ok('a request that is refused', [ { behaviour => 'status-400', repeat => 'forever' } ], primary => 1, backup => 0, error => 'invalid_request');

# Silence: no more attempts than the policy allows

$gw->sql(q{UPDATE llm_providers SET first_byte_timeout = '300 ms', idle_timeout = '300 ms' WHERE name = 'primary'});
case_ok('silence', [ { behaviour => 'silent', repeat => 'forever' } ], primary => 2, backup => 1, at_least => 0.55);
case_ok('the first token late', [ { behaviour => 'slow-2000', repeat => 'forever' } ], primary => 2, backup => 1, at_least => 0.55);
case_ok('a stalled stream', [ { behaviour => 'stall', repeat => 'forever' } ], primary => 2, backup => 1, at_least => 0.55);
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'timeout'});
case_ok('silence without a retry', [ { behaviour => 'silent', repeat => 'forever' } ], primary => 1, backup => 1, at_least => 0.25);
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'timeout'});
$gw->sql(q{INSERT INTO llm_error_policies (error_class, provider, max_retries, backoff_ms, trips_breaker) VALUES ('timeout', 'primary', 3, 10, true)});
case_ok('silence with three', [ { behaviour => 'silent', repeat => 'forever' } ], primary => 3, backup => 1, at_least => 0.8);
$gw->sql(q{UPDATE llm_providers SET breaker_failures = 100 WHERE name = 'primary'});
case_ok('silence with three, and a patient breaker', [ { behaviour => 'silent', repeat => 'forever' } ], primary => 4, backup => 1, at_least => 1.1);
$gw->sql(q{DELETE FROM llm_error_policies WHERE provider = 'primary'});
$gw->sql(q{UPDATE llm_providers SET breaker_failures = 3, first_byte_timeout = '30 s', idle_timeout = '30 s' WHERE name = 'primary'});

# Policies are rows: also per provider, from the next call on

$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'server_error'});
case_ok('no retry', [ { behaviour => 'status-500', repeat => 'forever' } ], primary => 1, backup => 1);
$gw->sql(q{INSERT INTO llm_error_policies (error_class, provider, max_retries, backoff_ms, fallback, trips_breaker)
	VALUES ('server_error', 'primary', 1, 1, false, true)});
case_ok('no fallback of this provider', [ { behaviour => 'status-500', repeat => 'forever' } ], primary => 2, backup => 0, error => 'server_error');
$gw->sql(q{DELETE FROM llm_error_policies WHERE provider = 'primary'; UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'server_error'});
$gw->sql(q{UPDATE llm_error_policies SET fallback = true WHERE error_class = 'content_policy'});
case_ok('a refusal that another may answer', [ { behaviour => 'content-policy', repeat => 'forever' } ], primary => 1, backup => 1);
$gw->sql(q{UPDATE llm_error_policies SET fallback = false WHERE error_class = 'content_policy'});

# A fallback's refusal of the request goes on; all that was tried is told

fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'status-500', repeat => 'forever' });
$fake->script({ model => 'small', path => '/b' }, { behaviour => 'status-400', repeat => 'forever' });
error_ok($s->run(q{SELECT llm_complete('Hello')}),
	{ sqlstate => 'LG004', detail => qr{primary/big: server_error.*\nprimary/big: server_error.*\nbackup/small: invalid_request}s },
	'all fail, in different ways');

# A prompt too long goes to a larger context only

$gw->sql(q{UPDATE llm_models SET context_window = 1000 WHERE name = 'small'});
case_ok('a prompt too long for both', [ { behaviour => 'context-length', repeat => 'forever' } ],
	primary => 1, backup => 0, error => 'context_length');
$gw->sql(q{UPDATE llm_models SET context_window = 4000 WHERE name = 'small'});

# The stream: silently before its first row, an error after it

fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'status-500', repeat => 'forever' });
is($s->value(q{SELECT string_agg(t, '') FROM (SELECT llm_stream('Hello') AS t) x}), 'echo: Hello', 'a stream fails over before its first row');
fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'drip-30+cut', repeat => 'forever' });
my $r = $s->run(q{SELECT llm_stream('a rather long text that comes in pieces, many of them, before it is cut')});
ok($r->{sqlstate}, 'a stream that is cut after its first row raises');
is(asked()->{b}, 0, 'and nobody goes on in its place');

# Independent failure domains first

$gw->add_provider('sibling', $fake->url('/s'), { %ordinary, failure_domain => "'primary'" });
$gw->add_models('sibling', 'other');
$gw->sql(q{DELETE FROM llm_routing_rules; INSERT INTO llm_routing_rules (model, rank) VALUES ('big', 1), ('other', 2), ('small', 3)});
fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'status-503', repeat => 'forever' });
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'backup', 'after an outage an independent one is asked first');
$fake->script({ model => 'small', path => '/b' }, { behaviour => 'status-503', repeat => 'forever' });
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'sibling', 'and then the one that shares its fate');
fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'status-404', repeat => 'forever' });
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'sibling', 'not so after an error that is no outage');
$gw->sql(q{DELETE FROM llm_routing_rules; INSERT INTO llm_routing_rules (model, rank) VALUES ('big', 1), ('small', 2);
	DELETE FROM llm_models WHERE provider = 'sibling'; DELETE FROM llm_providers WHERE name = 'sibling'});

# An outage of some seconds, a request every tenth: all are served, few attempts are wasted, and the
# primary is back within its cool-down.

$gw->sql(q{UPDATE llm_providers SET breaker_cooldown = '500 ms' WHERE name = 'primary'});
fresh();
$fake->script({ model => '*', path => '/p' }, { behaviour => 'status-503', repeat => 'forever' });
my %served;
my $wrong = 0;
my $end = time + 4;
while (time < $end)
{
	my $row = row($s, q{SELECT * FROM llm_complete_detail('Hello')});
	$served{ $row->{provider} // 'none' }++;
	$wrong++ if ($row->{response} // '') ne 'echo: Hello';
	sleep 0.1;
}
is($wrong, 0, 'outage: every request has its answer');
is_deeply([ keys %served ], ['backup'], 'outage: from the fallback');
my $wasted = asked()->{p};
cmp_ok($wasted, '<=', 12, "outage: few attempts are wasted ($wasted of $served{backup} requests)");
my $status = row($s, q{SELECT * FROM llm_provider_status WHERE provider = 'primary'});
like($status->{state}, qr/^(open|half_open)$/, 'outage: the breaker is open');
$fake->reset;
my $over = time;
my $answered = '';
while (time < $over + 20 && $answered ne 'primary')
{
	$answered = row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider};
	sleep 0.05;
}
is($answered, 'primary', 'outage over: the primary is back');
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'closed', 'outage over: the breaker is closed');
$gw->drained;
my @events;
ok(
	wait_until(sub {
		@events = map { "$_->{from_state}-$_->{to_state}" }
		  rows($s, q{SELECT from_state, to_state FROM llm_breaker_events WHERE provider = 'primary'
			AND at > (SELECT max(at) - interval '20 s' FROM llm_breaker_events) ORDER BY event_id});
		return "@events" =~ /closed-open( open-half_open half_open-open)* open-half_open half_open-closed$/;
	}), 'outage: the events tell the story') or diag("@events");
cmp_ok($s->value(q{SELECT sum(requests) FROM llm_fallback_report WHERE from_provider = 'primary' AND to_provider = 'backup'}),
	'>', 0, 'the report says who stood in for whom');
cmp_ok($s->value(q{SELECT count(*) FROM llm_requests WHERE operation = 'probe' AND status = 'error' AND provider = 'primary' AND error_class = 'overloaded'}),
	'>', 0, 'probes failed, too');
is($s->value(q{SELECT coalesce(sum(requests), 0) FROM llm_fallback_report WHERE from_provider = 'primary' AND error_class = 'overloaded' AND to_provider IS NULL}),
	$s->value(q{SELECT count(DISTINCT request_id) FROM llm_requests JOIN llm_attempts a USING (request_id)
		WHERE operation <> 'probe' AND status <> 'ok' AND a.provider = 'primary' AND a.error_class = 'overloaded'}),
	'which are nobody\'s requests to the report');
$gw->sql(q{UPDATE llm_providers SET breaker_cooldown = '30 s' WHERE name = 'primary'});

# A provider is silent, and callers have less time than first_byte_timeout: the few that wait for long
# are told so, and the breaker opens for all others. Haste is not the provider's failure.

fresh();
$gw->sql(q{UPDATE llm_providers SET first_byte_timeout = '6 s' WHERE name = 'primary'});
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'silent', repeat => 'forever' });
for my $n (1 .. 4)
{
	error_ok($s->run(q{SELECT llm_complete('Hello', timeout_ms => 300)}), { sqlstate => 'LG003', message => qr/within its 300 ms/ }, "in haste, call $n");
}
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'closed', 'in haste: the breaker is closed');
for my $n (1 .. 3)
{
	error_ok($s->run(q{SELECT llm_complete('Hello', timeout_ms => 2500)}), { sqlstate => 'LG003', message => qr/within its 2500 ms/ }, "silence, call $n");
}
is(row($s, q{SELECT * FROM llm_complete_detail('Hello', timeout_ms => 2500)})->{provider}, 'backup', 'silence: the next call goes to the fallback');
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'open', 'silence: the breaker is open');

# nor is a provider silent that answers others
fresh();
$gw->add_models('primary', 'quick');
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'silent', repeat => 'forever' });
my @hasty = map { $gw->session } 1 .. 3;
$_->start(q{SELECT llm_complete('Hello', timeout_ms => 4000)}) for @hasty;
$gw->wait_in_call($_) for @hasty;
is($s->value(q{SELECT llm_complete('Hello', model => 'primary/quick')}), 'echo: Hello', 'others are answered meanwhile');
is($_->finish->{sqlstate}, 'LG003', 'a time-out') for @hasty;
$_->quit for @hasty;
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'closed', 'others are answered: the breaker is closed');

# nor one whose answers come as a whole, when they are finished
fresh();
$gw->sql(q{UPDATE llm_providers SET options = '{"stream": false}' WHERE name = 'primary'});
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'silent', repeat => 'forever' });
for my $n (1 .. 3)
{
	error_ok($s->run(q{SELECT llm_complete('Hello', timeout_ms => 2500)}), { sqlstate => 'LG003' }, "no stream, call $n");
}
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'closed', 'no stream: the breaker is closed');
$gw->sql(q{UPDATE llm_providers SET options = NULL WHERE name = 'primary'});

# nor one that has not had the request
my $mute = silent_listener();
$gw->add_provider('mute', "https://127.0.0.1:$mute->{port}/v1", { %ordinary, connect_timeout => "'60 s'", first_byte_timeout => "'6 s'", probe => "'none'" });
$gw->add_models('mute', 'm-mute');
for my $n (1 .. 3)
{
	error_ok($s->run(q{SELECT llm_complete('Hello', model => 'm-mute', timeout_ms => 2500)}), { sqlstate => 'LG003' }, "no connection, call $n");
}
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'mute'}), 'closed', 'no connection: the breaker is closed');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'mute' OR name = 'quick'; DELETE FROM llm_providers WHERE name = 'mute'});

# a stream that has begun and takes its time is no failure
fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'drip-500', repeat => 'forever' });
for my $n (1 .. 3)
{
	error_ok($s->run(q{SELECT llm_complete(repeat('long ', 20), timeout_ms => 2500)}), { sqlstate => 'LG003' }, "a long answer, call $n");
}
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'closed', 'a long answer: the breaker is closed');
$gw->sql(q{UPDATE llm_providers SET first_byte_timeout = '30 s' WHERE name = 'primary'});

# All providers down: one error that lists each

fresh();
$fake->script({ model => '*', path => '/p' }, { behaviour => 'status-503', repeat => 'forever' });
$fake->script({ model => '*', path => '/b' }, { behaviour => 'status-500', repeat => 'forever' });
for my $n (1 .. 4)
{
	error_ok($s->run(q{SELECT llm_complete('Hello')}),
		{ sqlstate => 'LG004', detail => $n < 3 ? qr{primary/big: overloaded.*backup/small: server_error}s : qr{primary/big.*backup/small}s },
		"all are down, call $n");
}
cmp_ok(asked()->{p} + asked()->{b}, '<=', 12, 'with open breakers a call costs at most one attempt');
$fake->reset;
is($s->value(q{SELECT llm_complete('Hello')}), 'echo: Hello', 'with all breakers open a call is tried rather than refused');

# Names that are not there, hosts that do not speak TLS

$gw->sql(q{UPDATE llm_providers SET base_url = 'https://no-such-host.invalid/v1' WHERE name = 'primary'});
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'backup', 'DNS gone: the fallback answers');
$gw->sql('UPDATE llm_providers SET base_url = ' . literal('https://127.0.0.1:' . $fake->port . '/p/v1') . q{ WHERE name = 'primary'});
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'backup', 'TLS broken: the fallback answers');
$gw->sql('UPDATE llm_providers SET base_url = ' . literal($fake->url('/p')) . q{ WHERE name = 'primary'});
fresh();

# One key is revoked: only who uses it is parked, until its row changes

$gw->sql('INSERT INTO llm_providers (name, kind, base_url, api_key) VALUES (' . join(', ', "'twin'", "'openai'", literal($fake->url('/t')), "'env:TEST_API_KEY'") . ')');
$gw->add_models('twin', 'big');
$gw->sql(q{UPDATE llm_routing_rules SET model = 'primary/big' WHERE rank = 1; UPDATE llm_routing_rules SET rank = 3 WHERE model = 'small'; INSERT INTO llm_routing_rules (model, rank) VALUES ('twin/big', 2)});
fresh();
$fake->script({ model => '*', path => '/p' }, { behaviour => 'status-401', repeat => 'forever' });
for (1 .. 3)
{
	is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'twin', 'a refused key: the other one answers');
}
is(asked()->{p}, 1, 'and it is not tried again');
$status = row($s, q{SELECT state, reason, next_probe_at - now() BETWEEN '280 s' AND '301 s' AS five_minutes FROM llm_provider_status WHERE provider = 'primary'});
is_deeply($status, { state => 'open', reason => 'auth', five_minutes => 'true' }, 'parked for five minutes');
error_ok($s->run(q{SELECT llm_complete('Hello', model => 'primary/big')}), { sqlstate => 'LG012', message => qr/parked for \d+ s: the key is refused/, hint => qr/SELECT llm_breaker_reset\('primary'\);/ }, 'a pinned model is refused meanwhile');
$fake->reset;
$gw->sql(q{UPDATE llm_providers SET api_key = api_key WHERE name = 'primary'});
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'primary', 'until its row is written');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'twin'; DELETE FROM llm_routing_rules WHERE rank = 2 AND model = 'twin/big'; DELETE FROM llm_providers WHERE name = 'twin'});

# The server restarts in the middle of an outage: it starts with closed breakers, and learns again

fresh();
$fake->script({ model => '*', path => '/p' }, { behaviour => 'status-503', repeat => 'forever' });
$s->run(q{SELECT llm_complete('Hello')}) for 1 .. 3;
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'open', 'an outage');
$_->quit for $s, delete $gw->{admin};
$gw->node->restart;
$s = $gw->session;
is($s->value(q{SELECT llm_complete('Hello')}), 'echo: Hello', 'after a restart: served');
$s->run(q{SELECT llm_complete('Hello')}) for 1 .. 2;
is($s->value(q{SELECT state FROM llm_provider_status WHERE provider = 'primary'}), 'open', 'after a restart: open again');

# The configuration changes in the middle of a call: it goes on as it began

fresh();
$fake->script({ model => 'big', path => '/p' }, { behaviour => 'slow-4000', repeat => 1 });
$s->start(q{SELECT * FROM llm_complete_detail('Hello')});
$gw->wait_in_call($s);
$gw->sql(q{UPDATE llm_providers SET enabled = false WHERE name = 'primary'; DELETE FROM llm_models WHERE name = 'big'});
like($s->finish->{out}, qr/echo: Hello\|primary\|big/, 'a call under way is not disturbed');
is(row($s, q{SELECT * FROM llm_complete_detail('Hello')})->{provider}, 'backup', 'the next one knows');
is($s->value(q{SELECT sum(in_flight) FROM llm_provider_status}), '0', 'nothing is left in flight');

$gw->no_crash_ok;
done_testing;
