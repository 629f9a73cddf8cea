# Answers that are kept: written to llm_cache with the request that they answered, replaced by later
# ones, deleted when they expire or are too many; and what the ledger says of a call that needed no
# provider.
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

my $gw = LlmGateway->new(name => 'kept_answers', fake => undef, conf => <<'CONF');
restart_after_crash = on
llm_gateway.worker_idle_timeout = 0
CONF
my $node = $gw->node;
my $id = 1000;

sub book
{
	my ($spool, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	delete $gw->{admin};
	$node->stop;
	$spool->write;
	$node->start;
	ok($gw->drained, $name);
	return;
}

# A call that was answered, and whose answer is to be kept.
sub answered
{
	my ($spool, $what, $end) = @_;
	$spool->note(++$id, {});
	$spool->keep($id, $what);
	$spool->end($id, { last => { cost => 7_000, source => 'usage', input => 30, output => 20 }, %{ $end // {} } });
	return $id;
}

sub kept { return $gw->admin->value("SELECT string_agg(convert_from(key, 'LATIN1'), ' ' ORDER BY key) FROM (SELECT rtrim(key, '\\000'::bytea) AS key FROM llm_cache) k") }
sub kept_soon_ok
{
	my ($want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until(sub { kept() eq $want });
	return is(kept(), $want, $name);
}

# What is written
my $spool = SpoolFile->new($gw);
$gw->sql('CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE boss LOGIN; CREATE ROLE analyst LOGIN');
my $app = $gw->sql(q{SELECT 'app'::regrole::oid});
$spool->{request}{role} = 'app';
$spool->{request}{role_oid} = $app;
$spool->{request}{task} = 'lookup';
answered($spool, { key => 'a', response => 'replaced' });
my $first = answered($spool, { key => 'a', response => 'Grüße', tool_calls => '[{"name": "f", "arguments": {"n": 1.10}}]' });
answered($spool, { key => 'b', response => undef, tool_calls => '[]' });
answered($spool, { key => 'expired', created_at => '2020-01-01', expires_at => '2020-01-02' });
answered($spool, { key => 'no json', tool_calls => '{"name": ' });
answered($spool, { key => 'vector', scope => 's', embedding => [ 0.5, -2, 'NaN' ] });
answered($spool, { key => "count $_", scope => 's', embedding => [ 0.5, -2 ], dimensions => $_ }) for -1, 1, 3, 7, 65537, 2147483647;
answered($spool, { key => 'cancelled' }, { status => 'cancelled' });
answered($spool, { key => 'failed' }, { status => 'error' });
$spool->note(++$id, {});
$spool->keep($id, { key => 'unknown' });
$spool->keep(++$id, { key => 'nobody' });
$spool->note(++$id, {});
$spool->record('keep', $id, 'what is that?');
$spool->end($id, { last => { cost => 1, source => 'usage' } });
book($spool, 'calls with answers to keep');
is(kept(), 'a b vector', 'answers are kept, whole ones that have not expired');
is($gw->admin->value('SELECT count(*), count(*) FILTER (WHERE status = \'ok\') FROM llm_requests'), '16|13', 'whatever becomes of the answer, its request is booked');
is_deeply(
	row($gw->admin, q{SELECT encode(key, 'escape') AS key, role, role_oid, task, provider, model, model_tier, response, tool_calls::text AS tool_calls, finish_reason,
		input_tokens, output_tokens, cost_usd, created_at AT TIME ZONE 'UTC' AS created_at, (expires_at AT TIME ZONE 'UTC')::text AS expires_at, request_id, size > 40 AS counted FROM llm_cache WHERE tool_calls <> '[]'}),
	{
		key => 'a' . '\000' x 15, role => 'app', role_oid => $app, task => 'lookup', provider => 'fake', model => 'gpt-4o', model_tier => 'standard', response => 'Grüße',
		tool_calls => '[{"name": "f", "arguments": {"n": 1.10}}]', finish_reason => 'stop', input_tokens => 30, output_tokens => 20, cost_usd => '0.000007',
		created_at => '2026-11-20T12:00:00', expires_at => '2126-11-20 12:00:00', request_id => $first, counted => 'true'
	},
	'with all that a call says that is given it; of two with a key the later');
is($gw->worker->{last_error}, undef, 'what cannot be kept is no error');

is($gw->admin->value(q{SELECT embedding::text || ' ' || rtrim(scope, '\000'::bytea)::text || ' ' || (size >= 12) FROM llm_cache WHERE embedding IS NOT NULL}), '{0.5,-2,NaN} \x73 true', 'and the embedding of its prompt');
$gw->sql('DELETE FROM llm_cache WHERE embedding IS NOT NULL');

# Later ones
$spool = SpoolFile->new($gw);
my $second = answered($spool, { key => 'b', response => 'newer' });
book($spool, 'a call that is made again');
is($gw->admin->value("SELECT response, tool_calls, role, request_id FROM llm_cache WHERE request_id = $second"), "newer||postgres|$second", 'its answer replaces the one that was there');
is(kept(), 'a b', 'there are no more');

# A call that needed no provider
$spool = SpoolFile->new($gw);
$spool->end(++$id, { status => 'cached', attempts => 0, request => { role => 'app', role_oid => $app }, provider => 'fake', model => 'gpt-4o', model_tier => 'standard' });
$spool->end(++$id, { status => 'rejected', attempts => 0, request => { role => 'app', role_oid => $app } });
book($spool, 'an answer that was given again, a call that was refused');
is($gw->admin->value('SELECT status, provider, model, model_tier, attempts, cost_usd, cost_source, input_tokens, output_tokens, budgets FROM llm_requests WHERE request_id >= ' . ($id - 1) . ' ORDER BY request_id'),
	"cached|fake|gpt-4o|standard|0|0|none|0|0|\nrejected||||0|0|none|0|0|", 'have a row each, which says whose answer it was');
is($gw->admin->value(q{SELECT provider, model, model_tier, requests, cached, failures, cost_usd FROM llm_daily_spend WHERE role = 'app' AND priority = 'normal' AND task = 'default' ORDER BY 1}),
	"|||1|0|0|0\nfake|gpt-4o|standard|1|1|0|0", 'and count on the day');
is($gw->admin->value("SELECT count(*) FROM llm_attempts WHERE request_id >= $id - 1"), '0', 'nothing was sent');

# Whose they are
$gw->sql(q{SELECT llm_grant('app'), llm_grant('other'), llm_grant('analyst', 'report'), llm_grant('boss', 'admin')});
my $count = 'SELECT count(*) FROM llm_cache';
is(join(' ', map { $gw->session('postgres', user => $_)->value($count) } qw(app other analyst boss)), '1 0 2 2', 'a role sees answers to its own calls, who may report sees all');
for (qw(app analyst))
{
	is($gw->session('postgres', user => $_)->run('DELETE FROM llm_cache')->{sqlstate}, '42501', "$_ deletes none");
}
is($gw->session('postgres', user => 'boss')->run(q{UPDATE llm_cache SET response = 'forged'})->{sqlstate}, '42501', 'nobody writes one');
is($gw->session('postgres', user => 'boss')->value(q{WITH gone AS (DELETE FROM llm_cache WHERE role = 'app' RETURNING 1) SELECT count(*) FROM gone}), '1', 'an administrator deletes them');

# Expired, too many
$spool = SpoolFile->new($gw);
answered($spool, { key => sprintf('n%02d', $_), response => 'x' x 100_000, created_at => sprintf '2026-11-20 12:%02d:00', $_ }) for reverse 1 .. 30;
book($spool, '30 answers');
is($gw->admin->value($count), 31, 'all are kept');
$gw->sql(q{ALTER SYSTEM SET llm_gateway.cache_size = '1MB'; UPDATE llm_cache SET expires_at = now() WHERE key = (SELECT key FROM llm_cache ORDER BY key DESC LIMIT 1)});
$spool = SpoolFile->new($gw);
answered($spool, { key => 'new', response => 'y', created_at => '2026-11-21' });
book($spool, 'one more, and a smaller cache');
ok(wait_until(sub { $gw->admin->value('SELECT sum(size) <= 1024 * 1024 FROM llm_cache') eq 't' }), 'the oldest are deleted');
kept_soon_ok('n21 n22 n23 n24 n25 n26 n27 n28 n29 new', 'and those that have expired');
$gw->sql(q{UPDATE llm_cache SET size = 2000000 WHERE response = 'y'; ALTER SYSTEM SET llm_gateway.cache_size = 0; SELECT pg_reload_conf()});
ok(wait_until(sub { $gw->admin->value($count) eq '0' }), 'zero keeps none');

# Who locks the table holds up nobody
$gw->sql(q{INSERT INTO llm_providers (name, kind) VALUES ('mock', 'mock'); INSERT INTO llm_models (provider, name) VALUES ('mock', 'm')});
my $locker = $gw->session;
my $s = $gw->session;
$locker->value('BEGIN; LOCK TABLE llm_cache IN SHARE MODE');
for my $session ($s, $locker)
{
	my $r = $session->run(q{SET llm_gateway.ledger_sync_timeout = '60s'; SELECT llm_complete('hi', model => 'mock/m') IS NOT NULL});
	is("$r->{out}$r->{err}", 't', 'a call while the table is locked');
	cmp_ok($r->{seconds}, '<', 20, 'does not wait');
}
$locker->value('COMMIT');
ok($gw->drained(30), 'afterwards all is booked');

# Not in a dump
$spool = SpoolFile->new($gw);
$gw->sql('ALTER SYSTEM RESET llm_gateway.cache_size');
answered($spool, { key => 'secret', response => 'private words' });
book($spool, 'an answer');
is(kept(), 'secret', 'is kept');
unlike(scalar(PostgreSQL::Test::Utils::run_command([ $node->installed_command('pg_dump'), '-d', $node->connstr('postgres') ])), qr/private words/, 'and in no dump');

# The extension is dropped and made again: its answers go with it
$gw->sql('DROP EXTENSION llm_gateway; CREATE EXTENSION llm_gateway');
is($gw->admin->value($count), '0', 'a new extension has none');
$spool = SpoolFile->new($gw);
answered($spool, { key => 'own' });
$spool->{extension}++;
answered($spool, { key => 'foreign' });
book($spool, 'answers of its own, and of one that is gone');
is(kept(), 'own', 'it keeps its own');

$gw->no_crash_ok;
done_testing;
