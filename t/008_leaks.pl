# A backend that makes calls all day does not grow.
use strict;
use warnings;

use FindBin;
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway;

# LLM_GATEWAY_LONG: as many over HTTP as without it
my $long = $ENV{LLM_GATEWAY_LONG};

my $gw = LlmGateway->new(name => 'leaks', fake => { journal => 10 });
my ($s, $pid);
$gw->sql(q{SELECT count(*) FROM llm_add_provider('mock')});
$gw->sql(q{UPDATE llm_error_policies SET backoff_ms = 0});
$gw->add_models('fake', qw(gpt-4o status-400 malformed reset-before silent drip-5 tools json embed-short));
$gw->sql(q{INSERT INTO llm_providers (name, kind, options) VALUES ('broken', 'mock', '{"error": "invalid_request"}')});
$gw->add_models('broken', 'm-broken');

sub rss
{
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

sub descriptors
{
	opendir my $dir, "/proc/$pid/fd" or die "/proc/$pid/fd: $!";
	my $n = grep { /^\d+$/ } readdir $dir;
	closedir $dir;
	return $n;
}

# What is used of the session's own memory, and all that its contexts have, in bytes; and how many of
# them are ours.
sub contexts
{
	return split /\|/, $s->value(q{SELECT sum(used_bytes) FILTER (WHERE name = 'TopMemoryContext'), sum(total_bytes),
		count(*) FILTER (WHERE name LIKE 'llm_gateway%') FROM pg_backend_memory_contexts});
}

# Runs a statement that makes calls in a new session, which has not grown for another reason: first
# to warm up, then again and again.  What it prints is always the same, and memory is as after the
# warm-up.  Instead of a statement, code that runs one and returns what came of it.
sub steady_ok
{
	my ($name, $warm, $times, $sql, $want) = @_;
	my $wrong = 0;
	my $round = ref $sql ? $sql : sub { $s->run($sql)->{out} };
	$s = $gw->session;
	$pid = $s->pid;
	contexts();
	for (1 .. $warm)
	{
		$wrong++ if $round->() ne $want;
	}
	my ($rss, $fds) = (rss(), descriptors());
	my ($top, $total, $ours) = contexts();
	for (1 .. $times)
	{
		$wrong++ if $round->() ne $want;
	}
	is($wrong, 0, "$name: answers");
	my ($top_now, $total_now, $ours_now) = contexts();
	my $grown = rss() - $rss;
	note("$name: from $rss kB by $grown kB, TopMemoryContext from $top by " . ($top_now - $top) . ', all from '
		. "$total by " . ($total_now - $total) . " bytes, contexts of ours from $ours by " . ($ours_now - $ours));
	cmp_ok($grown, '<', 1024, "$name: memory");
	cmp_ok($top_now - $top, '<', 1024, "$name: TopMemoryContext");
	cmp_ok($total_now - $total, '<', 64 * 1024, "$name: memory contexts");
	is($ours_now, $ours, "$name: our contexts");
	cmp_ok(descriptors(), '<=', $fds + 1, "$name: descriptors");
	return;
}

steady_ok('100,000 calls', 1, 9, q{SELECT count(llm_complete('What is ' || g, model => 'mock-standard', params => '{"seed": 1}')) FROM generate_series(1, 10000) g}, '10000');
steady_ok('calls with details', 2, 4, q{SELECT count(d.response) FROM generate_series(1, 2000) g, llm_complete_detail('What is ' || g, model => 'mock-standard') d}, '2000');

steady_ok('calls in batches', 2, 8, q{SELECT count(response) FROM llm_complete_batch(array(SELECT 'What is ' || g / 2 FROM generate_series(1, 2000) g), model => 'mock-standard', max_concurrency => 50)}, '2000');
steady_ok('answers of 20 kB', 2, 4, q{SELECT sum(length(llm_complete(repeat('x', 20000), model => 'mock-standard'))) FROM generate_series(1, 200) g}, 200 * 20015);
steady_ok('errors, caught', 2, 4, q{SELECT count(error_class) FROM generate_series(1, 2000) g, llm_complete_detail('What is ' || g, model => 'm-broken')}, '2000');
steady_ok('errors, raised', 300, 700, q{SELECT llm_complete('x', model => 'm-broken')}, '');
steady_ok('errors, in subtransactions', 2, 4,
	q{DO $$ BEGIN FOR i IN 1 .. 1000 LOOP BEGIN PERFORM llm_complete('x', model => 'm-broken'); EXCEPTION WHEN SQLSTATE 'LG008' THEN NULL; END; END LOOP; END $$}, '');
steady_ok('changes of the configuration', 2, 4,
	q{DO $$ BEGIN FOR i IN 1 .. 300 LOOP UPDATE llm_models SET quality = i % 100 WHERE name = 'mock-economy'; PERFORM llm_complete('x', model => 'mock-standard'); END LOOP; END $$}, '');

my $chunk = $long ? 10000 : 500;
steady_ok($chunk * 10 . ' calls over HTTP', 1, 9, qq{SELECT count(llm_complete('What is ' || g, model => 'gpt-4o')) FROM generate_series(1, $chunk) g}, $chunk);
steady_ok('batches over HTTP', 2, 4, q{SELECT count(response) FROM llm_complete_batch(array(SELECT 'What is ' || g FROM generate_series(1, 400) g), model => 'gpt-4o', max_concurrency => 20)}, '400');
for my $model (qw(status-400 malformed reset-before))
{
	steady_ok("$model over HTTP", 2, 5, qq{SELECT count(error_class) FROM generate_series(1, 200) g, llm_complete_detail('What is ' || g, model => '$model')}, '200');
}

# Chats, JSON, embeddings

my $tools = q{'[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]'};
steady_ok('chats with tools', 2, 5, qq{SELECT count(c.tool_calls) FROM generate_series(1, 200) g,
	llm_chat(jsonb_build_array(jsonb_build_object('role', 'user', 'content', 'Weather ' || g)), tools => $tools, model => 'tools') c}, '200');
steady_ok('tools that nobody can have', 100, 200, q{SELECT response FROM llm_chat('[{"role": "user", "content": "hi"}]', tools => '[{"type": "function"}]', model => 'tools')}, '');

my $schema = q{'{"type": "object", "properties": {"size": {"type": "integer"}}, "required": ["size"]}'};
$gw->fake->script('json', ({ text => '{"size": "large"}' }, { text => '{"size": 3}' }) x 700);
steady_ok('JSON, repaired', 2, 5, qq{SELECT sum((llm_complete_json('How large is ' || g, schema => $schema, model => 'json')->>'size')::integer) FROM generate_series(1, 100) g}, '300');
$gw->fake->script('json', { text => '{"size": "large"}', repeat => 'forever' });
steady_ok('JSON, beyond repair', 100, 200, qq{SELECT llm_complete_json('How large?', schema => $schema, model => 'json')}, '');

$gw->add_models('fake', 'embedder', { capabilities => "'{embedding}'" });
my $inputs = q{array(SELECT 'text ' || g FROM generate_series(1, 200) g)};
steady_ok('embeddings', 2, 5, q{SELECT count(llm_embed('text ' || g, model => 'embedder')) FROM generate_series(1, 200) g}, '200');
steady_ok('embeddings in batches', 4, 20, qq{SELECT count(embedding) FROM llm_embed_batch($inputs, model => 'embedder')}, '200');
# each is tried again over a new connection, until there are the 32 that are kept
steady_ok('batches with an embedding missing', 50, 50, qq{SELECT count(error_class) FROM llm_embed_batch($inputs, model => 'embed-short')}, '200');

# Ended early

steady_ok('streams, read to the end', 2, 4, q{SELECT string_agg(t, '') FROM (SELECT llm_stream('hi', model => 'gpt-4o') AS t FROM generate_series(1, 100)) q}, 'echo: hi' x 100);
steady_ok('streams, left after a row', 2, 5, q{SELECT count(t) FROM generate_series(1, 50) g,
	LATERAL (SELECT llm_stream('a long prompt ' || g, model => 'drip-5') AS t LIMIT 1) q}, '50');
steady_ok('streams, ended by an error', 2, 5, q{DO $$ DECLARE t text; BEGIN FOR i IN 1 .. 50 LOOP BEGIN
	FOR t IN SELECT llm_stream('a long prompt ' || i, model => 'drip-5') LOOP RAISE division_by_zero; END LOOP;
	EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$}, '');
for my $case (
	[ 'a call',       q{SELECT llm_complete('hi', model => 'silent')} ],
	[ 'a batch',      q{SELECT count(*) FROM llm_complete_batch(array(SELECT 'p' || g FROM generate_series(1, 10) g), model => 'silent')} ],
	[ 'a stream',     q{SELECT llm_stream('hi', model => 'silent')} ],
	[ 'an embedding', q{SELECT llm_embed('hi', model => 'silent')} ])
{
	my ($name, $sql) = @$case;
	steady_ok("cancels of $name", 20, 60, sub {
		$s->start($sql);
		$gw->wait_in_call($s);
		$gw->admin->value("SELECT pg_cancel_backend($pid)");
		return $s->finish->{sqlstate} // 'none';
	}, '57014');
}

is($gw->fake->stats->{internal_errors}, 0, 'the fake itself is sound');
$gw->no_crash_ok;

done_testing();
