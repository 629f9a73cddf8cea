# The worker's books: what it writes fits what users do to the ledger's tables, what it cannot write
# waits, and each request is booked once whatever becomes of the tables, the extension or the server.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(literal row rows wait_until);

my $gw = LlmGateway->new(name => 'booking', conf => <<'CONF');
restart_after_crash = on
llm_gateway.log_content = on
llm_gateway.ledger_sync_timeout = '60s'
CONF
my $node = $gw->node;
my $s = $gw->session;
my $admin = $gw->admin;
my ($row, $r, $id);

# What does not wait for the ledger is back after this time; what does wait, waits for longer.
use constant AT_ONCE => 20;

$gw->add_models('fake', 'gpt-4o', 'status-503', 'silent', { input_price => 2, output_price => 10 });
$gw->add_provider('spare', $gw->fake->url('/spare'));
$gw->add_models('spare', 'gpt-4o', { input_price => 3, output_price => 20 });
$gw->sql(q{UPDATE llm_error_policies SET max_retries = 1, backoff_ms = 1 WHERE error_class IN ('overloaded', 'server_error')});

my $call = q{SELECT llm_complete('hi', model => 'fake/gpt-4o')};

# Waits until the query's result is 't'; false: it never was.
sub wait_for { return $node->poll_query_until('postgres', "SELECT $_[0]") }

# What the worker last complained of.
sub complaint { return $gw->worker->{last_error} }

# How often the log says that.
sub logged
{
	my ($pattern) = @_;
	my @found = $gw->log_text =~ /$pattern/g;
	return scalar @found;
}

# Whether the tables agree with each other.
sub consistent_ok
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($admin->value(<<'SQL'), 't|t|t|t|t|t', "$name: the tables agree");
SELECT
	(SELECT count(*) FROM llm_requests) = (SELECT sum(requests) FROM llm_daily_spend),
	(SELECT count(*) FILTER (WHERE status IN ('error', 'unknown')) FROM llm_requests) = (SELECT sum(failures) FROM llm_daily_spend),
	(SELECT sum(cost_usd) FROM llm_attempts) = (SELECT sum(cost_usd) FROM llm_daily_spend),
	(SELECT sum(input_tokens + output_tokens) FROM llm_attempts) = (SELECT sum(input_tokens + output_tokens) FROM llm_daily_spend),
	(SELECT sum(estimated_usd) FROM llm_requests) = (SELECT sum(estimated_usd) FROM llm_daily_spend),
	NOT EXISTS (SELECT FROM llm_requests r LEFT JOIN llm_attempts a USING (request_id) GROUP BY r.request_id
		HAVING r.attempts <> count(a) OR coalesce(r.input_tokens, 0) <> coalesce(sum(a.input_tokens), 0)
			OR coalesce(r.output_tokens, 0) <> coalesce(sum(a.output_tokens), 0)
			OR r.cost_usd IS DISTINCT FROM CASE WHEN count(a) = count(a.cost_usd) THEN coalesce(sum(a.cost_usd), 0) END)
SQL
	return;
}

# Rows

is($s->value($call), 'echo: hi', 'a call');
$row = row($s, 'SELECT * FROM llm_requests');
is("$row->{provider} $row->{model} $row->{model_tier} $row->{status} $row->{attempts} $row->{fallback}", 'fake gpt-4o standard ok 1 false', 'has a row');
is("$row->{prompt} / $row->{response}", 'hi / echo: hi', 'with its texts');
ok($row->{cost_usd} > 0 && $row->{cost_source} eq 'usage', 'and its cost');

is($s->run(q{SELECT llm_complete('fails', model => 'status-503')})->{sqlstate}, 'LG004', 'a call that fails');
is_deeply(
	[ map { "$_->{attempt} $_->{provider} $_->{http_status} $_->{error_class} $_->{cost_usd} $_->{cost_source}" }
		  rows($s, q{SELECT a.* FROM llm_attempts a JOIN llm_requests USING (request_id) WHERE prompt = 'fails' ORDER BY attempt}) ],
	[ '1 fake 503 overloaded 0 none', '2 fake 503 overloaded 0 none' ],
	'has a row for each attempt');
$row = row($s, q{SELECT * FROM llm_requests WHERE prompt = 'fails'});
is("$row->{status} $row->{error_class} $row->{attempts} $row->{cost_usd} $row->{cost_source} " . ($row->{response} // 'NULL'), 'error overloaded 2 0 none NULL', 'and one of its own');

is($s->value(q{SELECT count(*) FROM llm_complete_batch(array(SELECT 'b' || g FROM generate_series(1, 200) g), model => 'gpt-4o', tags => '{"team": "a\\"b"}')}), '200', 'a batch');
is($s->value(q{SELECT count(*), count(DISTINCT tags), min(tags ->> 'team') FROM llm_requests WHERE prompt LIKE 'b%'}), '200|1|a"b', 'each of it has a row');
is($s->value(q{SELECT bool_and(created_at <= started_at) FROM llm_requests JOIN llm_attempts USING (request_id)}), 't', 'attempts follow requests');
consistent_ok('at first');

# What users do to the tables

$gw->sql(q{ALTER TABLE llm_requests ADD COLUMN note text DEFAULT 'added'; ALTER TABLE llm_requests ADD COLUMN double_cost numeric GENERATED ALWAYS AS (cost_usd * 2) STORED});
$gw->sql(q{CREATE INDEX ON llm_requests (model); ALTER TABLE llm_attempts ADD COLUMN seen timestamptz DEFAULT now()});
$s->value($call);
is($s->value(q{SELECT count(*) FROM llm_requests WHERE note = 'added' AND double_cost = cost_usd * 2}), $s->value('SELECT count(*) FROM llm_requests'), 'columns that a user adds have their defaults');

$gw->sql(q{CREATE TABLE fired (who name, n bigint);
	CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO public.fired VALUES (current_user, NEW.request_id); RETURN NULL; END';
	CREATE TRIGGER fire AFTER INSERT ON llm_requests FOR EACH ROW EXECUTE FUNCTION fire()});
$s->value($call);
is($s->value('SELECT count(*), min(who) FROM fired'), '1|postgres', 'a trigger of theirs fires, as the owner of the extension');
$gw->sql(q{CREATE OR REPLACE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''not today''; END'});
$r = $s->run($call);
is("$r->{out} " . ($r->{sqlstate} // 'ok'), 'echo: hi ok', 'a call while it raises');
ok(wait_for(q{last_error = 'not today' FROM llm_worker_status WHERE worker = 'ledger'}), 'the worker says so');
is($s->run($call)->{sqlstate}, undef, 'calls go on');
$gw->sql('DROP TABLE fired; DROP FUNCTION fire() CASCADE');
ok($gw->drained(30), 'without the trigger all is booked');
consistent_ok('after a trigger');

for (
	[ 'DROP COLUMN optimize', 'ADD COLUMN optimize text', qr/column "optimize" of table "llm_requests" is missing/, qr/Add it, of type text/ ],
	[ 'ALTER COLUMN queue_ms TYPE bigint', 'ALTER COLUMN queue_ms TYPE integer', qr/"queue_ms" of table "llm_requests" must be of type integer, not bigint/, qr/Change it back/ ],
	[ 'RENAME COLUMN task TO work', 'RENAME COLUMN work TO task', qr/column "task" of table "llm_requests" is missing/, qr/Add it/ ],
	[ 'RENAME TO elsewhere', undef, qr/table "llm_requests" of extension "llm_gateway" is missing/, qr/ALTER EXTENSION/ ])
{
	my ($do, $undo, $message, $hint) = @$_;
	my $before = $s->value('SELECT count(*) FROM llm_requests');
	$gw->sql("ALTER TABLE llm_requests $do");
	is($s->run($call)->{sqlstate}, undef, "$do: calls go on");
	ok(wait_for(q{state = 'blocked' FROM llm_worker_status WHERE worker = 'ledger'}), 'the worker is blocked');
	like(complaint(), $message, 'and says why');
	like($gw->log_text, $hint, 'and what to do');
	$gw->sql($undo ? "ALTER TABLE llm_requests $undo" : 'ALTER TABLE elsewhere RENAME TO llm_requests');
	ok($gw->drained(30), 'all is booked when it is undone');
	is($s->value('SELECT count(*) FROM llm_requests'), $before + 1, 'once');
}

$gw->sql('VACUUM FULL llm_daily_spend; VACUUM FULL _llm_spool_position; VACUUM FULL llm_requests');
is($s->run("$call; $call")->{sqlstate}, undef, 'a call after VACUUM FULL');
ok($gw->drained(30), 'is booked');
consistent_ok('after VACUUM FULL');

# Locks.  The session that holds one does not wait for itself.
for my $table (qw(llm_requests llm_attempts llm_daily_spend _llm_spool_position))
{
	my $t = $gw->session;
	my $before = $s->value('SELECT count(*) FROM llm_requests');
	$t->value("BEGIN; LOCK TABLE $table IN SHARE MODE");
	$r = $s->run($call);
	is("$r->{out}$r->{err}", 'echo: hi', "a call while $table is locked");
	cmp_ok($r->{seconds}, '<', AT_ONCE, 'does not wait');
	$r = $t->run($call);
	is("$r->{out}$r->{err}", 'echo: hi', 'nor does one by who locked it');
	cmp_ok($r->{seconds}, '<', AT_ONCE, 'wait');
	is($t->value('SELECT count(*) FROM llm_requests'), $before, 'nothing is booked');
	$t->value('COMMIT');
	ok($gw->drained(30), 'afterwards it is');
	is($s->value('SELECT count(*) FROM llm_requests'), $before + 2, 'once');
}
consistent_ok('after locks');

# Long transactions do not keep it from going on
$admin->value('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM llm_requests');
is($s->value(q{SELECT count(llm_complete('long', model => 'fake/gpt-4o')) FROM generate_series(1, 300)}), '300', 'many calls of one statement under an old snapshot');
$admin->value('COMMIT');
is($s->value(q{SELECT count(*) FROM llm_requests WHERE prompt = 'long'}), '300', 'are booked');
consistent_ok('after a long transaction');

# A row that is there already

$s->value($call);
$id = $s->value('SELECT max(request_id) FROM llm_requests') + 1;
my $spent = $s->value('SELECT sum(requests) FROM llm_daily_spend');
$gw->sql("INSERT INTO llm_requests (request_id, created_at, operation, role, role_oid, status, attempts, fallback, cost_source)
	SELECT $id, now(), 'complete', 'x', 10, 'ok', 7, false, 'none'");
is($s->value(q{SELECT request_id FROM llm_complete_detail('twice', model => 'fake/gpt-4o')}), $id, 'a call whose id is taken');
is($s->value("SELECT role, attempts, prompt FROM llm_requests WHERE request_id = $id"), 'x|7|', 'the row stays as it is');
is($s->value("SELECT count(*) FROM llm_attempts WHERE request_id = $id"), '0', 'it has no attempts');
is($s->value('SELECT sum(requests) FROM llm_daily_spend'), $spent, 'nor is it in the daily spend');
is(logged(qr/WARNING:  1 requests were in the ledger already/), 1, 'the log says so');
$gw->sql("DELETE FROM llm_requests WHERE request_id = $id");

# A position that somebody sets back: all is read again, and nothing booked twice
my $n = $s->value('SELECT count(*) FROM llm_requests');
is($s->value('SELECT count(*) FROM _llm_spool_position WHERE NOT done'), '1', 'there is one position');
$gw->sql('UPDATE _llm_spool_position SET read_offset = 0, oldest_open = 0');
$s->value($call);
ok($gw->drained(30), 'all is read again after a position was set back');
is($s->value('SELECT count(*) FROM llm_requests'), $n + 2, 'nothing is booked twice, but what had been left out and is not in the way any more is booked');
consistent_ok('after the position was set back');

# Two that book at the same time cannot be: a position that was changed meanwhile is noticed
$gw->sql('UPDATE _llm_spool_position SET read_offset = read_offset + 8');
$s->value($call);
ok($gw->drained(30), 'and after it was moved');
like($gw->log_text, qr/position of the ledger in the spool was changed by somebody else/, 'the log says so');
consistent_ok('after the position was moved');

# TRUNCATE
$gw->sql('TRUNCATE llm_requests, llm_attempts, llm_daily_spend');
$s->value($call);
is($s->value('SELECT (SELECT count(*) FROM llm_requests), (SELECT count(*) FROM llm_attempts), sum(requests) FROM llm_daily_spend'), '1|1|1', 'after TRUNCATE only what is new is there');

# Retention

$s->value(q{SELECT count(*) FROM llm_complete_batch(array(SELECT 'old' || g FROM generate_series(1, 1200) g), model => 'fake/gpt-4o')});
$gw->sql(q{UPDATE llm_requests SET created_at = created_at - interval '2 days' WHERE prompt LIKE 'old%'});
$s->value($call);
$gw->sql(q{ALTER SYSTEM SET llm_gateway.retention = '1d'});
$node->reload;
$s->value($call);
ok(wait_for(q{count(*) = 0 FROM llm_requests WHERE prompt LIKE 'old%'}), 'retention deletes what is old') or diag complaint();
ok(wait_for('count(*) = (SELECT sum(attempts) FROM llm_requests) FROM llm_attempts'), 'with its attempts');
is($s->value(q{SELECT bool_and(prompt = 'hi'), count(*) FROM llm_requests}), 't|3', 'and nothing else');
is($s->value('SELECT sum(requests) FROM llm_daily_spend'), '1203', 'the daily spend keeps all');
$gw->sql('ALTER SYSTEM RESET llm_gateway.retention; TRUNCATE llm_requests, llm_attempts, llm_daily_spend');
$node->reload;

# The extension comes and goes

$gw->sql('CREATE DATABASE other');
$gw->sql('ALTER DATABASE other SET search_path = even, "Odd.schema"');
my $o = $gw->session('other');
$o->value('CREATE SCHEMA "Odd.schema"; CREATE EXTENSION llm_gateway SCHEMA "Odd.schema"');
my $mock = q{SELECT llm_complete('x', model => 'mock-standard')};
$o->value(q{SELECT count(*) FROM llm_add_provider('mock')});
is($o->run($mock)->{err}, '', 'a call in a schema with an odd name');
is($o->value('SELECT count(*) FROM llm_requests'), '1', 'is booked');
$o->value('ALTER SCHEMA "Odd.schema" RENAME TO even');
is($o->run($mock)->{err}, '', 'a call after it was renamed');
is($o->value('SELECT count(*) FROM llm_requests'), '2', 'is booked');

$o->value('BEGIN');
$o->value('DROP EXTENSION llm_gateway');
$o->value('ROLLBACK');
$o->run($mock);
is($o->value('SELECT count(*) FROM llm_requests'), '3', 'after a DROP EXTENSION that was rolled back');

$o->value('BEGIN; DROP EXTENSION llm_gateway');
$o->value(q{CREATE EXTENSION llm_gateway SCHEMA even});
$o->value(q{SELECT count(*) FROM llm_add_provider('mock')});
$r = $o->run($mock);
is($r->{err}, '', 'a call in the transaction that creates the extension');
cmp_ok($r->{seconds}, '<', AT_ONCE, 'does not wait for its record');
sleep 0.3;
$o->value('COMMIT');
ok($gw->drained(30, 'other'), 'after commit all is booked');
is($o->value('SELECT count(*) FROM llm_requests'), '1', 'in the new ledger');
is($o->value('SELECT sum(requests) FROM llm_daily_spend'), '1', 'once');
unlike($gw->log_text, qr/database "other".*discarded/, 'without loss');

$o->value('DROP EXTENSION llm_gateway');
$o->value('BEGIN; CREATE EXTENSION llm_gateway SCHEMA even');
$o->value(q{SELECT count(*) FROM llm_add_provider('mock')});
is($o->run("$mock; $mock")->{err}, '', 'calls in a transaction that creates the extension');
sleep 0.3;
$o->value('ROLLBACK');
ok(wait_for(q{count(*) = 0 FROM pg_stat_activity WHERE datname = 'other' AND backend_type = 'llm_gateway worker' AND state <> 'idle'}), 'it is rolled back');
ok(wait_until(sub { logged(qr/discarded 2 requests of an extension "llm_gateway" that is gone/) == 1 }), 'their ledger never was: they are discarded, and the log says so');
$o->value('CREATE EXTENSION llm_gateway SCHEMA even');
$o->value(q{SELECT count(*) FROM llm_add_provider('mock')});
is($o->run($mock)->{err}, '', 'a call after that');
ok($gw->drained(30, 'other'), 'is booked');
is($o->value('SELECT count(*) FROM llm_requests'), '1', 'in a new ledger');

# The server dies in the middle of a call

$o->quit;
$gw->add_models('fake', 'gpt-4o-mini', { input_price => 4, output_price => 40 });
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('both', 'fake/status-503', 1), ('both', 'fake/silent', 2)});
my $t = $gw->session;
$t->start(q{SELECT llm_complete('cut off', model => 'both', max_tokens => 123, tags => '{"a": 1}')});
ok($gw->fake->wait_for_stats(sub { $_[0]{in_flight} == 1 }), 'a call is under way, in its third attempt');
$s->value($call);
$gw->sql('INSERT INTO _llm_spool_position SELECT g, 0, 0, true, now() FROM generate_series(1, 1100) g');
kill 'KILL', $t->pid;
$t->finish;
$_->quit for $s, $admin;
delete $gw->{admin};
ok($gw->comes_back($t->pid), 'its backend is killed, and the server starts again');
ok($gw->drained(60), 'nothing is left in the spool');
$admin = $gw->admin;
$s = $gw->session;
$row = row($s, q{SELECT * FROM llm_requests WHERE prompt = 'cut off'});
is(join(' ', map { $_ // 'NULL' } @{$row}{qw(provider model status error_class attempts cost_source latency_ms output_tokens tags)}),
	'fake silent unknown NULL 3 estimate NULL 123 {"a": 1}', 'the request is booked as unknown');
is_deeply(
	[ map { join ' ', map { $_ // 'NULL' } @{$_}{qw(attempt model http_status error_class latency output_tokens cost_usd cost_source)} }
		  rows($s, q{SELECT a.*, a.latency_ms IS NOT NULL AS latency FROM llm_attempts a JOIN llm_requests USING (request_id) WHERE prompt = 'cut off' ORDER BY attempt}) ],
	[
		'1 status-503 503 overloaded true 0 0 none',
		'2 status-503 503 overloaded true 0 0 none',
		'3 silent NULL unknown false 123 ' . $s->value(q{SELECT trim_scale((input_tokens * 2 + 123 * 10) / 1e6) FROM llm_requests WHERE prompt = 'cut off'}) . ' estimate'
	],
	'its attempts, but for the last, as they ended');
is($s->value(q{SELECT count(*) FROM llm_requests WHERE prompt = 'hi'}), '1', 'what was booked before is there once');
consistent_ok('after a crash');
is($s->value($call), 'echo: hi', 'calls go on');
is($s->value(q{SELECT count(*) FILTER (WHERE done), count(*) FILTER (WHERE NOT done) FROM _llm_spool_position}), '1000|1', 'of old positions the newest are kept');
consistent_ok('at last');

done_testing();
