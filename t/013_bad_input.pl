# Bad input: from the caller, from the configuration, and from providers that answer with anything at
# all.  Each case gives a clear error with its own SQLSTATE, whichever function is called; in a batch
# it does not disturb its neighbours; the session goes on, and its memory comes back.
use strict;
use warnings;
use utf8;

use Encode qw(encode);
use FindBin;
use IO::Compress::Gzip qw(gzip $GzipError);
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

use lib $FindBin::Bin;
use LlmGateway qw($KEY error_ok literal silent_listener);

use constant MEGA => 1 << 20;

# By how much a backend may have grown when all is over; the answers are several times as large.
use constant GROWTH_KB => 20 * 1024;

delete $ENV{UNSET_API_KEY};
my $gw = LlmGateway->new(name => 'bad_input', fake => { journal => 100 });
my $fake = $gw->fake;
my $s = $gw->session;
my $pid = $s->pid;
my $r;

$gw->sql('UPDATE llm_error_policies SET max_retries = 0, backoff_ms = 0');
$gw->add_models('fake', qw(gpt-4o m tokens-3 huge-100 half-close status-400));

# Answers

my $HI = { choices => [ { index => 0, message => { content => 'hi' }, finish_reason => 'stop' } ] };
my $STOP = { choices => [ { index => 0, delta => {}, finish_reason => 'stop' } ] };
my $JSON = JSON::PP->new->canonical;

sub text_of { return ref $_[0] ? $JSON->encode($_[0]) : $_[0] }

# An answer whose message is that; the usage, if given, too.
sub message
{
	my ($message, $usage) = @_;
	my %answer = (choices => [ { index => 0, message => $message, finish_reason => 'stop' } ]);
	$answer{usage} = $usage if defined $usage;
	return { body => text_of(\%answer) };
}

# An answer with that JSON text as the value of a key that nobody knows.
sub with_unknown { return { body => text_of($HI) =~ s/\}\z/,"unknown":$_[0]}/r } }

sub gzipped
{
	my ($type, $text) = @_;
	my $bytes = encode('UTF-8', $text);
	gzip(\$bytes, \my $compressed) or die $GzipError;
	return { headers => { 'content-type' => $type, 'content-encoding' => 'gzip' }, body_base64 => encode_base64($compressed, '') };
}

# The same, in that many layers, which these headers announce.
sub layers
{
	my ($n, %headers) = @_;
	my $bytes = text_of($HI);
	for (1 .. $n) { gzip(\$bytes, \my $compressed) or die $GzipError; $bytes = $compressed }
	return { headers => \%headers, body_base64 => encode_base64($bytes, '') };
}

# A stream of these events, and its end.
sub events { return join '', map { 'data: ' . text_of($_) . "\n\n" } @_, '[DONE]' }
sub delta { return { choices => [ { index => 0, delta => $_[0], finish_reason => undef } ] } }

# Bytes as an event stream, in one go; and events.
sub raw_stream { return { headers => { 'content-type' => 'text/event-stream' }, body => $_[0] } }
sub stream { return raw_stream(events(@_)) }

# The session

sub rss
{
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^RssAnon:\s+(\d+) kB/m;
	return $kb;
}

sub still_ok
{
	my ($name, $session) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$session //= $s;
	is($session->run(q{SELECT llm_complete('next', model => 'gpt-4o'), pg_backend_pid()})->{out},
		'echo: next|' . $session->pid, "$name: the next call works, in the same backend");
	return;
}

# PostgreSQL's style: no capital at the beginning and no full stop at the end of the message, whole
# sentences or commands elsewhere.  A message may end with the words of the provider, as they are.
my $ATTEMPT = qr{[^\s/]+/[^\n]+?: (?:\w+(?: after \d+ ms|, not tried)|not tried): [^\n]+};
my $styled = 0;

sub style_ok
{
	my ($result, $name, $quotes) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($message, $detail, $hint) = map { $_ // '' } @{$result}{qw(message detail hint)};
	my @wrong;

	$quotes //= $message =~ /: (?:HTTP \d+: |error (?:\d+ )?in the answer: )/;
	push @wrong, "message: $message" if $message !~ /\A[a-z"][^\n]*\z/ || ($message =~ /\.\z/ && !$quotes);
	push @wrong, "detail: $detail"
	  if $detail ne '' && $detail !~ /\A(?:$ATTEMPT|routing rule \d+: .+)(?:\n(?:$ATTEMPT|routing rule \d+: .+))*\z/ && $detail !~ /\A[A-Z"].*\.\z/s;
	push @wrong, "hint: $hint" if $hint ne '' && $hint !~ /\A[A-Z0-9'"].*[.;)]\z/s;
	$styled++;
	ok(!@wrong, "$name: in PostgreSQL's style") or diag(join "\n", @wrong);
	return;
}

# Arguments: an error of every function, and nothing is sent.

for my $case (
	[ q{model => 'nowhere'},      '42704', qr/model "nowhere" does not exist/, qr/alias/, qr/llm_add_provider/ ],
	[ q{model => ''},             '42704', qr/model "" does not exist/ ],
	[ q{model => 'fake/'},        '42704', qr{model "fake/" does not exist} ],
	[ q{model => 'nobody/gpt-4o'}, '42704', qr{model "nobody/gpt-4o" does not exist} ],
	[ q{model => 'GPT-4o'},       '42704', qr/model "GPT-4o" does not exist/ ],
	[ q{'gpt-4o'},                '42704', qr/priority "gpt-4o" does not exist/, qr/critical, high, normal, low/, qr/model => 'gpt-4o'/ ],
	[ q{''},                      '42704', qr/priority "" does not exist/ ],
	[ q{task => 'cooking'},       '42704', qr/task "cooking" does not exist/, qr/coding/, qr/llm_tasks/ ],
	[ q{min_tier => 'best'},      '42704', qr/tier "best" does not exist/, undef, qr/premium, standard, economy/ ],
	[ q{optimize => 'beauty'},    '22023', qr/invalid value for optimize: "beauty"/, undef, qr/quality, cost, speed/ ],
	[ q{cache => 'yes'},          '22023', qr/invalid value for cache: "yes"/, undef, qr/off, auto, on, refresh, only/ ],
	[ q{max_tokens => 0},         '22023', qr/max_tokens must be positive, not 0/ ],
	[ q{max_tokens => -2147483648}, '22023', qr/max_tokens must be positive/ ],
	[ q{temperature => -1},       '22023', qr/temperature must be between 0 and 2, not -1/ ],
	[ q{temperature => 'NaN'},    '22023', qr/temperature must be between 0 and 2, not nan/i ],
	[ q{temperature => 'Infinity'}, '22023', qr/temperature must be between 0 and 2/ ],
	[ q{timeout_ms => -1},        '22023', qr/timeout_ms must not be negative/, undef, qr/0 means no limit/ ],
	[ q{tags => '[]'},            '22023', qr/tags must be a JSON object/, undef, qr/tags => / ],
	[ q{tags => '1'},             '22023', qr/tags must be a JSON object/ ],
	[ q{params => '[1]'},         '22023', qr/params must be a JSON object/, undef, qr/params => / ],
	[ q{params => '"top_p"'},     '22023', qr/params must be a JSON object/ ],
	[ q{params => 'null'},        '22023', qr/params must be a JSON object/ ],
	[ q{params => '{"topp": 1}'}, '22023', qr/unknown key "topp" in params/, qr/ seed, stop, top_k, top_p, /, qr/extra/ ],
	[ q{params => '{"": 1}'},     '22023', qr/unknown key "" in params/ ],
	[ q{params => '{"top_p": "high"}'}, '22023', qr/invalid value for key "top_p" in params/, qr/must be a number/ ],
	[ q{params => '{"top_p": [0.5]}'}, '22023', qr/invalid value for key "top_p" in params/, qr/must be a number/ ],
	[ q{params => '{"seed": 1.5}'}, '22023', qr/invalid value for key "seed" in params/, qr/must be an integer/ ],
	[ q{params => '{"seed": 99999999999999999999}'}, '22023', qr/invalid value for key "seed" in params/, qr/must be an integer/ ],
	[ q{params => '{"stop": ["a", 1]}'}, '22023', qr/invalid value for key "stop" in params/, qr/string or an array/ ],
	[ q{params => '{"stop": ["a", ["b"]]}'}, '22023', qr/invalid value for key "stop" in params/, qr/string or an array/ ],
	[ q{params => '{"user": {}}'}, '22023', qr/invalid value for key "user" in params/, qr/must be a string/ ],
	[ q{params => '{"extra": []}'}, '22023', qr/invalid value for key "extra" in params/ ],
	[ q{params => '{"extra": {"messages": []}}'}, '22023', qr/invalid value for key "extra" in params/, qr/messages/ ],
	[ q{params => '{"extra": {"Options": {"Num_Predict": 5}}}'}, '22023', qr/invalid value for key "extra" in params/, qr/may not set "Num_Predict" of "Options"/ ],

	# what the price depends on is for who keeps the prices
	(map { [ "params => '{\"extra\": {\"$_\": \"x\"}}'", '22023', qr/invalid value for key "extra" in params/, qr/\AIt may not set "$_", on which the price depends; llm_providers\.options can\.$/ ] }
		qw(service_tier serviceTier Service_Tier speed inference_geo provider plugins web_search_options search_parameters modalities audio)),
	[ q{params => '{"extra": {"generationConfig": {"responseModalities": ["AUDIO"]}}}'}, '22023', qr/invalid value/, qr/may not set "responseModalities" of "generationConfig", on which the price depends/ ],
	[ q{params => '{"extra": {"cache_control": {"type": "ephemeral", "ttl": "1h"}}}'}, '22023', qr/invalid value/, qr/may not set "ttl" of "cache_control", on which the price depends/ ],
	(map { [ "params => '{\"extra\": {\"tools\": [$_]}}'", '22023', qr/invalid value/, qr/may not set tools that the provider runs, on which the price depends/ ] }
		'{"type": "web_search_20250305", "name": "web_search"}', '{"googleSearch": {}}', '{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}', '{"functionDeclarations": [], "googleSearch": {}}', '1'))
{
	my ($arguments, $sqlstate, $message, $detail, $hint) = @$case;
	my %want = (sqlstate => $sqlstate, message => $message);
	$want{detail} = $detail if $detail;
	$want{hint} = $hint if $hint;
	my $model = $arguments =~ /model =>/ ? '' : q{, model => 'gpt-4o'};
	my $requests = $gw->requests(
		sub {
			for my $call (
				"SELECT llm_complete('hi', $arguments$model)",
				"SELECT * FROM llm_complete_detail('hi', $arguments$model)",
				"SELECT * FROM llm_complete_batch('{a,b}', $arguments$model)")
			{
				error_ok($r = $s->run($call), \%want, $call);
				style_ok($r, $call);
			}
		});
	is(scalar @$requests, 0, "$arguments: nothing is sent");
	still_ok($arguments);
}
error_ok($s->run(q{SELECT * FROM llm_complete_batch('{a}', model => 'gpt-4o', max_concurrency => 0)}),
	{ sqlstate => '22023', message => qr/max_concurrency must be at least 1, not 0/ }, 'max_concurrency => 0');
for my $setting (q{default_priority = ' '}, q{default_timeout = '-1'}, q{on_error = 'ignore'}, q{cache = 'yes'}, q{tags = '[1'}, q{batch_concurrency = 0})
{
	error_ok($s->run("SET llm_gateway.$setting"), { sqlstate => '22023' }, "SET $setting");
}
$s->run(q{SET llm_gateway.default_priority = 'urgent'});
error_ok($s->run(q{SELECT llm_complete('hi', model => 'gpt-4o')}),
	{ sqlstate => '42704', message => qr/priority "urgent" does not exist/, hint => qr/llm_gateway\.default_priority/ }, 'a default priority that does not exist');
$s->run('RESET llm_gateway.default_priority');
still_ok('settings');

# Prompts

for my $call (q{SELECT llm_complete('', model => 'gpt-4o')}, q{SELECT * FROM llm_complete_detail('', model => 'gpt-4o')})
{
	error_ok($r = $s->run($call), { sqlstate => '22023', message => qr/prompt must not be empty/ }, $call);
	style_ok($r, $call);
}
is( $s->value(q{SELECT string_agg(concat_ws(' ', idx, response, error_class, error_message), ', ' ORDER BY idx)
		FROM llm_complete_batch(array['a', '', 'b', NULL, '', 'c'], model => 'gpt-4o')}),
	'1 echo: a, 2 invalid_request the prompt is empty, 3 echo: b, 4, 5 invalid_request the prompt is empty, 6 echo: c',
	'empty prompts in a batch');
is($s->value(q{SELECT count(*) FROM llm_complete_batch('{}', model => 'gpt-4o')}), '0', 'an empty batch');
is($s->value(q{SELECT count(*) FROM llm_complete_batch(NULL, model => 'gpt-4o')}), '0', 'no batch');
is($s->value(q{SELECT string_agg(idx || ' ' || response, ', ' ORDER BY idx) FROM llm_complete_batch('{{a,b},{c,d}}', model => 'gpt-4o')}),
	'1 echo: a, 2 echo: b, 3 echo: c, 4 echo: d', 'a batch of two dimensions');
is($s->value(q{SELECT response FROM llm_complete_detail(E' \n\t', model => 'gpt-4o')}), "echo:  \n\t", 'a blank prompt is a prompt');

# 10 MB of what JSON must escape, among others: each 8 bytes are 10 on the wire
my $large = q{repeat(E'né"\\\\日', 1310720)};
my $requests = $gw->requests(
	sub {
		is($s->value(q{SELECT response FROM llm_complete_detail('x', model => 'tokens-3')}), 'wordwordword', 'a prompt of one byte');
		is($s->value(encode('UTF-8', "SELECT octet_length(prompt), response FROM (SELECT $large) p(prompt), llm_complete_detail(prompt, model => 'tokens-3')")),
			10 * MEGA . '|wordwordword', 'a prompt of 10 MB');
		is($s->value(encode('UTF-8', "SELECT string_agg(response, ' ') FROM llm_complete_batch(array['a', $large, 'b'], model => 'tokens-3', max_concurrency => 1)")),
			'wordwordword wordwordword wordwordword', 'and in a batch');
	});
my $overhead = $requests->[0]{body_bytes} - 1;
is(join(' ', map { $_->{body_bytes} - $overhead } @$requests), join(' ', 1, 12.5 * MEGA, 1, 12.5 * MEGA, 1), 'arrives whole');
like($requests->[$_]{raw}, qr/(?:né\\"\\\\日){100}/, 'as it was written')
  for 1, 3;
cmp_ok(rss(), '<', 60 * 1024, 'and is not kept');

# Configuration

my @models = ([ 'off', 'm-off' ], [ 'keyless', 'm-keyless' ], [ 'on', 'm-disabled' ]);
for my $row (@models)
{
	$gw->add_provider($row->[0], $fake->url);
	$gw->add_models(@$row);
}
$gw->sql(q{UPDATE llm_providers SET enabled = false WHERE name = 'off'});
$gw->sql(q{UPDATE llm_providers SET api_key = 'env:UNSET_API_KEY' WHERE name = 'keyless'});
$gw->sql(q{UPDATE llm_models SET enabled = false WHERE name = 'm-disabled'});
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, rank) VALUES ('nothing', 'gone', 1), ('all-off', 'm-off', 1), ('all-off', 'm-disabled', 2)});
$gw->sql(q{INSERT INTO llm_routing_rules (alias, model, enabled) VALUES ('disabled', 'gpt-4o', false)});
for my $case (
	[ 'm-off', 'LG005', 'no_candidate', qr/no model can answer this call/, qr{\Aoff/m-off: not tried: the provider is disabled\z}, qr/UPDATE llm_providers SET enabled = true WHERE name = 'off'/ ],
	[ 'm-disabled', 'LG005', 'no_candidate', qr/no model can answer this call/, qr{\Aon/m-disabled: not tried: the model is disabled\z}, qr/UPDATE llm_models SET enabled = true/ ],
	[ 'all-off', 'LG005', 'no_candidate', qr/no model can answer this call/, qr{\Aoff/m-off: not tried: .*\non/m-disabled: not tried: } ],
	[ 'nothing', 'LG005', 'no_candidate', qr/no model can answer this call/, qr{\Arouting rule \d+: no provider has model "gone"} ],
	[ 'disabled', 'LG005', 'no_candidate', qr/no model can answer this call/ ],
	[ 'm-keyless', 'LG009', 'auth', qr/environment variable "UNSET_API_KEY" is not set for the server/, qr{\Akeyless/m-keyless: auth, not tried: } ])
{
	my ($model, $sqlstate, $class, $message, $detail, $hint) = @$case;
	my %want = (sqlstate => $sqlstate, message => $message);
	$want{detail} = $detail if $detail;
	$want{hint} = $hint if $hint;
	my $seen = $gw->requests(
		sub {
			error_ok($r = $s->run("SELECT llm_complete('hi', model => '$model')"), \%want, "$model: error");
			style_ok($r, $model);
			is($s->run("SELECT error_class, attempts FROM llm_complete_detail('hi', model => '$model')")->{out}, "$class|0", "$model: llm_complete_detail");
			is($s->run("SELECT string_agg(concat_ws(' ', idx, response, error_class, attempts), ', ' ORDER BY idx) FROM llm_complete_batch('{a,b}', model => '$model')")->{out},
				"1 $class 0, 2 $class 0", "$model: llm_complete_batch");
		});
	is(scalar @$seen, 0, "$model: nothing is sent");
	still_ok($model);
}
$s->run(q{SET llm_gateway.on_error = 'null'});
error_ok($s->run(q{SELECT llm_complete('hi', model => 'm-off')}), { sqlstate => 'LG005' }, q{on_error = 'null' hides no fault of the configuration});
$s->run('RESET llm_gateway.on_error');
error_ok($s->run(q{SELECT llm_complete('hi', model => 'gpt-4o', cache => 'only')}), { sqlstate => 'LG005', message => qr/no answer is cached/ }, q{cache => 'only'});
error_ok($s->run(q{INSERT INTO llm_models (provider, name) VALUES ('nobody', 'm')}), { sqlstate => '23503', message => qr/provider "nobody"/ }, 'a model of an unknown provider');
error_ok($s->run(q{SELECT llm_complete_detail(repeat('x', 2000000), model => 'm-small') FROM (SELECT 1) x}), { sqlstate => '42704' }, 'an unknown model is said before the prompt is looked at');

for my $name ('bare', 'modelless')
{
	$gw->sql("CREATE DATABASE $name");
	$gw->sql('CREATE EXTENSION llm_gateway', $name);
	$gw->add_provider('fake', $fake->url, undef, $name) if $name eq 'modelless';
	my $other = $gw->session($name);
	my ($message, $hint) = $name eq 'bare' ? (qr/no provider is configured/, qr/llm_add_provider/) : (qr/no model is configured/, qr/INSERT INTO llm_models/);
	error_ok($r = $other->run(q{SELECT llm_complete('hi')}), { sqlstate => 'LG005', message => $message, hint => $hint }, "$name: error");
	style_ok($r, $name);
	is($other->run(q{SELECT error_class FROM llm_complete_detail('hi')})->{out}, 'no_candidate', "$name: llm_complete_detail");
	is($other->run(q{SELECT string_agg(error_class, ' ') FROM llm_complete_batch('{a,b}')})->{out}, 'no_candidate no_candidate', "$name: llm_complete_batch");
	error_ok($other->run(q{SELECT llm_complete('hi', model => 'gpt-4o')}), { sqlstate => '42704' }, "$name: a model that does not exist");
	$gw->add_provider('fake', $fake->url, undef, $name) if $name eq 'bare';
	$gw->add_models('fake', 'gpt-4o', { database => $name });
	still_ok("$name, when it is configured", $other);
}

# What a provider may answer.  Each case: name, step, class ('' when it is an answer), and a pattern of
# the error message or of the answer.  It is asked for alone, both ways, and between two others.

my %CODE = (malformed => 'LG010', not_found => 'LG008', network => 'LG004', server_error => 'LG004', content_policy => 'LG006');

sub hostile_ok
{
	my ($name, $step, $class, $pattern) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$fake->script('m', $step, $step, 'default', $step, 'default');

	$r = $s->run(q{SELECT coalesce(error_class, ''), coalesce(response, error_message) FROM llm_complete_detail('x', model => 'm')});
	like($r->{out}, qr/\A\Q$class\E\|.*?$pattern/s, "$name: llm_complete_detail") or diag($r->{err});
	$r = $s->run(q{SELECT llm_complete('x', model => 'm')});
	if ($class eq '')
	{
		like($r->{out}, $pattern, "$name: llm_complete") or diag($r->{err});
	}
	else
	{
		error_ok($r, { sqlstate => $CODE{$class}, message => $pattern, detail => qr{\Afake/m: $class after \d+ ms: } }, "$name: llm_complete");
		style_ok($r, $name);
	}
	is( $s->run(q{SELECT string_agg(concat_ws(' ', idx, error_class, CASE WHEN idx <> 2 THEN response END), ', ' ORDER BY idx)
			FROM llm_complete_batch('{a,x,b}', model => 'm', max_concurrency => 1)})->{out},
		'1 echo: a, 2' . ($class eq '' ? '' : " $class") . ', 3 echo: b', "$name: between two others");
	$fake->script('m');
	still_ok($name);
	return;
}

# The types that OpenAI's reference gives are not what comes
hostile_ok(@$_)
  for (
	[ 'message a string',    message('hello'), 'malformed', qr/choice has no message/ ],
	[ 'no message',          { body => { choices => [ { index => 0 } ] } }, 'malformed', qr/choice has no message/ ],
	[ 'choices a string',    { body => { choices => 'hello' } }, 'malformed', qr/the answer has no choices/ ],
	[ 'choices of numbers',  { body => { choices => [5] } }, 'malformed', qr/choices are empty/ ],
	[ 'choices empty',       { body => { choices => [] } }, 'malformed', qr/choices are empty/ ],
	[ 'null',                { body => 'null' }, 'malformed', qr/the answer has no choices/ ],
	[ 'a number',            { body => '1e5' }, 'malformed', qr/the answer has no choices/ ],
	[ 'nothing',             { body => '' }, 'malformed', qr/the answer is empty/ ],
	[ 'white space',         { body => " \n\t " }, 'malformed', qr/not valid JSON: empty/ ],
	[ '204',                 { status => 204, body => '' }, 'malformed', qr/the answer is empty/ ],
	[ 'content with parts that are none', message({ content => [ { type => 'text', text => 'a' }, { type => 'image' }, { type => 'text', text => 'b' } ] }), '', qr/ab\z/ ],
	[ 'content null',        message({ content => undef }), '', qr/\z/ ],
	[ 'error true',          { body => '{"error": true}' }, 'server_error', qr/error in the answer: without a message/ ],
	[ 'error of objects',    { body => { error => { message => { a => { b => 1 } }, code => {}, type => [1] } } }, 'server_error', qr/error in the answer/ ],
	[ 'error beside an answer', { body => text_of($HI) =~ s/\}\z/,"error":"out of order"}/r }, 'server_error', qr/error in the answer: out of order/ ],
	[ 'error null beside an answer', { body => text_of($HI) =~ s/\}\z/,"error":null}/r }, '', qr/hi\z/ ],
	[ 'negative usage',      message({ content => 'hi' }, { prompt_tokens => -5, completion_tokens => 1 }), '', qr/hi\z/ ],
	[ 'negative cached usage', message({ content => 'hi' }, { prompt_tokens => 5, completion_tokens => 1, prompt_tokens_details => { cached_tokens => -5 } }), '', qr/hi\z/ ],
	[ 'usage of 10^30',      { body => text_of($HI) =~ s/\}\z/,"usage":{"prompt_tokens":1e30,"completion_tokens":1}}/r }, '', qr/hi\z/ ],
	[ 'usage of 10^400000',  { body => text_of($HI) =~ s/\}\z/,"usage":{"prompt_tokens":1e400000,"completion_tokens":1}}/r }, 'malformed', qr/a number is out of range/ ],
	[ 'usage NaN',           { body => text_of($HI) =~ s/\}\z/,"usage":{"prompt_tokens":NaN,"completion_tokens":1}}/r }, 'malformed', qr/syntax error/ ],
	[ 'usage as strings',    message({ content => 'hi' }, { prompt_tokens => '5', completion_tokens => '7' }), '', qr/hi\z/ ],
	[ 'usage an array',      message({ content => 'hi' }, [1]), '', qr/hi\z/ ],
	[ 'usage a string',      message({ content => 'hi' }, 'none'), '', qr/hi\z/ ],
	[ 'half of a usage',     message({ content => 'hi' }, { prompt_tokens => 5 }), '', qr/hi\z/ ],
	[ 'more cached than used', message({ content => 'hi' }, { prompt_tokens => 5, completion_tokens => 1, prompt_tokens_details => { cached_tokens => 50 } }), '', qr/hi\z/ ],
	[ 'negative usage in a stream', stream(delta({ content => 'hi' }), $STOP, { choices => [], usage => { prompt_tokens => -5, completion_tokens => 1 } }), '', qr/hi\z/ ],
	[ 'choices in any order', stream({ choices => [ { index => 1, delta => { content => 'WRONG' } }, { index => 0, delta => { content => 'right' } } ] },
			{ choices => [ { index => 1, delta => {}, finish_reason => 'stop' } ] }, delta({ content => ' end' }), $STOP), '', qr/right end\z/ ],
	[ 'only other choices', stream({ choices => [ { index => 1, delta => { content => 'WRONG' }, finish_reason => 'stop' } ] }), 'malformed', qr/ended without an answer/ ],
	[ 'a negative choice', stream({ choices => [ { index => -1, delta => { content => 'WRONG' }, finish_reason => 'stop' } ] }), 'malformed', qr/ended without an answer/ ],
	[ 'finish_reason a number', stream({ choices => [ { index => 0, delta => { content => 'hi' }, finish_reason => 5 } ] }), 'malformed', qr/without a reason to finish/ ],
	[ 'an event null', stream('null'), 'malformed', qr/no JSON object/ ],
	[ 'an event without choices', stream({ id => 'x' }, delta({ content => 'hi' }), $STOP), 'malformed', qr/no choices/ ],
	[ 'no event but the end', stream(), 'malformed', qr/ended without an answer/ ],
	[ 'tool_calls of index 10^9', stream(delta({ tool_calls => [ { index => 1e9, id => 'c1', function => { name => 'f', arguments => '{}' } } ] }), $STOP), 'malformed', qr/tool_calls: "index" is out of range/ ],
	[ 'tool_calls of index -1', stream(delta({ tool_calls => [ { index => -1, id => 'c1', function => { name => 'f', arguments => '{}' } } ] }), $STOP), 'malformed', qr/tool_calls: "index" is out of range/ ],
	[ 'tool_calls of index 2^32', stream(delta({ tool_calls => [ { index => 4294967296, id => 'c1', function => { name => 'f', arguments => '{}' } } ] }), $STOP), 'malformed', qr/tool_calls: "index" is out of range/ ],
	[ 'tool_calls of index "x"', stream(delta({ tool_calls => [ { index => 'x', id => 'c1', function => { name => 'f', arguments => '{}' } } ] }), $STOP), 'malformed', qr/tool_calls: "index" is out of range/ ],
	[ 'tool_calls that are none', message({ content => 'hi', tool_calls => { a => 1 } }), '', qr/hi\z/ ],
	[ '1,000 tool calls', message({ content => undef, tool_calls => [ map { { id => "c$_", function => { name => 'f', arguments => '{}' } } } 1 .. 1000 ] }), 'malformed', qr/tool_calls: "index" is out of range/ ],

	# JSON at its edges
	[ 'equal keys: the last counts', { body => '{"choices":[],"choices":[{"index":0,"message":{"content":"one","content":"two"},"finish_reason":"length","finish_reason":"stop"}]}' }, '', qr/two\z/ ],
	(map { [ "surrogates $_", { body => qq({"choices":[{"index":0,"message":{"content":"$_"},"finish_reason":"stop"}]}) }, 'malformed', qr/not valid JSON/ ] }
		  '\ud800', '\udc00', '\ud800\ud800', '\udc00\ud800', '\ud83d x', '\ud8', '\uzzzz'),
	(map { [ "surrogates $_ in a stream", stream(qq({"choices":[{"index":0,"delta":{"content":"$_"},"finish_reason":"stop"}]})), 'malformed', qr/not valid JSON/ ] }
		  '\ud800', '\udc00\ud800'),
	[ 'a NUL', message({ content => "a\0b" }), 'malformed', qr/character that the database's encoding cannot hold/ ],
	[ 'a NUL as a byte', { body => "{\"choices\":\0}" }, 'malformed', qr/byte 12 is NUL/ ],
	[ 'a control character as it is', { body => "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"a\x01b\"}}]}" }, 'malformed', qr/syntax error/ ],
	[ 'UTF-16', { body_base64 => encode_base64(encode('UTF-16', text_of($HI)), '') }, 'malformed', qr/not UTF-8/ ],
	[ 'overlong UTF-8', { body_base64 => encode_base64("{\"x\":\"\xc0\xaf\"}", '') }, 'malformed', qr/byte 7 is not UTF-8/ ],
	(map { [ "an answer that ended with $_", stream(delta({ content => 'some' }), { choices => [ { index => 0, delta => {}, finish_reason => $_ } ] }), 'server_error', qr/in the middle of the answer/ ] }
		  qw(abort error network_error)),
	[ 'a compressed body, unasked', gzipped('application/json', text_of($HI)), '', qr/hi\z/ ],
	[ 'a compressed stream, unasked', gzipped('text/event-stream', events(delta({ content => 'hi' }), $STOP)), '', qr/hi\z/ ],
	[ 'a body that is compressed by name only', { headers => { 'content-encoding' => 'gzip' }, body => text_of($HI) }, 'network', qr/the answer's content encoding cannot be undone/ ],
	[ 'a body in an encoding that is unknown', { headers => { 'content-encoding' => 'rot13' }, body => text_of($HI) }, 'network', qr/the answer's content encoding cannot be undone/ ],
	[ 'a body that is compressed twice', layers(2, 'content-encoding' => 'gzip, gzip'), 'network', qr/the answer is compressed more than once/ ],
	[ 'an encoding that is none', layers(1, 'Content-Encoding' => 'identity, gzip'), '', qr/hi\z/ ],
	[ 'a body of 200 MB in 200 kB', gzipped('application/json', ' ' x 200_000_000), 'malformed', qr/max_response_size/ ],
	[ 'BOM before a body', { body => "\x{feff}" . text_of($HI) }, '', qr/hi\z/ ],
	[ 'BOM before an error', { status => 400, body => "\x{feff}" . '{"error":{"message":"No.","code":"content_filter"}}' }, 'content_policy', qr/HTTP 400: No\./ ],
	[ 'BOM before a stream', { chunks => [ "\x{feff}" . events(delta({ content => 'hi' }), $STOP) ] }, '', qr/hi\z/ ],
	[ 'BOM within a stream', { chunks => [ "data: \x{feff}" . text_of($STOP) . "\n\n" ] }, 'malformed', qr/not valid JSON/ ],
	[ 'deep arrays', with_unknown('[' x 100_000), 'malformed', qr/nested too deeply/ ],
	[ 'deep objects', { body => '{"a":' x 100_000 }, 'malformed', qr/nested too deeply/ ],
	[ 'deep arrays in a stream', stream('[' x 100_000), 'malformed', qr/nested too deeply/ ],
	[ 'a number of 200,000 digits', with_unknown('9' x 200_000), 'malformed', qr/out of range/ ],
	[ 'an unknown number of 100,000 digits', with_unknown('9' x 100_000), '', qr/hi\z/ ],

	# HTTP that lies; libcurl's words differ by version
	(map { [ "chunks: $_->[0]", { headers => { 'transfer-encoding' => 'chunked', 'content-type' => 'text/event-stream' }, body => $_->[1], then => 'close' }, $_->[2], $_->[3] ] }
		  [ 'larger than said', sprintf("%x\r\n%s\r\n0\r\n\r\n", 20, events(delta({ content => 'hi' }), $STOP)), 'network', qr/./ ],
		  [ 'smaller than said', sprintf("%x\r\n%s", 1000, 'data: {'), 'network', qr/./ ],
		  [ 'negative', "-5\r\n" . events($STOP), 'network', qr/./ ],
		  [ 'of 2^64 - 1', "ffffffffffffffff\r\n" . events(), 'network', qr/./ ],
		  [ 'of 24 digits', "ffffffffffffffffffffffff\r\n" . events($STOP), 'network', qr/./ ],
		  [ 'no number', "zz\r\n" . events($STOP), 'network', qr/./ ],
		  [ 'without an end', sprintf("%x\r\n%s\r\n", length 'data: {}', 'data: {}'), 'network', qr/./ ]),
	[ 'more content than said', { headers => { 'content-length' => 20 }, body => text_of($HI), then => 'close' }, 'malformed', qr/cut short/ ],
	[ 'less content than said', { headers => { 'content-length' => 9999 }, body => text_of($HI), then => 'close' }, 'network', qr/./ ],
	[ 'content of 10^12 bytes', { headers => { 'content-length' => 999999999999 }, body => text_of($HI), then => 'close' }, 'network', qr/./ ],
	[ 'content of -1 bytes', { headers => { 'content-length' => -1 }, body => text_of($HI), then => 'close' }, 'network', qr/./ ],
	[ 'another answer behind the answer', { headers => { 'content-length' => length text_of($HI) }, body => text_of($HI) . sprintf("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", length text_of($HI), text_of($HI) =~ s/"hi"/"no"/r) }, '', qr/hi\z/ ],
	[ '1,000 headers', { behaviour => 'default', headers => { map { ("x-header-$_" => 'value') } 1 .. 1000 } }, '', qr/echo: x\z/ ],
	[ 'a header of 64 kB', { behaviour => 'default', headers => { 'x-long' => 'h' x 65_000 } }, '', qr/echo: x\z/ ],
	[ 'a content type of 90 kB', { behaviour => 'default', headers => { 'content-type' => 'text/event-stream; x=' . 'y' x 90_000 } }, '', qr/echo: x\z/ ],

	# long words
	[ 'finish_reason of 1 MB', { body => { choices => [ { index => 0, message => { content => 'hi' }, finish_reason => 'x' x MEGA } ] } }, '', qr/hi\z/ ],
	[ 'model of 1 MB', { body => { %$HI, model => 'x' x MEGA, id => 'y' x MEGA } }, '', qr/hi\z/ ],
	[ 'an event name of 1 MB', raw_stream('event: ' . 'e' x MEGA . "\n" . events(delta({ content => 'hi' }), $STOP)), '', qr/hi\z/ ],
	[ 'a field name of 1 MB', raw_stream('f' x MEGA . ": x\n" . events(delta({ content => 'hi' }), $STOP)), '', qr/hi\z/ ],
	[ 'an HTML page of 1 MB', { headers => { 'content-type' => 'text/html' }, body => '<html>' . 'x' x MEGA }, 'malformed', qr/not valid JSON: syntax error: "<html>x+\.\.\."/ ],
  );

$fake->script('m', { body => { choices => [ { index => 0, message => { content => 'hi' }, finish_reason => 'x' x MEGA } ] } });
cmp_ok($s->value(q{SELECT octet_length(finish_reason) FROM llm_complete_detail('x', model => 'm')}), '<=', 100, 'a long finish_reason is cut');
$fake->script('m', { status => 400, body => { error => { message => "Line one\r\nERROR:  XX000: fake\n\x1b[31mred\x{202e}\x{2028} " . 'e' x MEGA, code => 'c' x MEGA } } });
$r = $s->run(q{SELECT llm_complete('x', model => 'm')});
error_ok($r, { sqlstate => 'LG008', message => qr/: HTTP 400: Line one ERROR: XX000: fake \[31mred e+\.\.\.\z/ }, 'an error message of 1 MB, with control characters, is one short line');
cmp_ok(length $r->{message}, '<', 700, 'of limited length');
still_ok('an error message of 1 MB');

# Much of everything, from a provider whose bytes are written here

my $listener = silent_listener();
$gw->add_provider('raw', "http://127.0.0.1:$listener->{port}/v1");
$gw->add_models('raw', 'm-raw');

# Runs a statement that makes one call to m-raw, and answers that with these bytes.
sub answered
{
	my ($sql, @bytes) = @_;
	local $SIG{PIPE} = 'IGNORE';
	$s->start($sql);
	my $client = $listener->accepted;
	sysread $client, my $request, 65536;
	for my $bytes (@bytes)
	{
		my $sent = 0;
		while ($sent < length $bytes)
		{
			my $n = syswrite($client, $bytes, 4 * MEGA, $sent) // last;
			$sent += $n;
		}
	}
	shutdown $client, 1;
	my $result = $s->finish;
	close $client;
	return $result;
}

my $HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
my $before = rss();
for my $case (
	[ '1,000,000 events', '', 1000000, sub { 'data: {"choices":[{"delta":{"content":"a"}}]}' . "\n\n" }, 1_000_000 ],
	[ '10,000,000 empty lines', '', 2, sub { "\n" }, 10_000_000, delta({ content => 'hi' }) ],
	[ '5,000,000 comments', '', 2, sub { ":\n" }, 5_000_000, delta({ content => 'hi' }) ],
	[ '5,000,000 lines of one event', 'malformed', '', sub { "data: 1\n" }, 5_000_000 ],
	[ 'a line of 60 MB', '', 60_000_000, sub { 'data: {"choices":[{"delta":{"content":"' . 'a' x 60_000_000 . "\"}}]}\n\n" }, 1 ],
	[ 'a line of 60 MB without an end', 'malformed', '', sub { 'data: ' . 'a' x 60_000_000 }, 1 ])
{
	my ($name, $class, $length, $bytes, $times, @more) = @$case;
	$r = answered(q{SELECT error_class, length(response) FROM llm_complete_detail('x', model => 'm-raw')}, $HEAD, $bytes->() x $times, events(@more, $STOP));
	is($r->{out}, "$class|$length", "$name: outcome") or diag($r->{err});
	note("$name: $r->{seconds} s, " . (rss() - $before) . ' kB more');
	cmp_ok(rss() - $before, '<', GROWTH_KB, "$name: memory");
	still_ok($name);
}
$r = answered(q{SELECT error_class FROM llm_complete_detail('x', model => 'm-raw')}, "HTTP/1.1 500 X\r\n\r\n", 'x' x 60_000_000);
is($r->{out}, 'server_error', 'an error body of 60 MB');
cmp_ok(rss() - $before, '<', GROWTH_KB, 'an error body of 60 MB: memory');
still_ok('an error body of 60 MB');
$r = answered(q{SELECT coalesce(error_class, response) FROM llm_complete_detail('x', model => 'm-raw')},
	"HTTP/1.1 200 OK\r\n", (map { "x-header-$_: " . 'h' x 65_000 . "\r\n" } 1 .. 1000), "\r\n", text_of($HI));
like($r->{out}, qr/\A(?:network|hi)\z/, '1,000 headers of 64 kB: libcurl decides');
cmp_ok(rss() - $before, '<', GROWTH_KB, '1,000 headers of 64 kB: memory');
still_ok('1,000 headers of 64 kB');
is($s->value(q{SHOW llm_gateway.max_response_size}), '64MB', 'the largest answer');
$gw->sql(q{UPDATE llm_models SET first_byte_timeout = '3 min', total_timeout = '3 min' WHERE name = 'huge-100'; UPDATE llm_providers SET idle_timeout = '3 min' WHERE name = 'fake'});
error_ok($r = $s->run(q{SELECT llm_complete('x', model => 'huge-100')}),
	{ sqlstate => 'LG010', message => qr/larger than 65536 kB \(llm_gateway\.max_response_size\)/, hint => qr/max_response_size/ }, 'an answer of 100 MB');
style_ok($r, 'an answer of 100 MB');
is( $s->value(q{SELECT string_agg(concat_ws(' ', idx, error_class, attempts), ', ' ORDER BY idx) FROM llm_complete_batch('{a,b}', model => 'huge-100')}),
	'1 malformed 1, 2 malformed 1', 'two of them');
cmp_ok(rss() - $before, '<', GROWTH_KB, 'memory after answers of 100 MB');
still_ok('answers of 100 MB');

# What is no HTTP

for my $case (
	[ 'nothing', '', 'network' ],
	[ 'half a status line', 'HTTP/1.1 20', 'network' ],
	[ 'a status of letters', "HTTP/1.1 abc OK\r\n\r\n" . text_of($HI), 'network' ],
	[ 'a status of 000', "HTTP/1.1 000 OK\r\n\r\n" . text_of($HI), 'network' ],
	[ 'a status of 999', "HTTP/1.1 999 X\r\n\r\n" . text_of($HI), 'server_error' ],
	[ 'an answer without a head', text_of($HI), 'network' ],
	[ 'all bytes there are', join('', map { chr } 0 .. 255) x 100, 'network' ],
	[ 'a TLS alert', "\x15\x03\x01\0\x02\x02\x28", 'network' ],
	[ 'HTTP/2, unasked', "\0\0\x12\x04\0\0\0\0\0" . "\0" x 18, 'network' ],
	[ 'PostgreSQL', "E\0\0\0\x10SFATAL\0\0", 'network' ],
	[ 'LF for CRLF', "HTTP/1.1 200 OK\ncontent-type: application/json\n\n" . text_of($HI), '' ],
	[ 'bytes beyond ASCII in a header', "HTTP/1.1 200 OK\r\nx: \xff\xfe\r\n\r\n" . text_of($HI), '' ],
	[ '1,000 interim responses', "HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" x 1000 . "HTTP/1.1 200 OK\r\n\r\n" . text_of($HI), '' ],
	[ 'an interim response and no other', "HTTP/1.1 100 Continue\r\n\r\n", 'network' ],
	[ 'a redirect without a target', "HTTP/1.1 302 Found\r\n\r\n", 'not_found' ],
	[ 'retry-after of 10^400 s', "HTTP/1.1 429 X\r\nretry-after: 1" . '0' x 400 . "\r\n\r\n", 'rate_limit' ])
{
	my ($name, $bytes, $class) = @$case;
	$r = answered(q{SELECT llm_complete('x', model => 'm-raw')}, $bytes);
	if ($class eq '')
	{
		is($r->{out}, 'hi', "$name: an answer") or diag($r->{err});
	}
	else
	{
		error_ok($r, { sqlstate => $CODE{$class} // 'LG002', detail => qr{\Araw/m-raw: $class after } }, "$name: error");
		style_ok($r, $name);
	}
	still_ok($name);
}

# A redirect, a certificate, a connection

my $other = FakeProvider->new;
for my $status (301, 302, 303, 307, 308)
{
	$fake->script('m', { status => $status, headers => { location => $other->url . '/chat/completions?token=Xq81' }, body => '', repeat => 5 });
	error_ok($r = $s->run(q{SELECT llm_complete('x', model => 'm')}), { sqlstate => 'LG008', message => qr{HTTP $status: redirect not followed: it leads to "http://127\.0\.0\.1:\d+/v1/chat/completions"$}, hint => qr/base_url/ }, "redirect $status");
	style_ok($r, "redirect $status");
	is($s->run(q{SELECT string_agg(error_class, ' ') FROM llm_complete_batch('{a,b}', model => 'm')})->{out}, 'not_found not_found', "redirect $status in a batch");
}
# where a key or a password may be in it, it is not shown
for my $case ([ "https://user:secret\@example.com/x", undef ], [ "https://example.com/$KEY/x", 'https://example.com/' . '*' x length($KEY) . '/x' ], [ "https://example.com/a#b", 'https://example.com/a' ])
{
	my ($location, $shown) = @$case;
	$fake->script('m', { status => 307, headers => { location => $location }, body => '' });
	my $what = defined $shown ? ": it leads to \"$shown\"" : '';
	error_ok($s->run(q{SELECT llm_complete('x', model => 'm')}), { sqlstate => 'LG008', message => qr/HTTP 307: redirect not followed\Q$what\E$/ }, "a redirect to $location");
}
$fake->script('m');
is($other->stats->{connections_total}, 0, 'the target of a redirect is not even connected to');

my $tls = FakeProvider->new(tls => 1, tls_san => 'DNS:other.example');
$gw->add_provider('tls', $tls->url);
$gw->add_models('tls', 'm-tls');
$s->run('SET llm_gateway.ca_file = ' . literal($tls->ca_file));
error_ok($r = $s->run(q{SELECT llm_complete('x', model => 'm-tls')}),
	{ sqlstate => 'LG004', detail => qr{\Atls/m-tls: network after }, hint => qr/llm_gateway\.ca_file/ }, q{a certificate for another name});
style_ok($r, 'a certificate for another name');
is($s->run(q{SELECT error_class, error_message ~ '127\.0\.0\.1' FROM llm_complete_detail('x', model => 'm-tls')})->{out}, 'network|t', 'a certificate for another name: llm_complete_detail names the host');
is($s->run(q{SELECT string_agg(error_class, ' ') FROM llm_complete_batch('{a,b}', model => 'm-tls')})->{out}, 'network network', 'a certificate for another name: llm_complete_batch');
is($tls->stats->{requests}, 0, 'a certificate for another name: no request');
$s->run('RESET llm_gateway.ca_file');

is($s->run(q{SELECT string_agg(response, ', ' ORDER BY idx) FROM llm_complete_batch('{a,b,c}', model => 'half-close', max_concurrency => 1)})->{out},
	'echo: a, echo: b, echo: c', 'half-closed connections');
$fake->script('m', { chunks => [ 'data: ' . text_of(delta({ content => 'hi' })) . "\n\n" ], then => 'half-close', headers => { connection => 'close' } });
is($s->run(q{SELECT error_class FROM llm_complete_detail('x', model => 'm')})->{out}, 'malformed', 'a connection that is half-closed half-way');
still_ok('half-closed connections');

# 200, but the body is an error

$fake->script('m', { status => 200, body => { error => { message => 'No.', type => 'invalid_request_error', code => 'context_length_exceeded' } }, repeat => 2 });
error_ok($s->run(q{SELECT llm_complete('x', model => 'm')}), { sqlstate => 'LG007', message => qr/error in the answer: No\./ }, '200 with an error body: its code counts');
is($s->run(q{SELECT error_class, response IS NULL FROM llm_complete_detail('x', model => 'm')})->{out}, 'context_length|t', '200 with an error body: llm_complete_detail');

# Encodings

for my $encoding (qw(LATIN1 SQL_ASCII))
{
	my $database = lc $encoding;
	$gw->sql("CREATE DATABASE $database TEMPLATE template0 ENCODING '$encoding' LC_COLLATE 'C' LC_CTYPE 'C'");
	$gw->set_up($database);
	$gw->sql('UPDATE llm_error_policies SET max_retries = 0', $database);
	$gw->add_models('fake', 'gpt-4o', 'm', { database => $database });
	my $there = $gw->session($database);

	# the answer to the second of three does not fit, or is no text
	for my $case (
		[ 'no such character', message({ content => "日本 \x{20ac}" }), $encoding eq 'LATIN1' ? 'malformed' : '' ],
		[ 'no such character, escaped', { body => '{"choices":[{"index":0,"message":{"content":"\\u65e5"},"finish_reason":"stop"}]}' }, $encoding eq 'LATIN1' ? 'malformed' : '' ],
		[ 'no such character in a stream', stream(delta({ content => 'good so far ' }), delta({ content => "\x{1F600}" }), $STOP), $encoding eq 'LATIN1' ? 'malformed' : '' ],
		[ 'no such character in an unknown field', with_unknown("\"\x{65e5}\""), $encoding eq 'LATIN1' ? 'malformed' : '' ],
		[ 'half a surrogate pair', { body => '{"choices":[{"index":0,"message":{"content":"\\ud83d"},"finish_reason":"stop"}]}' }, 'malformed' ],
		[ 'a NUL', message({ content => "a\0b" }), 'malformed' ],
		[ 'bytes that are no UTF-8', { body_base64 => encode_base64("{\"choices\":[{\"index\":0,\"message\":{\"content\":\"\xe9\"}}]}", '') }, 'malformed' ])
	{
		my ($name, $step, $class) = @$case;
		$fake->script('m', 'default', $step, 'default', $step);
		is( $there->run(q{SELECT string_agg(concat_ws(' ', idx, error_class, CASE WHEN idx <> 2 THEN response END), ', ' ORDER BY idx)
				FROM llm_complete_batch('{a,x,b}', model => 'm', max_concurrency => 1)})->{out},
			'1 echo: a, 2' . ($class eq '' ? '' : " $class") . ', 3 echo: b', "$encoding: $name");
		$r = $there->run(q{SELECT llm_complete('x', model => 'm')});
		is($r->{sqlstate}, $class eq '' ? undef : 'LG010', "$encoding: $name: SQLSTATE");
		style_ok($r, "$encoding: $name") if $class ne '';
		$fake->script('m');
		still_ok("$encoding: $name", $there);
	}

	# an error's text, too, must fit
	$fake->script('m', { status => 400, body => { error => { message => "Nicht erlaubt: 日本 \x{20ac} \x{1F600}" } } });
	$r = $there->run(q{SELECT llm_complete('x', model => 'm')});
	error_ok($r, { sqlstate => 'LG008', message => qr/HTTP 400: / }, "$encoding: an error in other characters");

	next unless $encoding eq 'SQL_ASCII';
	for my $case (
		[ 'prompt', q{E'\xe9'} ],
		[ 'system prompt', q{'x', system_prompt => E'\xe9'} ],
		[ 'params', q{'x', params => E'{"user": "\xe9"}'} ],
		[ 'extra', q{'x', params => E'{"extra": {"metadata": {"k\xe9": 1}}}'} ])
	{
		my ($name, $arguments) = @$case;
		my $seen = $gw->requests(
			sub {
				error_ok($r = $there->run("SELECT llm_complete($arguments, model => 'gpt-4o')"), { sqlstate => 'LG008', message => qr/not valid UTF-8/ }, "SQL_ASCII: $name");
				style_ok($r, "SQL_ASCII: $name");
			});
		is(scalar @$seen, 0, "SQL_ASCII: $name: is not sent");
		still_ok("SQL_ASCII: $name", $there);
	}
	is( $there->run(q{SELECT string_agg(concat_ws(' ', idx, error_class, response), ', ' ORDER BY idx) FROM llm_complete_batch(array['a', E'\xe9', 'b'], model => 'gpt-4o')})->{out},
		'1 echo: a, 2 invalid_request, 3 echo: b', 'SQL_ASCII: a bad prompt between two others');
	is( $there->run(q{SELECT string_agg(concat_ws(' ', idx, error_class, array_length(embedding, 1)), ', ' ORDER BY idx) FROM llm_embed_batch(array['a', E'\xe9', 'b'], model => 'gpt-4o')})->{out},
		'1 16, 2 invalid_request, 3 16', 'SQL_ASCII: a bad input between two others');
}

# Every behaviour of the fake: whatever error there is, is in style

my $program = "$FindBin::Bin/fake_provider.py";
my @behaviours = map { /\A(\S+)/ ? $1 : () } split /\n/, qx{"@{[ $ENV{PYTHON} || 'python3' ]}" "$program" --list};
cmp_ok(scalar @behaviours, '>', 50, 'behaviours of the fake');
s/CODE/503/, s/KEY/other/, s/X-Y-C-R/1-1-0-0/, s/retry-after-(?:ms-)?\KN/1/, s/deep-\KN/100000/, s/huge-\KN/1/, s/-\KN\b/2/ for @behaviours;
$gw->add_provider('every', $fake->url, { first_byte_timeout => q{'500 ms'}, idle_timeout => q{'200 ms'}, total_timeout => q{'2 s'} });
$gw->add_models('every', @behaviours);
$s->run(q{SET llm_gateway.max_response_size = '512kB'});
my $errors = 0;
for my $behaviour (@behaviours)
{
	$r = $s->run("SELECT llm_complete('Hello there', model => 'every/$behaviour', max_tokens => 50)");
	next unless defined $r->{sqlstate};
	$errors++;
	like($r->{sqlstate}, qr/\ALG0(?:0[2-9]|1[02])\z/, "$behaviour: SQLSTATE");
	style_ok($r, $behaviour, $behaviour =~ /refusal/ ? 1 : undef);
}
$s->run('RESET llm_gateway.max_response_size');
cmp_ok($errors, '>', 40, 'behaviours that are errors');
still_ok('every behaviour');

# Content of another type, too many values, no HTTP at all

sub outcome_of
{
	my ($step) = @_;
	$fake->script('m', $step);
	return $s->run(q{SELECT error_class, coalesce(response, error_message) FROM llm_complete_detail('x', model => 'm')})->{out};
}
{
	for my $content (42, JSON::PP::true, { a => 1 }, [ ['a'] ], [ { type => 'text', text => 5 } ])
	{
		like(outcome_of(message({ content => $content })), qr/\Amalformed\|/, 'content ' . text_of([$content]));
		like(outcome_of(stream(delta({ content => 'before' }), delta({ content => $content }), $STOP)), qr/\Amalformed\|/, 'content ' . text_of([$content]) . ' in a stream');
	}
	like(outcome_of(message(['hello'])), qr/\Amalformed\|/, 'message an array');
	like(outcome_of(stream({ choices => [ { index => 0, delta => 'hello' } ] }, $STOP)), qr/\Amalformed\|/, 'delta a string');
}
for my $case ([ length => qw(length model_length model_context_window_exceeded max_tokens) ], [ stop => qw(stop eos eos_token stop_sequence end_turn) ])
{
	my ($reason, @words) = @$case;
	for my $word (@words)
	{
		my $end = { choices => [ { index => 0, delta => {}, finish_reason => $word } ] };
		$fake->script('m', stream(delta({ content => 'some' }), $end), { body => text_of({ choices => [ { index => 0, message => { content => 'some' }, finish_reason => $word } ] }) });
		for my $way (qw(streamed whole))
		{
			$r = $s->run(q{SELECT finish_reason, response FROM llm_complete_detail('x', model => 'm')});
			is($r->{out}, "$reason|some", "finish_reason $word, $way");
			is($r->{err} =~ /the answer was cut/ ? 'length' : 'stop', $reason, 'and a warning if it was cut');
		}
	}
}
{
	my @end = ({ choices => [ { index => 0, delta => {}, finish_reason => 'tool_calls' } ] });
	my $calls = sub { return map { delta({ tool_calls => [$_] }) } @_ };
	my %f = (id => 'c1', type => 'function', function => { name => 'f', arguments => '{"a":' });
	my %rest = (id => '', function => { name => '', arguments => '1}' });
	my %g = (id => '', function => { name => 'g', arguments => '{"b": 2}' });
	for my $case (
		[ 'numbered from 1',                        'f{"a":1}', stream($calls->({ index => 1, %f }, { index => 1, %rest }), @end) ],
		[ 'without numbers, and an empty id',       'f{"a":1}', stream($calls->(\%f, \%rest), @end) ],
		[ 'without numbers, and two names',         'f{"a":1} g{"b": 2}', stream($calls->(\%f, \%rest, \%g), @end) ],
		[ 'all with the same number',               'f{} g{"b": 2}', stream($calls->({ index => 0, id => 'c1', function => { name => 'f', arguments => '' } }, { index => 0, %g, id => 'c2' }), @end) ],
		[ 'with another id in each piece',          'f{"a":1}', stream($calls->({ index => 0, %f }, { index => 0, %rest, id => 'c2' }), @end) ],
		[ 'in a message that is the only event',    'f{"a":1}', stream({ choices => [ { index => 0, message => { content => undef, tool_calls => [ { %f, function => { name => 'f', arguments => '{"a":1}' } } ] }, finish_reason => 'tool_calls' } ] }) ])
	{
		$fake->script('m', $case->[2]);
		is($s->run(q{SELECT (SELECT string_agg((c->'function'->>'name') || (c->'function'->>'arguments'), ' ') FROM jsonb_array_elements(tool_calls) c) FROM llm_complete_detail('x', model => 'm')})->{out},
			$case->[1], "tool calls $case->[0]");
	}
	is(outcome_of(stream({ choices => [ { index => 0, message => { content => 'hi' }, finish_reason => 'stop' } ] })), '|hi', 'a whole message as the only event');
	is(outcome_of(stream(map { { choices => [ { index => 0, message => { content => $_->[0] }, finish_reason => $_->[1] } ] } } [ 'h', undef ], [ 'hi', undef ], [ 'hi!', 'stop' ])),
		'|hi!', 'the message so far in each event');
	is(outcome_of(stream(delta({ content => 'hi' }), { choices => [ { index => 0, message => { content => 'hi' }, finish_reason => 'stop' } ] })), '|hi', 'or after its pieces');
}
for my $type ('application/json', 'application/octet-stream', 'text/plain; charset=utf-8')
{
	is(outcome_of({ headers => { 'content-type' => $type }, body => events(delta({ content => 'hi' }), $STOP) }), '|hi', "a stream that is called $type");
	is(outcome_of({ headers => { 'content-type' => $type }, body => ": wait\n\n" . events(delta({ content => 'hi' }), $STOP) }), '|hi', "the same, beginning with a comment");
	is(outcome_of({ headers => { 'content-type' => $type }, body => text_of($HI) }), '|hi', "an answer that is called $type");
}
{
	like(outcome_of(with_unknown('[' . '0,' x 1_200_000 . '0]')), qr/\Amalformed\|/, '1,200,000 values');
}
{
	$gw->sql(q{SELECT llm_breaker_reset('raw')});
	unlike(answered(q{SELECT llm_complete('x', model => 'm-raw')}, 'SSH-2.0-OpenSSH_9.2')->{message}, qr/proxy/, 'no HTTP: not a fault of the proxy');
	$r = answered(q{SELECT llm_complete('x', model => 'm-raw')}, "HTTP/1.1 200 OK\r\nx: " . 'h' x 200_000 . "\r\n\r\n" . text_of($HI));
	unlike($r->{message} // '', qr/could not be started|out of memory/i, 'a header of 200 kB: not a lack of memory');
}
still_ok('content of another type');

# At the end

note("$styled messages");
is($s->value('SELECT pg_backend_pid()'), $pid, 'one backend did it all');
cmp_ok(rss() - $before, '<', GROWTH_KB, 'and has not grown');
is($_->stats->{internal_errors}, 0, 'the fakes themselves are sound') for $fake, $other, $tls;
$gw->no_crash_ok;

done_testing();
