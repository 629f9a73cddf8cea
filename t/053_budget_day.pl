# A day of mixed priorities at one budget, on a clock that the test sets: who gets which tier at which
# time, and that hours, days, weeks and months end when they end where the budget is, also where
# clocks are changed. Asserted from SQL.
use strict;
use warnings;

use FindBin;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(error_ok literal row rows wait_until);

my $gw = LlmGateway->new(
	name => 'day',
	conf => "llm_gateway.worker_idle_timeout = 0\nllm_gateway.ledger_sync_timeout = 10s\n");
my $admin = $gw->admin;
plan skip_all => 'the clock can be set only where llm_gateway is built with -DLLM_GATEWAY_TESTING'
  unless $admin->value(q{SELECT count(*) FROM pg_settings WHERE name = 'llm_gateway.testing_clock'});
my $s = $gw->session;
my ($r, $row);

# Each answer has three tokens; a token costs a dollar, half of one, or ten cents.
my %model = (best => [ 'premium', 1_000_000 ], good => [ 'standard', 500_000 ], cheap => [ 'economy', 100_000 ]);
$gw->add_models('fake', $_, { tier => "'$model{$_}[0]'", input_price => 0, output_price => $model{$_}[1], upstream_name => "'tokens-3'" }) for keys %model;
$gw->add_models('fake', 'pay', { tier => "'economy'", input_price => 0, output_price => 1_000_000, upstream_name => "'tokens-100000'" });
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('fake/best', 1), ('fake/good', 2), ('fake/cheap', 3)});

sub clock { my ($session, $moment) = @_; $session->value("SET llm_gateway.testing_clock = '$moment'"); return }

# A call that costs so many dollars: 'ok', or the error's class.
sub pay
{
	my ($session, $name, $dollars) = @_;
	return $session->value(qq{SELECT coalesce(error_class, 'ok') FROM llm_complete_detail('hi', model => 'fake/pay', max_tokens => $dollars, tags => '{"b": "$name"}')});
}

# How it stands for that session: spent, and the period's beginning and end.
sub status
{
	my ($session, $name) = @_;
	return $session->value("SELECT concat_ws(' ', spent_usd::float8, to_char(period_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI'), to_char(resets_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI')) FROM llm_budget_status WHERE budget = "
		  . literal($name));
}

# The clock

clock($s, '2031-05-07 08:09:10.123+00');
$row = row($s, q{SELECT request_id FROM llm_complete_detail('hi')});
is($admin->value("SELECT created_at = '2031-05-07 08:09:10.123+00' FROM llm_requests WHERE request_id = $row->{request_id}"), 't', 'the clock of a session can be set');
is($admin->value("SELECT started_at = '2031-05-07 08:09:10.123+00' FROM llm_attempts WHERE request_id = $row->{request_id}"), 't', 'of its attempts as well');
is($admin->value(q{SELECT sum(requests) FROM llm_daily_spend WHERE day = '2031-05-07'}), 1, 'the day is that of the clock');
error_ok($s->run(q{SET llm_gateway.testing_clock = 'never'}), { sqlstate => '22023' }, 'it is a time');
$s->value('RESET llm_gateway.testing_clock');
$row = row($s, q{SELECT request_id FROM llm_complete_detail('hi')});
is($admin->value("SELECT created_at BETWEEN now() - interval '1 minute' AND now() + interval '1 minute' FROM llm_requests WHERE request_id = $row->{request_id}"), 't', 'and is right again');

# The day: a call each minute

my $LIMIT = 1600;
$gw->add_budget('day', $LIMIT, period => "'day'");
$s->run(q{SET llm_gateway.tags = '{"b": "day"}'});
$s->value(q{CREATE TEMP TABLE log (minute int, priority text, spent numeric, model_tier text, error_class text, cost numeric, notice text)});
my @mix = qw(low normal high low normal normal critical low);
my $began = time;
for my $hour (0 .. 23)
{
	$r = $s->run(sprintf <<'SQL', join(', ', map { literal($_) } @mix), $hour, $hour);
DO $$
DECLARE
	mix CONSTANT text[] := ARRAY[%s];
	m int;
BEGIN
	FOR m IN %d * 60 .. %d * 60 + 59 LOOP
		PERFORM set_config('llm_gateway.testing_clock', (timestamptz '2027-04-14 00:00+00' + m * interval '1 minute')::text, false);
		INSERT INTO log
		SELECT m, p, (SELECT spent_usd FROM llm_budget_status WHERE budget = 'day'), d.*
		FROM (SELECT mix[1 + m %% 8] AS p) AS q,
			LATERAL (SELECT model_tier, error_class, cost_usd, notice FROM llm_complete_detail('Minute ' || m, p, max_tokens => 3)) AS d;
	END LOOP;
END
$$
SQL
	defined $r->{sqlstate} and die $r->{err};
}
diag(sprintf 'a day took %.1f s', time - $began);

# what each row should be: by the fraction that remained before it
$s->value(qq{
	CREATE TEMP VIEW judged AS
	SELECT log.*, $LIMIT - spent AS remaining, ($LIMIT - spent) / $LIMIT AS fraction,
		$LIMIT - spent - CASE WHEN may_use_reserve THEN 0 ELSE 0.05 * $LIMIT END AS room,
		CASE WHEN NOT may_use_reserve AND ($LIMIT - spent) <= 0.05 * $LIMIT THEN 'none'
			WHEN $LIMIT - spent > premium_above * $LIMIT THEN 'premium'
			WHEN $LIMIT - spent > standard_above * $LIMIT THEN 'standard'
			WHEN $LIMIT - spent > economy_above * $LIMIT THEN 'economy'
			ELSE 'none' END AS due,
		coalesce(model_tier, 'none') AS got
	FROM log JOIN llm_priorities p ON p.name = log.priority});
is($s->value('SELECT count(*) FROM log'), 1440, 'a call each minute');
is($s->value(q{SELECT count(*) FROM log WHERE error_class <> 'budget'}), 0, 'none fails for another reason');
my %rank = (premium => 1, standard => 2, economy => 3, none => 4);
my $rank = sub { return "(CASE $_[0] " . join(' ', map { "WHEN '$_' THEN $rank{$_}" } sort keys %rank) . ' END)' };
is($s->value("SELECT count(*) FROM judged WHERE @{[ $rank->('got') ]} < @{[ $rank->('due') ]}"), 0, 'no call gets a better tier than what remains allows');
is($s->value(q{SELECT string_agg(format('minute %s, %s, %s left: %s instead of %s', minute, priority, remaining, got, due), '; ') FROM (SELECT * FROM judged WHERE room >= 3 AND got <> due LIMIT 10) q}), '',
	'nor a worse one, while what it costs is there');
is($s->value(q{SELECT string_agg(concat_ws(' ', priority, tiers), ', ' ORDER BY rank) FROM (SELECT priority, string_agg(DISTINCT got, ' ' ORDER BY got) AS tiers FROM judged WHERE got = 'none' OR room >= 3 GROUP BY priority) q JOIN llm_priorities p ON p.name = q.priority}),
	'critical none premium, high economy none premium standard, normal economy none premium standard, low economy none premium standard', 'all that can happen has happened') or
  diag $s->value(q{SELECT priority, got, count(*), min(minute), min(remaining), max(remaining) FROM judged GROUP BY 1, 2 ORDER BY 1, 4});
is($s->value(q{SELECT count(*) FROM judged WHERE priority = 'critical' AND got NOT IN ('premium', 'none')}), 0, 'critical calls are answered by the best');
cmp_ok($s->value(q{SELECT min(minute) FROM judged WHERE priority = 'critical' AND got = 'none'}), '>',
	$s->value(q{SELECT max(minute) FROM judged WHERE priority <> 'critical' AND got <> 'none'}), 'and refused after all others');
is($s->value(q{SELECT count(*) FROM judged WHERE priority = 'critical' AND got = 'none' AND remaining >= 3}), 0, 'and only when that cannot be paid any more');
is($s->value(q{SELECT count(*) FROM judged WHERE priority IN ('normal', 'high') AND got = 'none' AND room >= 0.3}), 0, 'normal and high ones are not refused before the reserve is reached');
is($s->value(q{SELECT count(*) FROM judged WHERE priority = 'low' AND got = 'none' AND fraction > 0.10}), 0, 'low ones not before a tenth is left');
is($s->value(q{SELECT count(*) FROM judged WHERE priority = 'low' AND got <> 'none' AND fraction <= 0.10}), 0, 'but then');
is($s->value(q{SELECT count(*) FROM judged WHERE (got IN ('standard', 'economy')) <> (notice IS NOT NULL)}), 0, 'who gets less is told so');
cmp_ok($s->value('SELECT sum(cost) FROM log'), '<=', $LIMIT, 'the limit is kept');
cmp_ok($s->value('SELECT sum(cost) FROM log'), '>', $LIMIT - 3, 'and used up');
ok($gw->drained, 'all is booked');
my $total = $s->value('SELECT sum(cost)::float8 FROM log');
is(status($s, 'day'), "$total 2027-04-14T00:00 2027-04-15T00:00", 'the budget has the sum of the answers');
is($admin->value(q{SELECT sum(cost_usd)::float8 FROM llm_requests WHERE budgets = '{day}'}), $total, 'the ledger, too');
is($admin->value(q{SELECT sum(cost_usd)::float8 FROM llm_daily_spend WHERE day = '2027-04-14'}), $total, 'and its day');
is($admin->value(q{SELECT sum(r.cost_usd) = (SELECT sum(spent_nano) FROM _llm_budget_spend) / 1e9 FROM llm_requests r WHERE budgets = '{day}'}), 't', 'and the sum that a restart begins with');
is($admin->value(q{SELECT count(*) FROM llm_requests WHERE status = 'rejected' AND tags @> '{"b": "day"}'}), $s->value(q{SELECT count(*) FROM log WHERE error_class = 'budget'}), 'who was refused is in the ledger');

# The day after

clock($s, '2027-04-14 23:59:59.999+00');
is($s->value(q{SELECT error_class FROM llm_complete_detail('hi', 'critical', max_tokens => 3)}), 'budget', 'a moment before midnight: nothing');
clock($s, '2027-04-15 00:00+00');
is(status($s, 'day'), '0 2027-04-15T00:00 2027-04-16T00:00', 'midnight: all is there again');
is($s->value(q{SELECT string_agg(model_tier, ' ') FROM llm_priorities p, LATERAL llm_complete_detail('hi', p.name, max_tokens => 3)}), 'premium premium premium premium', 'for all');
is(status($s, 'day'), '12 2027-04-15T00:00 2027-04-16T00:00', 'on the new account');

# each session has its clock, and its period
my $yesterday = $gw->session;
clock($yesterday, '2027-04-14 12:00+00');
is(status($yesterday, 'day'), "$total 2027-04-14T00:00 2027-04-15T00:00", 'a clock that is set back: the account of that day');
is(pay($yesterday, 'day', 1), 'budget', 'of which nothing is left');
$gw->add_models('fake', 'hang', { tier => "'economy'", input_price => 0, output_price => 1_000_000, upstream_name => "'silent'" });
$s->start(q{SELECT llm_complete('hi', model => 'fake/hang', max_tokens => 7)});
$gw->wait_in_call($s);
my $reserved = q{SELECT reserved_usd::float8 FROM llm_budget_status WHERE budget = 'day'};
clock($admin, '2027-04-15 01:00+00');
is($admin->value($reserved), 7, 'a call under way is reserved in its day');
is($yesterday->value($reserved), 0, 'and in no other');
$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
is($s->finish->{sqlstate}, '57014', 'it is cancelled');
is($admin->value($reserved), 0, 'and nothing stays');
$s->run('RESET llm_gateway.tags');

# Periods. Each: the moments of one period, all but the last of which spend its limit, and the next.

for my $case (
	[ 'hour', 'UTC', '2027-04-14T10:00', '2027-04-14T11:00', '10:00', '10:59:59.999999' ],
	[ 'hour', 'Asia/Kolkata', '2027-04-14T09:30', '2027-04-14T10:30', '09:30', '10:29:59.9' ],
	[ 'day', 'UTC', '2028-02-29T00:00', '2028-03-01T00:00', '2028-02-29 00:00', '2028-02-29 23:59:59.9' ],
	[ 'day', 'Asia/Tokyo', '2027-04-13T15:00', '2027-04-14T15:00', '2027-04-13 15:00', '2027-04-14 14:59:59.9' ],
	[ 'day', 'Europe/Berlin', '2027-03-27T23:00', '2027-03-28T22:00', '2027-03-28 00:59:59', '2027-03-28 21:59:59.9', '23 hours' ],
	[ 'day', 'Europe/Berlin', '2027-10-30T22:00', '2027-10-31T23:00', '2027-10-31 00:30', '2027-10-31 22:59:59.9', '25 hours' ],
	[ 'day', 'Europe/Berlin', '2027-10-31T23:00', '2027-11-01T23:00', '2027-10-31 23:00', '2027-11-01 22:59:59.9', 'and the day after' ],
	[ 'week', 'UTC', '2027-04-12T00:00', '2027-04-19T00:00', '2027-04-12 00:00', '2027-04-18 23:59:59.9' ],
	[ 'week', 'America/New_York', '2027-03-08T05:00', '2027-03-15T04:00', '2027-03-08 05:00', '2027-03-15 03:59:59.9', 'with a change of clocks' ],
	[ 'month', 'UTC', '2028-02-01T00:00', '2028-03-01T00:00', '2028-02-01 00:00', '2028-02-29 23:59:59.9' ],
	[ 'month', 'America/New_York', '2027-03-01T05:00', '2027-04-01T04:00', '2027-03-01 05:00', '2027-04-01 03:59:59.9', 'with a change of clocks' ],
	[ 'month', 'UTC', '2027-12-01T00:00', '2028-01-01T00:00', '2027-12-15 00:00', '2027-12-31 23:59:59.9', 'the last of the year' ])
{
	my ($period, $zone, $start, $end, $first, $last, $more) = @$case;
	my $name = "$period in $zone" . ($more ? ", $more" : '');
	$gw->add_budget($name, 10, period => literal($period), timezone => literal($zone), reserve_fraction => 0);
	$first = "2027-04-14 $first" if $first !~ /-/;
	$last = "2027-04-14 $last" if $last !~ /-/;
	clock($s, "$first+00");
	is(status($s, $name), "0 $start $end", "$name: when it begins and ends");
	is(pay($s, $name, 6), 'ok', "$name: at first");
	clock($s, "$last+00");
	is(status($s, $name), "6 $start $end", "$name: the same at its last moment");
	is(pay($s, $name, 4), 'ok', "$name: which may spend the rest");
	is(pay($s, $name, 1), 'budget', "$name: no more");
	clock($s, ($end =~ s/T/ /r) . '+00');
	is(pay($s, $name, 10), 'ok', "$name: the next begins with all of it");
	clock($s, "$first+00");
	is(pay($s, $name, 1), 'budget', "$name: and leaves the one before as it was");
}
ok($gw->drained, 'all is booked');
is($admin->value(q{SELECT count(*) FROM llm_budgets b WHERE b.limit_usd = 10 AND (SELECT array_agg(spent_nano ORDER BY period_start) FROM _llm_budget_spend s WHERE s.budget_id = b.id) IS DISTINCT FROM ARRAY[10000000000, 10000000000]}),
	0, 'each period has its sum');

# A change of the period or the zone is a new account, with what its own period has cost
$gw->sql(q{DELETE FROM llm_budgets});
$gw->add_budget('change', 100, period => "'day'");
$s->value('RESET llm_gateway.testing_clock');
is(pay($s, 'change', 6), 'ok', 'today');
ok($gw->drained, 'it is booked');
$gw->sql(q{UPDATE llm_budgets SET period = 'month'});
is($s->value(q{SELECT spent_usd::float8 FROM llm_budget_status}), 6, 'today is of this month');
is(pay($s, 'change', 6), 'ok', 'another call');
is($s->value(q{SELECT spent_usd::float8 FROM llm_budget_status}), 12, 'is charged');

# A restart: the accounts are the same
clock($s, '2027-06-01 12:00+00');
is(pay($s, 'change', 3), 'ok', 'another month');
$_->quit for $s, $yesterday;
delete $gw->{admin};
$gw->node->restart;
$s = $gw->session;
is($s->value(q{SELECT spent_usd::float8 FROM llm_budget_status}), 12, 'after a restart: this month');
clock($s, '2027-06-30 12:00+00');
is($s->value(q{SELECT spent_usd::float8 FROM llm_budget_status}), 3, 'after a restart: the other one');
is(pay($s, 'change', 3), 'ok', 'it goes on');
is($s->value(q{SELECT spent_usd::float8 FROM llm_budget_status}), 6, 'from there');

# Fewer places for accounts than periods that are asked for at the same time: accounts come and go, and
# what they have spent stays right.

$gw->sql(q{
	DELETE FROM llm_budgets;
	ALTER SYSTEM SET llm_gateway.max_budgets = 7;
	ALTER SYSTEM SET llm_gateway.ledger_sync = off;
});
$s->quit;
delete $gw->{admin};
$gw->node->restart;
$gw->sql(q{
	INSERT INTO llm_providers (name, kind) VALUES ('quick', 'mock');
	INSERT INTO llm_models (provider, name, tier, input_price, output_price) VALUES ('quick', 'quick', 'economy', 1.234567, 7.654321);
	INSERT INTO llm_budgets (name, limit_usd, period, tags) SELECT 'hour' || n, 1000, 'hour', jsonb_build_object('n', n) FROM generate_series(1, 3) AS n;
	INSERT INTO llm_budgets (name, limit_usd, period) VALUES ('day', 1000, 'day');
});
my $file = PostgreSQL::Test::Utils::tempdir() . '/periods.sql';
append_to_file($file, <<'SQL');
\set n random(1, 3)
\set hour random(0, 3)
SELECT set_config('llm_gateway.testing_clock', '2027-07-01 0' || :hour || ':30+00', false);
SELECT error_class FROM llm_complete_detail('hello ' || :n, model => 'quick', tags => jsonb_build_object('n', :n));
SQL
my ($out, $err) = ('', '');
my $charged;
for (1 .. 6)
{
	ok(IPC::Run::run([ $gw->node->installed_command('pgbench'), '-n', '-c', 8, '-t', 500, '-f', $file, $gw->node->connstr('postgres') ], '>', \$out, '2>', \$err), 'pgbench') or diag $err;
	ok($gw->drained, 'all is booked');
	$charged = $gw->sql(q{SELECT count(DISTINCT (b.id, s.period_start)) FROM _llm_budget_spend s JOIN llm_budgets b ON b.id = s.budget_id});
	last if $charged > 7;    # by chance all places may stay with who had them first
}
diag 'places come and go: ' . $gw->sql(q{SELECT string_agg(format('%s: %s', coalesce(error_class, 'answered'), n), ', ') FROM (SELECT error_class, count(*) AS n FROM llm_requests WHERE created_at >= '2027-07-01' GROUP BY 1) AS q});
cmp_ok($charged, '>', 7, 'more accounts than there are places for were charged');
my $checked = 0;
for my $hour (0 .. 3)
{
	my $session = $gw->session;
	clock($session, "2027-07-01 0$hour:30+00");
	for my $row (rows($session, q{SELECT b.budget, spent_usd, (SELECT coalesce(sum(cost_usd), 0) FROM llm_requests WHERE budgets @> ARRAY[b.budget] AND created_at >= b.period_start AND created_at < b.resets_at) AS ledger
		FROM llm_budget_status AS b WHERE spent_usd IS NOT NULL}))
	{
		is($row->{spent_usd} + 0, $row->{ledger} + 0, "$row->{budget} at $hour:30 has spent what the ledger says");
		$checked++;
	}
}
cmp_ok($checked, '>=', 4, 'some have their places');

$gw->no_crash_ok;
done_testing();
