# Kept answers of similar prompts, found by an index of pgvector where there is one.
use strict;
use warnings;

use FindBin;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(literal row);

my $gw = LlmGateway->new(name => 'pgvector', conf => "llm_gateway.worker_idle_timeout = 0\nllm_gateway.cache_embedding_model = 'embedder'\n");
my $admin = $gw->admin;
plan skip_all => 'pgvector is not installed' unless $admin->value(q{SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'});
my $fake = $gw->fake;

$gw->add_models('fake', 'gpt-4o', { tier => q{'premium'}, input_price => 1, output_price => 10 });
$gw->sql(q{INSERT INTO llm_routing_rules (model) VALUES ('gpt-4o')});
$gw->add_provider('vectors', $fake->url('/vectors'));
$gw->add_models('vectors', 'embedder', { input_price => 1, output_price => 0, capabilities => q{'{embedding}'} });
$gw->sql(q{UPDATE llm_tasks SET cache_similarity = 0.9 WHERE name = 'lookup'});
my $s = $gw->session;
my $locked = 0;    # the ledger has to wait

# The answer's row for a prompt with that embedding.
sub call
{
	my ($session, $prompt, $vector, %args) = @_;
	$fake->script('embedder', { body => { object => 'list', model => 'embedder', usage => { prompt_tokens => 5, total_tokens => 5 },
		data => [ { object => 'embedding', index => 0, embedding => $vector } ] } });
	my $list = join ', ', literal($prompt), map { "$_ => " . literal($args{$_}) } sort keys %args;
	my $row = row($session, "SELECT * FROM llm_complete_detail($list, task => 'lookup', cache => 'on')");
	$gw->drained unless $locked;
	return $row;
}

sub scans
{
	return $admin->value(q{SELECT pg_stat_force_next_flush(); SELECT pg_stat_clear_snapshot(); SELECT coalesce(sum(idx_scan), 0) FROM pg_stat_user_indexes WHERE indexrelname = 'by_meaning'}) =~ /(\d+)\s*$/ ? $1 : undef;
}

# What the session has counted shows when its transaction ends.
sub uses_index
{
	my ($session) = @_;
	$session->run('SELECT pg_stat_force_next_flush()');
	my $before = scans();
	my $row = call(@_);
	$session->run('SELECT pg_stat_force_next_flush()');
	return ($row->{response}, scans() > $before ? 'by the index' : 'without it');
}

call($s, 'north', [ 0, 1 ]);
is_deeply([ uses_index($s, 'to the north', [ 0.1, 0.995 ]) ], [ 'echo: north', 'without it' ], 'without pgvector a similar prompt is found');
$gw->sql('CREATE SCHEMA elsewhere; CREATE EXTENSION vector SCHEMA elsewhere');
is_deeply([ uses_index($s, 'northward', [ 0.1, 0.995 ]) ], [ 'echo: north', 'without it' ], 'and with it, without an index');
$gw->sql(q{CREATE INDEX by_meaning ON llm_cache USING hnsw ((embedding::elsewhere.vector(2)) elsewhere.vector_cosine_ops) WHERE array_length(embedding, 1) = 2});
is_deeply([ uses_index($s, 'to the north, by index', [ 0.1, 0.995 ]) ], [ 'echo: north', 'by the index' ], 'with an index it is used, of whatever schema');
is($s->value('SHOW hnsw.iterative_scan'), 'off', 'whose settings stay as they were');
is_deeply([ uses_index($s, 'south', [ 0, -1 ]) ], [ 'echo: south', 'by the index' ], 'nothing similar: the call is made');
is_deeply([ uses_index($s, 'to the south', [ 0.1, -0.995 ]) ], [ 'echo: south', 'by the index' ], 'and found by the index');
is_deeply([ uses_index($s, 'three dimensions', [ 0, 0, 1 ]) ], [ 'echo: three dimensions', 'without it' ], 'vectors of other lengths are not in it');
is_deeply([ uses_index($s, 'three of them', [ 0, 0.1, 0.995 ]) ], [ 'echo: three dimensions', 'without it' ], 'and are found without it');

# More of others, all nearer, than an index looks at by itself

$gw->sql(q{
	INSERT INTO llm_cache (SELECT (jsonb_populate_record(c, jsonb_build_object('key', '\x' || encode(sha256(n::text::bytea), 'hex'), 'scope', '\x' || encode(sha256('other'), 'hex'), 'response', 'of another', 'embedding', ARRAY[1, n / 1e6]))).* FROM llm_cache c, generate_series(1, 300) n WHERE c.response = 'echo: north')});
call($s, 'east', [ 0.95, 0.3122 ]);
is_deeply([ uses_index($s, 'to the east', [ 1, 0 ]) ], [ 'echo: east', 'by the index' ], 'answers of other scopes hide none, however near and many');
is($admin->value(q{SELECT count(*) FROM llm_cache WHERE response = 'echo: to the east'}), 0, 'it was served, and not made');
$gw->sql(q{DELETE FROM llm_cache WHERE response = 'of another'});
$gw->sql('REINDEX INDEX by_meaning');    # so many of the same, and dead, lead the search astray

# Who is served what

$gw->sql(q{UPDATE llm_cache SET expires_at = now() - interval '1 s' WHERE response = 'echo: south'});
is(call($s, 'south, once more', [ 0, -1 ])->{cached}, 'false', 'what has expired is passed over');
$gw->sql(q{CREATE ROLE alice LOGIN; SELECT llm_grant('alice')});
my $alice = $gw->session('postgres', user => 'alice');
is_deeply([ uses_index($alice, 'asked by alice', [ 0, 1 ]) ], [ 'echo: asked by alice', 'by the index' ], 'another role is not served the answer of the first');
is((uses_index($alice, 'asked by alice again', [ 0.01, 1 ]))[0], 'echo: asked by alice', 'but its own, though it may not use the schema');
is((uses_index($s, 'and the first', [ 0.01, 1 ]))[0], 'echo: north', 'each has its own');

# Transactions

$s->run('BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) FROM pg_class');
is(call($s, 'serializable', [ 0, 1 ])->{response}, 'echo: north', 'found in a serializable transaction');
is($admin->value(q{SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation IN ('llm_cache'::regclass, 'by_meaning'::regclass)}), 0, 'without predicate locks');
is($s->run('COMMIT')->{sqlstate}, undef, 'which commits');
$s->run(q{BEGIN; DELETE FROM llm_cache; SAVEPOINT a});
is(call($s, 'deleted by this transaction', [ 0, 1 ])->{cached}, 'false', 'what this transaction has deleted is not served');
$s->run('ROLLBACK');
is(call($s, 'after it', [ 0, 1 ])->{cached}, 'true', 'and is there again');
$gw->sql(q{DELETE FROM llm_cache WHERE response = 'echo: deleted by this transaction'});

# Locks

my $locker = $gw->session;
$locker->value('BEGIN; REINDEX INDEX by_meaning');
$locked = 1;
is_deeply([ uses_index($s, 'meanwhile', [ 0, 1 ]) ], [ 'echo: north', 'without it' ], 'while the index is made anew, nobody waits for it');
$locker->value('REINDEX INDEX llm_cache_scope_idx');
is_deeply([ uses_index($s, 'neither of them', [ 0, 1 ]) ], [ 'echo: neither of them', 'without it' ], 'nor for the other one');
$locker->value('COMMIT');
$locked = 0;
$gw->drained;
$gw->sql(q{DELETE FROM llm_cache WHERE response = 'echo: neither of them'});
is_deeply([ uses_index($s, 'afterwards', [ 0, 1 ]) ], [ 'echo: north', 'by the index' ], 'then it is used again');

# A wrong index finds nothing wrong

$gw->sql(q{DROP INDEX by_meaning; CREATE INDEX by_meaning ON llm_cache USING hnsw ((embedding::elsewhere.vector(2)) elsewhere.vector_l2_ops) WHERE array_length(embedding, 1) = 2});
is_deeply([ uses_index($s, 'by another distance', [ 0, 1 ]) ], [ 'echo: north', 'without it' ], 'an index of another distance is not used');
$gw->sql(q{DROP INDEX by_meaning; CREATE INDEX by_meaning ON llm_cache USING hnsw ((embedding::elsewhere.halfvec(2)) elsewhere.halfvec_cosine_ops) WHERE array_length(embedding, 1) = 2});
is_deeply([ uses_index($s, 'in half the size', [ 0, 1 ]) ], [ 'echo: north', 'by the index' ], 'one of halfvec is');
is_deeply([ uses_index($s, 'longer than it takes', [ -70000, 0 ]) ], [ 'echo: longer than it takes', 'by the index' ], 'a vector that is too long for that type is looked for');
is((uses_index($s, 'and not kept', [ -70000, 1 ]))[0], 'echo: and not kept', 'and its answer is not kept: the ledger goes on');
$gw->sql('DROP EXTENSION vector CASCADE');
is_deeply([ uses_index($s, 'without it again', [ 0, 1 ]) ], [ 'echo: north', 'without it' ], 'pgvector can go again');

done_testing();
