# llama.cpp's server: what it really answers, byte by byte as version b11669 sent it to a model of 135
# million parameters (but for vectors of three numbers and streams of fewer words).
use strict;
use warnings;
use utf8;

use FindBin;
use JSON::PP;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw(error_ok literal row);

my $gw = LlmGateway->new(name => 'llamacpp');
my $fake = $gw->fake;
my $s = $gw->session;
my ($r, $row);

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');
$gw->sql('SELECT llm_add_provider(' . join(', ', literal('llamacpp'), 'base_url => ' . literal($fake->url), q{models => '{smollm2}'}) . ')');

# The ledger's row of the newest request.
sub recorded
{
	return row($s, q{SELECT operation, status, error_class, attempts, input_tokens, cached_input_tokens AS cached, output_tokens, cost_usd, cost_source
		FROM llm_requests ORDER BY request_id DESC LIMIT 1});
}

sub recorded_ok
{
	my ($want, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $got = recorded();
	is_deeply({ map { $_ => $got->{$_} } keys %$want }, $want, $name) or diag(JSON::PP->new->canonical->encode($got));
	return;
}

my $id = '"created":1795375717,"id":"chatcmpl-bY5iwqzkRRllIF85NRxjksfheyOH7VFy","model":"smollm2","system_fingerprint":"b11669-Debian","object":"chat.completion.chunk"';
my $timings = '"timings":{"cache_n":26,"prompt_n":1,"prompt_ms":13.331,"prompt_per_token_ms":13.331,"prompt_per_second":75.01312729727702,"predicted_n":8,"predicted_ms":90.685,"predicted_per_token_ms":12.955,"predicted_per_second":77.19027402547279}';
my $usage = '"usage":{"completion_tokens":8,"prompt_tokens":27,"total_tokens":35,"prompt_tokens_details":{"cached_tokens":26}}';

sub event { return "data: {$_[0]}\n\n" }
sub choice { return qq("choices":[{"finish_reason":$_[0],"index":0,"delta":{$_[1]}}],$id) }

my @words = (
	event(choice('null', '"role":"assistant","content":null')),
	map { event(choice('null', qq("content":"$_"))) } 'The', ' capital', ' of', ' France', ' is', ' Paris', '.');

# A completion

$fake->script('smollm2', { chunks => [ @words, event(choice('"stop"', '')), event(qq("choices":[],$id,$usage,$timings)), "data: [DONE]\n\n" ] });
$row = row($s, q{SELECT response, model, finish_reason, input_tokens, output_tokens, cached_input_tokens AS cached
	FROM llm_complete_detail('What is the capital of France?', temperature => 0)});
is_deeply($row,
	{ response => 'The capital of France is Paris.', model => 'smollm2', finish_reason => 'stop', input_tokens => 27, output_tokens => 8, cached => 26 },
	'a completion');
recorded_ok({ operation => 'complete', status => 'ok', attempts => 1, input_tokens => 27, cached => 26, output_tokens => 8, cost_usd => 0, cost_source => 'usage' }, 'a completion: recorded');

$fake->script('smollm2', { chunks => [ @words, event(choice('"length"', '')), event(qq("choices":[],$id,$usage,$timings)), "data: [DONE]\n\n" ] });
$r = $s->run(q{SELECT llm_complete('x', max_tokens => 8)});
is($r->{out}, 'The capital of France is Paris.', 'cut by max_tokens');
is($r->{notices}[0]{sqlstate}, '01004', 'cut by max_tokens: a warning');

# A stream of rows

$fake->script('smollm2', { chunks => [ @words, event(choice('"stop"', '')), event(qq("choices":[],$id,$usage,$timings)), "data: [DONE]\n\n" ], chunk_delay_ms => 20 });
is($s->run(q{SELECT string_agg(w, '') FROM llm_stream('x') AS w})->{out}, 'The capital of France is Paris.', 'a stream');
recorded_ok({ operation => 'stream', status => 'ok', input_tokens => 27, output_tokens => 8 }, 'a stream: recorded');

# without stream_options the last event has the timings and no usage
$gw->sql(q{UPDATE llm_providers SET options = '{"include_usage": false}'});
$fake->script('smollm2', { chunks => [ @words, event(choice('"stop"', '') . ",$timings"), "data: [DONE]\n\n" ] });
is($s->value(q{SELECT llm_complete('x')}), 'The capital of France is Paris.', 'without usage');
recorded_ok({ status => 'ok', cost_source => 'estimate' }, 'without usage: an estimate');

# JSON, whole

$gw->sql(q{UPDATE llm_providers SET options = '{"stream": false}'});
$fake->script('smollm2',
	{ body => '{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"{\"name\": \"Aalto\", \"city\": \"Norway\"}"}}],"created":1795375718,"model":"smollm2","system_fingerprint":"b11669-Debian","object":"chat.completion","usage":{"completion_tokens":16,"prompt_tokens":30,"total_tokens":46,"prompt_tokens_details":{"cached_tokens":14}},"id":"chatcmpl-9i0Enqanoda8O0nXux7OilF8i0gk4zU5","timings":{"cache_n":14,"prompt_n":16,"prompt_ms":118.227}}' });
is($s->value(q{SELECT llm_complete_json('Ann lives in Oslo.', schema => '{"type": "object", "required": ["name", "city"]}')}),
	'{"city": "Norway", "name": "Aalto"}', 'JSON');
recorded_ok({ operation => 'json', status => 'ok', attempts => 1, input_tokens => 30, cached => 14, output_tokens => 16 }, 'JSON: recorded');

$fake->script('smollm2', 'error-body-llamacpp-schema');
error_ok($s->run(q{SELECT llm_complete_json('x', schema => '{"type": "object"}')}), { sqlstate => 'LG011', detail => qr/invalid_request .*JSON schema error.*\n.*schema after/ }, 'a schema without a grammar');

# Embeddings

$fake->script('smollm2', { body => '{"model":"smollm2","object":"list","usage":{"prompt_tokens":3,"total_tokens":3},"data":[{"embedding":[-0.01275787502527237,0.5,0.0010401918552815914],"index":0,"object":"embedding"},{"embedding":[0.25,-0.02003641054034233,1],"index":1,"object":"embedding"}]}' });
is($s->run(q{SELECT embedding FROM llm_embed_batch('{hello,world peace}', model => 'smollm2') ORDER BY idx})->{out},
	"{-0.012757875,0.5,0.0010401919}\n{0.25,-0.02003641,1}", 'embeddings');
recorded_ok({ operation => 'embed', status => 'ok', input_tokens => 3, output_tokens => 0, cost_source => 'usage' }, 'embeddings: recorded');

# it does not know "dimensions" and does not say so
$fake->script('smollm2', { repeat => 2, body => '{"model":"smollm2","object":"list","usage":{"prompt_tokens":1,"total_tokens":1},"data":[{"embedding":[0.1,0.2,0.3],"index":0,"object":"embedding"}]}' });
error_ok($s->run(q{SELECT llm_embed('hello', model => 'smollm2', dimensions => 2)}), { sqlstate => 'LG010', message => qr/3 dimensions instead of 2/ }, 'fewer dimensions');

$fake->script('smollm2', 'error-body-llamacpp-batch');
error_ok($s->run(q{SELECT llm_embed('hello', model => 'smollm2')}), { sqlstate => 'LG007', message => qr/too large to process/ }, 'a text longer than the batch');
recorded_ok({ error_class => 'context_length', attempts => 1 }, 'a text longer than the batch: asked once');

$fake->script('smollm2', 'error-body-llamacpp-no-embeddings');
error_ok($s->run(q{SELECT llm_embed('hello', model => 'smollm2')}), { sqlstate => 'LG008', message => qr/--embeddings/ }, 'started without --embeddings');
recorded_ok({ error_class => 'invalid_request', attempts => 1 }, 'started without --embeddings: asked once');

# While the model is loaded

$fake->script('smollm2', 'error-body-llamacpp-loading', { body => '{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"here"}}]}' });
is($s->value(q{SELECT llm_complete('x')}), 'here', 'asked again once the model is there');

# Connections: llama.cpp closes each after a stream, although it says that it keeps it.

sub connections
{
	my ($options) = @_;
	$gw->sql('UPDATE llm_providers SET options = ' . literal($options));
	$fake->script('smollm2');
	my $before = $fake->stats->{connections_total};
	my $session = $gw->session;
	$session->run(q{SELECT llm_complete('x')}) for 1 .. 3;
	$session->quit;
	return $fake->stats->{connections_total} - $before;
}

is(connections('{"keep_connection": true}'), 1, 'keep_connection: one connection for all');
is(connections('{"keep_connection": false}'), 3, 'keep_connection false: one for each request');
$gw->sql(q{DELETE FROM llm_providers WHERE name = 'llamacpp'});
$gw->sql(q{SELECT llm_add_provider('llamacpp', models => '{smollm2}')});
is($s->value(q{SELECT options FROM llm_providers WHERE name = 'llamacpp'}), '{"keep_connection": false}', 'the preset keeps none');

$gw->no_crash_ok;
$fake->stop;
done_testing();
