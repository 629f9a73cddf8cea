# Kept answers: who keeps one, who is served it, and that sessions that ask the same at the same time ask once.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok literal row rows wait_until);

my $gw = LlmGateway->new(name => 'cache', conf => "max_connections = 100\nllm_gateway.worker_idle_timeout = 0\n");
my $fake = $gw->fake;
my $admin = $gw->admin;
my ($r, $row, $n);

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = 0');
$gw->add_models('fake', 'gpt-4o', { tier => q{'premium'}, input_price => 1, output_price => 10 });
$gw->sql(q{INSERT INTO llm_routing_rules (model) VALUES ('gpt-4o')});

# The call's row of DETAIL; how many requests it made.
sub call
{
	my ($session, $prompt, %args) = @_;
	$args{cache} //= 'on';
	my $list = join ', ', literal($prompt), map { "$_ => " . literal($args{$_}) } sort keys %args;
	my $detail;
	$n = @{ $gw->requests(sub { $detail = row($session, "SELECT * FROM llm_complete_detail($list)") }) };
	return $detail;
}

sub kept { return $admin->value('SELECT count(*) FROM llm_cache') }

# Each mode

my $s = $gw->session;
call($s, 'off', cache => 'off');
call($s, 'off', cache => 'off');
is($n, 1, 'off: made each time');
call($s, 'off', cache => 'auto');
is($n, 1, 'auto: made');
is(kept(), 0, 'neither is kept: the task has no cache_ttl');

my $made = call($s, 'hello');
is_deeply([ $n, $made->{response}, $made->{cached} ], [ 1, 'echo: hello', 'false' ], 'on: the first call is made');
is(kept(), 1, 'and kept');
my $served = call($s, 'hello');
is_deeply([ $n, $served->{cached} ], [ 0, 'true' ], 'on: the next is served');
$row = { map { $_ => $served->{$_} } qw(response provider model model_tier task priority finish_reason attempts fallback cost_usd estimated_usd input_tokens output_tokens ttft_ms error_class) };
is_deeply($row,
	{
		response => 'echo: hello', provider => 'fake', model => 'gpt-4o', model_tier => 'premium', task => 'default', priority => 'normal',
		finish_reason => 'stop', attempts => 0, fallback => 'false', cost_usd => 0, estimated_usd => 0, input_tokens => 0, output_tokens => 0,
		ttft_ms => undef, error_class => undef
	}, 'it says whose answer it was, and costs nothing') or diag explain $row;
isnt($served->{request_id}, $made->{request_id}, 'a request of its own');
$row = row($admin, "SELECT status, attempts, cost_usd, cost_source, provider, model, model_tier, fallback FROM llm_requests WHERE request_id = $served->{request_id}");
is_deeply($row, { status => 'cached', attempts => 0, cost_usd => 0, cost_source => 'none', provider => 'fake', model => 'gpt-4o', model_tier => 'premium', fallback => 'false' }, 'in the ledger, too') or diag explain $row;
is($admin->value("SELECT count(*) FROM llm_attempts WHERE request_id = $served->{request_id}"), 0, 'without an attempt');

$fake->script('gpt-4o', { text => 'newer' });
call($s, 'hello', cache => 'refresh');
is($n, 1, 'refresh: made');
is_deeply([ call($s, 'hello')->{response}, $n, kept() ], [ 'newer', 0, 1 ], 'and kept in the place of the older one');
is_deeply([ call($s, 'hello', cache => 'off')->{response}, $n ], [ 'echo: hello', 1 ], 'off: what is kept does not matter');

is_deeply([ call($s, 'hello', cache => 'only')->{response}, $n ], [ 'newer', 0 ], 'only: served');
$row = call($s, 'never asked', cache => 'only');
is_deeply([ @{$row}{qw(error_class error_message attempts)}, $n ], [ 'no_candidate', 'no answer is cached for this prompt', 0, 0 ], 'only: or an error');
error_ok($s->run(q{SELECT llm_complete('never asked', cache => 'only')}), { sqlstate => 'LG005', message => qr/^no answer is cached for this prompt$/, detail => undef, hint => qr/another value of cache/ }, 'LG005');
is($admin->value(q{SELECT status FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'rejected', 'which was rejected');
is($admin->value(q{SELECT count(*) FROM llm_complete_batch(ARRAY['hello', 'never asked', NULL], cache => 'only') WHERE cached}), 1, 'in a batch each for itself');
is($s->value(q{SET llm_gateway.cache = 'only'; SELECT llm_complete('hello'); RESET llm_gateway.cache}), 'newer', 'the setting says the same');

# auto keeps what a task has a cache_ttl for, and does not serve it while no budget runs low

$gw->sql(q{UPDATE llm_tasks SET cache_ttl = '1 h' WHERE name = 'lookup';});
$n = kept();
call($s, 'auto', task => 'lookup', cache => 'auto') for 1 .. 2;
is($n, 1, 'auto: made each time');
is_deeply([ call($s, 'auto', task => 'lookup', cache => 'only')->{cached}, $n ], [ 'true', 0 ], 'but kept');

# How long

$gw->sql(q{UPDATE llm_tasks SET cache_ttl = '1500 ms' WHERE name = 'math'});
my $began = time;
call($s, '1 + 1', task => 'math');
call($s, '1 + 1', task => 'math');
is($n, time - $began < 1.4 ? 0 : $n, 'served within its time');
sleep 1.6;
call($s, '1 + 1', task => 'math');
is($n, 1, 'and made anew after it');
is($admin->value(q{SELECT extract(epoch FROM expires_at - created_at)::int FROM llm_cache WHERE task = 'default' LIMIT 1}), 86400, 'a day where nothing is said');
$gw->sql('ALTER SYSTEM SET llm_gateway.cache_ttl = 60');
$gw->sql('SELECT pg_reload_conf()');
ok(wait_until(sub { $s->value('SHOW llm_gateway.cache_ttl') eq '1min' }), 'reloaded');
my $id = call($s, 'a minute')->{request_id};
is($admin->value("SELECT extract(epoch FROM expires_at - created_at)::int FROM llm_cache WHERE request_id = $id"), 60, 'or what llm_gateway.cache_ttl says');
$gw->sql('ALTER SYSTEM RESET llm_gateway.cache_ttl');
$gw->sql('SELECT pg_reload_conf()');

# Roles

$gw->sql(q{CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; SELECT llm_grant('alice'); SELECT llm_grant('bob');
	UPDATE llm_tasks SET cache_shared = true WHERE name = 'coding'});
my ($alice, $bob) = map { $gw->session('postgres', user => $_) } qw(alice bob);
call($alice, 'mine');
call($bob, 'mine');
is($n, 1, 'another role is not served it');
call($alice, 'mine');
is($n, 0, 'its own is');
call($alice, 'ours', task => 'coding');
is_deeply([ call($bob, 'ours', task => 'coding')->{cached}, $n ], [ 'true', 0 ], 'of a task with cache_shared, others are');
my $seen = q{SELECT coalesce(string_agg(DISTINCT role, ' '), '') FROM llm_cache};
is(($bob->run($seen)->{out} || 'none') . ', ' . ($admin->value($seen) =~ /alice/), 'bob, 1', 'a role reads only what is kept of its own calls');
error_ok($bob->run('UPDATE llm_cache SET response = 1'), { sqlstate => '42501' }, 'and writes nothing');

# A transaction has no say: neither its end nor its snapshot

$s->run(q{BEGIN; SELECT llm_complete('rolled back', cache => 'on'); ROLLBACK});
call($s, 'rolled back');
is($n, 0, 'what a rolled back transaction asked for is kept');
for my $level ('REPEATABLE READ', 'SERIALIZABLE')
{
	$s->run("BEGIN ISOLATION LEVEL $level; SELECT count(*) FROM pg_class");
	call($admin, "made meanwhile, $level");
	is_deeply([ call($s, "made meanwhile, $level")->{cached}, $n ], [ 'true', 0 ], "$level: what was kept after its snapshot is served");
	is($s->run('COMMIT')->{sqlstate}, undef, 'and it commits');
}
is($admin->value(q{SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock'}), 0, 'without predicate locks');
$admin->run('BEGIN; LOCK TABLE llm_cache IN ACCESS EXCLUSIVE MODE');
$s->start(q{SET llm_gateway.ledger_sync = off; SELECT llm_complete('hello', cache => 'on'); RESET llm_gateway.ledger_sync});
is($s->finish->{out}, 'echo: hello', 'a lock on the table keeps nobody waiting: the call is made');
$admin->run('ROLLBACK');
$admin->run('BEGIN; REINDEX INDEX llm_cache_pkey');
$s->start(q{SET llm_gateway.ledger_sync = off; SET statement_timeout = '20 s'; SELECT llm_complete('hello', cache => 'on'); RESET llm_gateway.ledger_sync; RESET statement_timeout});
is($s->finish->{out}, 'echo: hello', 'nor does one on its index');
$admin->run('ROLLBACK');
$s->run('RESET llm_gateway.ledger_sync; RESET statement_timeout');

# What shapes an answer is part of its key

$fake->script('gpt-4o');
$gw->drained;
call($s, 'key');
my $base = call($s, 'key');
is($n, 0, 'the same call is served');
for my $other (
	{ system_prompt => 'Be brief.' }, { model => 'gpt-4o' }, { model => 'fake/gpt-4o' }, { task => 'lookup' }, { optimize => 'quality' },
	{ max_tokens => 100 }, { temperature => 0 }, { temperature => 0.5 }, { params => '{"top_p": 0.5}' }, { params => '{"seed": 1}' })
{
	my $name = join ', ', %$other;
	call($s, 'key', %$other);
	is($n, 1, "$name: another call");
	call($s, 'key', %$other);
	is($n, 0, "$name: kept for itself");
}
for my $same ({ priority => 'high' }, { tags => '{"team": "a"}' }, { timeout_ms => 60000 }, { min_tier => 'standard' })
{
	call($s, 'key', %$same);
	is($n, 0, join(', ', %$same) . ': the same answer');
}
sub chat
{
	my ($arguments) = @_;
	my $detail;
	$n = @{ $gw->requests(sub { $detail = row($s, "SELECT * FROM llm_chat($arguments, cache => 'on')") }) };
	return $detail;
}
is(chat(q{'[{"role": "user", "content": "key"}]'})->{cached}, 'true', 'a conversation of one message is the same as its prompt');
is(chat(q{'[{"role": "user", "content": "key", "name": "Ann"}]'})->{cached}, 'false', 'with a name it is not');
is(chat(q{'[{"role": "user", "content": "ke"}, {"role": "user", "content": "y"}]'})->{cached}, 'false', 'nor in two messages');

$gw->add_models('fake', 'other', { tier => q{'premium'} });
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('other', 1)});
call($s, 'key');
is($n, 1, 'a rule that names another model first: made');
is_deeply([ call($s, 'key')->{model}, $n ], [ 'other', 0 ], 'and kept');
$gw->sql(q{DELETE FROM llm_routing_rules WHERE model = 'other'});
is_deeply([ call($s, 'key')->{model}, $n ], [ 'gpt-4o', 0 ], 'without the rule the former one is served again');
$gw->add_provider('copy', $fake->url('/copy'));
$gw->add_models('copy', 'gpt-4o', { tier => q{'premium'} });
call($s, 'key') for 1 .. 4;
is($n, 0, 'it does not matter which provider of the model comes first');
$gw->sql(q{DELETE FROM llm_models WHERE provider = 'copy'});

$gw->sql(q{UPDATE llm_models SET upstream_name = 'gpt-5' WHERE name = 'gpt-4o'});
call($s, 'key');
is($n, 1, 'another model by the old name: made');
$gw->sql(q{UPDATE llm_models SET upstream_name = NULL WHERE name = 'gpt-4o'});
call($s, 'key');
is($n, 0, 'the former model: served again');

$gw->sql(q{UPDATE llm_providers SET options = '{"extra": {"seed": 7}}' WHERE name = 'fake'});
call($s, 'key');
is($n, 1, 'the provider is to be asked for something else: made');
$gw->sql(q{UPDATE llm_providers SET options = NULL WHERE name = 'fake'});
call($s, 'key');
is($n, 0, 'as it was: served again');

# What is not whole, or not what was asked for, is not kept

$fake->script('gpt-4o', { text => 'cut', finish => 'length', repeat => 2 });
$s->run(q{SELECT llm_complete('cut', cache => 'on')});
is($gw->requests(sub { $s->run(q{SELECT llm_complete('cut', cache => 'on')}) })->[0]{model}, 'gpt-4o', 'cut by a limit: made again');
$fake->script('gpt-4o', { behaviour => 'status-503' });
call($s, 'failed');
is_deeply([ call($s, 'failed')->{cached}, $n ], [ 'false', 1 ], 'failed: made again');

# An answer of a worse model is not served to who would get a better one

$gw->add_models('fake', 'small', { tier => q{'economy'} });
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('small', 200)});
$fake->script('gpt-4o', { behaviour => 'status-503' });
$row = call($s, 'who');
is_deeply([ @{$row}{qw(model fallback)}, $n ], [ 'small', 'true', 2 ], 'an economy model answers in the place of a premium one');
$row = call($s, 'who');
is_deeply([ @{$row}{qw(model cached)}, $n ], [ 'gpt-4o', 'false', 1 ], 'the next call is made by the premium one');
is_deeply([ call($s, 'who')->{model}, $n ], [ 'gpt-4o', 0 ], 'whose answer is kept');
$gw->sql(q{UPDATE llm_models SET tier = 'economy' WHERE name = 'gpt-4o'});
is_deeply([ call($s, 'who')->{model_tier}, $n ], [ 'premium', 0 ], 'that is served also when a premium model is no longer to be had');
$gw->sql(q{UPDATE llm_models SET tier = 'premium' WHERE name = 'gpt-4o'; DELETE FROM llm_routing_rules WHERE model = 'small'});

# Tools, JSON, streams

my $tools = q{'[{"role": "user", "content": "weather?"}]', tools => '[{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}]'};
$fake->script('gpt-4o', { finish => 'tool_calls' });
my $first = chat($tools);
my $second = chat($tools);
is_deeply([ @{$second}{qw(response tool_calls finish_reason cached)} ], [ @{$first}{qw(response tool_calls finish_reason)}, 'true' ], 'calls of tools are kept as they are');

my $json = q{SELECT llm_complete_json('city', schema => '{"type": "object", "required": ["city"]}', cache => 'on')};
$fake->script('gpt-4o', { text => 'no' }, { text => '{"city": "Rome"}' });
is(scalar @{ $gw->requests(sub { is($s->value($json), '{"city": "Rome"}', 'a document that had to be mended') }) }, 2, 'in two requests');
is(scalar @{ $gw->requests(sub { is($s->value($json), '{"city": "Rome"}', 'is kept') }) }, 0, 'for the prompt that was asked');
my $stricter = $json =~ s/"required"/"properties": {"city": {"type": "string"}}, "required"/r;
$fake->script('gpt-4o', { text => '{"city": "Oslo"}' });
is($s->value($stricter), '{"city": "Oslo"}', 'another schema is another question');
$gw->sql(q{UPDATE llm_cache SET response = '{"town": 1}' WHERE response LIKE '%Oslo%'});
$fake->script('gpt-4o', { text => '{"city": "Bern"}' });
is($s->value($stricter), '{"city": "Bern"}', 'what does not satisfy the schema is not served');

$fake->script('gpt-4o');
is($s->value(q{SELECT string_agg(t, '') FROM llm_stream('streamed', cache => 'on') t}), 'echo: streamed', 'a stream');
is_deeply([ call($s, 'streamed')->{response}, $n ], [ 'echo: streamed', 0 ], 'is kept');
is(scalar @{ $gw->requests(sub { is($s->value(q{SELECT count(*) || ' ' || min(t) FROM llm_stream('streamed', cache => 'on') t}), '1 echo: streamed', 'and served in one row') }) }, 0, 'without a request');

# Batches: equal prompts share one call, unless they are not to

$n = @{ $gw->requests(sub { $row = row($s, q{SELECT array_agg(cached ORDER BY idx) AS cached, sum(cost_usd) > 0 AS cost, array_agg(request_id ORDER BY idx) AS ids FROM llm_complete_batch(ARRAY['x', 'y', 'x', 'x'])}) }) };
is_deeply([ $n, $row->{cached}, $row->{cost} ], [ 2, '[false, false, true, true]', 'true' ], 'auto: equal prompts are asked once');
my ($ids) = $row->{ids} =~ /^\[(.*)\]$/;
is($admin->value("SELECT string_agg(status, ' ' ORDER BY request_id) FROM llm_requests WHERE request_id IN ($ids)"), 'ok ok cached cached', 'each is a request in the ledger');
is($admin->value("SELECT count(*) || ' ' || sum(cost_usd) FROM llm_requests WHERE request_id IN ($ids) AND status = 'cached'"), '2 0', 'that cost nothing');
is(scalar @{ $gw->requests(sub { $s->run(q{SELECT * FROM llm_complete_batch(ARRAY['x', 'x'], cache => 'off')}) }) }, 2, 'off: each is asked');
is(scalar @{ $gw->requests(sub { $s->run(q{SELECT * FROM llm_complete_batch(ARRAY['x', 'x', 'x'], cache => 'refresh')}) }) }, 3, 'refresh: each is asked, and none waits for the other');
is(scalar @{ $gw->requests(sub { $s->run(q{SELECT * FROM llm_complete_batch(ARRAY['x', 'z', 'z'], cache => 'on')}) }) }, 1, 'on: what is kept, or shared, is not asked for');
$fake->script('gpt-4o', { behaviour => 'status-503' });
$row = row($s, q{SELECT array_agg(error_class ORDER BY idx) AS classes, array_agg(attempts ORDER BY idx) AS attempts, array_agg(cached) AS cached FROM llm_complete_batch(ARRAY['fails', 'fails'])});
is_deeply($row, { classes => '["overloaded", "overloaded"]', attempts => '[1, 0]', cached => '[false, false]' }, "a shared failure is each one's") or diag explain $row;
$gw->drained;
is($admin->value(q{SELECT string_agg(status || ' ' || attempts, ', ' ORDER BY request_id) FROM (SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT 2) r}), 'error 1, error 0', 'and in the ledger');

$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd) VALUES ('nothing', 0)});
$s->run(q{SELECT * FROM llm_complete_batch(ARRAY['refused', 'refused', 'refused'])});
$gw->drained;
is($admin->value(q{SELECT string_agg(status || ' ' || error_class, ', ') FROM (SELECT * FROM llm_requests ORDER BY request_id DESC LIMIT 3) r}),
	'rejected budget, rejected budget, rejected budget', 'what is refused to one is refused to all: no failures');
$gw->sql('DELETE FROM llm_budgets');

# Several sessions that ask the same at the same time

my @s = map { $gw->session } 1 .. 12;
sub slow { $fake->script('gpt-4o', map { { behaviour => 'default', delay_ms => $_ } } @_); return }

# Starts the same call in sessions, the first of them first; the others wait for it
sub start_all
{
	my ($query, @sessions) = @_;
	my $before = $fake->stats->{requests};
	$sessions[0]->start($query);
	$fake->wait_for_stats(sub { $_[0]{requests} > $before }) or die 'the first call was not sent';
	$_->start($query) for @sessions[ 1 .. $#sessions ];
	$gw->wait_in_call($_) for @sessions;
	return;
}
sub detail_of { return "SELECT response || ' ' || cached || ' ' || attempts FROM llm_complete_detail(" . literal($_[0]) . ", cache => 'on')" }

slow(4000);
my $requests = $gw->requests(sub {
	start_all(detail_of('all at once'), @s);
	my @out = map { $_->finish->{out} } @s;
	is_deeply(\@out, [ 'echo: all at once false 1', ('echo: all at once true 0') x 11 ], 'twelve sessions: one makes the call, the others have its answer');
});
is(scalar @$requests, 1, 'which was asked for once');

slow(25000, 0);
$requests = $gw->requests(sub {
	start_all(detail_of('the leader is cancelled'), @s[ 0, 1 ]);
	$admin->run('SELECT pg_cancel_backend(' . $s[0]->pid . ')');
	is($s[0]->finish->{sqlstate}, '57014', 'the one that asks is cancelled');
	$r = $s[1]->finish;
	is($r->{out}, 'echo: the leader is cancelled false 1', 'who waited makes the call');
	cmp_ok($r->{seconds}, '<', 15, 'at once');
});
is(scalar @$requests, 2, 'a second request');

slow(25000, 0);
$requests = $gw->requests(sub {
	start_all(detail_of('the leader is terminated'), @s[ 2, 1, 3, 4 ]);
	$admin->run('SELECT pg_terminate_backend(' . $s[2]->pid . ')');
	ok($s[2]->finish->{lost}, 'the session that asks is terminated');
	my @out = sort map { $s[$_]->finish->{out} } 1, 3, 4;
	is_deeply(\@out, [ 'echo: the leader is terminated false 1', ('echo: the leader is terminated true 0') x 2 ], 'one of those that waited makes the call for all');
});
is(scalar @$requests, 2, 'a second request');

slow(4000);
start_all(detail_of('a follower is cancelled'), @s[ 0, 1, 3 ]);
$began = time;
$admin->run('SELECT pg_cancel_backend(' . $s[1]->pid . ')');
$r = $s[1]->finish;
is($r->{sqlstate}, '57014', 'one that waits is cancelled');
cmp_ok($r->{ended} - $began, '<', PROMPTLY, 'at once');
is($s[0]->finish->{out}, 'echo: a follower is cancelled false 1', 'who asks does not notice');
is($s[3]->finish->{out}, 'echo: a follower is cancelled true 0', 'nor another that waits');

slow(4000);
$s[0]->start(detail_of('patience'));
$gw->wait_in_call($s[0]);
$r = $s[1]->run(q{SELECT llm_complete('patience', cache => 'on', timeout_ms => 200)});
is($r->{sqlstate}, 'LG003', 'nobody waits beyond his time');
cmp_ok($r->{seconds}, '<', 0.2 + PROMPTLY, 'which is short');
is(scalar @{ $gw->requests(sub { $r = $s[3]->run(q{SELECT llm_complete('patience', cache => 'refresh')}) }) }, 1, 'who wants a fresh answer does not wait for another session');
is($s[0]->finish->{sqlstate}, undef, 'the first has its answer');

$fake->script('gpt-4o', { behaviour => 'status-400', delay_ms => 3000 });
$requests = $gw->requests(sub {
	start_all(detail_of('a failure'), @s[ 0, 1 ]);
	like($s[0]->finish->{out}, qr/^$/, 'the one that asks fails');
	is($s[1]->finish->{out}, 'echo: a failure false 1', 'who waited asks for itself');
});

# What is not kept cannot be waited for, but is asked for only once by each
$fake->script('gpt-4o', { text => 'cut', finish => 'length', delay_ms => 3000 }, { behaviour => 'default', repeat => 'forever' });
$requests = $gw->requests(sub {
	start_all(detail_of('cut'), @s[ 0, 1 ]);
	is($s[0]->finish->{out}, 'cut false 1', 'an answer that is not kept');
	is($s[1]->finish->{out}, 'echo: cut false 1', 'is no answer for others');
});

# Nor do those that waited ask one after the other
for my $step ({ text => 'cut', finish => 'length', delay_ms => 3000, repeat => 'forever' }, { behaviour => 'status-400', delay_ms => 3000, repeat => 'forever' })
{
	$fake->script('gpt-4o', $step);
	$began = time;
	start_all(q{SELECT 1 FROM llm_complete_detail('nothing to keep', cache => 'on')}, @s[ 0, 1, 3 .. 6 ]);
	is(scalar(grep { $_->finish->{out} eq '1' } @s[ 0, 1, 3 .. 6 ]), 6, 'six sessions, and nothing that could be kept');
	cmp_ok(time - $began, '<', 12, 'each asks for itself at once');
}

# A session never waits for itself: a cursor stands still in the middle of the same call
$fake->script('gpt-4o', { behaviour => 'drip-100' }, { behaviour => 'default', repeat => 'forever' });
$s->run(q{BEGIN; DECLARE c CURSOR FOR SELECT llm_stream('one two three four five six seven eight', cache => 'on'); FETCH 1 FROM c});
$r = $s->run(q{SELECT cached FROM llm_complete_detail('one two three four five six seven eight', cache => 'on')});
is($r->{out}, 'f', 'a session does not wait for its own cursor');
$r = $s[0]->run(q{SELECT response FROM llm_complete_detail('one two three four five six seven eight', cache => 'on')});
is($r->{out}, 'echo: one two three four five six seven eight', 'nor does another session');
$s->run('ROLLBACK');
is($s->value(q{SELECT llm_complete(llm_complete('nested', cache => 'on'), cache => 'on')}), 'echo: echo: nested', 'an argument may itself be a call');

# A leader that waits for a lock does not drive its call, and the lock may be a follower's
$fake->script('gpt-4o', { behaviour => 'default', delay_ms => 3000 }, { behaviour => 'default', delay_ms => 5000 }, { behaviour => 'default', repeat => 'forever' });
$requests = $fake->stats->{requests};
$s[1]->run('BEGIN');
$s[0]->start(q{SELECT count(*) FILTER (WHERE error_class IS NULL) FROM llm_complete_batch(ARRAY['lock 1', 'lock 2', 'lock 3'], cache => 'on', max_concurrency => 2)});
$fake->wait_for_stats(sub { $_[0]{requests} >= $requests + 1 });
$s[1]->run('LOCK TABLE llm_models IN ACCESS EXCLUSIVE MODE');
$gw->sql(q{UPDATE llm_providers SET weight = 2});
ok(wait_until(sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = ' . $s[0]->pid) }), 'a batch waits for a lock');
$r = $s[1]->run(q{SELECT error_class FROM llm_complete_detail('lock 2', cache => 'on', timeout_ms => 20000)});
is_deeply([ @{$r}{qw(out sqlstate)} ], [ '', undef ], 'whoever holds it does not wait for the batch');
cmp_ok($r->{seconds}, '<', 10, 'but makes the call');
$s[1]->run('COMMIT');
is($s[0]->finish->{out}, 3, 'nor is the batch stuck');

# Nobody waits for a call of a lower priority, that is kept waiting itself
$gw->sql(q{UPDATE llm_providers SET max_concurrency = 1});
slow(3000, 1500, 0, 0);
$requests = $fake->stats->{requests};
$s[0]->start(q{SELECT llm_complete('busy')});
$fake->wait_for_stats(sub { $_[0]{requests} > $requests });
$s[1]->start(q{SELECT llm_complete('in the queue')});
$gw->wait_in_call($s[1]);
$s[3]->start(q{SELECT extract(epoch FROM clock_timestamp()) FROM llm_complete('important', 'low', cache => 'on')});
$gw->wait_in_call($s[3]);
$r = $s[4]->run(q{SELECT cached FROM llm_complete_detail('important', 'critical', cache => 'on')});
is($r->{out}, 'f', 'a critical call does not wait for a low one');
my $in_the_queue = $s[1]->finish;
cmp_ok($r->{ended}, '<', $in_the_queue->{ended}, 'and is made before others');
$_->finish for @s[ 0, 3 ];
$gw->sql(q{UPDATE llm_providers SET max_concurrency = NULL});

# With as many different questions as there are sessions, each follows its own
$fake->script('gpt-4o', { behaviour => 'default', delay_ms => 300, repeat => 'forever' });
$requests = $gw->requests(sub {
	my @batches = map { my $k = $_; join ', ', map { "'question " . (($_ + $k) % 20) . "'" } 1 .. 20 } 0, 7, 13;
	$s[$_]->start("SELECT count(*) FILTER (WHERE error_class IS NULL) FROM llm_complete_batch(ARRAY[$batches[$_]], cache => 'on')") for 0, 1;
	$s[3]->start("SELECT count(*) FILTER (WHERE error_class IS NULL) FROM llm_complete_batch(ARRAY[$batches[2]], cache => 'on', max_concurrency => 3)");
	is($s[$_]->finish->{out}, 20, 'a batch has its answers') for 0, 1, 3;
});
is(scalar @$requests, 20, 'twenty questions of three batches that overlap are asked once each');

# Budgets: a kept answer in the place of a worse one, or of none

$gw->drained;
$gw->add_models('fake', 'mid', { tier => q{'standard'}, input_price => 1, output_price => 10 });
$gw->sql(q{INSERT INTO llm_routing_rules (model, rank) VALUES ('mid', 200)});
$gw->sql('UPDATE llm_models SET input_price = 1, output_price = 1');
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd) VALUES ('all', 10)});
sub budget { $gw->sql("UPDATE llm_budgets SET $_[0]"); return }
sub outcome { my $d = call($s, @_); return join ' ', $d->{error_class} // "$d->{model} $d->{model_tier} $d->{cached}", $n }
$fake->script('gpt-4o');
is(outcome('kept while rich', task => 'lookup', cache => 'auto'), 'gpt-4o premium false 1', 'kept while there is money');
is(outcome('kept while rich', task => 'lookup', cache => 'auto', optimize => 'quality'), 'gpt-4o premium false 1', 'optimized for quality, too');
$fake->script('gpt-4o', { behaviour => 'default', usage => { prompt => 4_000_000, completion => 0 } });
is(outcome('costs a lot', cache => 'off'), 'gpt-4o premium false 1', 'some is spent');
is(outcome('kept while rich', task => 'lookup', cache => 'off'), 'mid standard false 1', 'premium is out of reach');
is(outcome('kept while rich', task => 'lookup', cache => 'auto'), 'gpt-4o premium true 0', 'auto: the premium answer that is kept is served');
is(outcome('kept while rich', task => 'lookup', cache => 'auto', optimize => 'quality'), 'gpt-4o premium true 0', 'also where the best come first');
$gw->drained;
sub downgraded { return $admin->value(q{SELECT coalesce(downgraded_by || ' from ' || downgraded_from, 'no') FROM llm_requests ORDER BY request_id DESC LIMIT 1}) }
is(downgraded(), 'all from premium', 'the ledger says that a budget kept it from a better one');
$gw->sql(q{UPDATE llm_routing_rules SET rank = 1 WHERE model = 'mid'});
call($s, 'not downgraded', cache => 'off');
$gw->drained;
is(downgraded(), 'no', 'not where rules ask a lower tier first');
$gw->sql(q{UPDATE llm_routing_rules SET rank = 200 WHERE model = 'mid'});
is(outcome('kept while rich', task => 'lookup', cache => 'auto', priority => 'high'), 'gpt-4o premium false 1', 'not to a priority that may still spend');
is(outcome('new', task => 'lookup', cache => 'auto'), 'mid standard false 1', 'a new one is answered by a standard model');
is(outcome('new', task => 'lookup', cache => 'auto'), 'mid standard true 0', 'and kept');
$gw->sql(q{UPDATE llm_tiers SET notice = 'worse than usual' WHERE name = 'standard'});
is(call($s, 'new', task => 'lookup', cache => 'auto')->{notice}, 'worse than usual', 'with the notice of its tier');
is(call($s, 'kept while rich', task => 'lookup', cache => 'auto')->{notice}, undef, 'which that of a better one does not have');
$gw->sql(q{UPDATE llm_tiers SET notice = NULL WHERE name = 'standard'});
is(outcome('new', task => 'lookup', cache => 'auto', min_tier => 'premium'), 'budget 0', 'but not for who wants premium');
is(outcome('new', task => 'lookup', priority => 'high'), 'gpt-4o premium false 1', 'nor for who may have it');
is(outcome('newer', task => 'lookup', cache => 'auto'), 'mid standard false 1', 'another one');
$gw->drained;
is(outcome('newer', task => 'lookup', cache => 'only', priority => 'high'), 'mid standard true 0', 'only: served to who could call a better one, but does not');
$gw->sql(q{UPDATE llm_tiers SET notice = 'worse than usual' WHERE name = 'standard'});
is(call($s, 'newer', task => 'lookup', cache => 'only', priority => 'high')->{notice}, 'worse than usual', 'with the notice of its tier');
$gw->sql(q{UPDATE llm_tiers SET notice = NULL WHERE name = 'standard'});
is(outcome('newer', task => 'lookup', cache => 'only', priority => 'high', min_tier => 'premium'), 'no_candidate 0', 'unless that is what is asked for');

budget(q{limit_usd = 1});
is(outcome('kept while rich', task => 'lookup', cache => 'auto'), 'budget 0', 'exhausted: rejected');
is(outcome('kept while rich', task => 'lookup', cache => 'on'), 'gpt-4o premium true 0', 'on: served, which costs nothing');
budget(q{on_exhausted = 'cache_only'});
for my $mode (qw(auto on refresh only))
{
	is(outcome('kept while rich', task => 'lookup', cache => $mode), 'gpt-4o premium true 0', "$mode: what is kept is served");
}
is(outcome('newer', task => 'lookup', cache => 'auto'), 'mid standard true 0', 'also of a worse tier than the best that there is');
is(outcome('newer', task => 'lookup', cache => 'auto', min_tier => 'premium'), 'budget 0', 'but not below min_tier');
is(outcome('kept while rich', task => 'lookup', cache => 'off'), 'budget 0', 'off: rejected');
is(outcome('never asked', task => 'lookup', cache => 'auto'), 'budget 0', 'what is not kept is rejected');
is(outcome('never asked', task => 'lookup', cache => 'only'), 'no_candidate 0', 'only: says what it always says');
error_ok($s->run(q{SELECT llm_complete('never asked')}), { sqlstate => 'LG001', message => qr/budget "all"/ }, 'LG001');
is($s->value(q{SELECT count(*) FILTER (WHERE cached) || ' ' || count(*) FILTER (WHERE error_class = 'budget') FROM llm_complete_batch(ARRAY['kept while rich', 'never asked', 'kept while rich'], task => 'lookup')}), '2 1', 'in a batch each for itself');
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd) VALUES ('hard', 1)});
$gw->sql(q{UPDATE llm_budgets SET limit_usd = 0.000001 WHERE name = 'hard'});
is(outcome('kept while rich', task => 'lookup', cache => 'auto'), 'budget 0', 'one budget that rejects is enough');
$gw->sql(q{DELETE FROM llm_budgets WHERE name = 'hard'});

# a strict budget that has too little left for a call
$gw->sql('UPDATE llm_models SET max_output_tokens = 1000000');
budget(q{limit_usd = 1000, on_exhausted = 'reject'});
is(outcome('strict', task => 'lookup', cache => 'auto'), 'gpt-4o premium false 1', 'kept');
budget(q{limit_usd = (SELECT spent_usd FROM llm_budget_status WHERE budget = 'all') + 0.0001, strict = true, reserve_fraction = 0});
is(outcome('strict', task => 'lookup', cache => 'refresh', priority => 'critical'), 'budget 0', 'a call may cost more than what is left: rejected');
budget(q{on_exhausted = 'cache_only'});
is(outcome('strict', task => 'lookup', cache => 'refresh', priority => 'critical'), 'gpt-4o premium true 0', 'or served what is kept');
is(outcome('strict', task => 'lookup', cache => 'off', priority => 'critical'), 'budget 0', 'off: rejected');

# so does a budget of the only models that there are
$gw->sql('DELETE FROM llm_budgets');
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, on_exhausted, provider) VALUES ('fake', 0.000001, 'cache_only', 'fake')});
is(outcome('strict', task => 'lookup', cache => 'auto'), 'gpt-4o premium true 0', 'a budget of the provider');
is(outcome('never asked', task => 'lookup', cache => 'auto'), 'budget 0', 'that has nothing kept');
$gw->sql(q{DELETE FROM llm_budgets; DELETE FROM llm_routing_rules WHERE model = 'mid'});
is($admin->value(q{SELECT count(*) FROM llm_requests WHERE status = 'cached' AND budgets IS NOT NULL}), 0, 'what is served is charged to no budget');

# What a user has added to the table refuses the answer

$gw->sql(q{ALTER TABLE llm_cache ADD CONSTRAINT users CHECK (response <> 'refused')});
$fake->script('gpt-4o', { text => 'refused' });
call($s, 'to be refused');
$gw->drained;
is($admin->value(q{SELECT status FROM llm_requests ORDER BY request_id DESC LIMIT 1}), 'ok', 'an answer that cannot be kept is booked');
is($admin->value(q{SELECT count(*) FROM llm_cache WHERE response = 'refused'}), 0, 'and not kept');
$fake->script('gpt-4o', { text => 'taken' });
call($s, 'to be taken');
is(call($s, 'to be taken')->{cached}, 'true', 'the next is');
$gw->sql('ALTER TABLE llm_cache DROP CONSTRAINT users');

# How much is kept: the oldest go first

sub size { return $admin->value('SELECT coalesce(sum(size), 0) FROM llm_cache') }
$fake->script('gpt-4o');
call($s, 'old');
$gw->sql('ALTER SYSTEM SET llm_gateway.cache_size = 64');
$gw->sql('SELECT pg_reload_conf()');
ok(wait_until(sub { $s->value('SHOW llm_gateway.cache_size') eq '64kB' }), 'reloaded');
$s->run(q{SELECT count(*) FROM llm_complete_batch(ARRAY(SELECT g || repeat(' x', 500) FROM generate_series(1, 100) g), cache => 'on')});
ok(wait_until(sub { size() <= 65536 }), 'cache_size is a bound') or diag(size());
cmp_ok(size(), '>', 32768, 'which is used');
call($s, 'old', cache => 'only');
is(call($s, 'old', cache => 'only')->{error_class}, 'no_candidate', 'the oldest is gone');
is(call($s, '100' . ' x' x 500, cache => 'only')->{cached}, 'true', 'the newest is there');
$fake->script('gpt-4o', { text => 'x' x 70_000 });
call($s, 'larger than the cache');
call($s, 'larger than the cache', cache => 'only');
is(call($s, '100' . ' x' x 500, cache => 'only')->{cached}, 'true', 'an answer that is larger than all of it is not kept, and drives nothing out');
$gw->sql('ALTER SYSTEM SET llm_gateway.cache_size = 0');
$gw->sql('SELECT pg_reload_conf()');
ok(wait_until(sub { $s->value('SHOW llm_gateway.cache_size') eq '0' }), 'reloaded');
call($s, 'nothing') for 1 .. 2;
is($n, 1, 'with a cache_size of 0 nothing is kept');

# The books
$gw->drained;
is($admin->value(q{SELECT sum(cost_usd) FROM llm_requests WHERE status = 'cached'}), 0, 'nothing that was served cost anything');
is($admin->value(q{SELECT count(*) FROM llm_requests WHERE status NOT IN ('ok', 'cached', 'error', 'cancelled', 'rejected')}), 0, 'each request has an end');
$gw->no_crash_ok;
done_testing();
