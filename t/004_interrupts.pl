# Cancel, statement_timeout, terminate and the death of the postmaster end a call at once, whatever
# it is waiting for, and leave nothing behind.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY SLOWNESS USUALLY error_ok full_listener gone literal silent_listener);

my $marker = PostgreSQL::Test::Utils::tempdir_short() . '/resolving';
my $shim = build_shim();

my $gw = LlmGateway->new(
	name => 'interrupts',
	env  => $shim ? { LD_PRELOAD => $shim, STALL_MARKER => $marker } : {});
my $fake = $gw->fake;
my $admin = $gw->admin;

$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 30000 WHERE error_class = 'overloaded'});
$gw->sql(q{UPDATE llm_providers SET first_byte_timeout = '60 s', idle_timeout = '60 s'});
$gw->add_models('fake', qw(gpt-4o silent drip-200 status-503));

# How to get a call into each phase: what to call, what to prepare, and how to know that it is there.
my @phases;

if ($shim)
{
	$gw->add_provider('stalled', 'https://x.stall.test/v1', { connect_timeout => "'60 s'" });
	$gw->add_models('stalled', 'm-stalled');

	# c-ares, where libcurl was built with it alone, does not ask what we have preloaded
	$gw->session->run(q{SELECT llm_complete('x', model => 'm-stalled', timeout_ms => 1000)});
	if (-e $marker || !uses_cares())
	{
		push @phases,
		  {
			name    => 'resolving',
			model   => 'm-stalled',
			prepare => sub { unlink $marker },
			reached => sub { -e $marker }
		  };
	}
}
my $expected = $shim && !@phases ? 6 : 7;
if (my $full = full_listener())
{
	$gw->add_provider('full', "http://127.0.0.1:$full->{port}/v1", { connect_timeout => "'60 s'" });
	$gw->add_models('full', 'm-full');
	push @phases, { name => 'connecting', model => 'm-full', keep => $full };
}
my $mute = silent_listener();
$gw->add_provider('mute', "https://127.0.0.1:$mute->{port}/v1", { connect_timeout => "'60 s'" });
$gw->add_models('mute', 'm-mute');
push @phases,
  {
	name    => 'agreeing on TLS',
	model   => 'm-mute',
	reached => sub {
		my $client = $mute->accepted;
		return sysread $client, my $hello, 1;
	}
  };
push @phases,
  {
	name    => 'waiting for the first byte',
	model   => 'silent',
	closes  => 1,
	reached => sub { $fake->stats->{in_flight} == 1 }
  };
push @phases,
  {
	name    => 'reading',
	model   => 'drip-200',
	closes  => 1,
	reached => sub { ($fake->last_request->{sent} // 0) > 1000 }
  };
push @phases,
  {
	name    => 'backing off',
	model   => 'status-503',
	reached => sub { ($fake->last_request->{outcome} // '') eq 'delivered' }
  };
$gw->sql(q{INSERT INTO llm_providers (name, kind, options, first_byte_timeout) VALUES ('mock', 'mock', '{"latency_ms": 60000}', '0')});
$gw->add_models('mock', 'm-mock');
push @phases, { name => 'in the mock provider', model => 'm-mock' };

# Compiles what makes the resolver stall; undef without a compiler.
sub build_shim
{
	my $library = PostgreSQL::Test::Utils::tempdir_short() . '/stall_resolver.so';
	my $status = system($ENV{CC} || 'cc', qw(-shared -fPIC -O -o), $library, "$FindBin::Bin/stall_resolver.c", '-ldl');
	return $status == 0 ? $library : undef;
}

# Whether the extension is linked to that resolver, through libcurl.
sub uses_cares
{
	my ($directory) = $gw->node->config_data('--pkglibdir');
	my $libraries = `ldd $directory/llm_gateway.so`;
	return $libraries =~ /libcares/;
}

# Starts a call and returns when it is where the phase wants it.
sub enter
{
	my ($session, $phase) = @_;
	$fake->reset;
	$phase->{prepare}->() if $phase->{prepare};
	$session->start("SELECT llm_complete(repeat('long ', 200), model => '$phase->{model}')");
	$gw->wait_in_call($session);
	my $deadline = time + 60;
	while ($phase->{reached} && !$phase->{reached}->())
	{
		die "never $phase->{name}" if time > $deadline;
		sleep 0.01;
	}
	return;
}

sub after_ok
{
	my ($session, $phase, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	if ($phase->{closes})
	{
		ok($fake->wait_for(sub { ($fake->last_request->{outcome} // '') eq 'client_closed' }), "$name: the provider sees it");
	}
	is($session->value(q{SELECT llm_complete('hi', model => 'gpt-4o')}), 'echo: hi', "$name: the next call works")
	  if $session;
	return;
}

my %delays;

# How long it took until the call was over. The machine may hold up one of the three in a phase, and some
# of a way to end it.
sub delay_ok
{
	my ($delay, $way, $phase) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	push @{ $delays{$_} }, $delay for $way, $phase->{name};
	return cmp_ok($delay, '<', PROMPTLY, "$way while $phase->{name}: at once");
}

is(scalar @phases, $expected, 'every phase can be made here') or diag(join ', ', map { $_->{name} } @phases);
my $s = $gw->session;
for my $phase (@phases)
{
	my $name = "cancel while $phase->{name}";
	enter($s, $phase);
	my $when = time;
	$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
	my $r = $s->finish;
	delay_ok($r->{ended} - $when, 'cancel', $phase);
	error_ok($r, { sqlstate => '57014', message => qr/^canceling statement due to user request$/ }, $name);
	after_ok($s, $phase, $name);

	$name = "statement_timeout while $phase->{name}";
	$s->value(q{SET statement_timeout = } . 2000 * SLOWNESS);
	enter($s, $phase);
	$r = $s->finish;
	cmp_ok($r->{seconds}, '>', 1.9 * SLOWNESS, "$name: not before");
	delay_ok($r->{seconds} - 2 * SLOWNESS, 'statement_timeout', $phase);
	error_ok($r, { sqlstate => '57014', message => qr/^canceling statement due to statement timeout$/ }, $name);
	$s->value(q{RESET statement_timeout});
	after_ok($s, $phase, $name);

	$name = "terminate while $phase->{name}";
	my $victim = $gw->session;
	enter($victim, $phase);
	$when = time;
	$admin->value('SELECT pg_terminate_backend(' . $victim->pid . ')');
	delay_ok(gone($victim->pid, PROMPTLY) // PROMPTLY, 'terminate', $phase);
	$r = $victim->finish;
	ok($r->{lost}, "$name: the connection ends");
	is($r->{sqlstate}, '57P01', $name);
	after_ok(undef, $phase, $name);
}
for my $of (sort keys %delays)
{
	my @sorted = sort { $a <=> $b } @{ $delays{$of} };
	cmp_ok($sorted[ (@sorted - 1) / 2 ], '<', USUALLY, "$of: as a rule at once");
}

# A batch ends with all of its calls

$fake->reset;
$s->start(q{SELECT count(*) FROM llm_complete_batch(array(SELECT 'p' || g FROM generate_series(1, 40) g), model => 'silent', max_concurrency => 40)});
ok($fake->wait_for(sub { $_[1]{in_flight} == 40 }), 'a batch has 40 calls in flight');
my $when = time;
$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
my $r = $s->finish;
cmp_ok($r->{ended} - $when, '<', PROMPTLY, 'cancel ends them at once');
error_ok($r, { sqlstate => '57014' }, 'cancel of a batch');
ok($fake->wait_for(sub { ($_[1]{outcomes}{client_closed} // 0) == 40 }), 'and all of their connections');

# A client that leaves: PostgreSQL notices it when it is told to look

$gw->sql(q{ALTER SYSTEM SET client_connection_check_interval = '100ms'});
$gw->node->reload;
my $leaver = $gw->session;
my $pid = $leaver->pid;
enter($leaver, $phases[-4]);
is($phases[-4]{model}, 'silent', 'a call that waits');
$leaver->quit;
ok(defined gone($pid, 10), 'ends when its client is gone');

# Nothing is left of a thousand aborted calls

my $busy = $gw->session;
my $busy_pid = $busy->pid;

sub descriptors
{
	my %count;
	opendir my $dir, "/proc/$busy_pid/fd" or die "/proc/$busy_pid/fd: $!";
	for my $fd (grep { /^\d+$/ } readdir $dir)
	{
		my $target = readlink "/proc/$busy_pid/fd/$fd" // next;
		$count{$target =~ /^socket:/ ? 'sockets' : 'others'}++;
	}
	closedir $dir;
	return \%count;
}

sub memory
{
	my ($rss) = slurp_file("/proc/$busy_pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return { rss_kb => $rss, contexts => $busy->value('SELECT sum(total_bytes) FROM pg_backend_memory_contexts') };
}

sub abort_calls
{
	my ($n) = @_;
	my $aborted = 0;
	$busy->value(q{SET statement_timeout = } . 5 * SLOWNESS);
	while ($n > 0)
	{
		my $result = $busy->run(q{SELECT llm_complete('x', model => 'silent');} x 100);
		$aborted += () = $result->{err} =~ /ERROR:  57014/g;
		$n -= 100;
	}
	1 while defined $busy->run(q{RESET statement_timeout})->{sqlstate};    # which itself may take too long
	$busy->value(q{SELECT llm_complete('hi', model => 'gpt-4o')}) for 1 .. 3;
	return $aborted;
}

abort_calls(200);
memory();
my $fds_before = descriptors();
my $memory_before = memory();
$fake->reset;
is(abort_calls(1000), 1000, 'a thousand calls are aborted');
cmp_ok(scalar(grep { $_->{model} eq 'silent' } @{ $fake->journal }), '>', 20, 'many of them after the request was sent');
my $fds = descriptors();
my $memory = memory();
is($fds->{sockets}, $fds_before->{sockets}, 'no socket is left');
cmp_ok($fds->{others}, '<=', $fds_before->{others} + 2, 'nor another descriptor');
cmp_ok($memory->{contexts} - $memory_before->{contexts}, '<', 64 * 1024, 'nor memory in contexts');
SKIP:
{
	skip 'valgrind itself grows', 1 if SLOWNESS > 1;
	cmp_ok($memory->{rss_kb} - $memory_before->{rss_kb}, '<', 1024, 'nor memory');
}
ok($fake->wait_for(sub { $_[1]{in_flight} == 0 }), 'the provider has none in flight');
$gw->no_crash_ok;

# The postmaster dies

my $postmaster = $gw->node->{_pid};
enter($s, $phases[-4]);
$pid = $s->pid;
my @children = children($postmaster);
$gw->node->kill9;
ok(defined gone($pid, PROMPTLY), 'a call ends with the postmaster');
ok($s->finish->{lost}, 'so does its connection');
ok($fake->wait_for(sub { ($fake->last_request->{outcome} // '') eq 'client_closed' }), 'and the request');
defined gone($_) or die "process $_ does not end" for $postmaster, @children;

# where nobody reaps the postmaster its process id seems to be alive
unlink $gw->node->data_dir . '/postmaster.pid', $gw->node->host . '/.s.PGSQL.' . $gw->node->port . '.lock';
$gw->node->start;
is($gw->session->value(q{SELECT llm_complete('hi', model => 'gpt-4o')}), 'echo: hi', 'after a restart calls work');

done_testing();

sub children
{
	my ($parent) = @_;
	my @found;
	for my $file (glob '/proc/[0-9]*/stat')
	{
		open my $stat, '<', $file or next;
		my $line = <$stat> // '';
		push @found, $1 if $line =~ /^(\d+) \(.*\) \S (\d+)/ && $2 == $parent;
	}
	return @found;
}
