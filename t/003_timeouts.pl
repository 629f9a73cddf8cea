# Time limits: of each phase of an attempt, of a whole call, and of the statement.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(error_ok full_listener literal silent_listener);

my $gw = LlmGateway->new(name => 'timeouts');
my $fake = $gw->fake;
my $s = $gw->session;
my ($r, $seen);

# Runs it; it must end between these two moments: not before its limit, and long before whatever
# else would end it.
sub ends_within
{
	my ($sql, $from, $to, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$seen = $gw->requests(sub { $r = $s->run($sql) });
	ok($r->{seconds} >= $from && $r->{seconds} < $to, "$name: in time")
	  or diag("$r->{seconds} s is not from $from to $to");
	return $r;
}

sub client_closed_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($fake->wait_for(sub { ($fake->last_request->{outcome} // '') eq 'client_closed' }), "$name: the connection is closed");
	is($s->value(q{SELECT llm_complete('hi', model => 'gpt-4o')}), 'echo: hi', "$name: the next call works");
}

$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0, backoff_ms = 0 WHERE error_class = 'timeout'});
$gw->add_models('fake', qw(gpt-4o silent stall drip-100 slow-400 status-503 status-429));
my %limits = (
	connect_timeout    => "'10 s'",
	first_byte_timeout => "'10 s'",
	idle_timeout       => "'10 s'",
	total_timeout      => "'10 s'");

sub set_limits
{
	my (%changed) = @_;
	my %new = (%limits, %changed);
	$gw->sql('UPDATE llm_providers SET ' . join ', ', map { "$_ = $new{$_}" } sort keys %new);
	return;
}
set_limits();

# what follows a time-out must not be under the same limits
$gw->sql(q{UPDATE llm_models SET first_byte_timeout = '60 s', total_timeout = '60 s' WHERE name = 'gpt-4o'});

# First byte

set_limits(first_byte_timeout => "'300 ms'");
ends_within(q{SELECT llm_complete('hi', model => 'silent')}, 0.29, 9, 'first_byte_timeout');
error_ok(
	$r,
	{
		sqlstate => 'LG003',
		message  => qr/no answer within 300 ms \(first_byte_timeout\)/,
		detail   => qr{^fake/silent: timeout after (?:29|[3-9]\d|\d\d\d)\d ms: },
		hint     => qr/time-outs in llm_providers/
	},
	'first_byte_timeout');
client_closed_ok('first_byte_timeout');
$gw->sql(q{UPDATE llm_models SET first_byte_timeout = '150 ms' WHERE name = 'silent'});
error_ok($s->run(q{SELECT llm_complete('hi', model => 'silent')}), { sqlstate => 'LG003', message => qr/within 150 ms/ }, q{the model's own first_byte_timeout});
$gw->sql(q{UPDATE llm_models SET first_byte_timeout = NULL WHERE name = 'silent'});

# a stream that has begun, however slowly it goes on, is not late
set_limits(first_byte_timeout => "'2 s'");
is($s->value(q{SELECT llm_complete(repeat('0123456789', 10), model => 'drip-100')}), 'echo: ' . '0123456789' x 10, 'a slow stream is not late');

# Idle

set_limits(idle_timeout => "'300 ms'");
ends_within(q{SELECT llm_complete('hi', model => 'stall')}, 0.29, 9, 'idle_timeout');
error_ok($r, { sqlstate => 'LG003', message => qr/the answer stopped for 300 ms \(idle_timeout\) after \d+ bytes/ }, 'idle_timeout');
client_closed_ok('idle_timeout');

# each piece restarts it
set_limits(idle_timeout => "'2 s'");
is($s->value(q{SELECT llm_complete(repeat('0123456789', 10), model => 'drip-100')}), 'echo: ' . '0123456789' x 10, 'a stream that goes on is not idle');

# Total

set_limits(total_timeout => "'400 ms'");
ends_within(q{SELECT llm_complete(repeat('long ', 50), model => 'drip-100')}, 0.39, 9, 'total_timeout');
error_ok($r, { sqlstate => 'LG003', message => qr/not complete within 400 ms \(total_timeout\)/ }, 'total_timeout');
client_closed_ok('total_timeout');
$gw->sql(q{UPDATE llm_models SET total_timeout = '200 ms' WHERE name = 'drip-100'});
error_ok($s->run(q{SELECT llm_complete(repeat('long ', 50), model => 'drip-100')}), { sqlstate => 'LG003', message => qr/within 200 ms/ }, q{the model's own total_timeout});
$gw->sql(q{UPDATE llm_models SET total_timeout = NULL WHERE name = 'drip-100'});

# 0: no limit
set_limits(map { $_ => "'0'" } keys %limits);
is($s->value(q{SELECT llm_complete('hi', model => 'slow-400')}), 'echo: hi', '0: no limit');

# a time-out is retried, and falls back
set_limits(first_byte_timeout => "'200 ms'");
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1 WHERE error_class = 'timeout'});
$seen = $gw->requests(sub { $r = $s->run(q{SELECT llm_complete('hi', model => 'silent')}) });
is(scalar @$seen, 2, 'a time-out is retried');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('route', 'silent', 1), ('route', 'gpt-4o', 2)});
is($s->value(q{SELECT response, attempts, fallback FROM llm_complete_detail('hi', model => 'route')}), 'echo: hi|3|t', 'and falls back');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'timeout'});

# Connect

SKIP:
{
	my $full = full_listener() or skip 'no connection can be left waiting here', 4;
	$gw->add_provider('full', "http://127.0.0.1:$full->{port}/v1", { connect_timeout => "'300 ms'" });
	$gw->add_models('full', 'm-full');
	ends_within(q{SELECT llm_complete('hi', model => 'm-full')}, 0.29, 9, 'connect_timeout');
	error_ok($r, { sqlstate => 'LG003', hint => qr{check llm_providers.base_url}, message => qr/no connection within 300 ms \(connect_timeout\)/ }, 'connect_timeout');
	ends_within(q{SELECT llm_complete('hi', model => 'm-full', timeout_ms => 150)}, 0.14, 9, 'timeout_ms while connecting');
	error_ok($r, { sqlstate => 'LG003', message => qr/\(timeout_ms\)/ }, 'timeout_ms while connecting');
}
{
	my $mute = silent_listener();
	$gw->add_provider('mute', "https://127.0.0.1:$mute->{port}/v1", { connect_timeout => "'300 ms'" });
	$gw->add_models('mute', 'm-mute');
	ends_within(q{SELECT llm_complete('hi', model => 'm-mute')}, 0.29, 9, 'connect_timeout in TLS');
	error_ok($r, { sqlstate => 'LG003', message => qr/no connection within 300 ms \(connect_timeout\)/ }, 'connect_timeout in TLS');
}

# timeout_ms: the whole call

set_limits();
for my $model (qw(silent stall drip-100))
{
	ends_within(qq{SELECT llm_complete(repeat('long ', 60), model => '$model', timeout_ms => 300)}, 0.29, 9, "timeout_ms, $model");
	error_ok($r, { sqlstate => 'LG003', message => qr/the call was not done within its 300 ms \(timeout_ms\)/, hint => qr/timeout_ms/ }, "timeout_ms, $model");
	is(scalar @$seen, 1, "timeout_ms, $model: one request");
	client_closed_ok("timeout_ms, $model");
}
$s->run(q{SET llm_gateway.default_timeout = '250ms'});
ends_within(q{SELECT llm_complete('hi', model => 'silent')}, 0.24, 9, 'default_timeout');
error_ok($r, { sqlstate => 'LG003', message => qr/within its 250 ms/ }, 'default_timeout');
$s->run('RESET llm_gateway.default_timeout');

# it counts over retries: the second attempt has what the first has left
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 10 WHERE error_class = 'timeout'});
set_limits(first_byte_timeout => "'400 ms'");
ends_within(q{SELECT llm_complete('hi', model => 'silent', timeout_ms => 2500)}, 2.49, 9, 'timeout_ms over retries');
error_ok($r, { sqlstate => 'LG003', message => qr/its 2500 ms \(timeout_ms\)/ }, 'timeout_ms over retries');
cmp_ok(scalar @$seen, '>=', 2, 'timeout_ms over retries: there were some');
cmp_ok(scalar @$seen, '<=', 7, 'timeout_ms over retries: but not more than fit');

# no other candidate is asked when it is over
ends_within(q{SELECT llm_complete('hi', model => 'route', timeout_ms => 500)}, 0.49, 9, 'timeout_ms and fallback');
error_ok($r, { sqlstate => 'LG003' }, 'timeout_ms and fallback');
ok(!(grep { $_->{model} eq 'gpt-4o' } @$seen), 'timeout_ms and fallback: nobody else is asked');

# a back-off that would not fit is not begun
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1, backoff_ms = 20000 WHERE error_class IN ('overloaded', 'rate_limit')});
ends_within(q{SELECT llm_complete('hi', model => 'status-503', timeout_ms => 10000)}, 0, 9, 'timeout_ms shorter than the back-off');
error_ok($r, { sqlstate => 'LG004', message => qr/HTTP 503/ }, 'timeout_ms shorter than the back-off');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 10, backoff_ms = 500 WHERE error_class IN ('overloaded', 'rate_limit')});
# with jitter the third ends by 4.2 s, a fourth not before 6 s
ends_within(q{SELECT llm_complete('hi', model => 'status-503', timeout_ms => 5900)}, 2.5, 9, 'timeout_ms over back-offs');
error_ok($r, { sqlstate => 'LG004', message => qr/HTTP 503/ }, 'timeout_ms over back-offs');
is(scalar @$seen, 4, 'timeout_ms over back-offs: which double');

# The mock provider keeps the same limits

$gw->sql(q{INSERT INTO llm_providers (name, kind, options, first_byte_timeout) VALUES ('mock', 'mock', '{"latency_ms": 20000}', '200 ms')});
$gw->add_models('mock', 'm-mock');
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 0 WHERE error_class = 'timeout'});
ends_within(q{SELECT llm_complete('hi', model => 'm-mock')}, 0.19, 9, 'mock');
error_ok($r, { sqlstate => 'LG003', message => qr/within 200 ms \(first_byte_timeout\)/ }, 'mock');

# statement_timeout is PostgreSQL's

set_limits();
for my $model (qw(silent drip-100))
{
	$s->run(q{SET statement_timeout = '300ms'});
	ends_within(qq{SELECT llm_complete(repeat('long ', 60), model => '$model')}, 0.29, 9, "statement_timeout, $model");
	error_ok($r, { sqlstate => '57014', message => qr/^canceling statement due to statement timeout$/ }, "statement_timeout, $model");
	$s->run(q{RESET statement_timeout});
	client_closed_ok("statement_timeout, $model");
}
$s->run(q{SET llm_gateway.on_error = 'null'});
$s->run(q{SET statement_timeout = '200ms'});
error_ok($s->run(q{SELECT llm_complete('hi', model => 'silent')}), { sqlstate => '57014' }, q{also with on_error = 'null'});
$s->run(q{RESET statement_timeout});
is($s->value(q{SELECT llm_complete('hi', model => 'silent', timeout_ms => 100) IS NULL}), 't', q{while a time-out is NULL then});

done_testing();
