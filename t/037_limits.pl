# Limits of a provider that all sessions share: how many calls at a time, how many requests and tokens a
# minute. Who waits, who is next, who goes elsewhere, and that nobody who goes away leaves anything behind.
use strict;
use warnings;

use FindBin;
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY SLOWNESS error_ok row rows);

my $gw = LlmGateway->new(name => 'limits');
my $fake = $gw->fake;
my $admin = $gw->admin;
my @s = map { $gw->session } 1 .. 16;
my ($r, $row, @r);

# A provider of its own, with a model of the same name, or another's.
sub provider
{
	my ($name, $columns, $model) = @_;
	$gw->add_provider($name, $fake->url("/$name"), $columns);
	$gw->add_models($name, $model // $name);
	return;
}

sub status { return row($admin, "SELECT * FROM llm_provider_status WHERE provider = '$_[0]'") }

# Waits until so many calls wait at a provider.
sub waiting_ok
{
	my ($name, $n) = @_;
	my $deadline = time + 20 * SLOWNESS;
	while ((my $waiting = status($name)->{waiting}) != $n)
	{
		die "$waiting wait for $name instead of $n" if time > $deadline;
		sleep 0.005;
	}
	return;
}

# That nothing is under way or waits at a provider; what was cancelled needs a moment.
sub empty_ok
{
	my ($name, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $deadline = time + 10 * SLOWNESS;
	my $left;
	do
	{
		sleep 0.01;
		my $status = status($name);
		$left = "$status->{in_flight} under way, $status->{waiting} waiting";
	} while ($left ne '0 under way, 0 waiting' && time < $deadline);
	is($left, '0 under way, 0 waiting', $what);
	return;
}

# The prompts that a provider was sent, in order.
sub prompts
{
	my ($name) = @_;
	return map { $_->{body}{messages}[-1]{content} } grep { $_->{path} =~ m{^/$name/} } @{ $fake->journal };
}

# Starts a call that takes the only place of a provider for so long.
sub hold_place
{
	my ($session, $name, $ms) = @_;
	$fake->reset;
	$fake->script({ model => '*', path => "/$name" }, { delay_ms => $ms }, { behaviour => 'default', repeat => 'forever' });
	$session->start("SELECT llm_complete('holder', model => '$name')");
	$fake->wait_for(sub { @{ $_[0] } == 1 }) or die 'the holder was not sent';
	return;
}

# What lasts longer than a minute goes on meanwhile, at another fake: calls without a deadline wait for
# as long as it takes.

my $slow_fake = FakeProvider->new;
my $began = time;
my ($minute, $holder, $patient) = map { $gw->session } 1 .. 3;
$gw->add_provider('minute', $slow_fake->url('/minute'), { requests_per_minute => 3 });
$gw->add_models('minute', 'minute');
$gw->add_provider('long', $slow_fake->url('/long'), { max_concurrency => 1, first_byte_timeout => "'120 s'" });
$gw->add_models('long', 'long');
$slow_fake->script({ model => 'long', path => '/long' }, { delay_ms => 63000 }, 'default');
$minute->start(q{SELECT string_agg(llm_complete('minute ' || g, model => 'minute'), ', ' ORDER BY g) FROM generate_series(1, 4) g});
$holder->start(q{SELECT llm_complete('holder', model => 'long')});
waiting_ok('minute', 1);
$patient->start(q{SELECT llm_complete('patient', model => 'long')});
waiting_ok('long', 1);

# max_concurrency

provider('two', { max_concurrency => 2 });
$fake->script({ model => '*', path => '/two' }, { delay_ms => 300, repeat => 'forever' });

$_->start(q{SELECT llm_complete('one of many', model => 'two')}) for @s;
is_deeply([ map { $_->finish->{out} } @s ], [ ('echo: one of many') x 16 ], '16 sessions at 2 places: all are served');
is($fake->stats->{max_in_flight}, 2, 'two at a time, never more');
$row = row($admin, q{SELECT count(*) AS n, count(*) FILTER (WHERE queue_ms > 0) AS waited, max(queue_ms) AS longest FROM llm_requests WHERE model = 'two'});
is($row->{n}, 16, 'each is in the ledger');
cmp_ok($row->{waited}, '>=', 10, "most have waited ($row->{waited}), and queue_ms says so");
cmp_ok($row->{longest}, '>=', 300, "the last one for some turns ($row->{longest} ms)");
cmp_ok($row->{longest}, '<=', 5000 * SLOWNESS, 'and no longer');
empty_ok('two', 'nothing is left behind');

$fake->reset;
$fake->script({ model => '*', path => '/two' }, { delay_ms => 50, repeat => 'forever' });
is($s[0]->value(q{SELECT count(*) FILTER (WHERE response LIKE 'echo: %') FROM llm_complete_batch(array(SELECT 'prompt ' || g FROM generate_series(1, 20) g), model => 'two')}),
	'20', 'a batch of 20: all are served');
is($fake->stats->{max_in_flight}, 2, 'two at a time');

$fake->reset;
$fake->script({ model => '*', path => '/two' }, { delay_ms => 50, repeat => 'forever' });
$s[0]->start(q{SELECT count(*) FILTER (WHERE response LIKE 'echo: %') FROM llm_complete_batch(array(SELECT 'prompt ' || g FROM generate_series(1, 20) g), model => 'two')});
$_->start(q{SELECT llm_complete('one of many', model => 'two')}) for @s[ 1 .. 8 ];
is($s[0]->finish->{out}, '20', 'a batch among sessions: all are served');
is_deeply([ map { $_->finish->{out} } @s[ 1 .. 8 ] ], [ ('echo: one of many') x 8 ], 'the sessions, too');
is($fake->stats->{max_in_flight}, 2, 'two at a time, all together');
empty_ok('two', 'nothing is left behind');

# Who is next

provider('one', { max_concurrency => 1 });
hold_place($s[0], 'one', 5000);
my $n = 0;
for my $priority (qw(low normal critical))
{
	$s[ ++$n ]->start("SELECT llm_complete('$priority', '$priority', model => 'one')");
	waiting_ok('one', $n);
}
is($_->finish->{sqlstate}, undef, 'served') for @s[ 0 .. 3 ];
is_deeply([ prompts('one') ], [qw(holder critical normal low)], 'the most important is the first, though it came last');

my @order;
for (1 .. 3)
{
	hold_place($s[0], 'one', 5000);
	for my $n (1 .. 5)
	{
		$s[$n]->start("SELECT llm_complete('number $n', model => 'one')");
		waiting_ok('one', $n);
	}
	$_->finish for @s[ 0 .. 5 ];
	@order = prompts('one');
	last if "@order" eq join ' ', 'holder', map { "number $_" } 1 .. 5;    # whom the machine holds up for 50 ms loses his turn
}
is_deeply(\@order, [ 'holder', map { "number $_" } 1 .. 5 ], 'equals in the order in which they came');

# A deadline while waiting

hold_place($s[0], 'one', 4000);
$r = $s[1]->run(q{SELECT llm_complete('impatient', model => 'one', timeout_ms => 400)});
error_ok($r, { sqlstate => 'LG002', detail => qr{^one/one: rate_limit, not tried: all 1 of max_concurrency are in use$} },
	'no place before its deadline');
cmp_ok($r->{seconds}, '>=', 0.35, 'it has waited until then');
cmp_ok($r->{seconds}, '<=', 0.4 + PROMPTLY, 'and no longer');
$row = row($s[1], q{SELECT * FROM llm_complete_detail('impatient', model => 'one', timeout_ms => 200)});
is($row->{error_class}, 'rate_limit', 'as a row');
is($row->{attempts}, 0, 'nothing was sent');
$s[0]->finish;
is_deeply([ prompts('one') ], ['holder'], 'nor did the provider see anything');
$row = row($admin, "SELECT status, error_class, queue_ms >= 150 AS waited, cost_usd FROM llm_requests WHERE request_id = $row->{request_id}");
is_deeply($row, { status => 'error', error_class => 'rate_limit', waited => 'true', cost_usd => 0 }, 'the ledger knows that it waited')
  or diag explain $row;

# Who goes away while waiting, or holding

hold_place($s[0], 'one', 6000);
$s[1]->start(q{SELECT llm_complete('cancelled', model => 'one')});
waiting_ok('one', 1);
$s[2]->start(q{SELECT llm_complete('terminated', model => 'one')});
waiting_ok('one', 2);
$s[3]->start(q{SELECT llm_complete('patient', model => 'one')});
waiting_ok('one', 3);
my $at = time;
$admin->run('SELECT pg_cancel_backend(' . $s[1]->pid . ')');
$r = $s[1]->finish;
is($r->{sqlstate}, '57014', 'a waiting call is cancelled');
cmp_ok($r->{ended} - $at, '<=', PROMPTLY, 'at once');
is(status('one')->{waiting}, 2, 'its place in the queue is free');
$at = time;
$admin->run('SELECT pg_terminate_backend(' . $s[2]->pid . ')');
$r = $s[2]->finish;
is($r->{sqlstate}, '57P01', 'a waiting backend is terminated');
cmp_ok($r->{ended} - $at, '<=', PROMPTLY, 'at once');
waiting_ok('one', 1);
$r = $s[1]->run(q{SET statement_timeout = 300; SELECT llm_complete('timed out', model => 'one')});
is($r->{sqlstate}, '57014', 'statement_timeout ends a waiting call');
cmp_ok($r->{seconds}, '<=', 0.3 + PROMPTLY, 'in time');
$s[1]->run('RESET statement_timeout');
is($_->finish->{sqlstate}, undef, 'others go on') for @s[ 0, 3 ];
is_deeply([ prompts('one') ], [qw(holder patient)], 'who went away was not sent');
empty_ok('one', 'nothing is left behind');

for my $how (qw(pg_cancel_backend pg_terminate_backend))
{
	$s[2] = $gw->session;
	hold_place($s[2], 'one', 60000);
	$s[3]->start(q{SELECT llm_complete('next', model => 'one')});
	waiting_ok('one', 1);
	$at = time;
	$admin->run("SELECT $how(" . $s[2]->pid . ')');
	ok($s[2]->finish->{sqlstate}, "$how: who holds the place goes");
	$r = $s[3]->finish;
	is($r->{out}, 'echo: next', "$how: the next one has it");
	cmp_ok($r->{ended} - $at, '<=', 2 * PROMPTLY, "$how: at once");
	empty_ok('one', "$how: nothing is left behind");
}
$s[2] = $gw->session;

# A statement that fails while its other calls wait
hold_place($s[0], 'one', 4000);
$r = $s[1]->run(q{SET statement_timeout = 200; SELECT count(*) FROM llm_complete_batch(array['a', 'b', 'c', 'd'], model => 'one')});
is($r->{sqlstate}, '57014', 'a batch of waiting calls is cancelled');
$s[1]->run('RESET statement_timeout');
waiting_ok('one', 0);
is(status('one')->{in_flight}, 1, 'all its places are free');
$s[0]->finish;

# A cursor that holds the only place

$fake->reset;
$fake->script({ model => '*', path => '/one' }, { behaviour => 'drip-200' }, { behaviour => 'default', repeat => 'forever' });
$s[0]->run('BEGIN');
$s[0]->run(q{DECLARE c CURSOR FOR SELECT llm_stream('a stream that lasts as long as its cursor', model => 'one')});
ok($s[0]->value('FETCH 1 FROM c') ne '', 'a cursor has its first row, and the only place');
is(status('one')->{in_flight}, 1, 'it holds the place between two FETCH');
$r = $s[0]->run(q{SELECT llm_complete('beside it', model => 'one')});
is($r->{out}, 'echo: beside it', 'another call of its session does not wait for it');
cmp_ok($r->{seconds}, '<=', 2 * PROMPTLY, 'not a moment');
$s[1]->start(q{SELECT llm_complete('behind it', model => 'one')});
waiting_ok('one', 1);
sleep 0.6;
is(status('one')->{waiting}, 1, 'another session waits');
$at = time;
$s[0]->run('CLOSE c');
$r = $s[1]->finish;
is($r->{out}, 'echo: behind it', 'until the cursor is closed');
cmp_ok($r->{ended} - $at, '<=', 2 * PROMPTLY, 'then it is its turn, at once');
$s[0]->run('COMMIT');
empty_ok('one', 'nothing is left behind');

# Places elsewhere: another provider of the same model at once, another model after a while

provider('first', { max_concurrency => 1 }, 'same');
provider('spare', { max_concurrency => 1, weight => 0 }, 'same');
provider('third', {}, 'other');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('either', 'same', 1), ('either', 'other', 2)});
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 4000 WHERE error_class = 'rate_limit'});
$fake->reset;
$fake->script({ model => '*', path => '/first' }, { delay_ms => 12000 });
$fake->script({ model => '*', path => '/spare' }, { delay_ms => 12000 });
$s[0]->start(q{SELECT llm_complete('holder', model => 'either')});
$fake->wait_for(sub { @{ $_[0] } == 1 });
$s[1]->start(q{SELECT * FROM llm_complete_detail('holder too', model => 'either')});
ok($fake->wait_for(sub { @{ $_[0] } == 2 }, PROMPTLY), 'one provider is full: the other one of the model, at once');
is(scalar(prompts('spare')), 1, 'that one');
$r = $s[2]->run(q{SELECT provider, model, fallback, attempts FROM llm_complete_detail('goes on', model => 'either')});
is($r->{out}, 'third|other|t|1', 'both are full: another model');
cmp_ok($r->{seconds}, '>=', 3.9, 'once it has been waited for as long as the policy of rate_limit backs off');
cmp_ok($r->{seconds}, '<=', 4 + PROMPTLY, 'and no longer');
is($_->finish->{sqlstate}, undef, 'and those in time are served where they are') for @s[ 0, 1 ];
is($admin->value(q{SELECT bool_and(fallback) FROM llm_requests WHERE provider IN ('spare', 'third')}), 't', 'both say that another one was meant');
is($admin->value(q{SELECT queue_ms >= 3900 FROM llm_requests WHERE provider = 'third'}), 't', 'and how long that was waited for');

# The configuration changes while calls wait: they keep theirs, the next call has the new one

hold_place($s[0], 'one', 1500);
$s[1]->start(q{SELECT llm_complete('before', model => 'one')});
waiting_ok('one', 1);
$gw->sql(q{UPDATE llm_providers SET max_concurrency = 3 WHERE name = 'one'});
$s[2]->run(q{SELECT llm_complete('after', model => 'one')});
is($_->finish->{sqlstate}, undef, 'those who wait when the limit is raised are served') for @s[ 0, 1 ];
is_deeply([ prompts('one') ], [qw(holder before after)], 'as they came: a newcomer does not pass those who wait for the old limit');
$fake->reset;
$fake->script({ model => '*', path => '/one' }, { delay_ms => 300, repeat => 'forever' });
is($s[2]->value(q{SELECT count(response) FROM llm_complete_batch(array['a', 'b', 'c', 'd', 'e'], model => 'one')}), '5', 'then there are as many places as the row says');
is($fake->stats->{max_in_flight}, 3, 'three at a time');
empty_ok('one', 'nothing is left behind');

# requests_per_minute

provider('rpm', { requests_per_minute => 5 });
$_->start(q{SELECT llm_complete('one of eight', model => 'rpm', timeout_ms => 20000)}) for @s[ 0 .. 7 ];
@r = map { $_->finish } @s[ 0 .. 7 ];
is(scalar(grep { $_->{out} eq 'echo: one of eight' } @r), 5, 'as many requests as allowed are made, by all sessions together');
my @refused = grep { $_->{sqlstate} } @r;
is(scalar(@refused), 3, 'the others are refused');
error_ok($_, { sqlstate => 'LG002', detail => qr{^rpm/rpm: rate_limit, not tried: all 5 of requests_per_minute are used for [56]\d s$} },
	'for that reason') for @refused;
cmp_ok(max(map { $_->{seconds} } @refused), '<=', 2 * PROMPTLY, 'at once, since the wait would be longer than their time');
is(scalar(prompts('rpm')), 5, 'the provider saw no more');

provider('rpm1', { requests_per_minute => 5 }, 'rpmx');
provider('rpm2', { weight => 0 }, 'rpmx');
$_->start(q{SELECT llm_complete('one of eight', model => 'rpmx')}) for @s[ 0 .. 7 ];
@r = map { $_->finish } @s[ 0 .. 7 ];
is(scalar(grep { $_->{out} eq 'echo: one of eight' } @r), 8, 'with another provider of the model all are served');
is_deeply([ scalar(prompts('rpm1')), scalar(prompts('rpm2')) ], [ 5, 3 ], 'what is too much for one goes to the other');
cmp_ok(max(map { $_->{seconds} } @r), '<=', 2 * PROMPTLY, 'at once');

# tokens_per_minute: expected first, then used

provider('tpm', { tokens_per_minute => 1000 });
$fake->script({ model => '*', path => '/tpm' }, { delay_ms => 3000, usage => { prompt => 10, completion => 10 }, repeat => 'forever' });
$_->start(q{SELECT llm_complete('one of eight', model => 'tpm', max_tokens => 220, timeout_ms => 30000)}) for @s[ 0 .. 7 ];
ok($fake->wait_for(sub { grep({ $_->{path} =~ m{^/tpm/} } @{ $_[0] }) == 4 }), 'as many as their tokens may be are under way');
waiting_ok('tpm', 4);
is(scalar(prompts('tpm')), 4, 'and no more');
is_deeply([ map { $_->finish->{out} } @s[ 0 .. 7 ] ], [ ('echo: one of eight') x 8 ], 'what they did not use is for the others');
$fake->script({ model => '*', path => '/tpm' }, { usage => { prompt => 500, completion => 400 }, repeat => 'forever' });
is($s[0]->value(q{SELECT llm_complete('a large one', model => 'tpm', max_tokens => 220)}), 'echo: a large one', 'more than expected is used');
$r = $s[1]->run(q{SELECT llm_complete('another', model => 'tpm', max_tokens => 220, timeout_ms => 20000)});
error_ok($r, { sqlstate => 'LG002', detail => qr{^tpm/tpm: rate_limit, not tried: tokens_per_minute \(1000\) has no room for 22\d more for [56]\d s$} }, 'that counts');
cmp_ok($r->{seconds}, '<=', 2 * PROMPTLY, 'at once');

# NULL: none of these limits

provider('free', { max_concurrency => 'NULL', requests_per_minute => 'NULL', tokens_per_minute => 'NULL' });
$fake->reset;
$fake->script({ model => '*', path => '/free' }, { delay_ms => 4000 * SLOWNESS, repeat => 'forever' });
is($s[0]->value(q{SELECT count(response) FROM llm_complete_batch(array(SELECT 'p' || g FROM generate_series(1, 60) g), model => 'free', max_concurrency => 60)}),
	'60', 'without limits: all are served');
is($fake->stats->{max_in_flight}, 60, 'all at a time');

# What went on meanwhile

$r = $minute->finish;
is($r->{out}, join(', ', map { "echo: minute $_" } 1 .. 4), 'the fourth of three requests a minute is served');
my @minute = map { $_->{time} } grep { $_->{path} =~ m{^/minute/} } @{ $slow_fake->journal };
cmp_ok($minute[3] - $minute[0], '>=', 58.5, 'a minute after the first');
cmp_ok($minute[3] - $minute[0], '<=', 61.5 + 10 * PROMPTLY, 'and not much later');
is($holder->finish->{out}, 'echo: holder', 'a call that takes more than a minute');
is($patient->finish->{out}, 'echo: patient', 'and who has waited for its place are served');

# The queries that docs/reliability.md has for a scraper, by a role that may see reports

my $page = PostgreSQL::Test::Utils::slurp_file("$FindBin::Bin/../docs/reliability.md");
my ($section) = $page =~ /^## Numbers for a scraper\n(.*?)(?=^## |\z)/ms;
my @queries = $section =~ /^```sql\n(.*?);\n```/msg;
is(scalar(@queries), 3, 'the queries of the documentation');
$gw->sql(q{CREATE ROLE scraper LOGIN; SELECT llm_grant('scraper', 'report')});
my $scraper = $gw->session(undef, user => 'scraper');
$gw->drained;
my ($status) = grep { $_->{provider} eq 'two' } rows($scraper, $queries[0]);
is_deeply(
	[ @{$status}{qw(breaker_open successes failures in_flight waiting rate_limited ledger_pending_bytes ledger_blocked)} ],
	[ 0, 64, 0, 0, 0, 0, 0, 0 ], 'what is going on') or diag explain $status;
my ($sums) = grep { $_->{model} eq 'two' } rows($scraper, $queries[1]);
SKIP:
{
	skip 'a new day has begun', 2 if $admin->value(q{SELECT min(created_at AT TIME ZONE 'UTC')::date < (now() AT TIME ZONE 'UTC')::date FROM llm_requests}) eq 't';
	is($sums->{requests}, 64, 'what has been used') or diag explain $sums;
	cmp_ok($sums->{output_tokens}, '>', 64, 'with its tokens');
}
my $fastest = min(map { $scraper->run("EXPLAIN (ANALYZE, TIMING OFF, SUMMARY ON) $queries[0]")->{out} =~ /Execution Time: ([\d.]+)/ } 1 .. 5);
cmp_ok($fastest, '<=', 20 * SLOWNESS, "the first is cheap ($fastest ms)");

is($admin->value(q{SELECT sum(in_flight) || ' ' || sum(waiting) FROM llm_provider_status}), '0 0', 'nothing is under way, nobody waits');
$gw->no_crash_ok;
done_testing;
