# Google's Gemini API: what is sent, and what is made of answers, streamed and not, sound and
# broken.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::Bin;
use DialectTest qw(row chat request_of tool);
use LlmGateway qw($KEY error_ok literal);

my $json = JSON::PP->new->canonical->utf8(0);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $gw = LlmGateway->new(name => 'gemini');
my $fake = $gw->fake;
my $s = $gw->session;
DialectTest::use_session($gw, $s);
my $root = 'http://' . $fake->host . ':' . $fake->port;

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');
$gw->add_provider('gemini', $root, { kind => "'gemini'" });
$gw->add_provider('plain', "$root/proxy/", { kind => "'gemini'", options => q('{"stream": false}') });

# Prices by which a cost, in millionths of a dollar, says what the usage was.
my %prices = (input_price => 1, output_price => 100, cached_input_price => 10_000);

sub models
{
	my @names = @_;
	$gw->add_models($_, @names, {%prices}) for qw(gemini plain);
	return;
}

sub user { return { role => 'user', parts => [ map { ref $_ ? $_ : { text => $_ } } @_ ] } }
sub model { return { role => 'model', parts => [ map { ref $_ ? $_ : { text => $_ } } @_ ] } }

# What is sent

models('gemini-2.5-flash', 'gemini-3.5-flash', 'gemini-flash-latest', 'models/gemini-2.5-pro', 'tunedModels/my-own', '../a b/ü?x#y%z', 'other');

my $request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'gemini/gemini-2.5-flash')}), 'echo: Hello', 'a plain call') });
is($request->{path}, '/v1beta/models/gemini-2.5-flash:streamGenerateContent', 'path');
is($request->{query}, 'alt=sse', 'query');
is_deeply($request->{body}, { contents => [ user('Hello') ] }, 'body of a plain call');
is($request->{headers}{'x-goog-api-key'}, $KEY, 'key');
is($request->{headers}{authorization}, undef, 'no other key');
is($request->{headers}{accept}, 'text/event-stream', 'accepts a stream');

$request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'plain/gemini-2.5-flash')}), 'echo: Hello', 'not streamed') });
is($request->{path}, '/proxy/v1beta/models/gemini-2.5-flash:generateContent', 'a path, and a slash at the end of base_url');
is($request->{query}, '', 'no query');

for my $model ([ 'models/gemini-2.5-pro', 'models/gemini-2.5-pro' ], [ 'tunedModels/my-own', 'tunedModels/my-own' ],
	[ '../a b/ü?x#y%z', 'models/..%2Fa%20b%2F%C3%BC%3Fx%23y%25z' ])
{
	$request = request_of(sub { row(encode('UTF-8', q{llm_complete_detail('Hello', model => } . literal("gemini/$model->[0]") . ')')) }) if $model->[0] !~ /ü/;
	$request = request_of(sub { row(q{llm_complete_detail('Hello', model => } . literal("gemini/$model->[0]") . ')') }) if $model->[0] =~ /ü/;
	is($request->{path}, "/v1beta/$model->[1]:streamGenerateContent", "model $model->[1]");
}

my @tools = (
	tool('f', description => 'does f', strict => $true, parameters => { type => 'object', additionalProperties => $false, properties => { x => { type => 'array' } } }),
	tool('g'));
$request = request_of(
	sub {
		chat(
			[
				{ role => 'system',    content => 'Be brief.' },
				{ role => 'user',      content => [ { type => 'text', text => '' }, { type => 'text', text => 'look:' } ] },
				{ role => 'user',      content => [ { type => 'image_url', image_url => { url => 'data:image/png;base64,AAAA', detail => 'low' } } ] },
				{ role => 'assistant', content => 'hm', tool_calls => [ { id => 'call_7_1', type => 'function', function => { name => 'f', arguments => '{"x": [1, "ä"]}' } }, { id => 'call_7_2', type => 'function', function => { name => 'f', arguments => '' } } ] },
				{ role => 'tool',      tool_call_id => 'call_7_2', content => '' },
				{ role => 'tool',      tool_call_id => 'call_7_1', content => [ { type => 'text', text => '{"a":' }, { type => 'text', text => ' 1}' } ] },
				{ role => 'user',      content => 'well?' },
				{ role => 'developer', content => 'In English.' }
			],
			model         => 'gemini/gemini-2.5-flash',
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
				reasoning_effort  => 'low',
				extra             => {
					safetySettings   => [ { category => 'HARM_CATEGORY_HARASSMENT', threshold => 'BLOCK_NONE' } ],
					generationConfig => { topP => 0.8, mediaResolution => 'MEDIA_RESOLUTION_LOW' }
				}
			},
			tools       => \@tools,
			tool_choice => { type => 'function', function => { name => 'g' } });
	});
is($request->{status}, 200, 'the fake takes it');
is_deeply(
	$request->{body},
	{
		systemInstruction => { parts => [ { text => "Think.\n\nBe brief.\n\nIn English." } ] },
		contents          => [
			user('look:', { inlineData => { mimeType => 'image/png', data => 'AAAA' } }),
			model('hm', { functionCall => { name => 'f', args => { x => [ 1, 'ä' ] } } }, { functionCall => { name => 'f', args => {} } }),
			user({ functionResponse => { name => 'f', response => { a => 1 } } }, { functionResponse => { name => 'f', response => { output => '' } } }, 'well?')
		],
		tools => [
			{
				functionDeclarations => [
					{ name => 'f', description => 'does f', parametersJsonSchema => { type => 'object', additionalProperties => $false, properties => { x => { type => 'array' } } } },
					{ name => 'g' }
				]
			}
		],
		toolConfig       => { functionCallingConfig => { mode => 'ANY', allowedFunctionNames => ['g'] } },
		generationConfig => {
			maxOutputTokens  => 77,
			temperature      => 0.5,
			topP             => 0.8,
			topK             => 40,
			seed             => 1,
			presencePenalty  => 1,
			frequencyPenalty => 2,
			stopSequences    => ['END'],
			thinkingConfig   => { thinkingBudget => 1024 },
			mediaResolution  => 'MEDIA_RESOLUTION_LOW'
		},
		safetySettings => [ { category => 'HARM_CATEGORY_HARASSMENT', threshold => 'BLOCK_NONE' } ]
	},
	'body of a conversation') or diag(explain($request->{body}));

for my $choice ([ 'auto', 'AUTO' ], [ 'none', 'NONE' ], [ 'required', 'ANY' ])
{
	$request = request_of(sub { chat('hi', model => 'gemini/other', tools => \@tools, tool_choice => "\"$choice->[0]\"") });
	is_deeply($request->{body}{toolConfig}, { functionCallingConfig => { mode => $choice->[1] } }, "tool_choice $choice->[0]");
}
$request = request_of(sub { chat('hi', model => 'gemini/other', params => { stop => [ 'a', 'b' ], top_k => -1 }) });
is_deeply($request->{body}{generationConfig}, { stopSequences => [ 'a', 'b' ] }, 'stop sequences; top_k -1 is none');

my $schema = { type => 'object', properties => { city => { type => 'string' } }, required => ['city'], additionalProperties => $false, '$schema' => 'https://json-schema.org/draft/2020-12/schema' };
for my $provider (qw(gemini plain))
{
	my $r;
	models('json') if $provider eq 'gemini';
	$request = request_of(sub { $r = chat('Rome', model => "$provider/json", schema => $schema) });
	is_deeply($request->{body}{generationConfig}, { responseMimeType => 'application/json', responseJsonSchema => $schema }, "$provider: a schema");
	is_deeply([ decode_json($r->{response}), $r->{finish_reason} ], [ { city => 'Rome' }, 'stop' ], "$provider: its answer");
}

for my $effort ([ 'gemini-2.5-flash', 'none', { thinkingBudget => 0 } ], [ 'gemini-2.5-flash', 'high', { thinkingBudget => 24576 } ],
	[ 'gemini-3.5-flash', 'none', { thinkingLevel => 'minimal' } ], [ 'gemini-flash-latest', 'medium', { thinkingLevel => 'medium' } ],
	[ 'gemini-3.5-flash', 'extreme', { thinkingLevel => 'extreme' } ])
{
	$request = request_of(sub { chat('hi', model => "gemini/$effort->[0]", params => { reasoning_effort => $effort->[1] }) });
	is_deeply($request->{body}{generationConfig}, { thinkingConfig => $effort->[2] }, "$effort->[0]: reasoning_effort $effort->[1]");
}

# What may not be set beside max_tokens
for my $extra ({ contents => [] }, { generation_config => {} }, { generationConfig => { maxOutputTokens => 5 } }, { generationConfig => { candidate_count => 2 } })
{
	error_ok(
		$s->run(q{SELECT llm_complete('hi', model => 'gemini/other', params => } . literal($json->encode({ extra => $extra })) . ')'),
		{ sqlstate => '22023', detail => qr/may not set/ },
		'extra ' . $json->encode($extra));
}

# Options

sub options { $gw->sql('UPDATE llm_providers SET options = ' . literal($json->encode($_[0])) . " WHERE name = 'gemini'") }

options({ headers => { 'X-Team' => 'db' }, extra => { generationConfig => { temperature => 0.1, topK => 3 }, serviceTier => 'flex' } });
$request = request_of(sub { chat('hi', model => 'gemini/other', max_tokens => 9, temperature => '0.7', params => { extra => { generationConfig => { topK => 4 } } }) });
is($request->{headers}{'x-team'}, 'db', 'options.headers');
is_deeply($request->{body}, { contents => [ user('hi') ], generationConfig => { maxOutputTokens => 9, temperature => 0.1, topK => 4 }, serviceTier => 'flex' },
	'options.extra, and the caller\'s over it');
options({});

for my $bad ([ '{"stream": 1}', qr/must be true or false/ ], [ '{"organization": "x"}', qr/unknown key "organization"/ ],
	[ '{"headers": {"X-Goog-Api-Key": "k"}}', qr/may not set/ ], [ '{"extra": {"generationConfig": {"maxOutputTokens": 1}}}', qr/may not set "maxOutputTokens"/ ])
{
	error_ok(
		$gw->admin->run('UPDATE llm_providers SET options = ' . literal($bad->[0]) . " WHERE name = 'gemini'"),
		{ sqlstate => '22023', message => $bad->[1] },
		"options $bad->[0]");
}

for my $base ([ "$root/v1beta", '/v1beta' ], [ "$root/v1beta/", '/v1beta' ], [ "$root/gemini/v1", '/gemini/v1' ], [ "$root/v1alpha", '/v1alpha' ], [ "$root//", '/v1beta' ])
{
	$gw->sql('UPDATE llm_providers SET base_url = ' . literal($base->[0]) . " WHERE name = 'gemini'");
	is(request_of(sub { chat('hi', model => 'gemini/other') })->{path}, "$base->[1]/models/other:streamGenerateContent", "base_url $base->[0]");
}
$gw->sql('UPDATE llm_providers SET base_url = ' . literal($root) . " WHERE name = 'gemini'");

SKIP:
{
	skip 'there is no llm_probe yet', 4 if $s->value(q{SELECT to_regproc('llm_probe') IS NULL}) eq 't';
	$request = request_of(sub { is($s->value(q{SELECT ok FROM llm_probe('gemini')}), 't', 'probe') });
	is("$request->{method} $request->{path}", 'GET /v1beta/models', 'of the list of models');
	is($request->{headers}{'x-goog-api-key'}, $KEY, 'with the key');
}

# Answers of the fake: model, class or undef, requests, pattern of the message or the answer.

my @cases = (
	[ 'echo',                undef,             1, qr/^echo: hi$/ ],
	[ 'length',              undef,             1, qr/^echo: hi$/, 'length' ],
	[ 'empty',               undef,             1, qr/^$/ ],
	[ 'no-usage',            undef,             1, qr/^echo: hi$/ ],
	[ 'no-done',             undef,             1, qr/^echo: hi$/ ],
	[ 'stop-everywhere',     undef,             1, qr/^echo: hi$/ ],
	[ 'json-only',           undef,             1, qr/^echo: hi$/ ],
	[ 'one-byte',            undef,             1, qr/^echo: hi$/ ],
	[ 'chunked-odd',         undef,             1, qr/^echo: hi$/ ],
	[ 'half-close',          undef,             1, qr/^echo: hi$/ ],
	[ 'keepalive-comments',  undef,             1, qr/^echo: hi$/ ],
	[ 'unicode-split',       undef,             1, qr/^naïve 日本語 / ],
	[ 'leak-key-in-answer',  undef,             1, qr/^your key is \*+, is it not\?$/ ],
	[ 'refusal',             'content_policy',  1, qr/finishReason PROHIBITED_CONTENT: I'm sorry, I can't assist/ ],
	[ 'content-policy-200',  'content_policy',  1, qr/finishReason SAFETY/ ],
	[ 'content-policy',      'content_policy',  1, qr/refuses the prompt .*PROHIBITED_CONTENT/ ],
	[ 'prompt-blocked',      'content_policy',  1, qr/refuses the prompt .*PROHIBITED_CONTENT/ ],
	[ 'finish-RECITATION',   'content_policy',  1, qr/finishReason RECITATION/ ],
	[ 'finish-BLOCKLIST',    'content_policy',  1, qr/finishReason BLOCKLIST/ ],
	[ 'finish-SPII',         'content_policy',  1, qr/finishReason SPII/ ],
	[ 'finish-IMAGE_SAFETY', 'content_policy',  1, qr/finishReason IMAGE_SAFETY/ ],
	[ 'finish-LANGUAGE',     'invalid_request', 1, qr/finishReason LANGUAGE/ ],
	[ 'finish-OTHER',        'server_error',    2, qr/finishReason OTHER/ ],
	[ 'finish-MALFORMED_FUNCTION_CALL', 'malformed', 2, qr/finishReason MALFORMED_FUNCTION_CALL/ ],
	[ 'finish-NEW_WORD',     'malformed',       2, qr/finishReason NEW_WORD/ ],
	[ 'finish-FINISH_REASON_UNSPECIFIED', 'malformed', 2, qr/no finishReason|ended before it was complete/ ],
	[ 'context-length',      'context_length',  1, qr/exceeds the maximum number of tokens/ ],
	[ 'status-400',          'invalid_request', 1, qr/HTTP 400: Request contains an invalid argument/ ],
	[ 'status-401',          'auth',            1, qr/HTTP 400: API key not valid/ ],
	[ 'status-403',          'auth',            1, qr/HTTP 403/ ],
	[ 'status-404',          'not_found',       1, qr/HTTP 404: models\/status-404 is not found/ ],
	[ 'status-429',          'rate_limit',      2, qr/HTTP 429: Resource has been exhausted/ ],
	[ 'status-499',          'server_error',    2, qr/HTTP 499: The operation was cancelled/ ],
	[ 'status-500',          'server_error',    2, qr/HTTP 500: An internal error has occurred/ ],
	[ 'status-503',          'overloaded',      2, qr/HTTP 503: The model is overloaded/ ],
	[ 'status-504',          'timeout',         0, qr/HTTP 504: Deadline expired/ ],
	[ 'html-504',            'server_error',    2, qr/HTTP 504 \(HTML body\)/ ],
	[ 'leak-key',            'auth',            1, qr/API key not valid.* \*+$/ ],
	[ 'error-in-200',        'server_error',    2, qr/error 500 in the answer: An internal error/ ],
	[ 'error-in-stream',     'server_error',    2, qr/error 500 in the answer: An internal error/ ],
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
	[ 'tools-broken',        'malformed',       2, qr/args are no object/ ],
	[ 'redirect',            'not_found',       1, qr/redirect not followed/ ],
	[ 'error-body-gemini-400-key',      'auth',       1, qr/API key not valid/ ],
	[ 'error-body-gemini-400-location', 'auth',       1, qr/User location is not supported/ ],
	[ 'error-body-gemini-429-minute',   'rate_limit', 2, qr/exceeded your current quota/ ],
	[ 'error-body-gemini-429-day',      'quota',      1, qr/exceeded your current quota/ ],
	[ 'error-body-gemini-429-zero',     'quota',      1, qr/limit: 0/ ],
	[ 'error-body-gemini-429-plan',     'quota',      1, qr/exceeded your current quota/ ],
	[ 'error-body-gemini-403-billing',  'quota',      1, qr/requires billing to be enabled/ ],
	[ 'error-body-gemini-429-credit',   'quota',      1, qr/prepayment credits are depleted/ ],
	[ 'error-body-gemini-503-array',    'overloaded', 2, qr/HTTP 503: The model is overloaded/ ],
	[ 'error-body-plain-text',          'overloaded', 2, qr/upstream connect error/ ],
	[ 'error-body-fastapi-detail',      'invalid_request', 1, qr/Bad Request/ ]);
models(grep { $_ ne 'json' } map { $_->[0] } @cases);
for my $provider (qw(gemini plain))
{
	for my $case (@cases)
	{
		my ($model, $class, $requests, $pattern, $finish) = @$case;
		my $r;
		my $made = $gw->requests(sub { $r = row('llm_complete_detail(' . literal('hi') . ', model => ' . literal("$provider/$model") . ')') });
		is($r->{error_class}, $class, "$provider: $model: class") or diag(explain($r));
		is(scalar @$made, $requests, "$provider: $model: requests") if $requests;
		like($class ? $r->{error_message} : $r->{response}, $pattern, "$provider: $model: message") if $pattern;
		is($r->{finish_reason}, $class ? undef : $finish // 'stop', "$provider: $model: finish_reason");
	}
}

models('bare-error-in-stream', 'stall', 'tools', 'tools-2', 'tools-and-text', 'tools-empty', 'usage-1000-50-300-20', 'limited');

# Google ends a stream that fails with bare JSON, which is no event, in one line or several, in an array or not.
my $failed = { error => { code => 503, message => 'The model is overloaded.', status => 'UNAVAILABLE' } };
my $pretty = JSON::PP->new->canonical->pretty;
is(row(q{llm_complete_detail('hi', model => 'gemini/bare-error-in-stream')})->{error_class}, 'overloaded', 'a bare error ends the stream');
for my $bare (map { my $end = $_; map { $_ . $end } $json->encode($failed), $json->encode([$failed]), $pretty->encode($failed), $pretty->encode([$failed]) =~ s/\n/\r\n/gr } "", "\n", "\r\n\r\n")
{
	my $piece = 'data: ' . $json->encode({ candidates => [ { content => model('Hel'), index => 0 } ] }) . "\r\n\r\n";
	my $half = int(length($bare) / 2);
	for my $chunks ([ $piece, $bare ], [$bare], [ $piece, ": ping\n\n", substr($bare, 0, $half), substr($bare, $half) ])
	{
		$fake->script('bare-error-in-stream', { chunks => $chunks, repeat => 2 });
		my $r = row(q{llm_complete_detail('hi', model => 'gemini/bare-error-in-stream')});
		is("$r->{error_class} $r->{error_message}", 'overloaded all 2 attempts failed, the last one: model "bare-error-in-stream" of provider "gemini": error 503 in the answer: The model is overloaded.', 'bare: ' . join '|', @$chunks);
	}
}
$fake->script('bare-error-in-stream');

for my $provider (qw(gemini plain))
{
	# usage: 1000 input, of them 300 from the cache; 50 output, of them 20 thoughts
	my $r = row("llm_complete_detail('hi', model => '$provider/usage-1000-50-300-20')");
	is_deeply([ @{$r}{qw(response input_tokens cached_input_tokens output_tokens reasoning_tokens)} ], [ 'echo: hi', 1000, 300, 50, 20 ], "$provider: usage");
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 700 + 50 * 100 + 300 * 10_000, "$provider: cost");

	# tools, there and back
	my $parameters = { type => 'object', properties => { city => { type => 'string' } } };
	my @both = map { tool($_, parameters => $parameters) } qw(f g);
	my $question = { role => 'user', content => 'Rome' };
	for my $model ('tools-2', 'gemini-3.5-flash')
	{
		my $signed = $model ne 'tools-2';
		$fake->script($model, 'tools-2', 'tools-2', 'tools-2') if $signed;
		$r = chat([$question], model => "$provider/$model", tools => \@both);
		my $calls = $r->{tool_calls};
		is_deeply([ map { [ $_->{type}, $_->{function}{name}, decode_json($_->{function}{arguments}) ] } @$calls ],
			[ map { [ 'function', $_, { city => 'Rome' } ] } qw(f g) ], "$provider: $model: tool calls") or diag(explain($r));
		is_deeply([ @{$r}{qw(response finish_reason)} ], [ undef, 'tool_calls' ], "$provider: $model: and no text");
		like($calls->[0]{id}, $signed ? qr/^call_fake/ : qr/^call_\d+_1$/, "$provider: $model: id");
		is(exists $calls->[0]{extra_content}, $signed, "$provider: $model: signature, if there is one");

		my @results = map { { role => 'tool', tool_call_id => $_->{id}, content => "$_->{function}{name}!" } } reverse @$calls;
		my $turn = { role => 'assistant', content => undef, tool_calls => $calls };
		$request = request_of(sub { $r = chat([ $question, $turn, @results ], model => "$provider/$model", tools => \@both) });
		is($r->{response}, 'result: f!; g!', "$provider: $model: results, in the order of the calls") or diag(explain($r));
		my ($first, $second) = @{ $request->{body}{contents}[1]{parts} };
		is($first->{thoughtSignature}, $signed ? $calls->[0]{extra_content}{google}{thought_signature} : undef, "$provider: $model: signature");
		is($first->{functionCall}{id}, $signed ? $calls->[0]{id} : undef, "$provider: $model: id");
		ok(!exists $second->{thoughtSignature}, "$provider: $model: only the first call is signed");
		next unless $signed;

		# who has lost it says so
		delete $_->{extra_content} for @$calls;
		$request = request_of(sub { $r = chat([ $question, $turn, @results ], model => "$provider/$model", tools => \@both) });
		is($request->{body}{contents}[1]{parts}[0]{thoughtSignature}, 'skip_thought_signature_validator', "$provider: $model: no signature");
		is($r->{response}, 'result: f!; g!', "$provider: $model: is taken, too") or diag(explain($r));
	}
	$r = chat('hi', model => "$provider/tools-and-text", tools => \@both);
	is($r->{response}, 'echo: hi', "$provider: text and a tool call");
	is(scalar @{ $r->{tool_calls} }, 1, "$provider: text and a tool call");
	$r = chat('hi', model => "$provider/tools-empty", tools => \@both);
	is($r->{tool_calls}[0]{function}{arguments}, '{}', "$provider: no arguments");
}

# The delay that the body tells is waited for.
for my $delay ([ 1.3, 3, '1.5s' ], [ 0, 0.9, '0.01s' ], [ 0, 0.9, 'soon' ])
{
	my ($least, $most, $retry) = @$delay;
	my $error = { code => 429, status => 'RESOURCE_EXHAUSTED', message => 'Too fast.',
		details => [ 'x', { '@type' => 'type.googleapis.com/google.rpc.RetryInfo', retryDelay => $retry } ] };
	my $took;
	for (1 .. 3)
	{
		$fake->script('limited', { status => 429, body => { error => $error } }, 'default');
		my $start = time;
		is($s->value(q{SELECT llm_complete('hi', model => 'gemini/limited')}), 'echo: hi', 'tried again');
		$took = time - $start;
		last if $took < $most;    # a machine that is held up is slow, but not always
	}
	ok($took >= $least && $took < $most, "retryDelay $retry") or diag("took $took");
}

# A stream that stalls is charged what it counted until then.
models('counted');
$gw->sql("UPDATE llm_providers SET idle_timeout = '200 ms' WHERE name = 'gemini'");
my $counted = { usageMetadata => { promptTokenCount => 10, candidatesTokenCount => 2, thoughtsTokenCount => 3, totalTokenCount => 15 } };
my $piece = { candidates => [ { content => { parts => [ { text => 'some' } ] } } ] };
$fake->script('counted', { chunks => [ 'data: ' . $json->encode({ %$piece, %$counted }) . "\r\n\r\n" ], then => 'stall', repeat => 'forever' });
$gw->sql('UPDATE llm_error_policies SET max_retries = 0');
my $r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
is($r->{error_class}, 'timeout', 'stalled');
cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 10 + 5 * 100, 'what was counted until then is charged');

# The reason to finish is not enough, as some models give it with every chunk: the stream must also end in order.
my $end = 'data: ' . $json->encode({ candidates => [ { content => { parts => [ { text => ' more' } ] }, finishReason => 'STOP' } ], %$counted }) . "\r\n\r\n";
for my $then (qw(stall reset cut keep))
{
	$fake->script('counted', { chunks => [ 'data: ' . $json->encode($piece) . "\r\n\r\n", $end ], then => $then });
	$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
	if ($then eq 'keep')
	{
		is_deeply([ @{$r}{qw(error_class response finish_reason output_tokens)} ], [ undef, 'some more', 'stop', 5 ], "ends, then: $then") or diag(explain($r));
	}
	else
	{
		like($r->{error_class}, qr/^(?:timeout|network|malformed)$/, "ends, then: $then") or diag(explain($r));
	}
}

# Bodies and events as they might be sent by somebody who means no good.
my $fine = { candidates => [ { content => { parts => [ { text => 'fine' } ] }, finishReason => 'STOP' } ] };
sub candidate { return { candidates => [ {@_} ] } }
for my $bad (
	'', '{}', '[]', '[[]]', 'null', '"x"', '7', '{"candidates": []}', '{"candidates": {}}', '{"candidates": [7]}', '{"candidates": [null]}',
	candidate(), candidate(finishReason => 7), candidate(finishReason => ''), candidate(finishReason => 'STOP', index => 5),
	candidate(content => { parts => 'x' }, finishReason => 'STOP'), candidate(content => { parts => [7] }, finishReason => 'STOP'),
	candidate(content => { parts => [ { text => 7 } ] }, finishReason => 'STOP'),
	candidate(content => { parts => [ { text => ['x'] } ] }, finishReason => 'STOP'),
	candidate(content => { parts => [ { functionCall => 'f' } ] }, finishReason => 'STOP'),
	candidate(content => { parts => [ { functionCall => {} } ] }, finishReason => 'STOP'),
	candidate(content => { parts => [ { functionCall => { name => 'f', args => [] } } ] }, finishReason => 'STOP'),
	candidate(content => { parts => [ map { { functionCall => { name => 'f' } } } 1 .. 129 ] }, finishReason => 'STOP'),
	candidate(finishReason => "A\x{202E}B" . 'x' x 1000),
	{ promptFeedback => { blockReason => 7 } }, { promptFeedback => 'x' }, { error => {} }, { error => 'x' }, { error => { details => [ [], 7, { violations => [7], retryDelay => 7 } ] } })
{
	my $body = ref $bad ? $json->encode($bad) : $bad;
	for my $streamed (0, 1)
	{
		my $step = $streamed ? { chunks => ["data: $body\r\n\r\n"] } : { body => $body };
		$fake->script('counted', $step);
		$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
		(my $name = substr($body, 0, 80)) =~ s/([^\x20-\x7E])/sprintf '\\x{%X}', ord $1/ge;
		ok(defined $r->{error_class}, ($streamed ? 'streamed: ' : 'body: ') . $name) or diag(explain($r));
	}
}
for my $good (
	{ %$fine, usageMetadata => 'x' },
	{ %$fine, usageMetadata => { promptTokenCount => -1 } },
	{ %$fine, usageMetadata => { promptTokenCount => 1e30, candidatesTokenCount => 'x' } },
	{ %$fine, usageMetadata => { promptTokenCount => 2147483647, toolUsePromptTokenCount => 2147483647 } },
	{ %$fine, usageMetadata => {} },
	candidate(content => { parts => [ { thought => $true, text => 'hm' }, { text => 'fine', thoughtSignature => 7 }, { inlineData => {} }, {} ] }, finishReason => 'STOP'),
	[ candidate(content => { parts => [ { text => 'fi' } ] }), candidate(content => { parts => [ { text => 'ne' } ] }, finishReason => 'STOP') ])
{
	my $body = $json->encode($good);
	$fake->script('counted', { body => $body });
	$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
	is($r->{response}, 'fine', 'body: ' . substr($body, 0, 120)) or diag(explain($r));
}

# thoughts that the total has in the candidates
$fake->script('counted', { body => { %$fine, usageMetadata => { promptTokenCount => 10, candidatesTokenCount => 7, thoughtsTokenCount => 3, totalTokenCount => 17, toolUsePromptTokenCount => 0, cachedContentTokenCount => 99 } } });
$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
is_deeply([ @{$r}{qw(input_tokens cached_input_tokens output_tokens reasoning_tokens)} ], [ 10, 10, 7, 3 ], 'thoughts within the output');

# Until the output is counted, as it mostly is at the end only, the input is charged as it was counted.
$fake->script('counted', { chunks => [ 'data: ' . $json->encode({ %$piece, usageMetadata => { promptTokenCount => 1000, cachedContentTokenCount => 3, totalTokenCount => 1000 } }) . "\r\n\r\n" ], then => 'cut' });
$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
ok($r->{error_class}, 'cut before the output is counted');
cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 997 + 3 * 10_000 + 100, 'its input as it was counted, its output as it was seen');

# thoughts are counted before there is text
$fake->script('counted', { chunks => [ 'data: ' . $json->encode({ %$piece, usageMetadata => { promptTokenCount => 1000, thoughtsTokenCount => 500, totalTokenCount => 1500 } }) . "\r\n\r\n" ], then => 'cut' });
$r = row(q{llm_complete_detail('hi', model => 'gemini/counted')});
cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 1000 + 501 * 100, 'its thoughts as they were counted, its text as it was seen');

# Embeddings

models('gemini-embedding-001', 'embed-short', 'embed-ragged', 'embed-nan', 'embed-text');
$request = request_of(
	sub { is($s->value(q{SELECT array_length(llm_embed('a black cat', model => 'gemini/gemini-embedding-001', dimensions => 3, params => '{"extra": {"taskType": "RETRIEVAL_QUERY"}}'), 1)}), 3, 'an embedding') });
is($request->{path}, '/v1beta/models/gemini-embedding-001:batchEmbedContents', 'path');
is_deeply(
	$request->{body},
	{ requests => [ { model => 'models/gemini-embedding-001', content => { parts => [ { text => 'a black cat' } ] }, outputDimensionality => 3, taskType => 'RETRIEVAL_QUERY' } ] },
	'body');
for my $bad (qw(embed-short embed-ragged embed-nan embed-text))
{
	error_ok($s->run("SELECT llm_embed('a black cat', model => 'gemini/$bad')"), { sqlstate => 'LG010' }, $bad);
}
error_ok($s->run(q{SELECT llm_embed('a black cat', model => 'gemini/status-404')}), { sqlstate => 'LG008' }, 'status-404');

is($s->value(q{SELECT llm_complete('hi', model => 'gemini/other')}), 'echo: hi', 'the session goes on');
$gw->no_crash_ok;
done_testing();
