# Configuration behaves like the catalogs: a change is seen by the session's own next call, by other
# sessions' next call after commit, and by nobody after rollback; in every isolation level, by
# running statements, and without making anybody's transaction fail.
use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(error_ok);

my $gw = LlmGateway->new(name => 'config', conf => 'max_prepared_transactions = 5');
my $fake = $gw->fake;

# Two models of the mock provider that say who they are, and the alias "who" that names one.
$gw->sql(q{INSERT INTO llm_providers (name, kind, options) VALUES ('m1', 'mock', '{"reply": "one"}'), ('m2', 'mock', '{"reply": "two"}')});
$gw->add_models('m1', 'first');
$gw->add_models('m2', 'second');
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model) VALUES ('who', 'first')});

my $a = $gw->session;
my $b = $gw->session;
my $who = q{SELECT llm_complete('who?', model => 'who')};
my $to_two = q{UPDATE llm_routing_rules SET model = 'second' WHERE alias = 'who'};
my $to_one = q{UPDATE llm_routing_rules SET model = 'first' WHERE alias = 'who'};
my ($r, $seen);

sub answers_ok
{
	my ($one, $other, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($a->value($who) . ' ' . $b->value($who), "$one $other", $name);
	return;
}

answers_ok('one', 'one', 'at first');

# Transactions

$a->value("BEGIN; $to_two");
answers_ok('two', 'one', 'before commit only the session itself sees it');
$a->value('COMMIT');
answers_ok('two', 'two', 'after commit everybody does');
$a->value("BEGIN; $to_one");
answers_ok('one', 'two', 'another change');
$a->value('ROLLBACK');
answers_ok('two', 'two', 'which nobody sees after rollback');

$a->value("BEGIN; SAVEPOINT s; $to_one");
answers_ok('one', 'two', 'within a savepoint');
$a->value('ROLLBACK TO s');
answers_ok('two', 'two', 'rolled back to before it');
$a->value("SAVEPOINT t; $to_one; RELEASE t; COMMIT");
answers_ok('one', 'one', 'released and committed');
$r = $a->run("DO \$\$ BEGIN BEGIN $to_two; RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; END \$\$");
is($r->{err}, '', 'a subtransaction that fails');
answers_ok('one', 'one', 'leaves nothing behind');
$a->run("BEGIN; $to_two; SELECT 1 / 0;");
error_ok($a->run($who), { sqlstate => '25P02' }, 'a failed transaction');
$a->value('ROLLBACK');
answers_ok('one', 'one', 'leaves nothing behind');
is($a->value("WITH u AS ($to_two RETURNING 1) SELECT count(*) FROM u"), '1', 'a change in a CTE');
answers_ok('two', 'two', 'is seen');
$a->value($to_one);

# Isolation levels: a snapshot taken before does not hide a change

for my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$b->value("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM llm_routing_rules");
	is($b->value($who), 'one', "$level: before");
	$a->value($to_two);
	is($b->value($who), 'two', "$level: the next call after commit");
	is($b->value(q{SELECT model FROM llm_routing_rules WHERE alias = 'who'}),
		$level eq 'READ COMMITTED' ? 'second' : 'first', "$level: though a query has its snapshot");
	$a->value("BEGIN; $to_one");
	is($b->value($who), 'two', "$level: not before commit");
	$a->value('COMMIT');
	is($b->value($who), 'one', "$level: after commit");
	$b->value('COMMIT');
}

# A running statement sees a change

for my $level ('READ COMMITTED', 'SERIALIZABLE')
{
	$gw->sql(q{UPDATE llm_providers SET options = options || '{"latency_ms": 20}' WHERE kind = 'mock'});
	$b->value("BEGIN ISOLATION LEVEL $level");
	$b->start(q{SELECT string_agg(d.response, ' ' ORDER BY g) FROM generate_series(1, 150) g, llm_complete_detail('who? ' || g, model => 'who') d});
	$gw->wait_in_call($b);
	select undef, undef, undef, 0.3;
	$a->value($to_two);
	$r = $b->finish;
	like($r->{out}, qr/^(?:one )+(?:two ?)+$/, "$level: a running statement goes on with the change");
	$b->value('COMMIT');
	$a->value($to_one);
	$gw->sql(q{UPDATE llm_providers SET options = options - 'latency_ms' WHERE kind = 'mock'});
}

# a call that is under way keeps what it began with
$gw->add_models('fake', qw(gpt-4o slow-3000));
$b->start(q{SELECT provider, response FROM llm_complete_detail('hi', model => 'slow-3000')});
$gw->wait_in_call($b);
$a->value(q{DELETE FROM llm_models WHERE name = 'slow-3000'});
is($b->finish->{out}, 'fake|echo: hi', 'a call under way goes on when its model is deleted');
error_ok($b->run(q{SELECT llm_complete('hi', model => 'slow-3000')}), { sqlstate => '42704' }, 'the next one does not know the model');

# Every table counts

$a->value(q{UPDATE llm_providers SET enabled = false WHERE name = 'm1'});
error_ok($b->run($who), { sqlstate => 'LG005', detail => qr/the provider is disabled/, hint => qr/UPDATE llm_providers SET enabled = true/ }, 'llm_providers: UPDATE');
$a->value(q{UPDATE llm_providers SET enabled = true WHERE name = 'm1'});
$a->value(q{UPDATE llm_models SET enabled = false WHERE name = 'first'});
error_ok($b->run($who), { sqlstate => 'LG005', detail => qr/the model is disabled/ }, 'llm_models: UPDATE');
$a->value(q{UPDATE llm_models SET enabled = true WHERE name = 'first'});
$a->value(q{INSERT INTO llm_routing_rules (alias, model) VALUES ('new', 'second')});
is($b->value(q{SELECT llm_complete('x', model => 'new')}), 'two', 'llm_routing_rules: INSERT');
$a->value(q{DELETE FROM llm_routing_rules WHERE alias = 'new'});
error_ok($b->run(q{SELECT llm_complete('x', model => 'new')}), { sqlstate => '42704' }, 'llm_routing_rules: DELETE');
$a->value(q{BEGIN; TRUNCATE llm_routing_rules});
error_ok($a->run(q{SAVEPOINT s; } . $who), { sqlstate => '42704' }, 'TRUNCATE: seen by the session');
$a->value('ROLLBACK');
answers_ok('one', 'one', 'TRUNCATE: undone');
$a->value(q{INSERT INTO llm_priorities (name) VALUES ('urgent')});
is($b->value(q{SELECT llm_complete('x', 'urgent', model => 'first')}), 'one', 'llm_priorities');
$a->value(q{INSERT INTO llm_tasks (name) VALUES ('poetry')});
is($b->value(q{SELECT task FROM llm_complete_detail('x', model => 'first', task => 'poetry')}), 'poetry', 'llm_tasks');
$a->value(q{INSERT INTO llm_tiers (name) VALUES ('junk'); UPDATE llm_models SET tier = 'junk' WHERE name = 'first'});
is($b->value(q{SELECT model_tier FROM llm_complete_detail('x', model => 'first')}), 'junk', 'llm_tiers');
$a->value(q{UPDATE llm_error_policies SET backoff_ms = 0, max_retries = 2 WHERE error_class = 'server_error'});
$fake->script('gpt-4o', { behaviour => 'status-500', repeat => 3 });
is($b->value(q{SELECT attempts FROM llm_complete_detail('x', model => 'gpt-4o')}), '3', 'llm_error_policies');
$fake->reset;
$a->value(q{SELECT llm_set_secret('key', 'the-first-key')});
$a->value(q{UPDATE llm_providers SET api_key = 'secret:key' WHERE name = 'fake'});
$b->value(q{SELECT llm_complete('x', model => 'gpt-4o')});
is($fake->last_request->{headers}{authorization}, 'Bearer the-first-key', 'llm_set_secret');
$a->value(q{BEGIN; SELECT llm_set_secret('key', 'the-second-key')});
$a->value(q{SELECT llm_complete('x', model => 'gpt-4o')});
is($fake->last_request->{headers}{authorization}, 'Bearer the-second-key', 'a new secret, in its transaction');
$b->value(q{SELECT llm_complete('x', model => 'gpt-4o')});
is($fake->last_request->{headers}{authorization}, 'Bearer the-first-key', 'but not outside');
$a->value('COMMIT');
$b->value(q{SELECT llm_complete('x', model => 'gpt-4o')});
is($fake->last_request->{headers}{authorization}, 'Bearer the-second-key', 'before commit');
$a->value(q{SELECT llm_drop_secret('key')});
error_ok($b->run(q{SELECT llm_complete('x', model => 'gpt-4o')}), { sqlstate => 'LG009' }, 'llm_drop_secret');
$a->value(q{UPDATE llm_providers SET api_key = NULL WHERE name = 'fake'});

# a session that replays changes (session_replication_role) is no exception
$a->value(q{SET session_replication_role = replica; UPDATE llm_routing_rules SET model = 'second' WHERE alias = 'who'; RESET session_replication_role});
answers_ok('two', 'two', 'triggers fire always');
$a->value($to_one);

# TRUNCATE for good, in both sessions
$a->value(q{CREATE TABLE saved AS TABLE llm_routing_rules; TRUNCATE llm_routing_rules});
error_ok($b->run($who), { sqlstate => '42704' }, 'TRUNCATE: seen by others');
$a->value(q{INSERT INTO llm_routing_rules (alias, model) SELECT alias, model FROM saved});
answers_ok('one', 'one', 'rows are back');

# COPY
$b->value($who);
$a->value(qq{COPY llm_routing_rules (alias, model) FROM stdin;\ncopied\tsecond\n\\.\nSELECT 1});
is($b->value(q{SELECT llm_complete('x', model => 'copied')}), 'two', 'COPY');

# Serializable transactions that only read configuration are in nobody's way

$a->value('BEGIN ISOLATION LEVEL SERIALIZABLE');
is($a->value($who), 'one', 'a serializable transaction');
is( $gw->admin->value('SELECT count(*) FROM pg_locks WHERE mode = \'SIReadLock\' AND pid = ' . $a->pid),
	'0', 'takes no predicate lock to read configuration');
$a->value('COMMIT');
for my $round (1 .. 3)
{
	# each reads, by a call, what the other writes
	$_->value('BEGIN ISOLATION LEVEL SERIALIZABLE') for $a, $b;
	is($a->value($who) . $b->value($who), 'oneone', 'two serializable transactions');
	$a->value(q{UPDATE llm_providers SET weight = weight + 1 WHERE name = 'm1'});
	$b->value(q{UPDATE llm_models SET quality = 60 WHERE name = 'second'});
	is($a->value($who) . $b->value($who), 'oneone', 'which change different tables');
	is($a->run('COMMIT')->{sqlstate}, undef, 'can be committed');
	is($b->run('COMMIT')->{sqlstate}, undef, 'both');
}

# Prepared transactions

$a->value("BEGIN; $to_two");
is($a->value($who), 'two', 'before PREPARE TRANSACTION');
$a->value(q{PREPARE TRANSACTION 'p'});
answers_ok('one', 'one', 'prepared: not visible to anybody');
$gw->admin->value(q{COMMIT PREPARED 'p'});
answers_ok('two', 'two', 'COMMIT PREPARED');
$a->value("BEGIN; $to_one; PREPARE TRANSACTION 'q'");
$gw->admin->value(q{ROLLBACK PREPARED 'q'});
answers_ok('two', 'two', 'ROLLBACK PREPARED');

# The extension itself

$b->value($who);
$a->value('BEGIN; DROP EXTENSION llm_gateway CASCADE');
$a->value('ROLLBACK');
answers_ok('two', 'two', 'DROP EXTENSION rolled back');
$a->value('DROP EXTENSION llm_gateway CASCADE');
error_ok($b->run($who), { sqlstate => '42883' }, 'DROP EXTENSION');
$a->value('CREATE EXTENSION llm_gateway');
error_ok($a->run(q{SELECT llm_complete('x')}), { sqlstate => 'LG005', hint => qr/llm_add_provider/ }, 'CREATE EXTENSION: empty, for the session');
error_ok($b->run(q{SELECT llm_complete('x')}), { sqlstate => 'LG005', message => qr/no provider/ }, 'and for others');
$a->value(q{SELECT count(*) FROM llm_add_provider('mock')});
like($b->value(q{SELECT llm_complete('x', model => 'mock-standard')}), qr/x/, 'and can be used');
$a->value(q{BEGIN; DROP EXTENSION llm_gateway; CREATE SCHEMA elsewhere; CREATE EXTENSION llm_gateway SCHEMA elsewhere});
error_ok($a->run(q{SAVEPOINT s; SELECT elsewhere.llm_complete('x')}), { sqlstate => 'LG005' }, 'in another schema');
$a->value(q{ROLLBACK TO s; SELECT count(*) FROM elsewhere.llm_add_provider('mock')});
like($a->value(q{SELECT elsewhere.llm_complete('x', model => 'mock-standard')}), qr/x/, 'it works there');
$a->value('COMMIT');
like($b->value(q{SELECT elsewhere.llm_complete('x', model => 'mock-standard')}), qr/x/, 'also for others');
$gw->no_crash_ok;

done_testing();
