# Budgets: what they are charged, whom they refuse, and that a change of one is a change of
# configuration. In these tests a token of an answer of the model "pay" costs a dollar.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok literal row rows wait_until);

my $gw = LlmGateway->new(
	name => 'budgets',
	conf => "llm_gateway.worker_idle_timeout = 0\nllm_gateway.ledger_sync_timeout = 10s\n");
my $fake = $gw->fake;
my $admin = $gw->admin;
my $s = $gw->session;
my ($r, $row);

my $DOLLAR = 1_000_000;    # per million tokens
my %economy = (tier => "'economy'", input_price => 0);
$gw->add_models('fake', 'pay', { %economy, output_price => $DOLLAR, upstream_name => "'tokens-100000'" });
$gw->add_models('fake', 'hang', { %economy, input_price => $DOLLAR, output_price => 0, upstream_name => "'silent'" });
$gw->add_models('fake', 'breaks', { %economy, input_price => $DOLLAR, output_price => 0 });
$gw->add_models('fake', 'unpriced', { tier => "'economy'", upstream_name => "'default'" });
my %tier = (best => 'premium', good => 'standard', cheap => 'economy');
$gw->add_models('fake', $_, { tier => "'$tier{$_}'", input_price => 0, output_price => 0, upstream_name => "'default'" }) for keys %tier;
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('fake/best', 1), ('fake/good', 2), ('fake/cheap', 3)});
$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10)');

# How it stands, as "spent reserved remaining".
sub status
{
	my ($name) = @_;
	return $admin->value("SELECT concat_ws(' ', spent_usd::float8, reserved_usd::float8, remaining_usd::float8) FROM llm_budget_status WHERE budget = " . literal($name));
}

# Arguments of a call of the model pay that answers with so many tokens, charged to that budget.
sub args
{
	my ($name, $dollars, $more) = @_;
	return sprintf q('hi', model => 'fake/pay', max_tokens => %d, tags => '{"b": "%s"}'%s), $dollars, $name, $more ? ", $more" : '';
}
sub pay { my ($session, @args) = @_; return row($session, 'SELECT * FROM llm_complete_detail(' . args(@args) . ')') }

sub refused_ok
{
	my ($result, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($result->{error_class} // 'none', 'budget', $name);
}

sub answered_ok
{
	my ($result, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is($result->{error_class} // 'none', 'none', $name) || diag($result->{error_message} // '');
}

# Charged

$gw->add_budget('plain', 100);
$row = row($admin, q{SELECT limit_usd::float8 AS limit, spent_usd::float8 AS spent, reserved_usd::float8 AS reserved, remaining_fraction::float8 AS fraction,
	period_start = date_trunc('month', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS starts,
	resets_at = (date_trunc('month', now() AT TIME ZONE 'UTC') + interval '1 month') AT TIME ZONE 'UTC' AS resets FROM llm_budget_status WHERE budget = 'plain'});
is_deeply($row, { limit => 100, spent => 0, reserved => 0, fraction => 1, starts => 'true', resets => 'true' }, 'a new budget') or diag explain $row;
$row = pay($s, 'plain', 10);
answered_ok($row, 'a call');
is("$row->{estimated_usd} $row->{cost_usd}" =~ s/\.0+\b//gr, '10 10', 'what it was thought to cost, and did');
is(status('plain'), '10 0 90', 'is charged');
is($admin->value("SELECT budgets FROM llm_requests WHERE request_id = $row->{request_id}"), '{plain}', 'which is in the ledger');
is($admin->value(q{SELECT spent_nano FROM _llm_budget_spend s JOIN llm_budgets b ON b.id = s.budget_id WHERE b.name = 'plain'}), 10 * 1e9, 'so is the sum');
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/pay', max_tokens => 10, tags => '{"b": "other"}')});
is($admin->value("SELECT budgets IS NULL FROM llm_requests WHERE request_id = $row->{request_id}"), 't', 'a call that no budget matches');
is(status('plain'), '10 0 90', 'is charged to none');
$s->run('BEGIN');
pay($s, 'plain', 5);
$s->run('ROLLBACK');
is(status('plain'), '15 0 85', 'what was paid is paid, although the transaction is rolled back');

# one made in the middle of a period knows what was spent before
$gw->add_budget('late', 40, tags => q('{"b": "plain"}'));
is(status('late'), '15 0 25', 'a budget made later starts with what its scope has cost in the period');
pay($s, 'plain', 5);
is(status('late') . ', ' . status('plain'), '20 0 20, 20 0 80', 'and goes on from there');
$gw->sql(q{DELETE FROM llm_budgets WHERE name = 'late'});

# only counted
$gw->add_budget('counted', 'NULL');
answered_ok(pay($s, 'counted', 10), 'a budget without a limit');
is($admin->value(q{SELECT concat_ws(' ', spent_usd::float8, coalesce(remaining_usd::text, 'none')) FROM llm_budget_status WHERE budget = 'counted'}), '10 none', 'only counts');

# Refused

$gw->add_budget('small', 20);
pay($s, 'small', 15);
is(scalar @{ $gw->requests(sub { refused_ok($row = pay($s, 'small', 10), 'a call that may cost more than there is left') }) }, 0, 'is not sent');
like($row->{error_message}, qr/it may cost \$10, and budget "small" has \$5 of \$20 left \(25 %\), \$1 of it in reserve, until/, 'and told why');
is($row->{response}, undef, 'no answer');
is($admin->value("SELECT concat_ws(' ', status, error_class, attempts, coalesce(cost_usd, 0)::float8) FROM llm_requests WHERE request_id = $row->{request_id}"),
	'rejected budget 0 0', 'the ledger tells');
my $resets = $admin->value(q{SELECT to_char(resets_at, 'YYYY-MM-DD') FROM llm_budget_status WHERE budget = 'small'});
for my $on_error (qw(error null))
{
	$s->run("SET llm_gateway.on_error = '$on_error'");
	$r = $s->run('SELECT llm_complete(' . args('small', 10) . ')');
	error_ok($r, { sqlstate => 'LG001', message => qr/small/ }, "on_error = $on_error: LG001");
	like(join(' ', map { $_ // '' } @{$r}{qw(message detail hint)}), qr/\Q$resets\E/, 'says when there will be more');
	ok(defined $r->{hint}, 'and what to do');
}
$s->run('RESET llm_gateway.on_error');
is(status('small'), '15 0 5', 'nothing stays reserved');
answered_ok(pay($s, 'small', 4), 'one that fits');
is(status('small'), '19 0 1', 'is charged');
refused_ok($row = pay($s, 'small', 1), 'what is kept in reserve is not for everybody');
like($row->{error_message}, qr/it has \$1 of \$20 left \(5 %\), all of it in reserve, until/, 'which the error says');
answered_ok(pay($s, 'small', 1, q(priority => 'critical')), 'but for critical calls');
is(status('small'), '20 0 0', 'which may spend the last of it');
refused_ok($row = pay($s, 'small', 1, q(priority => 'critical')), 'and no more');
unlike($row->{error_message}, qr/in reserve/, 'nothing is kept from them');

# a priority that stops before the reserve
$gw->add_budget('tenth', 20);
pay($s, 'tenth', 18);
refused_ok($row = pay($s, 'tenth', 1, q(priority => 'low')), 'low stops when a tenth is left');
like($row->{error_message}, qr/it has \$2 of \$20 left \(10 %\), of which it gets what is above 10 %, until/, 'which the error says, too');

# whatever the function
for my $case (
	[ 'llm_stream',        q{SELECT llm_stream(%s)} ],
	[ 'llm_complete_json', q{SELECT llm_complete_json(%s, schema => '{}')} ])
{
	my ($name, $query) = @$case;
	error_ok($s->run(sprintf $query, args('small', 1)), { sqlstate => 'LG001', message => qr/small/ }, $name);
}
is($s->value(q{SELECT error_class FROM llm_chat('[{"role": "user", "content": "hi"}]', model => 'fake/pay', max_tokens => 1, tags => '{"b": "small"}')}), 'budget', 'llm_chat');
$gw->add_budget('batch', 55, reserve_fraction => 0);
$r = $s->value(q{SELECT string_agg(coalesce(error_class, 'ok'), ' ' ORDER BY idx)
	FROM llm_complete_batch(ARRAY['1', '2', '3', '4', '5', '6', '7', '8'], model => 'fake/pay', max_tokens => 10, max_concurrency => 1, tags => '{"b": "batch"}')});
is($r, 'ok ok ok ok ok budget budget budget', 'a batch: as many as there is money for');
is(status('batch'), '50 0 5', 'and they are paid');

# Scopes. Nothing is left of these budgets from the beginning.

$gw->sql(q{
	CREATE ROLE team; CREATE ROLE member LOGIN IN ROLE team; CREATE ROLE stranger LOGIN;
	SELECT llm_grant('member'), llm_grant('stranger');
	INSERT INTO llm_budgets (name, limit_usd, role) VALUES ('of team', 0, 'team');
});
my ($member, $stranger) = map { $gw->session('postgres', user => $_) } qw(member stranger);
refused_ok(pay($member, 'x', 1), 'role: a member');
answered_ok(pay($stranger, 'x', 1), 'role: somebody else');
answered_ok(pay($s, 'x', 1), 'role: a superuser is not a member');
$gw->sql('GRANT team TO stranger');
refused_ok(pay($stranger, 'x', 1), 'role: a new member');
$gw->sql('REVOKE team FROM stranger');
answered_ok(pay($stranger, 'x', 1), 'role: not any more');
$gw->sql(q{UPDATE llm_budgets SET task = 'math'});
refused_ok(pay($member, 'x', 1, q(task => 'math')), 'role and task: both');
answered_ok(pay($member, 'x', 1, q(task => 'chat')), 'role and task: another task');
answered_ok(pay($stranger, 'x', 1, q(task => 'math')), 'role and task: another role');
$gw->sql(q{DELETE FROM llm_budgets});

$gw->add_provider('second', $fake->url('/second'));
$gw->add_models('second', 'pay', { %economy, output_price => $DOLLAR, upstream_name => "'tokens-100000'" });
for my $case (
	[ 'provider',          { provider => 'fake' },                     q(model => 'fake/pay'),                   q(model => 'second/pay') ],
	[ 'model of a provider', { model => 'fake/pay' },                  q(model => 'fake/pay'),                   q(model => 'second/pay') ],
	[ 'model',             { model => 'pay' },                         q(model => 'second/pay'),                 q(model => 'fake/cheap') ],
	[ 'task',              { task => 'math' },                         q(model => 'pay', task => 'math'),        q(model => 'pay', task => 'chat') ],
	[ 'tags',              { tags => '{"a": 1}' },                     q(model => 'pay', tags => '{"a": 1, "z": 2}'), q(model => 'pay', tags => '{"a": 2}') ],
	[ 'two tags',          { tags => '{"a": 1, "z": 2}' },             q(model => 'pay', tags => '{"a": 1, "z": 2}'), q(model => 'pay', tags => '{"a": 1}') ],
	[ 'provider and task', { provider => 'fake', task => 'math' },     q(model => 'fake/pay', task => 'math'),   q(model => 'second/pay', task => 'math') ])
{
	my ($name, $scope, $matches, $not) = @$case;
	my @keys = sort keys %$scope;
	$gw->sql(sprintf q{INSERT INTO llm_budgets (name, limit_usd, %s) VALUES ('scope', 0, %s)}, join(', ', @keys), join(', ', map { literal($scope->{$_}) } @keys));
	for my $priority (qw(normal critical))
	{
		is(scalar @{ $gw->requests(sub {
			refused_ok(row($s, "SELECT * FROM llm_complete_detail('hi', '$priority', max_tokens => 1, $matches)"), "$name: refused, $priority");
		}) }, 0, "$name: not sent, $priority");
	}
	answered_ok(row($s, "SELECT * FROM llm_complete_detail('hi', max_tokens => 1, $not)"), "$name: not meant");
	$gw->sql('DELETE FROM llm_budgets');
}

# tags that ask for nothing are there in every call
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, tags) VALUES ('any', 1, '{}'), ('all', 1, NULL)});
is($admin->value(q{SELECT count(DISTINCT opening_usd) || ' ' || (min(opening_usd) > 0) FROM llm_budgets}), '1 true', 'no tag: what all calls have cost');
$gw->sql(q{DELETE FROM llm_budgets WHERE name = 'all'});
refused_ok(row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/pay', max_tokens => 1)}), 'no tag: a call without tags');
$gw->sql('DELETE FROM llm_budgets');

# a budget of a provider leaves the others, one of the tags none
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, provider) VALUES ('of fake', 0, 'fake')});
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'pay', max_tokens => 1)});
is($row->{provider}, 'second', 'a provider without money: another one has the model');
like($s->value(q{SELECT reason FROM llm_route('hi', model => 'pay') WHERE provider = 'fake'}), qr/of fake/, 'llm_route says why');
is($s->value(q{SELECT count(*) FROM llm_requests WHERE budgets @> '{of fake}'}), 0, 'who is not asked is not charged');
$gw->sql('DELETE FROM llm_budgets');

# an answer in the place of a model or provider without money is a fallback, one of a lower tier is none
$gw->add_models('second', 'spare', { tier => "'premium'", input_price => 0, output_price => 0, upstream_name => "'default'" });
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('spared', 'fake/best', 1), ('spared', 'second/spare', 2), ('spared', 'fake/cheap', 3)});
for my $scope ([ provider => 'fake' ], [ model => 'best' ], [ model => 'fake/best' ])
{
	$gw->sql("INSERT INTO llm_budgets (name, limit_usd, $scope->[0]) VALUES ('scoped', 0, '$scope->[1]')");
	$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'spared')});
	is("$row->{provider} $row->{fallback}", 'second true', "$scope->[0] $scope->[1] without money: a fallback");
	$row = row($s, qq{SELECT * FROM llm_complete_detail('hi, $scope->[1]', model => 'spared', cache => 'on')}) for 1 .. 2;
	is("$row->{cached} $row->{fallback}", 'true false', 'a kept answer is none');
	$gw->sql('DELETE FROM llm_budgets');
	$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'spared')});
	is("$row->{provider} $row->{fallback}", 'fake false', 'no budget: no fallback');
}
is($s->value(q{SELECT sum(requests) FROM llm_fallback_report WHERE from_provider = 'fake' AND to_provider = 'second' AND error_class = 'budget'}), 6, 'the report counts them');
$gw->add_budget('half', 2);
answered_ok(pay($s, 'half', 1), 'a budget of all models');
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', tags => '{"b": "half"}')});
is("$row->{model} $row->{fallback}", 'good false', 'a lower tier is none');
$gw->sql('DELETE FROM llm_budgets');

# Changes

my $other = $gw->session;
$gw->add_budget('change', 10, reserve_fraction => 0);
pay($s, 'change', 10);
my $id = $gw->sql(q{SELECT id FROM llm_budgets});
refused_ok(pay($s, 'change', 5), 'nothing is left');
$other->value(q{UPDATE llm_budgets SET limit_usd = 20});
is($gw->sql(q{SELECT id FROM llm_budgets}), $id, 'another limit');
is(status('change'), '10 0 10', 'has the same account');
answered_ok(pay($s, 'change', 5), 'another session raises the limit: the next call sees it');
$s->run('BEGIN ISOLATION LEVEL REPEATABLE READ');
refused_ok(pay($s, 'change', 10), 'a transaction');
$other->value(q{UPDATE llm_budgets SET limit_usd = 30});
answered_ok(pay($s, 'change', 10), 'sees it as well');
$s->run('COMMIT');
is(status('change'), '25 0 5', 'all is charged');

$s->run('BEGIN');
$s->value('UPDATE llm_budgets SET limit_usd = 100');
answered_ok(pay($s, 'change', 20), 'who changes it has another limit at once');
refused_ok(pay($other, 'change', 1), 'nobody else has, nor do they wait');
$s->run('ROLLBACK');
is(status('change'), '45 0 -15', 'rolled back: spent is spent');
refused_ok(pay($s, 'change', 1), 'and the limit is the old one');
$s->run('BEGIN');
$s->value('DELETE FROM llm_budgets');
answered_ok(pay($s, 'change', 1), 'deleted');
refused_ok(pay($other, 'change', 1), 'for others not yet');
$s->run('ROLLBACK');
refused_ok(pay($s, 'change', 1), 'and after all not');
$s->value('DELETE FROM llm_budgets');
answered_ok(pay($other, 'change', 1), 'deleted for all');

# a statement that is under way
sub ends { return $admin->value("SELECT count(*) FROM llm_requests WHERE requested_model = 'fake/slow' AND status = '$_[0]'") }
$gw->add_budget('running', 0, reserve_fraction => 0);
$gw->add_models('fake', 'slow', { %economy, output_price => $DOLLAR, upstream_name => "'slow-20+tokens-1'" });
$s->start(q{SELECT count(*) FILTER (WHERE d.error_class = 'budget') > 0, count(*) FILTER (WHERE d.error_class IS NULL) > 0, count(*)
	FROM generate_series(1, 150) g, LATERAL (SELECT pg_sleep(0.02), g) w, LATERAL llm_complete_detail('hi ' || w.g, model => 'fake/slow', max_tokens => 1, tags => '{"b": "running"}') d});
ok(wait_until(sub { ends('rejected') > 0 }), 'a running statement is refused');
$other->value('UPDATE llm_budgets SET limit_usd = 1000');
is($s->finish->{out}, 't|t|150', 'a running statement sees a limit that is raised');
my $ends = ends('ok');
$s->start(q{SELECT count(*) FILTER (WHERE d.error_class = 'budget') > 0, count(*) FILTER (WHERE d.error_class IS NULL) > 0, count(*)
	FROM generate_series(1, 150) g, LATERAL (SELECT pg_sleep(0.02), g) w, LATERAL llm_complete_detail('hi ' || w.g, model => 'fake/slow', max_tokens => 1, tags => '{"b": "running"}') d});
ok(wait_until(sub { ends('ok') > $ends }), 'a running statement is answered');
$other->value('UPDATE llm_budgets SET limit_usd = 0');
is($s->finish->{out}, 't|t|150', 'or lowered');
$gw->sql('DELETE FROM llm_budgets');

# Two budgets: both or none

$gw->add_budget('wide', 100, tags => q('{"w": 1}'));
$gw->add_budget('narrow', 10, tags => q('{"n": 1}'), reserve_fraction => 0);
my $both = q('hi', model => 'fake/pay', tags => '{"w": 1, "n": 1}');
$row = row($s, "SELECT * FROM llm_complete_detail($both, max_tokens => 20)");
refused_ok($row, 'the tighter budget refuses');
like($row->{error_message}, qr/narrow/, 'and is named');
is(status('wide') . ', ' . status('narrow'), '0 0 100, 0 0 10', 'neither holds anything');
$row = row($s, "SELECT * FROM llm_complete_detail($both, max_tokens => 5)");
is(status('wide') . ', ' . status('narrow'), '5 0 95, 5 0 5', 'what fits is charged to both');
is($admin->value("SELECT budgets FROM llm_requests WHERE request_id = $row->{request_id}"), '{wide,narrow}', 'both are in the ledger');
row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/pay', tags => '{"w": 1}', max_tokens => 20)});
is(status('wide') . ', ' . status('narrow'), '25 0 75, 5 0 5', 'one of them is charged alone where only it matches');
$gw->sql('DELETE FROM llm_budgets');

# Under way: reserved, and given back however it ends. The prompt of 20 characters costs 5 dollars.

$gw->add_budget('way', 1000, reserve_fraction => 0);
my $spent = 0;
for my $how ('cancel', 'statement_timeout', 'timeout_ms', 'terminate', 'rollback of a cursor')
{
	my $d = $gw->session;
	$d->run(q{SET statement_timeout = '5s'}) if $how eq 'statement_timeout';
	my $arguments = q('This is the question', model => 'fake/hang', max_tokens => 7, tags => '{"b": "way"}') . ($how eq 'timeout_ms' ? ', timeout_ms => 5000' : '');
	if ($how eq 'rollback of a cursor')
	{
		$gw->sql(q{UPDATE llm_models SET upstream_name = 'drip-200+tokens-100' WHERE name = 'hang'});
		$d->run("BEGIN");
		$d->run("DECLARE c CURSOR FOR SELECT llm_stream($arguments)");
		is($d->value('FETCH 1 FROM c'), 'word', "$how: it has begun") or last;
	}
	else
	{
		$d->start("SELECT llm_complete($arguments)");
		$gw->wait_in_call($d);
	}
	ok(wait_until(sub { status('way') eq "$spent 5 " . (995 - $spent) }), "$how: a call under way is reserved for") or diag status('way');
	$admin->value('SELECT pg_cancel_backend(' . $d->pid . ')') if $how eq 'cancel';
	$admin->value('SELECT pg_terminate_backend(' . $d->pid . ')') if $how eq 'terminate';
	$r = $how eq 'rollback of a cursor' ? $d->run('ROLLBACK') : $d->finish;
	my %sqlstate = (cancel => '57014', statement_timeout => '57014', timeout_ms => 'LG003', terminate => '57P01', 'rollback of a cursor' => 'none');
	is($r->{sqlstate} // 'none', $sqlstate{$how}, "$how: ends it");
	$spent += 5;
	my $want = "$spent 0 " . (1000 - $spent);
	ok(wait_until(sub { status('way') eq $want }, 10), "$how: what was sent is paid, nothing stays reserved") or diag status('way');
	ok($gw->drained, "$how: it is booked");
	is($admin->value(q{SELECT concat_ws(' ', status, cost_source, cost_usd::float8, budgets) FROM llm_requests ORDER BY request_id DESC LIMIT 1}),
		($how eq 'timeout_ms' ? 'error' : 'cancelled') . ' estimate 5 {way}', "$how: in the ledger");
}
is($admin->value(q{SELECT spent_nano FROM _llm_budget_spend s JOIN llm_budgets b ON b.id = s.budget_id WHERE b.name = 'way'}), $spent * 1e9, 'the ledger has the same sum');

# an error of the provider costs nothing
$fake->script('breaks', { behaviour => 'status-400', repeat => 'forever' });
$row = row($s, q{SELECT * FROM llm_complete_detail('This is the question', model => 'fake/breaks', tags => '{"b": "way"}')});
is($row->{error_class}, 'invalid_request', 'a request that the provider refuses');
is(status('way'), "$spent 0 " . (1000 - $spent), 'costs nothing');
$gw->sql('DELETE FROM llm_budgets');

# A retry of a call that was admitted may use the reserve

$gw->add_budget('again', 20, reserve_fraction => 0.5);
my $question = 'This question has 32 characters.';
$fake->script('breaks', 'cut-short', 'default');
$row = row($s, qq{SELECT * FROM llm_complete_detail('$question', model => 'fake/breaks', max_tokens => 2, tags => '{"b": "again"}')});
answered_ok($row, 'a call that fails after it was paid for');
is("$row->{attempts} $row->{cost_usd}" =~ s/\.0+\b//gr, '2 16', 'is made again, with money of the reserve');
is(status('again'), '16 0 4', 'both are charged');
$row = row($s, qq{SELECT * FROM llm_complete_detail('hi', model => 'fake/breaks', max_tokens => 2, tags => '{"b": "again"}')});
refused_ok($row, 'which a new call must not use');
$fake->reset;
$gw->sql('DELETE FROM llm_budgets');

# A model without a price

$gw->add_budget('priced', 100);
$r = $s->run(q{SELECT llm_complete('hi', model => 'fake/unpriced', tags => '{"b": "priced"}')});
is($r->{sqlstate}, 'LG005', 'a model without a price is no candidate under a budget');
like(join(' ', map { $_ // '' } @{$r}{qw(message detail hint)}), qr/price/, 'and why');
is($s->value(q{SELECT llm_complete('hi', model => 'fake/unpriced')}), 'echo: hi', 'but where there is none');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('either', 'fake/unpriced', 1), ('either', 'fake/cheap', 2)});
is($s->value(q{SELECT model FROM llm_complete_detail('hi', model => 'either', tags => '{"b": "priced"}')}), 'cheap', 'another one may answer');
is($s->value(q{SELECT model FROM llm_route('hi', model => 'either', tags => '{"b": "priced"}') WHERE chosen}), 'cheap', 'llm_route agrees');
like($s->value(q{SELECT reason FROM llm_route('hi', model => 'either', tags => '{"b": "priced"}') WHERE NOT chosen}), qr/price/, 'and says why');
$gw->sql('DELETE FROM llm_budgets');

# Tiers: what remains, in dollars of 100, and what each priority gets. "best", "good" and "cheap" are free.

$gw->add_budget('tiers', 100);
$s->run(q{SET llm_gateway.tags = '{"b": "tiers"}'});
my %above = (critical => [ 0, 0, 0 ], high => [ 40, 10, 5 ], normal => [ 80, 20, 5 ], low => [ 90, 50, 10 ]);
my @priorities = qw(critical high normal low);
my $left = 100;

sub fill
{
	my ($to) = @_;
	$s->value(sprintf q{SELECT llm_complete('pay', 'critical', model => 'fake/pay', max_tokens => %d)}, $left - $to) if $to < $left;
	$left = $to;
	return;
}

sub tier_at
{
	my ($priority, $remaining) = @_;
	my $n = grep { $remaining > $_ } @{ $above{$priority} };
	return ('none', 'economy', 'standard', 'premium')[$n];
}

for my $remaining (100, 91, 90, 81, 80, 51, 50, 41, 40, 21, 20, 11, 10, 6, 5, 1, 0)
{
	fill($remaining);
	my $got = $s->value(q{SELECT string_agg(format('%s: %s', p.name, coalesce(d.model_tier, CASE d.error_class WHEN 'budget' THEN 'none' ELSE d.error_class END)), ', ' ORDER BY p.rank)
		FROM llm_priorities p, LATERAL llm_complete_detail('hi', p.name) d});
	is($got, join(', ', map { "$_: " . tier_at($_, $remaining) } @priorities), "\$$remaining of \$100 remain: who gets what");
	$got = $s->value(q{SELECT string_agg(format('%s: %s', p.name, coalesce((SELECT model_tier FROM llm_route('hi', p.name) WHERE chosen), 'none')), ', ' ORDER BY p.rank) FROM llm_priorities p});
	is($got, join(', ', map { "$_: " . tier_at($_, $remaining) } @priorities), "\$$remaining of \$100 remain: llm_route agrees");
	is(status('tiers'), (100 - $remaining) . " 0 $remaining", "\$$remaining of \$100 remain, still");
}

# What a downgraded call is told, and told to do

$gw->add_budget('down', 100);
$s->run(q{SET llm_gateway.tags = '{"b": "down"}'});
$gw->sql(q{UPDATE llm_tiers SET system_prompt_suffix = 'Be brief.' WHERE name = 'standard'; UPDATE llm_tiers SET system_prompt_suffix = 'One word.' WHERE name = 'economy'});
$left = 100;
sub system_prompt
{
	my ($arguments) = @_;
	my $before = $fake->stats->{requests};
	$row = row($s, "SELECT * FROM llm_complete_detail($arguments)");
	my ($ask) = @{ $fake->asked($before) };
	return join '|', map { $_->{text} } grep { $_->{role} eq 'system' } @{ $ask->{messages} };
}
is(system_prompt(q('hi')), '', 'premium: no suffix');
is("$row->{model_tier} " . ($row->{notice} // 'none'), 'premium none', 'nor a notice');
fill(50);
is(system_prompt(q('hi')), 'Be brief.', 'standard: its suffix');
is($row->{model_tier}, 'standard', 'the tier is told');
is($row->{notice}, $gw->sql(q{SELECT notice FROM llm_tiers WHERE name = 'standard'}), 'and its notice');
like(system_prompt(q('hi', system_prompt => 'You are a poet.')), qr/^You are a poet\.\s+Be brief\.$/, 'after the system prompt of the call');
sub chat_system
{
	my ($system, @args) = @_;
	my $before = $fake->stats->{requests};
	my $messages = join ', ', @$system, '{"role": "user", "content": "hi"}', @args ? '{"role": "system", "content": "Go on."}' : ();
	row($s, "SELECT * FROM llm_chat('[$messages]'" . join('', map { ", $_" } @args) . ')');
	my ($ask) = @{ $fake->asked($before) };
	return join '|', map { $_->{text} } grep { $_->{role} eq 'system' } @{ $ask->{messages} };
}
my @system = ('{"role": "system", "content": "Be kind."}', '{"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "wise."}]}');
like(chat_system([ $system[0] ]), qr/^Be kind\.\s+Be brief\.$/, 'after that of a conversation');
like(chat_system(\@system), qr/^Be kind\.\|Be wise\.\s+Be brief\.$/, 'after the last one of those it begins with');
like(chat_system([ $system[0] ], q(system_prompt => 'You are a poet.')), qr/^You are a poet\.\s+Be kind\.\s+Be brief\.\|Go on\.$/, 'after both');
is(chat_system([]), 'Be brief.', 'or alone');
is(system_prompt(q('hi', 'high')), '', 'another priority is not downgraded');
$r = $s->run(q{SELECT llm_complete('hi')});
is($r->{out}, 'echo: hi', 'llm_complete');
fill(15);
is(system_prompt(q('hi')), 'One word.', 'economy: its suffix');
is($row->{notice}, $gw->sql(q{SELECT notice FROM llm_tiers WHERE name = 'economy'}), 'and its notice');

# A worse answer is not for everybody
error_ok($s->run(q{SELECT llm_complete('hi', min_tier => 'standard')}), { sqlstate => 'LG001', message => qr/down/ }, 'min_tier: rather an error');
is($s->value(q{SELECT error_class FROM llm_complete_detail('hi', min_tier => 'premium')}), 'budget', 'min_tier: its class');
is($s->value(q{SELECT model_tier FROM llm_complete_detail('hi', 'critical', min_tier => 'premium')}), 'premium', 'min_tier: if it can be had');
is($s->value(q{SELECT model_tier FROM llm_complete_detail('hi', min_tier => 'economy')}), 'economy', 'min_tier: economy will do');
error_ok($s->run(q{SELECT llm_complete('hi', model => 'fake/best')}), { sqlstate => 'LG001', message => qr/down/ }, 'a model by name: rather an error');
is($s->value(q{SELECT model_tier FROM llm_complete_detail('hi', 'critical', model => 'fake/best')}), 'premium', 'a model by name: if it can be had');
like($s->run(q{SELECT llm_complete('hi', min_tier => 'best')})->{sqlstate} // 'none', qr/^(22023|42704)$/, 'min_tier: no such tier');
$s->run('RESET llm_gateway.tags');

# Two budgets of the caller: the lower tier counts
$gw->add_budget('rich', 1000, tags => q('{"r": 1}'));
is($s->value(q{SELECT model_tier FROM llm_complete_detail('hi', tags => '{"r": 1}')}), 'premium', 'a rich budget');
is($s->value(q{SELECT model_tier FROM llm_complete_detail('hi', tags => '{"r": 1, "b": "down"}')}), 'economy', 'and a poor one: the poor one decides');
$gw->sql('DELETE FROM llm_budgets');

# Kept answers when nothing is left

$gw->sql(q{UPDATE llm_tasks SET cache_ttl = '1 hour' WHERE name = 'default'});
$gw->add_budget('kept', 10, on_exhausted => "'cache_only'");
$s->run(q{SET llm_gateway.tags = '{"b": "kept"}'});
$row = row($s, q{SELECT * FROM llm_complete_detail('keep this')});
is($row->{cached}, 'false', 'an answer is made');
ok($gw->drained, 'and kept');
$s->value(q{SELECT llm_complete('pay', 'critical', model => 'fake/pay', max_tokens => 10)});
is(status('kept'), '10 0 0', 'nothing is left');
is(scalar @{ $gw->requests(sub { $row = row($s, q{SELECT * FROM llm_complete_detail('keep this')}) }) }, 0, 'the same call is not made');
is(join(' ', map { $_ // 'none' } @{$row}{qw(response cached error_class)}), 'echo: keep this true none', 'but has the kept answer');
is($row->{cost_usd} + 0, 0, 'which costs nothing');
is($admin->value("SELECT concat_ws(' ', status, attempts, cost_usd::float8, coalesce(budgets::text, 'none')) FROM llm_requests WHERE request_id = $row->{request_id}"), 'cached 0 0 none', 'as the ledger says');
$row = row($s, q{SELECT * FROM llm_complete_detail('not kept')});
refused_ok($row, 'another one is refused');
$gw->sql(q{UPDATE llm_budgets SET on_exhausted = 'reject'});
$row = row($s, q{SELECT * FROM llm_complete_detail('keep this')});
refused_ok($row, 'on_exhausted = reject: both are');
$s->run('RESET llm_gateway.tags');
$gw->sql(q{UPDATE llm_tasks SET cache_ttl = NULL WHERE name = 'default'; DELETE FROM llm_budgets});

# Priorities for members only

$gw->sql(q{CREATE ROLE vips; UPDATE llm_priorities SET required_role = 'vips' WHERE name = 'critical'});
error_ok($member->run(q{SELECT llm_complete('hi', 'critical')}), { sqlstate => '42501' }, 'required_role: not for others');
error_ok($member->run(q{SELECT * FROM llm_complete_detail('hi', 'critical')}), { sqlstate => '42501' }, 'nor as a row');
$gw->sql('GRANT vips TO member');
is($member->value(q{SELECT llm_complete('hi', 'critical')}), 'echo: hi', 'for a member');
$gw->sql(q{UPDATE llm_priorities SET required_role = NULL WHERE name = 'critical'});

# Strict

$gw->add_budget('strict', 1000, strict => 'true');
pay($s, 'strict', 10);
is($fake->asked($fake->stats->{requests} - 1)->[0]{max_tokens}, 10, 'strict: max_tokens is sent');
is(status('strict'), '10 0 990', 'strict: charged');
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/pay', tags => '{"b": "strict"}')});
is($row->{error_class}, 'no_candidate', 'strict: an answer that may be of any length');
like($row->{error_message}, qr/strict/, 'strict: and why');
$gw->add_models('fake', 'long', { %economy, output_price => $DOLLAR, max_output_tokens => 100_000, upstream_name => "'tokens-100000'" });
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/long', tags => '{"b": "strict"}')});
answered_ok($row, 'strict: one that may be very long');
my $cap = $fake->asked($fake->stats->{requests} - 1)->[0]{max_tokens} // 0;
ok($cap <= 940 && $cap >= 256, "strict: what there is to spend is sent as max_tokens ($cap)");
is($row->{cost_usd} + 0, $cap, 'strict: and used up');
$row = row($s, q{SELECT * FROM llm_complete_detail('hi', model => 'fake/long', tags => '{"b": "strict"}')});
refused_ok($row, 'strict: nothing worth while is left');
$gw->sql('DELETE FROM llm_budgets');

# a provider that does not care for max_tokens
$gw->add_models('fake', 'greedy', { %economy, output_price => $DOLLAR, upstream_name => "'ignore-max-tokens'" });
$gw->add_budget('greedy', 50, strict => 'true', reserve_fraction => 0);
$r = $s->run(q{SELECT length(llm_complete(repeat('x', 394), model => 'fake/greedy', max_tokens => 10, tags => '{"b": "greedy"}'))});
is($r->{out}, 400, 'strict: a provider that does not care for max_tokens');
is(status('greedy'), '100 0 -50', 'strict: is paid in full');
is(scalar(grep { $_->{severity} eq 'WARNING' && "$_->{message} " . ($_->{detail} // '') =~ /greedy/ } @{ $r->{notices} }), 1, 'strict: and warned of') or diag $r->{err};
$gw->sql('DELETE FROM llm_budgets');

# Nothing stays behind

is($admin->value('SELECT count(*) FROM llm_budget_status'), 0, 'no budget is left');
ok($gw->drained, 'all is booked');
is($admin->value(q{SELECT count(*) FROM llm_requests r WHERE r.status <> 'rejected' AND r.cost_usd IS DISTINCT FROM (SELECT sum(a.cost_usd) FROM llm_attempts a WHERE a.request_id = r.request_id) AND r.model <> 'unpriced' AND r.attempts > 0}),
	0, 'each request costs what its attempts do');
$gw->no_crash_ok;
done_testing;
