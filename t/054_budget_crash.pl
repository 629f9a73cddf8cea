# Budgets survive: a backend or the worker killed in the middle of calls, the server stopped at once or
# in order. Afterwards a budget has spent what the ledger says, to the last nano-dollar, and
# nothing is reserved; and as long as that is not known, nobody may spend what may be gone.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(gone literal row rows wait_until);

my $SESSIONS = 16;
my $DOLLAR = 1_000_000;

my $gw = LlmGateway->new(
	name => 'budget_crash',
	fake => { journal => 100_000 },
	conf => <<'CONF');
restart_after_crash = on
max_connections = 100
max_prepared_transactions = 5
llm_gateway.worker_idle_timeout = 0
CONF
my $node = $gw->node;
my $fake = $gw->fake;
my $directory = PostgreSQL::Test::Utils::tempdir();

# prices that leave a fraction of a cent in every sum
$gw->add_models('fake', 'slow', { tier => "'economy'", input_price => '0.123457', output_price => '17.300001', upstream_name => "'slow-20+tokens-30'" });
$gw->add_models('fake', 'hang', { tier => "'economy'", input_price => '0.123457', output_price => '17.300001', upstream_name => "'silent'" });
$gw->add_models('fake', 'pay', { tier => "'economy'", input_price => 0, output_price => $DOLLAR, upstream_name => "'tokens-100000'" });
$gw->sql(q{
	INSERT INTO llm_budgets (name, limit_usd, tags) VALUES ('all', 1000000, '{"load": 1}'), ('x1', 1000, '{"x": 1}'), ('x2', 1000, '{"x": 2}');
	INSERT INTO llm_budgets (name, limit_usd, tags, period) VALUES ('hourly', 1000, '{"load": 1}', 'hour');
	INSERT INTO llm_budgets (name, limit_usd, model, strict) VALUES ('strict', 1000, 'slow', true);
});

my $script = "$directory/load.sql";
append_to_file($script, <<'SQL');
\set x random(1, 3)
\set m random(1, 12)
SELECT error_class FROM llm_complete_detail('hello ' || :m, model => CASE :m WHEN 1 THEN 'hang' ELSE 'slow' END, max_tokens => 5 + :m,
	timeout_ms => CASE :m WHEN 1 THEN 700 ELSE 20000 END, tags => jsonb_build_object('load', 1, 'x', :x));
SQL

sub end_session { delete $gw->{admin}; return }

sub backend_in_call
{
	my $pid;
	wait_until(sub {
		($pid) = split /\n/, $gw->admin->value(q{SELECT pid FROM pg_stat_activity WHERE application_name = 'budget_load' AND state = 'active' AND wait_event_type = 'Extension' ORDER BY query_start DESC LIMIT 1});
		return $pid;
	}) or die 'no call is under way';
	return $pid;
}

my %end = (
	'a backend is killed in a call' => sub { my $pid = backend_in_call(); kill KILL => $pid; end_session(); return $pid },
	'a backend is terminated in a call' => sub { $gw->admin->value('SELECT pg_terminate_backend(' . backend_in_call() . ')'); return },
	'the worker is killed' => sub { my $pid; wait_until(sub { $pid = $gw->worker->{pid} }) or die 'there is no worker'; kill KILL => $pid; end_session(); return $pid },
	'the server is stopped at once' => sub { end_session(); $node->stop('immediate'); $node->start; return },
	'the server is stopped in order' => sub { end_session(); $node->stop('fast'); $node->start; return });

for my $sync (qw(on off))
{
	$gw->sql("ALTER SYSTEM SET llm_gateway.ledger_sync = $sync");
	$node->reload;
	for my $how (sort keys %end)
	{
		my $name = "$how, ledger_sync = $sync";
		my $before = $fake->stats->{requests};
		my ($out, $err) = ('', '');
		my $load;
		{
			local $ENV{PGAPPNAME} = 'budget_load';
			$load = IPC::Run::start(
				[ $node->installed_command('pgbench'), '-n', '-c', $SESSIONS, '-j', 2, '-T', 60, '-f', $script, $node->connstr('postgres') ],
				'>', \$out, '2>', \$err);
		}
		ok($fake->wait_for_stats(sub { $_[0]{requests} >= $before + 100 }, 60), "$name: under load");
		cmp_ok($gw->admin->value(q{SELECT reserved_usd FROM llm_budget_status WHERE budget = 'all'}), '>', 0, "$name: calls are reserved for");
		my $killed = $end{$how}->();
		$load->signal('TERM');    # what is left of it, where only one backend has ended
		eval { $load->finish };
		ok($gw->comes_back($killed), "$name: the server is up");
		ok(wait_until(sub { $gw->admin->value(q{SELECT count(*) FROM pg_stat_activity WHERE application_name = 'budget_load'}) == 0 }), "$name: no call is left");
		ok($gw->drained(60), "$name: all is booked");
		is($gw->wrong_budgets, '', "$name: what is spent is what is in the ledger, and nothing is reserved");
		is($gw->sql(q{SELECT error_class FROM llm_complete_detail('hello', model => 'slow', max_tokens => 5, tags => '{"load": 1, "x": 1}')}), '', "$name: the next call");
		ok($gw->drained(60), "$name: it is booked");
		is($gw->wrong_budgets, '', "$name: and charged");
	}
}
cmp_ok($gw->sql("SELECT count(*) FROM llm_requests WHERE status = '$_'"), '>', 0, "some requests are $_") for qw(ok unknown cancelled error);
cmp_ok($gw->sql(q{SELECT spent_usd FROM llm_budget_status WHERE budget = 'all'}), '>', 0, 'something was spent');
is($gw->sql(q{SELECT sum(cost_usd) = (SELECT sum(a.cost_usd) FROM llm_attempts a) AND sum(cost_usd) = (SELECT sum(cost_usd) FROM llm_daily_spend) FROM llm_requests}), 't', 'all ledgers have the same sum');
$gw->sql('ALTER SYSTEM RESET llm_gateway.ledger_sync');
$node->reload;

# A backend is killed with calls that are paid, but not booked yet, and the worker cannot book them: as
# long as it cannot, there is no telling what is left. A prepared transaction keeps the worker from it,
# also when the server has been started again.

$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, tags, reserve_fraction) VALUES ('behind', 20, '{"b": "behind"}', 0)});
my $pay = q{SELECT coalesce(error_class, 'ok') FROM llm_complete_detail('hi', model => 'fake/pay', max_tokens => %d, timeout_ms => 3000, tags => '{"b": "behind"}')};
is($gw->sql(sprintf $pay, 3), 'ok', 'a call that is booked');
ok($gw->drained(60), 'it is');
$gw->sql(q{BEGIN; LOCK TABLE llm_requests IN SHARE MODE; PREPARE TRANSACTION 'blocks the worker'});
is($gw->sql(sprintf $pay, 12), 'ok', 'one that cannot be booked');
is($gw->sql(q{SELECT spent_usd::float8 FROM llm_budget_status WHERE budget = 'behind'}), 15, 'it is known to be spent');
is($gw->sql(sprintf $pay, 6), 'budget', 'so that another one does not fit');
end_session();
$node->stop('immediate');
$node->start;
for my $times (1 .. 2)
{
	my $began = time;
	is(scalar @{ $gw->requests(sub { isnt($gw->sql(sprintf $pay, 6), 'ok', 'the server comes up, and the worker is blocked: a call that might pass the limit is not answered') }) }, 0, 'nor sent');
	cmp_ok(time - $began, '<', 20, 'in bounded time');
}
my $looked = time;
is($gw->sql(q{SELECT spent_usd IS NULL AND notice IS NOT NULL FROM llm_budget_status WHERE budget = 'behind'}), 't', 'llm_budget_status says that it does not know');
cmp_ok(time - $looked, '<', 15, 'in bounded time');
is($gw->sql(q{SELECT llm_complete('hi', model => 'fake/pay', max_tokens => 1)}), 'word', 'a call without a budget is');
$gw->sql(q{ROLLBACK PREPARED 'blocks the worker'});
ok($gw->drained(60), 'the worker goes on');
is($gw->sql(q{SELECT spent_usd::float8 FROM llm_budget_status WHERE budget = 'behind'}), 15, 'what was spent before is known again');
is($gw->sql(sprintf $pay, 6), 'budget', 'what does not fit is refused');
is($gw->sql(sprintf $pay, 5), 'ok', 'what fits is not');

# A call that waits for that is served when it is known
$gw->sql(q{BEGIN; LOCK TABLE llm_requests IN SHARE MODE; PREPARE TRANSACTION 'blocks the worker'; UPDATE llm_budgets SET limit_usd = 100 WHERE name = 'behind'});
is($gw->sql(sprintf $pay, 7), 'ok', 'again one that cannot be booked');
end_session();
$node->stop('immediate');
$node->start;
my $s = $gw->session;
$s->start(q{SELECT coalesce(error_class, 'ok') FROM llm_complete_detail('hi', model => 'fake/pay', max_tokens => 60, timeout_ms => 60000, tags => '{"b": "behind"}')});
my @look = map { $gw->session } 1 .. 2;
$look[0]->start(q{SELECT spent_usd IS NOT NULL AND bool_and(notice IS NULL) OVER () FROM llm_budget_status WHERE budget = 'behind'});
$look[1]->start(q{SELECT chosen FROM llm_route('hi', model => 'fake/pay', max_tokens => 10, tags => '{"b": "behind"}')});
sleep 0.5;
$gw->sql(q{ROLLBACK PREPARED 'blocks the worker'});
my $r = $s->finish;
is($look[0]->finish->{out}, 't', 'who looks at budgets waits a moment, too, and is told');
is($look[1]->finish->{out}, 't', 'and llm_route as long as a call');
like($r->{out}, qr/^(ok|budget)$/, "a call that comes too early waits or is refused ($r->{out}, $r->{seconds} s)");
ok($gw->drained(60), 'the worker goes on');
is($gw->admin->value(q{SELECT spent_usd::float8 FROM llm_budget_status WHERE budget = 'behind'}), $r->{out} eq 'ok' ? 87 : 27, 'the sum is right');
is($gw->wrong_budgets, '', 'of all budgets');

my $text = $gw->log_text;
is(join("\n", grep { /PANIC:|TRAP:|terminated by signal (?!9: Killed)|exited with exit code [^012]/ } split /\n/, $text), '', 'no process has ended in another way');
done_testing();
