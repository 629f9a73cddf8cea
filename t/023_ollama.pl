# Ollama's own API: what is sent, and what is made of answers, streamed and not, sound and broken.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use JSON::PP;
use Test::More;

use lib $FindBin::Bin;
use DialectTest qw(row chat request_of tool);
use LlmGateway qw($KEY error_ok literal);

my $json = JSON::PP->new->canonical->utf8(0);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $gw = LlmGateway->new(name => 'ollama');
my $fake = $gw->fake;
my $s = $gw->session;
DialectTest::use_session($gw, $s);
my $root = 'http://' . $fake->host . ':' . $fake->port;

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');
$gw->add_provider('ollama', $root, { kind => "'ollama'", api_key => 'NULL' });
$gw->add_provider('plain', "$root/proxy/", { kind => "'ollama'", options => q('{"stream": false}') });

# Prices by which a cost, in millionths of a dollar, says what the usage was.
my %prices = (input_price => 1, output_price => 100);

sub models
{
	my @names = @_;
	$gw->add_models($_, @names, {%prices}) for qw(ollama plain);
	return;
}


# What is sent

models('llama3.2:3b', 'other');

my $request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'ollama/llama3.2:3b')}), 'echo: Hello', 'a plain call') });
is($request->{path}, '/api/chat', 'path');
is_deeply(
	$request->{body},
	{ model => 'llama3.2:3b', messages => [ { role => 'user', content => 'Hello' } ], stream => $true, truncate => $false },
	'body of a plain call');
is($request->{headers}{authorization}, undef, 'no key');
is($request->{headers}{accept}, 'application/x-ndjson', 'accepts a stream');

$request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'plain/llama3.2:3b')}), 'echo: Hello', 'not streamed') });
is($request->{path}, '/proxy/api/chat', 'a path, and a slash at the end of base_url');
is($request->{body}{stream}, $false, 'it is told not to stream');
is($request->{headers}{authorization}, "Bearer $KEY", 'key');

my @tools = (tool('f', description => 'does f', strict => $true, parameters => { type => 'object', properties => { x => { type => 'array' } } }), tool('g'));
$request = request_of(
	sub {
		chat(
			[
				{ role => 'developer', content => 'Be brief.' },
				{ role => 'user',      content => [ { type => 'text', text => 'look:' }, { type => 'image_url', image_url => { url => 'data:image/png;base64,AAAA', detail => 'low' } }, { type => 'text', text => 'well?' } ] },
				{ role => 'assistant', content => 'hm', tool_calls => [ { id => 'a', type => 'function', function => { name => 'f', arguments => '{"x": [1, "ä"]}' } }, { id => 'b', type => 'function', function => { name => 'g', arguments => '' } } ] },
				{ role => 'tool',      tool_call_id => 'a', content => [ { type => 'text', text => 'one' } ] },
				{ role => 'tool',      tool_call_id => 'b', content => '' }
			],
			model         => 'ollama/other',
			system_prompt => 'Think.',
			max_tokens    => 77,
			temperature   => '0.5',
			params        => {
				top_p             => 0.9,
				top_k             => 40,
				stop              => 'END',
				user              => 'u-1',
				seed              => 1,
				presence_penalty  => 1,
				frequency_penalty => 2,
				min_p             => 0.1,
				verbosity         => 'low',
				reasoning_effort  => 'minimal',
				extra             => { options => { top_p => 0.8, repeat_penalty => 1.1 }, keep_alive => -1 }
			},
			tools       => \@tools,
			tool_choice => '"auto"');
	});
is($request->{status}, 200, 'the fake takes it');
is_deeply(
	$request->{body},
	{
		model    => 'other',
		messages => [
			{ role => 'system', content => "Think.\n\nBe brief." },
			{ role => 'user',   content => 'look:well?', images => ['AAAA'] },
			{
				role       => 'assistant',
				content    => 'hm',
				tool_calls => [ { id => 'a', function => { name => 'f', arguments => { x => [ 1, 'ä' ] } } }, { id => 'b', function => { name => 'g', arguments => {} } } ]
			},
			{ role => 'tool', content => 'one', tool_name => 'f', tool_call_id => 'a' },
			{ role => 'tool', content => '',    tool_name => 'g', tool_call_id => 'b' }
		],
		stream => $true,
		tools  => [
			{ type => 'function', function => { name => 'f', description => 'does f', parameters => { type => 'object', properties => { x => { type => 'array' } } } } },
			{ type => 'function', function => { name => 'g', parameters => { type => 'object', properties => {} } } }
		],
		think      => 'low',
		truncate   => $false,
		keep_alive => -1,
		options    => {
			num_predict       => 77,
			temperature       => 0.5,
			top_p             => 0.8,
			top_k             => 40,
			seed              => 1,
			presence_penalty  => 1,
			frequency_penalty => 2,
			min_p             => 0.1,
			stop              => ['END'],
			repeat_penalty    => 1.1
		}
	},
	'body of a conversation') or diag(explain($request->{body}));

for my $choice ([ '"none"', undef ], [ '"required"', [qw(f g)] ], [ $json->encode({ type => 'function', function => { name => 'g' } }), ['g'] ])
{
	$request = request_of(sub { chat('hi', model => 'ollama/other', tools => \@tools, tool_choice => $choice->[0]) });
	is_deeply($request->{body}{tools} && [ map { $_->{function}{name} } @{ $request->{body}{tools} } ], $choice->[1], "tool_choice $choice->[0]");
	ok(!exists $request->{body}{tool_choice}, 'which is no member');
}
$request = request_of(sub { chat('hi', model => 'ollama/other', params => { stop => [ 'a', 'b' ], reasoning_effort => 'none' }) });
is_deeply([ @{ $request->{body} }{qw(options think)} ], [ { stop => [ 'a', 'b' ] }, $false ], 'stop sequences; no thoughts');

my $schema = { type => 'object', properties => { city => { type => 'string' } }, required => ['city'] };
models('json');
for my $provider (qw(ollama plain))
{
	my $r;
	$request = request_of(sub { $r = chat('Rome', model => "$provider/json", schema => $schema) });
	is_deeply($request->{body}{format}, $schema, "$provider: a schema");
	is_deeply([ decode_json($r->{response}), $r->{finish_reason} ], [ { city => 'Rome' }, 'stop' ], "$provider: its answer");
}

error_ok(
	$s->run(q{SELECT llm_complete('hi', model => 'ollama/other', params => '{"extra": {"options": {"num_predict": 9}}}')}),
	{ sqlstate => '22023', detail => qr/may not set "num_predict" of "options"/ },
	'extra does not get around max_tokens');

# Options

sub options { $gw->sql('UPDATE llm_providers SET options = ' . literal($json->encode($_[0])) . " WHERE name = 'ollama'") }

options({ num_ctx => 8192, keep_alive => '10m', truncate => $true, headers => { 'X-Team' => 'db' }, extra => { options => { num_gpu => 1, seed => 3 } } });
$request = request_of(sub { chat('hi', model => 'ollama/other', max_tokens => 5) });
is($request->{headers}{'x-team'}, 'db', 'options.headers');
is_deeply([ @{ $request->{body} }{qw(options keep_alive truncate)} ], [ { num_ctx => 8192, num_predict => 5, num_gpu => 1, seed => 3 }, '10m', $true ], 'options');
$request = request_of(sub { chat('hi', model => 'ollama/other', params => { seed => 9, extra => { options => { num_ctx => 100 }, truncate => $false } }) });
is_deeply([ @{ $request->{body} }{qw(options truncate)} ], [ { num_ctx => 100, num_gpu => 1, seed => 3 }, $false ], 'the caller\'s extra wins');
options({ keep_alive => -1 });
is(request_of(sub { chat('hi', model => 'ollama/other') })->{body}{keep_alive}, -1, 'keep_alive as a number');
options({});

for my $bad ([ '{"num_ctx": 0}', qr/num_ctx.* must be from 1/ ], [ '{"keep_alive": true}', qr/keep_alive.* must be a string/ ], [ '{"keep_alive": 1.5}', qr/must be an integer/ ],
	[ '{"organization": "x"}', qr/unknown key "organization"/ ], [ '{"extra": {"options": {"num_predict": 1}}}', qr/may not set "num_predict"/ ])
{
	error_ok(
		$gw->admin->run('UPDATE llm_providers SET options = ' . literal($bad->[0]) . " WHERE name = 'ollama'"),
		{ sqlstate => '22023', message => $bad->[1] },
		"options $bad->[0]");
}

# A prompt that does not fit is an error, and never cut in silence.
options({ num_ctx => 5 });
my $r = row(q{llm_complete_detail(repeat('x', 100), model => 'ollama/other')});
is_deeply([ @{$r}{qw(error_class response)} ], [ 'context_length', undef ], 'too long');
options({ num_ctx => 5, truncate => $true });
$r = row(q{llm_complete_detail(repeat('x', 100), model => 'ollama/other')});
is_deeply([ @{$r}{qw(error_class input_tokens)} ], [ undef, 5 ], 'cut, if that is asked for');
options({});

SKIP:
{
	skip 'there is no llm_probe yet', 3 if $s->value(q{SELECT to_regproc('llm_probe') IS NULL}) eq 't';
	$request = request_of(sub { is($s->value(q{SELECT ok FROM llm_probe('ollama')}), 't', 'probe') });
	is("$request->{method} $request->{path}", 'GET /api/tags', 'of the list of models');
}

# Answers of the fake: model, class or undef, requests, pattern of the message or the answer.

my @cases = (
	[ 'echo',                undef,             1, qr/^echo: hi$/ ],
	[ 'length',              undef,             1, qr/^echo: hi$/, 'length' ],
	[ 'empty',               undef,             1, qr/^$/ ],
	[ 'no-usage',            undef,             1, qr/^echo: hi$/ ],
	[ 'no-done',             undef,             1, qr/^echo: hi$/ ],
	[ 'json-only',           undef,             1, qr/^echo: hi$/ ],
	[ 'one-byte',            undef,             1, qr/^echo: hi$/ ],
	[ 'chunked-odd',         undef,             1, qr/^echo: hi$/ ],
	[ 'half-close',          undef,             1, qr/^echo: hi$/ ],
	[ 'unicode-split',       undef,             1, qr/^naïve 日本語 / ],
	[ 'leak-key-in-answer',  undef,             1, qr/^your key is (\*+|None), is it not\?$/ ],
	[ 'content-policy-200',  'content_policy',  1, qr/content filter/ ],
	[ 'finish-load',         'malformed',       2, qr/loaded the model instead/ ],
	[ 'context-length',      'context_length',  1, qr/longer than the context length/ ],
	[ 'status-400',          'invalid_request', 1, qr/HTTP 400: invalid request/ ],
	[ 'status-401',          'auth',            1, qr/HTTP 401: unauthorized/ ],
	[ 'status-403',          'auth',            1, qr/HTTP 403/ ],
	[ 'status-404',          'not_found',       1, qr/HTTP 404: model 'status-404' not found/ ],
	[ 'status-429',          'rate_limit',      2, qr/HTTP 429: .*hourly usage limit/ ],
	[ 'status-500',          'server_error',    2, qr/HTTP 500: llama runner process has terminated/ ],
	[ 'status-503',          'overloaded',      2, qr/HTTP 503: server busy/ ],
	[ 'error-in-200',        'server_error',    2, qr/error in the answer: llama runner/ ],
	[ 'error-in-stream',     'server_error',    2, qr/error in the answer: llama runner/ ],
	[ 'html',                'malformed',       2, qr/not valid JSON/ ],
	[ 'html-502',            'server_error',    2, qr/HTTP 502 \(HTML body\)/ ],
	[ 'malformed',           'malformed',       2, qr/an event of the stream is|the answer is/ ],
	[ 'cut',                 'malformed',       2, qr/ended before it was complete|the answer is/ ],
	[ 'cut-short',           'network',         2 ],
	[ 'reset-mid',           'network',         2 ],
	[ 'reset-before',        'network',         2 ],
	[ 'close-before',        'network',         2 ],
	[ 'deep-100000',         'malformed',       2, qr/deep/ ],
	[ 'nul',                 'malformed',       1, qr/character/ ],
	[ 'bad-utf8',            'malformed',       2, qr/UTF-8/ ],
	[ 'tools-broken',        'malformed',       2, qr/not a JSON object/ ],
	[ 'error-body-string-error',        'not_found',       1, qr/model 'error-body-string-error' not found/ ],
	[ 'error-body-ollama-400-tools',    'invalid_request', 1, qr/does not support tools/ ],
	[ 'error-body-ollama-429-weekly',   'quota',           1, qr/weekly usage limit/ ],
	[ 'error-body-ollama-500-context',  'context_length',  1, qr/exceeds the context length/ ],
	[ 'error-body-ollama-500-memory',   'server_error',    2, qr/more system memory/ ],
	[ 'error-body-plain-text',          'overloaded',      2, qr/upstream connect error/ ],
	[ 'error-body-fastapi-detail',      'invalid_request', 1, qr/Bad Request/ ]);
models(map { $_->[0] } @cases);
for my $provider (qw(ollama plain))
{
	for my $case (@cases)
	{
		my ($model, $class, $requests, $pattern, $finish) = @$case;
		my $made = $gw->requests(sub { $r = row('llm_complete_detail(' . literal('hi') . ', model => ' . literal("$provider/$model") . ')') });
		is($r->{error_class}, $class, "$provider: $model: class") or diag(explain($r));
		is(scalar @$made, $requests, "$provider: $model: requests") if $requests;
		like($class ? $r->{error_message} : $r->{response}, $pattern, "$provider: $model: message") if $pattern;
		is($r->{finish_reason}, $class ? undef : $finish // 'stop', "$provider: $model: finish_reason");
	}
}

models('tools-2', 'tools-2+no-tool-ids', 'tools-and-text', 'tools-empty', 'no-finish', 'tools+no-finish', 'usage-1000-50-0-20', 'usage-0-50-0-0', 'empty+usage-10-0-0-0', 'counted');
for my $provider (qw(ollama plain))
{
	# thoughts are counted with the output, and no part of the answer
	$r = row("llm_complete_detail('hi', model => '$provider/usage-1000-50-0-20')");
	is_deeply([ @{$r}{qw(response input_tokens output_tokens)} ], [ 'echo: hi', 1000, 50 ], "$provider: usage");
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 1000 + 50 * 100, "$provider: cost");

	# a prompt from the cache is not counted: 'hi' is 1 token
	$r = row("llm_complete_detail('hi', model => '$provider/usage-0-50-0-0')");
	is_deeply([ @{$r}{qw(input_tokens output_tokens)} ], [ 1, 50 ], "$provider: an uncounted prompt");
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 1 + 50 * 100, "$provider: its cost");
	is($s->value('SELECT cost_source FROM llm_requests ORDER BY request_id DESC LIMIT 1'), 'estimate', "$provider: is an estimate");
	$r = row("llm_complete_detail('hi', model => '$provider/empty+usage-10-0-0-0')");
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 10, "$provider: an answer of nothing");

	is_deeply([ @{ row("llm_complete_detail('hi', model => '$provider/no-finish')") }{qw(response finish_reason)} ], [ 'echo: hi', undef ], "$provider: no done_reason");
	is(chat('hi', model => "$provider/tools+no-finish", tools => \@tools)->{finish_reason}, 'tool_calls', "$provider: no done_reason with tools");

	# tools, there and back
	my @both = map { tool($_, parameters => $schema) } qw(f g);
	my $question = { role => 'user', content => 'Rome' };
	for my $model ('tools-2', 'tools-2+no-tool-ids')
	{
		$r = chat([$question], model => "$provider/$model", tools => \@both);
		my $calls = $r->{tool_calls};
		is_deeply([ map { [ $_->{type}, $_->{function}{name}, decode_json($_->{function}{arguments}) ] } @$calls ],
			[ map { [ 'function', $_, { city => 'Rome' } ] } qw(f g) ], "$provider: $model: tool calls") or diag(explain($r));
		is_deeply([ @{$r}{qw(response finish_reason)} ], [ undef, 'tool_calls' ], "$provider: $model: and no text");
		like($calls->[1]{id}, $model =~ /no-tool-ids/ ? qr/^call_\d+_2$/ : qr/^call_fake/, "$provider: $model: id");
		my @results = map { { role => 'tool', tool_call_id => $_->{id}, content => "$_->{function}{name}!" } } @$calls;
		$r = chat([ $question, { role => 'assistant', content => undef, tool_calls => $calls }, @results ], model => "$provider/$model", tools => \@both);
		is($r->{response}, 'result: f!; g!', "$provider: $model: results") or diag(explain($r));
	}
	$r = chat('hi', model => "$provider/tools-and-text", tools => \@both);
	is($r->{response}, 'echo: hi', "$provider: text and a tool call");
	is(scalar @{ $r->{tool_calls} }, 1, "$provider: text and a tool call");
	$r = chat('hi', model => "$provider/tools-empty", tools => \@both);
	is($r->{tool_calls}[0]{function}{arguments}, '{}', "$provider: no arguments");
}

# Lines are lines, whatever they are called and wherever they are cut
for my $type ('application/json', 'application/ndjson', 'text/plain', undef)
{
	my @lines = map { $json->encode($_) } { message => { content => 'so' }, done => $false }, { message => { content => 'me' }, done => $true, done_reason => 'stop' };
	for my $end ("\n", "\r\n")
	{
		my $text = join '', map { "$_$end" } @lines;
		$fake->script('counted', { headers => { 'content-type' => $type }, chunks => [ split /(?<=\{)/, $text ] });
		is(row(q{llm_complete_detail('hi', model => 'ollama/counted')})->{response}, 'some', 'lines called ' . ($type // 'nothing'));
	}
	$fake->script('counted', { headers => { 'content-type' => $type }, body => JSON::PP->new->pretty->encode({ message => { content => 'one' }, done => $true }) });
	is(row(q{llm_complete_detail('hi', model => 'ollama/counted')})->{response}, 'one', 'a body of many lines called ' . ($type // 'nothing'));
}

# Bodies and lines as they might be sent by somebody who means no good.
$gw->sql('UPDATE llm_error_policies SET max_retries = 0');
my %ndjson = (headers => { 'content-type' => 'application/x-ndjson' });
sub line { return { message => {@_}, done => $true } }
for my $bad (
	'', '{}', '[]', 'null', '"x"', '7', { done => $true }, { message => 'x', done => $true }, { message => [], done => $true },
	{ message => { content => 'x' } }, { message => { content => 'x' }, done => 'true' }, { message => { content => 'x' }, done => 1 },
	line(content => 7), line(content => ['x']), line(content => '', tool_calls => 'x'), line(content => '', tool_calls => [7]),
	line(content => '', tool_calls => [ {} ]), line(content => '', tool_calls => [ { function => { name => '' } } ]),
	line(content => '', tool_calls => [ { function => { name => 'f', arguments => [] } } ]),
	line(content => '', tool_calls => [ map { { function => { name => 'f' } } } 1 .. 129 ]),
	{ error => 'x' }, { error => { message => 'x' } }, { error => {} }, { %{ line(content => 'x') }, error => 'server busy' })
{
	my $body = ref $bad ? $json->encode($bad) : $bad;
	for my $streamed (0, 1)
	{
		$fake->script('counted', $streamed ? { chunks => ["$body\n"], %ndjson } : { body => $body });
		$r = row(q{llm_complete_detail('hi', model => 'ollama/counted')});
		ok(defined $r->{error_class}, ($streamed ? 'streamed: ' : 'body: ') . substr($body, 0, 80)) or diag(explain($r));
	}
}
for my $good (
	line(content => 'fine'), line(content => 'fine', tool_calls => []), line(content => 'fine', thinking => 'hm', images => undef),
	{ %{ line(content => 'fine') }, prompt_eval_count => -1, eval_count => 'x' },
	{ %{ line(content => 'fine') }, prompt_eval_count => 1e30, eval_count => 1 }, { %{ line(content => 'fine') }, done_reason => 7 }, { %{ line(content => 'fine') }, error => '' })
{
	my $body = $json->encode($good);
	for my $streamed (0, 1)
	{
		$fake->script('counted', $streamed ? { chunks => [$body], %ndjson, then => 'close' } : { body => $body });
		$r = row(q{llm_complete_detail('hi', model => 'ollama/counted')});
		is($r->{response}, 'fine', ($streamed ? 'streamed, without a line end: ' : 'body: ') . substr($body, 0, 80)) or diag(explain($r));
	}
}

# done is the end, whatever the connection does then; and no end is no answer
for my $then (qw(stall reset cut keep))
{
	$fake->script('counted', { chunks => [ map { $json->encode($_) . "\n" } { message => { content => 'some' }, done => $false }, { %{ line(content => ' more') }, done_reason => 'stop' } ], %ndjson, then => $then });
	$r = row(q{llm_complete_detail('hi', model => 'ollama/counted')});
	is_deeply([ @{$r}{qw(error_class response finish_reason)} ], [ undef, 'some more', 'stop' ], "done, then: $then") or diag(explain($r));
	cmp_ok($r->{latency_ms}, '<', 5000, 'at once') if $then eq 'stall';
}
$fake->script('counted', { chunks => [ $json->encode({ message => { content => 'some' }, done => $false }) . "\n" ], %ndjson, then => 'close' });
is(row(q{llm_complete_detail('hi', model => 'ollama/counted')})->{error_class}, 'malformed', 'no end');

# Embeddings

models('embed-short', 'embed-ragged', 'embed-nan', 'embed-text');
options({ num_ctx => 5 });
$request = request_of(sub { is($s->value(q{SELECT array_length(llm_embed('a black cat', model => 'ollama/other', dimensions => 3), 1)}), 3, 'an embedding') });
is($request->{path}, '/api/embed', 'path');
is_deeply($request->{body}, { model => 'other', input => ['a black cat'], dimensions => 3, truncate => $false, options => { num_ctx => 5 } }, 'body');
error_ok($s->run(q{SELECT llm_embed(repeat('x', 100), model => 'ollama/other')}), { sqlstate => 'LG007' }, 'too long');
for my $bad (qw(embed-short embed-ragged embed-nan embed-text))
{
	error_ok($s->run("SELECT llm_embed('a black cat', model => 'ollama/$bad')"), { sqlstate => 'LG010' }, $bad);
}

is($s->value(q{SELECT llm_complete('hi', model => 'ollama/other')}), 'echo: hi', 'the session goes on');
$gw->no_crash_ok;
done_testing();
