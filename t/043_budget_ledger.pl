# What budgets are charged is booked with the attempts that cost it: to the nano-dollar, once, in the
# period that the attempt was reserved in, whatever becomes of the server in between.
#
# The requests are records of the spool as a server left them that went down before they were booked.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(row rows wait_until);
use SpoolFile;

my $gw = LlmGateway->new(name => 'budget_ledger', conf => <<'CONF');
restart_after_crash = on
llm_gateway.worker_idle_timeout = 0
CONF
my $node = $gw->node;
my $id = 1000;
my $november = '2026-11-01';
my $december = '2026-12-01';
my @charged;    # ids of requests with attempts that are charged to some budget

# Stops the server, leaves the spool behind and starts it again; the worker books it.
sub book
{
	my ($spool, %how) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	delete $gw->{admin};
	$node->stop($how{mode} // 'fast');
	$spool->write;
	$node->start;
	ok($gw->drained, $how{name} // 'what was left is booked');
	return;
}

sub spend
{
	my ($where) = @_;
	return $gw->admin->value('SELECT budget_id, (period_start AT TIME ZONE \'UTC\')::date, spent_nano FROM _llm_budget_spend'
		  . (defined $where ? " WHERE $where" : '') . ' ORDER BY 1, 2');
}

sub budgets { return $gw->admin->value("SELECT coalesce(budgets::text, 'NULL') FROM llm_requests WHERE request_id = $_[0]") }

# Two budgets, retries, a period that ends
my $spool = SpoolFile->new($gw);
my @both = ([ 4, $november, 'team "a"' ], [ 7, $november, 'all' ]);

$spool->note(++$id, { charged => \@both });
$spool->end($id, { last => { cost => 1_234_567_891, source => 'usage' } });
my $both = $id;

$spool->note(++$id, { charged => [ [ 7, $november, 'all' ] ], started_at => '2026-11-30 23:59:59' });
$spool->note($id, { attempt => 2, charged => [ [ 7, $december, 'all' ], [ 2, $december, 'first' ] ], started_at => '2026-12-01 00:00:01', previous => { cost => 10, source => 'estimate' } });
$spool->end($id, { attempts => 2, last => { cost => 300, source => 'usage' } });
my $retried = $id;

$spool->note(++$id, { charged => \@both });
$spool->end($id, { status => 'error', last => { cost => 0 } });
my $free = $id;

$spool->note(++$id, { charged => [ [ 9, $november, 'unpriced' ] ] });
$spool->end($id, { last => { cost => -1 } });
my $unpriced = $id;

$spool->note(++$id, {});
$spool->end($id, { last => { cost => 77, source => 'usage' } });
my $unbudgeted = $id;

$spool->note(++$id, { charged => \@both, expected_cost => 5_000 });
my $unknown = $id;

$spool->note(++$id, { charged => \@both });
$spool->note($id, { attempt => 2, charged => [ $both[1] ], previous => { cost => 3, source => 'usage' }, expected_cost => 4 });
$spool->end($id, { status => 'cancelled', attempts => 2 });
my $cancelled = $id;
book($spool);

is(spend(), join("\n", '2|2026-12-01|300', '4|2026-11-01|1234572894', '7|2026-11-01|1234572908', '7|2026-12-01|300'),
	'each budget has what the attempts did cost that were charged to it, in the period of each');
is(budgets($both), '{"team \"a\"",all}', 'a request names the budgets it was charged to, by id');
is(budgets($retried), '{first,all}', 'each once, whichever attempt it was');
is(budgets($free), '{"team \"a\"",all}', 'also where there was nothing to pay');
is(budgets($unpriced), '{unpriced}', 'or nobody knows what');
is(budgets($unbudgeted), 'NULL', 'none is NULL');
is($gw->admin->value("SELECT status, cost_usd FROM llm_requests WHERE request_id = $unknown"), 'unknown|0.000005', 'what was under way when the server went down is unknown');
is(budgets($unknown), '{"team \"a\"",all}', 'and charged with what was expected');
is($gw->admin->value("SELECT array_agg(cost_usd ORDER BY attempt) FROM llm_attempts WHERE request_id = $cancelled"), '{0.000000003,0.000000004}', 'as is an attempt that nobody saw the end of');

# To the nano-dollar, over many steps of the worker
my %sum = map { $_ => $gw->admin->value("SELECT coalesce(sum(spent_nano), 0) FROM _llm_budget_spend WHERE budget_id = $_") } 4, 7;
my $attempts = $gw->admin->value('SELECT coalesce(sum(cost_usd), 0) FROM llm_attempts');
$spool = SpoolFile->new($gw);
srand 7;
for (1 .. 3000)
{
	my $cost = int rand 1_000_000_000_000;
	$spool->note(++$id, { charged => $_ % 3 ? \@both : [ $both[0] ], expected_cost => $cost });
	$spool->end($id, { last => { cost => $cost, source => 'usage' } }) if $_ % 5;
	$sum{4} += $cost;
	$sum{7} += $cost if $_ % 3;
}
book($spool, mode => 'immediate', name => 'thousands of requests, a fifth without an end');
is($gw->admin->value(qq{SELECT string_agg(budget_id || '=' || sum, ' ' ORDER BY budget_id) FROM (SELECT budget_id, sum(spent_nano) FROM _llm_budget_spend WHERE budget_id IN (4, 7) GROUP BY 1) s}),
	"4=$sum{4} 7=$sum{7}", 'are charged exactly');
is($gw->admin->value('SELECT (sum(cost_usd) * 1e9 - ' . $attempts . ' * 1e9)::bigint = (SELECT spent_nano - 1234572894 FROM _llm_budget_spend WHERE budget_id = 4) FROM llm_attempts'),
	't', 'as their attempts say');

# Once
my $before = spend();
book($spool, name => 'a spool that was booked, put back');
is(spend(), $before, 'charges nothing again');
$spool->{id}++;
book($spool, name => 'its records in the spool of another start');
is(spend(), $before, 'do not either');
like($gw->log_text, qr/requests were in the ledger already/, 'the log says so');

# More than a number holds stays at the largest; nothing of it keeps the ledger from going on
$spool = SpoolFile->new($gw);
for (1 .. 3)
{
	$spool->note(++$id, { charged => [ [ 100, $november, 'huge' ] ] });
	$spool->end($id, { last => { cost => '9223372036854775000', source => 'usage' } });
}
book($spool, name => 'costs beyond belief');
is(spend('budget_id = 100'), '100|2026-11-01|9223372036854775807', 'end at the largest sum');
$spool = SpoolFile->new($gw);
$spool->note(++$id, { charged => [ [ 100, $november, 'huge' ] ] });
$spool->end($id, { last => { cost => 1, source => 'usage' } });
book($spool, name => 'another one');
is(spend('budget_id = 100'), '100|2026-11-01|9223372036854775807', 'leaves it there');
is($gw->worker->{last_error}, undef, 'without an error');

# As many budgets as there can be, and one more
$spool = SpoolFile->new($gw);
$spool->note(++$id, { charged => [ map { [ 200 + $_, $november, "b$_" ] } reverse 1 .. 32 ] });
$spool->end($id, { last => { cost => 11, source => 'usage' } });
my $many = $id;
$spool->note(++$id, { charged => [ map { [ 300 + $_, $november, "b$_" ] } 1 .. 33 ] });
$spool->end($id, { last => { cost => 11, source => 'usage' } });
my $excess = $id;
book($spool, name => 'a request with 32 budgets, one with 33');
is($gw->admin->value('SELECT count(*), sum(spent_nano) FROM _llm_budget_spend WHERE budget_id BETWEEN 201 AND 232'), '32|352', 'all 32 are charged');
is($gw->admin->value("SELECT budgets = (SELECT array_agg('b' || n ORDER BY n) FROM generate_series(1, 32) n) FROM llm_requests WHERE request_id = $many"), 't', 'and named by id');
is($gw->admin->value("SELECT count(*) FROM llm_requests WHERE request_id = $excess") . spend('budget_id BETWEEN 301 AND 399'), '0', 'what the gateway cannot have written is not booked');
like($gw->log_text, qr/records are damaged or incomplete/, 'the log says so');

# Who locks the table holds up nobody
my $locker = $gw->session;
my $s = $gw->session;
$gw->add_models('fake', 'gpt-4o', { input_price => 1, output_price => 1 });
$locker->value('BEGIN; LOCK TABLE _llm_budget_spend IN SHARE MODE');
my $r = $s->run(q{SET llm_gateway.ledger_sync_timeout = '60s'; SELECT llm_complete('hi', model => 'fake/gpt-4o')});
is("$r->{out}$r->{err}", 'echo: hi', 'a call while the table is locked');
$r = $locker->run(q{SET LOCAL llm_gateway.ledger_sync_timeout = '60s'; SELECT llm_complete('hi', model => 'fake/gpt-4o')});
is("$r->{out}$r->{err}", 'echo: hi', 'and one of who locked it');
cmp_ok($r->{seconds}, '<', 20, 'does not wait for itself');
$locker->value('COMMIT');
ok($gw->drained(30), 'afterwards all is booked');

# An extension that never was: its budgets had ids of their own
$spool = SpoolFile->new($gw);
my $xid = $s->value('BEGIN; SELECT pg_current_xact_id(); ROLLBACK');
$spool->note(++$id, { charged => \@both, request => { extension => 4_000_000_000, creator => $xid } });
$spool->end($id, { last => { cost => 5, source => 'usage' } });
$before = spend();
book($spool, name => 'a request of an extension whose creation was rolled back');
is($gw->admin->value("SELECT cost_usd, budgets FROM llm_requests WHERE request_id = $id"), '0.000000005|', 'is in the ledger of the one that is there');
is(spend(), $before, 'and charges none of its budgets');

# Dump and restore
$node->safe_psql('postgres', 'CREATE DATABASE restored');
my $dump = PostgreSQL::Test::Utils::tempdir() . '/dump';
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restored');
my $all = 'SELECT budget_id, period_start, spent_nano FROM _llm_budget_spend ORDER BY 1, 2';
is($node->safe_psql('restored', $all), $node->safe_psql('postgres', $all), 'what was spent is in a dump');
is($node->safe_psql('restored', 'SELECT count(*) FROM llm_requests WHERE budgets IS NOT NULL'),
	$node->safe_psql('postgres', 'SELECT count(*) FROM llm_requests WHERE budgets IS NOT NULL'), 'as are the names');

# Whose business it is
$gw->sql(q{CREATE ROLE caller LOGIN; CREATE ROLE analyst LOGIN; SELECT llm_grant('caller', 'call'), llm_grant('analyst', 'report')});
is($gw->session('postgres', user => 'caller')->run('SELECT FROM _llm_budget_spend')->{sqlstate}, '42501', 'callers do not see it');
is($gw->session('postgres', user => 'analyst')->run('SELECT FROM _llm_budget_spend LIMIT 0')->{sqlstate}, undef, 'who may report does, as for a dump');
is($gw->session('postgres', user => 'analyst')->run('UPDATE _llm_budget_spend SET spent_nano = 0')->{sqlstate}, '42501', 'but does not change it');

$gw->no_crash_ok;
done_testing;
