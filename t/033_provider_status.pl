# Watching providers: what llm_provider_status shows, what operators do by hand, what the worker does by
# itself (events, probes), and that it stays the worker it was meanwhile.
use strict;
use warnings;

use FindBin;
use JSON::PP qw(decode_json);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw($KEY PROMPTLY error_ok gone row rows wait_until);

# A probe that hangs must not keep the worker: it leaves within so many seconds.
use constant SOON => 8;

my $gw = LlmGateway->new(
	name => 'watching',
	fake => undef,
	conf => <<'CONF');
restart_after_crash = on
llm_gateway.ledger_sync_timeout = '20s'
CONF
my $node = $gw->node;
my $fake = FakeProvider->new;
my $admin = $gw->admin;
my $s = $gw->session;
my ($r, $row, $pid, @events);

sub status { return row($admin, "SELECT * FROM llm_provider_status WHERE provider = '$_[0]'") }
sub state { return $admin->value("SELECT state FROM llm_provider_status WHERE provider = '$_[0]'") }
sub state_is { my ($name, $state) = @_; return wait_until(sub { state($name) eq $state }) }
sub worker { return $admin->value(q{SELECT pid FROM llm_worker_status WHERE worker = 'ledger'}) }

# The changes of a provider's breaker, as the table has them, since its last closed state or ever.
sub events
{
	my ($name) = @_;
	return $admin->value("SELECT string_agg(from_state || '>' || to_state || ':' || reason, ' ' ORDER BY event_id) FROM llm_breaker_events WHERE provider = '$name'");
}

# A provider of its own, with one model of the same name.
sub provider
{
	my ($name, %columns) = @_;
	$gw->add_provider($name, $fake->url("/$name"), {
		breaker_failures => 2, breaker_cooldown => "'500 ms'", %columns });
	$gw->add_models($name, $name, { input_price => 1, output_price => 2 });
	return;
}

# Two calls that fail: its breaker opens.
sub break_it
{
	my ($name) = @_;
	$fake->script({ model => $name, path => "/$name" }, { behaviour => 'status-500', repeat => 2 });
	$s->run("SELECT llm_complete('hi', model => '$name')") for 1 .. 2;
	return;
}

# What was asked of it by GET, or by POST.
sub asked
{
	my ($name, $method) = @_;
	return grep { $_->{method} eq ($method // 'GET') && $_->{path} =~ m{^/$name/} } @{ $fake->journal };
}

$gw->sql('UPDATE llm_error_policies SET max_retries = 0');

# By hand

provider('hand');
provider('other');
my $listener = $gw->session;
$listener->value('LISTEN llm_gateway');

is($s->value(q{SELECT llm_complete('hi', model => 'hand')}), 'echo: hi', 'a call');
$row = status('hand');
is("@$row{qw(state consecutive_failures in_flight successes failures waiting)}", 'closed 0 0 1 0 0', 'llm_provider_status counts it');
ok($row->{latency_ms} >= 0, 'with its latency');
ok(!defined $row->{opened_at} && !defined $row->{next_probe_at} && !defined $row->{reason} && !defined $row->{last_error}, 'and nothing else');
is(status('other')->{successes}, 0, 'and no one else');

$s->value(q{BEGIN; SELECT llm_breaker_open('hand'); ROLLBACK});
$row = status('hand');
is("$row->{state} $row->{reason}", 'open operator', 'an operator takes a provider out of service, for all sessions and whatever becomes of the transaction');
ok(defined $row->{opened_at} && !defined $row->{next_probe_at}, 'for good');
error_ok($s->run(q{SELECT llm_complete('hi', model => 'hand')}), { sqlstate => 'LG012', message => qr/operator/, hint => qr/llm_breaker_reset/ }, 'calls are refused');
$row = row($s, q{SELECT * FROM llm_probe('hand')});
is("$row->{ok} $row->{error_class}", 'false unavailable', 'llm_probe does not go past that');
is(scalar(asked('hand')), 0, 'nothing was sent');
is($s->value(q{SELECT ok FROM llm_probe('other')}), 't', 'another provider is not concerned');
$s->value(q{BEGIN; SELECT llm_breaker_reset('hand'); ROLLBACK});
is(state('hand'), 'closed', 'the operator puts it back');
is($s->value(q{SELECT llm_complete('hi', model => 'hand')}), 'echo: hi', 'calls go on');
$s->value(q{SELECT llm_breaker_reset('hand')});

ok(wait_until(sub { (events('hand') // '') eq 'closed>open:operator open>closed:operator' }), 'both are in llm_breaker_events, once');
$row = row($admin, q{SELECT *, at BETWEEN now() - interval '1 min' AND now() AS lately FROM llm_breaker_events WHERE to_state = 'open'});
is($row->{lately}, 'true', 'with the time');
ok(!defined $row->{error_class} && !defined $row->{message} && !defined $row->{next_probe_at}, 'and no error');
my @told;
ok(wait_until(sub { push @told, $listener->value('SELECT') =~ /^Asynchronous notification "llm_gateway" with payload "(.*)" received/mg; @told >= 2 }), 'those who listen are told');
my $payload = decode_json($told[0]);
is(join(' ', map { "$_=" . ($payload->{$_} // '') } qw(event provider from to reason)), 'event=breaker provider=hand from=closed to=open reason=operator', 'in JSON');
is($admin->value(qq{SELECT '$payload->{at}'::timestamptz = at FROM llm_breaker_events WHERE to_state = 'open'}), 't', 'with the time');
is(decode_json($told[1])->{to}, 'closed', 'of each change');

# Probes of the worker

provider('down', breaker_cooldown => "'2 s'");
break_it('down');
$row = status('down');
is("$row->{state} $row->{reason} $row->{consecutive_failures} $row->{failures}", 'open outage 2 2', 'failures open the breaker');
ok($row->{next_probe_at} gt $row->{opened_at}, 'for a while');
like($row->{last_error}, qr/^server_error: /, 'and are told of');
ok(state_is('down', 'closed'), 'the worker closes it');
my @probes = asked('down');
is(scalar @probes, 1, 'after one probe');
is($probes[0]{path}, '/down/v1/models', 'for the list of models');
is($probes[0]{headers}{authorization}, "Bearer $KEY", 'with the key');
is(scalar(asked('down', 'POST')), 2, 'and no other call');
$row = status('down');
is($row->{last_probe_at} gt $row->{last_error_at} && $row->{last_probe_ok}, 'true', 'llm_provider_status says so');
is("$row->{successes} $row->{consecutive_failures}", '0 0', 'and does not count it as a call');
ok(wait_until(sub { events('down') eq 'closed>open:outage open>half_open:outage half_open>closed:outage' }), 'each change is an event');
$row = row($admin, q{SELECT * FROM llm_breaker_events WHERE provider = 'down' AND to_state = 'open'});
is("$row->{error_class} $row->{consecutive_failures}", 'server_error 2', 'with its cause');
ok($row->{message} && $row->{next_probe_at} gt $row->{at}, 'in words, and what is to come');
ok($gw->drained, 'the ledger is written');
$row = row($admin, q{SELECT operation, role, application_name, provider, model, status, attempts, cost_usd, cost_source FROM llm_requests WHERE operation = 'probe' AND provider = 'down'});
is(join(' ', map { $row->{$_} } qw(operation role provider model status attempts cost_usd cost_source)),
	'probe ' . $admin->value('SELECT extowner::regrole FROM pg_extension WHERE extname = \'llm_gateway\'') . ' down (probe) ok 1 0 none', 'the probe is in the ledger, of the owner of the extension, for nothing');
is($row->{application_name}, 'llm_gateway worker', 'as the worker\'s');

# one that fails
$fake->reset;
$fake->script({ model => '*', path => '/down' }, { behaviour => 'status-503', repeat => 3 });
$s->run(q{SELECT llm_complete('hi', model => 'down')}) for 1 .. 2;
ok(wait_until(sub { asked('down') }), 'a probe is made');
ok(wait_until(sub { events('down') =~ /half_open>open:outage/ }), 'it fails, and the provider stays out of service');
is($admin->value(q{SELECT bool_and(next_probe_at - at > interval '3600 ms') FROM llm_breaker_events WHERE provider = 'down' AND from_state = 'half_open' AND to_state = 'open'}), 't', 'for longer');
ok(state_is('down', 'closed'), 'until one succeeds');
ok($gw->drained, 'the ledger is written');
is($admin->value(q{SELECT string_agg(status || ':' || attempts || ':' || cost_usd, ' ' ORDER BY request_id) FROM llm_requests WHERE operation = 'probe' AND provider = 'down'}),
	'ok:1:0 error:1:0 ok:1:0', 'each is in the ledger, tried once');

# Kinds of probes

provider('tiny', probe => "'completion'");
$gw->add_models('tiny', 'dear', { input_price => 100, output_price => 100 });
$fake->reset;
$row = row($s, q{SELECT * FROM llm_probe('tiny')});
ok($row->{ok} eq 'true' && !defined $row->{error_class} && $row->{latency_ms} >= 0, 'completion: by hand');
@probes = asked('tiny', 'POST');
is(scalar(@probes) . " $probes[0]{model} " . ($probes[0]{body}{max_tokens} // $probes[0]{body}{max_completion_tokens}), '1 tiny 16', 'a small one of the cheapest model');
is($admin->value(q{SELECT cost_usd > 0 AND cost_source = 'usage' FROM llm_requests WHERE operation = 'probe' AND provider = 'tiny'}), 't', 'is charged');
break_it('tiny');
ok(state_is('tiny', 'closed'), 'completion: the worker closes the breaker');
is(scalar(asked('tiny')), 0, 'without asking for models');

provider('page', probe => "'" . $fake->url('/health') . "/models'");
$fake->reset;
is(row($s, q{SELECT * FROM llm_probe('page')})->{ok}, 'true', 'a URL at the same place');
@probes = asked('health');
is("$probes[0]{path} $probes[0]{headers}{authorization}", "/health/v1/models Bearer $KEY", 'is asked with the key');
is(scalar(asked('page')), 0, 'instead of the provider');
my $elsewhere = FakeProvider->new;
$gw->sql("UPDATE llm_providers SET probe = '" . $elsewhere->url('/health') . "/models' WHERE name = 'page'");
is(row($s, q{SELECT * FROM llm_probe('page')})->{ok}, 'true', 'a URL elsewhere');
@probes = @{ $elsewhere->journal };
is(scalar(@probes) . ' ' . join(' ', grep { $probes[0]{headers}{$_} =~ /\Q$KEY\E/ } sort keys %{ $probes[0]{headers} }), '1 ', 'is asked without it');
unlike(join(' ', sort keys %{ $probes[0]{headers} }), qr/authorization/i, 'nor with any other');
$elsewhere->script({ model => '*' }, { behaviour => 'status-401', repeat => 1 });
is(row($s, q{SELECT * FROM llm_probe('page')})->{error_class}, 'invalid_request', 'what is forbidden there is not the key');
is(state('page'), 'closed', 'which is not parked for it');

provider('mute', probe => "'none'");
provider('loud');
break_it('mute');
break_it('loud');
ok(state_is('loud', 'closed'), 'none: others are probed');
sleep 1;
is(scalar(asked('mute')) . ' ' . state('mute'), '0 open', 'the worker leaves it alone');
is($s->value(q{SELECT llm_complete('hi', model => 'mute')}), 'echo: hi', 'the next call finds out');
is(state('mute'), 'closed', 'that it works');
is(row($s, q{SELECT * FROM llm_probe('mute')})->{ok}, 'true', 'by hand it can be probed');
is(scalar(asked('mute')), 1, 'by its list of models');
for (["probe = 'none'", "probe = 'models'"], ['enabled = false', 'enabled = true'])
{
	my ($forbid, $allow) = @$_;
	$gw->sql(q{UPDATE llm_providers SET breaker_cooldown = '4 s' WHERE name = 'mute'});
	$fake->reset;
	break_it('mute');
	$gw->sql("UPDATE llm_providers SET $forbid WHERE name = 'mute'");
	sleep 5;
	is(scalar(asked('mute')) . ' ' . state('mute'), '0 open', "$forbid: the worker has looked, and leaves it alone");
	$gw->sql("UPDATE llm_providers SET $allow WHERE name = 'mute'");
	ok(wait_until(sub { state('mute') eq 'closed' }, 15), "$allow: it is probed soon");
}
$fake->reset;

# a key that may not list models, but is good for calls
provider('scoped', breaker_cooldown => "'2 s'");
$fake->script({ model => '*', path => '/scoped' }, 'status-500', 'status-500', 'status-403');
$s->run(q{SELECT llm_complete('hi', model => 'scoped')}) for 1 .. 2;
is(state('scoped'), 'open', 'a provider whose key may not list models fails');
ok(state_is('scoped', 'closed'), 'its refusal shows that it is back');

# Failures of a probe by hand

$fake->script({ model => '*', path => '/other' }, { behaviour => 'status-401', repeat => 1 });
$row = row($s, q{SELECT * FROM llm_probe('other')});
is("$row->{ok} $row->{error_class}", 'false auth', 'a key that is refused');
is(status('other')->{reason}, 'auth', 'parks the provider');
$s->value(q{SELECT llm_breaker_reset('other')});
$gw->sql(q{UPDATE llm_providers SET api_key = 'env:NO_SUCH_API_KEY' WHERE name = 'other'});
$row = row($s, q{SELECT * FROM llm_probe('other')});
ok($row->{ok} eq 'false' && $row->{error_class} eq 'auth' && !defined $row->{latency_ms}, 'one that cannot be read');
like($row->{message}, qr/NO_SUCH_API_KEY/, 'is named');
$gw->sql(q{UPDATE llm_providers SET api_key = 'env:TEST_API_KEY' WHERE name = 'other'});
$fake->script({ model => '*', path => '/other' }, { behaviour => 'silent', repeat => 1 });
$s->start(q{SELECT * FROM llm_probe('other')});
$gw->wait_in_call($s);
my $cancelled = time;
$admin->value('SELECT pg_cancel_backend(' . $s->pid . ')');
$r = $s->finish;
is($r->{sqlstate}, '57014', 'a probe can be cancelled');
ok($r->{ended} - $cancelled < PROMPTLY, 'at once');
ok($gw->drained, 'the ledger is written');
is($admin->value(q{SELECT status FROM llm_requests WHERE operation = 'probe' AND provider = 'other' ORDER BY request_id DESC LIMIT 1}), 'cancelled', 'and says so');
is(status('other')->{in_flight}, 0, 'nothing stays behind');

# A provider that is gone is not probed

provider('gone', breaker_cooldown => "'5 s'");
break_it('gone');
is(state('gone'), 'open', 'a provider fails');
my $saved = $gw->sql(q{SELECT format('INSERT INTO llm_providers SELECT (jsonb_populate_record(NULL::llm_providers, %L)).*', to_jsonb(p)) FROM llm_providers p WHERE name = 'gone'});
$gw->sql(q{DELETE FROM llm_providers WHERE name = 'gone'});
is($gw->sql(qq{BEGIN; $saved; SELECT state FROM llm_provider_status WHERE provider = 'gone'; ROLLBACK}), 'open', 'and is deleted; the same row would still be out of service');
ok(wait_until(sub { $gw->sql(qq{BEGIN; $saved; SELECT state FROM llm_provider_status WHERE provider = 'gone'; ROLLBACK}) eq 'closed' }), 'when its time comes it is forgotten');
is(scalar(asked('gone')), 0, 'without a probe');

# The worker goes on

provider('hangs');
provider('fine');
sub hang
{
	$fake->reset;
	$fake->script({ model => '*', path => '/hangs' }, { behaviour => 'status-500', repeat => 2 }, 'silent', 'silent', 'silent', 'silent');
	$s->run(q{SELECT llm_complete('hi', model => 'hangs')}) for 1 .. 2;
	return wait_until(sub { asked('hangs') });
}
ok(hang(), 'a probe hangs');
is(state('hangs'), 'half_open', 'meanwhile the breaker is half open');
for (1 .. 3)
{
	$r = $s->run(q{SELECT llm_complete('hi', model => 'fine'); SELECT count(*) FROM llm_requests WHERE requested_model = 'fine'});
	is($r->{out}, "echo: hi\n$_", 'the worker books calls');
	ok(!@{ $r->{notices} }, 'in time');
	sleep 0.3;
}
is($admin->value('SELECT count(*) FROM pg_locks WHERE pid = ' . worker()), '0', 'it holds no lock meanwhile');
is($admin->value('SELECT backend_xmin IS NULL AND xact_start IS NULL FROM pg_stat_activity WHERE pid = ' . worker()), 't', 'nor a transaction');
$pid = worker();
$admin->value("SELECT pg_cancel_backend($pid)");
ok(wait_until(sub { asked('hangs') > 1 }), 'a cancel ends the probe, which is made again');
is(worker(), $pid, 'but not the worker');
$fake->reset;
$admin->value("SELECT pg_terminate_backend($pid)");
my $took = gone($pid, 10);
ok(defined $took && $took < SOON, 'it does not wait for a probe when it is terminated');
ok(state_is('hangs', 'closed'), 'the next one probes again, without a call');
$s->value(q{SELECT llm_complete('hi', model => 'fine')});
ok($gw->drained, 'and goes on');
is($admin->value(q{SELECT string_agg(DISTINCT status, ',' ORDER BY status) FROM llm_requests WHERE operation = 'probe' AND provider = 'hangs'}), 'cancelled,ok', 'the ledger says for which probes nobody waited');
is(status('hangs')->{in_flight}, 0, 'nothing stays behind');

# for a statement that needs its database
$admin->value('CREATE DATABASE leaves');
$gw->set_up('leaves');
$gw->add_provider('hangs', $fake->url('/leaves'), { breaker_failures => 1, breaker_cooldown => "'100 ms'" }, 'leaves');
$gw->add_models('hangs', 'hangs', { database => 'leaves' });
$fake->script({ model => '*', path => '/leaves' }, 'status-500', 'status-500', 'silent');
$gw->session('leaves')->run(q{SELECT llm_complete('hi', model => 'hangs')});
ok(wait_until(sub { asked('leaves') }), 'a probe hangs in another database');
my $connected = $gw->session('leaves');
$took = $admin->run('DROP DATABASE leaves');
is($took->{sqlstate}, '55006', 'which cannot be dropped while somebody is connected');
ok(wait_until(sub { $connected->value(q{SELECT state FROM llm_provider_status}) eq 'closed' }, 20), 'then it is probed again, without a call');
$connected->quit;
$took = $admin->run('DROP DATABASE leaves');
ok(!defined $took->{sqlstate}, 'which can be dropped') or diag($took->{err});
ok($took->{seconds} < SOON, 'at once');

# Locks of others

my $locker = $gw->session;
$locker->value('BEGIN; LOCK TABLE llm_breaker_events IN ACCESS EXCLUSIVE MODE');
$s->value(q{SELECT llm_breaker_open('fine'); SELECT llm_breaker_reset('fine')});
is($s->value(q{SELECT llm_complete('hi', model => 'fine'); SELECT count(*) > 3 FROM llm_requests WHERE requested_model = 'fine'}), "echo: hi\nt", 'who locks llm_breaker_events does not hold up the ledger');
ok(wait_until(sub { ($admin->value(q{SELECT last_error FROM llm_worker_status WHERE worker = 'ledger'}) // '') =~ /lock timeout/ }), 'the worker says why events are late');
$locker->value('COMMIT');
ok(wait_until(sub { (events('fine') // '') eq 'closed>open:operator open>closed:operator' }), 'they come later, once');
$locker->value('BEGIN; LOCK TABLE llm_requests IN ACCESS EXCLUSIVE MODE');
$s->value(q{SELECT llm_breaker_open('fine'); SELECT llm_breaker_reset('fine')});
ok(wait_until(sub { events('fine') eq 'closed>open:operator open>closed:operator closed>open:operator open>closed:operator' }), 'nor is it the other way round');
$locker->value('COMMIT');

# Settings

sub set_conf
{
	my ($name, $value) = @_;
	$node->append_conf('postgresql.conf', "$name = $value");
	$node->reload;
	return;
}

provider('idle');
provider('disabled');
$s->value(q{SELECT llm_complete('hi', model => 'idle'); SELECT llm_complete('hi', model => 'disabled')});
$gw->sql(q{UPDATE llm_providers SET enabled = false WHERE name = 'disabled'});
$fake->reset;
set_conf('llm_gateway.probe_interval', q{'300ms'});
$s->value(q{SELECT llm_complete('hi', model => 'fine')});
ok(wait_until(sub { asked('idle') >= 3 }), 'probe_interval: an idle provider is probed again and again');
is(scalar(asked('disabled')), 0, 'not one that is disabled');
$gw->sql(q{UPDATE llm_providers SET enabled = true WHERE name = 'disabled'});
set_conf('llm_gateway.probe_interval', 0);
ok(wait_until(sub { my $n = asked('idle'); sleep 1; return asked('idle') == $n }), '0: it is not');

# the gateway is switched off while a provider waits for its probe
provider('paused', breaker_cooldown => "'4 s'");
break_it('paused');
set_conf('llm_gateway.enabled', 'off');
sleep 5;
is(scalar(asked('paused')) . ' ' . state('paused'), '0 open', 'llm_gateway.enabled = off: there is no probe');
set_conf('llm_gateway.enabled', 'on');
ok(wait_until(sub { state('paused') eq 'closed' }, 15), 'on: it is probed soon');

provider('patient', breaker_cooldown => "'3 s'");
set_conf('llm_gateway.worker_idle_timeout', q{'300ms'});
break_it('patient');
$pid = worker();
ok(state_is('patient', 'closed'), 'a worker that would leave');
is(scalar(asked('patient')), 1, 'stays for a probe');
ok(defined gone($pid, 20), 'and leaves then');
$s->value(q{SELECT llm_breaker_open('patient')});
ok(wait_until(sub { (events('patient') // '') =~ /closed>open:operator$/ }), 'what happens without a worker is written by another one');
$s->value(q{SELECT llm_breaker_reset('patient')});
set_conf('llm_gateway.worker_idle_timeout', 0);

$gw->sql(q{INSERT INTO llm_breaker_events (event_id, at, provider, from_state, to_state, consecutive_failures) VALUES (1, now() - interval '3 days', 'old', 'open', 'closed', 0)});
set_conf('llm_gateway.retention', q{'2d'});
$s->value(q{SELECT llm_complete('hi', model => 'fine')});
$pid = worker();
$admin->value("SELECT pg_terminate_backend($pid)");
ok(defined gone($pid, 10), 'the worker is terminated');
$s->value(q{SELECT llm_complete('hi', model => 'fine')});
ok(wait_until(sub { !defined events('old') || events('old') eq '' }), 'retention deletes old events');
ok($admin->value(q{SELECT count(*) FROM llm_breaker_events}) > 10, 'and no others');

# A session whose first call has to wait, before it has ever sent anything

$gw->add_provider('narrow', $fake->url('/narrow'), { max_concurrency => 1 });
$gw->add_models('narrow', 'silent');
my $holder = $gw->session;
$holder->start(q{SELECT llm_complete('hi', model => 'narrow/silent')});
ok(wait_until(sub { status('narrow')->{in_flight} == 1 }), 'a provider is busy');
my $first = $gw->session;
$first->start(q{SELECT llm_complete('hi', model => 'narrow/silent', timeout_ms => 5000)});
ok(wait_until(sub { status('narrow')->{waiting} == 1 }), 'the first call of a session waits for it');
like($first->finish->{sqlstate}, qr/^LG00[23]$/, 'until its time is over');
$admin->run('SELECT pg_cancel_backend(' . $holder->pid . ')');
is($holder->finish->{sqlstate}, '57014', 'the other one has not noticed');
$_->quit for $holder, $first;
$admin->value(q{DELETE FROM llm_providers WHERE name = 'narrow'});

# A crash

my $known = $admin->value(q{SELECT count(*) FROM llm_breaker_events});
$s->value(q{SELECT llm_breaker_open('fine')});
ok(wait_until(sub { $admin->value(q{SELECT count(*) FROM llm_breaker_events}) > $known }), 'an event is written');
$known = $admin->value(q{SELECT count(*) FROM llm_breaker_events});
$pid = worker();
kill KILL => $pid;
ok(defined gone($pid, 10), 'the worker is killed');
ok($gw->comes_back($pid), 'the server comes back');
$_->quit for $s, $admin, $listener, $locker;
delete $gw->{admin};
$admin = $gw->admin;
$s = $gw->session;
is($admin->value(q{SELECT string_agg(DISTINCT state || ' ' || successes, ',') FROM llm_provider_status}), 'closed 0', 'all breakers are closed, nothing is known of any provider');
is($s->value(q{SELECT llm_complete('hi', model => 'fine')}), 'echo: hi', 'calls go on');
is($admin->value(q{SELECT count(*) FROM llm_breaker_events}), $known, 'events stay, each once');
ok($gw->drained, 'the ledger is written');
unlike($gw->log_text, qr/PANIC:|TRAP:|signal 11|signal 6/, 'nothing else has crashed');

# More providers than slots

is($admin->value(q{SELECT notice IS NULL FROM llm_worker_status WHERE worker = 'launcher'}), 't', 'there is a slot for everybody');
$_->quit for $s, $admin;
delete $gw->{admin};
$node->append_conf('postgresql.conf', 'llm_gateway.max_providers = 1');
$node->restart;
$admin = $gw->admin;
$s = $gw->session;
$s->value(q{SELECT llm_breaker_open('fine')});
is($s->value(q{SELECT llm_complete('hi', model => 'other')}), 'echo: hi', 'without a slot calls go on');
error_ok($s->run(q{SELECT llm_breaker_open('other')}), { sqlstate => '53400', hint => qr/max_providers/ }, 'but nobody can take the provider out of service');
$s->value(q{SELECT llm_breaker_reset('other')});
is(state('other'), 'closed', 'and there is nothing to put back');
like($admin->value(q{SELECT notice FROM llm_worker_status WHERE worker = 'launcher'}), qr/max_providers/, 'llm_worker_status says so');
done_testing();
