# Calls that succeed: what is sent, byte by byte, and what is made of the answers.
use strict;
use warnings;
use utf8;

use Encode qw(decode encode);
use FindBin;
use JSON::PP;
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok);

my $gw = LlmGateway->new(name => 'completion');
my $fake = $gw->fake;
my $s = $gw->session;

# how the limit of tokens is called, by the model's name
my @new_names = qw(gpt-5-mini o3-mini gpt-5 gpt-5.4 gpt-6.1-terra openai/gpt-6-luna gpt-7 gpt-10-mini gpt-6o o1 o1-preview o5 o12-mini openai/o6);
my @old_names = qw(gpt-4.1 gpt-35-turbo gpt-35-turbo-16k gpt-3.5-turbo gpt-oss-20b gpt-20b other/gpt-7B o0 o o1b mo1 gpt- gpt-4o-mini o3x);

$gw->add_models('fake', @new_names, @old_names, qw(gpt-4o needs-max-completion-tokens o4-old
	  json-only unicode-split one-byte chunked-odd keepalive-comments no-usage no-done half-close
	  empty length tools tools-3 tokens-3));

# Runs it, and returns its only request.
sub request_of
{
	my ($sql) = @_;
	my $requests = $gw->requests(sub { $s->value($sql) });
	is(scalar @$requests, 1, 'one request');
	return $requests->[0];
}

# The body as it was sent, if no key is in it twice and there is no white space: the journal's is
# parsed, where the last of equal keys wins.
sub once_ok
{
	my ($request, $name) = @_;
	is($request->{body_bytes}, length(JSON::PP->new->utf8->canonical->encode($request->{body})), $name);
}

# A plain call

my $r;
my $request = request_of(q{SELECT llm_complete('Hello', model => 'gpt-4o')});
is_deeply(
	$request->{body},
	{
		model          => 'gpt-4o',
		messages       => [ { role => 'user', content => 'Hello' } ],
		stream         => JSON::PP::true,
		stream_options => { include_usage => JSON::PP::true }
	},
	'body of a plain call');
is($request->{method}, 'POST', 'method');
is($request->{path}, '/v1/chat/completions', 'path');
is($request->{headers}{authorization}, "Bearer $KEY", 'key');
is($request->{headers}{'content-type'}, 'application/json', 'content type');
is($request->{headers}{accept}, 'text/event-stream', 'accepts a stream');
like($request->{headers}{'user-agent'}, qr{^llm_gateway/\d+\.\d+}, 'user agent');
is($request->{headers}{expect}, undef, 'does not ask before it sends the body');
is($s->value(q{SELECT llm_complete('Hello', model => 'gpt-4o')}), 'echo: Hello', 'answer');
is($s->value(q{SELECT llm_complete('Hello', model => 'fake/gpt-4o')}), 'echo: Hello', 'provider/model');

# Arguments

$request = request_of(
	q{SELECT llm_complete('Hello', 'high', model => 'gpt-4o', system_prompt => 'Be brief.', max_tokens => 100,
		temperature => 0.5, params => '{"top_p": 0.25, "seed": 7, "stop": ["a", "b"], "user": "u1"}')});
is_deeply(
	$request->{body}{messages},
	[ { role => 'system', content => 'Be brief.' }, { role => 'user', content => 'Hello' } ],
	'system prompt');
is($request->{body}{max_tokens}, 100, 'max_tokens of an older model');
ok(!exists $request->{body}{max_completion_tokens}, 'and not its other name');
cmp_ok($request->{body}{temperature}, '==', 0.5, 'temperature');
cmp_ok($request->{body}{top_p}, '==', 0.25, 'params: top_p');
is($request->{body}{seed}, 7, 'params: seed');
is($request->{body}{user}, 'u1', 'params: user');
is_deeply($request->{body}{stop}, [ 'a', 'b' ], 'params: stop');
is(join(',', sort keys %{ $request->{body} }),
	'max_tokens,messages,model,seed,stop,stream,stream_options,temperature,top_p,user', 'and nothing else');

for my $model (@new_names)
{
	$request = request_of(qq{SELECT llm_complete('Hello', model => '$model', max_tokens => 9)});
	is($request->{body}{max_completion_tokens}, 9, "max_completion_tokens of $model");
	ok(!exists $request->{body}{max_tokens}, 'and not its other name');
}
for my $model (@old_names)
{
	$request = request_of(qq{SELECT llm_complete('Hello', model => '$model', max_tokens => 9)});
	is($request->{body}{max_tokens}, 9, "max_tokens of $model");
	ok(!exists $request->{body}{max_completion_tokens}, 'and not its other name');
}

$request = request_of(
	q{SELECT llm_complete('Hello', model => 'gpt-4o', temperature => 1, params =>
		'{"seed": 1, "top_p": 1, "extra": {"seed": 2, "temperature": 2, "top_k": 40, "metadata": {"a": null}}}')});
is($request->{body}{seed}, 2, 'extra overrides a param');
cmp_ok($request->{body}{temperature}, '==', 2, 'extra overrides an argument');
is($request->{body}{top_k}, 40, 'extra adds a key');
is_deeply($request->{body}{metadata}, { a => undef }, 'extra adds an object, with its nulls');

$request = request_of(
	q{SELECT llm_complete('Hello', model => 'gpt-4o', temperature => 1,
		params => '{"seed": 1, "extra": {"seed": 2, "temperature": 2}}')});
once_ok($request, 'what extra overrides is sent once');

$gw->sql(q{UPDATE llm_providers SET options = '{"extra": {"seed": 3, "store": false}, "headers": {"X-Team": "search"},
	"organization": "org-1", "project": "proj-1"}' WHERE name = 'fake'});
$request = request_of(q{SELECT llm_complete('Hello', model => 'gpt-4o', params => '{"seed": 1}')});
is($request->{body}{seed}, 3, q{the provider's extra overrides a param});
once_ok($request, 'once');
is($request->{body}{store}, JSON::PP::false, q{the provider's extra adds a key});
is($request->{headers}{'x-team'}, 'search', 'a header of the provider');
is($request->{headers}{'openai-organization'}, 'org-1', 'organization');
is($request->{headers}{'openai-project'}, 'proj-1', 'project');
$request = request_of(q{SELECT llm_complete('Hello', model => 'gpt-4o', params => '{"extra": {"seed": 4}}')});
is($request->{body}{seed}, 4, q{the caller's extra overrides the provider's});
once_ok($request, 'once');

# A model whose limit is known is not asked for more

$gw->add_models('fake', 'tokens-9', { max_output_tokens => 3 });
$request = request_of(q{SELECT llm_complete('Hello', model => 'tokens-9', max_tokens => 50)});
is($request->{body}{max_tokens}, 3, q{max_tokens beyond the model's limit});
like($s->run(q{SELECT llm_complete('Hello', model => 'tokens-9', max_tokens => 50)})->{err},
	qr/WARNING:  01004: the answer was cut by the output limit of model "tokens-9"/, 'whose limit it was');
like($s->run(q{SELECT llm_complete('Hello', model => 'tokens-9', max_tokens => 2)})->{err},
	qr/WARNING:  01004: the answer was cut by the call's max_tokens of 2/, q{or the call's});

# Without streaming, and with providers that do not stream

$gw->sql(q{UPDATE llm_providers SET options = '{"stream": false}' WHERE name = 'fake'});
$request = request_of(q{SELECT llm_complete('Hello', model => 'gpt-4o')});
is($request->{body}{stream}, JSON::PP::false, 'options.stream = false: not streamed');
ok(!exists $request->{body}{stream_options}, 'nor has it stream_options');
is($request->{headers}{accept}, 'application/json', 'accepts JSON');
is($s->value(q{SELECT llm_complete('Hello', model => 'gpt-4o')}), 'echo: Hello', 'answer without streaming');
is( $s->value(q{SELECT input_tokens || ',' || output_tokens FROM llm_complete_detail('Hello', model => 'gpt-4o')}),
	'2,3', 'usage without streaming');
is($s->value(q{SELECT llm_complete('Hello', model => 'unicode-split')}),
	encode('UTF-8', "na\x{ef}ve 日本語 \x{1F600}\x{1F468}\x{200D}\x{1F469}\x{200D}\x{1F467} end"),
	'multi-byte answer without streaming');
$gw->sql(q{UPDATE llm_providers SET options = NULL WHERE name = 'fake'});
is($s->value(q{SELECT llm_complete('Hello', model => 'json-only')}), 'echo: Hello',
	'a JSON answer to a streamed request');

# Connections

my $requests = $gw->requests(
	sub { $s->value(q{SELECT count(llm_complete('p' || g, model => 'gpt-4o')) FROM generate_series(1, 20) g}) });
my %connections = map { $_->{connection} => 1 } @$requests;
is(scalar @$requests, 20, '20 calls');
is(scalar keys %connections, 1, 'use one connection');

# Servers that do not know stream_options

my $plain = 0;
for my $refusal (
	{ error => { message => 'Unrecognized request argument supplied: stream_options', type => 'invalid_request_error' } },
	{ error => { message => 'json: unknown field "stream_options"', code => 400 } },
	{ object => 'error', message => { detail => [ { type => 'extra_forbidden', loc => [ 'body', 'stream_options' ], msg => 'Extra inputs are not permitted' } ] } })
{
	my $model = 'plain-' . ++$plain;
	$gw->add_models('fake', $model, { upstream_name => "'gpt-4o'" });
	$fake->script('gpt-4o', { status => ref $refusal->{error} ? 400 : 422, body => $refusal });
	my $asked = $gw->requests(
		sub {
			is($s->value("SELECT attempts || ' ' || response FROM llm_complete_detail('Hi', model => '$model')"), '2 echo: Hi', "$model: asked again without");
			is($s->value("SELECT attempts || ' ' || response FROM llm_complete_detail('Hi', model => '$model')"), '1 echo: Hi', "$model: and not again with it");
		});
	is(join(' ', map { exists $_->{body}{stream_options} ? 'with' : 'without' } @$asked), 'with without without', "$model: stream_options");
}
$fake->script('gpt-4o', { status => 400, body => { error => { message => 'The word stream_options is rude.' } } });
is($s->run(q{SELECT llm_complete('Hi', model => 'gpt-4o')})->{sqlstate}, 'LG008', 'a message that only mentions it is what it is');

# The name of the token limit

$requests = $gw->requests(
	sub { is($s->value(q{SELECT attempts || ' ' || response FROM llm_complete_detail('Hi', model => 'needs-max-completion-tokens', max_tokens => 50)}),
			'2 echo: Hi', 'max_completion_tokens where max_tokens is refused') });
is_deeply([ map { $_->{body}{max_tokens} // 'none' } @$requests ], [ 50, 'none' ], 'tried with max_tokens');
is_deeply([ map { $_->{body}{max_completion_tokens} // 'none' } @$requests ],
	[ 'none', 50 ], 'then with max_completion_tokens');
$request = request_of(q{SELECT llm_complete('Hi', model => 'needs-max-completion-tokens', max_tokens => 50)});
is($request->{body}{max_completion_tokens}, 50, 'which is remembered');

$fake->script('o4-old', { behaviour => 'needs-max-tokens', repeat => 'forever' });
$requests = $gw->requests(
	sub { is($s->value(q{SELECT llm_complete('Hi', model => 'o4-old', max_tokens => 50)}), 'echo: Hi',
			'max_tokens where max_completion_tokens is refused') });
is(scalar @$requests, 2, 'with two requests');
$request = request_of(q{SELECT llm_complete('Hi', model => 'o4-old', max_tokens => 50)});
is($request->{body}{max_tokens}, 50, 'which is remembered');

# Streams that arrive in odd ways

is($s->value(q{SELECT llm_complete('Hello', model => 'unicode-split')}),
	encode('UTF-8', "na\x{ef}ve 日本語 \x{1F600}\x{1F468}\x{200D}\x{1F469}\x{200D}\x{1F467} end"),
	'unicode-split');
for my $model (qw(one-byte chunked-odd keepalive-comments no-usage no-done half-close))
{
	is( $s->value(qq{SELECT finish_reason || ' ' || response FROM llm_complete_detail('How are you?', model => '$model')}),
		'stop echo: How are you?', $model);
}
is($s->value(q{SELECT llm_complete('Hello', model => 'empty') = ''}), 't', 'an empty answer is no NULL');

# Usage and cost

$gw->add_models('fake', 'usage-1000-500-200-100',
	{ input_price => '2.5', output_price => '10', cached_input_price => '1.25' });
$gw->add_models('fake', 'usage-3-1-0-0', { input_price => '0.05', output_price => '0.4' });
$gw->add_models('fake', 'usage-7-0-0-0', { input_price => '0', output_price => '0' });
$gw->add_models('fake', 'usage-9-9-0-0');
is( $s->value(
		q{SELECT input_tokens, cached_input_tokens, output_tokens, reasoning_tokens, cost_usd = 0.00725
		FROM llm_complete_detail('x', model => 'usage-1000-500-200-100')}),
	'1000|200|500|100|t', 'usage, and its cost: 800 * 2.5 + 200 * 1.25 + 500 * 10 millionths');
$fake->script('usage-1000-500-200-100', { body => { choices => [ { index => 0, message => { content => 'x' }, finish_reason => 'stop' } ],
	usage => { prompt_tokens => 1000, completion_tokens => 500, total_tokens => 1500, prompt_cache_hit_tokens => 200, prompt_cache_miss_tokens => 800 } } });
is( $s->value(
		q{SELECT input_tokens, cached_input_tokens, output_tokens, cost_usd = 0.00725
		FROM llm_complete_detail('x', model => 'usage-1000-500-200-100')}),
	'1000|200|500|t', 'what was cached, in the words of DeepSeek');
is($s->value(q{SELECT cost_usd = 0.00000055 FROM llm_complete_detail('x', model => 'usage-3-1-0-0')}),
	't', 'cost below a millionth');
is($s->value(q{SELECT cost_usd = 0 FROM llm_complete_detail('x', model => 'usage-7-0-0-0')}),
	't', 'a free model');
is($s->value(q{SELECT input_tokens, cost_usd IS NULL FROM llm_complete_detail('x', model => 'usage-9-9-0-0')}),
	'9|t', 'a model without prices');
is( $s->value(
		q{SELECT estimated_usd = (25 * 0.05 + 10 * 0.4) / 1000000 FROM llm_complete_detail(repeat('x', 100), model => 'usage-3-1-0-0', max_tokens => 10)}),
	't', 'the estimate: characters / 4, and max_tokens');

# llm_complete_detail

is( $s->value(
		q{SELECT response, provider, model, model_tier, task, priority, finish_reason, attempts, fallback, cached, degraded, notice,
			tool_calls, error_class, error_message
		FROM llm_complete_detail('Hello', 'low', model => 'gpt-4o', task => 'coding')}),
	'echo: Hello|fake|gpt-4o|standard|coding|low|stop|1|f|f|||||',
	'detail of an answer');
is( $s->value(
		q{SELECT latency_ms >= ttft_ms AND ttft_ms >= 0, request_id > 0, pg_typeof(request_id) FROM llm_complete_detail('Hello', model => 'gpt-4o')}),
	't|t|bigint', 'times and request id');
is($s->value(q{SELECT count(*) FROM llm_complete_detail(NULL, model => 'gpt-4o')}), '0', 'no row for NULL');
is($s->value(q{SELECT llm_complete(NULL, model => 'gpt-4o') IS NULL}), 't', 'NULL for NULL');
$fake->script('gpt-4o', { delay_ms => 300 });
is($s->value(q{SELECT latency_ms BETWEEN 300 AND 60000 FROM llm_complete_detail('Hello', model => 'gpt-4o')}),
	't', 'latency');
$gw->sql(q{UPDATE llm_models SET upstream_name = 'vendor/real-name', tier = 'premium' WHERE name = 'gpt-4o'});
$requests = $gw->requests(
	sub { is($s->value(q{SELECT model, model_tier FROM llm_complete_detail('Hello', model => 'gpt-4o')}),
			'gpt-4o|premium', 'model and tier as configured') });
is($requests->[0]{body}{model}, 'vendor/real-name', 'upstream_name is what the provider is asked for');
$gw->sql(q{UPDATE llm_models SET upstream_name = NULL, tier = 'standard' WHERE name = 'gpt-4o'});

# Cut by a token limit

$r = $s->run(q{SELECT llm_complete(repeat('word ', 50), model => 'gpt-4o', max_tokens => 5)});
is($r->{out}, 'echo: word word word', 'an answer cut by max_tokens is returned');
is($r->{notices}[0]{severity} . ' ' . $r->{notices}[0]{sqlstate}, 'WARNING 01004', 'with a warning');
like($r->{notices}[0]{message}, qr/max_tokens of 5/, q{which says that the limit was the caller's});
$r = $s->run(q{SELECT llm_complete('Hello', model => 'length')});
is($r->{out}, 'echo: Hello', q{an answer cut by the provider's limit is returned});
is($r->{notices}[0]{sqlstate}, '01004', 'with a warning');
like($r->{notices}[0]{message}, qr/output limit of model "length" of provider "fake"/, q{which says whose});
$r = $s->run(q{SELECT finish_reason FROM llm_complete_detail('Hello', model => 'length')});
is($r->{out} . ' ' . $r->{notices}[0]{sqlstate}, 'length 01004', 'llm_complete_detail likewise');

# Tool calls

is( $s->value(
		q{SELECT finish_reason, jsonb_array_length(tool_calls), tool_calls->0->>'type', tool_calls->0->'function'->>'name',
			(tool_calls->0->'function'->>'arguments')::jsonb->>'location', tool_calls->0->>'id' LIKE 'call_%'
		FROM llm_complete_detail('Weather?', model => 'tools')}),
	'tool_calls|1|function|get_weather|Paris|t', 'a tool call');
is( $s->value(
		q{SELECT string_agg((c->'function'->>'arguments')::jsonb->>'index', ',')
		FROM llm_complete_detail('Weather?', model => 'tools-3'), jsonb_array_elements(tool_calls) c}),
	'0,1,2', 'parallel tool calls, in order');
is($s->value(q{SELECT llm_complete('Weather?', model => 'tools') = ''}), 't', 'and no text');

# A large prompt

$requests = $gw->requests(
	sub { is($s->value(q{SELECT llm_complete(repeat('0123456789', 1024 * 1024), model => 'tokens-3')}),
			'wordwordword', 'a prompt of 10 MB') });
cmp_ok($requests->[0]{body_bytes}, '>', 10 * 1024 * 1024, 'arrives whole');
cmp_ok($requests->[0]{body_bytes}, '<', 10 * 1024 * 1024 + 1000, 'and once');

# Encodings

my $text = "na\x{ef}ve \x{e9}t\x{e9}";
is($s->value(encode('UTF-8', "SELECT llm_complete('$text \x{65E5}\x{1F600}', model => 'gpt-4o')")),
	encode('UTF-8', "echo: $text \x{65E5}\x{1F600}"), 'UTF8 database');
is($fake->last_request->{body}{messages}[0]{content}, "$text \x{65E5}\x{1F600}", 'is sent as UTF-8');
$request = request_of(q{SELECT llm_complete(E'quote " backslash \\\\ tab \t newline \n del \x7f \x01', model => 'gpt-4o')});
is($request->{body}{messages}[0]{content}, qq{quote " backslash \\ tab \t newline \n del \x7f \x01}, 'escapes');

for my $encoding (qw(LATIN1 SQL_ASCII))
{
	my $database = lc $encoding;
	$gw->sql("CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	$gw->set_up($database);
	$gw->add_models('fake', 'gpt-4o', 'unicode-split', 'status-400', { database => $database });
	my $other = $gw->session($database);
	is( decode('UTF-8', $other->value(encode('UTF-8', "SELECT llm_complete('$text', model => 'gpt-4o', system_prompt => 'pr\x{e9}cis')"))),
		"echo: $text", "$encoding database: answer");
	my $messages = $fake->last_request->{body}{messages};
	is($messages->[1]{content}, $text, "$encoding database: prompt is sent as UTF-8");
	is($messages->[0]{content}, "pr\x{e9}cis", "$encoding database: so is the system prompt");

	if ($encoding eq 'LATIN1')
	{
		is($other->value(encode('UTF-8', "SELECT length(llm_complete('$text', model => 'gpt-4o'))")),
			6 + length $text, 'LATIN1 database: answer in its own encoding');
		my $seen = $gw->requests(
			sub { $r = $other->run(q{SELECT llm_complete('x', model => 'unicode-split')}) });
		error_ok($r, { sqlstate => 'LG010', message => qr/character that the database.* cannot hold/ },
			'LATIN1 database: an answer that does not fit');
		is(scalar @$seen, 1, 'is not paid for twice');
	}
	else
	{
		is(decode('UTF-8', $other->value(q{SELECT llm_complete('x', model => 'unicode-split')})),
			"na\x{ef}ve 日本語 \x{1F600}\x{1F468}\x{200D}\x{1F469}\x{200D}\x{1F467} end",
			'SQL_ASCII database: an answer is UTF-8');
		my $seen = $gw->requests(
			sub { $r = $other->run(q{SELECT llm_complete(E'before \xff after', model => 'gpt-4o')}) });
		error_ok($r, { sqlstate => 'LG008', message => qr/not valid UTF-8/ }, 'SQL_ASCII database: a prompt that is not UTF-8');
		is(scalar @$seen, 0, 'is not sent');
	}
	is($other->value(q{SELECT llm_complete('x', model => 'gpt-4o')}), 'echo: x', "$encoding database: the next call works");
}

is($fake->stats->{internal_errors}, 0, 'the fake itself is sound');
done_testing();
