# The ledger survives: the worker, the postmaster or a backend in the middle of a call killed, the
# server stopped immediately or fast, under load.  Each time, and without a further call, everything
# that reached the provider is in the ledger once.
#
# LLM_GATEWAY_CRASH_ROUNDS sets how often each of them happens, LLM_GATEWAY_SEED what is called.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(gone wait_until);

my $ROUNDS = $ENV{LLM_GATEWAY_CRASH_ROUNDS} || 2;
my $SESSIONS = 24;

# A load is under way when the provider has had so many of its requests; the audits tell whether all
# that matters has been met.
my $UNDER_WAY = 150;

my $gw = LlmGateway->new(
	name => 'crash',
	fake => { journal => 500_000 },
	conf => <<'CONF');
restart_after_crash = on
max_connections = 100
llm_gateway.log_content = on
CONF
my $node = $gw->node;
my $fake = $gw->fake;
my $directory = PostgreSQL::Test::Utils::tempdir();
my @records;
my %met;

# Up to then a call is in some backend's hands.
sub backend_in_call
{
	my $pids = q{SELECT pid FROM pg_stat_activity WHERE application_name = 'ledger_load' AND state = 'active' AND wait_event_type = 'Extension'};
	for (1 .. 500)
	{
		my ($pid) = split /\n/, $gw->admin->value("$pids ORDER BY query_start DESC LIMIT 1");
		return $pid if $pid;
		sleep 0.01;
	}
	die 'no call is under way';
}

sub end_session { delete $gw->{admin}; return }

# The ways to end; the server comes up again by itself, or is started. Each returns the process that it
# has killed, if the postmaster is to see it.
my %end = (
	'the worker is killed' => sub {
		my $pid;
		wait_until(sub { $pid = $gw->worker->{pid} }) or die 'there is no worker';
		kill KILL => $pid;
		end_session();
		return $pid;
	},
	'a backend is killed in a call' => sub {
		my $pid = backend_in_call();
		kill KILL => $pid;
		end_session();
		return $pid;
	},
	'the postmaster is killed' => sub {
		my $postmaster = $node->{_pid};
		my @children = split /\n/, $gw->admin->value('SELECT pid FROM pg_stat_activity');
		end_session();
		$node->kill9;
		defined gone($_) or die "process $_ does not end" for $postmaster, @children;

		# where nobody reaps the postmaster its process id seems to be alive
		unlink $node->data_dir . '/postmaster.pid', $node->host . '/.s.PGSQL.' . $node->port . '.lock';
		$node->start;
		return;
	},
	'the server is stopped immediately, and again when it is up' => sub {
		end_session();
		for (1 .. 2)
		{
			$node->stop('immediate');
			$node->start;
		}
		return;
	},
	'the server is stopped fast' => sub {
		end_session();
		$node->stop('fast');
		$node->start;
		return;
	});

# What the audit found, as one text.
sub findings
{
	my @options = @_;
	my $audit = $gw->ledger_load('audit', '--killed', @options);
	note(join ', ', map { "$_: $audit->{counts}{$_}" } sort keys %{ $audit->{counts} });
	$met{$_} += $audit->{counts}{$_} for keys %{ $audit->{counts} };
	return join "\n", grep { defined } @{ $audit->{findings} }[ 0 .. 19 ];
}

# The lines of the log that no end of ours accounts for.
sub unexpected_log
{
	my $text = $gw->log_text;
	return join "\n", grep { /PANIC:|TRAP:|terminated by signal (?!9: Killed)|exited with exit code [^012]/ } split /\n/, $text;
}

$gw->ledger_load('setup');
my $since = 0;
my $seed = ($ENV{LLM_GATEWAY_SEED} || 1) * 1000;
for my $round (1 .. $ROUNDS)
{
	for my $sync (qw(on off))
	{
		for my $how (sort keys %end)
		{
			my $name = "$how (ledger_sync = $sync, round $round)";
			my $journal = $fake->stats->{requests};
			my $file = "$directory/$seed.json";
			my $load = $gw->ledger_load_start('load', '--records', $file, '--calls', 1_000_000, '--seconds', 60, '--sessions', $SESSIONS, '--sync', $sync, '--seed', ++$seed, '--crash');
			ok($fake->wait_for_stats(sub { $_[0]{requests} >= $journal + $UNDER_WAY }, 60), "$name: under load");
			sleep 0.1 * ($seed % 4);
			my $killed = $end{$how}->();
			my $told = $load->finish;
			is(join("\n", grep { defined } @{ $told->{faults} }[ 0 .. 9 ]), '', 'until then the ledger was sound');

			ok($gw->comes_back($killed), 'the server is up');
			ok($gw->drained(60), 'nothing is left in the spool, although nobody calls') or diag(explain($gw->worker));
			$fake->wait_for_stats(sub { $_[0]{in_flight} == 0 });
			is(findings('--records', $file, '--since', $since, '--journal-since', $journal), '', "$name: clients, provider and ledger agree");
			push @records, $file;
			$since = $gw->admin->value('SELECT max(request_id) FROM llm_requests');
		}
	}
}

my %last = %met;
cmp_ok($last{$_} // 0, '>', 0, "$_: some") for 'client answered', 'client lost', 'ledger ok', 'ledger unknown', 'ledger cancelled', 'ledger error';

# Nothing of an earlier round was booked again in a later one
is(findings('--records', @records), '', 'of all rounds together, too');
my $row = $gw->worker;
is($row->{discarded}, 0, 'no record was discarded');
is($gw->admin->value(q{SELECT count(*) FROM llm_requests WHERE application_name IS DISTINCT FROM 'ledger_load'}), 0, 'nobody else has called');

# Requests that are open for longer than the spool keeps what was written meanwhile

$gw->sql(q{ALTER SYSTEM SET llm_gateway.ledger_buffer = '4MB'});
$node->reload;
my $spool = $node->data_dir . '/llm_gateway/spool/' . $gw->admin->value('SELECT oid FROM pg_database WHERE datname = current_database()');

# What of it is on disk, in segments of 1 MB.
sub segments { return scalar(my @files = glob "$spool/*/*") }

# Calls that write so many MB.
sub write_calls
{
	my ($s, $mb) = @_;
	return $s->run("SELECT llm_complete('x', model => 'again/metered', tags => jsonb_build_object('t', repeat('x', 60000))) FROM generate_series(1, 16 * $mb)")->{sqlstate};
}

my @slow = map { $gw->session } 1 .. 3;
$slow[$_]->start("SELECT llm_complete('slow $_', model => 'again/metered+silent', system_prompt => 'Be slow.', max_tokens => 1000)") for 0 .. 2;
ok($fake->wait_for_stats(sub { $_[0]{in_flight} == 3 }), 'calls are under way');
my $s = $gw->session;
is(write_calls($s, 10), undef, 'for so long that others write more than ledger_buffer');
cmp_ok(segments(), '<=', 6, 'of which the spool keeps no more');
$gw->admin->value('SELECT pg_cancel_backend(' . $slow[0]->pid . ')');
is($slow[0]->finish->{sqlstate}, '57014', 'one ends');
is($node->poll_query_until('postgres', q{SELECT status = 'cancelled' FROM llm_requests WHERE prompt = 'slow 0'}), 1, 'and is booked');
kill KILL => $slow[1]->pid;
end_session();
$_->finish for @slow[ 1, 2 ];
ok($gw->comes_back($slow[1]->pid), 'a backend is killed with one, another dies with it');
ok($gw->drained(60), 'nothing is left in the spool');
is($gw->sql(q{SELECT string_agg(concat_ws(' ', prompt, status, r.attempts, a.input_tokens, a.output_tokens, a.cost_source, a.cost_usd = r.cost_usd), ', ' ORDER BY prompt)
		FROM llm_requests r JOIN llm_attempts a USING (request_id) WHERE prompt LIKE 'slow%'}),
	'slow 0 cancelled 1 4 0 estimate t, slow 1 unknown 1 4 1000 estimate t, slow 2 unknown 1 4 1000 estimate t', 'each is booked once');
is($gw->sql(q{SELECT count(*) FROM llm_requests WHERE tags ? 't' AND status = 'ok'}), 160, 'and so are the others');
is($gw->sql(q{SELECT sum(requests) = (SELECT count(*) FROM llm_requests) AND sum(cost_usd) = (SELECT sum(cost_usd) FROM llm_attempts) FROM llm_daily_spend}), 't', 'the day is the sum of all');
is($gw->sql(q{SELECT count(*) FROM _llm_spool_carried}), 0, 'nothing stays behind');
is($fake->stats->{forgotten}, 0, 'the fake remembers all');
unlike($gw->log_text, qr/in the ledger before they were booked|damaged/, 'nor read twice');
is(unexpected_log(), '', 'no process has ended in another way');

done_testing();
