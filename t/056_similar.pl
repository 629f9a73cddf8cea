# Kept answers of similar prompts: who is served them, up to which age, and that they are a help and not a need.
use strict;
use warnings;

use FindBin;
use Test::More;
use Time::HiRes qw(sleep time);

use lib $FindBin::Bin;
use LlmGateway qw(PROMPTLY error_ok literal row wait_until);

my $gw = LlmGateway->new(name => 'similar', conf => "llm_gateway.worker_idle_timeout = 0\n");
my $fake = $gw->fake;
my $admin = $gw->admin;
my ($row, $n, @models);

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = 0');
$gw->add_models('fake', 'gpt-4o', { tier => q{'premium'}, input_price => 1, output_price => 10 });
$gw->sql(q{INSERT INTO llm_routing_rules (model) VALUES ('gpt-4o')});
my $provider = $gw->add_provider('vectors', $fake->url('/vectors'));
$gw->add_models('vectors', 'embedder', { tier => q{'economy'}, input_price => 1, output_price => 0, capabilities => q{'{embedding}'} });
$gw->add_models('vectors', 'embedder2', { tier => q{'economy'}, input_price => 1, output_price => 0, capabilities => q{'{embedding}'} });

# The call's row of DETAIL; how many requests it made, and to which models.
sub call
{
	my ($session, $prompt, %args) = @_;
	$args{cache} //= 'on';
	$args{task} //= 'lookup';
	my $list = join ', ', literal($prompt), map { "$_ => " . literal($args{$_}) } sort keys %args;
	my $detail;
	my $requests = $gw->requests(sub { $detail = row($session, "SELECT * FROM llm_complete_detail($list)") });
	@models = map { $_->{model} } @$requests;
	$n = @models;
	return $detail;
}

# The next embeddings are these.
sub vectors
{
	my ($model, @vectors) = @_;
	$fake->script($model, map { { body => { object => 'list', model => $model, usage => { prompt_tokens => 5, total_tokens => 5 },
		data => [ { object => 'embedding', index => 0, embedding => $_ } ] } } } @vectors);
	return;
}

sub setting
{
	my ($value) = @_;
	$gw->sql('ALTER SYSTEM SET llm_gateway.cache_embedding_model = ' . literal($value));
	$gw->sql('SELECT pg_reload_conf()');
	ok(wait_until(sub { $admin->value('SHOW llm_gateway.cache_embedding_model') eq $value }), "cache_embedding_model is '$value'");
	return;
}

my $s = $gw->session;

# Nothing of it unless both the setting and the task say so

call($s, 'off one');
is("@models", 'gpt-4o', 'by default no embedding is asked for');
$gw->sql(q{UPDATE llm_tasks SET cache_similarity = 0.9 WHERE name = 'lookup'});
call($s, 'off two');
is("@models", 'gpt-4o', 'nor without a model for it');
setting('embedder');
call($s, 'off three', task => 'math');
is("@models", 'gpt-4o', 'nor for another task');
call($s, 'off four', cache => 'off');
is("@models", 'gpt-4o', 'nor with cache off');
call($s, 'off five', cache => 'auto');
is("@models", 'gpt-4o', 'nor where nothing is looked for or kept');
is($admin->value('SELECT count(*) FROM llm_cache WHERE scope IS NOT NULL OR embedding IS NOT NULL'), 0, 'none is kept');

for my $wrong (0, -1, 1.5, 'NaN')
{
	error_ok($admin->run("UPDATE llm_tasks SET cache_similarity = '$wrong' WHERE name = 'chat'"),
		{ sqlstate => '22023', message => qr/^cache_similarity of task "chat" must be more than 0 and at most 1, not/ }, "$wrong is no similarity");
}
error_ok($admin->run("UPDATE llm_tasks SET cache_similar_ttl = '0' WHERE name = 'chat'"), { sqlstate => '22023', message => qr/^cache_similar_ttl .* must be more than nothing/ }, 'nor nothing a time');

# Above and below

vectors('embedder', [ 1, 0 ]);
my $made = call($s, 'What is the capital of Norway?');
is("@models", 'embedder gpt-4o', 'a prompt whose answer is to be kept: first its embedding');
is($made->{cached}, 'false', 'and then the call');
is($admin->value("SELECT embedding::text || (scope IS NOT NULL) FROM llm_cache WHERE request_id = $made->{request_id}"), '{1,0}true', 'which is kept with it');
$row = row($admin, q{SELECT operation, task, model, status, cost_usd > 0 AS paid, role FROM llm_requests WHERE model = 'embedder'});
is_deeply($row, { operation => 'embed', task => 'embedding', model => 'embedder', status => 'ok', paid => 'true', role => 'postgres' }, 'a request like any other') or diag explain $row;
call($s, 'What is the capital of Norway?');
is($n, 0, 'an equal prompt needs no embedding');

vectors('embedder', [ 0.95, 0.3122 ]);
my $near = call($s, 'Name the capital of Norway');
is("@models", 'embedder', 'a similar prompt is not asked');
is_deeply([ @{$near}{qw(response cached cost_usd attempts model model_tier)} ], [ 'echo: What is the capital of Norway?', 'true', 0, 0, 'gpt-4o', 'premium' ], 'but served the answer of the other');
is($near->{notice}, 'this is the answer to another prompt that is similar (0.950)', 'and told so');
is($admin->value("SELECT status FROM llm_requests WHERE request_id = $near->{request_id}"), 'cached', 'cached, in the ledger');
is(call($s, 'What is the capital of Norway?')->{notice}, undef, 'an equal one has nothing to be told');
is($admin->value(q{SELECT count(*) FROM llm_cache WHERE embedding IS NOT NULL}), 1, 'what was served is not kept once more');

vectors('embedder', [ 0.85, 0.5268 ]);
$row = call($s, 'What is the capital of Sweden?');
is_deeply([ "@models", $row->{cached}, $row->{notice} ], [ 'embedder gpt-4o', 'false', undef ], 'one that is not similar enough is asked');
vectors('embedder', [ 0.9, 0.4359 ], [ 0.99, 0.141 ]);
is(call($s, 'Swedish capital, what is it?')->{response}, 'echo: What is the capital of Sweden?', 'of two the more similar one is served');
is(call($s, 'Norwegian capital, what is it?')->{response}, 'echo: What is the capital of Norway?', 'also where it is the older one');

vectors('embedder', [ 0, 0 ], [ 1, 0, 0 ], [ -1, 0 ]);
for my $vector ('of length nothing', 'of another model, longer', 'of the opposite')
{
	call($s, "a vector $vector");
	is("@models", 'embedder gpt-4o', "a vector $vector is not similar");
}

# The modes

vectors('embedder', [ 1, 0 ], [ 0, -1 ], [ 0.99, 0.141 ], [ 0.99, 0.141 ]);
is(call($s, 'only, similar', cache => 'only')->{response}, 'echo: What is the capital of Norway?', 'only: served');
$row = call($s, 'only, nothing like it', cache => 'only');
is_deeply([ "@models", $row->{error_class}, $row->{error_message} ], [ 'embedder', 'no_candidate', 'no answer is cached for this prompt' ], 'only: or an error');
call($s, 'refresh, similar', cache => 'refresh');
is("@models", 'embedder gpt-4o', 'refresh: made, and kept with its embedding');
$gw->sql(q{UPDATE llm_tasks SET cache_ttl = '1 h' WHERE name = 'lookup'});
call($s, 'auto, similar', cache => 'auto');
is("@models", 'embedder gpt-4o', 'auto: the same, where the task has a cache_ttl');
$gw->drained;
is($admin->value(q{SELECT count(*) FROM llm_cache WHERE embedding = '{0.99,0.141}'}), 2, 'both are');
$n = @{ $gw->requests(sub { is($s->value(q{SELECT llm_complete('as text', task => 'lookup', cache => 'on')}), 'echo: as text', 'llm_complete takes part') }) };
is($n, 2, 'with an embedding');
for my $other (q{SELECT count(*) FROM llm_complete_batch(ARRAY['in a batch'], task => 'lookup', cache => 'on')},
	q{SELECT count(*) FROM llm_chat('[{"role": "user", "content": "in a chat"}]', task => 'lookup', cache => 'on')},
	q{SELECT count(*) FROM llm_stream('in a stream', task => 'lookup', cache => 'on')})
{
	is(scalar @{ $gw->requests(sub { $s->run($other) }) }, 1, "none for $other");
}

# What else shapes an answer must be the same

$gw->sql(q{CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN; SELECT llm_grant('alice'); SELECT llm_grant('bob')});
my ($alice, $bob) = map { $gw->session('postgres', user => $_) } qw(alice bob);
vectors('embedder', ([ 1, 0 ]) x 20);
for my $other ({ system_prompt => 'Be brief.' }, { max_tokens => 100 }, { temperature => 0 }, { params => '{"seed": 1}' }, { optimize => 'quality' }, { model => 'gpt-4o' })
{
	call($s, 'another ' . join(' ', %$other), %$other);
	is("@models", 'embedder gpt-4o', join(' ', %$other) . ': never similar');
}
call($alice, 'asked by alice');
is("@models", 'embedder gpt-4o', 'another role is served nothing');
is(call($alice, 'asked by alice again')->{response}, 'echo: asked by alice', 'but its own');
call($bob, 'asked by bob');
is("@models", 'embedder gpt-4o', 'nor is a third one');
is($bob->value('SELECT count(*) FROM llm_cache WHERE embedding IS NOT NULL'), 1, 'who sees the embeddings of its own prompts only');
$gw->sql(q{UPDATE llm_tasks SET cache_shared = true WHERE name = 'lookup'});
call($alice, 'shared by alice');
is(call($bob, 'asked by bob, again')->{response}, 'echo: shared by alice', 'unless the task shares its answers');
$gw->sql(q{UPDATE llm_tasks SET cache_shared = false WHERE name = 'lookup'});

setting('embedder2');
vectors('embedder2', [ 1, 0 ], [ 1, 0 ]);
call($s, 'another embedder');
is("@models", 'embedder2 gpt-4o', 'vectors of another model are not compared');
call($s, 'the same embedder');
is("@models", 'embedder2', 'those of the same are');
setting('embedder');

# Not too old

$gw->sql(q{DELETE FROM llm_cache; UPDATE llm_tasks SET cache_similar_ttl = '1 h' WHERE name = 'lookup'});
vectors('embedder', ([ 1, 0 ]) x 20);
my $id = call($s, 'young')->{request_id};
is(call($s, 'young, too')->{response}, 'echo: young', 'young enough for a similar prompt');
$gw->sql("UPDATE llm_cache SET created_at = created_at - interval '2 h', expires_at = expires_at + interval '1 day' WHERE request_id = $id");
call($s, 'too late');
is("@models", 'embedder gpt-4o', 'too old for one');
call($s, 'young');
is($n, 0, 'but not for an equal one');
$gw->sql(q{UPDATE llm_cache SET expires_at = now() - interval '1 s' WHERE response = 'echo: too late'});
is(call($s, 'expired')->{cached}, 'false', 'nor is what has expired served');
$gw->sql(q{UPDATE llm_tasks SET cache_similar_ttl = NULL WHERE name = 'lookup'; DELETE FROM llm_cache WHERE response <> 'echo: young'});
is(call($s, 'whatever its age')->{response}, 'echo: young', 'without cache_similar_ttl it is served as long as it is kept');
vectors('embedder', [ 0.92, 0.3919 ], [ 0.92, 0.3919 ]);
$id = call($s, 'nearer', cache => 'refresh')->{request_id};
$gw->sql("UPDATE llm_cache SET expires_at = now() - interval '1 s' WHERE request_id = $id");
is(call($s, 'one that is nearer has expired')->{response}, 'echo: young', 'one that has expired hides no other');

# Never worse than a call: the nearest that is good enough

$gw->sql(q{DELETE FROM llm_cache});
vectors('embedder', [ 0.95, 0.3122 ], [ 0, 1 ], ([ 1, 0 ]) x 20);
call($s, 'good');
$id = call($s, 'bad')->{request_id};
$gw->sql("UPDATE llm_cache SET embedding = '{1,0}', model_tier = 'economy' WHERE request_id = $id");
is(call($s, 'good or bad')->{response}, 'echo: good', 'a nearer one of a worse tier is passed over');

# Transactions

$s->run('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class');
is(call($s, 'in a transaction')->{cached}, 'true', 'found in a serializable transaction');
is($admin->value(q{SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation IN ('llm_cache'::regclass, 'llm_cache_scope_idx'::regclass)}), 0, 'without predicate locks');
is($s->run('COMMIT')->{sqlstate}, undef, 'which commits');

# A help, not a need

$gw->sql('DELETE FROM llm_cache');
for my $behaviour (qw(status-503 status-400 status-401 embed-nan embed-short))
{
	$fake->script('embedder', { behaviour => $behaviour });
	$row = call($s, "embedder: $behaviour");
	is_deeply([ $row->{response}, $row->{error_class}, $row->{attempts} ], [ "echo: embedder: $behaviour", undef, 1 ], "embedder: $behaviour: the call is made");
	$gw->sql(q{SELECT llm_breaker_reset('vectors')});
}
is($admin->value('SELECT count(*) FROM llm_cache WHERE embedding IS NULL'), 5, 'and kept for equal prompts');
$gw->sql(q{UPDATE llm_providers SET enabled = false WHERE name = 'vectors'});
call($s, 'embedder off');
is("@models", 'gpt-4o', 'no provider for it: the same');
$gw->sql(q{UPDATE llm_providers SET enabled = true WHERE name = 'vectors'});
setting('no such model');
call($s, 'no such model');
is("@models", 'gpt-4o', 'no such model: the same');
setting('embedder');

# It takes no more than half of a call's time
$fake->script('embedder', { behaviour => 'default', delay_ms => 20000 });
my $hanging = $gw->session;
$row = call($hanging, 'hanging', timeout_ms => 5000);
is_deeply([ $row->{response}, "@models" ], [ 'echo: hanging', 'embedder gpt-4o' ], 'an embedding that does not come: the call is made in its time');
cmp_ok($row->{latency_ms}, '<', 5000, 'which it was');
call($hanging, 'hanging on');
is("@models", 'gpt-4o', 'for a while this session asks for none');

$fake->script('embedder', { behaviour => 'default', delay_ms => 20000 });
my $hasty = $gw->session;
call($hasty, 'in haste', timeout_ms => 500);
call($hasty, 'in no haste');
is("@models", 'embedder gpt-4o', 'unless it was in haste');

# A cancel ends it as any call
$fake->script('embedder', { behaviour => 'default', delay_ms => 20000 });
$s->start(q{SELECT llm_complete('cancelled', task => 'lookup', cache => 'on')});
$fake->wait_for_stats(sub { $_[0]{in_flight} > 0 }) or die 'the embedding was not sent';
my $began = time;
$admin->run('SELECT pg_cancel_backend(' . $s->pid . ')');
is($s->finish->{sqlstate}, '57014', 'cancelled');
cmp_ok(time - $began, '<', PROMPTLY, 'at once');
$gw->drained;
is($admin->value(q{SELECT string_agg(operation || ' ' || status, ', ' ORDER BY request_id) FROM llm_requests WHERE status = 'cancelled'}), 'embed cancelled', 'what was sent is in the ledger');
$fake->script('embedder');
is(call($s, 'after that')->{response}, 'echo: after that', 'the session goes on');

# Several sessions at once: only the one that makes the call asks for the embedding
my @s = map { $gw->session } 1 .. 4;
$fake->script('gpt-4o', { behaviour => 'default', delay_ms => 700 });
my $requests = $gw->requests(sub {
	$_->start(q{SELECT llm_complete('together', task => 'lookup', cache => 'on')}) for @s;
	is($_->finish->{out}, 'echo: together', 'served') for @s;
});
is(join(' ', map { $_->{model} } @$requests), 'embedder gpt-4o', 'by one embedding and one call');

# A budget that the embedding does not have
$fake->script('gpt-4o');
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, task) VALUES ('embeddings', 0, 'embedding')});
$row = call($s, 'no budget for it');
is_deeply([ "@models", $row->{response} ], [ 'gpt-4o', 'echo: no budget for it' ], 'no budget for embeddings: the call is made');
$gw->sql(q{DELETE FROM llm_budgets});

# A budget that runs low: auto serves what it kept before, and the embedding is still to be had
$gw->sql(q{DELETE FROM llm_cache; INSERT INTO llm_routing_rules (model, rank) VALUES ('small', 200)});
$gw->add_models('fake', 'small', { tier => q{'economy'}, input_price => 0.01, output_price => 0.01 });
vectors('embedder', ([ 1, 0 ]) x 5);
call($s, 'while there is enough', cache => 'auto');
is("@models", 'embedder gpt-4o', 'enough is left: made');
$row = call($s, 'still enough', cache => 'auto');
is_deeply([ "@models", $row->{cached} ], [ 'embedder gpt-4o', 'false' ], 'auto serves nothing then');
$gw->drained;
$gw->sql(q{INSERT INTO llm_budgets (name, limit_usd, period) SELECT 'low', sum(cost_usd) * 10 / 7, 'month' FROM llm_requests});
$row = call($s, 'nearly the same', cache => 'auto');
is_deeply([ "@models", $row->{response}, $row->{model}, $row->{cached} ], [ 'embedder', 'echo: still enough', 'gpt-4o', 'true' ], 'little is left: a similar prompt has the better answer') or diag explain $row;
vectors('embedder', [ 0, 1 ]);
$row = call($s, 'nothing like it', cache => 'auto');
is_deeply([ "@models", $row->{model} ], [ 'embedder small', 'small' ], 'without one it is the cheaper model');
$gw->sql(q{UPDATE llm_budgets SET limit_usd = 0.000001, on_exhausted = 'cache_only'});
$row = call($s, 'nearly the same, nothing left', cache => 'auto');
is_deeply([ "@models", $row->{error_class} ], [ '', 'budget' ], 'nothing is left: not even an embedding');
is(call($s, 'still enough', cache => 'auto')->{cached}, 'true', 'an equal prompt is served');

$gw->drained;
is($admin->value(q{SELECT count(*) FROM llm_requests WHERE status NOT IN ('ok', 'cached', 'error', 'cancelled', 'rejected')}), 0, 'each request has an end');
$gw->no_crash_ok;
done_testing();
