# What users put into the ledger and around it: names in another encoding, long tags, owners and
# triggers of its tables, what hangs in them, a transaction that replaces the extension.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::Bin;
use LlmGateway;

my $gw = LlmGateway->new(name => 'hostile', fake => undef, conf => "restart_after_crash = on");
my $node = $gw->node;
my $call = q{SELECT llm_complete('x', model => 'mock-standard')};
$gw->sql(q{SELECT llm_add_provider('mock')});

# Waits until the query's result is 't'; false: it never was.
sub wait_for { return $node->poll_query_until('postgres', "SELECT $_[0]") }

# A role whose name is not valid in the encoding of the database

$gw->sql(q{CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0});
$gw->sql(q{SET client_encoding = 'UTF8'; DO $$BEGIN EXECUTE format('CREATE ROLE %I SUPERUSER LOGIN', 'jos' || chr(233)); END$$}, 'latin');
is($gw->sql(q{DO $$ DECLARE r name; BEGIN
	SELECT rolname INTO r FROM pg_roles WHERE rolname LIKE 'jos%';
	EXECUTE format('SET ROLE %I', r); PERFORM llm_complete('as jose', model => 'mock-standard'); RESET ROLE; END $$;
	SELECT status, role = 'jos\xE9', role_oid = (SELECT oid FROM pg_roles WHERE rolname LIKE 'jos%') FROM llm_requests}),
	'ok|t|t', 'a role of another encoding is booked, its name made readable');

# Tags that are long as text only

my $r = $gw->admin->run(q{SELECT llm_complete('x', model => 'mock-standard', tags => jsonb_build_object('n', 1e70000::numeric))});
is($r->{sqlstate}, '54000', 'tags that are long as text are refused');
is($gw->sql(q{SELECT count(*) FROM llm_requests}), '1', 'before anything is sent');
is($gw->sql(q{SELECT llm_complete('x', model => 'mock-standard', tags => jsonb_build_object('n', 1e60000::numeric)) IS NOT NULL}), 't',
	'tags of 60 kB are not');
is($gw->sql(q{SELECT max(length(tags->>'n')) FROM llm_requests}), '60001', 'and are booked');

# The owner of a table gains nothing by what it adds to it

$gw->sql(q{
	CREATE ROLE finance LOGIN;
	ALTER TABLE llm_requests OWNER TO finance;
	CREATE SCHEMA finance AUTHORIZATION finance;
	SET ROLE finance;
	CREATE TABLE finance.seen (who name, restricted boolean);
	CREATE FUNCTION finance.rise() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
		INSERT INTO finance.seen VALUES (current_user, true);
		BEGIN EXECUTE 'ALTER ROLE finance SUPERUSER'; EXCEPTION WHEN insufficient_privilege THEN NULL; END;
		PERFORM set_config('lock_timeout', '0', false);
		RETURN NULL; END$$;
	CREATE TRIGGER rise AFTER INSERT ON llm_requests EXECUTE FUNCTION finance.rise();
	CREATE CONSTRAINT TRIGGER rise_late AFTER INSERT ON llm_requests DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION finance.rise()});
is($gw->sql(qq{$call; SELECT rolsuper FROM pg_roles WHERE rolname = 'finance'}), "mock reply to: x\nf", 'a trigger does not make its owner superuser');
is($gw->sql('SELECT string_agg(DISTINCT who, \',\'), count(*) FROM finance.seen'), 'finance|2', 'it runs as the owner, also when deferred');

# and what it sets ends with the step
my $locker = $gw->session;
$locker->value('BEGIN; LOCK TABLE llm_attempts IN ACCESS EXCLUSIVE MODE');
$gw->sql($call);
ok(wait_for(q{state = 'blocked' FROM llm_worker_status WHERE worker = 'ledger'}), 'the worker still waits for a lock for 100 ms only');
$locker->value('COMMIT');
ok($gw->drained, 'and goes on');
$gw->sql('DROP TRIGGER rise ON llm_requests; DROP TRIGGER rise_late ON llm_requests; ALTER TABLE llm_requests OWNER TO postgres');

# A unique index of a user's does not swallow a request

$gw->sql('CREATE UNIQUE INDEX once ON llm_requests (application_name) WHERE application_name = \'once\'');
my $before = $gw->sql('SELECT count(*) FROM llm_requests');
my $twice = $call =~ s/'x'/'twice'/r;
$gw->sql("SET client_min_messages = error; SET application_name = once; $twice") for 1 .. 2;
ok(wait_for(q{state = 'blocked' FROM llm_worker_status WHERE worker = 'ledger'}), 'it stops the ledger');
like($gw->sql(q{SELECT last_error FROM llm_worker_status WHERE worker = 'ledger'}), qr/unique constraint "once"/, 'which says why');
$gw->sql('DROP INDEX once');
ok($gw->drained, 'and without it the ledger goes on');
is($gw->sql('SELECT count(*) FROM llm_requests') - $before, 2, 'with both requests');

# A trigger that hangs holds up nobody

$gw->sql('CREATE DATABASE hung');
$gw->sql(q{CREATE EXTENSION llm_gateway; SELECT llm_add_provider('mock');
	CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(300); RETURN NULL; END$$;
	CREATE TRIGGER hang AFTER INSERT ON llm_requests EXECUTE FUNCTION hang()}, 'hung');
my $s = $gw->session('hung');
$s->run(q{SET llm_gateway.ledger_sync_timeout = '3s'; BEGIN});
is(scalar @{ $s->run($call)->{notices} }, 1, 'a transaction is warned once');
my $second = $s->run($call);
is(scalar @{ $second->{notices} }, 0, 'and not again');
cmp_ok($second->{seconds}, '<', 2.5, 'and waits once for a ledger that does not move');
$s->quit;
my $dropped = $gw->session->run('DROP DATABASE hung');
is($dropped->{sqlstate}, undef, 'DROP DATABASE while a step hangs') or diag($dropped->{err});
cmp_ok($dropped->{seconds}, '<', 10, 'in time');

$gw->sql(q{CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(300); RETURN NULL; END$$;
	CREATE TRIGGER hang AFTER INSERT ON llm_requests EXECUTE FUNCTION hang()});
$gw->sql("SET client_min_messages = error; SET llm_gateway.ledger_sync_timeout = '1s'; $call");
my $start = time;
$gw->admin->quit;
delete $gw->{admin};
$node->stop('fast');
cmp_ok(time - $start, '<', 20, 'a fast stop while a step hangs');
$node->start;
$gw->sql('DROP TRIGGER hang ON llm_requests');
ok($gw->drained(30), 'nothing is lost');

# An extension whose creation is rolled back: its calls are the other one's

$before = $gw->sql('SELECT count(*) FROM llm_requests');
$s = $gw->session;
$s->run(q{BEGIN; DROP EXTENSION llm_gateway CASCADE; CREATE EXTENSION llm_gateway});
$s->run(q{SELECT llm_add_provider('mock')});
$s->run($call);
$s->run('ROLLBACK');
ok($gw->drained, 'a call of an extension that never was');
is($gw->sql('SELECT count(*) FROM llm_requests') - $before, 1, 'is in the ledger that is there');

$gw->no_crash_ok;
done_testing();
