# Many sessions at a provider that fails: one that asks for a pause, and one that accepts and never answers.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use List::Util qw(max min);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY SLOWNESS row rows wait_until);

my $gw = LlmGateway->new(
	name => 'crowds',
	fake => { journal => 20000 },
	conf => "max_connections = 250\nllm_gateway.worker_idle_timeout = 0\n");
my $fake = $gw->fake;
my $admin = $gw->admin;
my ($r, $row);

# The most requests of a list that were under way at any moment up to the given one.
sub most_at_a_time
{
	my ($until, @requests) = @_;
	my $most = 0;
	for my $moment (map { $_->{time} } @requests)
	{
		next if $moment > $until;
		my $n = grep { $_->{time} <= $moment && $_->{ended} > $moment } @requests;
		$most = max($most, $n);
	}
	return $most;
}

# A pause that one session was asked for holds for all; afterwards they do not come all at once.

my $pause = 5;
my @s = map { $gw->session } 1 .. 12;
$gw->add_provider('paused', $fake->url('/paused'));
$gw->add_models('paused', 'paused');
$fake->script({ model => '*', path => '/paused' },
	{ behaviour => 'status-429', headers => { 'retry-after' => $pause } },
	{ behaviour => 'default', delay_ms => 300, repeat => 'forever' });
$s[0]->start(q{SELECT llm_complete('first', model => 'paused')});
$fake->wait_for(sub { @{ $_[0] } && defined $_[0][0]{ended} }) or die 'the first call was not refused';
wait_until(sub { $admin->value(q{SELECT rate_limited_until > now() FROM llm_provider_status WHERE provider = 'paused'}) eq 't' }) or die 'there is no pause';
$_->start(q{SELECT llm_complete('other', model => 'paused')}) for @s[ 1 .. 11 ];
my $status;
for (1 .. 400)
{
	$status = row($admin, q{SELECT waiting, rate_limited_until - now() BETWEEN '0 s' AND '5 s' AS limited FROM llm_provider_status WHERE provider = 'paused'});
	last if $status->{waiting} == 11;
	sleep 0.005;
}
is_deeply($status, { waiting => 11, limited => 'true' }, 'one session was asked for a pause: all others wait');
is($_->finish->{sqlstate}, undef, 'served') for @s;

my ($refused, @sent) = @{ $fake->journal };
is(scalar(@sent), 12, 'each is sent once more, and no more');
cmp_ok(min(map { $_->{time} } @sent), '>=', $refused->{time} + $pause - 0.01, 'nobody before its time');
cmp_ok($sent[0]{time}, '<=', $refused->{ended} + $pause + PROMPTLY, 'nor much later');
my @ends = sort { $a <=> $b } map { $_->{ended} } @sent;
is(most_at_a_time($ends[0] - 0.001, @sent), 1, 'one goes first');
cmp_ok(most_at_a_time($ends[1] - 0.001, @sent), '<=', 2, 'after its success two at a time');
cmp_ok(most_at_a_time($ends[2] - 0.001, @sent), '<=', 4, 'then four');
cmp_ok(most_at_a_time($ends[3] - 0.001, @sent), '<=', 8, 'then eight');
cmp_ok($ends[-1] - $ends[0], '<=', 4 * 0.3 + 4 * PROMPTLY, 'so all are soon served');
$gw->drained;
$row = row($admin, q{SELECT count(*) AS n, count(*) FILTER (WHERE queue_ms >= 1500) AS waited, sum(attempts) AS attempts FROM llm_requests WHERE model = 'paused' AND status = 'ok'});
is_deeply($row, { n => 12, waited => 11, attempts => 13 }, 'the ledger tells who waited') or diag explain $row;

# The pause of a success that has used up its limits is like one

$fake->reset;
$fake->script({ model => '*', path => '/paused' },
	{ behaviour => 'default', headers => { 'x-ratelimit-remaining-requests' => '0', 'x-ratelimit-reset-requests' => '1s' } },
	{ behaviour => 'default', repeat => 'forever' });
$s[0]->run(q{SELECT llm_complete('uses it up', model => 'paused')});
$_->start(q{SELECT llm_complete('other', model => 'paused')}) for @s[ 1 .. 4 ];
is($_->finish->{sqlstate}, undef, 'served') for @s[ 1 .. 4 ];
(my $last, @sent) = @{ $fake->journal };
cmp_ok(min(map { $_->{time} } @sent), '>=', $last->{time} + 0.99, 'limits that are used up are known before somebody is refused');

# While everybody is refused for ever, each has its answer in bounded time

$gw->forget;
$fake->reset;
$fake->script({ model => '*', path => '/paused' },
	{ behaviour => 'status-429', headers => { 'retry-after' => '1' }, repeat => 'forever' });
$_->start(q{SELECT llm_complete('refused', model => 'paused', timeout_ms => 3500)}) for @s;
my @r = map { $_->finish } @s;
is(scalar(grep { ($_->{sqlstate} // '') =~ /^LG00[23]$/ } @r), 12, 'refused for ever: all are told');
cmp_ok(max(map { $_->{seconds} } @r), '<=', 3.5 + 2 * PROMPTLY, 'in time');
cmp_ok(scalar(@{ $fake->journal }), '<=', 16, 'and the provider was left alone: ' . @{ $fake->journal } . ' requests of 12 calls');
is($admin->value(q{SELECT in_flight || ' ' || waiting FROM llm_provider_status WHERE provider = 'paused'}), '0 0', 'nothing is left behind');
$_->quit for @s;

# 200 sessions at a provider that accepts and never answers, with a fallback

my $sessions = 200;
my $each = 4;
my %seldom = (breaker_failures => 3, breaker_cooldown => "'60 s'", probe => "'none'");
$gw->add_provider('mute', $fake->url('/mute'), { %seldom, first_byte_timeout => "'500 ms'" });
$gw->add_provider('backup', $fake->url('/backup'), \%seldom);
$gw->add_models('mute', 'big');
$gw->add_models('backup', 'small');
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('big', 1), ('small', 2)});
$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 50)');
$fake->reset;
$fake->script({ model => '*', path => '/mute' }, { behaviour => 'silent', repeat => 'forever' });
my $script = PostgreSQL::Test::Utils::tempdir() . '/call.sql';
append_to_file($script, "SELECT 1 / (llm_complete('hello') = 'echo: hello')::int;\n");
my $began = time;
my ($out, $err) = ('', '');
my $ok = IPC::Run::run(
	[ $gw->node->installed_command('pgbench'), '-n', '-c', $sessions, '-j', 2, '-t', $each, '-f', $script, $gw->node->connstr('postgres') ],
	'>', \$out, '2>', \$err);
my $took = time - $began;
ok($ok, 'pgbench') or diag $err;
like($out, qr{actually processed: @{[ $sessions * $each ]}/@{[ $sessions * $each ]}}, 'all calls of 200 sessions have their whole answer');
cmp_ok($took, '<=', 60 * SLOWNESS, sprintf 'in bounded time (%.1f s)', $took);
ok($gw->drained, 'the ledger is written');
$row = row($admin, q{SELECT count(*) AS n, count(*) FILTER (WHERE status = 'ok' AND provider = 'backup' AND fallback) AS answered,
	max(latency_ms) AS longest, sum(attempts) AS attempts FROM llm_requests WHERE model = 'small'});
is("$row->{n} $row->{answered}", "@{[ $sessions * $each ]} @{[ $sessions * $each ]}", 'each is answered by the fallback, and in the ledger');
my @mute = grep { $_->{path} =~ m{^/mute/} } @{ $fake->journal };
my $wasted = @mute;
diag(sprintf 'pgbench took %.1f s; longest call %d ms; %d attempts at the mute provider', $took, $row->{longest}, $wasted);
cmp_ok($row->{longest}, '<=', 20000 * SLOWNESS, "none takes long ($row->{longest} ms)");
my ($opened) = rows($admin, q{SELECT extract(epoch FROM at) AS at FROM llm_breaker_events WHERE provider = 'mute' AND to_state = 'open' ORDER BY event_id LIMIT 1});
ok($opened, 'the breaker has opened');
cmp_ok($wasted, '<=', $sessions + 5, "at most what was under way at the time is wasted ($wasted attempts)");
# whoever had begun by then may still arrive
is(scalar(grep { $_->{time} > $opened->{at} + max(2 * SLOWNESS, $took / 2) } @mute), 0, 'once it is open nobody goes there');
is(row($admin, q{SELECT state FROM llm_provider_status WHERE provider = 'mute'})->{state}, 'open', 'it is still open');
is($admin->value(q{SELECT sum(in_flight) || ' ' || sum(waiting) FROM llm_provider_status}), '0 0', 'nothing is left in flight');
ok($fake->wait_for_stats(sub { $_[0]{in_flight} == 0 }), 'nor at the provider');
ok($fake->wait_for_stats(sub { $_[0]{connections} <= 1 }), 'no connection is left') or diag explain $fake->stats;
is($admin->value(q{SELECT pending_bytes || ' ' || open_requests FROM llm_worker_status WHERE worker = 'ledger'}), '0 0', 'nor anything that is not in the ledger');

# The same in one session: a batch

$gw->forget;
$fake->reset;
$fake->script({ model => '*', path => '/mute' }, { behaviour => 'silent', repeat => 'forever' });
my $s = $gw->session;
is($s->value(q{SELECT count(*) FROM llm_complete_batch(array(SELECT 'p' || g FROM generate_series(1, 200) g), max_concurrency => 200) WHERE response = 'echo: p' || idx AND provider = 'backup'}),
	'200', 'a batch of 200: all are answered by the fallback');
cmp_ok(scalar(grep { $_->{path} =~ m{^/mute/} } @{ $fake->journal }), '<=', 202, 'none is tried twice where the breaker has opened');
is($admin->value(q{SELECT sum(in_flight) || ' ' || sum(waiting) FROM llm_provider_status}), '0 0', 'nothing is left in flight');

$gw->no_crash_ok;
done_testing;
