# Anthropic's Messages API: what is sent, and what is made of answers, streamed and not, sound and
# broken.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use POSIX qw(strftime);
use Test::More;
use Time::HiRes qw(time);

use lib $FindBin::Bin;
use DialectTest qw(row chat request_of);
use LlmGateway qw($KEY error_ok literal);

my $json = JSON::PP->new->canonical->utf8(0);
my ($true, $false) = (JSON::PP::true, JSON::PP::false);

my $gw = LlmGateway->new(name => 'anthropic');
my $fake = $gw->fake;
my $s = $gw->session;
DialectTest::use_session($gw, $s);
my $root = 'http://' . $fake->host . ':' . $fake->port . '/anthropic';

$gw->sql('UPDATE llm_error_policies SET backoff_ms = least(backoff_ms, 10), max_retries = least(max_retries, 1)');
$gw->add_provider('claude', $root, { kind => "'anthropic'", options => q('{"image_urls": true}') });
$gw->add_provider('plain', "$root/", { kind => "'anthropic'", options => q('{"stream": false}') });

# Prices by which a cost, in millionths of a dollar, says what the usage was.
my %prices = (
	input_price        => 1,
	output_price       => 100,
	cached_input_price => 10_000,
	cache_write_price  => 1_000_000);

sub models
{
	my @names = @_;
	$gw->add_models($_, @names, {%prices}) for qw(claude plain);
	return;
}

# What is sent

models('claude-sonnet-4-5', 'claude-opus-5', 'claude-opus-5-5', 'claude-opus-4-20250514', 'claude-fable-5',
	'us.anthropic.claude-sonnet-4-20250514-v1:0', 'claude-3-5-haiku-20241022', 'other');

my $request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'claude/claude-sonnet-4-5')}), 'echo: Hello', 'a plain call') });
is($request->{path}, '/anthropic/v1/messages', 'path');
is_deeply(
	$request->{body},
	{
		model      => 'claude-sonnet-4-5',
		max_tokens => 8192,
		messages   => [ { role => 'user', content => [ { type => 'text', text => 'Hello' } ] } ],
		stream     => $true
	},
	'body of a plain call');
is($request->{headers}{'x-api-key'}, $KEY, 'key');
is($request->{headers}{authorization}, undef, 'no other key');
is($request->{headers}{'anthropic-version'}, '2023-06-01', 'version');
is($request->{headers}{'anthropic-beta'}, undef, 'no beta');
is($request->{headers}{accept}, 'text/event-stream', 'accepts a stream');

$request = request_of(sub { is($s->value(q{SELECT llm_complete('Hello', model => 'plain/claude-sonnet-4-5')}), 'echo: Hello', 'not streamed') });
is($request->{path}, '/anthropic/v1/messages', 'a slash at the end of base_url');
is($request->{body}{stream}, $false, 'not streamed');

$request = request_of(
	sub {
		chat(
			[
				{ role => 'system',    content => 'Be brief.' },
				{ role => 'user',      content => [ { type => 'text', text => '' }, { type => 'text', text => 'look:' } ] },
				{ role => 'user',      content => [ { type => 'image_url', image_url => { url => 'data:image/png;base64,AAAA' } }, { type => 'image_url', image_url => { url => 'https://example.com/x.png', detail => 'low' } } ] },
				{ role => 'assistant', content => 'hm', tool_calls => [ { id => 'a', type => 'function', function => { name => 'f', arguments => '{"x": [1, "ä"]}' } }, { id => 'b', type => 'function', function => { name => 'g', arguments => '' } } ] },
				{ role => 'tool',      tool_call_id => 'b', content => '' },
				{ role => 'tool',      tool_call_id => 'a', content => [ { type => 'text', text => 'one' }, { type => 'text', text => 'two' } ] },
				{ role => 'user',      content => 'well?' },
				{ role => 'developer', content => 'In English.' }
			],
			model         => 'claude/claude-sonnet-4-5',
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
				frequency_penalty => 1,
				min_p             => 0.1,
				verbosity         => 'low',
				reasoning_effort  => 'low',
				extra             => { container => 'c-1', top_p => 0.8 }
			},
			tools => [
				{ type => 'function', function => { name => 'f', description => 'does f', strict => $true, parameters => { type => 'object', properties => { x => { type => 'array' } } } } },
				{ type => 'function', function => { name => 'g' } }
			],
			tool_choice => { type => 'function', function => { name => 'g' } });
	});
is($request->{status}, 200, 'the fake takes it');
is_deeply(
	$request->{body},
	{
		model      => 'claude-sonnet-4-5',
		max_tokens => 77,
		system     => "Think.\n\nBe brief.\n\nIn English.",
		messages   => [
			{
				role    => 'user',
				content => [
					{ type => 'text',  text   => 'look:' },
					{ type => 'image', source => { type => 'base64', media_type => 'image/png', data => 'AAAA' } },
					{ type => 'image', source => { type => 'url', url => 'https://example.com/x.png' } }
				]
			},
			{
				role    => 'assistant',
				content => [
					{ type => 'text',     text => 'hm' },
					{ type => 'tool_use', id   => 'a', name => 'f', input => { x => [ 1, 'ä' ] } },
					{ type => 'tool_use', id   => 'b', name => 'g', input => {} }
				]
			},
			{
				role    => 'user',
				content => [
					{ type => 'tool_result', tool_use_id => 'b' },
					{ type => 'tool_result', tool_use_id => 'a', content => [ { type => 'text', text => 'one' }, { type => 'text', text => 'two' } ] },
					{ type => 'text', text => 'well?' }
				]
			}
		],
		tools => [
			{ name => 'f', description => 'does f', input_schema => { type => 'object', properties => { x => { type => 'array' } } } },
			{ name => 'g', input_schema => { type => 'object' } }
		],
		tool_choice    => { type => 'tool', name => 'g' },
		stream         => $true,
		temperature    => 0.5,
		top_p          => 0.8,
		top_k          => 40,
		stop_sequences => ['END'],
		metadata       => { user_id => 'u-1' },
		container      => 'c-1'
	},
	'body of a conversation');
# four blanks are in what the caller wrote
is($request->{body_bytes}, length(JSON::PP->new->utf8->canonical->encode($request->{body})) + 4, 'no key twice');

for my $choice ([ 'auto', 'auto' ], [ 'none', 'none' ], [ 'required', 'any' ])
{
	$request = request_of(sub { chat('hi', model => 'claude/other', tools => [ { type => 'function', function => { name => 'f' } } ], tool_choice => "\"$choice->[0]\"") });
	is_deeply($request->{body}{tool_choice}, { type => $choice->[1] }, "tool_choice $choice->[0]");
}
$request = request_of(sub { chat('hi', model => 'claude/other', params => { stop => [ 'a', 'b' ], top_k => -1 }) });
is_deeply($request->{body}{stop_sequences}, [ 'a', 'b' ], 'stop sequences');
ok(!exists $request->{body}{top_k}, 'top_k -1 is none');

# Options

sub options { $gw->sql('UPDATE llm_providers SET options = ' . literal($json->encode($_[0])) . " WHERE name = 'claude'") }

options({ version => '2024-01-01', beta => 'a-1,b-2', max_tokens => 500, headers => { 'X-Team' => 'db' }, extra => { system => 'ours', service_tier => 'standard_only' } });
$request = request_of(sub { chat('hi', model => 'claude/other', system_prompt => 'theirs') });
is($request->{headers}{'anthropic-version'}, '2024-01-01', 'options.version');
is($request->{headers}{'anthropic-beta'}, 'a-1,b-2', 'options.beta');
is($request->{headers}{'x-team'}, 'db', 'options.headers');
is($request->{body}{max_tokens}, 500, 'options.max_tokens');
is($request->{body}{system}, 'ours', 'options.extra wins');
is($request->{body}{service_tier}, 'standard_only', 'and may choose a price');

# More than a model gives is refused: of one whose limit is known no more is asked for
$gw->add_models('claude', 'brief', { max_output_tokens => 100 });
for my $case ([ undef, {}, 100 ], [ undef, { max_tokens => 500 }, 100 ], [ undef, { max_tokens => 50 }, 50 ], [ 1000, {}, 100 ], [ 70, {}, 70 ])
{
	my ($asked, $options, $sent) = @$case;
	options($options);
	$request = request_of(sub { chat('hi', model => 'claude/brief', defined $asked ? (max_tokens => $asked) : ()) });
	is($request->{body}{max_tokens}, $sent, 'max_tokens ' . ($asked // 'none') . ', options ' . $json->encode($options));
}
options({ headers => { 'Anthropic-Version' => '2025-01-01', 'Anthropic-Beta' => 'c' }, beta => 'd' });
$request = request_of(sub { chat('hi', model => 'claude/other') });
is("$request->{headers}{'anthropic-version'} $request->{headers}{'anthropic-beta'}", '2025-01-01 c', 'headers win');
options({});

for my $bad ([ '{"max_tokens": 0}', qr/max_tokens/ ], [ '{"beta": "a\nb"}', qr/printable ASCII/ ], [ '{"version": 1}', qr/must be a string/ ],
	[ '{"organization": "x"}', qr/unknown key "organization"/ ], [ '{"headers": {"X-Api-Key": "k"}}', qr/may not set/ ])
{
	error_ok(
		$gw->admin->run('UPDATE llm_providers SET options = ' . literal($bad->[0]) . " WHERE name = 'claude'"),
		{ sqlstate => '22023', message => $bad->[1] },
		"options $bad->[0]");
}

for my $base ("$root/v1", "$root/v1/", "$root//")
{
	$gw->sql('UPDATE llm_providers SET base_url = ' . literal($base) . " WHERE name = 'claude'");
	is(request_of(sub { chat('hi', model => 'claude/other') })->{path}, '/anthropic/v1/messages', "base_url $base");
}
$gw->sql('UPDATE llm_providers SET base_url = ' . literal($root) . " WHERE name = 'claude'");

SKIP:
{
	skip 'there is no llm_probe yet', 4 if $s->value(q{SELECT to_regproc('llm_probe') IS NULL}) eq 't';
	$request = request_of(sub { is($s->value(q{SELECT ok FROM llm_probe('claude')}), 't', 'probe') });
	is("$request->{method} $request->{path}", 'GET /anthropic/v1/models', 'of the list of models');
	is($request->{headers}{'x-api-key'}, $KEY, 'with the key');
}

# A schema becomes a tool

my $schema = { type => 'object', properties => { city => { type => 'string' } }, required => ['city'] };
my $tool = { type => 'function', function => { name => 'answer', parameters => { type => 'object' } } };
for my $provider (qw(claude plain))
{
	my $r;
	$request = request_of(sub { $r = chat('Rome', model => "$provider/claude-sonnet-4-5", schema => $schema) });
	is_deeply($request->{body}{tool_choice}, { type => 'tool', name => 'answer', disable_parallel_tool_use => $true }, "$provider: the tool is forced");
	is_deeply($request->{body}{tools}[0]{input_schema}, $schema, "$provider: its input is the answer");
	is_deeply([ decode_json($r->{response}), @{$r}{qw(finish_reason tool_calls error_message)} ], [ { city => 'Rome' }, 'stop', undef, undef ], "$provider: which becomes the text");

	# what is no object is wrapped into one
	for my $other (
		[ { type => 'array', items => { type => 'integer' } }, '[4]' ],
		[ { type => 'string' }, '"Rome"' ],
		[ { anyOf => [ { type => 'object' } ], type => 'object' }, '{}' ],
		[ { '$ref' => '#/$defs/c', '$defs' => { c => { enum => [ { a => 1 } ] } } }, '{"a": 1}' ])
	{
		$r = chat('Rome', model => "$provider/claude-sonnet-4-5", schema => $other->[0]);
		is_deeply([ map { defined ? JSON::PP->new->allow_nonref->decode($_) : undef } $r->{response}, $other->[1] ]->[0],
			JSON::PP->new->allow_nonref->decode($other->[1]), "$provider: $other->[1]") or diag(explain($r));
	}

	# cut by max_tokens, it says so
	$r = chat('Rome', model => "$provider/claude-sonnet-4-5", schema => $schema, max_tokens => 2);
	is($r->{finish_reason}, 'length', "$provider: a cut answer");
	is_deeply([ @{$r}{qw(response error_class)} ], [ undef, 'schema' ], "$provider: which does not satisfy the schema");
	like($r->{error_message}, qr/cut by the call's max_tokens of 2$/, "$provider: nor can it");

	# beside the caller's tools
	$request = request_of(sub { $r = chat('Rome', model => "$provider/claude-sonnet-4-5", schema => $schema, tools => [$tool]) });
	is_deeply($request->{body}{tool_choice}, { type => 'any', disable_parallel_tool_use => $true }, "$provider: any tool");
	is_deeply([ map { $_->{name} } @{ $request->{body}{tools} } ], [qw(answer answer_2)], "$provider: no name twice");
	is_deeply([ decode_json($r->{response}), $r->{tool_calls} ], [ { city => 'Rome' }, undef ], "$provider: answered");
	$request = request_of(sub { $r = chat('{"city": "Rome"}', model => "$provider/claude-sonnet-4-5", schema => $schema, tools => [$tool], tool_choice => '"required"') });
	is_deeply([ map { $_->{name} } @{ $request->{body}{tools} } ], ['answer'], "$provider: the caller's tool is required");
	is($r->{finish_reason}, 'tool_calls', "$provider: and called");
	$request = request_of(sub { $r = chat('Rome', model => "$provider/claude-sonnet-4-5", schema => $schema, tools => [$tool], tool_choice => '"none"') });
	is_deeply([ map { $_->{name} } @{ $request->{body}{tools} } ], ['answer_2'], "$provider: the caller's may not be called");
}
for my $model (
	[ 'claude-opus-4-20250514',                     'tool' ],
	[ 'us.anthropic.claude-sonnet-4-20250514-v1:0', 'tool' ],
	[ 'claude-3-5-haiku-20241022',                  'tool' ],
	[ 'claude-opus-5',                              'tool' ],
	[ 'other',                                      'tool' ],
	[ 'claude-opus-5-5',                            'auto' ],
	[ 'claude-fable-5',                             'auto' ])
{
	my $r;
	$request = request_of(sub { $r = chat('hi', model => "claude/$model->[0]", schema => $schema) });
	is($request->{body}{tool_choice}{type}, $model->[1], "$model->[0]: $model->[1]");
	is(defined $request->{body}{system}, $model->[1] eq 'auto', "$model->[0]: is told in words, or not");
	is($r->{error_class}, $model->[1] eq 'auto' ? 'schema' : undef, "$model->[0]: taken, if only as a hint");
}
$request = request_of(sub { chat('hi', model => 'claude/other', schema => $schema, system_prompt => 'S', params => { extra => { thinking => { type => 'adaptive' } } }) });
like($request->{body}{system}, qr/^S\n\n.*"answer"/, 'not with thinking');
is($request->{status}, 200, 'which the fake refuses otherwise');
options({ force_tool => $false });
$request = request_of(sub { chat('hi', model => 'claude/other', schema => $schema) });
is($request->{body}{tool_choice}{type}, 'auto', 'options.force_tool');
options({});

# Answers of the fake: model, class or undef, requests, pattern of the message or the answer.

my @cases = (
	[ 'echo',                  undef,             1, qr/^echo: hi$/ ],
	[ 'length',                undef,             1, qr/^echo: hi$/, 'length' ],
	[ 'finish-window',         undef,             1, qr/^echo: hi$/, 'length' ],
	[ 'empty',                 undef,             1, qr/^$/ ],
	[ 'no-usage',              undef,             1, qr/^echo: hi$/ ],
	[ 'json-only',             undef,             1, qr/^echo: hi$/ ],
	[ 'one-byte',              undef,             1, qr/^echo: hi$/ ],
	[ 'chunked-odd',           undef,             1, qr/^echo: hi$/ ],
	[ 'half-close',            undef,             1, qr/^echo: hi$/ ],
	[ 'keepalive-comments',    undef,             1, qr/^echo: hi$/ ],
	[ 'unicode-split',         undef,             1, qr/^naïve 日本語 / ],
	[ 'leak-key-in-answer',    undef,             1, qr/^your key is \*+, is it not\?$/ ],
	[ 'refusal',               'content_policy',  1, qr/I'm sorry, I can't assist/ ],
	[ 'content-policy-200',    'content_policy',  1, qr/the model refused to answer/ ],
	[ 'content-policy',        'content_policy',  1, qr/Output blocked by content filtering policy/ ],
	[ 'finish-pause-turn',     'invalid_request', 1, qr/paused/ ],
	[ 'context-length',        'context_length',  1, qr/prompt is too long/ ],
	[ 'status-400',            'invalid_request', 1, qr/HTTP 400: Invalid request/ ],
	[ 'status-401',            'auth',            1, qr/HTTP 401: invalid x-api-key/ ],
	[ 'status-402',            'quota',           1, qr/HTTP 402/ ],
	[ 'status-403',            'auth',            1, qr/HTTP 403/ ],
	[ 'status-404',            'not_found',       1, qr/HTTP 404: model: status-404/ ],
	[ 'status-409',            'invalid_request', 1, qr/HTTP 409/ ],
	[ 'status-413',            'context_length',  1, qr/HTTP 413/ ],
	[ 'status-500',            'server_error',    2, qr/HTTP 500: Internal server error/ ],
	[ 'status-503',            'overloaded',      2, qr/HTTP 503/ ],
	[ 'status-504',            'timeout',         0, qr/HTTP 504: Request timed out/ ],
	[ 'status-529',            'overloaded',      2, qr/HTTP 529: Overloaded/ ],
	[ 'leak-key',              'auth',            1, qr/invalid x-api-key: \*+$/ ],
	[ 'error-in-200',          'server_error',    2, qr/error in the answer: Internal server error/ ],
	[ 'error-in-stream',       'server_error',    2, qr/error in the answer: Internal server error/ ],
	[ 'overloaded-in-stream',  'overloaded',      2, qr/error in the answer: Overloaded/ ],
	[ 'html',                  'malformed',       2, qr/not valid JSON/ ],
	[ 'html-413',              'context_length',  1, qr/HTTP 413 \(HTML body\)/ ],
	[ 'html-502',              'server_error',    2, qr/HTTP 502 \(HTML body\)/ ],
	[ 'malformed',             'malformed',       2, qr/an event of the stream is|the answer is/ ],
	[ 'cut',                   'malformed',       2, qr/ended before it was complete|the answer is/ ],
	[ 'cut-short',             'network',         2 ],
	[ 'reset-mid',             'network',         2 ],
	[ 'deep-100000',           'malformed',       2, qr/deep/ ],
	[ 'nul',                   'malformed',       1, qr/character/ ],
	[ 'bad-utf8',              'malformed',       2, qr/UTF-8/ ],
	[ 'tools-broken',          'malformed',       2, qr/not a JSON object/ ],
	[ 'error-body-anthropic-400-credit', 'quota',          1, qr/credit balance is too low/ ],
	[ 'error-body-anthropic-400-spend',  'quota',          1, qr/workspace API usage limits/ ],
	[ 'error-body-anthropic-400-window', 'context_length', 1, qr/exceed context limit/ ],
	[ 'error-body-anthropic-413',        'context_length', 1, qr/HTTP 413 \(HTML body\)/ ],
	[ 'error-body-anthropic-529',        'overloaded',     2, qr/Overloaded/ ],
	[ 'error-body-anthropic-429-acceleration', 'rate_limit', 2, qr/rate limit/ ],
	[ 'error-body-plain-text',           'overloaded',     2, qr/upstream connect error/ ],
	[ 'error-body-fastapi-detail',       'invalid_request', 1, qr/Bad Request/ ]);
models(map { $_->[0] } @cases);
for my $provider (qw(claude plain))
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

# Without its end marker a stream is not whole, though all of the text came.
models('no-done', 'tools', 'tools-2', 'tools-and-text', 'tools-empty', 'usage-1000-50-300-20+cache-write-100', 'stops');
is(row(q{llm_complete_detail('hi', model => 'claude/no-done')})->{error_class}, 'malformed', 'no message_stop');

for my $provider (qw(claude plain))
{
	# usage: 1000 input, of them 300 from the cache and 100 into it; 50 output, of them 20 thoughts
	my $r = row("llm_complete_detail('hi', model => '$provider/usage-1000-50-300-20+cache-write-100')");
	is_deeply([ @{$r}{qw(input_tokens cached_input_tokens output_tokens reasoning_tokens)} ], [ 1000, 300, 50, 20 ], "$provider: usage");
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', 600 + 50 * 100 + 300 * 10_000 + 100 * 1_000_000, "$provider: cost");

	$r = chat('say STOP now', model => "$provider/stops", params => { stop => 'STOP' });
	is_deeply([ @{$r}{qw(response finish_reason)} ], [ 'echo: say ', 'stop' ], "$provider: stop sequence");

	# thoughts and tools that run at the provider are not part of the answer
	$gw->sql("UPDATE llm_providers SET options = coalesce(options, '{}') || " . literal($json->encode({ extra => { tools => [ { type => 'web_search_20250305', name => 'web_search' } ] } })) . " WHERE name = '$provider'");
	$r = chat('hi', model => "$provider/echo", params => { extra => { thinking => { type => 'enabled', budget_tokens => 1024 } } });
	$gw->sql("UPDATE llm_providers SET options = options - 'extra' WHERE name = '$provider'");
	is_deeply([ @{$r}{qw(response finish_reason tool_calls error_message)} ], [ 'echo: hi', 'stop', undef, undef ], "$provider: thoughts and searches");

	# tools, there and back
	my @tools = map { { type => 'function', function => { name => $_, parameters => $schema } } } qw(f g);
	my $question = { role => 'user', content => 'Rome' };
	$r = chat([$question], model => "$provider/tools-2", tools => \@tools);
	is_deeply([ map { [ @{ $_->{function} }{qw(name arguments)} ] } @{ $r->{tool_calls} } ],
		[ map { [ $_, $provider eq 'plain' ? '{"city": "Rome"}' : '{"city":"Rome"}' ] } qw(f g) ], "$provider: tool calls");
	is_deeply([ @{$r}{qw(response finish_reason)} ], [ undef, 'tool_calls' ], "$provider: and no text");
	$r = chat([ $question, { role => 'assistant', content => undef, tool_calls => $r->{tool_calls} }, map { { role => 'tool', tool_call_id => $_->{id}, content => "$_->{function}{name}!" } } @{ $r->{tool_calls} } ],
		model => "$provider/tools-2", tools => \@tools);
	is($r->{response}, 'result: f!; g!', "$provider: results") or diag(explain($r));
	$r = chat('hi', model => "$provider/tools-and-text", tools => \@tools);
	is($r->{response}, 'echo: hi', "$provider: text and a tool call");
	is(scalar @{ $r->{tool_calls} }, 1, "$provider: text and a tool call");
	$r = chat('hi', model => "$provider/tools-empty", tools => \@tools);
	is($r->{tool_calls}[0]{function}{arguments}, '{}', "$provider: no arguments");
}

# Limits: a reset in RFC 3339 is waited for, where nothing else says how long.

models('limited');
sub at { my ($seconds, $zone) = @_; return strftime('%Y-%m-%dT%H:%M:%S' . ($zone // 'Z'), gmtime(time + $seconds)) }
for my $limit (
	[ 0.3, 4.9, sub { ('requests-remaining' => 0, 'requests-reset' => at(2)) } ],
	[ 0.3, 4.9, sub { ('requests-remaining' => 5, 'requests-reset' => at(30), 'tokens-remaining' => 0, 'tokens-reset' => at(3602, '.25+01:00')) } ],
	[ 0.3, 4.9, sub { ('input-tokens-remaining' => 0, 'input-tokens-reset' => at(2)) } ],
	[ 0, 4.5, sub { ('requests-remaining' => 0, 'requests-reset' => at(30), retry => 0) } ],
	[ 0, 4.5, sub { ('requests-remaining' => 0, 'requests-reset' => 'soon') } ],
	[ 0, 4.5, sub { ('requests-remaining' => 0, 'requests-reset' => '2125-13-01T00:00:00Z') } ],
	[ 0, 4.5, sub { ('requests-remaining' => 0, 'requests-reset' => '2125-01-01T00:00:00') } ],
	[ 0, 4.5, sub { ('requests-remaining' => 0, 'requests-reset' => at(-1000)) } ])
{
	my ($least, $most, $headers) = @$limit;
	my %headers = $headers->();
	%headers = map { ($_ eq 'retry' ? 'retry-after' : "anthropic-ratelimit-$_") => $headers{$_} } keys %headers;
	$fake->script('limited', { behaviour => 'error-body-anthropic-429-acceleration', headers => \%headers }, 'default');
	my $start = time;
	is($s->value(q{SELECT llm_complete('hi', model => 'claude/limited')}), 'echo: hi', 'tried again');
	my $took = time - $start;
	ok($took >= $least * 0.9 && $took < $most, join(' ', map { "$_: $headers{$_}" } sort keys %headers)) or diag("took $took");
}

# Events as they were recorded, or might be sent by somebody who means no good.

my %start = (type => 'message_start', message => { id => 'm', type => 'message', role => 'assistant', content => [], model => 'x', stop_reason => undef, usage => { input_tokens => 10, cache_creation_input_tokens => 2, cache_read_input_tokens => 3, output_tokens => 1 } });
my %text = (type => 'content_block_start', index => 0, content_block => { type => 'text', text => '' });
my %stop = (type => 'content_block_stop', index => 0);
my %end = (type => 'message_stop');

sub piece { return { type => 'content_block_delta', index => $_[1] // 0, delta => { type => 'text_delta', text => $_[0] } } }
sub input { return { type => 'content_block_delta', index => $_[1] // 0, delta => { type => 'input_json_delta', partial_json => $_[0] } } }
sub use_tool { return { type => 'content_block_start', index => $_[1] // 0, content_block => { type => 'tool_use', id => 't' . ($_[1] // 0), name => $_[0], input => $_[2] // {} } } }
sub over { return { type => 'message_delta', delta => { stop_reason => $_[0], stop_sequence => undef }, usage => $_[1] // { output_tokens => 7 } } }

# name, events (text is sent as it is), what comes of it
my @sequences = (
	[ 'as recorded', [ \%start, \%text, { type => 'ping' }, piece('Hel'), piece('lo'), \%stop, over('end_turn'), \%end ], { response => 'Hello', finish_reason => 'stop', input_tokens => 15, cached_input_tokens => 3, output_tokens => 7 } ],
	[ 'several texts', [ \%start, \%text, piece('a'), \%stop, { %text, index => 1 }, piece('b', 1), { %stop, index => 1 }, over('end_turn'), \%end ], { response => 'ab' } ],
	[ 'a text that begins with some', [ \%start, { %text, content_block => { type => 'text', text => 'x' } }, piece('y'), over('end_turn'), \%end ], { response => 'xy' } ],
	[ 'no blocks at all', [ \%start, over('end_turn'), \%end ], { response => '', finish_reason => 'stop' } ],
	[ 'kinds that are not known', [ \%start, { type => 'fresh', x => 1 }, { %text, content_block => { type => 'novel', text => 'no' } }, { type => 'content_block_delta', index => 0, delta => { type => 'novel_delta', text => 'no' } }, \%text, piece('yes'), over('end_turn'), \%end ], { response => 'yes' } ],
	[ 'a reason that is not known', [ \%start, \%text, piece('x'), over('novelty'), \%end ], { response => 'x', finish_reason => 'novelty' } ],
	[ 'usage at the end only', [ { type => 'message_start', message => { usage => { input_tokens => 0, output_tokens => 0 } } }, \%text, piece('x'), over('end_turn', { input_tokens => 9, output_tokens => 4 }), \%end ], { response => 'x', input_tokens => 9, output_tokens => 4 } ],
	[ 'zeros at the end', [ \%start, \%text, piece('x'), over('end_turn', { input_tokens => 0, output_tokens => 4, cache_read_input_tokens => 0, cache_creation_input_tokens => 0 }), \%end ], { response => 'x', input_tokens => 15, cached_input_tokens => 3, output_tokens => 4 } ],
	[ 'all again at the end', [ \%start, \%text, piece('x'), over('end_turn', { input_tokens => 10, output_tokens => 4, cache_read_input_tokens => 3, cache_creation_input_tokens => 2 }), \%end ], { response => 'x', input_tokens => 15, cached_input_tokens => 3, output_tokens => 4 } ],
	[ 'counts that are none', [ \%start, \%text, piece('x'), over('end_turn', { output_tokens => -4 }), \%end ], { response => 'x', input_tokens => 1, output_tokens => 1 } ],
	[ 'a count that is too large', [ \%start, \%text, piece('x'), over('end_turn', { input_tokens => 2_000_000_000, cache_read_input_tokens => 2_000_000_000, output_tokens => 1 }), \%end ], { response => 'x', input_tokens => 1, output_tokens => 1 } ],
	[ 'usage at the beginning only', [ \%start, \%text, piece('x' x 40), over('end_turn', {}), \%end ], { response => 'x' x 40, input_tokens => 15, cached_input_tokens => 3, output_tokens => 10, cost => 10 + 1000 + 30_000 + 2_000_000 } ],
	[ 'no usage', [ { type => 'message_start', message => {} }, \%text, piece('x'), over('end_turn', {}), \%end ], { response => 'x', input_tokens => 1, output_tokens => 1 } ],
	[ 'two ends of the message', [ \%start, \%text, piece('x'), over(undef, { output_tokens => 2 }), over('max_tokens', { output_tokens => 3 }), \%end ], { response => 'x', finish_reason => 'length', output_tokens => 3 } ],
	[ 'a relay that says [DONE]', [ \%start, \%text, piece('x'), over('end_turn'), \%end, "data: [DONE]\n\n" ], { response => 'x' } ],
	[ 'events without names', [ map { "data: " . $json->encode($_) . "\n\n" } \%start, \%text, piece('x'), over('end_turn'), \%end ], { response => 'x' } ],
	[ 'a tool call', [ \%start, use_tool('f'), input(''), input('{"a"'), input(': 1}'), \%stop, over('tool_use'), \%end ], { response => undef, finish_reason => 'tool_calls', tools => [ [ 't0', 'f', '{"a": 1}' ] ] } ],
	[ 'two, in pieces that take turns', [ \%start, use_tool('f'), use_tool('g', 1), input('{"a"'), input('{"b"', 1), input(':1}'), input(':2}', 1), over('tool_use'), \%end ], { tools => [ [ 't0', 'f', '{"a":1}' ], [ 't1', 'g', '{"b":2}' ] ] } ],
	[ 'all of the input at once', [ \%start, use_tool('f', 3, { a => 1 }), over('tool_use'), \%end ], { tools => [ [ 't3', 'f', '{"a": 1}' ] ] } ],
	[ 'a tool of the provider', [ \%start, { type => 'content_block_start', index => 0, content_block => { type => 'server_tool_use', id => 's', name => 'web_search', input => {} } }, input('{"q":'), input('1}'), \%stop, { %text, index => 1 }, piece('x', 1), over('end_turn'), \%end ], { response => 'x', tools => [] } ],
	[ 'an id is not said', [ \%start, { type => 'content_block_start', index => 0, content_block => { type => 'tool_use', name => 'f' } }, over('tool_use'), \%end ], { finish_reason => 'tool_calls' } ],

	# not whole
	[ 'cut after the text', [ \%start, \%text, piece('Hello'), \%stop ], { class => 'malformed', cost => 10 + 200 + 30_000 + 2_000_000 } ],
	[ 'cut before the end', [ \%start, \%text, piece('Hello'), \%stop, over('end_turn') ], { class => 'malformed' } ],
	[ 'cut after a count of its output', [ \%start, \%text, piece('Hello'), over(undef, { output_tokens => 70 }) ], { class => 'malformed', cost => 10 + 7000 + 30_000 + 2_000_000 } ],
	[ 'no reason', [ \%start, \%text, piece('x'), \%stop, \%end ], { class => 'malformed', message => qr/reason to finish/ } ],
	[ 'no answer', [ over('end_turn'), \%end ], { class => 'malformed', message => qr/without an answer/ } ],
	[ 'nothing', ["data: [DONE]\n\n"], { class => 'malformed' } ],
	[ 'a tool call without a tool', [ \%start, over('tool_use'), \%end ], { class => 'malformed', message => qr/lacks the tool call/ } ],
	[ 'half of an input', [ \%start, use_tool('f'), input('{"a"'), \%stop, over('tool_use'), \%end ], { class => 'malformed', message => qr/not a JSON object/ } ],
	[ 'half of an input, by the limit', [ \%start, use_tool('f'), input('{"a"'), \%stop, over('max_tokens'), \%end ], { class => 'malformed', message => qr/cut by a token limit/ } ],
	[ 'an input twice', [ \%start, use_tool('f', 0, { a => 1 }), input('{"a":1}'), over('tool_use'), \%end ], { class => 'malformed' } ],
	[ 'an input of nobody', [ \%start, use_tool('f'), input('{}', 7), over('tool_use'), \%end ], { class => 'malformed', message => qr/belongs to no tool call/ } ],
	[ 'an input for a text', [ \%start, \%text, input('{}'), over('end_turn'), \%end ], { class => 'malformed' } ],
	[ 'no index', [ \%start, { type => 'content_block_start', content_block => { type => 'tool_use', id => 't', name => 'f' } }, over('tool_use'), \%end ], { class => 'malformed', message => qr/index/ } ],
	[ 'an index twice', [ \%start, use_tool('f'), use_tool('g'), over('tool_use'), \%end ], { class => 'malformed', message => qr/twice/ } ],
	[ 'a tool without a name', [ \%start, use_tool(undef), over('tool_use'), \%end ], { class => 'malformed', message => qr/no name/ } ],
	[ 'too many tools', [ \%start, (map { use_tool('f', $_) } 0 .. 128), over('tool_use'), \%end ], { class => 'malformed', message => qr/more than 128/ } ],
	[ 'huge index', [ \%start, use_tool('f', 9_000_000_000_000), input('{}', 9_000_000_000_000), over('tool_use'), \%end ], { tools => [ [ 't9000000000000', 'f', '{}' ] ] } ],
	[ 'a text that is none', [ \%start, \%text, { type => 'content_block_delta', index => 0, delta => { type => 'text_delta', text => [1] } }, over('end_turn'), \%end ], { class => 'malformed', message => qr/has no text/ } ],
	[ 'a block that is none', [ \%start, { %text, content_block => 'x' }, over('end_turn'), \%end ], { class => 'malformed', message => qr/content_block/ } ],
	[ 'a piece that is none', [ \%start, \%text, { type => 'content_block_delta', index => 0 }, over('end_turn'), \%end ], { class => 'malformed', message => qr/delta/ } ],
	[ 'a kind that is none', [ \%start, { %text, content_block => { type => 1 } }, over('end_turn'), \%end ], { class => 'malformed', message => qr/no type/ } ],
	[ 'no JSON', [ \%start, "event: content_block_delta\ndata: {\n\n", over('end_turn'), \%end ], { class => 'malformed' } ],
	[ 'no object', [ \%start, "event: content_block_delta\ndata: [1]\n\n", over('end_turn'), \%end ], { class => 'malformed' } ],
	[ "OpenAI's", ["data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"x\"}}]}\n\n"], { class => 'malformed', message => qr/has no type/ } ],

	# errors after all
	[ 'overloaded', [ \%start, \%text, piece('x'), { type => 'error', error => { type => 'overloaded_error', message => 'Overloaded' } } ], { class => 'overloaded' } ],
	[ 'rate limit', [ \%start, { type => 'error', error => { type => 'rate_limit_error', message => 'slow' } } ], { class => 'rate_limit' } ],
	[ 'api error', [ \%start, { type => 'error', error => { type => 'api_error', message => 'oh' } } ], { class => 'server_error' } ],
	[ 'timeout', [ \%start, { type => 'error', error => { type => 'timeout_error', message => 'oh' } } ], { class => 'timeout' } ],
	[ 'filtered', [ \%start, { type => 'error', error => { type => 'invalid_request_error', message => 'Output blocked by content filtering policy' } } ], { class => 'content_policy' } ],
	[ 'an error without more', [ \%start, { type => 'error' } ], { class => 'server_error', cost => 10 + 100 + 30_000 + 2_000_000 } ],
	[ 'an error in plain text', [ \%start, "event: error\ndata: upstream failed\n\n" ], { class => 'server_error', message => qr/upstream failed/ } ],
	[ "a relay's error", [ \%start, "data: {\"error\":{\"message\":\"backend gone\",\"code\":503}}\n\n" ], { class => 'overloaded', message => qr/error 503 in the answer: backend gone/ } ],
	[ 'a refusal', [ \%start, \%text, piece('I ca'), { type => 'message_delta', delta => { stop_reason => 'refusal', stop_details => { type => 'refusal', category => 'cyber', explanation => 'No such code.' } }, usage => { output_tokens => 7 } }, \%end ], { class => 'content_policy', message => qr/No such code\./, cost => 10 + 700 + 30_000 + 2_000_000 } ],
	[ 'a refusal without words', [ \%start, over('refusal'), \%end ], { class => 'content_policy', message => qr/refused/ } ]);

# An event as it is sent.
sub event { return ref $_[0] ? "event: $_[0]{type}\ndata: " . $json->encode($_[0]) . "\n\n" : $_[0] }
sub bytes { my $text = shift; utf8::encode($text); return encode_base64($text, '') }

models('events');
$gw->sql('UPDATE llm_error_policies SET max_retries = 0, fallback = false');
for my $sequence (@sequences)
{
	my ($name, $events, $want) = @$sequence;
	my $whole = join '', map { event($_) } @$events;

	# each event by itself, and all at once, with other line ends
	for my $way ({ chunks => [ map { event($_) } @$events ] }, { body_base64 => bytes($whole =~ s/\n/\r\n/gr), headers => { 'content-type' => 'text/event-stream' } })
	{
		$fake->script('events', $way);
		my $r = row(q{llm_complete_detail('hi', model => 'claude/events')});
		is($r->{error_class}, $want->{class}, "$name: class") or diag(explain($r));
		is($r->{response}, undef, "$name: no answer") if $want->{class};
		like($r->{error_message}, $want->{message}, "$name: message") if $want->{message};
		cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', $want->{cost}, "$name: cost") if $want->{cost};
		is_deeply([ map { [ $_->{id}, @{ $_->{function} }{qw(name arguments)} ] } @{ $r->{tool_calls} // [] } ], $want->{tools}, "$name: tools") if $want->{tools};
		is($r->{$_}, $want->{$_}, "$name: $_") for grep { exists $want->{$_} } qw(response finish_reason input_tokens cached_input_tokens output_tokens);
	}
}

# Whole documents

my %message = (type => 'message', role => 'assistant', content => [ { type => 'text', text => 'x' } ], stop_reason => 'end_turn', usage => { input_tokens => 5, output_tokens => 6 });
for my $document (
	[ 'as recorded', \%message, { response => 'x', input_tokens => 5, output_tokens => 6 } ],
	[ 'nothing to say', { %message, content => [] }, { response => '' } ],
	[ 'thoughts', { %message, content => [ { type => 'thinking', thinking => 't', signature => 's' }, { type => 'redacted_thinking', data => 'd' }, { type => 'text', text => 'y' } ] }, { response => 'y' } ],
	[ 'a tool', { %message, content => [ { type => 'tool_use', id => 'i', name => 'f', input => { a => 1 } } ], stop_reason => 'tool_use' }, { response => undef, finish_reason => 'tool_calls' } ],
	[ 'a tool whose input is none', { %message, content => [ { type => 'tool_use', id => 'i', name => 'f', input => 'a' } ], stop_reason => 'tool_use' }, { class => 'malformed' } ],
	[ 'no reason', { %message, stop_reason => undef }, { class => 'malformed', message => qr/stop_reason/ } ],
	[ 'no content', { %message, content => undef }, { class => 'malformed', message => qr/no content/ } ],
	[ 'content that is none', { %message, content => 'x' }, { class => 'malformed', message => qr/no content/ } ],
	[ 'a block that is none', { %message, content => ['x'] }, { class => 'malformed', message => qr/no object/ } ],
	[ 'a text that is none', { %message, content => [ { type => 'text' } ] }, { class => 'malformed', message => qr/no text/ } ],
	[ 'a refusal', { %message, content => [], stop_reason => 'refusal' }, { class => 'content_policy', cost => 5 + 600 } ],
	[ 'an error', { type => 'error', error => { type => 'overloaded_error', message => 'Overloaded' } }, { class => 'overloaded' } ],
	[ 'an array', [], { class => 'malformed' } ],
	[ 'a number', 5, { class => 'malformed' } ])
{
	my ($name, $body, $want) = @$document;
	$fake->script('events', { body => $body });
	my $r = row(q{llm_complete_detail('hi', model => 'plain/events')});
	is($r->{error_class}, $want->{class}, "document: $name: class") or diag(explain($r));
	like($r->{error_message}, $want->{message}, "document: $name: message") if $want->{message};
	cmp_ok(int($r->{cost_usd} * 1e6 + 0.5), '==', $want->{cost}, "document: $name: cost") if $want->{cost};
	is($r->{$_}, $want->{$_}, "document: $name: $_") for grep { exists $want->{$_} } qw(response finish_reason input_tokens output_tokens);
}

# An answer in a schema that is given twice, or along with a call of the caller's tools

sub answers
{
	my ($provider, $content) = @_;
	$fake->script('events', { body => { %message, content => $content, stop_reason => 'tool_use' } });
	return chat('hi', model => "$provider/events", schema => $schema, tools => [ { type => 'function', function => { name => 'f' } } ]);
}
my %answer = (type => 'tool_use', id => 'a', name => 'answer', input => { city => 'Rome' });
my %call = (type => 'tool_use', id => 'c', name => 'f', input => {});
is(answers('plain', [ { type => 'text', text => 'Here you are.' }, \%answer ])->{response}, '{"city": "Rome"}', 'words beside the answer are dropped');
my $r = answers('plain', [ \%answer, \%call ]);
is_deeply([ $r->{response}, map { $_->{function}{name} } @{ $r->{tool_calls} } ], [ undef, 'f' ], "the caller's tool goes first");
is(answers('plain', [ \%answer, { %answer, id => 'b' } ])->{error_class}, 'malformed', 'two answers are none');
is(answers('plain', [ { %answer, input => [] } ])->{error_class}, 'malformed', 'an answer that is no object');

# However a stream is cut, it is no answer; however it is damaged, the call ends well or in an error.

my $stream = join '', map { event($_) } \%start, \%text, piece('Hello'), \%stop, use_tool('f', 1), input('{"a"', 1), input(':1}', 1), { %stop, index => 1 }, over('tool_use'), \%end;
my $cuts = 60;
$fake->script('events', map { { body_base64 => bytes(substr($stream, 0, int((length($stream) - 1) * $_ / $cuts))), headers => { 'content-type' => 'text/event-stream' } } } 0 .. $cuts - 1);
is($s->value("SELECT count(*) FROM generate_series(1, $cuts) AS n, LATERAL llm_complete_detail('cut ' || n, model => 'claude/events') WHERE error_class IS NULL"),
	0, 'cut anywhere');

srand(20260101);
my @damaged;
for (1 .. 300)
{
	my $copy = $stream;
	for (0 .. rand 3)
	{
		my $at = int rand length $copy;
		my $kind = int rand 5;
		if    ($kind == 0) { substr($copy, $at, 1) = chr int rand 256 }
		elsif ($kind == 1) { substr($copy, $at, 1 + rand 20) = '' }
		elsif ($kind == 2) { substr($copy, $at, 0) = substr($copy, int rand length $copy, 1 + rand 60) }
		elsif ($kind == 3) { substr($copy, $at, 0) = (qw({ } [ ] " : null true 1e999 -1 \u0000 \ud800), "\n\n", "\r")[ rand 14 ] }
		else               { $copy =~ s/"(\w+)":("[^"]*"|\d+)/'"' . $1 . '":' . (qw(null [] {} "" 0 true 99999999999999999999))[rand 7]/e }
	}
	push @damaged, { body_base64 => encode_base64($copy =~ s/([^\x00-\xff])/?/gr, ''), headers => { 'content-type' => 'text/event-stream' } };
}
$fake->script('events', @damaged);
is($s->value("SELECT count(*) FROM generate_series(1, 300) AS n, LATERAL llm_complete_detail('damaged ' || n, model => 'claude/events') WHERE (error_class IS NULL) = (response IS NOT NULL OR tool_calls IS NOT NULL)"),
	300, 'damaged anyhow');
is($fake->stats->{internal_errors}, 0, 'the fake is sound, too');
$gw->no_crash_ok;

done_testing();
