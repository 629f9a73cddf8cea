# The wall clock jumps forward and back by an hour in the middle of an outage: whatever waits, or is paused,
# or parked, goes on as before, and request ids go on rising.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY SLOWNESS error_ok row rows);

my ($library) = glob '/usr/lib/*/faketime/libfaketimeMT.so.1';
plan skip_all => 'Debian\'s libfaketime is not installed' unless $library;
plan skip_all => 'a slow server has clocks enough to fight with' if SLOWNESS > 1;

# The file says what the wall clock shows: so many seconds from the truth.
my $offset_file = PostgreSQL::Test::Utils::tempdir() . '/offset';
set_clock(0);
my $gw = LlmGateway->new(
	name => 'clock',
	conf => "llm_gateway.worker_idle_timeout = 0\n",
	env  => {
		LD_PRELOAD => $library,
		FAKETIME_TIMESTAMP_FILE => $offset_file,
		FAKETIME_NO_CACHE => 1,
		FAKETIME_DONT_FAKE_MONOTONIC => 1,
		DONT_FAKE_MONOTONIC => 1
	});
my $fake = $gw->fake;
my $admin = $gw->admin;
my ($s, $waiting) = map { $gw->session } 1 .. 2;
my ($r, $row, @ids);

sub set_clock
{
	my ($offset) = @_;
	open my $file, '>', "$offset_file.new" or die $!;
	printf $file "%+d\n", $offset;
	close $file;
	rename "$offset_file.new", $offset_file or die $!;
	return;
}

# How far the server's clock is from ours, in seconds.
sub jumped { return $admin->value('SELECT extract(epoch FROM clock_timestamp())') - time }

set_clock(3600);
my $jump = jumped();
set_clock(0);
plan skip_all => 'libfaketime does not move the clock of this server' if abs($jump - 3600) > 60;

sub asked { return scalar grep { $_->{method} eq 'POST' && $_->{path} =~ m{^/$_[0]/} } @{ $fake->journal } }
sub status { return row($admin, "SELECT * FROM llm_provider_status WHERE provider = '$_[0]'") }

my %ordinary = (breaker_failures => 3, breaker_cooldown => "'3 s'", probe => "'models'");
$gw->add_provider('primary', $fake->url('/primary'), \%ordinary);
$gw->add_provider('backup', $fake->url('/backup'), \%ordinary);
$gw->add_provider('one', $fake->url('/one'), { max_concurrency => 1 });
$gw->add_provider('rpm', $fake->url('/rpm'), { requests_per_minute => 2 });
$gw->add_provider('parked', $fake->url('/parked'));
$gw->add_provider('paused', $fake->url('/paused'));
$gw->add_models('primary', 'big');
$gw->add_models('backup', 'small');
$gw->add_models($_, $_) for qw(one rpm parked paused);
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('big', 1), ('small', 2)});
$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 50)');

# Calls under way, waiting, and backing off at the time of the jumps
for my $offset (3600, -3600)
{
	my $name = $offset > 0 ? 'forward' : 'back';
	my ($holder, $pausing) = map { $gw->session } 1 .. 2;
	$gw->forget;
	$fake->reset;
	set_clock(0);

	# an outage
	$fake->script({ model => '*', path => '/primary' }, { behaviour => 'status-503', repeat => 'forever' });
	$s->run(q{SELECT llm_complete('hello')}) for 1 .. 3;
	my $opened = time;
	is(status('primary')->{state}, 'open', "$name: the breaker is open");
	my $asked = asked('primary');

	# a call under way, one that waits for its place, one that backs off for two seconds
	$fake->script({ model => '*', path => '/one' }, { delay_ms => 1200 }, 'default');
	$holder->start(q{SELECT llm_complete('holder', model => 'one', timeout_ms => 20000)});
	$fake->wait_for(sub { asked('one') == 1 });
	$waiting->start(q{SELECT * FROM llm_complete_detail('waiting', model => 'one', timeout_ms => 20000)});
	$fake->script({ model => '*', path => '/paused' }, { behaviour => 'status-429', headers => { 'retry-after' => '1' } }, 'default');
	$pausing->start(q{SELECT llm_complete('pausing', model => 'paused')});
	$fake->wait_for(sub { asked('paused') == 1 && defined $fake->last_request->{ended} });

	# a key that is refused, and a minute that is used up
	$fake->script({ model => '*', path => '/parked' }, { behaviour => 'status-401', repeat => 'forever' });
	$s->run(q{SELECT llm_complete('hello', model => 'parked')});
	if ($offset > 0)
	{
		is($s->value(q{SELECT llm_complete('hello', model => 'rpm')}), 'echo: hello', 'the minute has room') for 1 .. 2;
	}

	set_clock($offset);
	cmp_ok(abs(jumped() - $offset), '<=', 60, "$name: the clock has jumped");

	$row = row($s, q{SELECT * FROM llm_complete_detail('hello')});
	is($row->{provider}, 'backup', "$name: the breaker is as it was");
	push @ids, $row->{request_id};
	$row = row($admin, q{SELECT state, next_probe_at - clock_timestamp() BETWEEN '-1 s' AND '3 s' AS soon, opened_at - clock_timestamp() BETWEEN '-20 s' AND '0 s' AS recently
		FROM llm_provider_status WHERE provider = 'primary'});
	is_deeply($row, { state => 'open', soon => 'true', recently => 'true' }, "$name: an operator sees times of the clock as it is now")
	  if time < $opened + 2;
	is(asked('primary'), $asked, "$name: nobody goes there before its time") if time < $opened + 2;
	is(status('parked')->{state}, 'open', "$name: a refused key is still parked");
	is(asked('parked'), 1, "$name: and not tried again");
	$r = $s->run(q{SELECT llm_complete('hello', model => 'rpm', timeout_ms => 5000)});
	error_ok($r, { sqlstate => 'LG002', detail => qr/requests_per_minute/ }, "$name: a minute lasts a minute");
	cmp_ok($r->{seconds}, '<=', 4, "$name: which is known at once");

	is($holder->finish->{out}, 'echo: holder', "$name: a call under way has its answer");
	$r = $waiting->finish;
	like($r->{out}, qr/^echo: waiting\|one\|one\|/, "$name: one that waited has its turn");
	cmp_ok($r->{seconds}, '<=', 60, "$name: in time");
	$r = $pausing->finish;
	is($r->{out}, 'echo: pausing', "$name: one that backed off goes on");
	cmp_ok($r->{seconds}, '>=', 0.95, "$name: not before its time");
	cmp_ok($r->{seconds}, '<=', 60, "$name: nor later");

	# time-outs
	$fake->script({ model => '*', path => '/one' }, { behaviour => 'silent', repeat => 'forever' });
	$r = $s->run(q{SELECT llm_complete('hello', model => 'one', timeout_ms => 700)});
	is($r->{sqlstate}, 'LG003', "$name: a time-out is one");
	cmp_ok($r->{seconds}, '>=', 0.65, "$name: not early");
	cmp_ok($r->{seconds}, '<=', 60, "$name: not late");
	$holder->start(q{SELECT llm_complete('hello', model => 'one', timeout_ms => 1500)});
	$fake->wait_for_stats(sub { $_[0]{in_flight} == 1 });
	set_clock(0);
	$r = $holder->finish;
	is($r->{sqlstate}, 'LG003', "$name, and again: a time-out is one");
	cmp_ok($r->{seconds}, '>=', 1.4, "$name, and again: not early");
	cmp_ok($r->{seconds}, '<=', 60, "$name, and again: not late");
	set_clock($offset);

	# the outage ends
	$fake->script({ model => '*', path => '/primary' });
	my $answered = '';
	until ($answered eq 'primary' || time > $opened + 60)
	{
		$row = row($s, q{SELECT * FROM llm_complete_detail('hello')});
		push @ids, $row->{request_id};
		$answered = $row->{provider};
		sleep 0.05;
	}
	is($answered, 'primary', "$name: the primary is back");
	cmp_ok(time - $opened, '<=', 12 + 10 * PROMPTLY, "$name: within its cool-down");
	cmp_ok(abs(jumped() - $offset), '<=', 60, "$name: the clock was wrong all the time");
}

set_clock(0);
ok($gw->drained, 'the ledger is written');
is_deeply(\@ids, [ sort { $a <=> $b } @ids ], 'request ids have risen all the time');
is($admin->value('SELECT count(*) FROM llm_requests WHERE request_id IN (' . join(', ', @ids) . ')'), scalar(@ids), 'each request is in the ledger');
is($admin->value(q{SELECT count(*) FROM llm_requests WHERE latency_ms NOT BETWEEN 0 AND 20000 OR queue_ms NOT BETWEEN 0 AND 20000}), '0',
	'no latency has an hour in it');
is($admin->value(q{SELECT sum(in_flight) || ' ' || sum(waiting) FROM llm_provider_status}), '0 0', 'nothing is left in flight');
$gw->no_crash_ok;
done_testing;
